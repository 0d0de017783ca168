"""Features of the test images by trained runs, within the kernel's disk and time.

A batch holds the same rows as in the local pipeline. There the test images follow the labelled ones, so their first
batch starts with labelled rows; here zeros stand in for those. On a CPU the features are then equal to the bit.
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
from whaleid.data.masks import Mask
from whaleid.features.extractor import Extractor, load_extractor
from whaleid.features.files import read_features
from whaleid.kaggle.kernel.inputs import log
from whaleid.utils.device import gpu_count

DECODED_BYTES = 4 << 30
"""Decoded images on the scratch disk at a time; if there are more, every run decodes them again in pieces."""
TIMED_IMAGES = 16
"""Images by which the speed is estimated."""
LOG_SECONDS = 30.0


@dataclass(frozen=True)
class TestImages:
    """The test images.

    Attributes
    ----------
    images : DataFrame
        Their rows of images.parquet.
    root : Path
        Folder that their paths are relative to.
    before : int
        Number of labelled rows in front of them.
    identities : str array
        Identities of the labelled images.
    scratch : Path
        Folder for decoded images.
    masks : list of Mask, optional
        One for each, where a network sees the animals alone.
    """

    images: pd.DataFrame
    root: Path
    before: int
    identities: np.ndarray
    scratch: Path
    masks: list[Mask] | None = None
    decoded_bytes: int = DECODED_BYTES


def time_per_image(run: Path, test: TestImages) -> tuple[float, float]:
    """Seconds that one image takes with one view, and with all views, estimated on a few images."""
    few = replace(test, images=test.images.iloc[:TIMED_IMAGES], scratch=test.scratch / "timing")
    views = load_extractor(run, test.identities)
    began = time.monotonic()
    images = _cache(views, few, 0, len(few.images)).read_many(np.arange(len(few.images)))
    decoding = time.monotonic() - began
    single = _with_one_view(views)
    if views.device.type == "cuda":
        single.embed(images)  # the first call loads CUDA kernels
    began = time.monotonic()
    single.embed(images)
    seconds = time.monotonic() - began
    shutil.rmtree(few.scratch, ignore_errors=True)
    factor = _count_views(views) / _count_views(single)
    return (decoding + seconds) / len(images), (decoding + seconds * factor) / len(images)


def extract_test_features(
    run: Path, test: TestImages, out: Path, all_views: bool, title: str, device: int | None = None
) -> None:
    """Write the folder of features of the test images by one run.

    Parameters
    ----------
    run, out : Path
        Folder of the trained run; folder to write.
    test : TestImages
    all_views : bool
        With test-time augmentation.
    title : str
        Starts the lines of the log.
    device : int, optional
        Number of the GPU; by default the first one, or the CPU.

    Raises
    ------
    WhaleidError
        For an embedding of NaN, infinity or zeros; names the image.
    """
    with torch.cuda.device(device) if device is not None else nullcontext():
        views = load_extractor(run, test.identities)
        views = views if all_views else _with_one_view(views)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _write_arrays(views, test, out, title)
    test.images[["image"]].to_csv(out / "rows.csv", index=False)
    if views.classes is not None:
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in views.classes), encoding="utf-8")
    read_features(out, test.images)  # checks the values


def free_disk(test: TestImages) -> None:
    """Remove the oldest decoded images of other sizes if the next ones might not fit."""
    caches = sorted((path for path in test.scratch.glob("*-*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in caches]
    while caches and sum(sizes) > 2 * test.decoded_bytes:
        shutil.rmtree(caches.pop(0), ignore_errors=True)
        sizes.pop(0)


def gpus() -> list[int | None]:
    """Numbers of the GPUs; [None] for the CPU."""
    return list(range(gpu_count())) or [None]


def _with_one_view(views: Extractor) -> Extractor:
    """The run without test-time augmentation; where mirrored embeddings stand side by side, both sides stay."""
    if views.frozen is not None:
        return replace(views, frozen=_with_one_view(views.frozen))
    experiment = views.run.experiment
    settings = experiment.features.model_copy(update={"scales": [1.0], "mirror": views.side_by_side})
    return replace(views, run=replace(views.run, experiment=experiment.model_copy(update={"features": settings})))


def _count_views(views: Extractor) -> int:
    features = (views.frozen or views).run.experiment.features
    return len(features.scales) * (2 if features.mirror else 1)


def _write_arrays(views: Extractor, test: TestImages, out: Path, title: str) -> None:
    """embeddings.npy and, if the run has classes, logits.npy."""
    dtype, total = np.dtype(np.float16 if views.half else np.float32), len(test.images)
    widths = {"embeddings": views.dim} | ({} if views.classes is None else {"logits": len(views.classes)})
    arrays = [
        np.lib.format.open_memmap(out / f"{name}.npy", "w+", dtype, (total, width)) for name, width in widths.items()
    ]
    began = logged = time.monotonic()
    for rows, images, padding in _batches(views, test):
        for array, values in zip(arrays, views.embed(images), strict=True):
            with np.errstate(over="ignore"):
                array[rows] = values[padding:].astype(dtype)
        if time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            speed = rows.stop / (logged - began)
            log(f"{title}: {rows.stop:,} of {total:,} images, {(total - rows.stop) / speed / 60:.0f} min left")
    for array in arrays:
        array.flush()


def _batches(views: Extractor, test: TestImages) -> Iterator[tuple[slice, np.ndarray, int]]:
    """Rows of the test images, the batch uint8 (b, h, w, 3), and the number of zero images that it starts with."""
    count, batch = len(test.images), views.batch
    padding = test.before % batch
    parts = [slice(max(0, start), min(start + batch, count)) for start in range(-padding, count, batch)]
    width, height = views.size
    at_once = max(1, test.decoded_bytes // (batch * width * height * 3))
    with ThreadPoolExecutor(1) as reader:
        for place in range(0, len(parts), at_once):
            piece = parts[place : place + at_once]
            first = piece[0].start
            cache = _cache(views, test, first, piece[-1].stop)
            rows = [np.arange(part.start - first, part.stop - first) for part in piece]
            job = reader.submit(cache.read_many, rows[0])
            for number, part in enumerate(piece):
                images = job.result()
                if number + 1 < len(piece):
                    job = reader.submit(cache.read_many, rows[number + 1])
                zeros = padding if part.start == 0 else 0
                yield part, np.concatenate([np.zeros((zeros, *images.shape[1:]), np.uint8), images]), zeros


def _cache(views: Extractor, test: TestImages, start: int, stop: int) -> ImageCache:
    """The images start to stop, decoded at the run's size unless they are already."""
    config = views.run.experiment.image
    folder = test.scratch / cache_name(config, views.size)
    if stop - start < len(test.images):  # a piece takes the place of the one before
        device = torch.cuda.current_device() if views.device.type == "cuda" else "cpu"
        folder = folder.with_name(f"pieces-{device}") / str(start)
        shutil.rmtree(folder.parent, ignore_errors=True)
    masks = None if test.masks is None else test.masks[start:stop]
    build_cache(test.images.iloc[start:stop], test.root, folder, views.size, config, masks=masks)
    return open_cache(folder)
