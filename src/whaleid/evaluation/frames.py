"""Submissions and solutions as data frames whose faults are named by row and column.

The first column holds the image (or the row's id), the second the answer or the truth; further columns, such as
`dataset`, are found by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.evaluation.tables import read_answers, require_distinct, require_images, require_same_images
from whaleid.utils.errors import WhaleidError

DATASET = "dataset"
"""Column of a solution that splits the metric."""


@dataclass(frozen=True)
class AnswerFrame:
    """Cells of a file as text without white space at their ends.

    Attributes
    ----------
    path : Path
    frame : DataFrame of str, index: row of the file
    """

    path: Path
    frame: pd.DataFrame

    def position(self, place: int) -> pd.Series:
        """A column by its place."""
        return self.frame.iloc[:, place]

    def named(self, name: str) -> pd.Series:
        """A column by its name, or WhaleidError."""
        if list(self.frame.columns).count(name) != 1:
            listed = ", ".join(self.frame.columns)
            raise WhaleidError(f"{self.path}: one column '{name}' is needed (columns: {listed})")
        return self.frame[name]

    def datasets(self) -> np.ndarray:
        """Data set of each row, str (n,); '' where the file has no such column."""
        if DATASET not in self.frame.columns:
            return np.full(len(self.frame), "", dtype=object)
        values = self.named(DATASET)
        self.require(values != "", values, "is empty; name the data set")
        return values.to_numpy()

    def require(self, good: pd.Series | np.ndarray, cells: pd.Series, fault: str) -> None:
        """Raise WhaleidError that names the first cell which is not good, and counts the others."""
        bad = np.flatnonzero(~np.asarray(good, dtype=bool))
        if not len(bad):
            return
        more = f" ({len(bad) - 1} more such row(s))" if len(bad) > 1 else ""
        cell = cells.iloc[bad[0]]
        shown = f" {cell!r}" if cell else ""
        raise WhaleidError(f"{self.path}: row {self.frame.index[bad[0]]}, column {cells.name}:{shown} {fault}{more}")


def read_pair(submission: Path, solution: Path) -> tuple[AnswerFrame, AnswerFrame]:
    """Submission and solution with the same images, each once; the submission's rows in the solution's order.

    Raises
    ------
    WhaleidError
        For a file that cannot be read, an image that is empty, repeated, missing or surplus.
    """
    tables = [read_answers(path) for path in (submission, solution)]
    frames = []
    for table in tables:
        require_images(table)
        require_distinct(table)
        frame = pd.concat([pd.Series(column.to_pylist()).str.strip() for column in table.columns], axis=1)
        frames.append(frame.set_axis(table.header, axis=1).set_axis(pd.Index(table.rows, name="row")))
    require_same_images(*tables)
    places = pd.Index(frames[0].iloc[:, 0]).get_indexer(pd.Index(frames[1].iloc[:, 0]))
    if (places < 0).any():
        raise WhaleidError(f"{submission}: images differ from those of {solution} by white space; write them alike")
    return AnswerFrame(submission, frames[0].iloc[places]), AnswerFrame(solution, frames[1])


def require_one_label(table: AnswerFrame) -> pd.Series:
    """The second column, which must hold one label in each row."""
    cells = table.position(1)
    table.require(cells != "", cells, "is empty; one label is needed")
    table.require(~cells.str.contains(r"\s"), cells, "holds a space; one label is needed")
    return cells
