"""Approximate indexes by size of the gallery: time to build and to search, recall, and when they pay.

    .venv/bin/python benchmarks/bench_index.py [--sizes 10000 100000 1000000] [--out benchmarks/results/index.json]

Times are processor times on one thread; ratios compare with exact search in the same run. Building an index costs as
much as some thousand exact queries: `pays` is the number of queries from which building and searching together is
cheaper. HNSW takes five minutes to build for a million images: `--hnsw-most` limits its size. Each row is written at
once, so that an interrupted run keeps its rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import faiss
import numpy as np

from whaleid.retrieval.approximate import index_kind, open_index
from whaleid.retrieval.index import search
from whaleid.utils.files import write_json

NEIGHBOURS = 10
NOISE = 0.9  # times of exact search that differ less are equal


def world(images: int, queries: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Gallery and queries, unit rows float32, ten images about each centre."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(1, images // 10), dim), dtype=np.float32)
    codes = rng.integers(0, len(centers), images + queries)
    table = centers[codes] + rng.standard_normal((images + queries, dim), dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table[queries:], table[:queries]


def row(kind: str, gallery: np.ndarray, queries: np.ndarray, true: np.ndarray, exact_s: float) -> dict[str, object]:
    """One line. true: int64 (q, m), the nearest of each query. exact_s: seconds of exact search for all queries."""
    start = time.process_time()
    opened = open_index(gallery, kind)
    build_s = time.process_time() - start
    start = time.process_time()
    _, found = opened.search(queries, NEIGHBOURS)
    search_s = time.process_time() - start
    recall = float(np.mean([np.isin(one, other).mean() for one, other in zip(true, found, strict=True)]))
    saved = (exact_s - search_s) / len(queries)
    pays = None if search_s > NOISE * exact_s else int(np.ceil(build_s / saved))
    shown = "" if opened.exact else "never" if pays is None else f"{pays:,}"
    print(
        f"{len(gallery):>9,}  {opened.kind:<16}{build_s:9.2f}{search_s:9.3f}{search_s / exact_s:8.3f}"
        f"{recall:10.4f}{shown:>10}",
        flush=True,
    )
    figures = {"build_s": build_s, "search_s": search_s, "ratio": search_s / exact_s, "recall": recall, "pays": pays}
    return {"images": len(gallery), "kind": opened.kind, **figures}


def kinds_of(size: int, dim: int, hnsw_most: int) -> list[str]:
    """Cells near the root of the gallery's size and four times that (faiss's advice), codes in the latter, a graph."""
    few, many = (2 ** round(np.log2(factor * np.sqrt(size))) for factor in (1, 4))
    kinds = ["exact", "Flat", f"IVF{few},Flat", f"IVF{many},Flat", f"IVF{few},PQ{dim // 4}"]
    kinds += ["HNSW32"] if size <= hnsw_most else []
    return kinds if index_kind("auto", size, dim) in kinds else [*kinds, "auto"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--hnsw-most", type=int, default=100_000, help="largest gallery that HNSW is built of")
    parser.add_argument("--without", default="", help="leave out kinds that hold this word, as PQ: slow to train")
    parser.add_argument("--only", default="", help="only kinds that hold this word, and exact")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.json"))
    given = parser.parse_args()

    faiss.omp_set_num_threads(1)
    figures: dict[str, object] = {"dim": given.dim, "queries": given.queries, "neighbours": NEIGHBOURS}
    figures |= {"clock": "processor time", "threads": 1, "cpus": os.cpu_count(), "faiss": faiss.__version__}
    rows = []
    head = f"{'build s':>9}{'search s':>9}{'ratio':>8}{f'recall@{NEIGHBOURS}':>10}{'pays':>10}"
    print(f"{'gallery':>9}  {'index':<16}{head}", flush=True)
    for size in given.sizes:
        gallery, queries = world(size, given.queries, given.dim)
        start = time.process_time()
        _, true = search(queries, gallery, NEIGHBOURS)
        exact_s = time.process_time() - start
        for kind in kinds_of(size, given.dim, given.hnsw_most):
            if (given.without and given.without in kind) or (given.only not in kind and kind != "exact"):
                continue
            rows.append(row(kind, gallery, queries, true, exact_s))
            write_json(given.out, figures | {"rows": rows, "load": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
