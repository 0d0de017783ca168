"""Indexes by size of the gallery: time to build, to search, and recall against exact search.

    .venv/bin/python benchmarks/bench_index.py [--sizes 10000 100000 1000000] [--out benchmarks/results/index.json]

Ratios compare with exact search of the same run; the seconds alone mean little elsewhere.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import faiss
import numpy as np

from whaleid.config import IndexConfig
from whaleid.retrieval.approximate import index_kind, open_index, recall_of
from whaleid.retrieval.index import search
from whaleid.workspace import write_json

NEIGHBOURS = 10


def world(images: int, queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Gallery and queries, unit rows float32, ten images about each centre."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(1, images // 10), dim), dtype=np.float32)
    codes = rng.integers(0, len(centers), images + queries)
    table = centers[codes] + rng.standard_normal((images + queries, dim), dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table[queries:], table[:queries]


def row(kind: str, gallery: np.ndarray, queries: np.ndarray, exact_s: float) -> dict[str, object]:
    start = time.perf_counter()
    opened = open_index(gallery, IndexConfig(kind=kind))
    build_s = time.perf_counter() - start
    start = time.perf_counter()
    opened.search(queries, NEIGHBOURS)
    search_s = time.perf_counter() - start
    recall = recall_of(opened, queries[:500], gallery, NEIGHBOURS)
    print(
        f"{len(gallery):>9,}  {opened.kind:<16}{build_s:9.2f}{search_s:9.3f}{search_s / exact_s:8.3f}"
        f"{recall.recall:9.4f}"
    )
    return {
        "images": len(gallery),
        "kind": opened.kind,
        "build_s": build_s,
        "search_s": search_s,
        "ratio": search_s / exact_s,
        "recall": recall.recall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--hnsw-most", type=int, default=100_000, help="one thread builds HNSW: larger takes minutes")
    parser.add_argument("--without", default="", help="leave out kinds that hold this word, as PQ: slow to train")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.json"))
    given = parser.parse_args()

    rows = []
    print(f"{'gallery':>9}  {'index':<16}{'build s':>9}{'search s':>9}{'ratio':>8}{f'recall@{NEIGHBOURS}':>10}")
    for size in given.sizes:
        gallery, queries = world(size, given.queries, given.dim)
        start = time.perf_counter()
        search(queries, gallery, NEIGHBOURS)
        exact_s = time.perf_counter() - start
        cells = 2 ** round(np.log2(4 * np.sqrt(size)))
        kinds = ["exact", f"IVF{cells},Flat", f"IVF{cells},PQ{given.dim // 4}"]
        kinds += ["HNSW32"] if size <= given.hnsw_most else []
        kinds += [] if index_kind("auto", size, given.dim) in kinds else ["auto"]
        kinds = [kind for kind in kinds if not given.without or given.without not in kind]
        rows += [row(kind, gallery, queries, exact_s) for kind in kinds]
    figures = {"dim": given.dim, "queries": given.queries, "neighbours": NEIGHBOURS, "rows": rows}
    figures |= {"cpus": os.cpu_count(), "threads": faiss.omp_get_max_threads(), "load": os.getloadavg()[0]}
    write_json(given.out, figures | {"faiss": faiss.__version__})


if __name__ == "__main__":
    main()
