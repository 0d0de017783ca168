"""Registry of the forms of answer: what a submission holds, how it is made, checked and scored.

A form is a module with the functions of `Form`, and a line in `FORMS`. A submission of any form has two columns; the
first names the row (an image), the second, its cell, is the answer.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import pandas as pd

from whaleid.evaluation.form_score import FormScore, Metric
from whaleid.evaluation.submission_file import write_cells
from whaleid.utils.errors import WhaleidError

TOPK, CLUSTERS = "topk", "clusters"
"""The form whose answers are the ladder's guesses; that which people's decisions take part in."""
FORMS = {
    TOPK: "whaleid.evaluation.topk",
    "one_or_unknown": "whaleid.evaluation.one_or_unknown",
    "one_confident": "whaleid.evaluation.one_confident",
    "ranked_images": "whaleid.evaluation.ranked_images",
    "pairs": "whaleid.evaluation.pairs",
    CLUSTERS: "whaleid.evaluation.clusters",
}
"""Name of a form -> its module."""


class Score(Protocol):
    """Value of a form's metric with its 95 % interval."""

    @property
    def value(self) -> float:
        """The metric."""
        ...

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        ...

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        ...

    @property
    def queries(self) -> int:
        """Number of queries."""
        ...

    def part_lines(self) -> list[str]:
        """What the score is made of, one line each."""
        ...

    def details(self) -> dict[str, Any]:
        """Further figures for the command line's JSON."""
        ...

    def line(self, label: str, interval: bool = False) -> str:
        """The score in one line, as the command line prints it."""
        ...

    def as_json(self) -> dict[str, Any]:
        """The score, its interval and the number of queries as plain values."""
        ...


class Form(Protocol):
    """What a form's module holds. `topk`, whose answers are the ladder's guesses, has nothing from `fit` on."""

    NEEDS: str
    """What its answers are made from: the ladder's `guesses`, ranked `identities` (`RankedIdentities`), or `pairs` of
    images (`ImagePairs`)."""

    TABLES: tuple[str, ...]
    """Of a form that needs pairs: which of `among` and `to_gallery` it reads."""

    check_submission: Callable[..., list[str]]
    """(path, sample, known, k) -> everything that is wrong with a submission, one line each.

    sample: Path, sample submission. known: collection of str or None, labels that may be answered. k: int, number of
    guesses that count."""

    score_submission: Callable[..., Score]
    """(submission, solution, seed), and `k` or `unknown` where the form has them -> metric with its interval."""

    unreadable: Callable[[str, list[str]], str]
    """(row, likely) -> the cell of an image that could not be read. likely: labels that are right most often."""

    fit: Callable[..., Any]
    """(input, truth) -> what the form fits out of fold, as plain values.

    Of pairs: (sets, identities, target). A set is an `ImagePairs`, one a fold; identities are those of its images;
    target is the set that the result is for, None where there is none."""

    answer: Callable[..., list[str]]
    """(input, fitted, unknown) -> the cell of each row."""

    outcomes: Callable[..., pd.DataFrame]
    """(answers, input, truth, unknown) -> what the metric of answers whose truth is known is made of; of pairs, lists
    of each. A row for each row that is scored, with its name `row` and its right answer `truth`."""

    evaluate: Callable[..., FormScore]
    """(outcomes, seed) -> the metric with its interval."""

    metric: Callable[[pd.DataFrame], Metric]
    """outcomes -> the metric of rows that come several times or never."""

    UNIT: tuple[str, ...]
    """Columns of the outcomes that name what an interval resamples; `STRATUM`: within what."""

    STRATUM: tuple[str, ...]


def get_form(name: str = TOPK) -> Form:
    """Module of a form, by name; imported when it is needed."""
    if name not in FORMS:
        raise WhaleidError(f"form of answer: {name!r} is not known; choose one of {', '.join(FORMS)}")
    return cast(Form, importlib.import_module(FORMS[name]))


def write_submission(
    form: str,
    path: Path,
    cells: Mapping[str, str],
    sample: Path,
    known: Collection[str] | None = None,
    k: int = 5,
) -> None:
    """Write the answer to all rows of the sample submission, or raise WhaleidError and write nothing.

    Parameters
    ----------
    form : str
        Name of the form, which checks the file.
    path : Path
        File to write.
    cells : mapping of str to str
        Row -> answer.
    sample : Path
        Sample submission: header, rows and their order.
    known, k
        As in `Form.check_submission`.
    """
    check = get_form(form).check_submission
    write_cells(path, cells, sample, lambda written: check(written, sample, known, k))


def score_files(
    submission: Path, solution: Path, form: str = TOPK, k: int | None = None, unknown: str | None = None
) -> Score:
    """Score of any submission of a form.

    Parameters
    ----------
    submission, solution : Path
        Files as the form's module describes them.
    form : str
        Name of the form.
    k : int, optional
        Number of guesses that count; default: the form's.
    unknown : str, optional
        Label of the unknown identity; default: the form's.

    Raises
    ------
    WhaleidError
        For a fault of either file (its row and column), and for an option that the form does not have.
    """
    options = {name: value for name, value in (("k", k), ("unknown", unknown)) if value is not None}
    for name in options:
        if name not in score_options(form):
            raise WhaleidError(f"score: the form {form} has no --{name}; leave it out")
    return get_form(form).score_submission(submission, solution, **options)


def score_options(form: str) -> set[str]:
    """Which of `k` and `unknown` the form's score depends on."""
    return {"k", "unknown"} & set(inspect.signature(get_form(form).score_submission).parameters)
