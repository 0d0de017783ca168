"""Drawn features of identities with so many pictures each, and a test set that all labelled images are the gallery of.

All folds see the same features, so that a test image differs from a query out of fold by its gallery alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from ladder_world import UNKNOWN, spread, write_folder

from whaleid.config import Competition, Recipe
from whaleid.ensemble.ladder import combine
from whaleid.ensemble.rankings import Source
from whaleid.ensemble.results import LadderResult, Rung

SHARE = 0.3  # of unknown queries, where the set is open


@dataclass(frozen=True)
class GalleryWorld:
    """images, folds: the tables. embeddings: float (n, d), unit rows. solution: str, identity of each test image."""

    images: pd.DataFrame
    folds: pd.DataFrame
    embeddings: np.ndarray
    solution: np.ndarray
    competition: Competition


def make_gallery_world(
    pictures: int,
    folds: int,
    seed: int,
    unknown: bool = False,
    noise: float = 1.0,
    identities: int = 80,
    tests: int = 1500,
) -> GalleryWorld:
    """Identities as mixtures of four views. The test set shows them as often as training does.

    pictures: of each identity; 0: of geometric number, five on average.
    """
    rng = np.random.default_rng(seed)
    sizes = np.full(identities, pictures) if pictures else 1 + rng.geometric(0.25, identities)
    train = np.repeat(np.arange(identities), sizes)
    test = rng.choice(train, tests)
    strangers = identities + np.arange(int(len(test) * SHARE / (1 - SHARE)) if unknown else 0)
    who = np.concatenate([train, test, strangers])
    views = rng.normal(size=(who.max() + 1, 4, 24)) * 0.6 + rng.normal(size=(who.max() + 1, 1, 24))
    latent = views[who, rng.integers(0, 4, len(who))] + noise * rng.normal(size=(len(who), 24))
    names = np.array([f"w_{one:04d}" if one < identities else UNKNOWN for one in who], dtype=object)
    is_train = np.arange(len(who)) < len(train)
    images = pd.DataFrame(
        {
            "image": [f"{row:05d}.jpg" for row in range(len(who))],
            "split": np.where(is_train, "train", "test"),
            "identity": np.where(is_train, names, None),
        }
    )
    table = images.loc[is_train, ["image", "identity"]].assign(fold=spread(names[is_train], folds))
    competition = Competition.model_validate(
        {
            "name": "drawn",
            "root": "/nowhere",
            "train": {"csv": "train.csv", "images": "train", "image": "Image", "identity": "Id"},
            "unknown": UNKNOWN if unknown else None,
            "unknown_share": SHARE if unknown else None,
        }
    )
    embeddings = latent / np.linalg.norm(latent, axis=1, keepdims=True)
    return GalleryWorld(images, table, embeddings, names[~is_train].astype(str), competition)


def result_of(world: GalleryWorld, folder: Path, bursts: np.ndarray | None = None, **settings) -> LadderResult:
    """The ladder of one source of these features. bursts: of each image."""
    write_folder(folder / "net", world.images["image"], world.embeddings)
    numbers = sorted(set(world.folds["fold"]))
    given = {"concat": {"whiten": None}, "classifier": None, "logits": 0, **settings}
    recipe = Recipe.model_validate({"name": "one", "folds": len(numbers), "sources": {"x": "y"}, "combine": given})
    source = Source("net", dict.fromkeys(numbers, folder / "net"))
    return combine(world.images, world.folds, [source], recipe, world.competition, folder / "out", bursts=bursts)


def solution_map(world: GalleryWorld, rung: Rung, k: int = 5) -> float:
    """MAP@k of the test images."""
    right = rung.test_guesses(k) == world.solution[:, None]
    return float((right / np.arange(1, k + 1)).sum(axis=1).mean())
