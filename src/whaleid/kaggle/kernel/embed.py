"""Embed the test images with trained runs, as the features stage does, within the disk and the time there is.

A batch holds the same rows as at home: there the test images follow the labelled ones, so the first batch begins
with labelled rows. Zeros stand in for these here. Every image then meets the same arithmetic as at home, and on a
CPU the features are the same to the bit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from whaleid.data.cache import ImageCache, build_cache, cache_name, open_cache
from whaleid.features.files import read_features
from whaleid.features.views import Views, load_views
from whaleid.utils.errors import WhaleidError

PIECE = 4 << 30
"""Bytes of images kept decoded on the scratch disk at a time; more of them are decoded again for each run."""
PROBE = 16
"""Images by which the speed is found."""
EVERY = 30.0
"""Seconds between two lines of the log."""


@dataclass(frozen=True)
class Test:
    """The test images: their rows of images.parquet, the folder of their paths, labelled rows that stand before them.

    identities: str, of the labelled images. piece: bytes of decoded images at a time.
    """

    images: pd.DataFrame
    root: Path
    before: int
    identities: np.ndarray
    scratch: Path
    piece: int = PIECE


def plain_views(views: Views) -> Views:
    """The run with no more views than its features' form asks for: one, or the two sides that stand side by side."""
    experiment = views.run.experiment
    settings = experiment.features.model_copy(update={"scales": [1.0], "mirror": views.side_by_side})
    return replace(views, run=replace(views.run, experiment=experiment.model_copy(update={"features": settings})))


def count_views(views: Views) -> int:
    features = views.run.experiment.features
    return len(features.scales) * (2 if features.mirror else 1)


def open_run(run: Path, identities: np.ndarray, full: bool) -> Views:
    """A run ready to embed, with all its views or only the ones it cannot do without."""
    views = load_views(run, identities)
    return views if full else plain_views(views)


def probe(run: Path, test: Test) -> tuple[float, float]:
    """Seconds an image takes with one view, and with all views, decoding included; found on a few images."""
    few = replace(test, images=test.images.iloc[:PROBE], scratch=test.scratch / "probe")
    views = load_views(run, test.identities)
    began = time.monotonic()
    pictures = _cache(views, few, 0, len(few.images)).read_many(np.arange(len(few.images)))
    decoding = time.monotonic() - began
    plain = plain_views(views)
    if views.device.type == "cuda":
        plain.embed(pictures)  # the first call loads kernels and chooses among them
    began = time.monotonic()
    plain.embed(pictures)
    one = time.monotonic() - began
    shutil.rmtree(few.scratch, ignore_errors=True)
    ratio = count_views(views) / count_views(plain)
    return (decoding + one) / len(pictures), (decoding + one * ratio) / len(pictures)


def embed_test(run: Path, test: Test, out: Path, full: bool, title: str, device: int | None = None) -> None:
    """Write the folder of features of the test images to `out`.

    full: with all views. device: number of the GPU; None: the first one, or the CPU.
    Raises WhaleidError for an embedding without direction, or too large for its type.
    """
    with torch.cuda.device(device) if device is not None else nullcontext():
        views = open_run(run, test.identities, full)
        kind = np.dtype(np.float16 if views.half else np.float32)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        names = ["embeddings"] + ([] if views.classes is None else ["logits"])
        widths = [views.dim] + ([] if views.classes is None else [len(views.classes)])
        tables = [
            np.lib.format.open_memmap(out / f"{name}.npy", "w+", kind, (len(test.images), width))
            for name, width in zip(names, widths, strict=True)
        ]
        began = said = time.monotonic()
        for part, pictures, lead in _batches(views, test):
            for table, values in zip(tables, views.embed(pictures), strict=True):
                with np.errstate(over="ignore"):
                    table[part] = values[lead:].astype(kind)
            if time.monotonic() - said > EVERY:
                said = time.monotonic()
                _tell(title, part.stop, len(test.images), said - began)
        for table in tables:
            table.flush()
        del tables
    test.images[["image"]].to_csv(out / "rows.csv", index=False)
    if views.classes is not None:
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in views.classes), encoding="utf-8")
    read_features(out, test.images)  # refuses NaN, infinity and zeros by the image's name


def _tell(title: str, done: int, total: int, seconds: float) -> None:
    speed = done / seconds
    left = (total - done) / speed / 60
    print(f"{title}: {done:,} of {total:,} images, {speed:,.0f} images/s, {left:.0f} min left", flush=True)


def _batches(views: Views, test: Test) -> Iterator[tuple[slice, np.ndarray, int]]:
    """Slice of the test rows, the batch's images uint8 (b, h, w, 3), and how many of these stand in for others."""
    count, batch = len(test.images), views.batch
    first = -(test.before % batch)
    parts = [slice(max(0, start), min(start + batch, count)) for start in range(first, count, batch)]
    width, height = views.size
    at_once = max(1, test.piece // (batch * width * height * 3))
    with ThreadPoolExecutor(1) as reader:
        for place in range(0, len(parts), at_once):
            piece = parts[place : place + at_once]
            cache = _cache(views, test, piece[0].start, piece[-1].stop)
            start = piece[0].start
            waiting = None
            for number, part in enumerate(piece):
                job = waiting or reader.submit(cache.read_many, np.arange(part.start - start, part.stop - start))
                after = piece[number + 1] if number + 1 < len(piece) else None
                pictures = job.result()
                waiting = after and reader.submit(cache.read_many, np.arange(after.start - start, after.stop - start))
                lead = -first if part.start == 0 else 0
                if lead:
                    blank = np.zeros((lead, *pictures.shape[1:]), np.uint8)
                    pictures = np.concatenate([blank, pictures])
                yield part, pictures, lead


def _cache(views: Views, test: Test, start: int, stop: int) -> ImageCache:
    """The images start to stop, decoded at the run's size; those that were decoded before are there already."""
    config = views.run.experiment.image
    folder = test.scratch / cache_name(config, views.size)
    if stop - start < len(test.images):  # one piece at a time: its place is needed for the next
        device = torch.cuda.current_device() if views.device.type == "cuda" else "cpu"
        folder = folder.with_name(f"pieces-{device}") / str(start)
        shutil.rmtree(folder.parent, ignore_errors=True)
    build_cache(test.images.iloc[start:stop], test.root, folder, views.size, config)
    return open_cache(folder)


def make_room(test: Test) -> None:
    """Remove decoded images of other sizes when there are so many that the disk might not hold the next."""
    caches = sorted((path for path in test.scratch.glob("*-*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in caches]
    while caches and sum(sizes) > 2 * test.piece:
        shutil.rmtree(caches.pop(0), ignore_errors=True)
        sizes.pop(0)


def gpus() -> list[int | None]:
    """Numbers of the GPUs; [None] where there is none: the CPU."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else [None]


def require_images(test: Test) -> None:
    if not len(test.images):
        raise WhaleidError(f"{test.root}: no test image can be read: there is nothing to answer")
