"""Columns of images and labels of a submission or solution, for every form of answer.

They stay pyarrow arrays from the file to integer codes, so that a million rows take a second.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute creates its functions at run time)
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whaleid.data.competition import first_few
from whaleid.data.tables import CsvTable, read_csv
from whaleid.evaluation.metrics import PADDING
from whaleid.utils.errors import WhaleidError

_IMAGES = 3  # images that an error names
_ROWS = 10  # rows that an error names
_MAX_CODES = 1 << 29  # 2 GB: a cell that holds a whole list of identities by mistake is refused


def read_answers(path: Path, allow_uneven: bool = False) -> CsvTable:
    """A CSV of images and labels: a header, at least two columns and at least one row.

    allow_uneven: as in `data.tables.read_csv`.
    """
    table = read_csv(path, allow_uneven)
    if len(table.header) < 2:
        only = table.header[0] if table.header else "a blank line"
        raise WhaleidError(f"{path}: row 1: one column only ({only}); give the image, a comma, the labels")
    if not len(table.rows):
        raise WhaleidError(f"{path}: a header and no rows; give a row for each image")
    return table


def joined(columns: list[Any]) -> Any:
    """Columns of labels as one, their cells joined by spaces."""
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, " ")


def encode(table: CsvTable, cells: Any) -> tuple[np.ndarray, Any]:
    """Codes of labels that are separated by white space.

    Parameters
    ----------
    table : CsvTable
        Where the cells come from, for messages.
    cells : pyarrow string array, shape (n,)

    Returns
    -------
    codes : int32 array, shape (n, m)
        Codes of each row's labels, then PADDING.
    labels : pyarrow string array, shape (c,)
        Label of each code.
    """
    split = pc.ascii_split_whitespace(cells)
    flat, count = split.flatten(), pc.list_value_length(split).to_numpy()
    full = pc.not_equal(flat, "")  # splitting leaves "" for an empty cell, and for white space at both ends
    if not pc.all(full).as_py():
        row = np.repeat(np.arange(len(cells)), count)[full.to_numpy(zero_copy_only=False)]
        flat, count = flat.filter(full), np.bincount(row, minlength=len(cells))
    encoded = flat.dictionary_encode()
    width = int(count.max())
    if width * len(cells) > _MAX_CODES:
        at = table.rows[count.argmax()]
        raise WhaleidError(f"{table.path}: row {at}: {width} guesses, too many to hold for {len(cells)} rows")
    codes = np.full((len(cells), width), PADDING, dtype=np.int32)
    codes[np.arange(width) < count[:, None]] = encoded.indices.to_numpy()  # row after row, each from its start
    return codes, encoded.dictionary


def blank(cells: Any) -> np.ndarray:
    """Whether each cell is empty or white space, bool (n,)."""
    return pc.equal(pc.ascii_trim_whitespace(cells), "").to_numpy(zero_copy_only=False)


def not_in(values: Any, others: Any) -> np.ndarray:
    """Whether each of the string array `values` is missing in the string array `others`, bool (n,)."""
    return pc.invert(pc.is_in(values, value_set=others)).to_numpy(zero_copy_only=False)


def require_images(table: CsvTable) -> None:
    """Raise WhaleidError if a row names no image."""
    empty = blank(table.images)
    if empty.any():
        raise WhaleidError(f"{table.path}: row {table.rows[empty.argmax()]}: the image is empty; fill it in")


def require_distinct(table: CsvTable) -> None:
    """Raise WhaleidError if an image has several rows."""
    encoded = table.images.dictionary_encode()
    surplus = len(table.images) - len(encoded.dictionary)
    if not surplus:
        return
    places = encoded.indices.to_numpy()
    name = int(np.argmax(np.bincount(places) > 1))
    rows = first_few([str(row) for row in table.rows[places == name]], _ROWS)
    raise WhaleidError(
        f"{table.path}: image {encoded.dictionary[name]} is in rows {rows} ({surplus} surplus row(s)); "
        "keep one row for each image"
    )


def require_same_images(answers: CsvTable, truths: CsvTable) -> None:
    """Raise WhaleidError if the two tables hold different images."""
    missing = truths.images.filter(pa.array(not_in(truths.images, answers.images))).to_pylist()
    extra = answers.images.filter(pa.array(not_in(answers.images, truths.images))).to_pylist()
    if missing or extra:
        raise WhaleidError(f"{answers.path}: {difference(missing, extra, truths.path)}")


def difference(missing: list[str], extra: list[str], other: Path) -> str:
    """`2 image(s) of <other> have no row (a, b); 1 image(s) are not in <other> (c)`."""
    parts = [f"{len(missing)} image(s) of {other} have no row ({first_few(missing, _IMAGES)})"] if missing else []
    parts += [f"{len(extra)} image(s) are not in {other} ({first_few(extra, _IMAGES)})"] if extra else []
    return "; ".join(parts)
