"""The embedded sample: a small competition of drawn whale flukes in Kaggle's layout, made from a seed.

    <root>/train.csv               Image, Id        (`new_whale` for an individual without a label)
    <root>/train/*.jpg
    <root>/test/*.jpg
    <root>/sample_submission.csv   Image, Id        (five labels each)
    <root>/solution.csv            Image, Id        of the test images; for scoring only
    <root>/sample.json             its settings; marks a complete sample

First it is planned who is in which image, then every individual is drawn with all its photographs in one job. Each
individual and each photograph has its own random generator, so the result does not depend on the processes.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from whaleid.data.flukes import draw_individual
from whaleid.data.photographs import Conditions, photograph
from whaleid.data.tables import read_csv
from whaleid.utils.errors import WhaleidError
from whaleid.utils.machine import cores

FORMAT = 1  # raise it when the drawing changes, so that older samples are made again
UNKNOWN = "new_whale"
K = 5  # labels a row of a submission

# Shares of the humpback whale competition.
UNKNOWN_TRAIN = 9_664 / 25_361
UNKNOWN_TEST = 0.276
SINGLETONS = 2_073 / 5_004
TAIL = 1.0  # log-deviation of the number of images of an identity that has several: a long tail
TEST_POWER = 0.75  # test images of an identity ~ its train images to this power, so that singletons occur, too
SEEN_TWICE = 0.08  # share of unlabelled individuals with two photographs
DUPLICATES = 0.004  # train images that are a recompressed copy of another one
QUALITY = (55, 95)  # JPEG

# Independent streams of random numbers from one seed.
_PLAN, _INDIVIDUAL, _PHOTOGRAPH = range(3)


@dataclass(frozen=True)
class SampleSummary:
    """Content of a sample, in images unless stated otherwise.

    Attributes
    ----------
    root : Path
    identities : int
        Number of labelled identities.
    train, train_unknown, test, test_unknown : int
    singletons : int
        Number of identities with a single training image.
    made : bool
        False if it was there already.
    """

    root: Path
    identities: int
    train: int
    train_unknown: int
    singletons: int
    test: int
    test_unknown: int
    made: bool


@dataclass(frozen=True)
class Photo:
    """One planned image.

    Attributes
    ----------
    number : int
        Seeds its generator.
    path : str
        train/<name>.jpg or test/<name>.jpg.
    individual : int
        Seeds the animal; written nowhere.
    label : str
        Identity, or `new_whale`.
    copy_of : int or None
        Number of the photograph of which this one is a recompressed copy.
    """

    number: int
    path: str
    individual: int
    label: str
    copy_of: int | None = None


def make_sample(
    root: Path,
    seed: int = 0,
    identities: int = 150,
    train_images: int = 1000,
    test_images: int = 400,
    unknown_train: float = UNKNOWN_TRAIN,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Write the sample, unless it is there already.

    The folder appears in one step when it is complete. Another sample is replaced; a folder that is not a sample is
    refused with WhaleidError.

    Parameters
    ----------
    root : Path
    seed, identities, train_images, test_images : int
    unknown_train : float
        Share of the train images without a label, by default that of the Kaggle competition.
    workers : int, optional
        Number of processes, by default one for each core; 1 draws in this process. The bytes are always the same.
    progress : callable, optional
        Called with (images done, images in all).
    """
    root = Path(root)
    made_from = {
        "format": FORMAT,
        "seed": seed,
        "identities": identities,
        "train_images": train_images,
        "test_images": test_images,
        "unknown_train": unknown_train,
        "conditions": json.loads(json.dumps(asdict(Conditions()))),  # tuples as lists, as in the file
    }
    existing = _existing(root)
    if existing is not None and existing.get("made_from") == made_from and _is_complete(root, existing):
        return SampleSummary(root, **existing["counts"], made=False)

    photos = plan(seed, identities, train_images, test_images, unknown_train)
    counts = _counts(photos)
    partial_root = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    for folder in ("train", "test"):
        (partial_root / folder).mkdir(parents=True)
    _draw_all(photos, seed, partial_root, workers or cores(), progress)
    _write_tables(photos, partial_root)
    content = {"made_from": made_from, "counts": counts}
    (partial_root / "sample.json").write_text(json.dumps(content, indent=1) + "\n")
    if root.exists():
        shutil.rmtree(root)
    partial_root.replace(root)
    return SampleSummary(root, **counts, made=True)


def contact_sheet(root: Path, out: Path, rows: int = 8, columns: int = 6) -> None:
    """Write an overview of the sample's train images to `out`: one identity a row, one image a column."""
    by_identity: dict[str, list[str]] = {}
    for image, identity in read_pairs(Path(root) / "train.csv"):
        if identity != UNKNOWN:
            by_identity.setdefault(identity, []).append(image)
    full = [images for images in by_identity.values() if len(images) >= columns]
    rest = sorted((images for images in by_identity.values() if len(images) < columns), key=len, reverse=True)
    cell, gap = (256, 150), 6
    sheet = Image.new("RGB", ((cell[0] + gap) * columns, (cell[1] + gap) * rows), "white")
    for row, images in enumerate((full + rest)[:rows]):
        for column, image in enumerate(images[:columns]):
            with Image.open(Path(root) / "train" / image) as photo:
                photo.thumbnail(cell)
                sheet.paste(photo, (column * (cell[0] + gap), row * (cell[1] + gap)))
    sheet.save(out)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Rows of a two-column CSV of the sample, without its header."""
    images, labels = (column.to_pylist() for column in read_csv(path).columns)
    return list(zip(images, labels, strict=True))


# --------------------------------------------------------------------------------------------- the plan


def plan(
    seed: int,
    identities: int,
    train_images: int,
    test_images: int,
    unknown_train: float = UNKNOWN_TRAIN,
    unknown_test: float = UNKNOWN_TEST,
) -> list[Photo]:
    """Who is in which image. Individuals 0 .. identities - 1 have labels, the others are unknown.

    unknown_train, unknown_test: shares of the images without a label, 0 .. 1.
    """
    rng = _generator(seed, _PLAN)
    unlabelled_train = round(unknown_train * train_images)
    unlabelled_test = round(unknown_test * test_images)
    sizes = class_sizes(rng, identities, train_images - unlabelled_train)
    share = sizes**TEST_POWER / (sizes**TEST_POWER).sum()
    known_train = np.repeat(np.arange(identities), sizes)
    known_test = rng.choice(identities, test_images - unlabelled_test, p=share)
    new_train = identities + _unknown_individuals(rng, unlabelled_train)
    new_test = identities + len(new_train) + _unknown_individuals(rng, unlabelled_test)

    ids = _hex_names(rng, identities, 7)
    names = _hex_names(rng, train_images + test_images, 8)
    individuals = np.concatenate([known_train, new_train, known_test, new_test])
    copies = _copies(rng, sizes, train_images)
    photos = []
    for number, individual in enumerate(individuals.tolist()):
        folder = "train" if number < train_images else "test"
        label = f"w_{ids[individual]}" if individual < identities else UNKNOWN
        photos.append(Photo(number, f"{folder}/{names[number]}.jpg", individual, label, copies.get(number)))
    return photos


def class_sizes(rng: np.random.Generator, identities: int, images: int) -> np.ndarray:
    """Training images of each identity, int64 (identities,), summing to `images`, in random order."""
    singles = round(SINGLETONS * identities)
    several = identities - singles
    spare = images - singles - 2 * several
    if identities < K - 1 or spare < 0:
        raise WhaleidError(
            f"sample: {identities} identities cannot share {images} labelled train images; give at least "
            f"{K - 1} identities and about three train images for each"
        )
    weights = rng.lognormal(0, TAIL, several)
    ends = np.round(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
    sizes = np.concatenate([np.ones(singles, np.int64), 2 + np.diff(ends, prepend=0)])
    return rng.permutation(sizes)


def _unknown_individuals(rng: np.random.Generator, images: int) -> np.ndarray:
    """Individuals in images without a label, int64 (images,); most of them occur once."""
    is_new = rng.random(images) >= SEEN_TWICE
    is_new[:1] = True
    is_new[1:] |= ~is_new[:-1]  # twice, not three times
    return np.cumsum(is_new) - 1


def _copies(rng: np.random.Generator, sizes: np.ndarray, train_images: int) -> dict[int, int]:
    """Number of an image that is a copy -> number of the image copied, both of one identity."""
    starts = np.cumsum(sizes) - sizes
    large = np.flatnonzero(sizes >= 3)  # even without the copy two photographs are left
    wanted = min(max(1, round(DUPLICATES * train_images)), len(large))
    return {int(starts[i]) + 1: int(starts[i]) for i in rng.choice(large, wanted, replace=False)}


def _hex_names(rng: np.random.Generator, count: int, digits: int) -> list[str]:
    """Distinct random hexadecimal names."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[f"{int(rng.integers(16**digits)):0{digits}x}"] = None
    return list(names)


def _counts(photos: list[Photo]) -> dict[str, int]:
    """The numbers of a `SampleSummary`."""
    train = [photo.label for photo in photos if photo.path.startswith("train/")]
    test = [photo.label for photo in photos if photo.path.startswith("test/")]
    known = [label for label in train if label != UNKNOWN]
    return {
        "identities": len(set(known)),
        "train": len(train),
        "train_unknown": train.count(UNKNOWN),
        "singletons": sum(known.count(identity) == 1 for identity in set(known)),
        "test": len(test),
        "test_unknown": test.count(UNKNOWN),
    }


# ---------------------------------------------------------------------------------------------- drawing


def _generator(seed: int, *stream: int) -> np.random.Generator:
    """Random generator of one stream of a sample; streams are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _draw_all(
    photos: list[Photo],
    seed: int,
    root: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Draw every photograph into `root`, one job for each individual."""
    jobs: dict[int, list[Photo]] = {}
    for photo in photos:
        jobs.setdefault(photo.individual, []).append(photo)
    done = 0
    for drawn in _each(partial(_draw_job, seed, root), list(jobs.values()), workers):
        done += drawn
        if progress is not None:
            progress(done, len(photos))


def _each(work: Callable[[list[Photo]], int], jobs: list[list[Photo]], workers: int) -> Iterator[int]:
    """Results of `work` on every job, in the order of completion."""
    if workers == 1:
        yield from map(work, jobs)
        return
    # spawn: a fork of a process that has threads (torch, OpenCV) can hang
    context = multiprocessing.get_context("spawn")
    # one OpenCV thread for each process: the images keep all cores busy
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(work, job) for job in sorted(jobs, key=len, reverse=True)]):
            yield future.result()


def _draw_job(seed: int, root: Path, photos: list[Photo]) -> int:
    """Draw all photographs of one individual; returns how many."""
    individual = draw_individual(_generator(seed, _INDIVIDUAL, photos[0].individual))
    for photo in photos:
        rng = _generator(seed, _PHOTOGRAPH, photo.number)
        if photo.copy_of is None:
            image = photograph(individual, rng)
        else:
            image = photograph(individual, _generator(seed, _PHOTOGRAPH, photo.copy_of))
            scale = rng.uniform(0.8, 0.95)
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        (root / photo.path).write_bytes(_jpeg(image, int(rng.integers(*QUALITY))))
    return len(photos)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG of uint8 (h, w, 3); a grey image is stored with one channel, as some real ones are."""
    is_grey = (image == image[..., :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if is_grey else image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ files


def _write_tables(photos: list[Photo], root: Path) -> None:
    """Write the three CSV files, sorted by image so that their order reveals nothing."""
    rows = {
        folder: sorted((Path(p.path).name, p.label) for p in photos if p.path.startswith(folder))
        for folder in ("train", "test")
    }
    guesses = " ".join([UNKNOWN, *sorted({label for _, label in rows["train"]} - {UNKNOWN})[: K - 1]])
    _write_csv(root / "train.csv", rows["train"])
    _write_csv(root / "solution.csv", rows["test"])
    _write_csv(root / "sample_submission.csv", [(image, guesses) for image, _ in rows["test"]])


def _write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("Image", "Id"), *rows])


def _existing(root: Path) -> dict | None:
    """`sample.json` of a sample in `root`, None if the folder is missing or empty; any other folder is refused."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        return json.loads((root / "sample.json").read_text())
    except (OSError, ValueError):
        raise WhaleidError(
            f"{root}: is not a sample (no readable sample.json in it); choose another folder or remove it"
        ) from None


def _is_complete(root: Path, existing: dict) -> bool:
    """Whether all files of the sample are still there."""
    tables = all((root / name).is_file() for name in ("train.csv", "solution.csv", "sample_submission.csv"))
    return tables and all(
        len(list((root / folder).glob("*.jpg"))) == existing["counts"][folder] for folder in ("train", "test")
    )
