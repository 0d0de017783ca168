"""Exact search in chunks compared with one faiss call, and identities from neighbours with a Python loop.

    .venv/bin/python benchmarks/bench_search.py [--queries 8000] [--out benchmarks/results/search.json]

Ratios compare times of one run on one machine; seconds are not comparable between machines. Both sides of a ratio take
turns, so that other programs slow both.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import faiss
import numpy as np
from measuring import best_seconds

from whaleid.config import KnnConfig
from whaleid.retrieval.candidates import Candidates, read_candidates, write_candidates
from whaleid.retrieval.identities import identity_candidates, nearest_identities
from whaleid.retrieval.index import search
from whaleid.utils.files import write_json

KEEP = 50


def unit(rng: np.random.Generator, codes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Unit embeddings float32 (n, d) scattered about the centres of their identities."""
    table = centers[codes] + rng.standard_normal((len(codes), centers.shape[1]), dtype=np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def naive_identities(similarity: np.ndarray, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The first distinct identities of each query, one neighbour at a time: int64 (q, KEEP)."""
    found = np.full((len(rows), KEEP), -1)
    for query in range(len(rows)):
        seen: dict[int, float] = {}
        for value, row in zip(similarity[query], rows[query], strict=True):
            seen.setdefault(int(codes[row]), value)
        best = sorted(seen, key=lambda code: -seen[code])[:KEEP]
        found[query, : len(best)] = best
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--gallery", type=int, default=25_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--identities", type=int, default=5000)
    parser.add_argument("--neighbours", type=int, default=KnnConfig().neighbours)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    given = parser.parse_args()

    rng = np.random.default_rng(0)
    centers = rng.standard_normal((given.identities, given.dim), dtype=np.float32)
    codes = rng.integers(0, given.identities, given.gallery)
    gallery = unit(rng, codes, centers)
    queries = unit(rng, rng.integers(0, given.identities, given.queries), centers)
    bare = faiss.IndexFlatIP(given.dim)
    bare.add(gallery)  # not counted: the bare call starts with its index built

    bare_s, ours_s = best_seconds(
        lambda: bare.search(queries, given.neighbours),
        lambda: search(queries, gallery, given.neighbours),
        repeats=given.repeats,
    )
    similarity, rows = search(queries, gallery, given.neighbours)
    agreement = float((bare.search(queries, given.neighbours)[1] == rows).mean())
    assert agreement > 0.999, agreement  # the last bit of a sum may swap two neighbours

    knn = KnnConfig(neighbours=given.neighbours)
    loop_s, grouped_s, whole_s = best_seconds(
        lambda: naive_identities(similarity, rows, codes),
        lambda: identity_candidates(similarity, rows, codes, KEEP),
        lambda: nearest_identities(queries, gallery, codes, knn, KEEP),
        repeats=given.repeats,
    )
    found, scores = identity_candidates(similarity, rows, codes, KEEP)
    np.testing.assert_array_equal(found, naive_identities(similarity, rows, codes))
    write_s, read_s = table_times(found, scores, given.identities)

    size = f"{given.queries:,} x {given.gallery:,} x {given.dim}"
    print(f"{'':56}{'seconds':>9}{'ratio':>8}")
    print(f"{f'{size}, {given.neighbours} neighbours, bare faiss':56}{bare_s:9.2f}{1:8.2f}")
    print(f"{f'{size}, whaleid in chunks, checked':56}{ours_s:9.2f}{ours_s / bare_s:8.2f}")
    print(f"{f'{KEEP} identities from neighbours, plain loop':56}{loop_s:9.2f}{1:8.2f}")
    print(f"{'  the same by identity_candidates':56}{grouped_s:9.2f}{grouped_s / loop_s:8.3f}")
    print(f"{'embeddings to identities (nearest_identities)':56}{whole_s:9.2f}{whole_s / bare_s:8.2f}")
    print(f"{'table of 5 sources, written':56}{write_s:9.2f}")
    print(f"{'table of 5 sources, read':56}{read_s:9.2f}")
    figures = {name: getattr(given, name) for name in ("queries", "gallery", "dim", "identities", "neighbours")}
    figures |= {"bare_s": bare_s, "whaleid_s": ours_s, "ratio": ours_s / bare_s, "agreement": agreement}
    figures |= {"loop_s": loop_s, "grouped_s": grouped_s, "loop_ratio": loop_s / grouped_s}
    figures |= {"nearest_identities_s": whole_s, "table_sources": 5, "write_s": write_s, "read_s": read_s}
    figures |= {"cpus": os.cpu_count(), "threads": faiss.omp_get_max_threads(), "gpus": faiss.get_num_gpus()}
    write_json(given.out, figures | {"faiss": faiss.__version__, "machine": platform.machine()})


def table_times(codes: np.ndarray, scores: np.ndarray, identities: int) -> tuple[float, float]:
    """Seconds to write and to read the candidates of five sources as parquet."""
    names = np.array([f"{number:08x}.jpg" for number in range(len(codes))])
    classes = np.array([f"w_{code:07x}" for code in range(identities)])
    candidates = Candidates(names, classes, codes, scores)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidates.parquet"
        blocks = [(f"source{number}", 0, candidates) for number in range(5)]
        (write_s,) = best_seconds(lambda: write_candidates(path, blocks), repeats=1)
        (read_s,) = best_seconds(lambda: read_candidates(path, classes), repeats=1)
        back = read_candidates(path, classes)
    np.testing.assert_array_equal(back[4][2].codes, codes)
    return write_s, read_s


if __name__ == "__main__":
    main()
