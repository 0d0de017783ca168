"""How far decisions raise the adjusted Rand index of clusters: most informative first, against as many random ones.

    .venv/bin/python benchmarks/bench_review.py [--decisions 200] [--out benchmarks/results/review.json]
    .venv/bin/python benchmarks/bench_review.py --competition nyala-open --work work --truth TRUTH.csv

Without a competition on drawn features: P(same) and threshold are fitted on three sets of identities, and decisions are
about images of others; chosen linkage and threshold are compared with the best of all on those images. With one, on
the test images of a trained work folder, which is only read (`trained_forms.py` says what the truth is). An oracle
answers 50 pairs, the images are clustered again, and so on. A random decision is about any pair of two clusters that
P(same) lists: a person who looked at pairs of any two images would see two individuals nearly always.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drawn_pairs import draw, fit_models, image_pairs

from whaleid.ensemble.intervals import paired_answer_gain
from whaleid.evaluation import clusters
from whaleid.evaluation.clusters import LINKAGES, THRESHOLDS, adjusted_rand_index, joined_pairs, merges_of
from whaleid.evaluation.doubts import doubtful_pairs
from whaleid.evaluation.form_input import ImagePairs
from whaleid.evaluation.form_score import FormScore
from whaleid.evaluation.forms import get_form
from whaleid.utils.files import write_json

BATCH = 50
"""Decisions between two clusterings."""
CASES = [(noise, density) for noise in (0.8, 1.2, 1.6) for density in (2.0, 4.0, 8.0)]
"""Noise of the drawn features, and images of an identity in the clustered set; 4 in the sets that are fitted on."""

Choose = Callable[[ImagePairs, dict[str, Any]], np.ndarray]


def outcomes_of(pairs: ImagePairs, fitted: dict[str, Any], identity: np.ndarray) -> pd.DataFrame:
    """What the adjusted Rand index is made of."""
    return clusters.outcomes([clusters.answer(pairs, fitted, None)], [pairs], [identity], None)


def score_of(pairs: ImagePairs, fitted: dict[str, Any], identity: np.ndarray) -> FormScore:
    """Adjusted Rand index with its interval."""
    return clusters.evaluate(outcomes_of(pairs, fitted, identity))


def informative(pairs: ImagePairs, fitted: dict[str, Any]) -> np.ndarray:
    """The pairs that are worth most."""
    return doubtful_pairs(pairs, fitted)[0]


def at_random(seed: int) -> Choose:
    """Any pairs of two clusters, in random order."""

    def choose(pairs: ImagePairs, fitted: dict[str, Any]) -> np.ndarray:
        table = joined_pairs(pairs) if fitted["anchors"] else pairs.among
        start = merges_of(pairs, fitted["linkage"], fitted["anchors"]).start
        apart = np.flatnonzero(start[table.first] != start[table.second])
        chosen = np.random.default_rng([seed, len(pairs.must_link)]).permutation(apart)
        return np.column_stack([table.first[chosen], table.second[chosen]])

    return choose


def curve(
    pairs: ImagePairs, fitted: dict[str, Any], identity: np.ndarray, choose: Choose, decisions: int
) -> list[dict[str, float]]:
    """ARI after every BATCH decisions of an oracle, from none on; the last row has the paired gain of all."""
    everyone, before = np.concatenate([identity, pairs.gallery_identity]), outcomes_of(pairs, fitted, identity)
    rows = [{"decisions": 0, **_shown(score_of(pairs, fitted, identity))}]
    for count in range(BATCH, decisions + 1, BATCH):
        asked = _undecided(choose(pairs, fitted), pairs)[:BATCH]
        same = everyone[asked[:, 0]] == everyone[asked[:, 1]]
        pairs = replace(
            pairs,
            must_link=np.concatenate([pairs.must_link, asked[same]]),
            cannot_link=np.concatenate([pairs.cannot_link, asked[~same]]),
        )
        rows.append({"decisions": count, **_shown(score_of(pairs, fitted, identity))})
    gain = paired_answer_gain(get_form("clusters"), before, outcomes_of(pairs, fitted, identity), seed=0)
    rows[-1] |= {f"paired_{name}": round(value, 4) for name, value in asdict(gain).items()}
    return rows


def _shown(score: FormScore) -> dict[str, float]:
    return {"ari": round(score.value, 4), "low": round(score.low, 4), "high": round(score.high, 4)}


def _undecided(asked: np.ndarray, pairs: ImagePairs) -> np.ndarray:
    """The pairs that nobody decided yet, in their order."""
    done = {tuple(sorted(pair)) for table in (pairs.must_link, pairs.cannot_link) for pair in table.tolist()}
    new = [tuple(sorted(pair)) not in done for pair in asked.tolist()]
    return asked[np.array(new, dtype=bool)]


def best_of_all(pairs: ImagePairs, identity: np.ndarray) -> dict[str, Any]:
    """The linkage, anchors and threshold with the largest ARI on the images themselves, which nobody can know."""
    found = {"ari": -1.0}
    for linkage in LINKAGES:
        for anchors in (True, False):
            merges = merges_of(pairs, linkage, anchors)
            for threshold in THRESHOLDS:
                value = adjusted_rand_index(identity, merges.clusters(threshold)[: len(identity)])
                if value > found["ari"]:
                    found = {"ari": value, "linkage": linkage, "anchors": anchors, "threshold": threshold}
    return found


def drawn_case(noise: float, density: float, decisions: int, seed: int = 0) -> dict[str, Any]:
    """One drawn set: what is chosen, the best of all, a plain threshold, and both curves."""
    rng = np.random.default_rng([seed, int(10 * noise), int(density)])
    training = [draw(rng, 40, 4, noise) for _ in range(3)]
    models = fit_models(training)
    sets = [image_pairs(one, models) for one in training]
    target = draw(rng, int(240 / density), density, noise)
    pairs = image_pairs(target, models)
    fitted = clusters.fit(sets, [one.identity for one in training], pairs)
    return {"noise": noise, "density": density, **compared(pairs, fitted, target.identity, decisions, seed)}


def compared(
    pairs: ImagePairs, fitted: dict[str, Any], identity: np.ndarray, decisions: int, seed: int = 0
) -> dict[str, Any]:
    """What was chosen, the best of all, a plain threshold with either linkage, and the curves of both kinds."""
    plain = {linkage: {"linkage": linkage, "anchors": False, "threshold": 0.5} for linkage in LINKAGES}
    return {
        "images": len(identity),
        "fitted": fitted,
        "best": best_of_all(pairs, identity),
        "plain": {linkage: _shown(score_of(pairs, given, identity)) for linkage, given in plain.items()},
        "informative": curve(pairs, fitted, identity, informative, decisions),
        "random": curve(pairs, fitted, identity, at_random(seed), decisions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=200)
    parser.add_argument("--competition")
    parser.add_argument("--recipe")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "review.json")
    given = parser.parse_args()
    if given.competition is not None:
        from trained_forms import clusters_of_test

        pairs, fitted, identity = clusters_of_test(given.competition, given.recipe, given.work, given.truth)
        cases = [{"competition": given.competition, **compared(pairs, fitted, identity, given.decisions)}]
    else:
        cases = [drawn_case(noise, density, given.decisions) for noise, density in CASES]
    for case in cases:
        name = case.get("competition") or f"noise {case['noise']}, {case['density']:g} images an identity"
        print(f"{name} ({case['images']} images), {case['fitted']}", flush=True)
        plain = ", ".join(f"{linkage} linkage {found['ari']:.3f}" for linkage, found in case["plain"].items())
        print(f"  best of all {case['best']['ari']:.3f}; P(same) of 0.5, no anchors: {plain}")
        for kind in ("informative", "random"):
            points = [
                f"{row['decisions']}: {row['ari']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in case[kind]
            ]
            last = case[kind][-1]
            gain = f"{last['paired_gain']:+.3f} [{last['paired_low']:+.3f}, {last['paired_high']:+.3f}]"
            print(f"  {kind:<11} {'  '.join(points)}; paired gain {gain}")
    write_json(given.out, cases)


if __name__ == "__main__":
    main()
