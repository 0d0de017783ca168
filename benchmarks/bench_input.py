"""The input pipeline in images per second, compared with a loop of decoding and resizing with OpenCV.

    python benchmarks/bench_input.py [--data FOLDER] [--images 400] [--width 128 --height 64]

Building the cache (decode, check, crop, resize, write) is compared with a loop that only decodes and resizes the same
files. An epoch of training batches (cache and augmentation) is compared with the same loop, which training without a
cache would need before augmentation. Medians of interleaved rounds. The ratio of processor times hardly depends on
other programs.
Result: benchmarks/results/input.json.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from whaleid.config import SamplerConfig
from whaleid.config.files import load_experiment
from whaleid.data.augmentation import Augmentation
from whaleid.data.cache import build_cache, open_cache
from whaleid.data.samplers import TrainingItems, epoch_batches, make_loader
from whaleid.utils.files import write_json

RESULT = Path(__file__).parent / "results" / "input.json"
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        paths = image_files(options.data, options.images, Path(scratch))
        measured = measure(paths, (options.width, options.height), options.rounds, Path(scratch))
    bare = measured["bare"]
    rows = {name: {**rate, **ratios(rate, bare)} for name, rate in measured.items()}
    source = "random textures, 1050 x 600" if options.data is None else str(options.data)
    setting = {"images": len(paths), "source": source, "size": [options.width, options.height]}
    write_json(RESULT, {**setting, "rounds": options.rounds, "machine": platform.machine(), "rates": rows})
    print(f"{len(paths)} images ({source}) to {options.width} x {options.height}; images a second")
    for name, row in rows.items():
        print(
            f"  {name:22}{row['wall']:10.0f} wall {row['processor']:10.0f} a processor second"
            f"{row['ratio']:9.2f} x bare{row['processor_ratio']:9.2f} x bare by processor time"
        )
    print(f"written: {RESULT}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder of images; default: random textures")
    parser.add_argument("--images", type=int, default=400, help="at most this many")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def image_files(folder: Path | None, count: int, scratch: Path) -> list[Path]:
    """Images in `folder`, or textures of the competition's common size (1050 x 600) made in `scratch`."""
    if folder is not None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:count]
        if not found:
            raise SystemExit(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}) here")
        return found
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (75, 132, 3), dtype=np.uint8)
        texture = cv2.resize(coarse, (1050, 600), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(scratch / f"{number:05}.jpg"), texture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return sorted(scratch.glob("*.jpg"))


def measure(paths: list[Path], size: tuple[int, int], rounds: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Images a second of each way, median of interleaved rounds."""
    experiment = load_experiment("default")
    sides = [np.asarray(cv2.imread(str(path))).shape[:2] for path in paths]
    table = pd.DataFrame({"path": [str(path.resolve()) for path in paths], "x0": 0.0, "y0": 0.0})
    table["digest"] = table["path"]
    table["x1"], table["y1"] = [float(width) for _, width in sides], [float(height) for height, _ in sides]
    forms = ("raw", "jpeg")

    def build(form: str, name: str) -> None:
        config = experiment.image.model_copy(update={"cache": form})
        build_cache(table, Path("/"), scratch / name, size, config)

    for form in forms:
        build(form, form)
    ways: dict[str, Callable[[int], int]] = {"bare": lambda _: bare_loop(paths, size)}
    for form in forms:
        ways[f"build cache, {form}"] = lambda turn, form=form: build(form, f"{form}{turn}") or len(paths)
    for form in forms:
        ways[f"training batches, {form}"] = lambda turn, form=form: epoch(scratch / form, experiment.augment, turn)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            images = way(turn)
            taken[name].append((images / (time.perf_counter() - wall), images / (time.process_time() - processor)))
    return {
        name: {"wall": float(wall), "processor": float(processor)}
        for name, (wall, processor) in ((name, np.median(rates, axis=0)) for name, rates in taken.items())
    }


def bare_loop(paths: list[Path], size: tuple[int, int]) -> int:
    """What one writes first: decode and resize, one after the other."""
    for path in paths:
        cv2.resize(np.asarray(cv2.imread(str(path))), size, interpolation=cv2.INTER_AREA)
    return len(paths)


def epoch(folder: Path, augment, number: int, repeats: int = 5) -> int:
    """Batches of 32 with the default augmentation, every image `repeats` times; how many images they held."""
    cache = open_cache(folder)
    rows = np.tile(np.arange(len(cache)), repeats)
    items = TrainingItems(rows, np.zeros(len(rows), dtype=bool), rows, [str(row) for row in range(len(cache))])
    plan = epoch_batches(rows, SamplerConfig(name="shuffle", images=4, unknown="drop"), 32, number, 0)
    loader = make_loader(items, cache, Augmentation(augment, cache.size), plan, number, 0, workers=0)
    return sum(len(labels) for _, labels in loader)


def ratios(rate: dict[str, float], bare: dict[str, float]) -> dict[str, float]:
    return {"ratio": rate["wall"] / bare["wall"], "processor_ratio": rate["processor"] / bare["processor"]}


if __name__ == "__main__":
    main()
