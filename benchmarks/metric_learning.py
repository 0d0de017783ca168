"""Heads at equal budget and backbone, on identities never seen in training, several seeds.

`python benchmarks/metric_learning.py` (--quick: one seed, few methods).

    .venv/bin/python benchmarks/metric_learning.py [--quick] [--data sample] [--methods 'margin,divide-*'] [--seeds 0]

metric_learning.yaml lists what is compared. Runs are done seed by seed, so that an interrupted benchmark is a full
table of fewer seeds. Results of finished runs stay in work/bench-metric/, and the benchmark continues from there. It
writes metric_learning.json, metric_learning.md and metric_distances.png, always of all finished runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metric_plan import BEFORE, Bench, chosen, load_bench, make_experiment
from metric_report import Results, draw_distances, write_reports
from metric_runs import Job, Parted, code_digest, machine, measure_all, part_data, progress_files

from whaleid.config.settings import read_settings
from whaleid.data.samplers import TrainingItems
from whaleid.models.heads.registry import build_head
from whaleid.models.weights import ensure_weights
from whaleid.pipeline.executors.local import sensible, share_of_cores
from whaleid.training.epochs import make_planner
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json
from whaleid.utils.progress import FollowedBars, follow_bars

HERE = Path(__file__).resolve().parent


def main() -> int:
    given = arguments()
    try:
        return run_bench(given)
    except WhaleidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the YAML's `quick` section; its tables stay in work/")
    parser.add_argument("--data", default="*", help="data sets, separated by commas")
    parser.add_argument("--methods", help="methods, separated by commas, * for any part of a name")
    parser.add_argument("--seeds", type=whole_numbers, help="seeds, separated by commas")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; 0: as many as the machine carries")
    parser.add_argument("--any-code", action="store_true", help="keep results that an older state of the code gave")
    parser.add_argument("--yaml", type=Path, default=HERE / "metric_learning.yaml")
    parser.add_argument("--work", type=Path, default=read_settings().work / "bench-metric")
    parser.add_argument("--out", type=Path, help="folder of the tables; default benchmarks/results")
    return parser.parse_args()


def whole_numbers(text: str) -> list[int]:
    """`0,1,2` as numbers; argparse tells its own line where it is none."""
    return [int(part) for part in text.split(",")]


def run_bench(given: argparse.Namespace) -> int:
    bench = load_bench(given.yaml, given.quick, torch.cuda.is_available())
    methods = bench.quick.methods if given.quick else ["*"]
    methods = chosen(given.methods.split(",") if given.methods else methods, list(bench.all_methods()), "method")
    seeds = given.seeds or bench.seeds
    wanted = chosen(given.data.split(","), list(bench.data), "data set")
    check_settings(bench)
    work: Path = given.work.resolve()
    data = open_data(bench, work)
    if not set(wanted) & set(data):
        raise WhaleidError("no data set of the bench is here; `make sample` makes one")
    check_heads(bench, data, methods)
    code = code_digest()
    every = list_jobs(bench, data, list(bench.all_methods()), sorted({*bench.seeds, *seeds}), work, code)
    results = finished(every, code, given.any_code)
    asked = [job for job in every if job.data.name in wanted and (job.method == BEFORE or job.seed in seeds)]
    asked = [job for job in asked if job.method in (BEFORE, *methods)]
    waiting = [job for job in asked if place(job) not in results]
    print(f"{len(waiting)} runs to do; {len(asked) - len(waiting)} of this bench were done before")
    out = given.out or (work / "quick" if given.quick else HERE / "results")
    try:
        failed = do(waiting, results, given.jobs, work)
    finally:  # what was done before the bench was stopped is a table too
        tell(bench, data, results, out)
    print(f"written to {out}" + (f"; {failed} runs failed" if failed else ""))
    return 1 if failed else 0


def tell(bench: Bench, data: dict[str, Parted], results: Results, out: Path) -> None:
    """Write and print what is done so far."""
    facts = {name: item.facts() for name, item in data.items() if any(key[0] == name for key in results)}
    if facts:
        print(write_reports(bench, results, facts, machine(), out))
        draw_distances(bench, results, out / "metric_distances.png")


# ------------------------------------------------------------------------------------------------- what to do


def check_settings(bench: Bench) -> None:
    """Refuse a method whose settings do not hold before anything is done."""
    for data in bench.data:
        for method in bench.all_methods():
            make_experiment(bench, data, method, 0)


def open_data(bench: Bench, work: Path) -> dict[str, Parted]:
    """The data sets that are here, with their images cached and the backbone's weights fetched."""
    opened = {}
    for name, data in bench.data.items():
        experiment = make_experiment(bench, name, bench.baseline, 0)
        ensure_weights(experiment.model.backbone, experiment.model.weights, read_settings().weights)
        parted = part_data(name, data, experiment, work)
        if parted is not None:
            opened[name] = parted
    return opened


def check_heads(bench: Bench, data: dict[str, Parted], methods: list[str]) -> None:
    """Refuse a method whose head cannot be built (a wrong miner, too few epochs) before anything is trained."""
    for name, parted in data.items():
        sizes = parted.train_sizes
        labels = np.repeat(np.arange(len(sizes)), sizes)
        items = TrainingItems(
            np.arange(len(labels)), np.zeros(len(labels), dtype=bool), labels, [str(c) for c in range(len(sizes))]
        )
        for method in methods:
            experiment = make_experiment(bench, name, method, 0)
            try:
                build_head(experiment.head, experiment.model.embedding, sizes)
            except WhaleidError as error:
                raise WhaleidError(f"method {method} on {name}: {error}") from error
            make_planner(experiment, items, None, f"method {method} on {name}").lengths()


def list_jobs(
    bench: Bench, data: dict[str, Parted], methods: list[str], seeds: list[int], work: Path, code: str
) -> list[Job]:
    """All runs in the order in which they are done: the untrained backbone, then seed by seed."""
    before = [
        Job(BEFORE, 0, make_experiment(bench, name, bench.baseline, 0), parted, work, code)
        for name, parted in data.items()
    ]
    return before + [
        Job(method, seed, make_experiment(bench, name, method, seed), parted, work, code)
        for seed in seeds
        for name, parted in data.items()
        for method in methods
    ]


def place(job: Job) -> tuple[str, str, int]:
    """Where the job's result stands in the tables."""
    return job.data.name, job.method, job.seed


def finished(jobs: list[Job], code: str, any_code: bool) -> Results:
    """Results of earlier benches with the same settings and data, and the same code unless `any_code`."""
    results: Results = {}
    for job in jobs:
        try:
            result = json.loads(job.result.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if any_code or result["code"] == code:
            results[place(job)] = result
    return results


# ------------------------------------------------------------------------------------------------------ doing


def do(waiting: list[Job], results: Results, at_once: int, work: Path) -> int:
    """Do the runs, write each one's result as it ends, add it to `results`; returns how many failed."""
    if not waiting:
        return 0
    at_once = at_once or sensible()
    threads = share_of_cores(at_once)  # however few runs are left: sums in another order give other figures
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by each process as it starts
    at_once = min(at_once, len(waiting))
    work.mkdir(parents=True, exist_ok=True)
    whole = work / "bench-metric.progress"
    write_json(whole, {"title": "runs", "done": 0, "total": len(waiting), "note": ""})
    total, began, ended, failed = sum(job.weight for job in waiting), time.monotonic(), [], 0
    with follow_bars() as bars:
        for outcomes in measure_all(waiting, at_once, work):
            for job, outcome in outcomes:
                ended.append(job)
                left = time_left(began, sum(item.weight for item in ended) / total)
                write_json(whole, {"title": "runs", "done": len(ended), "total": len(waiting), "note": left})
                if isinstance(outcome, WhaleidError):
                    failed += 1
                    bars.print(f"failed: {job.title}: {outcome}")
                    continue
                write_json(job.result, outcome)
                results[place(job)] = outcome
                say(bars, f"[{len(ended)}/{len(waiting)}] {job.title}", outcome, left)
            bars.show([path for path in (whole, *progress_files(work, at_once)) if path.is_file()])
    return failed


def say(bars: FollowedBars, title: str, outcome: dict[str, Any], left: str) -> None:
    figures = outcome["figures"]
    seconds = f" in {outcome['train_seconds']:.0f} s" if "train_seconds" in outcome else ""
    first = 100 * next(iter(figures["recall"].values()))
    bars.print(f"{title}: R@1 {first:.1f}, MAP@R {100 * figures['map_at_r']:.1f}{seconds}; {left}")


def time_left(began: float, done: float) -> str:
    """From the share of the work that is done; runs under way are not counted."""
    return f"about {(time.monotonic() - began) * (1 - done) / done / 60:.0f} min left"


if __name__ == "__main__":
    sys.exit(main())
