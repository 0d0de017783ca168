"""Clusters of drawn features: the threshold that is chosen, and the pairs that a person is asked about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from form_world import add_to_world, open_world, place_world
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config.settings import repository_root
from whaleid.data.reviews import read_reviews
from whaleid.evaluation import clusters
from whaleid.evaluation.agglomeration import NO_LABEL, Constraints, agglomerate
from whaleid.evaluation.clusters import adjusted_rand_index
from whaleid.evaluation.doubts import doubtful_pairs, joined_by, merged_pairs
from whaleid.evaluation.form_input import ImagePairs, PairTable
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import latest_submission
from whaleid.review.desk import Desk
from whaleid.review.pairs import find_pairs

NOBODY = np.empty(0, dtype=str)
FITTED = {"linkage": "average", "anchors": False, "threshold": 0.5}


def set_of(count: int, pairs: list[tuple[int, int, float]]) -> ImagePairs:
    first, second, probability = (np.array(column) for column in zip(*pairs, strict=True))
    nothing = PairTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    names = np.array([f"i{number}" for number in range(count)])
    among = PairTable(first, second, probability.astype(float))
    return ImagePairs(names, np.full(count, ""), NOBODY, NOBODY, among, nothing)


# ------------------------------------------------------------------------------------------------------- doubts


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_merge_of_a_pair_is_that_from_which_it_shares_a_cluster(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    every = np.argwhere(np.triu(np.ones((count, count), dtype=bool), 1))
    used = rng.random(len(every)) < 0.7
    table = PairTable(every[used, 0], every[used, 1], rng.uniform(0.05, 1, used.sum()))
    must = every[rng.random(len(every)) < 0.1]
    merges = agglomerate(table, Constraints(np.full(count, NO_LABEL), must), np.arange(count).astype(str), "average")
    found = joined_by(merges, every[:, 0], every[:, 1])
    after = [merges.clusters(np.inf)]
    for number in range(len(merges.pairs)):
        so_far = replace(merges, pairs=merges.pairs[: number + 1], likeness=merges.likeness[: number + 1])
        after.append(so_far.clusters(-1.0))
    for (one, other), number in zip(every.tolist(), found.tolist(), strict=True):
        together = [labels[one] == labels[other] for labels in after]
        assert number == (-1 if together[0] or not together[-1] else together.index(True) - 1)
    sizes = merged_pairs(merges)
    brought = [sum(a[i] == a[j] for i, j in every) for a in after]
    assert sizes.tolist() == np.diff(brought).tolist()


def test_a_large_merge_at_the_threshold_is_asked_first_by_its_likeliest_pair() -> None:
    certain = [(0, 1, 1.0), (2, 3, 1.0), (4, 5, 0.9)]
    between = [(0, 2, 0.4), (0, 3, 0.5), (1, 2, 0.45), (1, 3, 0.65)]  # two clusters of two at 0.5
    asked, probability, worth = doubtful_pairs(set_of(7, [*certain, *between, (5, 6, 0.2)]), FITTED)
    assert sorted(asked[0].tolist()) == [1, 3] and probability[0] == 0.65 and worth[0] == pytest.approx(4.0)
    assert len(asked) == 5 and (np.diff(worth) <= 0).all()


def test_what_is_decided_or_follows_is_not_asked_again() -> None:
    pairs = set_of(4, [(0, 1, 0.5), (1, 2, 0.5), (2, 3, 0.5), (0, 2, 0.4)])
    decided = replace(pairs, must_link=np.array([[0, 1], [1, 2]]), cannot_link=np.array([[2, 3]]))
    assert len(doubtful_pairs(decided, FITTED)[0]) == 0
    assert len(doubtful_pairs(pairs, FITTED)[0]) == 3


# ------------------------------------------------------------------------------------------ quality of clusters


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository_root() / "benchmarks"))
    import bench_review

    return bench_review


@pytest.mark.parametrize(("noise", "density"), [(0.8, 2.0), (1.2, 2.0), (1.2, 6.0)])
def test_chosen_clusters_are_near_the_best_and_beat_a_plain_threshold(
    benches: Any, noise: float, density: float
) -> None:
    from drawn_pairs import draw, fit_models, image_pairs

    rng = np.random.default_rng(int(10 * noise + density))
    training = [draw(rng, 25, 4, noise) for _ in range(2)]
    models = fit_models(training)
    sets = [image_pairs(one, models) for one in training]
    target = draw(rng, int(150 / density), density, noise)
    pairs = image_pairs(target, models)
    fitted = clusters.fit(sets, [one.identity for one in training], pairs)

    def ari(given: dict[str, Any]) -> float:
        return adjusted_rand_index(target.identity, np.array(clusters.answer(pairs, given, None)))

    assert ari(fitted) > 0.85 * benches.best_of_all(pairs, target.identity)["ari"]
    assert ari(fitted) > ari({"linkage": "single", "anchors": False, "threshold": 0.5}) + 0.05


def test_decisions_that_are_worth_most_raise_the_index_and_random_ones_do_not(benches: Any) -> None:
    from drawn_pairs import draw, fit_models, image_pairs

    rng = np.random.default_rng(3)
    training = draw(rng, 30, 4, 1.2)
    models = fit_models([training])
    target = draw(rng, 30, 4, 1.2)
    pairs = image_pairs(target, models)
    fitted = clusters.fit([image_pairs(training, models)], [training.identity], pairs)
    best = benches.curve(pairs, fitted, target.identity, benches.informative, 100)
    random = benches.curve(pairs, fitted, target.identity, benches.at_random(0), 100)
    assert [row["decisions"] for row in best] == [0, 50, 100] and best[0] == random[0]
    assert best[-1]["ari"] > best[0]["ari"] + 0.1
    assert random[-1]["ari"] < best[1]["ari"]


# --------------------------------------------------------------------------------------------------- the review


def test_the_review_asks_about_clusters_and_decisions_change_them(tmp_path: Path) -> None:
    drawn = place_world(tmp_path, "clusters", noise=1.2)
    drawn[["image", "identity"]].to_csv(tmp_path / "solution.csv", index=False)
    test = drawn.set_index("image")["identity"]
    add_to_world(tmp_path, "k: 1\nsubmission: {image: image, identities: cluster}\nreviews: reviews.csv\n")
    project = open_world(tmp_path)
    run(project, "submission")
    results, pairs = find_pairs(project)
    asked = [pair for pair in pairs if pair.kind == "cluster"]
    assert asked and not [pair for pair in pairs if pair.kind in ("guess", "new")]
    assert all(0 <= pair.worth <= 1 and pair.reason.startswith("P(same)") for pair in asked)
    images = results.images
    names = images["image"].tolist()
    of_test = [pair for pair in asked if images["split"][pair.other] == images["split"][pair.query] == "test"]
    assert all(pair.identity == "" for pair in of_test)
    desk = Desk(results, pairs, tmp_path / "reviews.csv", "nora")
    before = len(desk.state()["pairs"])
    for pair in of_test[:6]:
        same = test[names[pair.query]] == test[names[pair.other]]
        desk.decide(pairs.index(pair), "yes" if same else "no")
    assert len(desk.state()["pairs"]) == before  # a decision closes no other pair of two clusters
    decided = read_reviews(tmp_path / "reviews.csv")
    assert len(decided) == min(6, len(of_test)) > 2
    project = open_world(tmp_path)
    run(project, "submission")
    cluster = pd.read_csv(latest_submission(project)).set_index("image")["cluster"]
    for review in decided:
        assert (cluster[review.image] == cluster[review.other]) == (review.same == "yes")
