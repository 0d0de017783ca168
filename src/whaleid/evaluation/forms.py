"""Registry of the forms of answer: what a submission holds, how it is checked, how it is scored.

To add a form, write a module with `score_submission` and add its line to `FORMS`; `whaleid score --form` then reads it.
A module with all functions of `Form` can also be the form of a competition.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from whaleid.utils.errors import WhaleidError

FORMS = {
    "topk": "whaleid.evaluation.topk",
    "one_or_unknown": "whaleid.evaluation.one_or_unknown",
    "one_confident": "whaleid.evaluation.one_confident",
    "ranked_images": "whaleid.evaluation.ranked_images",
    "pairs": "whaleid.evaluation.pairs",
    "clusters": "whaleid.evaluation.clusters",
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
    """Functions of a form's module."""

    def write_submission(
        self,
        path: Path,
        images: Sequence[str],
        guesses: Sequence[Sequence[str]] | np.ndarray,
        sample: Path,
        known: Collection[str] | None = None,
        k: int = 5,
        scores: np.ndarray | None = None,
    ) -> None:
        """Write the answer to all images of the sample submission, or raise WhaleidError and write nothing.

        Parameters
        ----------
        path : Path
            File to write.
        images : sequence of str, length n
            Query images in any order.
        guesses : n sequences of str, or str array, shape (n, m)
            Identities of each query, best first; '' and None are padding.
        sample : Path
            Sample submission: header, images and their order.
        known : collection of str, optional
            Identities that may be guessed.
        k : int
            Number of guesses that count.
        scores : float array, shape (n, m), optional
            Scores of the guesses, for forms that submit them.
        """
        ...

    def check_submission(self, path: Path, sample: Path, known: Collection[str] | None = None, k: int = 5) -> list[str]:
        """Everything that is wrong with a submission, one line each."""
        ...

    def score_submission(self, submission: Path, solution: Path, k: int = 5, seed: int = 0) -> Score:
        """Metric of a submission with its interval. seed: of the interval's random draws."""
        ...


def get_form(name: str = "topk") -> Form:
    """Module of a form that submissions are written in, by name; imported when it is needed."""
    module = _module(name)
    if not hasattr(module, "write_submission"):
        raise WhaleidError(
            f"form of answer: {name!r} is scored (whaleid score --form {name}), but not written; use topk"
        )
    return cast(Form, module)


def score_files(
    submission: Path, solution: Path, form: str = "topk", k: int | None = None, unknown: str | None = None
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
    score = _module(form).score_submission
    options = {name: value for name, value in (("k", k), ("unknown", unknown)) if value is not None}
    for name in options:
        if name not in inspect.signature(score).parameters:
            raise WhaleidError(f"score: the form {form} has no --{name}; leave it out")
    return score(submission, solution, **options)


def _module(name: str) -> Any:
    if name not in FORMS:
        raise WhaleidError(f"form of answer: {name!r} is not known; choose one of {', '.join(FORMS)}")
    return importlib.import_module(FORMS[name])
