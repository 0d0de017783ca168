"""Tasks for the executors of clusters: a command that is no run of whaleid, but as quick as one can be."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import Workspace


@dataclass(frozen=True)
class ModuleTask(Task):
    """A task whose command is `python -m json.tool`: it copies one JSON file to another one."""

    source: str = ""

    def words(self, options: list[str]) -> list[str]:
        return ["json.tool", self.source, str(self.output), *options]


def copying(root: Path, item: str, source: str = "in.json") -> ModuleTask:
    """A task that copies `in.json`, which is in the current folder, to `<root>/<item>.json`."""
    place = Workspace(root)
    return ModuleTask("train", item, place, root / f"{item}.json", "key", pytest.fail, command="train", source=source)


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with `in.json` the current one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.json").write_text(json.dumps([os.getpid()]))
    monkeypatch.chdir(folder)
    return folder
