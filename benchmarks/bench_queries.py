"""From candidates to a scored submission, for many queries: time of each step, and how it grows.

    .venv/bin/python benchmarks/bench_queries.py [--queries 25000 100000] [--out benchmarks/results/queries.json]

Drawn candidates, 50 a query, of two folds: their average, the threshold of the unknown identity, its place, the
submission with its check, and the score. One thread, processor seconds, each size in a process of its own. The seconds
of --target queries follow from the two sizes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import cpu_seconds, in_own_process, peak_gib

from whaleid.ensemble.lists import average
from whaleid.ensemble.protocol import Targets
from whaleid.ensemble.unknown import fit_threshold, with_unknown
from whaleid.evaluation.forms import score_files, write_submission
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.files import write_json

IDENTITIES, KEEP, UNKNOWN = 5005, 50, "new_whale"


def drawn(queries: np.ndarray, seed: int) -> Candidates:
    rng = np.random.default_rng(seed)
    codes = (rng.integers(0, IDENTITIES, (len(queries), 1)) + np.arange(KEEP) * 7) % IDENTITIES
    scores = -np.sort(-rng.random((len(queries), KEEP), dtype=np.float32), axis=1)
    return Candidates(queries, np.array([f"w_{code:07x}" for code in range(IDENTITIES)]), codes, scores)


def cells_of(candidates: Candidates, k: int) -> dict[str, str]:
    rows = candidates.classes[candidates.codes[:, :k]].tolist()
    return {name: " ".join(row) for name, row in zip(candidates.queries.tolist(), rows, strict=True)}


def steps(count: int) -> dict[str, float]:
    """Processor seconds of each step, and the peak of this process's memory."""
    names = np.array([f"{number:08x}.jpg" for number in range(count)])
    lists, seconds = [drawn(names, seed) for seed in range(2)], dict[str, float]()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        result, seconds[name], _ = cpu_seconds(work)
        return result

    with tempfile.TemporaryDirectory() as place:
        sample, solution, path = (Path(place) / f"{name}.csv" for name in ("sample", "solution", "submission"))
        truth = np.where(np.arange(count) % 5 > 0, lists[0].codes[:, 1], -1)
        labels = np.append(lists[0].classes, UNKNOWN)[truth]
        for file, column in ((sample, np.full(count, UNKNOWN)), (solution, labels)):
            file.write_text("Image,Id\n" + "".join(f"{n},{t}\n" for n, t in zip(names, column, strict=True)))
        mean = timed("average", lambda: average(lists, KEEP))
        limit = timed("threshold", lambda: fit_threshold(mean, Targets(truth, np.ones(count), 5, True)))
        placed = timed("unknown", lambda: with_unknown(mean, limit, UNKNOWN))
        cells = timed("cells", lambda: cells_of(placed, 5))
        timed("submission", lambda: write_submission("topk", path, cells, sample, placed.classes, 5))
        timed("score", lambda: score_files(path, solution, k=5, unknown=UNKNOWN))
    return {"queries": count} | seconds | {"all": sum(seconds.values()), "peak_gib": peak_gib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, nargs=2, default=[25_000, 100_000])
    parser.add_argument("--target", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/queries.json"))
    given = parser.parse_args()
    small, large = (in_own_process(steps, count) for count in given.queries)
    further = (given.target - large["queries"]) / (large["queries"] - small["queries"])
    target = {name: large[name] + further * (large[name] - small[name]) for name in large}
    print(f"{'processor s':12} {given.queries[0]:10,} {given.queries[1]:10,} {given.target:12,}")
    for name in large:
        print(f"{name:12} {small[name]:10,.2f} {large[name]:10,.2f} {target[name]:12,.2f}")
    figures = {"rows": [small, large], "target": target, "clock": "processor time", "cpus": os.cpu_count()}
    write_json(given.out, figures | {"load": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
