"""What a run writes while it trains: `log.jsonl`, the same figures as TensorBoard events, progress, and its state."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from whaleid.training.loop import require_finite_weights
from whaleid.training.resume import STATE, save_state, take_state
from whaleid.training.session import Session
from whaleid.training.tracker import start_tracker
from whaleid.utils.progress import Bar, progress_bar

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

LOG_STEPS = 20
"""Steps between two lines of log.jsonl."""
EPOCH_SAVE_SECONDS = 10.0
"""Least time between two states that are saved at the end of an epoch."""


class RunLog:
    """Appends lines to `<folder>/log.jsonl` and scalars to `<folder>/tensorboard`, and to a tracker where there is one.

    A line has `kind` (`step` or `epoch`), `step` and `epoch` (both counted from 1), and figures, null where they are
    not finite.
    """

    def __init__(self, folder: Path, length: int, step: int, tracker: GeneralTracker | None = None):
        """length: bytes of log.jsonl to keep (those written before the resumed state); step: steps done."""
        self._tracker = tracker
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
        if self._tracker is not None:
            shown = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
            self._tracker.log(shown | {"epoch": epoch}, step=step)

    def note(self, kind: str, step: int, epoch: int, **content: Any) -> None:
        """Add one line of JSON values without plotting them."""
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **content}) + "\n")

    def length(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._tracker is not None:
            self._tracker.finish()


def _finite(value: float | None) -> float | None:
    return round(value, 7) if value is not None and math.isfinite(value) else None


class Recorder:
    """Writes a session's log, progress and state."""

    def __init__(self, session: Session, folder: Path, key: str, bar: Bar, log: RunLog, save_seconds: float):
        self._session, self._folder, self._key, self._bar, self._log = session, folder, key, bar, log
        self._save_seconds = save_seconds
        self._saved = time.monotonic()
        self._from = (session.progress.images, session.progress.seconds)
        self._note = ""

    def after_tick(self, steps: int) -> None:
        """`steps` more steps are done, and their losses were finite."""
        if self._session.progress.window_steps >= LOG_STEPS:
            self._write_window()
        self._bar.advance(steps, self._note)
        self._save_if_older_than(self._save_seconds)

    def end_epoch(self, loss: float) -> None:
        """An epoch is done. loss: mean over its steps."""
        progress = self._session.progress
        self._log.write("epoch", progress.step, progress.epoch, loss=loss, seconds=progress.seconds)
        self._save_if_older_than(min(EPOCH_SAVE_SECONDS, self._save_seconds))

    def note(self, kind: str, **content: Any) -> None:
        """Log what was computed for the epoch that begins."""
        self._log.note(kind, self._session.progress.step, self._session.progress.epoch + 1, **content)

    def _write_window(self) -> None:
        session, progress = self._session, self._session.progress
        loss = progress.window_loss / progress.window_steps
        rate = (progress.images - self._from[0]) / max(1e-9, progress.seconds - self._from[1])
        norm = session.gradient_norm
        self._log.write(
            "step",
            progress.step,
            progress.epoch + 1,
            loss=loss,
            lr=session.config.lr * session.schedule.factor(progress.step - 1),
            images_per_second=rate,
            gradient_norm=None if norm is None else float(norm),
        )
        self._note = f"loss {loss:.3f}  {rate:.0f} images/s"
        self._from = (progress.images, progress.seconds)
        progress.window_loss, progress.window_steps = 0.0, 0

    def _save_if_older_than(self, seconds: float) -> None:
        if time.monotonic() - self._saved < seconds:
            return
        require_finite_weights(self._session)
        self._session.progress.log_length = self._log.length()
        save_state(self._folder / STATE, self._key, take_state(self._session))
        self._saved = time.monotonic()


@contextmanager
def recorder(
    session: Session, folder: Path, key: str, save_seconds: float, settings: Mapping[str, Any]
) -> Iterator[Recorder | None]:
    """The recorder of a run in `folder`; None in all processes but the first. settings: of the run, for a tracker."""
    if not session.accelerator.is_main_process:
        yield None
        return
    progress = session.progress
    log = RunLog(folder, progress.log_length, progress.step, start_tracker(session.title, settings))
    try:
        with progress_bar(f"train {session.title}", session.schedule.steps, progress.step) as bar:
            yield Recorder(session, folder, key, bar, log, save_seconds)
    finally:
        log.close()
