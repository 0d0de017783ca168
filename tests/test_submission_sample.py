"""The sample submission: its columns, rows and order are those of the answer, whatever the test table is."""

from pathlib import Path

import pytest

from whaleid.config import Competition
from whaleid.pipeline.submission import submission_template
from whaleid.utils.errors import WhaleidError

TRAIN = {"csv": "train.csv", "images": ".", "image": "name", "identity": "whale"}


def template(tmp_path: Path, test: str, more: dict | None = None, sample: str | None = None) -> str:
    """Text of the sample that a competition with this test table has."""
    (tmp_path / "test.csv").write_text(test)
    if sample is not None:
        (tmp_path / "sample.csv").write_text(sample)
    table = {"csv": "test.csv", "images": ".", "image": test.split(",")[0].split("\n")[0]}
    given = {"name": "t", "root": tmp_path, "train": TRAIN, "test": table, **(more or {})}
    return submission_template(Competition.model_validate(given), tmp_path / "work").read_text()


def test_a_test_table_of_two_columns_is_the_sample(tmp_path: Path) -> None:
    text = "Image,predictions\nb.jpg,x\na.jpg,x\n"
    assert template(tmp_path, text) == text
    assert template(tmp_path, text, {"submission": {"image": "Image"}}) == text


@pytest.mark.parametrize(
    ("test", "submission", "header"),
    [
        ("Image\nb.jpg\na.jpg\n", {}, "Image,whale"),
        ("Image,width,height\nb.jpg,1,2\na.jpg,1,2\n", {}, "Image,whale"),
        ("Image,width\nb.jpg,1\na.jpg,1\n", {"identities": "Id"}, "Image,Id"),
        ("Image,width\nb.jpg,1\na.jpg,1\n", {"image": "id", "identities": "Id"}, "id,Id"),
    ],
)
def test_without_a_sample_one_is_made_of_the_test_images(
    tmp_path: Path, test: str, submission: dict, header: str
) -> None:
    made = template(tmp_path, test, {"submission": submission})
    assert made == f"{header}\nb.jpg,\na.jpg,\n"


def test_a_sample_of_its_own_gives_columns_rows_and_order(tmp_path: Path) -> None:
    test, sample = "Image\nb.jpg\na.jpg\n", "file,guess\na.jpg,\nb.jpg,\n"
    assert template(tmp_path, test, {"submission": {"sample": "sample.csv"}}, sample) == sample
    with pytest.raises(WhaleidError, match=r"sample\.csv: the header is file,guess.* names file and Id"):
        template(tmp_path, test, {"submission": {"sample": "sample.csv", "identities": "Id"}}, sample)
