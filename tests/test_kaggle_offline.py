"""What `doctor` says of a machine, what the client's words mean, CV against LB. No server."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whaleid.cli.context import Context
from whaleid.evaluation.log import SubmissionRecord
from whaleid.kaggle import doctor
from whaleid.kaggle.client import Output, explain, plain
from whaleid.pipeline.plan import Census, Needs, recipe_needs
from whaleid.report.cv_lb import draw_cv_lb, gap_lines, scored

EXPERIMENT = (
    "extends: default\nmodel: {backbone: test_resnet, weights: random, embedding: 16}\nimage: {width: 64, height: 32}\n"
)
COMPETITION = "name: drawn\nroot: ROOT\ntrain: {csv: train.csv, images: train, image: Image, identity: Id}\n"


def test_packages_against_the_requirements(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\nnumpy>=1\nnot-there-at-all==1.0  # why\nother==1; sys_platform == 'none'\n")
    assert doctor.packages(path).state == "missing"
    assert "not-there-at-all not installed" in doctor.packages(path).message
    path.write_text("numpy==0.1\n")
    assert doctor.packages(path).state == "note"
    path.write_text("numpy>=1\n")
    assert doctor.packages(path).state == "ok"
    assert doctor.python_version((3, 10, 1)).state == "missing"


def test_a_machine_too_small(tmp_path: Path) -> None:
    giant = Needs(disk=1e18, memory=1e18, hours=1e6)
    assert doctor.disk(tmp_path / "not" / "yet", giant).state == "missing"
    assert doctor.memory(giant).state == "missing"
    assert doctor.graphics_card("cpu", giant).state == "missing"
    small = Needs(disk=1.0, memory=1.0, hours=0.1)
    states = [doctor.disk(tmp_path, small), doctor.memory(small), doctor.graphics_card("cpu", small)]
    assert [one.state for one in states] == ["ok"] * 3


def test_a_recipe_needs_more_for_more_images(tmp_path: Path) -> None:
    for name, text in (("drawn", COMPETITION), ("tiny", EXPERIMENT), ("recipe", "folds: 2\nexperiments: [tiny]\n")):
        (tmp_path / f"{name}.yaml").write_text(text.replace("ROOT", str(tmp_path / "data")))
    project = Context(str(tmp_path / "drawn.yaml"), str(tmp_path / "recipe.yaml"), tmp_path / "work").project
    few = recipe_needs(project, Census(100, 10, 20, 30, 2.0, estimated=True), "cpu")
    ready = doctor.verdict(
        "recipe recipe on drawn", [doctor.Finding("ok", "data", "there"), doctor.Finding("note", "GPU", "none")]
    )
    assert ready.startswith("recipe recipe on drawn: ready (notes: 1, ")
    many = recipe_needs(project, Census(10_000, 1000, 2000, 3000, 2.0, estimated=True), "cpu")
    pixels = (14_000 - 140) * 64 * 32 * 3
    assert many.disk - few.disk > 0.09 * pixels
    assert many.hours > 50 * few.hours
    assert many.memory >= few.memory


# ------------------------------------------------------------------------------------- what the client's words mean


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "403 Client Error: You must accept this competition's rules before you'll be able to download files.",
            "rules",
        ),
        ("401 Client Error: Unauthorized for url: http://x", "key"),
        ("403 - Forbidden - 403 Client Error: Forbidden", "forbidden"),
        ("404 Client Error: Not Found for url: http://x", "missing"),
        ("429 Client Error: Too Many Requests", "quota"),
        ("Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.", "quota"),
        ("You have reached your daily limit of 5 submissions", "quota"),
        ("requests.exceptions.ConnectionError: ('Connection aborted.', RemoteDisconnected('...'))", "connection"),
        ("Something quite new", "other"),
        ("", "other"),
    ],
)
def test_words_of_the_client_become_one_line(said: str, kind: str) -> None:
    for output in (Output(said, "", 0), Output("", said, 1)):
        found, cause = explain(output, "whales", "KAGGLE_KEY")
        assert found == kind
        assert "\n" not in cause


@given(st.text(max_size=600))
def test_a_shown_line_is_one_and_not_endless(text: str) -> None:
    line = plain(text)
    assert len(line) <= 300
    assert len(line.splitlines()) <= 1


def test_a_signed_address_is_not_shown() -> None:
    shown = plain("error at https://storage.example/a/b.zip?X-Signature=signed for url: http://x/y?token=1")
    assert shown == "error at https://storage.example/a/b.zip"


# --------------------------------------------------------------------------------------------- CV against LB


def record(cv: float | None, public: float | None, private: float | None = None, **more: str) -> SubmissionRecord:
    known = {"file": f"{cv}{public}", "competition": "drawn", "recipe": "r$1"} | more
    return SubmissionRecord(cv=cv, public=public, private=private, **known)  # type: ignore[arg-type]


def test_the_gap_between_out_of_fold_and_leaderboard(tmp_path: Path) -> None:
    records = [
        record(0.8, 0.81, 0.79),
        record(0.9, 0.93),
        record(0.85, 0.85),
        record(None, 0.5),
        record(0.7, None),
        record(0.7, 0.1, competition="another"),
    ]
    own = scored(records, "drawn")
    assert len(own) == 3
    assert gap_lines(own) == [
        "public - out of fold: +0.01333 ± 0.01528 (3 submissions, rank correlation 1.00)",
        "private - out of fold: -0.01000 (1 submissions)",
    ]
    draw_cv_lb(own, tmp_path / "a" / "picture.png")
    assert (tmp_path / "a" / "picture.png").read_bytes().startswith(b"\x89PNG")
    draw_cv_lb(own[:1], tmp_path / "one.png")
