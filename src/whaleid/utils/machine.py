"""The machine in one line, and the time that a task took: noted beside its output's key."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import psutil

_GB = 1e9
_CPUINFO = Path("/proc/cpuinfo")


def measured(began: float) -> dict[str, Any]:
    """Seconds since `began` (of `time.monotonic()`; of the last process, where a task was resumed), and the machine."""
    return {"seconds": round(time.monotonic() - began, 3), "machine": machine_line()}


def machine_line() -> str:
    """System, processor, cores, memory and GPUs; GPUs only where torch is loaded, for nothing else uses them."""
    memory = f"{psutil.virtual_memory().total / _GB:.0f} GB"
    parts = [platform.system(), _processor(), f"{os.cpu_count() or 1} cores", memory, *_gpus()]
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
