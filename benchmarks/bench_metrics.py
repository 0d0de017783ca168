"""MAP@5 of a million CSV rows and of ten million queries in memory, compared with the usual Python loop.

    .venv/bin/python benchmarks/bench_metrics.py [--rows 1000000] [--out benchmarks/results/metrics.json]

Ratios compare times of one run on one machine; seconds are not comparable between machines.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
from measuring import best_seconds

from whaleid.evaluation.metrics import rank_of_truth, score_ranks
from whaleid.evaluation.topk import score_submission
from whaleid.utils.files import write_json

IDENTITIES = 5005  # as many as Humpback Whale Identification has


def apk(actual: str, predicted: list[str], k: int = 5) -> float:
    """Average precision as public kernels compute it, for one true label."""
    for place, label in enumerate(predicted[:k]):
        if label == actual:
            return 1.0 / (place + 1)
    return 0.0


def common_loop(submission: Path, solution: Path) -> float:
    """Both files by the csv module, one row at a time."""
    with solution.open(newline="") as file:
        truth = dict(list(csv.reader(file))[1:])
    with submission.open(newline="") as file:
        scores = [apk(truth[image], labels.split()) for image, labels in list(csv.reader(file))[1:]]
    return sum(scores) / len(scores)


def write_files(folder: Path, rows: int) -> tuple[Path, Path]:
    """A submission with five distinct guesses a row, in another order than its solution."""
    rng = np.random.default_rng(0)
    labels = np.array([f"w_{code:07x}" for code in range(IDENTITIES)])
    guesses = (rng.integers(0, IDENTITIES, (rows, 1)) + np.arange(5) * 7) % IDENTITIES
    truth = np.where(rng.random(rows) < 0.8, guesses[np.arange(rows), rng.integers(0, 5, rows)], 0)
    submission, solution = folder / "submission.csv", folder / "solution.csv"
    names = [f"{number:08x}.jpg" for number in range(rows)]
    with submission.open("w") as file:
        file.write("Image,Id\n")
        for row in rng.permutation(rows):
            file.write(f"{names[row]},{' '.join(labels[guesses[row]])}\n")
    solution.write_text("Image,Id\n" + "".join(f"{n},{t}\n" for n, t in zip(names, labels[truth], strict=True)))
    return submission, solution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/metrics.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        submission, solution = write_files(Path(folder), given.rows)
        loop, ours = best_seconds(
            lambda: common_loop(submission, solution),
            lambda: score_submission(submission, solution),
            repeats=given.repeats,
        )
        difference = common_loop(submission, solution) - score_submission(submission, solution).map
        assert abs(difference) < 1e-9, difference
    rng = np.random.default_rng(0)
    guesses = rng.integers(0, IDENTITIES, (given.memory, 5), dtype=np.int32)
    truth = guesses[np.arange(given.memory), rng.integers(0, 5, given.memory)]
    (memory,) = best_seconds(lambda: score_ranks(rank_of_truth(guesses, truth)), repeats=given.repeats)

    print(f"{'MAP@5':44}{'seconds':>9}{'ratio':>8}")
    print(f"{f'{given.rows:,} rows of CSV, common Python loop':44}{loop:9.2f}{1:8.1f}")
    print(f"{f'{given.rows:,} rows of CSV, whaleid, with interval':44}{ours:9.2f}{loop / ours:8.1f}")
    print(f"{f'{given.memory:,} queries x 5 in memory, with interval':44}{memory:9.2f}")
    figures = {"rows": given.rows, "loop_s": loop, "whaleid_s": ours, "ratio": loop / ours}
    figures |= {"memory_queries": given.memory, "memory_s": memory}
    write_json(given.out, figures | {"cpus": os.cpu_count(), "machine": platform.machine()})


if __name__ == "__main__":
    main()
