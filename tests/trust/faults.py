"""What goes wrong in a process on purpose; each is called in the process before its command (`world.start`)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KillAtRename:
    """kill -9 before the first rename that is not in the list yet, which it is then added to.

    Attributes
    ----------
    killed : Path
        The list: a rename a line, by its target and how often this process has renamed to it.
    """

    killed: Path

    def __call__(self) -> None:
        done = set(self.killed.read_text().splitlines()) if self.killed.exists() else set()
        count: Counter[str] = Counter()
        for name in ("rename", "replace"):
            setattr(os, name, self._stopped(getattr(os, name), done, count))

    def _stopped(self, plain: Any, done: set[str], count: Counter[str]) -> Any:
        @wraps(plain)
        def renamed(source: Any, target: Any) -> None:
            name = os.path.relpath(target)
            count[name] += 1
            line = f"{name} {count[name]}"
            if line not in done:
                with self.killed.open("a") as file:
                    file.write(f"{line}\n")
                os.killpg(0, signal.SIGKILL)
            plain(source, target)

        return renamed


@dataclass(frozen=True)
class ClockJumpsBack:
    """The clock goes back by so many seconds at every call of it; files get times to match."""

    seconds: float

    def __call__(self) -> None:
        plain, calls = time.time, Counter[str]()

        def earlier() -> float:
            calls["time"] += 1
            return plain() - self.seconds * calls["time"]

        time.time = earlier
        threading.Thread(target=_age_files, args=(Path.cwd() / "work", self.seconds), daemon=True).start()


def _age_files(folder: Path, seconds: float) -> None:
    """Give every file of a folder an earlier time, again and again."""
    while True:
        for path in folder.rglob("*"):
            try:
                os.utime(path, (0, max(0.0, time.time() - seconds)))
            except FileNotFoundError:
                continue
        time.sleep(0.2)
