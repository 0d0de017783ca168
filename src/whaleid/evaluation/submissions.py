"""The form `ranked`, scored by MAP@k: a CSV with a row for each image and its guesses, best first.

Columns go by position: the image, then labels joined by spaces; further columns hold further labels.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at run time)
from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whaleid.evaluation import metrics
from whaleid.evaluation.metrics import PADDING, MapScore
from whaleid.evaluation.tables import (
    Table,
    blank,
    difference,
    encode,
    joined,
    not_in,
    read_table,
    require_distinct,
    require_images,
    require_same_images,
)
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

_LISTED = 10  # problems of one kind that are spelled out
_WRONG_SEPARATOR = r"[,;]|[^\S ]|  |^ | $"  # anything but one space between two labels
_ANY_SEPARATOR = r"[,;\s]+"


@dataclass(frozen=True)
class Guesses:
    """What a file guesses.

    images: str objects (n,). codes: int32 (n, m), places in `labels`, best first, PADDING at a row's end.
    labels: str objects (c,), each once. header: names of the file's columns.
    """

    images: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    header: tuple[str, ...]

    def as_lists(self) -> list[list[str]]:
        """The labels of each row, best first."""
        names = self.labels.tolist()
        return [[names[code] for code in row if code >= 0] for row in self.codes.tolist()]


# --------------------------------------------------------------------------------------------- read and score


def read_guesses(path: Path, k: int | None = None) -> Guesses:
    """Guesses of every image, in the file's order; only the first k distinct ones of each row if k is given.

    Raises WhaleidError naming file and row: missing or empty file, no rows, one column only, a row with more
    or fewer cells than the header, empty image, duplicate images. A row without guesses is allowed.
    """
    table = read_table(path)
    require_images(table)
    require_distinct(table)
    codes, labels = encode(table, joined(table.columns[1:]))
    if k is not None:
        codes = metrics.first_distinct(codes, k)
    return Guesses(_objects(table.images), codes, _objects(labels), tuple(table.header))


def score_submission(
    submission: Path,
    solution: Path,
    k: int = 5,
    seed: int = 0,
    *,
    unknown: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> MapScore:
    """MAP@k of a submission; rows are matched by image, whatever their order.

    solution: image and identity in its first two columns; others (Kaggle's `Usage`) are left alone.
    sizes: number of labelled images of each identity, which adds the score of each slice of `size_slices`;
    `unknown` is then the label of the unknown identity.
    Raises WhaleidError as `read_guesses` does, where the files' images differ or an identity is empty.
    """
    answers, truths = read_table(submission), read_table(solution)
    for table in (answers, truths):
        require_images(table)
    order = _order(answers, truths)
    codes, labels = encode(answers, joined(answers.columns[1:]))
    truth = pc.ascii_trim_whitespace(truths.columns[1])
    truth_codes = pc.index_in(truth, value_set=labels)
    _require_identities(truths, truth, truth_codes.is_null())
    truth_codes = truth_codes.fill_null(PADDING).to_numpy()
    codes = codes[order]
    slices = None if sizes is None else _slices(truth, sizes, unknown)
    return metrics.score_ranks(metrics.rank_of_truth(codes, truth_codes), k, slices=slices, seed=seed)


def _order(answers: Table, truths: Table) -> np.ndarray:
    """Place in `answers` of each row of `truths`, int (n,); both must hold the same images, each once."""
    places = pc.index_in(truths.images, value_set=answers.images)
    taken = np.zeros(len(answers.rows), dtype=bool)
    taken[places.drop_null().to_numpy()] = True
    if len(answers.rows) != len(truths.rows) or not taken.all():  # else one to one: no other look-up is needed
        require_distinct(truths)
        require_distinct(answers)
        require_same_images(answers, truths)
    return places.to_numpy()


def _objects(array: Any) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _slices(truth: Any, sizes: Mapping[str, int], unknown: str | None) -> np.ndarray:
    """Slice of each true label, (n,)."""
    encoded = truth.dictionary_encode()
    names, places = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    counts = np.array([sizes.get(name, 0) for name in names])
    return metrics.size_slices(counts, np.array([name == unknown for name in names]))[places]


# -------------------------------------------------------------------------------------------- check and write


def check_submission(path: Path, sample: Path, known: Collection[str] | None = None, k: int = 5) -> list[str]:
    """Everything that is wrong with a submission, one line each; empty if nothing is.

    Header and images are the sample's, in its order; every row has 1 to k labels, all different, all in
    `known` (if given), with one space between them. Ten problems of a kind are spelled out, the rest counted.
    Raises WhaleidError if the sample itself cannot be read.
    """
    template = read_table(sample)
    require_images(template)
    require_distinct(template)
    try:
        table = read_table(path, lenient=True)
    except WhaleidError as error:
        return [str(error)]
    problems = []
    if table.header != template.header:
        found, wanted = ",".join(table.header), ",".join(template.header)
        problems.append(f"row 1: the header is {found}; the sample's is {wanted}")
    problems += _listed(table.ragged, lambda row: f"row {row}: not {len(table.header)} cells, as in the header")
    return problems + _image_problems(table, template) + _label_problems(table, known, k)


def write_submission(
    path: Path,
    images: Sequence[str],
    guesses: Sequence[Sequence[str]] | np.ndarray,
    sample: Path,
    known: Collection[str] | None = None,
    k: int = 5,
    columns: tuple[str, str] | None = None,
) -> None:
    """Write a submission in the sample's header and row order; it appears whole and valid, or not at all.

    images: str (n,), in any order. guesses: for each its labels, best first; "" and None are padding.
    columns: the names that the competition's file gives the two columns, to be compared with the sample's.
    Raises WhaleidError for whatever `check_submission` would find.
    """
    template = read_table(sample)
    if len(template.header) != 2 or (columns is not None and list(columns) != template.header):
        wanted = " and ".join(columns) if columns else "an image column and a label column"
        raise WhaleidError(f"{sample}: the header is {','.join(template.header)}; expected {wanted}")
    if len(images) != len(guesses):
        raise WhaleidError(f"{path}: not written: {len(images)} images, but {len(guesses)} rows of guesses")
    row_of = {str(image): row for row, image in enumerate(images)}
    order = template.images.to_pylist()
    if len(row_of) != len(images):
        again = len(images) - len(row_of)
        raise WhaleidError(f"{path}: not written: {again} surplus row(s): give each image once")
    missing = [image for image in order if image not in row_of]
    extra = sorted(row_of.keys() - set(order))
    if missing or extra:
        raise WhaleidError(f"{path}: not written: {difference(missing, extra, sample)}")
    with atomic_path(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(template.header)
            for image in order:
                labels = [str(label) for label in guesses[row_of[image]] if label is not None and label != ""]
                writer.writerow([image, " ".join(labels)])
        problems = check_submission(temporary, sample, known, k)
        if problems:
            raise WhaleidError(f"{path}: not written: {'; '.join(problems)}")


def _image_problems(table: Table, template: Table) -> list[str]:
    """Empty, repeated, missing and foreign images, and another order."""
    empty = blank(table.images)
    problems = _listed(table.rows[empty], lambda row: f"row {row}: the image is empty")
    encoded = table.images.dictionary_encode()
    places = encoded.indices.to_numpy()
    first = np.unique(places, return_index=True)[1]
    again = np.flatnonzero((first[places] != np.arange(len(places))) & ~empty)
    names = table.images
    problems += _listed(
        again,
        lambda i: f"row {table.rows[i]}: image {names[i]} is already in row {table.rows[first[places[i]]]}",
    )
    absent = np.flatnonzero(not_in(template.images, table.images))
    problems += _listed(absent, lambda i: f"image {template.images[i]} of the sample has no row")
    foreign = np.flatnonzero(not_in(names, template.images) & ~empty)
    problems += _listed(foreign, lambda i: f"row {table.rows[i]}: image {names[i]} is not in the sample")
    if len(names) == len(template.images) and not len(absent) and not names.equals(template.images):
        i = int(np.argmin(pc.equal(names, template.images).to_numpy(zero_copy_only=False)))
        problems.append(
            f"row {table.rows[i]}: another order than the sample's; image {names[i]} stands where "
            f"{template.images[i]} should"
        )
    return problems


def _label_problems(table: Table, known: Collection[str] | None, k: int) -> list[str]:
    """Wrong separators, and rows with none, too many, repeated or not existing labels."""
    wrong = np.zeros(len(table.rows), dtype=bool)
    for column in table.columns[1:]:
        wrong |= pc.match_substring_regex(column, _WRONG_SEPARATOR).to_numpy(zero_copy_only=False)
    cells = joined(table.columns[1:])
    if wrong.any():  # the other checks then look at the labels that were meant
        cells = pc.replace_substring_regex(cells, _ANY_SEPARATOR, " ")
    codes, labels = encode(table, cells)
    count = (codes >= 0).sum(axis=1)
    repeated = (codes >= 0) & ~metrics.distinct_mask(codes)

    def at(i: int) -> str:
        return f"row {table.rows[i]} ({table.images[i]})"

    def label(i: int, column: int) -> str:
        return repr(labels[int(codes[i, column])].as_py())

    problems = _listed(np.flatnonzero(wrong), lambda i: f"{at(i)}: separate labels by one space, nothing else")
    problems += _listed(np.flatnonzero(count == 0), lambda i: f"{at(i)}: no guesses")
    problems += _listed(np.flatnonzero(count > k), lambda i: f"{at(i)}: {count[i]} guesses, at most {k} allowed")
    problems += _listed(np.argwhere(repeated), lambda p: f"{at(p[0])}: {label(*p)} is guessed more than once")
    if known is not None:
        # PADDING is -1, the place of the last: never foreign
        foreign = np.append(not_in(labels, pa.array(list(known), pa.string())), False)
        unlisted = np.argwhere(foreign[codes])
        problems += _listed(unlisted, lambda p: f"{at(p[0])}: {label(*p)} is not an identity of this competition")
    return problems


def _listed(items: Sequence[Any] | np.ndarray, describe: Callable[[Any], str]) -> list[str]:
    """A line for each of the first problems of one kind, and one that counts the others."""
    lines = [describe(item) for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"... and {len(items) - _LISTED} more like the last")
    return lines


def _require_identities(table: Table, truth: Any, unguessed: Any) -> None:
    """Every row of a solution holds one identity. unguessed: arrow bool (n,); what was guessed is one."""
    truth, rows = truth.filter(unguessed), table.rows[unguessed.to_numpy(zero_copy_only=False)]
    empty = blank(truth)
    if empty.any():
        row = rows[empty.argmax()]
        raise WhaleidError(f"{table.path}: row {row}: the identity is empty; a solution names one for each image")
    several = pc.match_substring_regex(truth, r"\s").to_numpy(zero_copy_only=False)
    if several.any():
        row, text = rows[several.argmax()], truth[int(several.argmax())].as_py()
        raise WhaleidError(
            f"{table.path}: row {row}: {text!r} is not one identity, as it holds a space; "
            "are submission and solution the wrong way round?"
        )
