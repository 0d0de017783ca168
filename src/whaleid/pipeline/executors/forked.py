"""Commands in processes of their own that begin with the libraries loaded: importing torch and the rest takes seconds.

A command changes its process: current folder, environment, threads, generators, memory of a GPU. A worker of an engine
that stays for the next command must not keep any of it. Python's fork server imports once, runs nothing, and each
command is a fork of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from whaleid.pipeline.executors.remote import RemoteCommand

LOADED = ["ray", "whaleid.cli.main", "whaleid.training.run", "whaleid.features.extractor", "whaleid.pipeline.runner"]
"""What the fork server imports: what the commands need, and what the worker's own main module does."""
_THREADS = "OMP_NUM_THREADS"


def do_forked(command: RemoteCommand) -> str | None:
    """Do a command in a process of its own. Returns None, or what failed and where.

    Where that process is killed, so is this one in the same way: the engine then does the command again.
    """
    same_threads = os.environ.get(_THREADS) == _threads_of_server()
    context: Any = get_context("forkserver" if same_threads else "spawn")
    if same_threads:
        context.set_forkserver_preload(LOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(command, dict(os.environ), there))
    process.start()
    there.close()
    with here, suppress(EOFError):
        return here.recv()
    process.join()
    code = process.exitcode or 0
    if code < 0:
        os.kill(os.getpid(), -code)
    return command.failed(code)


@cache
def _threads_of_server() -> str | None:
    """Threads that the server's libraries have read when they were loaded: those of this worker's first command."""
    return os.environ.get(_THREADS)


def _answer(command: RemoteCommand, environment: dict[str, str], there: Connection) -> None:
    Thread(target=_end_with_worker, name="worker", daemon=True).start()
    os.environ.clear()  # the server's is that of the worker's first command
    os.environ.update(environment)
    there.send(command())


def _end_with_worker() -> None:
    """End this process, and those that it started, as soon as the worker ends: the engine begins again elsewhere."""
    import psutil

    worker = parent_process()
    assert worker is not None
    worker.join()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    os._exit(1)
