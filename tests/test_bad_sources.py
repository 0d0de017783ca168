"""A recipe of foreign features from the command line: an error in them, or in the files beside them, is one line that
names the file and what to do, with exit code 2; no file is left half-written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from drawn import draw_sample

from whaleid.cli import main as cli

FOLDS = 3
COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
solution: solution.csv
"""
RECIPE = """
folds: 3
sources: {alien: alien, other: other}
combine: {concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}
"""


def words(folder: Path, *command: str) -> list[str]:
    given = {"--competition": "drawn.yaml", "--recipe": "recipe.yaml", "--work": "work"}
    return [*command, *(word for name, value in given.items() for word in (name, str(folder / value)))]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *command: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["whaleid", *words(folder, *command)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *command: str) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    code = run(monkeypatch, folder, *command)
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said.endswith(lines[0]), said
    return lines[0]


def half_written(folder: Path) -> list[str]:
    """Temporary files that a command has left."""
    return [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old", ".part"))]


def tree(folder: Path) -> dict[str, bytes]:
    """The results in a work folder: every file of candidates, figures and submissions."""
    work = folder / "work" / "drawn"
    files = [*(work / "candidates").rglob("*"), work / "metrics.json", *(folder / "submissions").rglob("*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def write_features(folder: Path, images: pd.DataFrame, seed: int, folds: int = FOLDS) -> None:
    """Weakly informative features and logits; one identity is in none of the classes."""
    rng = np.random.default_rng(seed)
    names = images["identity"].fillna("").to_numpy(dtype=str)
    known = sorted(set(names) - {"", "new_whale"})
    centre = {name: rng.normal(size=12) for name in sorted(set(names))}
    for fold in range(folds):
        place = folder / f"fold{fold}"
        place.mkdir(parents=True)
        rows = rng.permutation(len(images))  # in an order of its own
        table = np.stack([centre[names[row]] for row in rows]) + rng.normal(size=(len(rows), 12))
        np.save(place / "embeddings.npy", table.astype(np.float32))
        images["image"].iloc[rows].to_frame("image").to_csv(place / "rows.csv", index=False)
        classes = known[1:]
        np.save(place / "logits.npy", rng.normal(size=(len(rows), len(classes))).astype(np.float32))
        (place / "classes.txt").write_text("\n".join(classes) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample, two foreign sources, and their recipe, with its leaderboard run once."""
    folder = tmp_path_factory.mktemp("foreign features")
    draw_sample(folder / "data", identities=10, train_images=60, test_images=20)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        for source in ("alien", "other"):
            (folder / source).mkdir()  # folds are assigned before there are features
        assert run(patch, folder, "data", "folds") == 0
        images = pd.read_parquet(folder / "work" / "drawn" / "images.parquet")
        for number, source in enumerate(("alien", "other")):
            write_features(folder / source, images, number)
        assert run(patch, folder, "leaderboard") == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def edit(path: Path, change: Callable[[np.ndarray], object]) -> None:
    table = np.load(path)
    change(table)
    np.save(path, table)


def fewer_rows(folder: Path) -> None:
    rows = (folder / "alien" / "fold1" / "rows.csv").read_text().splitlines()
    (folder / "alien" / "fold1" / "rows.csv").write_text("\n".join(rows[:-2]) + "\n")
    table = np.load(folder / "alien" / "fold1" / "embeddings.npy")
    np.save(folder / "alien" / "fold1" / "embeddings.npy", table[:-2])


def strange_row(folder: Path) -> None:
    path = folder / "other" / "fold2" / "rows.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:-1], "nobody.jpg"]) + "\n")


def no_fold(folder: Path) -> None:
    shutil.rmtree(folder / "alien" / "fold2")


def no_source(folder: Path) -> None:
    shutil.rmtree(folder / "alien")


def nan_row(folder: Path) -> None:
    edit(folder / "alien" / "fold0" / "embeddings.npy", lambda table: table[3].fill(np.nan))


def zero_row(folder: Path) -> None:
    edit(folder / "alien" / "fold0" / "embeddings.npy", lambda table: table[3].fill(0))


def nan_logit(folder: Path) -> None:
    edit(folder / "other" / "fold1" / "logits.npy", lambda table: table[5].fill(np.inf))


def half_the_logits(folder: Path) -> None:
    (folder / "alien" / "fold1" / "classes.txt").unlink()


def logits_of_one_fold(folder: Path) -> None:
    for name in ("classes.txt", "logits.npy"):
        (folder / "alien" / "fold1" / name).unlink()


def strange_class(folder: Path) -> None:
    path = folder / "other" / "fold0" / "classes.txt"
    path.write_text("\n".join(["w_nobody", *path.read_text().splitlines()[1:]]) + "\n")


def other_width(folder: Path) -> None:
    path = folder / "alien" / "fold2" / "embeddings.npy"
    np.save(path, np.load(path)[:, :7])


def shorter_template(folder: Path) -> None:
    path = folder / "data" / "sample_submission.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (fewer_rows, ["alien/fold1/rows.csv", "2 of 80 images are missing, first '", "embed them too"]),
        (strange_row, ["other/fold2/rows.csv", "1 of 80 images are missing", "embed them too"]),
        (no_fold, ["source 'alien'", "alien/fold2: no such folder", "correct the path"]),
        (no_source, ["alien: folder of foreign features not found", "correct `sources` in the recipe"]),
        (nan_row, ["alien/fold0/embeddings.npy", ".jpg' holds NaN", "embed that image again"]),
        (zero_row, ["alien/fold0/embeddings.npy", ".jpg' is all zeros", "embed that image again"]),
        (nan_logit, ["other/fold1/logits.npy", ".jpg' holds NaN or infinity", "embed that image again"]),
        (half_the_logits, ["alien/fold1", "logits.npy and classes.txt go together"]),
        (logits_of_one_fold, ["source 'alien'", "2 of 3 have logits.npy"]),
        (strange_class, ["other/fold0/classes.txt", "line 1: 'w_nobody' is no identity", "remove logits.npy"]),
        (other_width, ["source 'alien'", "dimensions [7, 12]"]),
        (shorter_template, ["alien/fold0/rows.csv", "1 images are not in images.parquet", "remove them"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_features_are_one_line_and_change_no_answer(
    place: Path,
    spoil: Callable[[Path], None],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(place)
    spoil(place)
    line = refused(monkeypatch, capsys, place, "leaderboard")
    for part in said:
        assert part in line
    assert tree(place) == before and not half_written(place)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("folds: 3", "fold: 3", "key 'folds' is missing"),
        ("combine:", "conbine:", "unknown key 'conbine'"),
        ("concat: {whiten: 8}", "concat: {wihten: 8}", "unknown key 'combine.concat.wihten'"),
        ("concat: {whiten: 8}", "stack: {round: 3}", "unknown key 'combine.stack.round'"),
        (
            "concat: {whiten: 8}",
            "local_matching: {learned: {pair: null}}",
            "unknown key 'combine.local_matching.learned.pair'",
        ),
        ("concat: {whiten: 8}", "concat: {weights: {alienn: 2}}", "combine.concat.weights: 'alienn' is no source"),
        ("folds: 3", "folds: 2", "alien/fold"),
        ("folds: 3", "folds: 3\ntrain_folds: [0, 3]", "train_folds [3] are outside 0..2"),
    ],
)
def test_a_bad_recipe_is_one_line(
    place: Path, old: str, new: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    (place / "recipe.yaml").write_text(RECIPE.replace(old, new))
    if new == "folds: 2":
        shutil.rmtree(place / "alien" / "fold1")
    assert said in refused(monkeypatch, capsys, place, "leaderboard")
    assert tree(place) == before and not half_written(place)


@pytest.mark.parametrize("folds", ["folds: 2", "folds: 3\ntrain_folds: [0, 2]"])
def test_learned_matches_of_two_folds_are_refused_before_anything_is_made(
    place: Path, folds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = RECIPE.replace("folds: 3", folds).replace("concat:", "local_matching: {learned: {}}, concat:")
    (place / "recipe.yaml").write_text(learned)
    line = refused(monkeypatch, capsys, place, "ensemble")
    assert "recipe.yaml: combine.local_matching.learned needs 3 folds, and the recipe trains 2" in line
    assert not (place / "work" / "drawn" / "local").exists()


def test_a_stack_of_one_fold_learns_from_it_and_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fold alone is fitted on itself (`Protocol.training_folds`), and every rung is marked optimistic."""
    (place / "recipe.yaml").write_text(
        RECIPE.replace("folds: 3", "folds: 3\ntrain_folds: [1]").replace(
            "concat:", "stack: {num_iterations: 5}, concat:"
        )
    )
    assert run(monkeypatch, place, "leaderboard") == 0
    shown = capsys.readouterr().out
    assert "MAP@5 (out of fold): 0." in shown and "optimistic" in shown
    ladder = json.loads((place / "work" / "drawn" / "metrics.json").read_text())["recipe"]["ladder"]
    assert ladder["final"] == "stack" and all(rung["optimistic"] for rung in ladder["rungs"])


def test_an_identity_that_no_classes_name_can_still_be_guessed(made: Path) -> None:
    """The stated rule: probabilities name the classes of classes.txt alone, embeddings every labelled identity."""
    lists = pd.read_parquet(made / "work" / "drawn" / "candidates" / "recipe" / "oof.parquet")
    named = (made / "alien" / "fold0" / "classes.txt").read_text().split()
    labelled = pd.read_csv(made / "data" / "train.csv")["Id"].unique()
    (unnamed,) = set(labelled) - {*named, "new_whale"}
    of = {str(source): set(table["identity"].astype(str)) for source, table in lists.groupby("source", observed=True)}
    assert unnamed in of["alien"] and unnamed in of["blend"]
    assert unnamed not in of["alien logits"] and unnamed not in of["other logits"]


def test_more_guesses_than_identities_name_each_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stated rule: a row ends where the identities do."""
    (place / "drawn.yaml").write_text(COMPETITION + "k: 40\n")
    assert run(monkeypatch, place, "leaderboard") == 0
    shown = capsys.readouterr().out
    assert "MAP@40 (solution): 0." in shown
    written = place / shown.strip().splitlines()[-1].removeprefix("submission: ")
    labels = set(pd.read_csv(place / "data" / "train.csv")["Id"])
    guesses = pd.read_csv(written)["Id"].str.split(" ")
    assert all(len(row) == len(set(row)) and set(row) <= labels for row in guesses)
    assert guesses.map(len).max() == len(labels)
    assert run(monkeypatch, place, "submission") == 0


@pytest.mark.parametrize("command", ["leaderboard", "score", "report", "ablation"])
def test_a_solution_with_a_missing_row_is_one_line(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "data" / "solution.csv"
    *rows, last = path.read_text().splitlines()
    path.write_text("\n".join(rows) + "\n")
    line = refused(monkeypatch, capsys, place, command)
    assert "solution.csv" in line and last.split(",")[0] in line
    assert not half_written(place)


def test_a_faulty_solution_does_not_cost_the_submission(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for written in (place / "submissions").glob("*.csv"):
        written.unlink()
    (place / "data" / "solution.csv").write_text("no,such\ncolumns,here\n")
    assert "solution.csv" in refused(monkeypatch, capsys, place, "leaderboard")
    assert [path.name for path in (place / "submissions").glob("*_*_*.csv")]


def test_score_counts_as_many_guesses_as_are_asked_for(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {}
    for k in ("1", "5", None):
        assert run(monkeypatch, made, "score", *([] if k is None else ["--k", k])) == 0
        scores[k] = capsys.readouterr().out
    assert scores["1"].startswith("MAP@1 (solution): 0.")
    assert scores["5"] == scores[None] and scores[None].startswith("MAP@5 (solution): 0.")
    assert scores["1"].split()[2] != scores["5"].split()[2]
    assert "unknown: 0." in scores["5"]  # the slices by size of the identity


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_at_the_ensemble_leaves_the_answers_that_were_there(
    place: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, place, "ensemble") == 0  # up to date; notes the digests of the copied images
    before = tree(place)
    (place / "recipe.yaml").write_text(RECIPE.replace("whiten: 8", "whiten: 6"))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, "Error writing bytes to file")  # as arrow says it: without the file's name

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    line = refused(monkeypatch, capsys, place, "ensemble")
    assert f"candidates/recipe/oof.parquet: {os.strerror(number)}; " in line
    assert ("free some space" in line) == (number == errno.ENOSPC)
    assert tree(place) == before and not half_written(place)
