"""Where a running kernel finds and leaves things, and how it speaks. Standard library only (`kernel_main.py`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class Places:
    """Folders of a running kernel. assets, competition: mounted, read-only. scratch: whatever is not output."""

    assets: Path
    competition: Path
    working: Path
    scratch: Path


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{path}: not readable as JSON ({error}); push the data set again") from error


def say(line: str) -> None:
    """A line of the kernel's log, there at once."""
    print(line, flush=True)
