"""A form of answer is one module and one line in the registry: from scores to a checked and scored file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from whaleid.config import Competition
from whaleid.evaluation.forms import FORMS, get_form
from whaleid.pipeline import submission
from whaleid.utils.errors import WhaleidError

IDENTITIES = np.array(["w_1", "w_2", "w_3"])
SCORES = np.array([[0.2, 0.9, 0.1], [0.8, 0.3, 0.4], [0.1, 0.2, 0.3]])
IMAGES = ["a", "b", "c"]

TOY = '''
"""One identity for each image with its confidence, which is won where it is right and lost where it is wrong."""
from dataclasses import asdict, dataclass

import numpy as np

from whaleid.data.tables import read_table

COLUMNS = ["Image", "Id", "Confidence"]

@dataclass(frozen=True)
class Gain:
    mean: float
    low: float
    high: float
    queries: int

    @property
    def value(self):
        return self.mean

    def line(self, label, interval=False):
        return f"gain ({label}): {self.mean:.5f}"

    def as_json(self):
        return asdict(self)

def write_submission(path, images, guesses, sample, known=None, k=5, scores=None):
    best = {image: f"{row[0]},{value[0]:.3f}" for image, row, value in zip(images, guesses, scores)}
    listed = read_table(sample, ["Image"])["Image"]
    path.write_text("\\n".join([",".join(COLUMNS), *(f"{image},{best[image]}" for image in listed)]) + "\\n")

def check_submission(path, sample, known=None, k=5):
    answers, wanted = read_table(path, COLUMNS), read_table(sample, ["Image"])
    problems = [] if answers["Image"].tolist() == wanted["Image"].tolist() else ["images differ from the sample's"]
    wrong = answers[~answers["Confidence"].astype(float).between(0, 1)]
    return problems + [f"row {row}: confidence {value}" for row, value in wrong["Confidence"].items()]

def score_submission(submission, solution, k=5, seed=0):
    answers, truths = read_table(submission, COLUMNS), read_table(solution, ["Image", "Id"])
    truth = answers["Image"].map(truths.set_index("Image")["Id"])
    gain = np.where(answers["Id"] == truth, 1, -1) * answers["Confidence"].astype(float)
    drawn = np.random.default_rng(seed).choice(gain.to_numpy(), (1000, len(gain))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Gain(float(gain.mean()), float(low), float(high), len(gain))
'''


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Name of a form that is added by a module and a line in the registry."""
    (tmp_path / "toy_form.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMS, "toy", "toy_form")
    return "toy"


def put(path: Path, rows: dict[str, list[Any]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def answer(form: str, tmp_path: Path, sample: Path) -> Path:
    """Submission of SCORES in a form, which must be valid."""
    order = np.argsort(-SCORES, axis=1)
    guesses, scores = IDENTITIES[order], np.take_along_axis(SCORES, order, axis=1)
    path = tmp_path / f"{form}.csv"
    get_form(form).write_submission(path, IMAGES, guesses, sample, IDENTITIES.tolist(), 3, scores=scores)
    assert get_form(form).check_submission(path, sample, IDENTITIES.tolist(), 3) == []
    return path


def test_scores_become_a_scored_file_in_any_form(tmp_path: Path, toy: str) -> None:
    solution = put(tmp_path / "solution.csv", {"Image": IMAGES, "Id": ["w_2", "w_3", "w_3"]})
    sample = put(tmp_path / "sample.csv", {"Image": ["b", "a", "c"], "Id": ["w_1"] * 3})
    path = answer("topk", tmp_path, sample)
    assert path.read_text() == "Image,Id\nb,w_1 w_3 w_2\na,w_2 w_1 w_3\nc,w_3 w_2 w_1\n"
    score = get_form("topk").score_submission(path, solution, 3).as_json()
    assert score["map"] == pytest.approx((0.5 + 1 + 1) / 3) and score["low"] <= score["map"] <= score["high"]

    path = answer(toy, tmp_path, sample)
    assert path.read_text() == "Image,Id,Confidence\nb,w_1,0.800\na,w_2,0.900\nc,w_3,0.300\n"
    score = get_form(toy).score_submission(path, solution)
    assert score.line("solution") == f"gain (solution): {(0.9 - 0.8 + 0.3) / 3:.5f}"
    assert score.as_json()["low"] <= score.as_json()["mean"] <= score.as_json()["high"]
    path.write_text("Image,Id,Confidence\nb,w_1,1.5\na,w_2,0.9\n")
    assert get_form(toy).check_submission(path, sample) == ["images differ from the sample's", "row 2: confidence 1.5"]


def test_the_competition_chooses_the_form(tmp_path: Path, toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"csv": "sample.csv", "images": ".", "image": "Image"}
    given = {"name": "t", "root": tmp_path, "train": table | {"identity": "Id"}, "test": table}
    sample = put(tmp_path / "sample.csv", {"Image": ["b", "a", "c"], "Id": ["w_1"] * 3})
    for image in IMAGES:
        (tmp_path / image).write_bytes(b"")
    order = np.argsort(-SCORES, axis=1)
    final = submission.TestGuesses(
        "blend", np.array(IMAGES), IDENTITIES[order], np.take_along_axis(SCORES, order, axis=1)
    )
    monkeypatch.setattr(submission, "read_guesses_of_rungs", lambda project: [final])
    monkeypatch.setattr(submission, "_most_frequent", lambda project: [])
    monkeypatch.setattr(submission, "known_labels", lambda competition: set(IDENTITIES))
    for form in ("topk", toy):
        competition = Competition.model_validate(given | {"answer": {"form": form}})
        project = SimpleNamespace(competition=competition, workspace=SimpleNamespace(root=tmp_path / "work"))
        submission.write_answer(cast(Any, project), tmp_path / "answer.csv")
        assert (tmp_path / "answer.csv").read_text() == answer(form, tmp_path, sample).read_text()
        assert submission.submission_problems(tmp_path / "answer.csv", competition, tmp_path / "work") == []


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(WhaleidError, match="'pears' is not known; choose one of topk"):
        get_form("pears")
