"""Every form of answer from images to a scored submission, and what each fits against a naive search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from form_world import NEW, add_to_world, open_world, place_world
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.ensemble.answers import on_scale_of
from whaleid.evaluation import one_confident, one_or_unknown
from whaleid.evaluation.log import read_log
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.submission import latest_submission, submission_problems


def leaderboard(place: Path) -> tuple[list[str], pd.DataFrame]:
    """What the leaderboard prints, and the submission that it writes, which must be valid and logged."""
    project = open_world(place)
    lines = list(leaderboard_lines(project))
    path = latest_submission(project)
    assert submission_problems(path, project.competition, place / "work") == []
    (record,) = read_log(place / "submissions" / "log.csv")
    (oof,) = [line for line in lines if "(out of fold):" in line]
    assert f": {record.cv:.5f} ± {record.cv_interval:.5f}" in oof
    return lines, pd.read_csv(path, dtype=str, keep_default_na=False)


def value_of(lines: list[str], label: str) -> float:
    (line,) = [line for line in lines if f" ({label}):" in line]
    return float(line.split(": ")[1].split(" ± ")[0])


# ---------------------------------------------------------------------------------------------- one_or_unknown


def test_one_identity_or_unknown(tmp_path: Path) -> None:
    test = place_world(tmp_path, "one_or_unknown", ", dataset: dataset")
    add_to_world(tmp_path, f"unknown: {NEW}\nk: 1\nsubmission: {{image: image, identities: identity}}\n")
    test.to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.8
    assert value_of(lines, "solution") > 0.8
    assert {line.split(":")[0] for line in lines} >= {"lynx BAKS", "turtle BAUS"}
    assert set(submission["identity"]) <= {NEW, *test["identity"][test["known"]]}
    right = submission.set_index("image")["identity"][test["image"]].to_numpy()
    assert np.mean(right == np.where(test["known"], test["identity"], NEW)) > 0.8


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_threshold_is_the_best_of_all(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    confidence = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.4, 0.9]), min_size=count, max_size=count)))
    identity = np.array(data.draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count)))
    known = np.isin(identity, ["a", "b"])
    right = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) & known
    if not known.any() or known.all():
        return

    def score(threshold: float) -> float:
        answers = np.where(confidence >= threshold, np.where(right, identity, "wrong"), NEW)
        parts = one_or_unknown.baks(identity, answers, known), one_or_unknown.baus(identity, answers, known, NEW)
        return float(np.sqrt(parts[0] * parts[1]))

    found = one_or_unknown.best_threshold(confidence, right, identity, known)
    assert score(found) == pytest.approx(max(score(value) for value in (-1, 0.15, 0.3, 0.6, 2)))


# ----------------------------------------------------------------------------------------------- one_confident


def test_one_label_with_a_confidence(tmp_path: Path) -> None:
    test = place_world(tmp_path, "one_confident")
    add_to_world(tmp_path, "unknown: none\nk: 1\nsubmission: {image: id, identities: landmarks}\n")
    landmark = test["identity"].where(test["known"], "")
    pd.DataFrame({"id": test["image"], "landmarks": landmark}).to_csv(tmp_path / "solution.csv", index=False)
    lines, submission = leaderboard(tmp_path)
    assert value_of(lines, "out of fold") > 0.8
    assert value_of(lines, "solution") > 0.8
    answers = submission.set_index("id")["landmarks"].str.split(expand=True).loc[test["image"]]
    confidence = answers[1].astype(float).to_numpy()
    assert confidence[test["known"]].mean() > confidence[~test["known"]].mean() + 0.2
    (tmp_path / "bad.csv").write_text("id,landmarks\n" + "".join(f"{image},id_00 high\n" for image in submission["id"]))
    problems = submission_problems(tmp_path / "bad.csv", open_world(tmp_path).competition, tmp_path / "work")
    assert problems[0].endswith(f"row 2 ({submission['id'][0]}): not a label and its confidence")
    assert len(problems) == 11


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_weighted_gap_counts_an_answer_as_often_as_its_weight(rows: list[tuple[int, bool, int]]) -> None:
    confidence, right, weights = (np.array(column) for column in zip(*rows, strict=True))
    confidence = confidence + np.arange(len(rows)) / 100  # copies stand together
    found = one_confident.global_average_precision(confidence, right, 7.0, weights.astype(float))
    precision = hits = seen = 0.0
    for place in np.argsort(-confidence):
        seen += weights[place]
        hits += weights[place] * right[place]
        precision += weights[place] * right[place] * (hits / seen if seen else 0)
    assert found == pytest.approx(precision / 7)


def test_averages_are_brought_to_the_scale_of_one_model() -> None:
    single = np.array([[0.9, 0.1, 0.5], [0.3, 0.8, 0.7]])
    np.testing.assert_allclose(on_scale_of(np.array([0.6, 0.45, 0.5]), single), [0.85, 0.2, 0.6])
    np.testing.assert_allclose(on_scale_of(np.array([0.6, 0.5, 0.5]), single), [0.85, 0.4, 0.4])
