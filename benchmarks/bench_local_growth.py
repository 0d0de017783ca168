"""Local matching of many pictures: time of each part, memory, and what the compressed search misses.

    .venv/bin/python benchmarks/bench_local_growth.py [--sizes 100x30 200x60] [--keypoints 1000] [--threads 2]
                                                      [--out benchmarks/results/local_growth.json]

A size is GALLERYxQUERIES in pictures; 25000x8000 takes 5 GB of --folder. Pictures are drawn: each identity has marks of
its own, which a picture shows with noise in an arrangement that holds for the identity, among keypoints of a ground
that all share. Descriptors lie on disk, as the keypoint stage leaves them. Each size runs in a process of its own; the
cost model's estimate stands beside what was measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measuring import cpu_seconds, in_own_process, peak_gib
from threadpoolctl import threadpool_limits

from whaleid.config import LearnedConfig, LocalConfig, PairsConfig
from whaleid.local_matching.cost import local_cost, this_core
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import (
    MatchScorer,
    fit_match_scorer,
    match_score_candidates,
    training_matches_of,
)
from whaleid.local_matching.pair_score import (
    MatchParts,
    fit_pair_scorer,
    identity_scores,
    likely_images,
    match_pairs,
    pair_training_matches,
    pair_values,
    same_identity,
    score_candidates,
)
from whaleid.local_matching.rootsift import LENGTH, rooted
from whaleid.local_matching.votes import build_index, local_candidates, nearest_descriptors
from whaleid.utils.files import write_json

PICTURES = 5  # of an identity
MARKS, SHOWN = 60, 20  # of an identity, and of those in one picture
GROUND = 20_000  # kinds of keypoint that all pictures share
NOISE = 0.35  # of a mark, as a share of it
SIZE = 256  # pixels of a picture's side
KEEP = 50
TRAINED = 400  # queries that scores are fitted on, at most, and half of them
BATCH = 1000  # queries whose pairs are in memory at a time
CHECKED = 500  # descriptors searched exactly, to see what is missed


def scattered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Keypoints anywhere in a picture: x, y, size, direction, float64 (count, 4)."""
    return rng.uniform((0, 0, 2, 0), (SIZE, SIZE, 12, 360), (count, 4))


def draw(pictures: int, keypoints: int, folder: Path) -> tuple[Described, np.ndarray]:
    """Descriptors of all pictures in files, and the identity of each, int64 (pictures,)."""
    rng = np.random.default_rng(0)
    identity = rng.permutation(pictures) // PICTURES
    ground = rng.gamma(0.6, size=(GROUND, LENGTH)).astype(np.float32)
    total = pictures * keypoints
    vectors = np.lib.format.open_memmap(folder / "descriptors.npy", "w+", np.uint8, (total, LENGTH))
    points = np.lib.format.open_memmap(folder / "points.npy", "w+", np.float32, (total, 4))
    for picture, who in enumerate(identity):
        own = np.random.default_rng([1, who])
        marks = own.gamma(0.6, size=(MARKS, LENGTH)).astype(np.float32)
        places = scattered(own, MARKS)
        shown = rng.permutation(MARKS)[:SHOWN]
        seen = np.concatenate([marks[shown], ground[rng.integers(0, GROUND, keypoints - SHOWN)]])
        spread = np.where(np.arange(keypoints) < SHOWN, NOISE, 1.0)[:, None]
        seen *= 1 + spread * (rng.standard_exponential(seen.shape, dtype=np.float32) - 1)
        at = scattered(rng, keypoints)
        at[:SHOWN] = places[shown] + rng.normal(0, (4, 4, 0, 6), (SHOWN, 4))
        at[:, 3] %= 360
        order, rows = rng.permutation(keypoints), slice(picture * keypoints, (picture + 1) * keypoints)
        vectors[rows], points[rows] = rooted(seen)[order], at[order]
    stored = [np.load(folder / name, mmap_mode="r") for name in ("descriptors.npy", "points.npy")]
    return Described(stored[0], np.arange(pictures + 1, dtype=np.int64) * keypoints, stored[1]), identity


def missed(described: Described, queries: np.ndarray, gallery: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Share of the nearest, and of the 12 nearest, that the search found; by an exact search of few descriptors."""
    drawn = np.sort(np.random.default_rng(2).choice(len(found), min(CHECKED, len(found)), replace=False))
    asked = described.vectors[described.places(queries)[drawn]].astype(np.float32)
    best = np.full((len(drawn), found.shape[1]), np.inf, np.float32)
    rows = np.full(best.shape, -1)
    for start in range(0, len(gallery), 100):
        places = described.places(gallery[start : start + 100])
        distance = faiss.pairwise_distances(asked, described.vectors[places].astype(np.float32))
        best = np.concatenate([best, distance], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(places, distance.shape)], axis=1)
        kept = np.argpartition(best, found.shape[1], axis=1)[:, : found.shape[1]]
        best, rows = np.take_along_axis(best, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    first = rows[np.arange(len(rows)), best.argmin(axis=1)]
    together = [len(np.intersect1d(one, other)) for one, other in zip(found[drawn], rows, strict=True)]
    return {"nearest": float((found[drawn, 0] == first).mean()), "all": float(np.mean(together) / found.shape[1])}


def fit_pairs(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    truth: np.ndarray,
    codes: np.ndarray,
    images: np.ndarray,
    config: PairsConfig,
    threads: int,
) -> tuple[MatchParts, MatchScorer | None]:
    """Models of matches and of pairs. The second sees scores of what the first was fitted on, which takes as long."""
    matched = match_pairs(described, frames, queries, images[: len(queries)], config, threads)
    (table,) = pair_training_matches(matched, truth, codes, 1, config)
    parts = MatchParts(1, (fit_match_scorer([table], config),))
    values = pair_values(matched, parts.log_ratios(matched, None), np.ones(1, bool))
    return parts, fit_pair_scorer([(values, same_identity(matched, truth, codes))])


def rank_pairs(
    described: Described,
    frames: np.ndarray,
    queries: np.ndarray,
    images: np.ndarray,
    codes: np.ndarray,
    classes: int,
    models: tuple[MatchParts, MatchScorer | None],
    config: PairsConfig,
    threads: int,
) -> np.ndarray:
    """Identities by pairs, int64 (q, KEEP); some queries at a time."""
    parts, model = models
    assert model is not None
    found = np.empty((len(queries), KEEP), dtype=np.int64)
    for start in range(0, len(queries), BATCH):
        part = slice(start, start + BATCH)
        matched = match_pairs(described, frames, queries[part], images[part], config, threads)
        score = model.log_ratio(pair_values(matched, parts.log_ratios(matched, None), np.ones(1, bool)))
        shape = len(queries[part]), classes
        found[part], _ = score_candidates(identity_scores(matched, score, codes, shape, config.rest), KEEP)
    return found


def measure(gallery_size: int, query_count: int, keypoints: int, threads: int, folder: Path) -> dict[str, Any]:
    """One size."""
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, "blas")
    learned, pairs = LearnedConfig(), PairsConfig()
    config = LocalConfig(keypoints=keypoints, learned=learned)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (described, identity), drawing, _ = cpu_seconds(
            lambda: draw(gallery_size + query_count, keypoints, Path(place))
        )
        gallery, queries = np.arange(gallery_size), np.arange(gallery_size, gallery_size + query_count)
        codes = np.where(np.arange(len(identity)) < gallery_size, identity, -1)
        truth, classes = identity[queries], int(identity.max()) + 1
        frames = np.full((len(identity), 2), float(SIZE))
        parts: dict[str, tuple[float, float]] = {}

        def timed(name: str, work: Any) -> Any:
            result, cpu, wall = cpu_seconds(work)
            parts[name] = (round(cpu, 2), round(wall, 2))
            print(f"  {name}: {cpu:.1f} core-seconds, {wall:.1f} s", flush=True)
            return result

        timed("index", lambda: build_index(described, gallery))
        nearest = timed("search", lambda: nearest_descriptors(described, queries, gallery, learned.neighbours))
        voted, _ = timed(
            "votes", lambda: local_candidates(described, queries, gallery, identity[gallery], config, KEEP, nearest)
        )
        trained = min(TRAINED, query_count // 2)
        few = queries[:trained]
        of_few = nearest.of(slice(0, int(described.counts(few).sum())))
        given = described, frames, few, truth[:trained], codes, of_few, learned
        model = timed("fitting", lambda: fit_match_scorer([training_matches_of(*given)], learned))
        given = described, frames, queries, codes, classes, nearest
        scored = timed(
            "scores", lambda: match_score_candidates(*given, [model], learned, KEEP, threads)[0]["supported"][0]
        )
        images = timed("candidates", lambda: likely_images(*given, learned, pairs.images))
        models = timed("fitting pairs", lambda: fit_pairs(described, frames, few, truth, codes, images, pairs, threads))
        paired = timed(
            "pairs",
            lambda: rank_pairs(described, frames, queries, images, codes, classes, models, pairs, threads),
        )
        peak = peak_gib()  # without the exact search that checks
        found = missed(described, queries, gallery, nearest.places)
    scored_queries = np.isin(truth, identity[:gallery_size]) & (np.arange(query_count) >= trained)
    cost = local_cost(gallery_size, 0, query_count, 0, config, this_core())
    return {
        "gallery": gallery_size,
        "queries": query_count,
        "keypoints": keypoints,
        "threads": threads,
        "core_s": {name: cpu for name, (cpu, _) in parts.items()},
        "wall_s": {name: wall for name, (_, wall) in parts.items()},
        "total_core_s": round(sum(cpu for name, (cpu, _) in parts.items() if name != "index"), 1),
        "estimated_core_s": round(cost.total - cost.keypoints, 1),
        "drawing_core_s": round(drawing, 1),
        "peak_gib": round(peak, 2),
        "found": found,
        "top1": {
            name: round(float((lists[scored_queries, 0] == truth[scored_queries]).mean()), 3)
            for name, lists in (("votes", voted), ("learned", scored), ("pairs", paired))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["100x30", "200x60"], help="GALLERYxQUERIES, pictures")
    parser.add_argument("--keypoints", type=int, default=LocalConfig().keypoints)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the descriptors")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local_growth.json"))
    given = parser.parse_args()
    figures = []
    for size in given.sizes:
        gallery, queries = (int(number) for number in size.split("x"))
        print(f"{gallery:,} pictures, {queries:,} queries", flush=True)
        figures.append(in_own_process(measure, gallery, queries, given.keypoints, given.threads, given.folder))
        print(figures[-1], flush=True)
        write_json(given.out, {"sizes": figures})


if __name__ == "__main__":
    main()
