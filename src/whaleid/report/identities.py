"""Which identities are hard: the worst ones, those that are taken for one another, and accuracy by number of images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from whaleid.evaluation.metrics import score_ranks
from whaleid.report.inputs import TopGuesses

SHOWN = 25
"""Rows of a table."""
_LARGEST = 10
"""Gallery images from which on identities are counted together."""


def worst_identities(final: TopGuesses) -> pd.DataFrame:
    """The identities with most wrong first guesses.

    Parameters
    ----------
    final : TopGuesses
        Without simulated queries.

    Returns
    -------
    DataFrame
        `identity, queries, wrong, taken_for`, the worst first; taken_for: the most frequent wrong first guess. Only
        identities with an image in the gallery and a wrong guess; at most SHOWN.
    """
    queries = _first_guesses(final)
    wrong = queries[queries["truth"] != queries["guess"]]
    table = pd.DataFrame({"queries": queries.groupby("truth").size(), "wrong": wrong.groupby("truth").size()}).dropna()
    table["taken_for"] = wrong.groupby("truth")["guess"].agg(lambda guesses: guesses.value_counts().index[0])
    table = table.rename_axis("identity").reset_index().astype({"wrong": int})
    return table.sort_values(["wrong", "queries", "identity"], ascending=[False, True, True]).head(SHOWN)


def confused_pairs(final: TopGuesses, unknown: str | None) -> pd.DataFrame:
    """The pairs of identities that are taken for one another most often.

    Returns
    -------
    DataFrame
        `identity, other, queries, back`: queries of `identity` with first guess `other`, and the other way round. The
        most frequent first, `identity` being the one that is mistaken more often; at most SHOWN.
    """
    queries = _first_guesses(final)
    wrong = queries[(queries["truth"] != queries["guess"]) & ~queries["guess"].isin([unknown, ""])]
    counts = Counter(zip(wrong["truth"].tolist(), wrong["guess"].tolist(), strict=True))
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for identity, other in sorted(counts, key=lambda pair: (-counts[pair], pair)):
        pairs.setdefault(frozenset((identity, other)), (identity, other))
    rows = [(a, b, counts[a, b], counts[b, a]) for a, b in pairs.values()]
    table = pd.DataFrame(rows, columns=["identity", "other", "queries", "back"])
    order = (table["queries"] + table["back"]).argsort(kind="stable")[::-1]
    return table.iloc[order].head(SHOWN)


def accuracy_by_size(final: TopGuesses) -> list[dict[str, Any]]:
    """Share of right first guesses by the number of gallery images of the true identity, with its 95 % interval.

    Returns
    -------
    list of dict
        `size, queries, accuracy, low, high`; the last size stands for all of at least that many images.
    """
    sizes = np.minimum(final.sizes, _LARGEST)
    right = (final.guesses[:, 0] == final.truth).astype(int)
    rows = []
    for size in np.unique(sizes[sizes > 0]).tolist():
        score = score_ranks(right[sizes == size], k=1)
        interval = {"low": score.low, "high": score.high}
        rows.append({"size": size, "queries": score.queries, "accuracy": score.map, **interval})
    return rows


def _first_guesses(final: TopGuesses) -> pd.DataFrame:
    """`truth, guess` of each query whose identity is in the gallery."""
    return pd.DataFrame({"truth": final.truth[final.known], "guess": final.guesses[final.known, 0]})
