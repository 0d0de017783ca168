"""Log of a run: `log.jsonl` to read and plot, and the same figures as TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends lines to `<folder>/log.jsonl` and scalars to `<folder>/tensorboard`.

    A line holds `kind` (`step` or `epoch`), `step` and `epoch` (both counted from 1, as done), and figures;
    a figure that is not finite is written as null, since JSON has no word for it.
    """

    def __init__(self, folder: Path, length: int, step: int):
        """length: bytes of log.jsonl to keep (those that the resumed state knew of); step: steps done."""
        self._path = folder / "log.jsonl"
        self._path.touch()
        os.truncate(self._path, min(length, self._path.stat().st_size))
        events = folder / "tensorboard"
        if step == 0:
            shutil.rmtree(events, ignore_errors=True)
        self._events = SummaryWriter(str(events), purge_step=step + 1)
        self._file = self._path.open("a", buffering=1)

    def write(self, kind: str, step: int, epoch: int, **figures: float | None) -> None:
        """Add one line, on disk when this returns."""
        self.note(kind, step, epoch, **{name: _finite(value) for name, value in figures.items()})
        for name, value in figures.items():
            if value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def note(self, kind: str, step: int, epoch: int, **content: Any) -> None:
        """Add one line of JSON values that are no curves."""
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **content}) + "\n")

    def length(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _finite(value: float | None) -> float | None:
    return round(value, 7) if value is not None and math.isfinite(value) else None
