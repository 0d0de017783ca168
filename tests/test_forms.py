"""A form of answer is one module and one line in the registry: from images to a checked and scored file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from form_world import NEW, add_to_world, open_world, place_world
from hypothesis import given
from hypothesis import strategies as st

from whaleid.evaluation.forms import FORMS, get_form, score_files
from whaleid.evaluation.submission_file import is_finite
from whaleid.kaggle.kernel.bundle import KernelOptions, make_bundle
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.submission import latest_submission, submission_problems
from whaleid.utils.errors import WhaleidError

pytestmark = pytest.mark.usefixtures("worth")

TOY = '''
"""The most probable identity with its probability, which is won where it is right and lost where it is wrong."""
import numpy as np
import pandas as pd

from whaleid.evaluation.form_score import with_interval

NEEDS = "identities"

def fit(ranked, truth):
    return 0.5

def answer(ranked, fitted, unknown):
    return [f"{name} {value * fitted:.3f}" for name, value in zip(ranked.best, ranked.confidence)]

def unreadable(image, likely):
    return f"{likely[0]} 0"

STRATUM, UNIT = (), ("row",)

def outcomes(answers, ranked, truth, unknown):
    return pd.DataFrame({"row": ranked.images, "truth": truth.identity, "answer": answers})

def metric(table):
    gain = gains([cell.split() for cell in table["answer"]], table["truth"])
    return lambda counts: float(counts @ gain / counts.sum())

def evaluate(table, seed=0):
    return scored([cell.split() for cell in table["answer"]], table["truth"])

def check_submission(path, sample, known=None, k=5):
    answers, wanted = pd.read_csv(path), pd.read_csv(sample)
    return [] if answers["Image"].tolist() == wanted["Image"].tolist() else ["images differ from the sample's"]

def score_submission(submission, solution, seed=0):
    answers, truths = pd.read_csv(submission, index_col=0), pd.read_csv(solution, index_col=0)
    return scored([cell.split() for cell in answers["Id"]], truths["Id"][answers.index])

def scored(answers, truth):
    gain = gains(answers, truth)
    return with_interval("gain", gain.mean(), gain, len(gain))

def gains(answers, truth):
    return np.array([(1 if name == true else -1) * float(value) for (name, value), true in zip(answers, truth)])
'''


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Name of a form that is added by a module and a line in the registry."""
    (tmp_path / "toy_form.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMS, "toy", "toy_form")
    return "toy"


def test_a_module_and_a_line_are_a_form(tmp_path: Path, toy: str) -> None:
    test = place_world(tmp_path / "world", toy)
    add_to_world(tmp_path / "world", "submission: {image: Image, identities: Id}\n")
    solution = test.rename(columns={"image": "Image", "identity": "Id"})[["Image", "Id"]]
    solution.to_csv(tmp_path / "world" / "solution.csv", index=False)
    project = open_world(tmp_path / "world")
    lines = list(leaderboard_lines(project))
    path = latest_submission(project)
    score = score_files(path, tmp_path / "world" / "solution.csv", toy)
    assert score.line("solution") in lines
    assert any(line.startswith("gain (out of fold): 0.") for line in lines)
    assert submission_problems(path, project.competition, tmp_path / "world" / "work") == []


def test_a_kernel_refuses_a_form_that_it_does_not_write(tmp_path: Path) -> None:
    place_world(tmp_path / "world", "clusters")
    add_to_world(tmp_path / "world", "kaggle: somewhere\n")
    with pytest.raises(WhaleidError, match="a kernel answers in the form topk, not clusters"):
        make_bundle(open_world(tmp_path / "world"), KernelOptions(), tmp_path / "wheels")


@given(st.text("0123456789.eE+-_ infax\u0663", max_size=6))
def test_a_number_is_what_pandas_takes_for_one(cell: str) -> None:
    assert is_finite(cell) == bool(np.isfinite(pd.to_numeric(cell, errors="coerce")))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(WhaleidError, match="'pears' is not known; choose one of topk"):
        get_form("pears")


CELLS = {
    "topk": "id_1 id_2",
    "one_or_unknown": "id_1",
    "one_confident": "id_1 0.5",
    "ranked_images": "t1.jpg t2.jpg",
    "pairs": "0.5",
    "clusters": "cluster_1",
}
"""A cell of a submission of each form."""
KNOWN = {form: {"t1.jpg", "t2.jpg"} if form in ("ranked_images", "pairs") else {"id_1", "id_2", NEW} for form in CELLS}
ALSO = {("one_or_unknown", "topk"), ("one_or_unknown", "clusters"), ("pairs", "clusters")}
"""(written, checked): one word, which is one guess, and may be the name of a cluster."""


@pytest.mark.parametrize("form", CELLS)
@pytest.mark.parametrize("written", CELLS)
def test_a_submission_of_another_form_is_refused_in_one_line(tmp_path: Path, written: str, form: str) -> None:
    sample, path = tmp_path / "sample.csv", tmp_path / "mine.csv"
    sample.write_text("image,answer\na.jpg,x\n")
    path.write_text(f"image,answer\na.jpg,{CELLS[written]}\n")
    problems = get_form(form).check_submission(path, sample, KNOWN[form], 5)
    if written == form or (written, form) in ALSO:
        assert problems == []
        return
    assert len(problems) >= 1 and "\n" not in problems[0]
    assert "row 2" in problems[0]
