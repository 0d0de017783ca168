"""The pairs of images that are worth a person's look, most informative first.

A decision is worth most where the machine is least sure: where a guess is as likely wrong as right, or its score lies
at the threshold of the unknown identity. Labels are doubted by what the models say that were trained without the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from whaleid.data.duplicates import HASH_DISTANCE
from whaleid.evaluation.forms import CLUSTERS
from whaleid.evaluation.submission_file import DOUBTS
from whaleid.features.files import read_features
from whaleid.identify.rank import holds_logarithms, probabilities_of
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.submission import read_rungs
from whaleid.report.inputs import Results, best_single_features, read_results

KINDS = {
    "guess": "guesses for test images",
    "new": "called unknown",
    "cluster": "two clusters, or one",
    "label": "doubtful labels",
    "copy": "copies with two labels",
}
"""Kind of a pair -> its name for people."""
MOST = 1000
"""Pairs that are shown; more than a person decides in a day."""
GUESSES = 3
"""Identities of a test image that are shown, one after the other while the ones before are different."""
CONFIDENT = 0.5
"""Probability out of fold from which another identity speaks against a label: it is likelier than all others."""


@dataclass(frozen=True)
class Pair:
    """Two images that may show one individual.

    Attributes
    ----------
    kind : str
        One of KINDS.
    query, other : int
        Rows of images.parquet; `other` is labelled (but of kind `cluster`), and -1 while its image is not chosen.
    identity : str
        Label of `other`; '' for none.
    reason : str
        Why it is worth a look.
    worth : float
        In [0, 1]; the larger, the earlier it is shown.
    fold : int
        Whose model compares the images.
    """

    kind: str
    query: int
    other: int
    identity: str
    reason: str
    worth: float
    fold: int


def find_pairs(project: Project) -> tuple[Results, list[Pair]]:
    """The results of a finished project, and at most MOST pairs of images, most informative first.

    Raises
    ------
    WhaleidError
        If there are no results yet.
    """
    results = read_results(in_used_round(project))
    asked = doubtful_clusters if project.competition.answer.form == CLUSTERS else uncertain_guesses
    pairs = [*copies(results), *doubtful_labels(results), *asked(results)]
    pairs.sort(key=lambda pair: -pair.worth)
    return results, with_nearest_images(pairs[:MOST], results.images, best_single_features(results)[1])


def uncertain_guesses(results: Results) -> Iterator[Pair]:
    """Test images with their first identities: `new` where the unknown identity was guessed, else `guess`."""
    competition, images = results.project.competition, results.images
    if competition.test is None:
        return
    lists, last = read_rungs(results.project)[-1][1], results.rankers[-1]
    probabilities = probabilities_of(lists, results.figures, competition.unknown)
    rows = pd.Index(images["image"]).get_indexer(pd.Index(lists.queries))
    names = np.append(lists.classes.astype(str), "")[lists.codes]
    for row, guesses, chances in zip(rows.tolist(), names.tolist(), probabilities.tolist(), strict=True):
        kind = "new" if guesses[0] == competition.unknown else "guess"
        named = [one for one in zip(guesses, chances, strict=True) if one[0] not in ("", competition.unknown)]
        worth, levels = 1.0, _levels(last["unknown"], results.protocol.species(np.array([row]))[0])
        for identity, chance in named[:GUESSES]:  # none before a likelier one
            worth = min(worth, 1 - 2 * min(min(abs(chance - level) for level in levels), 0.5))
            called = f"called {competition.unknown}, " if kind == "new" else ""
            reason = f"{called}may be {identity} ({chance:.0%})"
            yield Pair(kind, row, -1, identity, reason, worth, results.project.folds[0])


def doubtful_clusters(results: Results) -> Iterator[Pair]:
    """Pairs of images of clusters that might be one, or might be two; of each merge the likeliest pair."""
    path = results.project.workspace.candidates(results.project.recipe.name) / DOUBTS
    if not path.is_file():
        return
    table, images = pd.read_csv(path, dtype={"image": str, "other": str}, keep_default_na=False), results.images
    rows = [pd.Index(images["image"]).get_indexer(pd.Index(table[name])) for name in ("image", "other")]
    labels = images["identity"].where(images["split"] == "train").fillna("").to_numpy(object)
    for query, other, pair in zip(*(one.tolist() for one in rows), table.itertuples(), strict=True):
        reason = f"P(same) {float(str(pair.probability)):.0%}"
        worth = float(str(pair.worth)) / max(float(table["worth"].max()), 1e-9)
        yield Pair("cluster", query, other, str(labels[other]), reason, worth, results.project.folds[0])


def _levels(unknown: dict[str, Any] | None, species: str) -> list[float]:
    """Probabilities at which a guess is as likely wrong as right, or at the threshold of the unknown identity."""
    if unknown is None:
        return [0.5]
    own = unknown.get("species", {}).get(species)
    return [0.5, unknown["used"] if own is None else own["used"]]


def doubtful_labels(results: Results) -> Iterator[Pair]:
    """Labelled images whose models, trained without them, are confident of another identity."""
    unknown, final = results.project.competition.unknown, results.final
    labels = results.images["identity"].to_numpy(object)[final.rows]
    first, scores = final.guesses[:, 0], final.scores[:, 0]
    chances = np.exp(scores) if holds_logarithms(results.figures, unknown) else scores
    doubted = (first != "") & (first != (unknown or "")) & (first != labels) & (chances >= CONFIDENT)
    for place in np.flatnonzero(doubted):
        identity, chance = str(first[place]), float(chances[place])
        reason = f"labelled {labels[place]}; models trained without it say {identity} ({chance:.0%})"
        yield Pair("label", int(final.rows[place]), -1, identity, reason, min(chance, 1.0), int(final.folds[place]))


def copies(results: Results) -> Iterator[Pair]:
    """Labelled images that are copies of one photograph and have two labels."""
    images = results.images
    labelled = images[(images["split"] == "train") & images["group"].duplicated(keep=False)]
    hashes = {row: int(text, 16) for row, text in labelled["phash"].items()}
    for _, group in labelled.groupby("group", sort=False):
        label = group["identity"].to_dict()
        for row, other in combinations(group.index.tolist(), 2):
            alike = (hashes[row] ^ hashes[other]).bit_count() <= HASH_DISTANCE  # a group may be an encounter
            if label[row] != label[other] and alike:
                reason = f"copies of one photograph, labelled {label[row]} and {label[other]}"
                yield Pair("copy", row, other, label[other], reason, 1.0, results.project.folds[0])


def with_nearest_images(pairs: list[Pair], images: pd.DataFrame, folders: dict[int, Path]) -> list[Pair]:
    """Pairs whose other image is chosen: of the identity's labelled images the one nearest to the query.

    folders: fold -> folder of the features to compare by; {} takes the identity's first image.
    """
    labelled = images[images["split"] == "train"]
    rows_of = {str(name): rows.to_numpy() for name, rows in labelled.groupby("identity").groups.items()}
    found: dict[int, int] = {}
    for fold in {pair.fold for pair in pairs}:
        own = [place for place, pair in enumerate(pairs) if pair.fold == fold and pair.other < 0]
        choices = [rows_of[pairs[place].identity] for place in own]
        if fold not in folders or not own:
            found |= {place: int(rows[0]) for place, rows in zip(own, choices, strict=True)}
            continue
        wanted = np.unique(np.concatenate([[pairs[place].query for place in own], *choices]))
        embeddings = read_features(folders[fold], images, wanted, logits=False).embeddings
        for place, rows in zip(own, choices, strict=True):
            query = embeddings[np.searchsorted(wanted, pairs[place].query)]
            found[place] = int(rows[np.argmax(embeddings[np.searchsorted(wanted, rows)] @ query)])
    return [replace(pair, other=found.get(place, pair.other)) for place, pair in enumerate(pairs)]
