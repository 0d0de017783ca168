"""Photographs of one encounter, found by look and by time: a query whose burst is in its gallery is too easy.

Photographs of one encounter share light and background. Two photographs of one individual are taken for neighbours in a
burst if their colours are as alike as those of hardly any two individuals in these data, so that sets that show all
animals in one place find few by chance. Of the pairs found on cow faces 80 % were of one day, of all pairs of one cow
19 %; perceptual hashes and thumbnails told the days of one cow no better than chance. An animal whose own colours are
rare looks like a burst too: it is a risk that is reported, and not a fact.

Where there are times, photographs more than a day apart are never a burst, and those within a minute always are. A
burst is no copy: copies share a fold (`duplicates.py`), bursts do so by a column of encounters, named as `group`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from whaleid.config import Competition
from whaleid.data.competition import first_few
from whaleid.data.duplicates import connected
from whaleid.data.images_table import fingerprint_rows

TIME = "date"
"""Name in `train.extra` of a column of dates or times."""
CHANCE = 0.003
"""Share of pairs of different individuals that look like a burst."""
FEWEST = 300
"""Pairs of different individuals below which nothing can be said of so small a share."""
SAMPLE = 1500
"""Images of which all pairs of different individuals are compared: a million pairs."""
BLOCK = 2048
"""Images of one identity that are compared with its others at once: 80 MB where it has ten thousand."""
DAY, MINUTE = np.timedelta64(1, "D"), np.timedelta64(60, "s")
LISTED = 3  # pairs that a note names


def bursts_of(competition: Competition, images: pd.DataFrame) -> np.ndarray:
    """Neighbours in bursts of a competition; the labelled images are read.

    images: images.parquet. Returns int64 (m, 2), rows of it.
    """
    labelled = np.flatnonzero(images["split"] == "train")
    rows = images.iloc[labelled].reset_index(drop=True)
    return labelled[find_bursts(rows, fingerprint_rows(competition, rows).colours, competition.unknown)]


def find_bursts(rows: pd.DataFrame, colours: np.ndarray, unknown: str | None, seed: int = 0) -> np.ndarray:
    """Neighbours in bursts.

    Parameters
    ----------
    rows : DataFrame, n rows
        Labelled images; columns `identity` and, where it is there, `date` are used.
    colours : uint8 array, shape (n, d)
        `Fingerprints.colours`.
    unknown : str or None
        Label of unknown individuals, of whom nobody knows who is the same.
    seed : int
        Of the images that are compared with one another.

    Returns
    -------
    int64 array, shape (m, 2)
        Pairs of rows of one identity, each once.
    """
    known = np.flatnonzero(rows["identity"] != unknown)
    codes = pd.factorize(rows["identity"].to_numpy()[known])[0]
    unit = colours[known].astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
    least = _least_similarity(unit, codes, seed)
    times = _times(rows.iloc[known])
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    found = [np.empty((0, 2), np.int64)]
    for places in np.split(order, starts[1:]):  # an identity at a time, and of a large one some images
        for start in range(0, len(places), BLOCK):
            some, others = places[start : start + BLOCK], places[start:]
            joined = _similarity(unit[some], unit[others]) > least
            if times is not None:
                joined = _by_time(joined, times[some], times[others])
            one, other = np.nonzero(np.triu(joined, 1))
            found.append(np.column_stack([some[one], others[other]]))
    return known[np.concatenate(found)]


def burst_numbers(pairs: np.ndarray, rows: int) -> np.ndarray:
    """Burst of each row, int64 (rows,): chains of neighbours; an image without neighbours has a number of its own."""
    return connected(rows, pairs)


def across(pairs: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The pairs whose rows are in different parts, int64 (m, 2). parts: (n,), the part (fold, group) of each row."""
    return pairs[parts[pairs[:, 0]] != parts[pairs[:, 1]]]


def burst_line(names: np.ndarray, pairs: np.ndarray, labelled: int, where: str = "") -> str | None:
    """What to say of bursts that are not kept together; None where there are none.

    Parameters
    ----------
    names : array of str, shape (n,)
        Name of each image.
    pairs : int array, shape (m, 2)
        Places in it.
    labelled : int
        Number of labelled images.
    where : str
        Follows "have one of the same encounter, by look".
    """
    if not len(pairs):
        return None
    count = len(np.unique(pairs))
    examples = first_few([f"{names[one]} and {names[other]}" for one, other in pairs], LISTED)
    return (
        f"bursts: {count:,} of {labelled:,} labelled images ({count / labelled:.0%}) seem to have one of the same "
        f"encounter{where}: {examples}; scores out of fold may flatter, unless a column of encounters is named as "
        "`group`"
    )


def _least_similarity(unit: np.ndarray, codes: np.ndarray, seed: int) -> float:
    """Similarity above which so few pairs of different identities are; 1 where too few pairs tell."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(unit))[:SAMPLE])
    one, other = np.triu_indices(len(rows), 1)
    different = codes[rows[one]] != codes[rows[other]]
    if different.sum() < FEWEST:
        return 1.0
    similarity = _similarity(unit[rows], unit[rows])[one[different], other[different]]
    return float(np.quantile(similarity, 1 - CHANCE, method="higher"))


def _similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Similarity of all pairs, float32 (m, n), at most 1, rounded alike on every machine; 0 for unreadable images."""
    return np.minimum(np.round(one @ other.T, 4), 1)


def _times(rows: pd.DataFrame) -> np.ndarray | None:
    """When each image was taken, datetime64 (n,), NaT where that is not known; None where there is no such column."""
    if TIME not in rows.columns:
        return None
    return pd.to_datetime(rows[TIME], errors="coerce", format="mixed", utc=True).dt.tz_localize(None).to_numpy()


def _by_time(alike: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which images are neighbours, bool (m, n), by look and by time. one, other: their times, datetime64."""
    between = np.abs(one[:, None] - other[None])  # no comparison with a missing time is true
    exact, others_exact = (times != times.astype("datetime64[D]") for times in (one, other))
    return (alike & ~(between > DAY)) | ((exact[:, None] & others_exact[None]) & (between <= MINUTE))
