"""Drawn embeddings whose directions count as unequally as those of photographs.

    .venv/bin/python benchmarks/drawn_features.py FOLDER/embeddings.npy      # what real embeddings look like

White noise of 512 dimensions has no neighbours: every image is as far from every other one. In embeddings of
photographs few directions hold most of the variance: of a pretrained EfficientNet-Lite0 at 192 x 96, the largest holds
20 % on 500 photographs of nyala and 11 % on 400 cow faces, and those after it fall as rank ** -1.11 and rank ** -1.04.
Drawn embeddings fall as rank ** -1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

IMAGES_AN_IDENTITY = 10
SCATTER = 1.0
"""Spread of an image about its identity's centre, as a multiple of the centres': cosines of 0.5 within an identity."""
_BLOCK = 10_000
_RANKS = slice(5, 100)  # the first few depend on the data set, the last ones on the number of images


def images_of(count: int) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{number}.jpg" for number in range(count)]})


def draw(folder: Path, images: int, dim: int) -> None:
    """A folder of features in float16."""
    rng = np.random.default_rng(0)
    spread = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
    centers = rng.standard_normal((max(1, images // IMAGES_AN_IDENTITY), dim), dtype=np.float32)
    table = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float16, (images, dim))
    for start in range(0, images, _BLOCK):
        codes = rng.integers(0, len(centers), min(_BLOCK, images - start))
        noise = SCATTER * rng.standard_normal((len(codes), dim), dtype=np.float32)
        table[start : start + len(codes)] = spread * (centers[codes] + noise)
    table.flush()
    images_of(images).to_csv(folder / "rows.csv", index=False)


def variances(embeddings: np.ndarray) -> np.ndarray:
    """Share of the variance of unit rows, float (n, d), that each direction holds, descending."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    squares = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False) ** 2
    return squares / squares.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="the first so many")
    given = parser.parse_args()
    shares = variances(np.load(given.embeddings, mmap_mode="r")[: given.images].astype(np.float32))
    ranks = np.arange(1, len(shares) + 1)[_RANKS]
    slope = np.polyfit(np.log(ranks), np.log(shares[_RANKS]), 1)[0]
    print(f"largest direction: {shares[0]:.2f} of the variance; then rank ** {slope:.2f}")


if __name__ == "__main__":
    main()
