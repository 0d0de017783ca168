"""Forms of an answer, each with its metric: what is submitted, how it is checked, and what it scores.

    metrics.py      numbers alone: rank of the truth -> MAP@k with its interval and slices
    tables.py       CSV files as text columns and codes, with the row of every fault
    submissions.py  the form `ranked`: an image and its ranked guesses, scored by MAP@k
    log.py          one row for every submission made

Another form (one identity or unknown, a similarity for each pair, a cluster for each image) is one more file
with the two functions of `Form`, the score of which has the two of `Score`, and one more row in `FORMS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from whaleid.utils.errors import WhaleidError

FORMS = {"ranked": "whaleid.evaluation.submissions"}


class Score(Protocol):
    """What a form's metric returns."""

    def line(self, label: str, interval: bool = False) -> str: ...

    def as_json(self) -> dict[str, Any]: ...


class Form(Protocol):
    """What a form's module offers; writing differs with the form, so it is called on the module itself."""

    def score_submission(self, submission: Path, solution: Path) -> Score: ...

    def check_submission(self, path: Path, sample: Path) -> list[str]: ...


def form(name: str = "ranked") -> Form:
    """The module of a form, imported when asked for (it reads files with pyarrow)."""
    if name not in FORMS:
        raise WhaleidError(f"form: {name!r} is not known; give one of {', '.join(FORMS)}")
    return cast(Form, importlib.import_module(FORMS[name]))
