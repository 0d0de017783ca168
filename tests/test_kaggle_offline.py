"""What `doctor` says of a machine, what the client's words mean, metadata that is refused, CV against LB. No server."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whaleid.cli.context import Context
from whaleid.evaluation.log import SubmissionRecord
from whaleid.kaggle import doctor, push
from whaleid.kaggle.client import Output, explain, plain
from whaleid.kaggle.push import read_bundle
from whaleid.pipeline.plan import Census, Needs, recipe_needs
from whaleid.report.cv_lb import draw_cv_lb, gap_lines, scored
from whaleid.utils.errors import WhaleidError

EXPERIMENT = (
    "extends: default\nmodel: {backbone: test_resnet, weights: random, embedding: 16}\nimage: {width: 64, height: 32}\n"
)
COMPETITION = "name: drawn\nroot: ROOT\ntrain: {csv: train.csv, images: train, image: Image, identity: Id}\n"


def test_packages_against_the_requirements(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\nnumpy>=1\nnot-there-at-all==1.0  # why\nother==1; sys_platform == 'none'\n")
    assert doctor.packages(path).state == "missing"
    assert "not-there-at-all not installed" in doctor.packages(path).said
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
    ready = doctor.verdict(project, [doctor.Finding("ok", "data", "there"), doctor.Finding("note", "GPU", "none")])
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


# ------------------------------------------------------------------------------------------------- the metadata

KERNEL = {
    "id": "whalefan/whale-kernel",
    "title": "whale kernel",
    "code_file": "run.py",
    "enable_internet": False,
    "dataset_sources": ["whalefan/whale-code"],
}
DATA_SET = {"id": "whalefan/whale-code", "title": "whale code", "licenses": [{"name": "CC0-1.0"}]}


def folder(place: Path, kernel: dict[str, object], data_set: dict[str, object]) -> Path:
    (place / "kernel").mkdir()
    (place / "kernel" / "run.py").write_text("print()\n")
    (place / "kernel" / "kernel-metadata.json").write_text(json.dumps(kernel))
    (place / "datasets" / "whale-code").mkdir(parents=True)
    (place / "datasets" / "whale-code" / "dataset-metadata.json").write_text(json.dumps(data_set))
    return place


def test_metadata_in_order(tmp_path: Path) -> None:
    bundle = read_bundle(folder(tmp_path, KERNEL, DATA_SET))
    assert (bundle.kernel.id, [part.id for part in bundle.data_sets]) == (KERNEL["id"], [DATA_SET["id"]])


def test_a_data_set_larger_than_kaggle_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path, KERNEL, DATA_SET)
    (place / "datasets" / "whale-code" / "weights").write_bytes(bytes(2000))
    monkeypatch.setattr(push, "LARGEST_DATA_SET", 2000.0)
    with pytest.raises(WhaleidError, match="a data set of Kaggle holds at most") as error:
        read_bundle(place)
    assert str(place / "datasets" / "whale-code") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "data_set", "message"),
    [
        ({"title": "another title"}, {}, "becomes the slug"),
        ({"enable_internet": None}, {}, "enable_internet is missing"),
        ({"code_file": "none.py"}, {}, "is not beside it"),
        ({"id": "nobody"}, {}, "is not owner/slug"),
        ({"id": "whalefan/abc", "title": "abc"}, {}, "slug of 5 to 50"),
        ({"dataset_sources": []}, {}, "dataset_sources lacks"),
        ({}, {"title": "short"}, "6 to 50 characters"),
        ({}, {"id": "whalefan/whale"}, "slug of 6 to 50"),
        ({}, {"licenses": []}, "exactly one"),
    ],
)
def test_metadata_that_kaggle_would_misread(
    tmp_path: Path, kernel: dict[str, object], data_set: dict[str, object], message: str
) -> None:
    with pytest.raises(WhaleidError, match=message) as error:
        read_bundle(folder(tmp_path, KERNEL | kernel, DATA_SET | data_set))
    assert "\n" not in str(error.value)
    assert "metadata.json: " in str(error.value)


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
