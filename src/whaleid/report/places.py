"""Where commands put pages and pictures of several things: into the work folder's `report`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from whaleid.pipeline.workspace import Workspace

_LONGEST = 80  # characters of the names, so that every file system takes the file


def report_file(workspace: Workspace, kind: str, names: Iterable[str], suffix: str) -> Path:
    """`report/<kind>-<names><suffix>` of the work folder; names keep letters, digits, `_`, `-` and dots.

    Names that differ in other characters alone share a file.
    """
    joined = "-".join(re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names)
    return workspace.root / "report" / f"{kind}-{joined[:_LONGEST].strip('-.')}{suffix}"
