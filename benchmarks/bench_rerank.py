"""Re-ranking: k-reciprocal at full size with its peak memory, diffusion against bare scipy.

    .venv/bin/python benchmarks/bench_rerank.py [--images 20000] [--dim 2048] [--out benchmarks/results/rerank.json]

Each part runs in a process of its own, so that its peak memory is its own. A peak above 4 GiB for k-reciprocal is an
error. Times are processor times on one thread. k-reciprocal is compared with one faiss call for the same neighbours of
the same images, which every re-ranking needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from measuring import in_own_process, peak_gib

from whaleid.config import KnnConfig
from whaleid.retrieval.graph import find_neighbours, neighbour_graph, normalised
from whaleid.retrieval.identities import best_columns, identity_candidates
from whaleid.retrieval.rerankers.diffusion import diffuse, from_rows
from whaleid.retrieval.rerankers.label_diffusion import spread_labels
from whaleid.retrieval.rerankers.reciprocal import jaccard, reciprocal_codes, reciprocal_scores
from whaleid.utils.files import write_json

NEIGHBOURS, KEEP, BLOCK = 20, 50, 128
LIMIT = 4096  # MiB for k-reciprocal


def world(images: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows float32 (n, d), eight images an identity, and codes int64 (n,)."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, max(1, images // 8), images)
    table = rng.standard_normal((codes.max() + 1, dim), dtype=np.float32)[codes]
    for start in range(0, images, 1024):
        part = table[start : start + 1024]
        part += rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return table, codes


def clock(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def reciprocal_part(images: int, dim: int) -> dict[str, float]:
    """A quarter of the images are queries. Bare: one call of faiss over the same pairs of images."""
    table, codes = world(images, dim)
    queries = images // 4
    bare_s = clock(lambda: faiss.knn(table, table, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT))
    times = [time.process_time()]
    nearest = find_neighbours(table, NEIGHBOURS)
    times.append(time.process_time())
    sparse = reciprocal_codes(table, nearest, NEIGHBOURS, 6)
    times.append(time.process_time())
    lists, gallery = sparse[queries:].tocsc(), table[queries:]
    for first in range(0, queries, BLOCK):
        part = slice(first, min(first + BLOCK, queries))
        scores = reciprocal_scores(jaccard(sparse[part], lists), table[part] @ gallery.T, 0.3)
        best, rows = best_columns(scores, KnnConfig().neighbours)
        identity_candidates(best, rows, codes[queries:], KEEP)
    times.append(time.process_time())
    steps = dict(zip(("neighbours_s", "codes_s", "scores_s"), np.diff(times).tolist(), strict=True))
    whole = times[-1] - times[0]
    return {"bare_s": bare_s, **steps, "whaleid_s": whole, "ratio": whole / bare_s}


def diffusion_part(images: int, dim: int) -> dict[str, float]:
    """A quarter of the images are queries. Bare: the same number of products of the graph with as many columns."""
    table, codes = world(images, dim)
    smooth = normalised(neighbour_graph(find_neighbours(table, NEIGHBOURS)))
    queries = np.arange(images // 4)
    labelled = np.arange(len(queries), images)
    label_s = clock(lambda: spread_labels(smooth, labelled, codes[labelled], queries, [4], 0.8, KEEP))
    names = len(np.unique(codes[labelled]))
    column = np.ones((images, 256), dtype=np.float32)
    bare_labels_s = 4 * names / 256 * clock(lambda: smooth @ column)
    sources = from_rows(images, queries[:256])
    image_s = clock(lambda: diffuse(smooth, sources, 0.9))
    ratio = label_s / bare_labels_s
    return {"labels_s": label_s, "bare_labels_s": bare_labels_s, "ratio": ratio, "diffuse_256_s": image_s}


PARTS = {"reciprocal": reciprocal_part, "diffusion": diffusion_part}


def measure(part: str, images: int, dim: int) -> dict[str, float]:
    """Times of one part on one thread, and the peak memory of this process."""
    faiss.omp_set_num_threads(1)
    return PARTS[part](images, dim) | {"peak_mib": 1024 * peak_gib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rerank.json"))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started from here
    figures: dict[str, object] = {"images": given.images, "dim": given.dim, "clock": "processor time", "threads": 1}
    for part in PARTS:
        found = in_own_process(measure, part, given.images, given.dim)
        figures[part] = found
        print(f"{part}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        if part == "reciprocal" and found["peak_mib"] > LIMIT:
            sys.exit(f"k-reciprocal: peak above {LIMIT} MiB")
    write_json(given.out, figures | {"limit_mib": LIMIT, "cpus": os.cpu_count(), "load": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
