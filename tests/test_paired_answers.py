"""Paired differences of two answers in every form's own metric: by loops, of the same rows, over the same resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from whaleid.ensemble.intervals import paired_answer_gain
from whaleid.evaluation.clusters import adjusted_rand_index
from whaleid.evaluation.form_input import ImagePairs, PairTable, RankedIdentities, Truth
from whaleid.evaluation.form_score import DRAWS, resampled_counts
from whaleid.evaluation.forms import FORMS, TOPK, get_form

OTHERS = [name for name in FORMS if name != TOPK]
IMAGES, IDENTITIES = 24, 6


def made(form: str, seed: int) -> pd.DataFrame:
    """Outcomes of drawn answers to the same drawn queries of two data sets; the truth does not depend on the seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    images = np.array([f"image{number}" for number in range(IMAGES)])
    identity = np.array([f"id{number}" for number in fixed.integers(IDENTITIES, size=IMAGES)])
    datasets = np.array(["land", "sea"])[(fixed.random(IMAGES) < 0.4).astype(int)]
    known = identity < "id3"
    if get_form(form).NEEDS == "identities":
        best = np.where(rng.random(IMAGES) < 0.6, identity, "id0")
        ranked = RankedIdentities(images, best[:, None], rng.random((IMAGES, 1)), datasets)
        truth = Truth(identity, known, np.where(known, 1.0, 0.5))
        answers = {
            "one_or_unknown": np.where(rng.random(IMAGES) < 0.5, best, "new").tolist(),
            "one_confident": [f"{name} {value:.3f}" for name, value in zip(best, rng.random(IMAGES), strict=True)],
        }
        return get_form(form).outcomes(answers[form], ranked, truth, "new")
    return get_form(form).outcomes(*pairs_of(form, images, identity, datasets, rng), None)


def pairs_of(form: str, images: Any, identity: Any, datasets: Any, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Answers to one set of images, the set, and its identities."""
    first, second = (side.ravel() for side in np.indices((IMAGES, IMAGES)))
    apart = first != second
    among = PairTable(first[apart], second[apart], rng.random(apart.sum()))
    gallery = np.array([f"labelled{number}" for number in range(IDENTITIES)])
    labels = np.array([f"id{number}" for number in range(IDENTITIES)])
    answers = {
        "ranked_images": [" ".join(rng.permutation(gallery)) for _ in images],
        "pairs": [str(value) for value in among.probability.round(2)],
        "clusters": np.where(rng.random(IMAGES) < 0.7, identity, "id0").tolist(),
    }
    pairs = ImagePairs(images, datasets, gallery, labels, among, among)
    return [answers[form]], [pairs], [identity]


@pytest.mark.parametrize("form", OTHERS)
def test_the_metric_of_all_rows_is_the_forms_score(form: str) -> None:
    for seed in (1, 2):
        table = made(form, seed)
        score = get_form(form).evaluate(table)
        assert get_form(form).metric(table)(np.ones(len(table), int)) == pytest.approx(score.value, abs=1e-12)
        assert score.low < score.value < score.high


@pytest.mark.parametrize("form", OTHERS)
def test_a_row_that_comes_twice_counts_as_two(form: str) -> None:
    """Against the table with the rows as often as that; a unit that comes again is another unit."""
    module, table = get_form(form), made(form, 1)
    counts = next(resampled_counts(table, module.UNIT, module.STRATUM, np.random.default_rng(3), 1))
    assert 0 in counts and counts.max() > 1
    copies = [table[counts > copy].assign(copy=copy) for copy in range(counts.max())]
    again = pd.concat(copies)
    if module.UNIT == ("truth",):
        again["truth"] += again["copy"].astype(str)
        if "answer" in again:  # an answer that is right stays so
            right = again["answer"] + again["copy"].astype(str) == again["truth"]
            again["answer"] = np.where(right, again["truth"], again["answer"])
    again = again.sort_index(kind="stable").drop(columns="copy").reset_index(drop=True)
    found = module.metric(table)(counts)
    if form == "clusters":  # copies of an image make no pair
        sets = [(table["dataset"] == name).to_numpy() for name in ("land", "sea")]
        values = [
            adjusted_rand_index(table["truth"][rows].to_numpy(), table["cluster"][rows].to_numpy(), counts[rows])
            for rows in sets
        ]
        assert found == pytest.approx(np.mean(values))
    else:
        assert found == pytest.approx(module.evaluate(again).value)


@pytest.mark.parametrize("form", OTHERS)
def test_a_paired_difference_is_that_of_the_same_resamples(form: str) -> None:
    module, first, second = get_form(form), made(form, 1), made(form, 2)
    gain = paired_answer_gain(module, first, second, seed=5)
    assert gain.gain == pytest.approx(module.evaluate(second).value - module.evaluate(first).value)
    counts = list(resampled_counts(first, module.UNIT, module.STRATUM, np.random.default_rng(5)))
    assert len(counts) == DRAWS
    draws = [module.metric(second)(drawn) - module.metric(first)(drawn) for drawn in counts[:DRAWS]]
    assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))))
    assert gain.low < gain.gain < gain.high
    same = paired_answer_gain(module, first, first, seed=5)
    assert (same.gain, same.low, same.high) == (0, 0, 0)


def test_units_are_drawn_within_their_stratum() -> None:
    table = pd.DataFrame({"set": list("aaaabbb"), "unit": list("xxyzxww")})
    for counts in resampled_counts(table, ["unit"], ["set"], np.random.default_rng(0), 50):
        assert counts[0] == counts[1] and counts[5] == counts[6]  # rows of a unit
        assert counts[[0, 2, 3]].sum() == 3 and counts[[4, 5]].sum() == 2  # as many units as there are
    together = next(resampled_counts(table, ["unit"], [], np.random.default_rng(0), 1))
    assert together[0] == together[1] == together[4] and together[[0, 2, 3, 5]].sum() == 4
