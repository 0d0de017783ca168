"""Rows of a competition: what is read, and one clear line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from whaleid.config import Competition
from whaleid.config.files import load_competition
from whaleid.data.competition import inspect_rows, listed_names, read_rows
from whaleid.utils.errors import WhaleidError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def competition(root: Path, train: str, test: str = "Image,Id\nq.jpg,x\n", **settings) -> Competition:
    """A competition of empty files a.jpg, b.jpg, c.jpg (train/) and q.jpg (test/) with the given CSVs."""
    for name in ("train/a.jpg", "train/b.jpg", "train/c.jpg", "test/q.jpg"):
        write(root / name, "")
    write(root / "train.csv", train)
    write(root / "test.csv", test)
    table = {
        "csv": "train.csv",
        "images": "train",
        "image": "Image",
        "identity": "Id",
        **settings.pop("table", {}),
    }
    test_table = {"csv": "test.csv", "images": "test", "image": "Image", **settings.pop("test_table", {})}
    return Competition.model_validate({"name": "t", "root": root, "train": table, "test": test_table, **settings})


def refused(given: Competition) -> str:
    with pytest.raises(WhaleidError) as error:
        read_rows(given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_of_both_tables(tmp_path):
    rows = read_rows(competition(tmp_path, "Image,Id\nb.jpg,NA\n\na.jpg,007\n"))
    assert list(rows.columns) == ["image", "path", "split", "identity"]
    assert rows["image"].tolist() == ["b.jpg", "a.jpg", "q.jpg"]
    assert rows["path"].tolist() == ["train/b.jpg", "train/a.jpg", "test/q.jpg"]
    assert rows["split"].tolist() == ["train", "train", "test"]
    assert rows["identity"].iloc[:2].tolist() == ["NA", "007"]  # text stays text
    assert rows["identity"].isna().tolist() == [False, False, True]


def test_suffix_subfolders_and_byte_order_mark(tmp_path):
    given = competition(tmp_path, "\ufeffImage,Id\nx/a,1\n./b,2\n", table={"suffix": ".jpg"})
    write(tmp_path / "train/x/a.jpg", "")
    assert read_rows(given)["path"].tolist() == ["train/x/a.jpg", "train/b.jpg", "test/q.jpg"]


def test_extra_columns_are_kept_and_renamed(tmp_path):
    given = competition(
        tmp_path,
        "Image,Id,kind\na.jpg,1,globis\nb.jpg,2,\n",
        table={"extra": {"species": "kind"}},
        rename_values={"species": {"globis": "pilot"}, "identity": {"2": "two"}},
    )
    rows = read_rows(given)
    assert rows["species"].iloc[0] == "pilot"
    assert rows["species"].isna().tolist() == [False, True, True]
    assert rows["identity"].tolist()[:2] == ["1", "two"]


BAD_TABLES = {
    "empty identity": ("Image,Id\na.jpg,1\nb.jpg, \n", ["train.csv", "empty 'Id'", "row 3"]),
    "empty image": ("Image,Id\n,1\n", ["empty 'Image'", "row 2"]),
    "row after a blank": ("Image,Id\n\na.jpg,1\nb.jpg,\n", ["row 4"]),
    "row after a quoted break": ('Image,Id\na.jpg,1\n"z\nz.jpg",2\nb.jpg,\n', ["empty 'Id'", "row 5"]),
    "duplicate": ("Image,Id\na.jpg,1\nb.jpg,2\na.jpg,1\n", ["duplicate row", "a.jpg", "rows 2 and 4"]),
    "contradictory": ("Image,Id\na.jpg,1\na.jpg,2\n", ["contradictory", "'1' in row 2", "'2' in row 3"]),
    **{
        f"separator {mark!r}": (
            f'Image,Id\nb.jpg,1\na.jpg,"Old{mark}Tom"\n',
            [f"'Old{mark}Tom'", "row 3", "separate the guesses"],
        )
        for mark in " ,;"
    },
    "missing column": ("image,Id\na.jpg,1\n", ["'Image' is missing", "did you mean 'image'"]),
    "similar column": ("Image,Idd\na.jpg,1\n", ["'Id' is missing", "did you mean 'Idd'"]),
    "semicolons": ("Image;Id\na.jpg;1\n", ["not separated by commas"]),
    "column twice": ("Image,Id,Id\na.jpg,1,2\n", ["'Id' stands in the header twice"]),
    "cells": ("Image,Id\na.jpg,1\nb.jpg,2,3\n", ["row 3 has 3 cells"]),
    "quotes": ('Image,Id\na.jpg,1\n"b"x,2\n', ["row 3", "not readable as CSV"]),
    "no rows": ("Image,Id\n", ["lists no image"]),
    "nothing": ("", ["file is empty"]),
    "absolute": ("Image,Id\n/etc/passwd,1\n", ["outside", "row 2"]),
    "climbing": ("Image,Id\na.jpg,1\n../../x.jpg,1\n", ["outside", "row 3", "../../x.jpg"]),
    "climbing and back": ("Image,Id\n../../{root}/train/a.jpg,1\n", ["outside", "row 2"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table_is_one_clear_line(tmp_path, name):
    text, words = BAD_TABLES[name]
    message = refused(competition(tmp_path, text.replace("{root}", tmp_path.name)))
    assert "train.csv" in message
    for word in words:
        assert word in message


def test_climbing_inside_the_root_is_fine(tmp_path):
    rows = read_rows(competition(tmp_path, "Image,Id\n../train/a.jpg,1\n"))
    assert rows["path"].iloc[0] == "train/a.jpg"


@pytest.mark.parametrize("link", ["file", "folder"])
def test_link_out_of_the_root_is_refused(tmp_path, link):
    outside = tmp_path / "outside"
    write(outside / "secret.jpg", "x")
    given = competition(tmp_path / "root", "Image,Id\nlinked/secret.jpg,1\n")
    place = tmp_path / "root" / "train" / "linked"
    if link == "folder":
        place.symlink_to(outside, target_is_directory=True)
    else:
        place.mkdir()
        (place / "secret.jpg").symlink_to(outside / "secret.jpg")
    assert "outside_links" in refused(given)
    assert read_rows(given.model_copy(update={"outside_links": True}))["image"].tolist() == [
        "linked/secret.jpg",
        "q.jpg",
    ]
    climbing = competition(tmp_path / "root", "Image,Id\n../../outside/secret.jpg,1\n", outside_links=True)
    assert "outside" in refused(climbing)  # links alone may lead out


def test_link_within_the_root_is_followed(tmp_path):
    given = competition(tmp_path, "Image,Id\nz.jpg,1\n")
    (tmp_path / "train/z.jpg").symlink_to(tmp_path / "test/q.jpg")
    assert read_rows(given)["path"].iloc[0] == "train/z.jpg"


def test_absent_images_are_counted_and_named(tmp_path):
    names = [f"n{i}.jpg" for i in range(12)]
    message = refused(competition(tmp_path, "Image,Id\na.jpg,1\n" + "".join(f"{n},1\n" for n in names)))
    assert "12 of 13 listed images" in message
    assert "train/n0.jpg (row 3)" in message
    assert "n11.jpg" not in message and "7 more" in message


def test_missing_files_and_folders(tmp_path):
    given = competition(tmp_path, "Image,Id\na.jpg,1\n")
    (tmp_path / "test.csv").unlink()
    assert "test.csv: file not found" in refused(given)
    nowhere = given.model_copy(update={"root": tmp_path / "no", "kaggle": "some-slug"})
    assert "folder not found" in refused(nowhere) and "some-slug" in refused(nowhere)
    given = competition(tmp_path, "Image,Id\na.jpg,1\n", test_table={"images": "tset"})
    write(tmp_path / "tset.zip", "")
    assert "folder of images not found; unpack tset.zip" in refused(given)


def test_image_in_train_and_test(tmp_path):
    given = competition(tmp_path, "Image,Id\na.jpg,1\n", "Image,Id\nq.jpg,\n../train/a.jpg,\n")
    assert "1 images are in train and in test: ../train/a.jpg (row 3)" in refused(given)


def test_one_name_in_train_and_in_test_is_two_images(tmp_path):
    """An image is known by its file; the answer keeps the name that the test table has."""
    given = competition(tmp_path, "Image,Id\na.jpg,1\nb.jpg,2\n", "Image,Id\nq.jpg,\na.jpg,\n")
    write(tmp_path / "test/a.jpg", "")
    rows = read_rows(given)
    assert rows["image"].tolist() == ["a.jpg", "b.jpg", "q.jpg", "test/a.jpg"]
    assert listed_names(given, ["test/a.jpg", "q.jpg"]) == ["a.jpg", "q.jpg"]


def test_blank_and_unfit_labels_can_be_renamed(tmp_path):
    text = 'Image,Id\na.jpg, \nb.jpg,"T1,left"\n'
    rename = {"identity": {"": "new_whale", "T1,left": "T1_left"}}
    rows = read_rows(competition(tmp_path, text, unknown="new_whale", rename_values=rename))
    assert rows["identity"].tolist()[:2] == ["new_whale", "T1_left"]


@pytest.mark.parametrize(
    ("listed", "there", "hint"),
    [
        ("n.jpg", "train/n.JPG", "train/n.JPG is there for train/n.jpg"),
        ("deep\\n.jpg", "train/deep/n.jpg", "train/deep/n.jpg is there"),
        ("caf\u00e9.jpg", "train/cafe\u0301.jpg", "train/cafe\u0301.jpg is there"),
        ("n", "train/n.jpg", "set suffix to .jpg"),
        ("n.jpg", "train/train/n.jpg", "set images to train/train"),
    ],
)
def test_a_missing_image_that_is_nearly_there_is_named(tmp_path, listed, there, hint):
    given = competition(tmp_path, f"Image,Id\na.jpg,1\n{listed},2\n")
    write(tmp_path / there, "")
    assert hint in refused(given)


def test_a_folder_too_many_is_named(tmp_path):
    given = competition(tmp_path / "root" / "inner", "Image,Id\na.jpg,1\n")
    message = refused(given.model_copy(update={"root": tmp_path / "root"}))
    assert f"{tmp_path / 'root' / 'inner'} holds one; set root to that folder" in message


def test_unfit_settings(tmp_path):
    text = "Image,Id,kind\na.jpg,1,x\n"
    assert "rename_values.specie" in refused(competition(tmp_path, text, rename_values={"specie": {"a": "b"}}))
    assert "train.extra.path" in refused(competition(tmp_path, text, table={"extra": {"path": "kind"}}))
    assert "test.identity" in refused(competition(tmp_path, text, test_table={"identity": "Id"}))


def test_every_kind_of_problem_at_once(tmp_path):
    given = competition(tmp_path, "Image,Id\na.jpg,1\na.jpg,1\na.jpg,2\nb.jpg,\nno.jpg,1\n/x.jpg,2\n")
    rows, problems = inspect_rows(given)
    counts = {problem.kind: problem.count for problem in problems}
    assert counts == {"empty": 1, "duplicate": 1, "contradictory": 1, "missing": 1, "outside": 1}
    assert rows["image"].tolist() == ["a.jpg", "q.jpg"]
    assert "and 4 more kinds of problem" in refused(given)


LAYOUTS = {
    "humpback": ("Image,Id\n{0},w_1\n{1},new_whale\n", "Image,Id\n{2},new_whale w_1\n", "train", "test"),
    "happywhale": (
        "image,species,individual_id\n{0},kiler_whale,1a\n{1},globis,2b\n",
        "image,predictions\n{2},1a 2b\n",
        "train_images",
        "test_images",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_shipped_competitions_read_the_real_layouts(tmp_path, name):
    train, test, train_folder, test_folder = LAYOUTS[name]
    images = ["0000e88ab.jpg", "0001f9222.jpg", "00028a005.jpg"]
    write(tmp_path / "train.csv", train.format(*images))
    write(tmp_path / "sample_submission.csv", test.format(*images))
    for image, folder in zip(images, (train_folder, train_folder, test_folder), strict=True):
        write(tmp_path / folder / image, "")
    given = load_competition(name).model_copy(update={"root": tmp_path})
    rows = read_rows(given)
    assert rows["image"].tolist() == images and rows["split"].tolist() == ["train", "train", "test"]
    if name == "happywhale":
        assert rows["species"].tolist()[:2] == ["killer_whale", "short_finned_pilot_whale"]


PHOTOGRAPHS = {
    "nyala": (1514, 428),
    "nyala-open": (1382, 560),
    "cattle": (827, 752),
    "cattle-dated": (827, 752),
    "lion": (585, 155),
}
"""Labelled and test images of the competitions of real photographs."""


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_competitions_of_photographs(name):
    given = load_competition(name)
    if not given.root.is_dir():
        pytest.skip(f"the photographs of {name} are not on this machine")
    counts = read_rows(given)["split"].value_counts()
    assert (counts["train"], counts["test"]) == PHOTOGRAPHS[name]


def test_dates_of_the_cows_are_their_groups():
    given = load_competition("cattle-dated")
    if not given.root.is_dir():
        pytest.skip("the photographs of cattle are not on this machine")
    rows = read_rows(given)
    assert given.group == "date" and rows.groupby("split")["date"].nunique().to_dict() == {"train": 14, "test": 13}
    assert rows["date"].notna().all()


def test_many_rows_are_read_quickly(tmp_path):
    """No question per image: folders are listed once, and a message stays short."""
    names = [f"{i:05d}.jpg" for i in range(20_000)]
    given = competition(tmp_path, "Image,Id\n" + "".join(f"{n},{i % 999}\n" for i, n in enumerate(names)))
    for name in names[:50]:
        write(tmp_path / "train" / name, "")
    _, problems = inspect_rows(given)
    assert [problem.count for problem in problems] == [19_950]
    assert len(problems[0].message) < 500 + len(str(tmp_path)) * 2


def test_empty_folder(tmp_path):
    given = competition(tmp_path, "Image,Id\na.jpg,1\nb.jpg,2\n")
    for name in "abc":
        (tmp_path / "train" / f"{name}.jpg").unlink()
    assert "2 of 2 listed images are not in" in refused(given)
