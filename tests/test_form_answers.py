"""Every form of answer from images to a scored submission, and what each fits against a naive search."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from form_world import FOLDS, NEW, add_to_world, open_world, place_world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_match_score import described_at_random

from whaleid.config import KnnConfig, PairsConfig
from whaleid.data.reviews import Links
from whaleid.ensemble import pair_answers, same_identity
from whaleid.ensemble.answers import on_scale_of
from whaleid.ensemble.pair_answers import with_links
from whaleid.evaluation import clusters, one_confident, one_or_unknown
from whaleid.evaluation.agglomeration import Constraints, agglomerate
from whaleid.evaluation.form_input import ImagePairs, PairTable
from whaleid.evaluation.forms import get_form
from whaleid.evaluation.log import read_log
from whaleid.local_matching.pair_score import PAIR_FEATURES, match_pairs
from whaleid.pipeline import runner
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.submission import latest_submission, submission_problems
from whaleid.pipeline.workspace import read_images
from whaleid.retrieval.graph import find_neighbours
from whaleid.retrieval.rerankers.reciprocal import reciprocal_codes
from whaleid.utils.errors import WhaleidError


def leaderboard(place: Path) -> tuple[list[str], pd.DataFrame]:
    """What the leaderboard prints, and the submission that it writes, which must be valid and logged."""
    project = open_world(place)
    lines = list(leaderboard_lines(project))
    path = latest_submission(project)
    assert submission_problems(path, project.competition, place / "work") == []
    (record,) = read_log(place / "submissions" / "log.csv")
    (oof,) = [line for line in lines if "(out of fold):" in line]
    assert f": {record.cv:.5f} ± {record.cv_interval:.5f}" in oof
    return lines, pd.read_csv(path, dtype=str, keep_default_na=False)


def value_of(lines: list[str], label: str) -> float:
    (line,) = [line for line in lines if f" ({label}):" in line]
    return float(line.split(": ")[1].split(" ± ")[0])


# ------------------------------------------------------------------------------------------- honest validation


class FittedOn(dict):
    """What was fitted, and the images that it was fitted on."""

    images: set[str]


def fitted_on(value: dict[str, Any], images: Iterable[np.ndarray]) -> FittedOn:
    made = FittedOn(value)
    made.images = set(np.concatenate(list(images)).tolist())
    return made


@pytest.mark.parametrize("name", ["one_or_unknown", "clusters"])
def test_nothing_that_is_fitted_saw_the_images_that_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Thresholds, linkages and P(same), of every fold."""
    place_world(tmp_path, name).to_csv(tmp_path / "solution.csv", index=False)
    add_to_world(tmp_path, f"k: 1\nsubmission: {{image: image, identities: identity}}\nunknown: {NEW}\n")
    real, plain_fit, plain_pairs = get_form(name), pair_answers._fit_models, pair_answers._image_pairs
    answered, by_model = [], {}

    def fit(given: Any, *others: Any) -> FittedOn:
        images = [one.images for one in given] if name == "clusters" else [given.images]
        return fitted_on(real.fit(given, *others), images)

    def answer(given: Any, fitted: FittedOn, unknown: str | None) -> list[str]:
        answered.append(set(given.images))
        assert not set(given.images) & fitted.images
        assert not set(given.images) & by_model.get(id(given), set())
        return real.answer(given, fitted, unknown)

    def fit_models(sets: list[Any], identity: np.ndarray) -> FittedOn:
        return fitted_on(plain_fit(sets, identity), [names[one.rows] for one in sets])

    def image_pairs(one: Any, models: FittedOn, *tables: np.ndarray) -> ImagePairs:
        made = plain_pairs(one, models, *tables)
        by_model[id(made)] = models.images
        kept.append(made)  # so that no other gets its id
        return made

    kept: list[ImagePairs] = []
    watched = SimpleNamespace(**{**vars(real), "fit": fit, "answer": answer})
    monkeypatch.setattr("whaleid.ensemble.ladder.get_form", lambda _: watched)
    monkeypatch.setattr(pair_answers, "_fit_models", fit_models)
    monkeypatch.setattr(pair_answers, "_image_pairs", image_pairs)
    project = open_world(tmp_path)
    runner.run(project, "images")
    names = read_images(project.workspace)["image"].to_numpy(dtype=str)
    runner.run(project, "ladder")
    assert len(answered) == FOLDS + 1  # of the folds, and of the test set


# ---------------------------------------------------------------------------------------------- one_or_unknown


def test_one_identity_or_unknown(tmp_path: Path) -> None:
    test = place_world(tmp_path, "one_or_unknown", ", dataset: dataset")
    add_to_world(tmp_path, f"unknown: {NEW}\nk: 1\nsubmission: {{image: image, identities: identity}}\n")
    test.to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.8
    assert value_of(lines, "solution") > 0.8
    assert {line.split(":")[0] for line in lines} >= {"lynx BAKS", "turtle BAUS"}
    assert set(submission["identity"]) <= {NEW, *test["identity"][test["known"]]}
    right = submission.set_index("image")["identity"][test["image"]].to_numpy()
    assert np.mean(right == np.where(test["known"], test["identity"], NEW)) > 0.8


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_threshold_is_the_best_of_all(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    confidence = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.4, 0.9]), min_size=count, max_size=count)))
    identity = np.array(data.draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count)))
    known = np.isin(identity, ["a", "b"])
    right = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) & known
    if not known.any() or known.all():
        return

    def score(threshold: float) -> float:
        answers = np.where(confidence >= threshold, np.where(right, identity, "wrong"), NEW)
        parts = one_or_unknown.baks(identity, answers, known), one_or_unknown.baus(identity, answers, known, NEW)
        return float(np.sqrt(parts[0] * parts[1]))

    found = one_or_unknown.best_threshold(confidence, right, identity, known)
    assert score(found) == pytest.approx(max(score(value) for value in (-1, 0.15, 0.3, 0.6, 2)))


def test_the_best_threshold_is_halfway_between_two_confidences() -> None:
    identity, known = np.array(["a", "x", "b"]), np.array([True, False, True])
    given = np.array([0.8, 0.2, 0.6]), known, identity, known
    assert one_or_unknown.best_threshold(*given) == pytest.approx(0.4)


# ----------------------------------------------------------------------------------------------- one_confident


def test_one_label_with_a_confidence(tmp_path: Path) -> None:
    test = place_world(tmp_path, "one_confident")
    add_to_world(tmp_path, "unknown: none\nk: 1\nsubmission: {image: id, identities: landmarks}\n")
    landmark = test["identity"].where(test["known"], "")
    pd.DataFrame({"id": test["image"], "landmarks": landmark}).to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.8
    assert value_of(lines, "solution") > 0.8
    answers = submission.set_index("id")["landmarks"].str.split(expand=True).loc[test["image"]]
    confidence = answers[1].astype(float).to_numpy()
    assert confidence[test["known"]].mean() > confidence[~test["known"]].mean() + 0.2
    (tmp_path / "bad.csv").write_text("id,landmarks\n" + "".join(f"{image},id_00 high\n" for image in submission["id"]))
    problems = submission_problems(tmp_path / "bad.csv", open_world(tmp_path).competition, tmp_path / "work")
    assert problems[0].endswith(f"row 2 ({submission['id'][0]}): not a label and its confidence")
    assert len(problems) == 11


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_weighted_gap_counts_an_answer_as_often_as_its_weight(rows: list[tuple[int, bool, int]]) -> None:
    confidence, right, weights = (np.array(column) for column in zip(*rows, strict=True))
    confidence = confidence + np.arange(len(rows)) / 100  # copies stand together
    found = one_confident.global_average_precision(confidence, right, 7.0, weights.astype(float))
    precision = hits = seen = 0.0
    for place in np.argsort(-confidence):
        seen += weights[place]
        hits += weights[place] * right[place]
        precision += weights[place] * right[place] * (hits / seen if seen else 0)
    assert found == pytest.approx(precision / 7)


# ----------------------------------------------------------------------------------------- ranked_images, pairs


def test_images_ranked_for_each_query(tmp_path: Path) -> None:
    test = place_world(tmp_path, "ranked_images")
    add_to_world(tmp_path, "k: 100\nsubmission: {image: id, identities: images}\n")
    train = pd.read_csv(tmp_path / "train.csv")
    relevant = train.groupby("identity")["image"].apply(" ".join).reindex(test["identity"]).fillna("")
    pd.DataFrame({"id": test["image"], "images": relevant.to_numpy()}).to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.9
    assert value_of(lines, "solution") > 0.9
    assert submission["images"].str.split().map(len).eq(len(train)).all()  # fewer than 100: all are ranked


def test_a_similarity_for_each_pair_that_is_asked_about(tmp_path: Path) -> None:
    test = place_world(tmp_path, "pairs", ", pairs: {row: row_id, other: gallery_image}")
    add_to_world(tmp_path, "k: 1\nsubmission: {image: row_id, identities: similarity}\n")
    pairs = test[["image", "identity"]].merge(test[["image", "identity"]], how="cross")
    pairs = pairs[pairs["image_x"] != pairs["image_y"]].reset_index(names="row_id")
    asked = pairs.rename(columns={"image_x": "image", "image_y": "gallery_image"})
    asked[["row_id", "image", "gallery_image"]].assign(dataset="").to_csv(tmp_path / "test.csv", index=False)
    names = {"image_x": "query_image", "identity_x": "query_identity", "identity_y": "gallery_identity"}
    pairs.rename(columns=names)[["row_id", *names.values()]].to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.9
    assert value_of(lines, "solution") > 0.9
    assert submission["row_id"].tolist() == pairs["row_id"].astype(str).tolist()
    project = open_world(tmp_path)
    with (tmp_path / "test.csv").open("a") as file:
        file.write("9999,nobody.png,elsewhere.png,\n")
    assert not runner.target_tasks(project, "candidates")[0].current


def test_p_same_equals_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 6)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = rng.permutation(40)[:30]
    pairs = np.argwhere(np.triu(np.ones((30, 30), dtype=bool), 1))
    values = same_identity.pair_values(embeddings, rows, pairs)
    nodes = embeddings[rows]
    codes = reciprocal_codes(nodes, find_neighbours(nodes, 20), 20, 6).toarray()
    for (first, second), (cosine, shared) in zip(pairs, values, strict=True):
        least, most = np.minimum(codes[first], codes[second]).sum(), np.maximum(codes[first], codes[second]).sum()
        assert cosine == pytest.approx(nodes[first] @ nodes[second], abs=1e-6)
        assert shared == pytest.approx(least / most, abs=1e-5)
    same = values @ [2.0, 3.0] + rng.logistic(size=len(values)) > 1
    model = same_identity.fit_pair_model(values, same)
    assert model.probability(values).mean() == pytest.approx(same.mean(), abs=1e-3)  # calibrated on the whole
    with pytest.raises(WhaleidError, match="0 of 435 pairs out of fold show one identity"):
        same_identity.fit_pair_model(values, np.zeros(len(values), dtype=bool))


def test_keypoints_of_the_most_similar_pairs_are_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_identity, "MATCHED", 2)
    described, frames = described_at_random(np.random.default_rng(3), [6, 5, 7, 0, 6, 8])
    first, second = np.array([0, 0, 0, 0, 1, 2, 4]), np.array([1, 2, 4, 5, 5, 5, 5])
    cosine = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.5])
    values = same_identity.matched_values(described, frames, first, second, cosine)
    assert values[:, 1].tolist() == [1, 1, 1, 0, 1, 1, 1]  # (0, 5) is third of 0 and last of 5; (0, 2) is second of 2
    agreeing = PAIR_FEATURES.index("share left of agreeing")
    for one, other, (value, matched) in zip(first, second, values, strict=True):
        found = match_pairs(described, frames, np.array([one]), np.array([[other]]), PairsConfig())
        expected = np.log1p(found.features[0, agreeing]) if len(found.rows) else 0.0
        assert value == pytest.approx(expected * matched)
    assert values[:, 0].any()


def test_nearest_pairs_equal_all_pairs_cut() -> None:
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(70, 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = np.arange(5, 70)
    cosine = embeddings[rows] @ embeddings[rows].T - 2 * np.eye(len(rows))
    nearest = np.argsort(-cosine, axis=1)[:, : same_identity.NEIGHBOURS]
    expected = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row}
    assert list(map(tuple, same_identity.nearest_pairs(embeddings, rows, KnnConfig()))) == sorted(expected)


# ---------------------------------------------------------------------------------------------------- clusters


def test_clusters_of_each_data_set(tmp_path: Path) -> None:
    test = place_world(tmp_path, "clusters", ", dataset: dataset")
    add_to_world(tmp_path, "k: 1\nsubmission: {image: image_id, identities: cluster}\n")
    test[["image", "identity", "dataset"]].to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.7
    assert value_of(lines, "solution") > 0.7
    named = zip(submission["cluster"], test.set_index("image")["dataset"][submission["image_id"]], strict=True)
    assert all(cluster.startswith(f"cluster_{dataset}_") for cluster, dataset in named)


def test_decisions_about_the_images_of_a_set_reach_its_clusters() -> None:
    nothing = PairTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    names = np.array(["p", "q", "r"])
    pairs = ImagePairs(names, np.array([""] * 3), np.array(["g"]), np.array(["x"]), nothing, nothing)
    links = Links(must=(("p", "r"), ("g", "q"), ("p", "another")), cannot=(("p", "q"),))
    linked = with_links(pairs, pd.Series(["p", "q", "r", "g"]), links)
    assert linked.must_link.tolist() == [[0, 2], [3, 1]]
    fitted = {"linkage": "single", "anchors": True, "threshold": 0.5}
    assert clusters.answer(linked, fitted, None) == ["cluster_0", "cluster_1", "cluster_0"]


def naive_clusters(pairs: PairTable, constraints: Constraints, threshold: float, linkage: str) -> list[set[int]]:
    """Clusters by looking at all pairs of clusters before every merge."""
    likeness = np.zeros((len(constraints.labels),) * 2)
    for one, other, value in zip(pairs.first, pairs.second, pairs.probability, strict=True):
        likeness[one, other] = likeness[other, one] = value
    clusters = [{place} for place in range(len(constraints.labels))]

    def join(one: set[int], other: set[int]) -> None:
        clusters.remove(one)
        clusters.remove(other)
        clusters.append(one | other)

    def of(place: int) -> set[int]:
        return next(cluster for cluster in clusters if place in cluster)

    def barred(one: set[int], other: set[int]) -> bool:
        labels = {constraints.labels[place] for place in one | other} - {-1}
        apart = [{*pair} for pair in constraints.cannot_link.tolist()]
        return len(labels) > 1 or any(len(pair & one) == 1 and len(pair & other) == 1 for pair in apart)

    for label in set(constraints.labels.tolist()) - {-1}:
        first, *others = np.flatnonzero(constraints.labels == label).tolist()
        for place in others:
            join(of(first), of(place))
    for one, other in constraints.must_link:
        if of(one) != of(other):
            join(of(one), of(other))
    while True:
        reduce = np.mean if linkage == "average" else np.max
        values = [
            (reduce(likeness[np.ix_(sorted(one), sorted(other))]), one, other)
            for one, other in combinations(clusters, 2)
            if not barred(one, other)
        ]
        if not values or max(value for value, *_ in values) < threshold:
            return clusters
        join(*max(values, key=lambda entry: entry[0])[1:])


@pytest.mark.parametrize("linkage", ["average", "single"])
def test_merges_equal_a_naive_search(linkage: Any) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        every = np.argwhere(np.triu(np.ones((9, 9), dtype=bool), 1))
        every = every[rng.random(len(every)) < 0.6]
        pairs = PairTable(every[:, 0], every[:, 1], rng.uniform(0.05, 1, len(every)))
        labels = np.array([-1, 0, -1, 1, -1, 0, -1, -1, -1])
        constraints = Constraints(labels, np.array([[0, 2]]), np.array([[4, 6], [0, 3]]))
        merges = agglomerate(pairs, constraints, np.arange(9).astype(str), linkage)
        assert (np.diff(merges.likeness) <= 1e-12).all()
        for threshold in (0.1, 0.3, 0.5, 0.8):
            found = merges.clusters(threshold)
            expected = naive_clusters(pairs, constraints, threshold, linkage)
            assert {frozenset(np.flatnonzero(found == one)) for one in set(found)} == set(map(frozenset, expected))


@pytest.mark.parametrize(
    ("must", "cannot", "message"),
    [
        ([[0, 2], [2, 1]], [[0, 1]], "images a and b cannot be of one identity"),
        ([[0, 3], [0, 4]], [], "must-links join images d and e, whose labels differ"),
    ],
)
def test_contradictory_decisions_are_named(must: list, cannot: list, message: str) -> None:
    links = [np.array(table, dtype=np.int64).reshape(-1, 2) for table in (must, cannot)]
    nothing = PairTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    with pytest.raises(WhaleidError, match=message):
        agglomerate(
            nothing, Constraints(np.array([-1, -1, -1, 0, 1]), links[0], links[1]), np.array(list("abcde")), "single"
        )


# --------------------------------------------------------------------------------------------------- test images


def test_averages_are_brought_to_the_scale_of_one_model() -> None:
    single = np.array([[0.9, 0.1, 0.5], [0.3, 0.8, 0.7]])
    np.testing.assert_allclose(on_scale_of(np.array([0.6, 0.45, 0.5]), single), [0.85, 0.2, 0.6])
    np.testing.assert_allclose(on_scale_of(np.array([0.6, 0.5, 0.5]), single), [0.85, 0.4, 0.4])
