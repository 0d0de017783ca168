"""The whole stack: 8,000 queries x 50 candidates in five folds, with features and all LambdaRank models.

    .venv/bin/python benchmarks/bench_stack.py [--queries 8000] [--tests 0] [--out benchmarks/results/stack.json]

Rankings are synthetic: the true identity scores above the others, with independent noise in each ranking, and is
missing from some. Timed are `stack_rankings`, from the rankings to the stacked candidates of all folds and of the
test images, and for comparison the features alone and one `lightgbm.train` on the whole table. Seconds are processor
time (user and system, all threads), which other programs hardly change, and time by the clock.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
from measuring import cpu_seconds

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import fit_calibration
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.embedding_features import EmbeddingFeatures, EmbeddingTable
from whaleid.ensemble.lists import concatenate_lists
from whaleid.ensemble.protocol import FoldPart, Protocol, UnknownShare
from whaleid.ensemble.rankings import Ranking
from whaleid.ensemble.stack import stack_rankings
from whaleid.ensemble.stack_features import View, feature_table
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.files import write_json

WIDTH = 50


def candidates(rng: np.random.Generator, truth: np.ndarray, identities: int, name: str) -> Candidates:
    """WIDTH of the identities for each query, the truth mostly among them."""
    codes = (truth[:, None] + rng.permuted(np.tile(np.arange(4 * WIDTH), (len(truth), 1)), axis=1)) % identities
    scores = rng.normal(size=codes.shape) + 3.0 * (codes == truth[:, None])
    order = np.argsort(-scores, axis=1)[:, :WIDTH]
    names = np.array([f"{name}{number}" for number in range(len(truth))])
    classes = np.array([f"c{number}" for number in range(identities)])
    best = np.take_along_axis(scores, order, axis=1).astype(np.float32)
    return Candidates(names, classes, np.take_along_axis(codes, order, axis=1), best)


def questions(
    rng: np.random.Generator, queries: int, tests: int, identities: int, folds: int
) -> tuple[Protocol, list[np.ndarray]]:
    """Folds of queries of which three in ten are unknown, and for each whom its rankings shall favour."""
    parts, favoured = [], []
    for fold in range(folds):
        who = rng.integers(0, identities, queries // folds)
        truth = np.where(rng.random(len(who)) < 0.3, -1, who)
        gallery = np.repeat(np.arange(identities), 1 + rng.geometric(0.4, identities))
        rows = np.arange(len(gallery))
        names = np.array([f"q{fold}_{number}" for number in range(len(who))])
        sizes = np.where(truth >= 0, np.bincount(gallery)[who], 0)
        parts.append(FoldPart(fold, np.arange(len(who)), names, rows, rows, gallery, truth, sizes))
        favoured.append(who)
    classes = np.array([f"c{number}" for number in range(identities)])
    asked, gallery = np.arange(tests), (parts[0].gallery, parts[0].gallery_codes)
    return Protocol(
        classes, tuple(parts), asked, asked.astype(str), *gallery, "new", UnknownShare(0.3, 0.3, "given"), 5
    ), favoured


def embedding_table(rng: np.random.Generator, queries: int, identities: int, dims: int) -> EmbeddingTable:
    """Random embeddings of a fold's models."""

    def unit(rows: int) -> np.ndarray:
        table = rng.normal(size=(rows, dims)).astype(np.float32)
        return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)

    near = rng.random((2, queries), dtype=np.float32)
    return EmbeddingTable(unit(queries), unit(identities), rng.random(identities, dtype=np.float32), *near, *near)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--tests", type=int, default=0)
    parser.add_argument("--rankings", type=int, default=8)
    parser.add_argument("--identities", type=int, default=5000)
    parser.add_argument("--dims", type=int, default=512, help="of the embeddings; 0: none")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stack.json"))
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    protocol, favoured = questions(rng, given.queries, given.tests, given.identities, given.folds)
    strangers = rng.integers(0, given.identities, given.tests)
    rankings = []
    for place in range(given.rankings + 1):
        oof = tuple(candidates(rng, who, given.identities, f"q{fold}_") for fold, who in enumerate(favoured))
        test = tuple(candidates(rng, strangers, given.identities, "t") for _ in favoured) if given.tests else ()
        rankings.append(Ranking(f"net{place}", "knn", OofLists.same(oof), test, False))
    places = list(range(given.folds))
    truth, weights = protocol.truth(places), protocol.weights(places)
    whole = [concatenate_lists(list(ranking.oof)) for ranking in rankings]
    *members, blend = rankings
    config = StackConfig()
    if given.dims:
        oof = tuple(embedding_table(rng, len(who), given.identities, given.dims) for who in favoured)
        test = tuple(embedding_table(rng, given.tests, given.identities, given.dims) for _ in favoured)
        members[0] = replace(members[0], embedding_features=EmbeddingFeatures(oof, test if given.tests else ()))
    stacked, stage_cpu, stage_s = cpu_seconds(lambda: stack_rankings(protocol, members, blend, config))

    def features():
        views = [
            View(f"net{place}", one, fit_calibration(one, truth, weights, False)) for place, one in enumerate(whole)
        ]
        return feature_table(views, np.ones(given.identities, dtype=int), 5, config)

    table, features_cpu, features_s = cpu_seconds(features)
    label = (table.codes == truth[table.query]).astype(float)
    plain = {
        "objective": "lambdarank",
        "num_leaves": config.num_leaves,
        "num_threads": config.num_threads,
        "verbosity": -1,
    }

    def bare():
        data = lgb.Dataset(table.values, label, group=np.bincount(table.query))
        lgb.train(plain, data, num_boost_round=config.num_iterations)

    _, bare_cpu, bare_s = cpu_seconds(bare)
    rankers = (given.folds + 1) * config.groups * config.seeds
    figures = {"queries": given.queries, "tests": given.tests, "folds": given.folds, "rankings": given.rankings}
    figures |= {"dims": given.dims}
    figures |= {
        "rows": len(table.query),
        "features": len(table.names),
        "rankers": rankers,
        "rounds": config.num_iterations,
    }
    figures |= {"threads": config.num_threads, "cpus": os.cpu_count(), "lightgbm": lgb.__version__}
    figures |= {
        "stage_cpu_s": stage_cpu,
        "stage_s": stage_s,
        "trees used": [stack.models.trees for stack in (*stacked.fitted.by_fold, stacked.fitted.full)],
    }
    figures |= {"features_cpu_s": features_cpu, "features_s": features_s, "bare_cpu_s": bare_cpu, "bare_s": bare_s}
    for name, value in figures.items():
        print(f"{name:14} {value:.3f}" if isinstance(value, float) else f"{name:14} {value}")
    write_json(given.out, figures)


if __name__ == "__main__":
    main()
