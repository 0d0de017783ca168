"""Peers: their guesses as submissions, the table, the fusion's parts, and a peer's run of a second."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from whaleid.config.files import load_competition
from whaleid.config.settings import repository_root
from whaleid.utils.errors import WhaleidError

FOLDER = repository_root() / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def in_benchmarks() -> None:
    """The scripts and the peers' programs import their neighbours by name."""
    sys.path[:0] = [str(FOLDER), str(FOLDER / "peer_programs")]


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    return importlib.import_module("peer_rows")


@pytest.fixture(scope="module")
def fusion() -> ModuleType:
    return importlib.import_module("fusion")


# ------------------------------------------------------------------------------------------------- scoring


def open_set(folder: Path) -> tuple[Any, dict[str, pd.DataFrame]]:
    """A competition with a new individual, and a peer's guesses: sure of two known queries, unsure of the new one."""
    (folder / "images").mkdir(parents=True)
    for name in ("a", "b", "x", "y", "z"):
        (folder / "images" / f"{name}.png").write_bytes(b"")
    (folder / "train.csv").write_text("image,identity\na.png,anna\nb.png,bert\n")
    (folder / "test.csv").write_text("image\nx.png\ny.png\nz.png\n")
    (folder / "solution.csv").write_text("image,identity\nx.png,anna\ny.png,bert\nz.png,new\n")
    (folder / "set.yaml").write_text(
        "name: set\nroot: .\nunknown: new\nsolution: solution.csv\n"
        "train: {csv: train.csv, images: images, image: image, identity: identity}\n"
        "test: {csv: test.csv, images: images, image: image}\nsubmission: {image: image, identities: guesses}\n"
    )
    lines = ["query,identity,score", "x,anna,0.9", "x,bert,0.2", "y,bert,0.8", "y,anna,0.3", "z,anna,0.5", "z,bert,0.1"]
    (folder / "candidates.csv").write_text("\n".join(lines) + "\n")
    return load_competition(str(folder / "set.yaml"))


def test_guesses_become_a_submission_with_the_best_threshold(rows: ModuleType, tmp_path: Path) -> None:
    competition = open_set(tmp_path)
    threshold, path = rows.write_guesses(tmp_path, competition, {name: f"{name}.png" for name in "xyz"})
    assert 0.5 < threshold <= 0.8
    assert path.read_text().splitlines()[1:] == ["x.png,anna new bert", "y.png,bert new anna", "z.png,new anna bert"]
    assert rows.scored(path, competition)["map"] == rows.scored(path, competition)["top1"] == 1.0


def test_an_identity_that_no_peer_guesses_is_wrong_and_not_unknown(rows: ModuleType, tmp_path: Path) -> None:
    """z is not new: its low score is no reason for a threshold above it."""
    competition = open_set(tmp_path)
    (tmp_path / "solution.csv").write_text("image,identity\nx.png,anna\ny.png,anna\nz.png,bert\n")
    (tmp_path / "candidates.csv").write_text("query,identity,score\nx,anna,0.9\ny,anna,0.5\nz,anna,0.1\n")
    lists = rows.read_candidates(tmp_path / "candidates.csv", {name: f"{name}.png" for name in "xyz"})
    assert rows.best_threshold(lists, competition) <= 0.1
    closed = competition.model_copy(update={"unknown": None})
    assert rows.best_threshold(lists, closed) is None


def test_a_competition_that_peers_cannot_run_is_refused(rows: ModuleType, tmp_path: Path) -> None:
    competition = open_set(tmp_path)
    rows.check_competition(competition)
    for change in ({"solution": None}, {"test": None}, {"boxes": "boxes.csv"}):
        with pytest.raises(WhaleidError, match="competition set: "):
            rows.check_competition(competition.model_copy(update=change))


def test_a_failing_program_gives_its_last_line(rows: ModuleType, tmp_path: Path) -> None:
    order = rows.Order("pml", "set", 1.0, 1, 0, tmp_path)
    order.place.mkdir()
    with pytest.raises(WhaleidError, match="pml: SystemExit: no such weights"):
        rows.timed([sys.executable, "-c", "print(1); raise SystemExit('SystemExit: no such weights')"], order, {})
    assert rows.timed([sys.executable, "-c", "pass"], order, {})["taken"] >= 0
    with pytest.raises(WhaleidError, match="--threads 9999"):
        rows.timed([], rows.Order("pml", "set", 1.0, 9999, 0, tmp_path), {})


def test_whaleid_is_scored_by_the_submission_that_it_names(
    rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_set(tmp_path / "set")
    written = tmp_path / "own.csv"
    written.write_text("image,guesses\nx.png,anna\ny.png,anna bert\nz.png,new\n")

    def answer(command: list[str], order: Any, more: dict[str, str]) -> dict[str, Any]:
        assert command[-4:] == ["--minutes", "5", "--work", str(order.place)] and not more
        (order.place / "output.txt").write_text(f"MAP@5 (solution): 0.1\nsubmission: {written}\n")
        return {"taken": 1.0}

    monkeypatch.setattr(rows, "timed", answer)
    made = rows.run_row(rows.Order("whaleid", str(tmp_path / "set" / "set.yaml"), 5.0, 1, 0, tmp_path))
    assert (made["competition"], made["taken"], made["queries"]) == ("set", 1.0, 3)
    assert made["map"] == pytest.approx(5 / 6, abs=1e-5) and made["top1"] == pytest.approx(2 / 3, abs=1e-5)


# --------------------------------------------------------------------------------------------- rows and page


def row(peer: str, minutes: float, **more: Any) -> dict[str, Any]:
    """A row of the results."""
    return {"peer": peer, "competition": "lion", "minutes": minutes, **more}


DONE = {"k": 5, "map": 0.5, "low": 0.4, "high": 0.6, "top1": 0.25, "taken": 4.5, "load_before": 0.1, "nice": 0}


def test_rows_that_are_done_are_not_run_again() -> None:
    peers = importlib.import_module("peers")
    given = peers.parser().parse_args(["--peer", "pml", "oml", "--competition", "lion", "--minutes", "15", "5"])
    orders = peers.wanted(given, [row("pml", 5.0)])
    assert [(order.peer, order.minutes) for order in orders] == [("oml", 5.0), ("pml", 15.0), ("oml", 15.0)]
    kept = peers.merged([row("oml", 5.0, map=0.1), row("whaleid", 5.0)], row("oml", 5.0, map=0.2))
    assert [(some["peer"], some.get("map")) for some in kept] == [("whaleid", None), ("oml", 0.2)]


def test_the_page_holds_the_rows_and_their_reasons(tmp_path: Path) -> None:
    report = importlib.import_module("peer_report")
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{report.BEGIN}\nold\n{report.END}\n\nmore\n")
    fused = {"sift_shortlist": 40, "networks": ["aliked"], "shortlist": 12, "left_out": ["disk left out: slow"]}
    some = [row("whaleid", 5.0, **DONE), row("pml", 5.0, reason="no index"), row("wildlife", 5.0, facts=fused, **DONE)]
    report.write_page(some, page)
    text = page.read_text()
    assert text.startswith("# Results\n") and text.endswith("more\n") and "old" not in text
    assert "| lion | **whaleid** | 0.500 ± 0.100, 25.0 % (4.5) |" in text
    assert "pml on lion: not run: no index." in text
    assert "SIFT on 40 images a query, aliked on 12; disk left out: slow." in text
    plot = (tmp_path / report.PLOT).read_bytes()
    report.write_page(some, page)
    assert (page.read_text(), (tmp_path / report.PLOT).read_bytes()) == (text, plot)
    report.write_page([], page)
    assert "No row was run yet." in page.read_text()


def test_every_peer_has_a_program_and_a_line() -> None:
    report, environments = importlib.import_module("peer_report"), importlib.import_module("peer_environments")
    assert len(report.TITLES) == len(report._COLORS)
    for peer in environments.PEERS.values():
        compile((environments.PROGRAMS / peer.program).read_text(), peer.program, "exec")
        assert peer.packages and all("==" in package for package in peer.packages)


# -------------------------------------------------------------------------------------------------- fusion


def test_probabilities_keep_the_order_and_the_gaps(fusion: ModuleType) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=400)
    probability = fusion.calibrate(scores, rng.random(400) < 1 / (1 + np.exp(-3 * scores)))
    grid = np.linspace(-3, 3, 50)
    assert (np.diff(probability(grid)) > 0).all()
    outside = probability(np.array([[-9.0, np.nan, 9.0]]))
    assert outside == pytest.approx(np.array([[0, np.nan, 1]]), abs=0.1, nan_ok=True)


def test_calibration_pairs_hold_own_and_nearest_images(fusion: ModuleType) -> None:
    codes = np.array([0, 0, 0, 1, 2, 2])
    likeness = -np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    pairs = fusion.calibration_pairs(likeness, codes, seed=0)
    assert sorted(some[0, 0] for some in pairs) == [0, 1, 2, 4, 5]  # identity 1 has no second image
    for some in pairs:
        assert (some[:, 0] == some[0, 0]).all() and some[0, 0] not in some[:, 1]
        assert set(np.flatnonzero(codes == codes[some[0, 0]])) - {some[0, 0]} <= set(some[:, 1])


def slow(seconds: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A score that takes time for each pair."""

    def score(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        time.sleep(seconds * len(first))
        return 10.0 * first + second

    return score


def test_a_shortlist_is_as_long_as_the_time_allows(fusion: ModuleType) -> None:
    order = np.array([[2, 0, 1, 3], [3, 2, 1, 0]])
    queries, gallery = np.array([5, 6]), np.array([0, 1, 2, 3])
    found, length = fusion.match_shortlist([slow(0.0)], queries, gallery, order, 60)
    assert length == 4 and (found[0] == 10 * queries[:, None] + gallery).all()
    found, length = fusion.match_shortlist([slow(0.01), slow(0.0)], queries, gallery, order, 0.0)
    assert length == 1 and np.isnan(found).sum() == 12
    assert found[:, [0, 1], [2, 3]].tolist() == [[52, 63]] * 2


def test_pairs_that_all_matchers_saw_come_first(fusion: ModuleType) -> None:
    key = np.array([[0.9, 0.8, 0.1]])
    better = np.array([[[np.nan, 0.2, 0.6]], [[0.9, 0.4, 0.6]]])
    assert np.argsort(-fused_row(fusion, better, key)).tolist() == [2, 1, 0]


def fused_row(fusion: ModuleType, better: np.ndarray, key: np.ndarray) -> np.ndarray:
    return fusion.fused(better, key)[0]


# ------------------------------------------------------------------------------------------------- programs


def test_batches_are_full_and_each_epoch_holds_a_row_once() -> None:
    some = importlib.import_module("run_pml").batches(np.arange(10), 5, seed=0)
    first = [next(some) for _ in range(4)]
    assert sorted(np.concatenate(first[:2])) == sorted(np.concatenate(first[2:])) == list(range(10))


def test_a_run_of_a_second(rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_sets, program = importlib.import_module("drawn_sets"), importlib.import_module("run_pml")
    path = drawn_sets.make_set("marks", tmp_path / "marks", share=0.05)
    order = rows.Order("pml", str(path), 0.01, 1, 0, tmp_path)
    order.place.mkdir()
    monkeypatch.setattr(rows, "ensure_weights", lambda *_: None)
    competition = load_competition(str(path))
    names = rows.write_task(order, competition)
    task = json.loads((order.place / "task.json").read_text())
    (order.place / "task.json").write_text(json.dumps(task | {"backbone": "test_resnet", "weights": "", "side": 32}))
    program.run(order.place)
    threshold, submission = rows.write_guesses(order.place, competition, names)
    assert threshold is not None and 0 <= rows.scored(submission, competition)["map"] <= 1
    assert json.loads((order.place / "facts.json").read_text())["epochs"] > 0
