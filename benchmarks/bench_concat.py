"""Concatenation, whitening and search from files, compared with numpy and faiss in memory.

    .venv/bin/python benchmarks/bench_concat.py [--gallery 25000] [--queries 8000] [--sources 6] [--dim 2000]

Both sides read the same float16 files and compute the components by as many subspace iterations from the same random
directions, so both should give the same nearest neighbours. (From different directions the last components, which are
noise, would differ, and with them a few neighbours in a hundred.) Times are processor times on one thread. The bare
side holds images x dimensions in float32, whaleid does not; each side's peak memory is that of its own process. Then
whaleid alone, for growing numbers of images and of sources.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch
from measuring import in_own_process, peak_gib

from whaleid.config import ConcatConfig
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.features.files import open_embeddings
from whaleid.retrieval.index import search
from whaleid.utils.files import write_json

NEIGHBOURS = 200
WIDER, ROUNDS = 32, 4  # as in concat.py
LATENT, WITHIN = 256, 1.5  # common directions; spread of an identity, where that of identities is 1
BLOCK = 2048
Work = Callable[..., tuple[np.ndarray, dict[str, float]]]
"""Gives the neighbours and the processor seconds of each step."""


def write_sources(folder: Path, sources: int, images: int, dim: int) -> None:
    """float16 features with a slowly falling spectrum: a common part of 256 directions, and noise.

    Eight images an identity (`identities`), which lie in the common part nearer to one another than to others.
    """
    centers = np.random.default_rng(20_000).standard_normal((max(1, images // 8), LATENT), dtype=np.float32)
    codes = identities(images)
    for number in range(sources):
        rng = np.random.default_rng(number)
        path = folder / f"source{number}"
        path.mkdir()
        table = np.lib.format.open_memmap(path / "embeddings.npy", "w+", np.float16, (images, dim))
        directions = rng.standard_normal((LATENT, dim), dtype=np.float32)
        directions *= 0.99 ** np.arange(LATENT, dtype=np.float32)[:, None]
        common = np.random.default_rng(10_000)
        for start in range(0, images, BLOCK):
            own = centers[codes[start : start + BLOCK]]
            part = (own + WITHIN * common.standard_normal(own.shape, dtype=np.float32)) @ directions
            table[start : start + BLOCK] = part + 4 * rng.standard_normal(part.shape, dtype=np.float32)
        table.flush()
        table_of(images).to_csv(path / "rows.csv", index=False)


def identities(images: int) -> np.ndarray:
    """Identity of each image, int64 (images,)."""
    return np.random.default_rng(30_000).integers(0, max(1, images // 8), images)


def table_of(images: int) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{number:08x}.jpg" for number in range(images)]})


def ours(folder: Path, sources: int, images: int, gallery: int, wanted: int) -> tuple[np.ndarray, dict[str, float]]:
    """Neighbours int64 (queries, k), and the processor seconds of each step."""
    clock = [time.process_time()]
    parts = [open_embeddings(folder / f"source{number}", table_of(images)) for number in range(sources)]
    joined = concatenate(parts, [1.0] * sources)
    clock.append(time.process_time())
    fit = fit_whitening(joined, np.arange(gallery), ConcatConfig(whiten=wanted))
    clock.append(time.process_time())
    out = whiten(joined, fit)
    clock.append(time.process_time())
    _, rows = search(out[gallery:], out[:gallery], min(NEIGHBOURS, gallery))
    clock.append(time.process_time())
    return rows, dict(zip(("open", "fit", "whiten", "search"), np.diff(clock).tolist(), strict=True))


def bare(folder: Path, sources: int, images: int, gallery: int, wanted: int) -> tuple[np.ndarray, dict[str, float]]:
    """The same with whole arrays, unchecked."""
    clock = [time.process_time()]
    parts = [np.load(folder / f"source{number}" / "embeddings.npy", mmap_mode="r") for number in range(sources)]
    joined = np.empty((images, sum(part.shape[1] for part in parts)), np.float32)
    start = 0
    for part in parts:
        block = part.astype(np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True) * np.float32(sources**0.5)
        joined[:, start : start + part.shape[1]] = block
        start += part.shape[1]
    clock.append(time.process_time())
    mean = joined[:gallery].mean(axis=0)
    joined -= mean
    training = joined[:gallery]
    wide = min(wanted + WIDER, *training.shape)
    basis = torch.randn(joined.shape[1], wide, generator=torch.Generator().manual_seed(0)).numpy()
    for _ in range(ROUNDS):
        basis = np.linalg.qr(training.T @ (training @ basis))[0]
    seen = training @ basis
    values, vectors = np.linalg.eigh((seen.T @ seen).astype(np.float64) / gallery)
    values, vectors = values[::-1][:wanted], vectors[:, ::-1][:, :wanted]
    projection = (basis @ vectors * values ** (-ConcatConfig().power / 2)).astype(np.float32)
    clock.append(time.process_time())
    out = joined @ projection
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    clock.append(time.process_time())
    index = faiss.IndexFlatIP(out.shape[1])
    index.add(out[:gallery])
    _, rows = index.search(out[gallery:], min(NEIGHBOURS, gallery))
    clock.append(time.process_time())
    return rows, dict(zip(("open", "fit", "whiten", "search"), np.diff(clock).tolist(), strict=True))


def measured(work: Work, *arguments: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Neighbours, processor seconds and peak GiB of `work` in a process of its own."""
    return in_own_process(_with_totals, work, arguments)


def _with_totals(work: Work, arguments: tuple[Any, ...]) -> tuple[np.ndarray, dict[str, float]]:
    begin = time.perf_counter()
    rows, steps = work(*arguments)
    total = {"total": sum(steps.values()), "wall": time.perf_counter() - begin, "peak_gib": peak_gib()}
    return rows, steps | total


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the first ten neighbours that two tables have in common."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(one[:, :10], other[:, :10], strict=True)]) / 10)


def first_right(rows: np.ndarray, gallery: int) -> float:
    """Share of the queries (the images past the gallery) whose nearest image is of their identity."""
    codes = identities(gallery + len(rows))
    return float((codes[rows[:, 0]] == codes[gallery:]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--gallery", type=int, default=25_000)
    parser.add_argument("--sources", type=int, default=6)
    parser.add_argument("--dim", type=int, default=2000)
    parser.add_argument("--whiten", type=int, default=512)
    parser.add_argument("--growth", type=int, default=3, help="sizes of the growth tables, each half of the next")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/concat.json"))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started from here
    images = given.queries + given.gallery
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder, given.sources, images, given.dim)
        rest = (images, given.gallery, given.whiten)
        bare_rows, bare_steps = measured(bare, folder, given.sources, *rest)
        our_rows, our_steps = measured(ours, folder, given.sources, *rest)
        agreement = overlap(bare_rows, our_rows)
        right = {"bare": first_right(bare_rows, given.gallery), "whaleid": first_right(our_rows, given.gallery)}
        print(f"{'processor seconds':40}{'open':>8}{'fit':>8}{'whiten':>8}{'search':>8}{'total':>8}{'GiB':>7}")
        show("bare numpy + faiss", bare_steps)
        show("whaleid", our_steps)
        print(f"ratio {our_steps['total'] / bare_steps['total']:.3f}, the same first ten {agreement:.4f}, ", end="")
        print(
            f"nearest image of the same identity: bare {right['bare']:.4f}, whaleid {right['whaleid']:.4f}", flush=True
        )
        figures = {name: getattr(given, name) for name in ("queries", "gallery", "sources", "dim", "whiten")}
        figures |= {"clock": "processor time", "threads": 1, "cpus": os.cpu_count(), "machine": platform.machine()}
        figures |= {"bare": bare_steps, "whaleid": our_steps, "ratio": our_steps["total"] / bare_steps["total"]}
        figures |= {"agreement": agreement, "first_right": right}
        write_json(given.out, figures)  # what follows takes as long again
        growth = {}
        for half in reversed(range(1, given.growth)):
            sources = max(1, given.sources >> half)
            _, growth[f"{sources} sources"] = measured(ours, folder, sources, *rest)
            show(f"{sources} sources", growth[f"{sources} sources"])
    for half in reversed(range(1, given.growth)):
        with tempfile.TemporaryDirectory() as name:
            folder, gallery, queries = Path(name), given.gallery >> half, given.queries >> half
            write_sources(folder, given.sources, gallery + queries, given.dim)
            _, steps = measured(ours, folder, given.sources, gallery + queries, gallery, given.whiten)
            growth[f"{gallery + queries} images"] = steps
            show(f"{gallery + queries:,} images", steps)
    write_json(given.out, figures | {"growth": growth})


def show(label: str, steps: dict[str, float]) -> None:
    cells = "".join(f"{steps[name]:8.2f}" for name in ("open", "fit", "whiten", "search", "total"))
    print(f"{label:40}{cells}{steps['peak_gib']:7.2f}", flush=True)


if __name__ == "__main__":
    main()
