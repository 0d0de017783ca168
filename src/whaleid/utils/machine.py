"""The machine: cores and memory that this process may use, what a task was made by, and the time that it took."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

_GB = 1e9
_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_PICTURE, _SEARCHES = 0.025, 8  # processor seconds of the picture of `slowness` where its value is 1; times it is done


def cores() -> int:
    """Cores that this process may use: not more than its affinity and its container's quota allow."""
    from joblib import cpu_count  # imports numpy

    return cpu_count()


@cache
def slowness() -> float:
    """How many times as long as a core that constants of this project were measured on (an EPYC) one takes here.

    The processor time of searches for keypoints in a drawn picture on all cores at once, half a second in all: two
    cores may share the parts of one.
    """
    import cv2
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), noise, 0, 255, cv2.NORM_MINMAX)

    def search() -> None:
        cv2.SIFT.create(nfeatures=1000).detectAndCompute(picture, None)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return busy_seconds(search, _SEARCHES) / _PICTURE
    finally:
        cv2.setNumThreads(threads)


def busy_seconds(work: Callable[[], object], times: int) -> float:
    """Processor seconds of a piece of work while all cores do it: the least of so many times, the median of the cores.

    The least, for what else the machine does shall count little.
    """

    def least(_core: int) -> float:
        took = []
        for _ in range(times):
            began = time.thread_time()
            work()
            took.append(time.thread_time() - began)
        return min(took)

    with ThreadPoolExecutor(cores()) as pool:
        return median(pool.map(least, range(cores())))


def free_memory() -> int:
    """Bytes that can still be taken: of the system, and below the limits of the control groups around this process."""
    return min(psutil.virtual_memory().available, *_left_in_cgroups(_CGROUPS, _OWN_CGROUPS))


def _left_in_cgroups(root: Path, own: Path) -> list[int]:
    """Bytes below each memory limit of version 1 or 2, from the groups of this process up to the root.

    A container sees its own group as the root, whatever path `own` gives; a job of SLURM is in a group below it.
    """
    left = [sys.maxsize]
    lines = own.read_text().splitlines() if own.is_file() else []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers == "":
            tree, names = root, ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            tree, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        deepest = tree / path.lstrip("/")
        left += [_left(folder, *names) for folder in (deepest, *deepest.parents) if folder.is_relative_to(tree)]
    return left


def _left(group: Path, limit: str, usage: str, inactive: str) -> int:
    """Bytes below a group's limit; what the system would drop for them (`inactive` files in its cache) counts."""
    if not (group / limit).is_file() or (most := (group / limit).read_text().strip()) == "max":
        return sys.maxsize
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, int(most) - int((group / usage).read_text()) + int(stat.get(inactive, 0)))


def used_memory() -> int:
    """Bytes in memory of this process and of those that it started; pages that they share count once for each."""
    own = psutil.Process()
    total = own.memory_info().rss
    for process in own.children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            total += process.memory_info().rss
    return total


def measured(began: float) -> dict[str, Any]:
    """Seconds since `began` (of `time.monotonic()`; of the last process, where a task was resumed), and the machine."""
    seconds = round(time.monotonic() - began, 3)
    return {"seconds": seconds, "machine": machine_line(), "environment": environment()}


PACKAGES = ("torch", "timm", "faiss-gpu", "faiss-cpu", "lightgbm", "numpy", "opencv-python-headless", "scikit-learn")
"""Packages whose version may change the last digits of what is computed, or more; those that are there are noted."""


def environment() -> dict[str, str]:
    """What may change the last digits of a result: processor, GPUs, Python, and `PACKAGES`."""
    gpus = ", ".join(_gpus())
    return _versions() | ({"GPU": gpus} if gpus else {})


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How two environments differ, in words: `torch 2.9.0, now 2.10.0`; empty where they do not.

    A GPU is told only where both name one, for it is known only where torch is loaded.
    """
    parts = []
    for key in [*now, *(key for key in then if key not in now)]:
        if then.get(key) != now.get(key) and not (key == "GPU" and None in (then.get(key), now.get(key))):
            parts.append(f"{key} {then.get(key, 'none')}, now {now.get(key, 'none')}")
    return "; ".join(parts)


@cache
def _versions() -> dict[str, str]:
    found = {"processor": _processor(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine_line() -> str:
    """System, processor, cores, memory and GPUs; GPUs only where torch is loaded, for nothing else uses them."""
    memory = f"{psutil.virtual_memory().total / _GB:.0f} GB"
    parts = [platform.system(), _processor(), f"{cores()} cores", memory, *_gpus()]
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    """The processor's name as the system gives it, else its kind."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
