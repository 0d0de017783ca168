"""The executor of a Ray cluster: each run is a task of Ray Core, on whichever node is free."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from whaleid.pipeline.executors.forked import do_forked
from whaleid.pipeline.executors.local import MEMORY_OF_A_RUN
from whaleid.pipeline.executors.remote import RemoteCommand, command_of, do_here, failed, load_engine
from whaleid.pipeline.tasks import Task
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import follow_bars

ADDRESS = "RAY_ADDRESS"
"""Ray's own environment variable with the address of the cluster, host:port; default: the cluster of this machine."""
RETRIES = 5
"""Times that a run begins again, where it stopped, because its node or its worker died."""
PATIENCE = 10
"""Seconds for the cluster's address to answer."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2 begins (RFC 9113, 3.4): a fixed line and an empty frame of settings."""
_FRAME_HEAD, _SETTINGS = 9, 4
"""Bytes of a frame's head, of which the fourth is its kind; the kind that a server of HTTP/2 sends first."""

_START = f"start one with `ray start --head`, or name its address, host:port, with {ADDRESS}"


@dataclass(frozen=True)
class RayExecutor:
    """Does tasks on the nodes of a Ray cluster, spread over them; one GPU for each where the cluster has any.

    Attributes
    ----------
    jobs : int
        Tasks given to Ray at the same time; 0: twice as many as run at once, so that no node waits for the next one.
    options : list of str
        Of the tasks' command lines.
    """

    jobs: int = 0
    options: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Connect to the cluster. Raises WhaleidError where there is none."""
        _connected()

    def run(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Do the tasks; Ray ends those that are left where one fails, or where this process ends."""
        sent = [task for task in tasks if task.command is not None]
        if sent:
            yield from self._send(sent)
        yield from do_here(tasks)

    def _send(self, tasks: list[Task]) -> Iterator[Task]:
        ray = _connected()
        shares = {gpus: _share_of_a_run(ray.nodes(), gpus) for gpus in {task.gpus for task in tasks}}
        # max_calls=0: workers stay, also those with a GPU; what a run leaves behind ends with its own process
        common = {"max_calls": 0, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        work = {gpus: ray.remote(**common, **share)(do_forked) for gpus, (share, _) in shares.items()}
        at_once = max(at_once for _, at_once in shares.values())
        queue, window, done = list(tasks), self.jobs or 2 * at_once, 0
        running: dict[Any, tuple[Task, RemoteCommand]] = {}
        with follow_bars() as bars:
            try:
                while queue or running:
                    while queue and len(running) < window:
                        task = queue.pop(0)
                        command = command_of(task, self.options)
                        running[work[task.gpus].remote(command)] = task, command
                    for found in ray.wait(list(running), timeout=0.5)[0]:
                        task, _ = running.pop(found)
                        _raise_if_failed(ray, found, task)
                        done += 1
                        bars.print(f"[{done}/{len(tasks)}] {task.stage} {task.item}")
                        yield task
                    bars.show([command.progress for _, command in running.values()])
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)


def _raise_if_failed(ray: Any, reference: Any, task: Task) -> None:
    """Raise WhaleidError for a command that failed, and for one that Ray gave up."""
    try:
        problem = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()  # of a task's own error the traceback, else what happened to the node
        if isinstance(error, ray.exceptions.RayTaskError):
            raise failed(task, f"on node {error.ip}: {lines[-1]}") from error
        raise failed(task, f"was given up by Ray: {lines[0]}") from error
    if problem is not None:
        raise failed(task, problem)


def _share_of_a_run(nodes: list[dict[str, Any]], gpus: int = 1) -> tuple[dict[str, int], int]:
    """Resources of a run of so many GPUs on these nodes, as Ray names them, and how many runs fit at once.

    A GPU comes with its share of the cores beside it; where no node has one, a core takes its place.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [found for found in resources if found.get("GPU", 0) >= 1]
    share = {"num_gpus": 0, "num_cpus": 1}
    if with_gpus:
        beside = min(found.get("CPU", 1) // found["GPU"] for found in with_gpus)
        share = {"num_gpus": 1, "num_cpus": max(1, int(beside))}
    share["memory"] = MEMORY_OF_A_RUN
    share = {name: gpus * amount for name, amount in share.items()}
    at_once = sum(_fitting(found, share) for found in resources)
    if not at_once:
        wanted = f"{gpus} GPUs" if with_gpus and gpus > 1 else f"{gpus} cores" if gpus > 1 else "a core"
        raise WhaleidError(
            f"none of the {len(resources)} nodes of the Ray cluster has {wanted} and "
            f"{share['memory'] / 2**30:.0f} GiB of memory for a run; add a larger node"
        )
    return share, at_once


def _fitting(node: dict[str, float], share: dict[str, int]) -> int:
    """Runs that fit on a node."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU", "memory": "memory"}
    return int(min(node.get(names[key], 0) // needed for key, needed in share.items() if needed))


def _connected() -> Any:
    """The module `ray`, connected to the cluster. Raises WhaleidError where there is none."""
    ray = load_engine("ray", "ray")
    if ray.is_initialized():
        return ray
    address = os.environ.get(ADDRESS, "")
    if address and address != "auto":
        _require_answer(address)
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WhaleidError(f"no Ray cluster at {address or 'this machine'} ({reason}); {_START}") from error
    return ray


def _require_answer(address: str) -> None:
    """Raise WhaleidError at once where no cluster listens; Ray itself would try for minutes, or for ever."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise WhaleidError(f"{ADDRESS}={address}: the address of a Ray cluster is host:port")
    try:
        speaks = _speaks_grpc(host, int(port))
    except OSError as error:
        raise WhaleidError(
            f"no Ray cluster answers at {ADDRESS}={address} ({error.strerror or error}); {_START}"
        ) from error
    if not speaks:
        raise WhaleidError(f"what answers at {ADDRESS}={address} is no Ray cluster; {_START}")


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server answers as gRPC does, which is HTTP/2. Raises OSError where none answers in time."""
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "1":  # what is said is encrypted
            return True
        connection.sendall(_HELLO)
        head = connection.makefile("rb").read(_FRAME_HEAD)
    return len(head) == _FRAME_HEAD and head[3] == _SETTINGS
