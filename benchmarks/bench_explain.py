"""Deletion scores of explanations against that of a network of random weights, over many pairs, with paired intervals.

    .venv/bin/python benchmarks/bench_explain.py [--pairs 100] [--competition sample] [--recipe sample] [--work work]

Each pair is a query of the first fold and the gallery image of its identity that is nearest by the run that was trained
without that fold. A deletion score is the mean similarity while the parts that a map marks most are deleted first: the
lower it is, the more of what the network uses the map marks. Trains the run where it is not there. Also timed: what
`whaleid explain` does for a query and two candidates, the pictures written, without the start of the program. Figures
of other competitions stay in the results.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from whaleid.auto.opening import open_project
from whaleid.config.settings import read_settings
from whaleid.ensemble.intervals import Gain, paired_gain
from whaleid.ensemble.protocol import FoldPart, read_protocol
from whaleid.features.files import read_features
from whaleid.models.explanations import SHARES
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import Only, run
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.report.explain import CONTROL, explain, load_networks, network_pixels, write_explanations
from whaleid.utils.files import read_json, write_json
from whaleid.utils.progress import progress_bar

REPEATS = 5
"""Of which a time is the median."""


def nearest_pairs(embeddings: np.ndarray, part: FoldPart, count: int) -> np.ndarray:
    """Rows of images.parquet of `count` known queries, evenly spread, and of their nearest true gallery images.

    embeddings: (n, d), unit rows, of all images. Returns int64 (count or fewer, 2).
    """
    known = np.flatnonzero(part.truth >= 0)
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int))]
    pairs = []
    for query in chosen:
        same = part.gallery[part.gallery_codes == part.truth[query]]
        cosines = embeddings[same] @ embeddings[part.rows[query]]
        pairs.append((part.rows[query], same[np.argmax(cosines)]))
    return np.array(pairs)


def deletion_scores(project: Project, count: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Similarity of each pair, float (n,), deletion scores (n,) of each map, and the pairs, int (n, 2)."""
    experiment, fold = project.experiments[0], project.folds[0]
    run(project, "features", only=Only(experiment=experiment.name, fold=fold))
    images = read_images(project.workspace)
    part = read_protocol(images, read_folds(project.workspace), project.competition, [fold]).parts[0]
    features = read_features(project.features_folder(experiment, fold), images, logits=False)
    networks = load_networks(project.run_folder(experiment, fold))
    pairs = nearest_pairs(features.embeddings, part, count)
    cosines: list[float] = []
    scores: dict[str, list[float]] = {}
    with progress_bar("explain", len(pairs)) as bar:
        for pair in pairs.tolist():
            found = explain(networks, network_pixels(project, images.iloc[pair], networks.run))
            cosines.append(found.cosine)
            for name, score in found.deletion.items():
                scores.setdefault(name, []).append(score)
            bar.advance()
    return np.array(cosines), {name: np.array(values) for name, values in scores.items()}, pairs


def seconds_of_two(project: Project, query: int, candidates: list[int]) -> dict[str, float]:
    """Seconds on the clock and of the processor to explain a query with two candidates; rows of images.parquet.

    Part of them is reading the networks. A pass is one image's through the network, ten together. `load`: programs that
    wanted a core; where they are more than the cores, the time on the clock is theirs.
    """
    names = read_images(project.workspace)["image"]
    run_folder = project.run_folder(project.experiments[0], project.folds[0])
    networks = load_networks(run_folder)
    embedder, (width, height) = networks.run.embedder, networks.run.size
    pixels = torch.zeros(10, height, width, 3, dtype=torch.uint8)
    with TemporaryDirectory() as folder:
        paths = {names[candidate]: Path(folder, f"{candidate}.png") for candidate in candidates}
        whole = _seconds(lambda: list(write_explanations(project, names[query], paths)))
        reading = _seconds(lambda: load_networks(run_folder))
    with torch.inference_mode():
        ten = _seconds(lambda: embedder.embed(pixels))
    times = {"clock": whole[0], "clock of reading": reading[0], "processor": whole[1]}
    times |= {"processor of reading": reading[1], "processor of a pass": ten[1] / 10}
    return times | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Median seconds on the clock and of the processor, after one call that is not counted."""
    work()
    found = []
    for _ in range(REPEATS):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - clock, time.process_time() - processor))
    return tuple(np.median(found, axis=0).tolist())


def over_control(scores: dict[str, np.ndarray]) -> dict[str, Gain]:
    """Difference of each map's mean deletion score from the control's, with its paired 95 % interval."""
    weights = np.ones(len(scores[CONTROL]))
    maps = [name for name in scores if name != CONTROL]
    return {name: paired_gain(scores[name] - scores[CONTROL], weights, seed=0) for name in maps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--competition", default="sample")
    parser.add_argument("--recipe")
    parser.add_argument("--work", type=Path, default=read_settings().work)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explain.json"))
    given = parser.parse_args()
    project = open_project(given.competition, given.recipe, given.work, settings=read_settings())
    cosines, scores, pairs = deletion_scores(project, given.pairs)
    gains = over_control(scores)
    seconds = seconds_of_two(project, pairs[0, 0], [pairs[0, 1], pairs[-1, 1]])

    print(f"{len(cosines)} pairs of one identity, mean similarity {cosines.mean():.4f}")
    print(f"{'map':28}{'deletion score':>15}  less the control's [95 %]")
    for name, values in scores.items():
        gain = gains.get(name)
        print(f"{name:28}{values.mean():15.4f}  {'' if gain is None else gain}")
    passes = (seconds["processor"] - seconds["processor of reading"]) / seconds["processor of a pass"]
    print(
        f"a query and two candidates: {seconds['clock']:.2f} s, {seconds['processor']:.2f} s of processor time, of "
        f"which reading the networks takes {seconds['processor of reading']:.2f} s and the rest as long as "
        f"{passes:.0f} images through the network"
    )
    figures: dict[str, dict[str, Any]] = {name: {"deletion": float(values.mean())} for name, values in scores.items()}
    for name, gain in gains.items():
        figures[name]["less_control"] = asdict(gain)
        figures[name]["below_control"] = float((scores[name] < scores[CONTROL]).mean())
    head = {"run": f"{project.experiments[0].name}, fold {project.folds[0]}"}
    head |= {"deleted": list(SHARES), "pairs": len(cosines), "similarity": float(cosines.mean()), "seconds": seconds}
    rows = read_json(given.out) if given.out.is_file() else {}
    write_json(given.out, rows | {project.competition.name: head | {"maps": figures, "machine": platform.machine()}})


if __name__ == "__main__":
    main()
