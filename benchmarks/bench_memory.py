"""Peak memory of concatenation, whitening, kNN and the classifier, extrapolated to a competition with 29 networks.

    .venv/bin/python benchmarks/bench_memory.py [--images 4000] [--sources 29] [--dim 2048]

The features of 29 networks x 2048 dimensions are in float16 files, for --images images and for twice as many: the peak
comes from fitting the whitening (dimensions x components) and does not grow with the images. What grows with them
(images x components, the classifier) is measured with one network, for half of --target images and for all of them.
Both together bound the memory that is needed. Each size runs in a process of its own. Two peaks are measured: anonymous
memory, which a process cannot give back (read every few milliseconds), and all resident memory, which includes pages of
files that the system can drop. Folds run one after the other, so five folds need as much as one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import in_own_process, peak_gib

from whaleid.config import ClassifierConfig, ConcatConfig, KnnConfig
from whaleid.ensemble.classifier import top_classes, train_classifier
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.features.files import open_embeddings
from whaleid.retrieval.identities import nearest_identities
from whaleid.utils.files import write_json

LIMIT = 16.0  # GiB
EVERY = 0.005  # seconds between two looks at the memory
KEEP, IMAGES_AN_IDENTITY, BLOCK = 50, 6, 1024


def table_of(images: int) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{number:08x}.jpg" for number in range(images)]})


def write_sources(folder: Path, sources: int, images: int, dim: int) -> None:
    """float16 noise with some common directions."""
    for number in range(sources):
        rng = np.random.default_rng(number)
        path = folder / f"source{number}"
        path.mkdir()
        table = np.lib.format.open_memmap(path / "embeddings.npy", "w+", np.float16, (images, dim))
        directions = rng.standard_normal((64, dim), dtype=np.float32)
        common = np.random.default_rng(10_000)
        for start in range(0, images, BLOCK):
            rows = min(BLOCK, images - start)
            part = common.standard_normal((rows, 64), dtype=np.float32) @ directions
            table[start : start + rows] = part + 4 * rng.standard_normal((rows, dim), dtype=np.float32)
        table.flush()
        table_of(images).to_csv(path / "rows.csv", index=False)


def second_level(folder: Path, sources: int, images: int, wanted: int) -> None:
    """One fold, as the ladder does it: a fifth of the images are its queries."""
    parts = [open_embeddings(folder / f"source{number}", table_of(images)) for number in range(sources)]
    joined = concatenate(parts, [1.0] * sources)
    order = np.random.default_rng(0).permutation(images)
    queries, gallery = np.sort(order[: images // 5]), np.sort(order[images // 5 :])
    codes = np.random.default_rng(1).integers(0, images // IMAGES_AN_IDENTITY, len(gallery))
    features = whiten(joined, fit_whitening(joined, gallery, ConcatConfig(whiten=wanted)))
    nearest_identities(features[queries], features[gallery], codes, KnnConfig(), KEEP)
    trained = train_classifier(features[gallery], codes, ClassifierConfig(epochs=1, seeds=1))
    top_classes(trained, features[queries], KEEP)


def anonymous() -> float:
    """GiB of this process's memory that stands behind no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/self/status has no RssAnon: this benchmark needs Linux")


class Watch:
    """Looks at the memory from a thread of its own until told to stop."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self.peak


def watched(*arguments: Any) -> dict[str, float]:
    """Memory and processor seconds of `second_level(*arguments)` in this process."""
    before, watch, begin = anonymous(), Watch(), time.process_time()
    second_level(*arguments)
    figures = {"libraries_gib": before, "peak_anonymous_gib": watch.stop(), "processor_s": time.process_time() - begin}
    return figures | {"peak_resident_gib": peak_gib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images", type=int, default=4000, help="above 3,840: fewer take another way to the components"
    )
    parser.add_argument("--sources", type=int, default=29)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--whiten", type=int, default=512)
    parser.add_argument("--target", type=int, default=33_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started from here
    wide = [measure(given.sources, images, given) for images in (given.images, 2 * given.images)]
    narrow = [measure(1, images, given) for images in (given.target // 2, given.target)]
    write_json(given.out, summary(wide, narrow, given) | {"threads": 1, "cpus": os.cpu_count()})


def measure(sources: int, images: int, given: argparse.Namespace) -> dict[str, float]:
    """Features are written, used and removed; the figures are printed too."""
    with tempfile.TemporaryDirectory() as name:
        write_sources(Path(name), sources, images, given.dim)
        one = in_own_process(watched, Path(name), sources, images, given.whiten)
    print(
        f"{images:,} images x {sources} x {given.dim}: peak {one['peak_anonymous_gib']:.2f} GiB "
        f"({one['peak_resident_gib']:.2f} with the files' pages), {one['processor_s']:.0f} s of the processor",
        flush=True,
    )
    return {"images": images, "sources": sources, **one}


def summary(wide: list[dict], narrow: list[dict], given: argparse.Namespace) -> dict[str, object]:
    """What the target needs: the larger peak of the wide, and for each image more the slope of either, the steeper."""
    slope = max(0.0, *(growth(pair) for pair in (wide, narrow)))
    needed = wide[1]["peak_anonymous_gib"] + slope * max(0, given.target - wide[1]["images"])
    whole = given.target * given.sources * given.dim * 4 / 2**30
    print(
        f"{1e3 * slope * 1024:.1f} MiB more for 1,000 images more: {given.target:,} images x {given.sources} x "
        f"{given.dim} need {needed:.2f} GiB at most, of {LIMIT:.0f} (their features in float32: {whole:.1f})"
    )
    figures = {name: getattr(given, name) for name in ("sources", "dim", "whiten", "target")}
    figures |= {"wide": wide, "narrow": narrow, "mib_for_1000_images": 1e3 * slope * 1024}
    return figures | {"target_gib": needed, "limit_gib": LIMIT, "target_float32_gib": whole}


def growth(pair: list[dict]) -> float:
    """GiB for each image more, from the smaller to the larger."""
    small, large = pair
    return (large["peak_anonymous_gib"] - small["peak_anonymous_gib"]) / (large["images"] - small["images"])


if __name__ == "__main__":
    main()
