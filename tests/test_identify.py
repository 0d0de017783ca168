"""`whaleid identify`: any photograph ranked as the recipe ranks its test images; one clear line for bad input."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kernel_world import World, own_copy, shared_world
from PIL import Image

from whaleid.cli import main as cli
from whaleid.config.settings import Settings
from whaleid.data import segmentation
from whaleid.data.masks import masks_of, read_mask
from whaleid.data.segmentation import WEIGHTS_FILE
from whaleid.evaluation.topk import read_guesses
from whaleid.identify.photographs import find_photographs, photograph_rows
from whaleid.identify.picture import write_pictures
from whaleid.identify.rank import COLUMNS, identify, probabilities_of, require_trained, with_masks
from whaleid.pipeline.submission import read_rungs
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared_world(tmp_path_factory)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written, and what it holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_test_images_get_the_candidates_of_the_pipeline(world: World, tmp_path: Path) -> None:
    world = own_copy(world, tmp_path / "world")
    project = world.project
    submitted = read_guesses(world.submission)
    photographs = [world.folder / "data" / "test" / name for name in submitted.images]
    require_trained(project)  # notes the digests of the copied images
    before = contents(project.workspace.root)
    with identify(project, photograph_rows(photographs, project.competition)) as identified:
        table = identified.table()
        pictures = write_pictures(identified, tmp_path / "pictures")
    assert contents(project.workspace.root) == before

    final = read_rungs(project)[-1][1]
    k = project.competition.k
    assert [Path(name).name for name in identified.candidates.queries] == list(final.queries) == list(submitted.images)
    assert np.array_equal(identified.candidates.scores[:, :k], final.scores[:, :k])  # to the bit
    of_photograph = table.groupby("photograph", sort=False)["identity"].agg(list).tolist()
    assert of_photograph == submitted.as_lists()

    assert tuple(table.columns) == COLUMNS and table["probability"].between(0, 1).all()
    known = table[table["identity"] != project.competition.unknown]
    assert (known.groupby("photograph")["probability"].diff().dropna() <= 0).all()
    assert identified.probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)  # unknown has what the others leave
    assert [path.name for path in pictures][:2] == [f"{n}-{photographs[n - 1].stem}.jpg" for n in (1, 2)]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > 400 and picture.height > 100


def test_unknown_has_the_probability_that_the_listed_identities_leave() -> None:
    classes = np.array(["a", "b", "new"])
    scores = np.array([[0.3, 0.2, 0.1], [0.9, 0.2, 0.1]], np.float32)
    lists = Candidates(np.array(["q", "r"]), classes, np.array([[2, 0, 1], [2, 0, 1]]), scores)
    found = probabilities_of(lists, {"ladder": {"rungs": [{"kind": "blend"}]}}, "new")
    assert found == pytest.approx(np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))  # its score is a threshold
    logarithms = Candidates(
        np.array(["q"]), classes[:2], np.array([[1, 0, -1]]), np.array([[-0.5, -1.0, -np.inf]], np.float32)
    )
    found = probabilities_of(logarithms, {"ladder": {"rungs": [{"kind": "stack"}]}}, None)
    assert found == pytest.approx(np.array([[np.exp(-0.5), np.exp(-1.0), 0.0]]))


def called(monkeypatch: pytest.MonkeyPatch, world: World, *words: str, recipe: str = "recipe.yaml") -> int:
    """Exit code of the command."""
    options = ["-c", str(world.folder / "drawn.yaml"), "-r", str(world.folder / recipe)]
    options += ["-w", str(world.folder / "work")]
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr(sys, "argv", ["whaleid", "identify", *words, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_bad_input_is_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((world.folder / "data" / "test").glob("*"))
    broken, empty, linked = tmp_path / "broken.jpg", tmp_path / "empty", tmp_path / "linked"
    broken.write_bytes(good.read_bytes()[:300])
    empty.mkdir()
    linked.mkdir()
    (linked / "away.jpg").symlink_to(good)
    (world.folder / "other.yaml").write_text((world.folder / "recipe.yaml").read_text())
    table = tmp_path / "guesses.csv"
    for words, recipe, said in (
        ((str(broken),), "recipe.yaml", "broken.jpg"),
        ((str(tmp_path / "none.jpg"),), "recipe.yaml", "no such photograph"),
        ((str(empty),), "recipe.yaml", "no photograph in this folder"),
        ((str(linked),), "recipe.yaml", "leads out of this folder: "),
        ((str(good),), "other.yaml", "run whaleid leaderboard"),
    ):
        assert called(monkeypatch, world, *words, "--csv", str(table), recipe=recipe) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("error: ") and said in line and "\n" not in line
        assert not table.exists()


def test_the_command_prints_and_writes_the_guesses_of_a_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for path in sorted((world.folder / "data" / "train").glob("*"))[:2]:
        shutil.copy(path, folder / path.name)
    table = tmp_path / "out" / "guesses.csv"
    assert called(monkeypatch, world, str(folder), "--csv", str(table)) == 0
    lines = capsys.readouterr().out.splitlines()
    written = pd.read_csv(table)
    assert tuple(written.columns) == COLUMNS and (written.groupby("photograph")["rank"].max() == 5).all()
    for line, name in zip(lines, sorted(set(written["photograph"])), strict=False):
        assert line.startswith(name) and written["identity"][written["photograph"] == name].iloc[0] in line


def test_photographs_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "deep/c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_photographs([tmp_path / "b.JPG", tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b.JPG", "a.png", "deep/c.jpeg"]
    with pytest.raises(WhaleidError, match="no such photograph"):
        find_photographs([tmp_path / "missing"])


def test_masks_of_photographs_are_made_in_scratch_space(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, scratch, weights = tmp_path / "new", tmp_path / "masks", tmp_path / "weights"
    shutil.copytree(world.folder / "data" / "test", photographs)
    weights.mkdir()
    (weights / WEIGHTS_FILE).write_bytes(b"stands in")
    monkeypatch.setattr(
        segmentation, "load_segmenter", lambda _: lambda image: np.full(image.shape[:2], 255, dtype=np.uint8)
    )
    masked = world.project.competition.model_copy(update={"masks": "masks"})
    project = replace(world.project, competition=masked, settings=Settings(weights=weights))
    before = contents(photographs)
    rows = photograph_rows(find_photographs([photographs]), masked)
    copy = with_masks(project, project, rows, scratch)
    masks = masks_of(copy.competition, rows) or []
    assert len(masks) == len(rows) and all(mask.path.is_relative_to(scratch) for mask in masks)
    assert all((read_mask(mask) == 255).all() for mask in masks) and contents(photographs) == before
    assert with_masks(world.project, world.project, rows, scratch).competition.masks is None
