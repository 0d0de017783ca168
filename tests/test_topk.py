"""Submission files: read, scored, checked, written, logged."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whaleid.evaluation.forms import get_form, write_submission
from whaleid.evaluation.log import COLUMNS, SubmissionRecord, append_log, read_log
from whaleid.evaluation.topk import check_submission, read_guesses, score_submission
from whaleid.utils.errors import WhaleidError

SAMPLE = "Image,Id\na.jpg,new_whale w_1\nb.jpg,new_whale\nc.jpg,new_whale\n"
KNOWN = ["new_whale", "w_1", "w_2", "w_3", "w_4", "w_5", "w_6"]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return put(tmp_path / "sample.csv", SAMPLE)


def put(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# ---------------------------------------------------------------------------------------------------- reading


def test_read_guesses(tmp_path: Path) -> None:
    text = '\ufeffImage,Id\r\na.jpg,w_2  w_1 w_2\r\nb.jpg,\r\n"c,1.jpg"," ñ_3 "\r\n\r\n'
    guesses = read_guesses(put(tmp_path / "s.csv", text))
    assert guesses.images.tolist() == ["a.jpg", "b.jpg", "c,1.jpg"]
    assert guesses.as_lists() == [["w_2", "w_1", "w_2"], [], ["ñ_3"]]
    assert guesses.codes.dtype == np.int32


def test_read_guesses_over_several_columns(tmp_path: Path) -> None:
    text = "Image,1,2,2\na,w_1,w_2,w_3\nb,w_1 w_5,,w_2\nc,,,\n"
    assert read_guesses(put(tmp_path / "s.csv", text)).as_lists() == [
        ["w_1", "w_2", "w_3"],
        ["w_1", "w_5", "w_2"],
        [],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file not found"),
        ("", "file is empty"),
        ("\n", "file is empty"),
        ("Image,Id", "no rows"),
        ("Image,Id\n", "no rows"),
        ("Image,Id\n\n\n", "no rows"),
        ("Image\na\n", r"row 1: one column only \(Image\)"),
        ("Image;Id\na;b\n", "one column only"),
        ("Image,Id\na,x\n\nb,y\n,z\n", "row 5: the image is empty"),
        ("Image,Id\na,x\n  ,z\n", "row 3: the image is empty"),
        ("Image,Id\na,x\nb,y\na,z\nb,y\na,z\n", r"image a is in rows 2, 4, 6 \(3 surplus"),
        ("Image,Id\na,x\nb,y,z\n", "row 3 has 3 cells, the header has 2"),
        ("Image,Id\na,x\n\nb\n", "row 4 has 1 cells, the header has 2"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "bad.csv"
    if text is not None:
        put(path, text)
    with pytest.raises(WhaleidError, match=message) as error:
        read_guesses(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"Image,Id\n" + b"a,x\n" * 9000 + b"\xff\xfe,y\n")
    with pytest.raises(WhaleidError, match="UTF-8"):
        read_guesses(path)
    with pytest.raises(WhaleidError, match="cannot be read"):
        read_guesses(tmp_path)


# ---------------------------------------------------------------------------------------------------- scoring


def test_score_in_any_order(tmp_path: Path) -> None:
    solution = put(tmp_path / "solution.csv", "Image,Id,Usage\na,w_1,Public\nb,w_2,Private\nc,w_9,\nd,w_4,\n")
    submission = put(tmp_path / "sub.csv", "Image,Id\nd,w_1 w_1 w_4\nb,w_2\na,\nc,w_1 w_2 w_3 w_4 w_5 w_9\n")
    score = score_submission(submission, solution)
    assert score.map == pytest.approx((0 + 1 + 0 + 1 / 2) / 4)  # w_9 is the sixth guess; w_1 w_1 is one guess
    assert (score.k, score.queries, score.slices) == (5, 4, {})
    assert score_submission(submission, solution, k=6).map == pytest.approx((0 + 1 + 1 / 6 + 1 / 2) / 4)
    sized = score_submission(submission, solution, sizes={"w_1": 3, "w_2": 1, "w_4": 7}, unknown="w_1")
    assert {name: part.queries for name, part in sized.slices.items()} == {"1": 1, "6+": 1, "unknown": 2}
    assert get_form("topk").score_submission(submission, solution) == score


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_score_equals_naive_loop_over_rows(tmp_path: Path, data: st.DataObject) -> None:
    labels = st.sampled_from(["new_whale", *"uvwxyz", "é"])
    table = data.draw(st.lists(st.tuples(labels, st.lists(labels, max_size=7)), min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(table))))
    truths = "".join(f"{i}.jpg,{truth}\n" for i, (truth, _) in enumerate(table))
    answers = "".join(f"{i}.jpg,{' '.join(table[i][1])}\n" for i in order)
    expected = 0.0
    for truth, guesses in table:
        best = list(dict.fromkeys(guesses))[:3]
        expected += 1 / (best.index(truth) + 1) if truth in best else 0
    score = score_submission(
        put(tmp_path / "sub.csv", "Image,Id\n" + answers),
        put(tmp_path / "sol.csv", "Image,Id\n" + truths),
        k=3,
    )
    assert score.map == pytest.approx(expected / len(table))


@pytest.mark.parametrize(
    ("submission", "solution", "message"),
    [
        (
            "a,x\n",
            "a,x\nb,y\nc,y\nd,y\ne,y\n",
            r"sub.csv: 4 image\(s\) of .*sol.csv have no row \(b, c, d and 1 more\)",
        ),
        ("a,x\nq,x\n", "a,x\n", r"1 image\(s\) are not in .*sol.csv \(q\)"),
        ("a,x\na,y\n", "a,x\nb,y\n", "sub.csv: image a is in rows 2, 3"),
        ("a,x\na,y\n", "a,x\na,y\n", "sol.csv: image a is in rows 2, 3"),
        ("a,x\nb,y\n", "a,x\nb,\n", "sol.csv: row 3: the identity is empty"),
        ("a,x\nb,y\n", "a,x\nb,y z\n", "sol.csv: row 3: 'y z' is not one identity"),
    ],
)
def test_files_that_do_not_match(tmp_path: Path, submission: str, solution: str, message: str) -> None:
    left, right = (
        put(tmp_path / "sub.csv", "Image,Id\n" + submission),
        put(tmp_path / "sol.csv", "I,L\n" + solution),
    )
    with pytest.raises(WhaleidError, match=message):
        score_submission(left, right)


# --------------------------------------------------------------------------------------- checking and writing


def problems_of(sample: Path, text: str, known: list[str] | None = KNOWN) -> list[str]:
    return check_submission(put(sample.with_name("sub.csv"), text), sample, known)


def test_valid_submissions_have_no_problems(sample: Path) -> None:
    assert problems_of(sample, SAMPLE) == []
    assert problems_of(sample, SAMPLE + "\n") == []
    assert problems_of(sample, SAMPLE.rstrip("\n").replace("\n", "\r\n")) == []
    assert problems_of(sample, SAMPLE.replace("w_1", "w_99"), known=None) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Image,Id", "image,Id", "row 1: the header is image,Id; the sample's is Image,Id"),
        ("b.jpg,new_whale\n", "", "image b.jpg of the sample has no row"),
        ("c.jpg,new_whale\n", "c.jpg,new_whale\nd.jpg,w_1\n", "row 5: image d.jpg is not in the sample"),
        ("c.jpg,new_whale\n", "c.jpg,new_whale\na.jpg,w_1\n", "row 5: image a.jpg is already in row 2"),
        ("c.jpg,new_whale\n", "c.jpg,new_whale\n,w_1\n", "row 5: the image is empty"),
        ("b.jpg,new_whale", "b.jpg,", "row 3 (b.jpg): no guesses"),
        ("new_whale w_1", "w_1 w_2 w_3 w_4 w_5 w_6", "row 2 (a.jpg): 6 guesses, at most 5 allowed"),
        ("new_whale w_1", "w_1 w_2 w_1", "row 2 (a.jpg): 'w_1' is guessed more than once"),
        ("new_whale w_1", "w_1 w_7", "row 2 (a.jpg): 'w_7' is not an identity of this competition"),
        ("new_whale w_1", "new_whale  w_1", "row 2 (a.jpg): separate labels by one space, nothing else"),
        ("new_whale w_1", " new_whale w_1", "row 2 (a.jpg): separate labels by one space, nothing else"),
        ("new_whale w_1", "new_whale w_1 ", "row 2 (a.jpg): separate labels by one space, nothing else"),
        ("new_whale w_1", "new_whale\tw_1", "row 2 (a.jpg): separate labels by one space, nothing else"),
        ("new_whale w_1", '"new_whale,w_1"', "row 2 (a.jpg): separate labels by one space, nothing else"),
        ("new_whale w_1", "new_whale,w_1", "row 2 has 3 cells, the header has 2"),
        (SAMPLE, "", "the file is empty; a header and a row for each image are needed"),
    ],
)
def test_each_problem_is_found_alone(sample: Path, old: str, new: str, problem: str) -> None:
    assert old in SAMPLE
    found = problems_of(sample, SAMPLE.replace(old, new))
    assert len(found) == 1 and found[0].endswith(problem), found


def test_another_order_is_reported(sample: Path) -> None:
    found = problems_of(sample, "Image,Id\na.jpg,w_1\n\nc.jpg,w_1\nb.jpg,w_1\n")
    assert found == ["row 4: not in the sample's order: image c.jpg instead of b.jpg"]


def test_all_problems_at_once_and_long_lists_cut(sample: Path) -> None:
    text = "Image,Id\n" + "".join(f"x{i},w_1 w_1 w_8\n" for i in range(25))
    found = problems_of(sample, text)
    assert len(found) == 3 + 3 * (10 + 1)
    assert found.count("... and 15 more like the last") == 3
    with pytest.raises(WhaleidError, match="file not found"):
        check_submission(sample, sample.with_name("none.csv"))


def test_write_submission_in_the_samples_order(sample: Path) -> None:
    path = sample.parent / "new" / "out.csv"
    cells = {"c.jpg": "w_3 w_1", "a.jpg": "w_2", "b.jpg": "w_1"}
    write_submission("topk", path, cells, sample, KNOWN, 5)
    assert path.read_bytes() == b"Image,Id\na.jpg,w_2\nb.jpg,w_1\nc.jpg,w_3 w_1\n"
    assert check_submission(path, sample, KNOWN) == []


@pytest.mark.parametrize(
    ("images", "guesses", "message"),
    [
        ("abc", [["w_1"], ["w_1", "w_1"], ["w_2"]], "row 3 .b.jpg.: 'w_1' is guessed more than once"),
        ("abc", [["w_1"], [], ["w_2"]], "no guesses"),
        ("abc", [["w_1"], ["w_8"], ["w_2"]], "'w_8' is not an identity"),
        ("abc", [["w_1"], KNOWN, ["w_2"]], "7 guesses"),
        ("abc", [["w_1"], ["w_1 "], ["w_2"]], "one space"),
        ("ab", [["w_1"], ["w_2"]], r"1 image\(s\) of .* have no row \(c.jpg\)"),
        ("abcd", [["w_1"]] * 4, r"are not in .* \(d.jpg\)"),
    ],
)
def test_invalid_submissions_are_not_written(sample: Path, images: str, guesses: list, message: str) -> None:
    path = put(sample.with_name("out.csv"), "as it was")
    with pytest.raises(WhaleidError, match=message):
        cells = {f"{name}.jpg": " ".join(row) for name, row in zip(images, guesses, strict=True)}
        write_submission("topk", path, cells, sample, KNOWN, 5)
    assert path.read_text() == "as it was"
    assert sorted(one.name for one in sample.parent.iterdir()) == ["out.csv", "sample.csv"]


# -------------------------------------------------------------------------------------------------------- log

RECORD = SubmissionRecord(
    time="2024-01-01T00:00:00+00:00", file="a.csv", commit="abc", competition="sample", recipe="cpu", cv=0.5
)


def test_log_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "submissions" / "log.csv"
    assert read_log(path) == []
    other = replace(RECORD, file="b.csv", cv_interval=0.01, solution=0.25, public=0.9)
    append_log(path, RECORD)
    append_log(path, other)
    assert read_log(path) == [RECORD, other]
    header, first, _ = csv.reader(path.open())
    assert tuple(header) == COLUMNS
    assert first == ["2024-01-01T00:00:00+00:00", "a.csv", "abc", "sample", "cpu", "0.50000", "", "", "", ""]


def test_log_replaces_the_row_of_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    other = replace(RECORD, file="b.csv")
    for record in (RECORD, other, replace(RECORD, commit="def", public=0.7)):
        append_log(path, record)
    assert read_log(path) == [replace(RECORD, commit="def", public=0.7), other]
    append_log(path, replace(RECORD, commit="ghi"))  # the same submission: the leaderboard's score stays
    assert read_log(path)[0] == replace(RECORD, commit="ghi", public=0.7)
    append_log(path, replace(RECORD, cv=0.6))  # another one: it goes
    assert read_log(path) == [replace(RECORD, cv=0.6), other]


def test_log_by_other_hands(tmp_path: Path) -> None:
    path = put(tmp_path / "log.csv", "file,competition,recipe,public\na.csv,sample,cpu, 0.9 \n")
    (record,) = read_log(path)
    assert (record.file, record.public, record.private, record.commit) == ("a.csv", 0.9, None, "")
    with pytest.raises(WhaleidError, match="row 2, column public: 'good' is not a score"):
        read_log(put(path, "file,public\na.csv,good\n"))
    with pytest.raises(WhaleidError, match="column 'note'"):
        append_log(put(path, "file,note\na.csv,x\n"), RECORD)
    assert path.read_text() == "file,note\na.csv,x\n"
