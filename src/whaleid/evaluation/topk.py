"""The form of answer `topk`: a CSV with a row for each image and its guesses, best first, scored by MAP@k.

Columns are read by position: the image, then labels separated by spaces; more columns hold more labels.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at run time)
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whaleid.config.competition import LABEL_SEPARATORS
from whaleid.data.tables import CsvTable
from whaleid.evaluation import metrics, rank_metrics
from whaleid.evaluation.metrics import PADDING, MapScore
from whaleid.evaluation.submission_file import file_problems, listed
from whaleid.evaluation.tables import (
    blank,
    encode,
    joined,
    not_in,
    read_answers,
    require_distinct,
    require_images,
    require_same_images,
)
from whaleid.utils.errors import WhaleidError

NEEDS = "guesses"
"""Its answers are the ladder's guesses (`forms.Form`)."""

_WRONG_SEPARATOR = r"[,;]|[^\S ]|  |^ | $"  # anything but one space between two labels
_ANY_SEPARATOR = f"{LABEL_SEPARATORS}+"


@dataclass(frozen=True)
class Guesses:
    """Guesses of a submission.

    Attributes
    ----------
    images : str array, shape (n,)
    codes : int32 array, shape (n, m)
        Positions in `labels`, best first; PADDING at the end of a row.
    labels : str array, shape (c,)
        Distinct labels.
    """

    images: np.ndarray
    codes: np.ndarray
    labels: np.ndarray

    def as_lists(self) -> list[list[str]]:
        """Labels of each row, best first."""
        names = self.labels.tolist()
        return [[names[code] for code in row if code >= 0] for row in self.codes.tolist()]


# ---------------------------------------------------------------------------------------------- reading, scoring


def read_guesses(path: Path) -> Guesses:
    """Guesses of every image, in the order of the file; rows without guesses are allowed.

    Raises
    ------
    WhaleidError
        For a file that is missing or empty, a row with too few or too many cells, an empty or repeated image.
    """
    table = read_answers(path)
    require_images(table)
    require_distinct(table)
    codes, labels = encode(table, joined(table.columns[1:]))
    return Guesses(_objects(table.images), codes, _objects(labels))


def score_submission(
    submission: Path,
    solution: Path,
    k: int = 5,
    seed: int = 0,
    *,
    unknown: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> MapScore:
    """MAP@k of a submission; rows are matched by image, in any order.

    Parameters
    ----------
    submission : Path
        Image and guesses.
    solution : Path
        Image and identity in the first two columns; further ones (Kaggle's `Usage`) are ignored.
    k : int
        Number of guesses that count.
    seed : int
        Of the interval's random draws.
    unknown : str, optional
        Label of the unknown identity, for the slices.
    sizes : mapping, optional
        Identity -> number of labelled images; adds the score of each slice of `size_slices`.

    Raises
    ------
    WhaleidError
        As `read_guesses`; if the files hold different images or an identity is empty.
    """
    answers, truths = read_answers(submission), read_answers(solution)
    for table in (answers, truths):
        require_images(table)
    order = _order(answers, truths)
    codes, labels = encode(answers, joined(answers.columns[1:]))
    truth = pc.ascii_trim_whitespace(truths.columns[1])
    truth_codes = pc.index_in(truth, value_set=labels)
    _require_identities(truths, truth, truth_codes.is_null())
    truth_codes = truth_codes.fill_null(PADDING).to_numpy()
    rank = metrics.rank_of_truth(codes[order], truth_codes)
    slices = None if sizes is None else _slices(truth, sizes, unknown)
    score = metrics.score_ranks(rank, k, slices=slices, seed=seed)
    minp = float(metrics.reciprocal_rank_at_k(rank, max(codes.shape[1], 1)).mean())
    return replace(score, cmc=tuple(rank_metrics.cmc(rank, k).tolist()), minp=minp)


def _order(answers: CsvTable, truths: CsvTable) -> np.ndarray:
    """Position in `answers` of each row of `truths`, int (n,); both must hold the same images, each once."""
    places = pc.index_in(truths.images, value_set=answers.images)
    taken = np.zeros(len(answers.rows), dtype=bool)
    taken[places.drop_null().to_numpy()] = True
    if len(answers.rows) != len(truths.rows) or not taken.all():  # else the match is one to one
        require_distinct(truths)
        require_distinct(answers)
        require_same_images(answers, truths)
    return places.to_numpy()


def _objects(array: Any) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _slices(truth: Any, sizes: Mapping[str, int], unknown: str | None) -> np.ndarray:
    """Slice of each true label, str (n,)."""
    encoded = truth.dictionary_encode()
    names, places = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    counts = np.array([sizes.get(name, 0) for name in names])
    return metrics.size_slices(counts, np.array([name == unknown for name in names]))[places]


# --------------------------------------------------------------------------------------------- writing, checking


def unreadable(image: str, likely: list[str]) -> str:
    """The guesses for an image that could not be read: the labels that are right most often."""
    return " ".join(likely)


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 5) -> list[str]:
    """Everything that is wrong with a submission.

    Parameters
    ----------
    path : Path
        Submission.
    sample : Path
        Sample submission; header, images and their order must be its own.
    known : collection of str, optional
        Identities that may be guessed; None: any.
    k : int
        Each row must have 1 to k different labels, with one space between them.

    Returns
    -------
    list of str
        One line for each problem, empty for a valid submission. At most ten problems of a kind are listed, the
        others counted.

    Raises
    ------
    WhaleidError
        If the sample cannot be read.
    """
    table, problems = file_problems(path, sample)
    return problems if table is None else problems + _label_problems(table, known, k)


def _label_problems(table: CsvTable, known: Collection[str] | None, k: int) -> list[str]:
    """Rows with wrong separators, and with no, too many, repeated or unknown labels."""
    wrong = np.zeros(len(table.rows), dtype=bool)
    for column in table.columns[1:]:
        wrong |= pc.match_substring_regex(column, _WRONG_SEPARATOR).to_numpy(zero_copy_only=False)
    cells = joined(table.columns[1:])
    if wrong.any():  # the other checks then see the intended labels
        cells = pc.replace_substring_regex(cells, _ANY_SEPARATOR, " ")
    codes, labels = encode(table, cells)
    count = (codes >= 0).sum(axis=1)
    repeated = (codes >= 0) & ~metrics.distinct_mask(codes)

    def at(i: int) -> str:
        return f"row {table.rows[i]} ({table.images[i]})"

    def label(i: int, column: int) -> str:
        return repr(labels[int(codes[i, column])].as_py())

    problems = listed(np.flatnonzero(wrong), lambda i: f"{at(i)}: separate labels by one space, nothing else")
    problems += listed(np.flatnonzero(count == 0), lambda i: f"{at(i)}: no guesses")
    problems += listed(np.flatnonzero(count > k), lambda i: f"{at(i)}: {count[i]} guesses, at most {k} allowed")
    problems += listed(np.argwhere(repeated), lambda p: f"{at(p[0])}: {label(*p)} is guessed more than once")
    if known is not None:
        # PADDING is -1, the place of the last: never foreign
        foreign = np.append(not_in(labels, pa.array(list(known), pa.string())), False)
        unlisted = np.argwhere(foreign[codes])
        problems += listed(unlisted, lambda p: f"{at(p[0])}: {label(*p)} is not an identity of this competition")
    return problems


def _require_identities(table: CsvTable, truth: Any, unguessed: Any) -> None:
    """Raise WhaleidError unless every row of a solution holds one identity.

    unguessed: arrow bool (n,), rows to check; an identity that was guessed is one.
    """
    truth, rows = truth.filter(unguessed), table.rows[unguessed.to_numpy(zero_copy_only=False)]
    empty = blank(truth)
    if empty.any():
        row = rows[empty.argmax()]
        raise WhaleidError(f"{table.path}: row {row}: the identity is empty; a solution holds one for each image")
    several = pc.match_substring_regex(truth, r"\s").to_numpy(zero_copy_only=False)
    if several.any():
        row, text = rows[several.argmax()], truth[int(several.argmax())].as_py()
        raise WhaleidError(
            f"{table.path}: row {row}: {text!r} is not one identity, as it holds a space; "
            "were submission and solution swapped?"
        )
