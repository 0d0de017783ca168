"""The stack's table and one ranker, 8,000 queries x 50 candidates, against a bare lightgbm.train of the same table.

    .venv/bin/python benchmarks/bench_stack.py [--queries 8000] [--out benchmarks/results/stack.json]

Rankings are synthetic: the truth stands above the rest, under noise of its own in each ranking. A recipe of five folds
and three groups trains 18 times what is timed here, each time on 8/15 of its queries (the final ones on 2/3).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import lightgbm as lgb
import numpy as np

from whaleid.config import StackConfig
from whaleid.ensemble.calibrate import fit_calibration
from whaleid.ensemble.stack import train_ranker
from whaleid.ensemble.stack_features import View, feature_table
from whaleid.retrieval.candidates import Candidates
from whaleid.workspace import write_json

WIDTH = 50


def ranking(rng: np.random.Generator, truth: np.ndarray, identities: int) -> Candidates:
    """WIDTH of the identities for each query, the truth mostly among them."""
    codes = (truth[:, None] + rng.permuted(np.tile(np.arange(4 * WIDTH), (len(truth), 1)), axis=1)) % identities
    scores = rng.normal(size=codes.shape) + 3.0 * (codes == truth[:, None])
    order = np.argsort(-scores, axis=1)[:, :WIDTH]
    names = np.array([f"q{number}" for number in range(len(truth))])
    classes = np.array([f"c{number}" for number in range(identities)])
    best = np.take_along_axis(scores, order, axis=1).astype(np.float32)
    return Candidates(names, classes, np.take_along_axis(codes, order, axis=1), best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--rankings", type=int, default=8)
    parser.add_argument("--identities", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stack.json"))
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = rng.integers(0, given.identities, given.queries)
    known = np.where(rng.random(given.queries) < 0.3, -1, truth)
    config, weights = StackConfig(seeds=1), np.ones(given.queries)
    lists = [ranking(rng, truth, given.identities) for _ in range(given.rankings + 1)]

    start = time.perf_counter()
    views = [
        View(f"net{place}", one, fit_calibration(one, known, weights, False), 0.0) for place, one in enumerate(lists)
    ]
    table = feature_table(views, np.ones(given.identities, dtype=int), 5, True, config)
    features_s = time.perf_counter() - start

    start = time.perf_counter()
    model = train_ranker(table, known, weights, 5, config, 0)
    train_s = time.perf_counter() - start
    assert model is not None

    own = known[table.query]
    unknown = table.codes == given.identities
    label = np.where(own >= 0, table.codes == own, unknown).astype(float)
    plain = {"objective": "lambdarank", "num_leaves": config.leaves, "num_threads": config.threads, "verbosity": -1}
    start = time.perf_counter()
    data = lgb.Dataset(table.values, label, group=np.bincount(table.query))
    lgb.train(plain, data, num_boost_round=config.rounds)
    bare_s = time.perf_counter() - start

    start = time.perf_counter()
    model.predict(table.values, raw_score=True, num_threads=config.threads)
    predict_s = time.perf_counter() - start
    figures = {"queries": given.queries, "rows": len(table.query), "features": len(table.names)}
    figures |= {"rounds": config.rounds, "threads": config.threads, "cpus": os.cpu_count()}
    figures |= {"features_s": features_s, "train_s": train_s, "bare_s": bare_s, "ratio": train_s / bare_s}
    figures |= {"predict_s": predict_s, "lightgbm": lgb.__version__}
    for name, value in figures.items():
        print(f"{name:12} {value:.3f}" if isinstance(value, float) else f"{name:12} {value}")
    write_json(given.out, figures)


if __name__ == "__main__":
    main()
