"""Search in a gallery that stays in its file: exact, compared with one faiss call in memory, and by compressed indexes.

    .venv/bin/python benchmarks/bench_mapped.py [--gallery 250000 1000000] [--kinds ...] [--out ...]

One thread, processor seconds, every measurement in a process of its own, so that its peak memory is its own; exact
search and the bare call take turns, and the best of each counts. Sizes that are not measured keep their figures. The
embeddings are those of `drawn_features.py`, in float16. What a compressed index finds is scored again from the file:
its curve is the recall of the five nearest, and the time as a multiple of the bare call's, by cells compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from drawn_features import draw, images_of
from measuring import cpu_seconds, in_own_process, peak_gib

from whaleid.features.files import open_embeddings
from whaleid.retrieval.approximate import GalleryIndex, index_kind, open_index, recall, widened
from whaleid.retrieval.mapped import MappedGallery, search_mapped
from whaleid.utils.files import write_json

ASKED = 200
"""Queries of which a recall is measured."""


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


def compressed(folder: Path, queries: int, neighbours: int, kind: str, bare_s: float) -> dict[str, Any]:
    """What an index costs, its curve, and how far `open_for` widens it. bare_s: of one faiss call for a query."""
    gallery, asked = mapped(folder, queries)
    asked = asked[:ASKED]
    index, build_s, _ = cpu_seconds(lambda: open_index(gallery, kind))
    peak = peak_gib()
    true = GalleryIndex("exact", gallery).search(asked, 5)[1]
    chosen, found = widened(index, asked, neighbours)
    assert index.effort is not None
    curve, effort = [], index.effort
    while True:
        curve.append(point(replace(index, effort=effort), asked, neighbours, true, bare_s))
        if effort.reach >= effort.most:
            break
        effort = replace(effort, reach=min(2 * effort.reach, effort.most))
    default = point(chosen, asked, neighbours, true, bare_s)
    codes = faiss.extract_index_ivf(index.index).code_size
    figures = {"build_s": build_s, "build_as_exact_queries": build_s / bare_s, "bytes_an_image": codes}
    return figures | {"peak_gib": peak, "recall_at_5": found, "chosen": default, "curve": curve}


def point(index: GalleryIndex, asked: np.ndarray, neighbours: int, true: np.ndarray, bare_s: float) -> dict[str, Any]:
    found, seconds, _ = cpu_seconds(lambda: index.search(asked, neighbours))
    effort = index.effort
    assert effort is not None
    figures = {"cells": effort.reach, "of": effort.most, "scored_again": effort.fetch * neighbours}
    return figures | {"time": seconds / len(asked) / bare_s, "recall_at_5": recall(found[1], true)}


def measure(images: int, given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one gallery; they are printed too."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder, images + given.queries, given.dim)
        arguments = folder, given.queries, given.neighbours
        turns = [[in_own_process(one, *arguments) for one in (by_blocks, in_memory)] for _ in range(given.repeats)]
        ours_s, bare_s = (min(turn[which][1] for turn in turns) for which in (0, 1))
        (rows, _, ours_gib), (expected, _, bare_gib) = turns[0]
        agreement = float((rows == expected).mean())
        assert agreement > 0.999, agreement  # the last bit of a sum may swap two neighbours
        print(f"{given.queries:,} x {images:,} x {given.dim}, {given.neighbours} neighbours")
        print(f"  one faiss call in memory  {bare_s:7.2f} s  {bare_gib:5.2f} GiB")
        print(f"  by blocks from the file   {ours_s:7.2f} s  {ours_gib:5.2f} GiB  {ours_s / bare_s:.2f} x the time")
        of_query, indexes = bare_s / given.queries, {}
        for kind in given.kinds:
            name = index_kind(kind, images, given.dim)
            indexes[name] = in_own_process(compressed, *arguments, name, of_query)
            show(name, indexes[name])
    figures = {"bare_s": bare_s, "bare_peak_gib": bare_gib, "mapped_s": ours_s, "mapped_peak_gib": ours_gib}
    return figures | {"ratio": ours_s / bare_s, "agreement": agreement, "compressed": indexes}


def show(name: str, index: dict[str, Any]) -> None:
    print(
        f"  {name}: {index['bytes_an_image']} bytes an image, built in the time of "
        f"{index['build_as_exact_queries']:,.0f} exact queries, {index['peak_gib']:.2f} GiB"
    )
    for label, row in [("", row) for row in index["curve"]] + [("chosen: ", index["chosen"])]:
        print(
            f"    {label}{row['cells']} of {row['of']} cells, {row['scored_again']:,} scored again: "
            f"recall@5 {row['recall_at_5']:.3f}, {row['time']:.3f} x the time",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gallery", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--neighbours", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", default=["auto"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mapped.json"))
    given = parser.parse_args()

    figures = {"clock": "processor time", "threads": 1, "cpus": os.cpu_count(), "faiss": faiss.__version__}
    figures |= {"machine": platform.machine()}
    settings = {name: getattr(given, name) for name in ("queries", "dim", "neighbours", "repeats")}
    sizes = json.loads(given.out.read_text())["sizes"] if given.out.is_file() else {}
    for images in given.gallery:
        sizes[str(images)] = settings | {"load": os.getloadavg()[0]} | measure(images, given)
        write_json(given.out, figures | {"sizes": sizes})  # at once: an interrupted run keeps what it has


if __name__ == "__main__":
    main()
