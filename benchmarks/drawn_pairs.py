"""Sets of drawn features with P(same), as the form of answer `clusters` has them: for its benchmark and its tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whaleid.config import KnnConfig
from whaleid.ensemble.same_identity import (
    PairModel,
    fit_pair_model,
    nearest_gallery_pairs,
    nearest_pairs,
    pair_values,
)
from whaleid.evaluation.form_input import ImagePairs, PairTable

DIMS = 32


@dataclass(frozen=True)
class Drawn:
    """A set of images whose truth is known.

    Attributes
    ----------
    embeddings : float32 array, shape (n + g, d)
        Unit rows: of the n images, then of the g labelled ones.
    identity, gallery_identity : str arrays, shapes (n,) and (g,)
    """

    embeddings: np.ndarray
    identity: np.ndarray
    gallery_identity: np.ndarray


def draw(rng: np.random.Generator, identities: int, density: float, noise: float, known: float = 0.5) -> Drawn:
    """Images of Gaussian identities.

    Parameters
    ----------
    rng : Generator
    identities : int
        All have images in the set.
    density : float
        Images of an identity on average; each has one at least.
    noise : float
        Of an image, in units of the spread of the identities.
    known : float
        Share of the identities that have labelled images, three each.
    """
    sizes = 1 + rng.poisson(density - 1, identities)
    who = np.repeat(np.arange(identities), sizes)
    labelled = np.repeat(np.arange(int(known * identities)), 3)
    prototypes = rng.normal(size=(identities, DIMS))
    everyone = np.concatenate([who, labelled])
    embeddings = prototypes[everyone] + noise * rng.normal(size=(len(everyone), DIMS))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = np.array([f"{rng.integers(10**9)}-{number}" for number in range(identities)])
    return Drawn(embeddings.astype(np.float32), names[who], names[labelled])


def tables_of(one: Drawn) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pairs of the set that are compared, and what is known of each, as in `pair_answers`."""
    count, everyone = len(one.identity), np.arange(len(one.embeddings))
    rows, gallery = everyone[:count], everyone[count:]
    pairs = {"among": nearest_pairs(one.embeddings, rows, KnnConfig())}
    values = {"among": pair_values(one.embeddings, rows, pairs["among"])}
    if len(gallery):
        pairs["to_gallery"] = nearest_gallery_pairs(one.embeddings, rows, gallery, KnnConfig())
        values["to_gallery"] = pair_values(one.embeddings, everyone, pairs["to_gallery"] + [0, count])
    return pairs, values


def fit_models(sets: list[Drawn]) -> dict[str, PairModel]:
    """P(same), fitted on sets whose truth is known."""
    models = {}
    for name in ("among", "to_gallery"):
        same, values = [], []
        for one in sets:
            pairs, found = tables_of(one)
            other = one.identity if name == "among" else one.gallery_identity
            same.append(one.identity[pairs[name][:, 0]] == other[pairs[name][:, 1]])
            values.append(found[name])
        models[name] = fit_pair_model(np.concatenate(values), np.concatenate(same))
    return models


def image_pairs(one: Drawn, models: dict[str, PairModel]) -> ImagePairs:
    """The set with P(same) of its pairs."""
    pairs, values = tables_of(one)
    found = {
        name: PairTable(pairs[name][:, 0], pairs[name][:, 1], models[name].probability(values[name])) for name in pairs
    }
    count = len(one.identity)
    names = np.array([f"i{number}" for number in range(count)])
    gallery = np.array([f"g{number}" for number in range(len(one.gallery_identity))])
    return ImagePairs(names, np.full(count, ""), gallery, one.gallery_identity, **found)


def true_pairs(pairs: np.ndarray, one: Drawn) -> np.ndarray:
    """Whether pairs of places (`ImagePairs.must_link`) are of one identity, bool (p,)."""
    everyone = np.concatenate([one.identity, one.gallery_identity])
    return everyone[pairs[:, 0]] == everyone[pairs[:, 1]]
