"""Local matching by size of the gallery: votes, learned match score, matching of pairs; processor time and memory.

    .venv/bin/python benchmarks/bench_local.py [--images 500 1000 2000] [--out benchmarks/results/local.json]

Images are synthetic: each identity has its own marks; an image shows some of them with noise, near their position,
among keypoints of a background that all images share. A quarter of the images are queries, the others the gallery. Each
size runs in a process of its own. The search is compared with one faiss search of the same index, the matching of pairs
with the products of their descriptors alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measuring import cpu_seconds, in_own_process, peak_gib
from threadpoolctl import threadpool_limits

from whaleid.config import LearnedConfig, LocalConfig, PairsConfig
from whaleid.local_matching.keypoints import Described
from whaleid.local_matching.match_score import fit_match_scorer, match_score_candidates, training_matches_of
from whaleid.local_matching.pair_score import (
    MatchParts,
    PairMatches,
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
from whaleid.local_matching.votes import EXACT, build_index, local_candidates, nearest_descriptors
from whaleid.utils.files import write_json

PICTURES = 6  # of an identity
MARKS, SHOWN = 150, 30  # of an identity, and of those in one picture
SIZE = 256  # pixels of a picture's side
KEEP = 50


def world(images: int, keypoints: int) -> tuple[Described, np.ndarray]:
    """Descriptors of all pictures, and the identity of each, int64 (images,)."""
    rng = np.random.default_rng(0)
    identity = np.arange(images) // PICTURES
    background = rng.gamma(0.6, size=(20_000, LENGTH))
    vectors, points = [], []
    for who in range(int(identity[-1]) + 1):
        marks, at = rng.gamma(0.6, size=(MARKS, LENGTH)), rng.uniform(0, SIZE, (MARKS, 2))
        size, turn = rng.uniform(2, 12, MARKS), rng.uniform(0, 360, MARKS)
        for _ in range(int((identity == who).sum())):
            shown = rng.permutation(MARKS)[:SHOWN]
            ground = background[rng.integers(0, len(background), keypoints - SHOWN)]
            seen = np.concatenate([marks[shown], ground])
            seen = seen * rng.gamma(1.0, size=seen.shape)
            place = np.concatenate([at[shown] + rng.normal(0, 8, (SHOWN, 2)), rng.uniform(0, SIZE, (len(ground), 2))])
            scale = np.concatenate([size[shown] * rng.uniform(0.9, 1.1, SHOWN), rng.uniform(2, 12, len(ground))])
            turned = np.concatenate([turn[shown] + rng.normal(0, 8, SHOWN), rng.uniform(0, 360, len(ground))])
            order = rng.permutation(keypoints)
            vectors.append(rooted(seen)[order])
            points.append(np.column_stack([place, scale, turned % 360])[order].astype(np.float32))
    offsets = np.arange(images + 1, dtype=np.int64) * keypoints
    return Described(np.concatenate(vectors), offsets, np.concatenate(points)), identity


def bare_search(described: Described, queries: np.ndarray, gallery: np.ndarray, neighbours: int) -> float:
    """Processor seconds of building the index and of one call of faiss for all descriptors."""
    asked, _ = described.take(queries)
    return cpu_seconds(lambda: build_index(described, gallery).search(asked, neighbours))[1]


def bare_products(described: Described, queries: np.ndarray, pictures: np.ndarray) -> float:
    """Processor seconds of the products of every query's descriptors with those of its pictures, and nothing else."""

    def products() -> None:
        for query, row in zip(queries, pictures, strict=True):
            own = described.image(int(query))[0]
            for picture in row[row >= 0]:
                own @ described.image(int(picture))[0].T

    return cpu_seconds(products)[1]


def pair_scores(matched: PairMatches, truth: np.ndarray, codes: np.ndarray, config: PairsConfig) -> np.ndarray:
    """Scores of pairs by models that are fitted on them."""
    tables = pair_training_matches(matched, truth, codes, 2, config)
    parts = MatchParts(2, tuple(fit_match_scorer([table], config) for table in tables))
    values = pair_values(matched, parts.log_ratios(matched, 0), np.ones(2, bool))
    model = fit_pair_scorer([(values, same_identity(matched, truth, codes))])
    assert model is not None
    return model.log_ratio(values)


def first_right(codes: np.ndarray, truth: np.ndarray) -> float:
    return float((codes[:, 0] == truth).mean())


def measure(images: int, keypoints: int, threads: int) -> dict[str, Any]:
    """One size."""
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, "blas")
    described, identity = world(images, keypoints)
    rng = np.random.default_rng(1)
    asks = np.zeros(images, dtype=bool)
    asks[rng.permutation(images)[: images // 4]] = True
    queries, gallery = np.flatnonzero(asks), np.flatnonzero(~asks)
    truth, classes = identity[queries], int(identity[-1]) + 1
    codes = np.where(asks, -1, identity)
    frames = np.full((images, 2), float(SIZE))
    local, learned, pairs = LocalConfig(), LearnedConfig(), PairsConfig()
    start, memory = time.perf_counter(), peak_gib()

    bare = bare_search(described, queries, gallery, learned.neighbours)
    nearest, search, _ = cpu_seconds(lambda: nearest_descriptors(described, queries, gallery, learned.neighbours))
    (voted, _), votes, _ = cpu_seconds(
        lambda: local_candidates(described, queries, gallery, identity[gallery], local, KEEP, nearest)
    )
    given = described, frames, queries, truth, codes, nearest, learned
    model, teaching, _ = cpu_seconds(lambda: fit_match_scorer([training_matches_of(*given)], learned))
    given = described, frames, queries, codes, classes, nearest, [model], learned, KEEP
    weighed, weighing, _ = cpu_seconds(lambda: match_score_candidates(*given)[0]["supported"])
    given = described, frames, queries, codes, classes, nearest, learned, pairs.images
    pictures, choosing, _ = cpu_seconds(lambda: likely_images(*given))
    matched, matching, _ = cpu_seconds(lambda: match_pairs(described, frames, queries, pictures, pairs))
    products = bare_products(described, queries, pictures)
    score, paired_teaching, _ = cpu_seconds(lambda: pair_scores(matched, truth, codes, pairs))
    shape = len(queries), classes
    paired, ranking, _ = cpu_seconds(
        lambda: score_candidates(identity_scores(matched, score, codes, shape, pairs.rest), KEEP)
    )
    return {
        "images": images,
        "queries": len(queries),
        "gallery_descriptors": int(described.counts(gallery).sum()),
        "exact": int(described.counts(gallery).sum()) <= EXACT,
        "bare_search_cpu_s": bare,
        "search_cpu_s": search,
        "votes_cpu_s": votes,
        "learned_cpu_s": teaching + weighing,
        "pairs_cpu_s": choosing + matching + paired_teaching + ranking,
        "pairs_matching_cpu_s": matching,
        "bare_products_cpu_s": products,
        "pairs_matching_ms_a_picture": 1000 * matching / max(1, int((pictures >= 0).sum())),
        "wall_s": time.perf_counter() - start,
        "memory_mib": 1024 * (peak_gib() - memory),
        "top1": {"votes": first_right(voted, truth), "learned": first_right(weighed[0], truth)}
        | {"pairs": first_right(paired[0], truth)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--keypoints", type=int, default=LocalConfig().keypoints)
    parser.add_argument("--threads", type=int, default=1, help="of faiss and numpy")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local.json"))
    given = parser.parse_args()
    figures = []
    for images in given.images:
        figures.append(in_own_process(measure, images, given.keypoints, given.threads))
        print(figures[-1])
    write_json(given.out, {"keypoints": given.keypoints, "threads": given.threads, "sizes": figures})


if __name__ == "__main__":
    main()
