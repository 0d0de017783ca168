"""A small world of Gaussian identities seen by several "networks", written as features folders: for the
ladder.

Every network sees another part of an identity's latent vector (their errors complement one another), turned
another way in every fold, and sees the images it was trained on more clearly than others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.config import Competition, Recipe
from whaleid.ensemble.cross_fitting import OofLists
from whaleid.ensemble.protocol import FULL_DATA
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.pipeline.workspace import fold_name

UNKNOWN = "new_whale"


@dataclass(frozen=True)
class World:
    """images, folds: the tables. latent: float (n, d) of each image. solution: str, identity of each test
    image.
    """

    images: pd.DataFrame
    folds: pd.DataFrame
    latent: np.ndarray
    solution: np.ndarray
    competition: Competition


def make_world(
    identities: int = 40,
    folds: int = 3,
    seed: int = 0,
    unknown: bool = True,
    noise: float = 0.9,
    dims: int = 24,
) -> World:
    rng = np.random.default_rng(seed)
    sizes = np.minimum(1 + rng.geometric(0.22, identities), 12)
    sizes[: identities // 5] = 1  # singletons
    train = np.repeat(np.arange(identities), sizes)
    strangers = len(train) // 3 if unknown else 0
    train = np.concatenate([train, identities + np.arange(strangers)])
    test = rng.integers(0, identities, len(train) // 2)
    test_strangers = len(test) // 4 if unknown else 0
    test = np.concatenate([test, identities + strangers + np.arange(test_strangers)])
    who = np.concatenate([train, test])
    prototypes = rng.normal(size=(who.max() + 1, dims))
    latent = prototypes[who] + noise * rng.normal(size=(len(who), dims))
    names = np.array([f"w_{number:04d}" if number < identities else UNKNOWN for number in who], dtype=object)
    split = np.array(["train"] * len(train) + ["test"] * len(test), dtype=object)
    order = rng.permutation(len(who))  # train and test rows stand mixed, as they may
    images = pd.DataFrame(
        {
            "image": [f"{row:05d}.jpg" for row in range(len(who))],
            "split": split[order],
            "identity": np.where(split == "train", names, None)[order],
        }
    )
    is_train = images["split"] == "train"
    table = images.loc[is_train, ["image", "identity"]].reset_index(drop=True)
    table["fold"] = spread(table["identity"].to_numpy(), folds)
    competition = Competition.model_validate(
        {
            "name": "synthetic",
            "root": "/nowhere",
            "train": {"csv": "train.csv", "images": "train", "image": "Image", "identity": "Id"},
            "unknown": UNKNOWN if unknown else None,
            "unknown_share": 0.2 if unknown else None,
        }
    )
    solution = names[order][~is_train.to_numpy()].astype(str)
    return World(images, table, latent[order], solution, competition)


def write_sources(
    world: World,
    folder: Path,
    count: int = 3,
    part: float = 0.5,
    noise: float = 0.6,
    seed: int = 0,
    logits: bool = True,
    overfit: float = 0.5,
    full: int = 0,
) -> list[Source]:
    """Features of `count` networks, each seeing `part` of the latent dimensions.

    full: this many of them have a model of all labelled images, too.
    """
    fold_of = world.images["image"].map(world.folds.set_index("image")["fold"]).fillna(-1).to_numpy(dtype=int)
    sources = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        dims = world.latent.shape[1]
        seen = rng.permutation(dims)[: max(2, int(part * dims))]
        paths = {}
        for fold in [*sorted(set(fold_of) - {-1}), *([FULL_DATA] if number < full else [])]:
            trained = (fold_of >= 0) & (fold_of != fold)
            view = world.latent[:, seen] + noise * rng.normal(size=(len(fold_of), len(seen))) * np.where(
                trained, overfit, 1.0
            ).reshape(-1, 1)
            turn = np.linalg.qr(rng.normal(size=(len(seen), len(seen))))[0]
            embeddings = view @ turn
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            path = folder / f"net{number}" / fold_name(None if fold == FULL_DATA else int(fold))
            scores, classes = _logits(embeddings, world.images["identity"].to_numpy(dtype=object), trained)
            write_folder(path, world.images["image"], embeddings, scores if logits else None, classes)
            paths[int(fold)] = path
        sources.append(Source(f"net{number}", paths, full=paths.pop(FULL_DATA, None)))
    return sources


def write_folder(
    path: Path, names: pd.Series, embeddings: np.ndarray, logits: np.ndarray | None = None, classes=()
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    np.save(path / "embeddings.npy", embeddings.astype(np.float32))
    names.to_frame("image").to_csv(path / "rows.csv", index=False)
    if logits is not None:
        np.save(path / "logits.npy", logits.astype(np.float32))
        (path / "classes.txt").write_text("\n".join(classes) + "\n")


def recipe(**combine) -> Recipe:
    combine = {
        "full_gallery": False,
        "concat": {"whiten": 32, "power": 0.5},
        "classifier": {"epochs": 15, "seeds": 1},
        **combine,
    }
    return Recipe.model_validate({"name": "test", "folds": 3, "sources": {"x": "y"}, "combine": combine})


def with_lists(ranking: Ranking, **changes) -> Ranking:
    """A ranking with other lists out of fold (`oof`, the same for every fold that they are used for)."""
    oof = changes.pop("oof")
    return replace(ranking, lists=OofLists.same(tuple(oof)), **changes)


def spread(identity: np.ndarray, folds: int) -> np.ndarray:
    """Fold of each image: an identity's images in turn, from another fold for every identity."""
    fold = np.empty(len(identity), dtype=int)
    for number, name in enumerate(np.unique(identity.astype(str))):
        rows = np.flatnonzero(identity == name)
        fold[rows] = (np.arange(len(rows)) + number) % folds
    return fold


def _logits(embeddings: np.ndarray, identity: np.ndarray, trained: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A head as a network would have it: scaled cosine with the centroids of the classes it was trained
    on.
    """
    classes = sorted({name for name in identity[trained] if name != UNKNOWN})
    centroids = np.stack([embeddings[trained & (identity == name)].mean(axis=0) for name in classes])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return 15.0 * embeddings @ centroids.T, classes
