"""Exact search in a gallery that stays in its file, compared with one faiss call on the gallery in memory.

    .venv/bin/python benchmarks/bench_mapped.py [--gallery 200000 400000] [--out benchmarks/results/mapped.json]

One thread, processor seconds, every measurement in a process of its own, so that its peak memory is its own. The
embeddings are drawn about the centres of identities, in float16. A compressed index is measured beside it: what it
finds is scored again from the file.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from measuring import cpu_seconds, in_own_process, peak_gib

from whaleid.features.files import open_embeddings
from whaleid.retrieval.approximate import open_index, recall
from whaleid.retrieval.mapped import MappedGallery, search_mapped
from whaleid.utils.files import write_json

SCATTER = 1.0
"""Standard deviation of an image about its identity's centre, whose own is 1 in every dimension."""


def images_of(count: int) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{number}.jpg" for number in range(count)]})


def draw(folder: Path, images: int, dim: int) -> None:
    """A folder of features, identities of ten images on average."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((images // 10, dim), dtype=np.float32)
    table = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float16, (images, dim))
    for start in range(0, images, 10_000):
        codes = rng.integers(0, len(centers), min(10_000, images - start))
        noise = SCATTER * rng.standard_normal((len(codes), dim), dtype=np.float32)
        table[start : start + len(codes)] = centers[codes] + noise
    table.flush()
    images_of(images).to_csv(folder / "rows.csv", index=False)


def mapped(folder: Path, queries: int) -> tuple[MappedGallery, np.ndarray]:
    """All but the first images as the gallery, and the first as queries float32 (q, d)."""
    faiss.omp_set_num_threads(1)
    count = len(np.load(folder / "embeddings.npy", mmap_mode="r"))
    table = open_embeddings(folder, images_of(count))
    return MappedGallery(table, np.arange(queries, count)), table.rows(np.arange(queries))


def by_blocks(folder: Path, queries: int, neighbours: int) -> tuple[np.ndarray, float, float]:
    """Rows, seconds, peak GiB of the search in the file."""
    gallery, asked = mapped(folder, queries)
    found, seconds, _ = cpu_seconds(lambda: search_mapped(asked, gallery, neighbours))
    return found[1], seconds, peak_gib()


def in_memory(folder: Path, queries: int, neighbours: int) -> tuple[np.ndarray, float, float]:
    """The same of one faiss call; reading the file is not counted."""
    gallery, asked = mapped(folder, queries)
    whole = gallery[:]
    bare = partial(faiss.knn, asked, whole, neighbours, metric=faiss.METRIC_INNER_PRODUCT)
    found, seconds, _ = cpu_seconds(bare)
    return found[1], seconds, peak_gib()


def compressed(folder: Path, queries: int, neighbours: int, kind: str) -> dict[str, float]:
    """Seconds to build the index and to search, recall@5 and peak GiB."""
    gallery, asked = mapped(folder, queries)
    index, build_s, _ = cpu_seconds(lambda: open_index(gallery, kind))
    _, search_s, _ = cpu_seconds(lambda: index.search(asked, neighbours))
    peak = peak_gib()
    found = recall(index, open_index(gallery, "exact"), asked)
    return {"build_s": build_s, "search_s": search_s, "recall_at_5": found, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gallery", type=int, nargs="+", default=[200_000, 400_000])
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=100)
    parser.add_argument("--kind", default="OPQ32,IVF512,PQ32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mapped.json"))
    given = parser.parse_args()

    sizes = {}
    for images in given.gallery:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            draw(folder, images + given.queries, given.dim)
            arguments = folder, given.queries, given.neighbours
            rows, ours_s, ours_gib = in_own_process(by_blocks, *arguments)
            expected, bare_s, bare_gib = in_own_process(in_memory, *arguments)
            agreement = float((rows == expected).mean())
            assert agreement > 0.999, agreement  # the last bit of a sum may swap two neighbours
            index = in_own_process(compressed, *arguments, given.kind)
        sizes[images] = {
            "bare_s": bare_s,
            "bare_peak_gib": bare_gib,
            "mapped_s": ours_s,
            "mapped_peak_gib": ours_gib,
            "ratio": ours_s / bare_s,
            "agreement": agreement,
            "compressed": index,
        }
        print(f"{given.queries:,} x {images:,} x {given.dim}, {given.neighbours} neighbours")
        print(f"  one faiss call in memory  {bare_s:7.2f} s  {bare_gib:5.2f} GiB")
        print(f"  by blocks from the file   {ours_s:7.2f} s  {ours_gib:5.2f} GiB  {ours_s / bare_s:.2f} x the time")
        print(
            f"  {given.kind:24}  {index['search_s']:7.2f} s  {index['peak_gib']:5.2f} GiB  "
            f"recall@5 {index['recall_at_5']:.3f}, built in {index['build_s']:.0f} s"
        )
    figures = {name: getattr(given, name) for name in ("queries", "dim", "neighbours", "kind")} | {"sizes": sizes}
    figures |= {"clock": "processor time", "threads": 1, "cpus": os.cpu_count(), "faiss": faiss.__version__}
    write_json(given.out, figures | {"machine": platform.machine()})


if __name__ == "__main__":
    main()
