"""Old keys: every entry of the tables is refused in one line that names the file and the new key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from whaleid.config import renamed
from whaleid.config.files import load_competition, load_experiment, load_recipe, parse_overrides
from whaleid.utils.errors import WhaleidError

LOAD = {"COMPETITION": load_competition, "EXPERIMENT": load_experiment, "RECIPE": load_recipe}
START: dict[str, dict[str, Any]] = {
    "COMPETITION": {},
    "EXPERIMENT": {"extends": "default"},
    "RECIPE": {"experiments": ["lite0_softmax"]},
}
ENTRIES = [(kind, old, new) for kind in LOAD for old, new in getattr(renamed, kind).items()]


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("kind", "old", "new"), ENTRIES or [pytest.param("", "", "", marks=pytest.mark.skip("none"))])
def test_every_old_key_gets_one_line_with_the_new_one(kind: str, old: str, new: str, tmp_path: Path) -> None:
    key, _, value = old.partition("=")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**START[kind], **nested(key, yaml.safe_load(value) if value else 1)}))
    with pytest.raises(WhaleidError) as refused:
        LOAD[kind](str(path))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{path}: '{old}' was re")
    assert new in str(refused.value)


@pytest.mark.parametrize("place", ["file", "recipe", "SET"])
def test_old_keys_of_experiments_are_found_everywhere(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(renamed.EXPERIMENT, "head.gamma", "head.focal")
    path = tmp_path / "mine.yaml"
    with pytest.raises(WhaleidError, match=r"'head.gamma' was renamed: write 'head.focal'") as refused:
        if place == "SET":
            parse_overrides(["head.gamma=2"])
        elif place == "recipe":
            path.write_text("folds: 2\nexperiments: [lite0_softmax]\nset: {head.gamma: 2}\n")
            load_recipe(str(path))
        else:
            path.write_text("extends: default\nhead: {name: divide, learner: {name: softmax, gamma: 2}}\n")
            load_experiment(str(path))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("SET" if place == "SET" else str(path))


def test_old_values_and_removed_keys_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"combine.unknown=platt": "take threshold or share", "combine.after": "leave it out", "folds": "parts"}
    given = {"combine": {"unknown": "platt", "after": {}, "stack": None}, "seed": 1}
    assert list(renamed.old_key_messages(given, table)) == [
        "'combine.unknown=platt' was removed: take threshold or share",
        "'combine.after' was removed: leave it out",
    ]
    part = {"head": {"name": "sum", "parts": [{"weight": 1.0, "head": {"name": "softmax", "old": True}}]}}
    assert list(renamed.old_key_messages(part, {"head.old": "head.new"})) == [
        "'head.old' was renamed: write 'head.new'"
    ]
