"""The whole pipeline from the command line on a small drawn sample; bad input is one line and exit code 2."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from drawn import draw_sample
from typer.main import get_command

from whaleid.cli import main as cli

pytestmark = pytest.mark.usefixtures("worth")

EXPERIMENT = """
extends: default
model: {backbone: test_resnet, weights: random, embedding: 16}
image: {width: 64, height: 32}
train: {epochs: 2, batch: 8}
"""
RECIPE = "folds: 2\nexperiments: [tiny]\ncombine: {concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}\n"
COMPETITION = """
name: drawn
root: {root}
train: {{csv: train.csv, images: train, image: Image, identity: Id}}
test: {{csv: sample_submission.csv, images: test, image: Image}}
unknown: new_whale
unknown_share: 0.276
solution: solution.csv
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder (its name has a space) with a small sample, its competition, a recipe and its experiment."""
    folder = tmp_path_factory.mktemp("a place")
    draw_sample(folder / "data", identities=10, train_images=60, test_images=20)
    (folder / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def broken(drawn: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    shutil.copytree(drawn, tmp_path / "copy", ignore=shutil.ignore_patterns("work", "other", "submissions"))
    return tmp_path / "copy"


def arguments(folder: Path, *words: str, work: str = "work") -> list[str]:
    return [
        *words,
        "--competition",
        str(folder / "drawn.yaml"),
        "--recipe",
        str(folder / "recipe.yaml"),
        "--work",
        str(folder / work),
    ]


def done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, words: list[str]) -> str:
    """What a command prints that must succeed, run in `folder` by this process: a new one would import torch again."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    return printed.out


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a command that must fail."""
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2, said
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def figures(folder: Path, work: str = "work") -> dict[str, object]:
    return json.loads((folder / work / "drawn" / "metrics.json").read_text())["recipe"]["ladder"]


# --------------------------------------------------------------------------------------------- the pipeline


def test_leaderboard_then_up_to_date_then_killed_and_resumed(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = done(monkeypatch, capsys, drawn, arguments(drawn, "leaderboard", "--jobs", "1"))
    for line in ("MAP@5 (out of fold): 0.", "MAP@5 (solution): 0.", "submission: submissions/drawn_recipe_"):
        assert line in first
    submission = Path(first.strip().splitlines()[-1].removeprefix("submission: "))
    check = ["submission", "--check", str(submission), "--competition", str(drawn / "drawn.yaml")]
    assert "a valid submission" in done(monkeypatch, capsys, drawn, check)

    again = done(monkeypatch, capsys, drawn, arguments(drawn, "leaderboard"))
    assert "everything is up to date" in again
    assert again.strip().splitlines()[-4:] == first.strip().splitlines()[-4:]
    log = pd.read_csv(drawn / "submissions" / "log.csv")
    assert log.file.tolist() == [submission.name]
    assert log.solution.notna().all()

    killed = arguments(drawn, "leaderboard", "--jobs", "1", work="other")
    assert _kill_when(drawn, killed, "runs/tiny/fold1/log.jsonl")
    done(monkeypatch, capsys, drawn, arguments(drawn, "leaderboard", "--jobs", "1", work="other"))
    assert figures(drawn, "other") == figures(drawn)


def _kill_when(folder: Path, words: list[str], appears: str) -> bool:
    """Start a command, and kill -9 it as soon as a file of its work folder appears."""
    child = os.fork()  # a process that imports torch takes seconds of a core
    if child == 0:
        try:
            os.chdir(folder)
            sys.argv = ["whaleid", *words]
            cli.main()
        finally:
            os._exit(1)
    path = folder / "other" / "drawn" / appears
    while not os.waitpid(child, os.WNOHANG)[0]:
        if path.exists():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.02)
    return False


def test_score_of_any_two_files(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guesses.csv").write_text("a,b\n1.jpg,x y\n2.jpg,y x\n")
    (tmp_path / "truth.csv").write_text("Image,Id\n2.jpg,x\n1.jpg,x\n")
    monkeypatch.setattr(
        sys, "argv", ["whaleid", "score", str(tmp_path / "guesses.csv"), str(tmp_path / "truth.csv"), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["map"] == 0.75
    assert (told["k"], told["queries"]) == (5, 2)


def _commands(group: Any, name: str = "whaleid") -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        yield f"{name} {word}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")


COMMANDS = dict(_commands(get_command(cli.app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_an_example_that_it_takes(name: str) -> None:
    command = COMMANDS[name]
    _, _, example = command.help.partition("\n\nExample: ")
    words = shlex.split(" ".join(example.split()))
    assert " ".join(words).startswith(name)
    if hasattr(command, "commands") and not command.invoke_without_command:
        assert " ".join(words[:3]) in COMMANDS
        return
    command.make_context(name, words[len(name.split()) :])  # ends the test where an option or a value is wrong
    assert all(option.help for option in command.params)


def test_outputs_are_named_alike() -> None:
    for name, command in COMMANDS.items():
        spelt = [option.opts for option in command.params if "-o" in option.opts or "--output" in option.opts]
        assert spelt in ([], [["--output", "-o"]]), name


def test_commands_that_moved_say_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in cli.MOVED.items():
        assert f"whaleid {new}" in COMMANDS
        assert f"whaleid {old}" not in COMMANDS
        assert refused(monkeypatch, capsys, [old, "-c", "sample"]) == f"error: 'whaleid {old}' is now 'whaleid {new}'"


def test_help_answers_without_torch() -> None:
    script = (
        "import sys; from whaleid.cli import main; from whaleid.pipeline import stages; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ bad input


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _missing_csv(folder: Path) -> None:
    (folder / "data" / "train.csv").unlink()


def _wrong_column(folder: Path) -> None:
    path = folder / "data" / "train.csv"
    path.write_text(path.read_text().replace("Image,Id", "Image,Identity"))


def _absent_image(folder: Path) -> None:
    next((folder / "data" / "train").iterdir()).unlink()


def _twice(folder: Path) -> None:
    path = folder / "data" / "train.csv"
    path.write_text("\n".join([*_lines(path), _lines(path)[1]]) + "\n")


def _empty_identity(folder: Path) -> None:
    path = folder / "data" / "train.csv"
    rows = _lines(path)
    path.write_text("\n".join([rows[0], rows[1].split(",")[0] + ",", *rows[2:]]) + "\n")


def _truncated(folder: Path) -> None:
    path = next((folder / "data" / "train").iterdir())
    path.write_bytes(path.read_bytes()[:900])


def _empty_file(folder: Path) -> None:
    next((folder / "data" / "train").iterdir()).write_bytes(b"")


def _climbing(folder: Path) -> None:
    path = folder / "data" / "train.csv"
    path.write_text(path.read_text() + "../../outside.jpg,w_1\n")


def _unknown_key(folder: Path) -> None:
    (folder / "drawn.yaml").write_text((folder / "drawn.yaml").read_text() + "colour: blue\n")


def _unknown_backbone(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(EXPERIMENT.replace("test_resnet", "resnet5O"))


def _too_many_folds(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("folds: 2", "folds: 2000"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing_csv, "train.csv"),
        (_wrong_column, "'Id'"),
        (_absent_image, ".jpg"),
        (_twice, "row"),
        (_empty_identity, "row 2"),
        (_truncated, ".jpg"),
        (_empty_file, ".jpg"),
        (_climbing, "outside.jpg"),
        (_unknown_key, "unknown key 'colour'"),
        (_unknown_backbone, "resnet5O"),
        (_too_many_folds, "folds"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_is_one_clear_line(
    broken: Path, spoil, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(broken)
    assert said in refused(monkeypatch, capsys, arguments(broken, "leaderboard", "--jobs", "1"))


def test_six_guesses_are_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _lines(drawn / "data" / "sample_submission.csv")
    path = tmp_path / "six.csv"
    path.write_text("\n".join([rows[0], rows[1] + " w_sixth", *rows[2:]]) + "\n")
    words = ["submission", "--check", str(path), "--competition", str(drawn / "drawn.yaml"), "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "6 guesses, at most 5" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(broken / "images.parquet"))

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    assert "No space left" in refused(monkeypatch, capsys, arguments(broken, "leaderboard", "--jobs", "1"))
    assert not list((broken / "work").rglob("*.tmp"))


def test_skip_unreadable_goes_on_and_the_submission_is_complete(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((broken / "data" / "test").iterdir())
    path.write_bytes(path.read_bytes()[:900])
    words = arguments(broken, "leaderboard", "--jobs", "1", "--skip-unreadable")
    last = done(monkeypatch, capsys, broken, words).strip().splitlines()[-1]
    written = pd.read_csv(broken / last.removeprefix("submission: "))
    assert path.name in set(written.Image)
    assert len(written) == 20
