"""What the benchmarks share: clocks, and processes of their own."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result of the work, its processor seconds (user and system, all threads) and its seconds by the clock."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = work()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    return result, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def device_seconds(work: Callable[[], object]) -> float:
    """Processor time on a CPU, which other programs hardly change; time by the clock on a GPU."""
    import torch

    if not torch.cuda.is_available():
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def best_seconds(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Best seconds of each call by the clock. The calls take turns, so that other programs slow all of them."""
    seconds = np.empty((repeats, len(calls)))
    for repeat in range(repeats):
        for column, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[repeat, column] = time.perf_counter() - start
    return seconds.min(axis=0).tolist()


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Result of `work(*arguments)` in a new process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_gib() -> float:
    """Largest resident memory that this process has had so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
