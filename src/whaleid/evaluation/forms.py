"""Registry of the forms of answer: what a submission holds, how it is checked, how it is scored.

To add a form (one identity or unknown, a similarity for each pair, a cluster for each image), write a module with the
functions of `Form` and add its line to `FORMS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from whaleid.utils.errors import WhaleidError

FORMS = {
    "topk": "whaleid.evaluation.topk",
}
"""Name of a form -> its module."""


class Score(Protocol):
    """Value of a form's metric with its 95 % interval."""

    @property
    def value(self) -> float:
        """The metric."""
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
        columns: tuple[str, str] | None = None,
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
        columns : (str, str), optional
            Names of the image and the answer column in the competition's YAML.
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
    """Module of a form by name; imported when it is needed."""
    if name not in FORMS:
        raise WhaleidError(f"form of answer: {name!r} is not known; choose one of {', '.join(FORMS)}")
    return cast(Form, importlib.import_module(FORMS[name]))
