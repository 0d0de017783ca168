"""What the report's page computes with: its data against the evaluator, and its tables and charts against loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import SOURCE, UNKNOWN, Page, shared_project, top_guesses

from whaleid.ensemble.simulation import simulated_protocol
from whaleid.evaluation.log import SubmissionRecord
from whaleid.evaluation.metrics import MapScore, rank_of_truth, score_ranks
from whaleid.pipeline.project import Project
from whaleid.report.atlas import ATLAS, PROJECTOR, write_atlas
from whaleid.report.charts import calibration_chart, leaderboard_chart, loss_chart, score_chart
from whaleid.report.identities import accuracy_by_size, confused_pairs, worst_identities
from whaleid.report.image_map import flatten, image_map, map_data
from whaleid.report.inputs import Results, read_results
from whaleid.report.page import write_report
from whaleid.report.queries import without_unknown
from whaleid.report.thumbnails import MOST_BYTES, write_thumbnails


@pytest.fixture(scope="module", params=[UNKNOWN, None], ids=["unknown", "all known"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return shared_project(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def queries(project: Project) -> dict[str, Any]:
    return Page(write_report(project).read_text()).data["queries"]


def page_map(queries: dict[str, Any], threshold: float | None) -> float:
    """MAP@k by loops over the page's data. threshold: for all folds; None: those in use."""
    k, total, weights = queries["k"], 0.0, 0.0
    for query, truth in enumerate(queries["truth"]):
        scores = [-np.inf if one is None else np.float32(one) for one in queries["scores"][query * k : query * k + k]]
        limit = np.float32(-np.inf)
        if queries["unknown"] is not None:
            used = queries["thresholds"][str(queries["fold"][query])]
            limit = np.float32(used if threshold is None else threshold)
        above = sum(score >= limit for score in scores)
        rank = above + 1 if truth < 0 else 0
        listed = queries["guesses"][query * k : query * k + k]
        if truth >= 0 and truth in listed:
            place = listed.index(truth)
            rank = place + 1 + (scores[place] < limit)
        weight = queries["weights"][0 if truth >= 0 else 1]
        total += weight / rank if 1 <= rank <= k else 0.0
        weights += weight
    return total / weights


def evaluated(results: Results, threshold: float) -> MapScore:
    """The evaluator's score of oof.parquet with the unknown label placed anew, by strings."""
    protocol = simulated_protocol(results.protocol)
    project = results.project
    long = pd.read_parquet(project.workspace.candidates("own") / "oof.parquet")
    long = long[(long["source"] == results.figures["ladder"]["final"]) & (long["identity"] != UNKNOWN)]
    names, place = [*protocol.classes, UNKNOWN], {}
    for query, rows in long.sort_values("rank").groupby(long["query"].astype(str)):
        order = rows["identity"].astype(str).tolist()
        if protocol.unknown is not None:
            order.insert(int((rows["score"] >= np.float32(threshold)).sum()), UNKNOWN)
        place[query] = [names.index(name) for name in order[: protocol.k]]
    wanted = [str(name) for part in protocol.parts for name in part.names]
    guesses = np.array([place[name] + [-1] * (protocol.k - len(place[name])) for name in wanted])
    truth = protocol.truth(protocol.places)
    truth = truth if protocol.unknown is None else np.where(truth < 0, len(protocol.classes), truth)
    return score_ranks(rank_of_truth(guesses, truth), protocol.k, protocol.weights(protocol.places))


def test_the_pages_score_is_the_ladders(project: Project, queries: dict[str, Any]) -> None:
    final = read_results(project).rankers[-1]
    assert page_map(queries, None) == pytest.approx(final["map"], abs=1e-12)


def test_at_any_threshold_the_pages_score_is_the_evaluators(project: Project, queries: dict[str, Any]) -> None:
    results = read_results(project)
    scores = np.array([one for one in queries["scores"] if one is not None], np.float32)
    found = {page_map(queries, float(t)) for t in np.quantile(scores, np.linspace(0, 1, 9))}
    for threshold in np.quantile(scores, np.linspace(0, 1, 9)).tolist():
        expected = evaluated(results, threshold).map
        assert page_map(queries, threshold) == pytest.approx(expected, abs=1e-12)
    assert (len(found) > 3) == (project.competition.unknown is not None)


def test_cards_are_the_labelled_images(project: Project, queries: dict[str, Any]) -> None:
    results, k = read_results(project), queries["k"]
    images = results.images
    assert sorted(queries["row"]) == np.flatnonzero(images["split"] == "train").tolist()
    assert len(queries["row"]) == len(queries["size"]) == len(queries["guesses"]) // k == len(queries["pictures"]) // k
    assert len(queries["truth"]) == len(queries["fold"]) == len(queries["scores"]) // k
    for row, code in zip(queries["row"], queries["truth"], strict=False):
        assert code < 0 or queries["identities"][code] == images["identity"].iloc[row]
    shown = [(one, row) for one, row in zip(queries["guesses"], queries["pictures"], strict=True) if one >= 0]
    assert all(images["identity"].iloc[row] == queries["identities"][code] for code, row in shown)
    assert SOURCE not in queries["names"].values() and queries["names"][str(queries["row"][0])].endswith("&.png")


def test_without_unknown_a_list_is_one_guess_shorter() -> None:
    given = top_guesses([UNKNOWN, "a"], ["a", "b"], [0.4, 0.9], [True, True])
    found = without_unknown(given, UNKNOWN)
    assert found.guesses.tolist() == [["z", ""], ["a", "z"]]
    assert np.array_equal(found.scores, np.float32([[0, np.nan], [0.9, 0]]), equal_nan=True)
    assert without_unknown(given, None).guesses.tolist() == [[UNKNOWN, "z"], ["a", "z"]]


# ------------------------------------------------------------------------------------------------- identities


def test_hard_identities_by_loops() -> None:
    rng = np.random.default_rng(0)
    truth, first = (rng.choice(list("abcdef"), 300).tolist() for _ in range(2))
    first = [UNKNOWN if number % 9 == 0 else name for number, name in enumerate(first)]
    known = [number % 7 > 0 for number in range(300)]
    given = top_guesses(first, truth, [0.5] * 300, known)
    wrong = [(t, g) for t, g, k in zip(truth, first, known, strict=True) if k and t != g]

    worst = worst_identities(given)
    counts = Counter(t for t, _ in wrong)
    assert dict(zip(worst["identity"], worst["wrong"], strict=True)) == counts
    assert worst["wrong"].tolist() == sorted(counts.values(), reverse=True)
    for row in worst.itertuples():
        taken = Counter(g for t, g in wrong if t == row.identity)
        assert row.queries == sum(k and t == row.identity for t, k in zip(truth, known, strict=True))
        assert taken[str(row.taken_for)] == max(taken.values())

    pairs = confused_pairs(given, UNKNOWN)
    both = Counter(wrong)
    assert len(pairs) == 15  # of six identities
    for row in pairs.itertuples():
        a, b = str(row.identity), str(row.other)
        assert (row.queries, row.back) == (both[a, b], both[b, a]) and row.queries >= row.back
    totals = (pairs["queries"] + pairs["back"]).tolist()
    assert totals == sorted(totals, reverse=True)


def test_accuracy_by_number_of_images() -> None:
    given = top_guesses(["a", "b", "a", "a"], ["a"] * 4, [0.5] * 4, [True, True, False, True])
    given.sizes[:] = [1, 1, 0, 30]
    rows = accuracy_by_size(given)
    assert [(row["size"], row["queries"], row["accuracy"]) for row in rows] == [(1, 2, 0.5), (10, 1, 1.0)]
    assert rows[0]["low"] < 0.5 < rows[0]["high"]


# ----------------------------------------------------------------------------------------------------- charts


def test_histograms_hold_every_query() -> None:
    known, unknown = np.random.default_rng(0).random((2, 50))
    chart = score_chart(known, unknown, 5.0)
    assert [one["name"] for one in chart["series"]] == ["known (50)", "unknown (50)"]
    for one in chart["series"]:
        assert sum(height for _, height in one["points"][::2]) == pytest.approx(1, abs=1e-4)
    assert chart["marks"][0]["x"] == max(known.max(), unknown.max())
    assert len(score_chart(known, known[:0], 0.5)["series"]) == 1


def test_calibration_is_in_bins_of_equally_many_queries() -> None:
    rng = np.random.default_rng(1)
    confidence, weights = rng.random(100), rng.integers(0, 3, 100).astype(float)
    right = rng.random(100) < confidence
    dots, line = calibration_chart(confidence, right, weights)["series"]
    used = [query for query in np.argsort(confidence) if weights[query] > 0]
    assert line["kind"] == "dashed" and len(dots["points"]) == 10
    first = used[: -(-len(used) // 10)]
    total = sum(weights[first])
    expected = [sum(weights[first] * values[first]) / total for values in (confidence, right)]
    assert dots["points"][0] == pytest.approx(expected, rel=1e-5)
    assert len(calibration_chart(confidence - 1, right, weights)["series"]) == 1  # no probabilities


def test_lines_of_losses_and_of_submissions() -> None:
    chart = loss_chart({1: [(1, 2.0)], -1: [(1, 3.0), (2, 1.0)]})
    assert [one["name"] for one in chart["series"]] == ["all images", "fold 1"]
    given = [SubmissionRecord(file=f"{n}", competition="c", recipe="r<", cv=0.5 + n / 10, public=0.4) for n in range(2)]
    public, equal = leaderboard_chart(given)["series"]
    assert public["points"] == [[0.5, 0.4, None, None, "r<"], [0.6, 0.4, None, None, "r<"]]
    assert equal["points"] == [[0.4, 0.4], [0.6, 0.6]]


def test_no_thumbnail_is_too_large(project: Project, tmp_path: Path) -> None:
    """Noise is what an encoder can do least about."""
    images = read_results(project).images
    write_thumbnails(images, [3, 1], project.competition.root, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["1.webp", "3.webp"]
    assert all(0 < path.stat().st_size <= MOST_BYTES for path in (tmp_path / "images").iterdir())


# -------------------------------------------------------------------------------------------------------- map


def test_near_neighbours_stay_near_on_the_map() -> None:
    """Three far groups: every point's nearest neighbour on the map is of its group, in every run."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(3), 20)
    embeddings = rng.normal(size=(3, 8))[groups] * 4 + rng.normal(size=(60, 8)) * 0.3
    points = flatten(embeddings)
    assert points.shape == (60, 2) and points.min() == 0 and points.max() == 1
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(60)
    assert (groups[distance.argmin(axis=1)] == groups).all()
    assert np.array_equal(points, flatten(embeddings))


def test_the_atlas_holds_the_maps_images_and_their_first_guesses(project: Project, tmp_path: Path) -> None:
    results = read_results(project)
    placed = image_map(results)
    assert placed is not None
    write_atlas(placed, results, tmp_path)
    table = pd.read_parquet(tmp_path / ATLAS)
    assert table["image"].tolist() == results.images["image"].iloc[placed.rows].tolist()
    assert np.allclose(table[["x", "y"]], placed.points) and (table["fold"][: placed.queries] == placed.fold).all()
    place = {row: at for at, row in enumerate(results.final.rows.tolist())}
    for at, row in enumerate(placed.rows.tolist()):
        first, truth = results.final.guesses[place[row], 0], results.final.truth[place[row]]
        assert (table["guess"][at], table["right"][at]) == (first, first == truth)
    tensors = next((tmp_path / PROJECTOR).rglob("tensors.tsv")).read_text().splitlines()
    labels = next((tmp_path / PROJECTOR).rglob("metadata.tsv")).read_text().splitlines()
    assert len(tensors) == len(labels) - 1 == len(placed.rows) and labels[0].split("\t")[:2] == ["image", "identity"]


def test_the_map_has_the_first_folds_queries_first(project: Project) -> None:
    results = read_results(project)
    placed = image_map(results)
    assert placed is not None
    part = results.protocol.parts[0]
    assert (placed.source, placed.fold, placed.queries) == (SOURCE, 0, len(part.rows))
    assert placed.rows.tolist() == [*part.rows, *part.training]
    data = map_data(placed, results)
    assert data["identities"] == results.images["identity"].iloc[placed.rows].tolist()
    assert data["points"][2:4] == placed.points[1].round(4).tolist()
