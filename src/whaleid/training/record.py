"""What a run leaves behind while it goes on: lines of its log, its progress bar, its state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whaleid.training.log import RunLog
from whaleid.training.loop import require_finite_weights
from whaleid.training.session import Session, take_state
from whaleid.training.state import save_state
from whaleid.utils.progress import Bar, progress_bar

STATE = Path("state", "state.safetensors")
LOG_STEPS = 20
"""Steps between two lines of log.jsonl."""
EPOCH_SAVE_SECONDS = 10.0
"""An epoch's end is a good moment to save, but not many times a second."""


class Recorder:
    """Follows a session; of several processes only the first writes, the others' recorders do nothing."""

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

    def end_epoch(self, loss: float, score: float | None) -> None:
        """An epoch is done. loss: mean over its steps; score: of the fold's queries, if asked for."""
        progress = self._session.progress
        figures = {} if score is None else {"score": score}
        self._log.write("epoch", progress.step, progress.epoch, loss=loss, seconds=progress.seconds, **figures)
        self._save_if_older_than(min(EPOCH_SAVE_SECONDS, self._save_seconds))

    def note(self, kind: str, **content: Any) -> None:
        """A line in the log about the epoch that begins."""
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
def recorder(session: Session, folder: Path, key: str, save_seconds: float) -> Iterator[Recorder | None]:
    """The recorder of a run in `folder`; None in all processes but the first."""
    if not session.accelerator.is_main_process:
        yield None
        return
    progress = session.progress
    log = RunLog(folder, progress.log_length, progress.step)
    try:
        with progress_bar(f"train {session.title}", session.schedule.steps, progress.step) as bar:
            yield Recorder(session, folder, key, bar, log, save_seconds)
    finally:
        log.close()
