"""The shipped competitions whose layout is not Kaggle's usual one, read on empty files in that layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from whaleid.config import Competition
from whaleid.config.files import load_competition
from whaleid.data.asked_pairs import read_asked_pairs
from whaleid.data.competition import read_rows
from whaleid.data.images_table import images_key, labelled_key
from whaleid.data.masks import labelled_masks_key
from whaleid.pipeline.submission import submission_template
from whaleid.utils.errors import WhaleidError

METADATA = """image_id,identity,path,date,orientation,species,split,dataset
7,LynxID2025_lynx_1,images/LynxID2025/database/a.jpg,,left,lynx,database,LynxID2025
9,,images/LynxID2025/query/b.jpg,,right,lynx,query,LynxID2025
8,SeaTurtleID2022_t001,images/SeaTurtleID2022/database/c.jpg,2010-01-02,,turtle,database,SeaTurtleID2022
"""
METADATA_2026 = """image_id,identity,path,date,orientation,species,split,dataset
7,LynxID2025_lynx_1,images/LynxID2025/train/a.jpg,,left,lynx,train,LynxID2025
9,,images/LynxID2025/test/b.jpg,,right,lynx,test,LynxID2025
8,,images/TexasHornedLizards/test/c.jpg,,,lizard,test,TexasHornedLizards
"""
LAYOUTS = {
    "animalclef-2025": (
        {"metadata.csv": METADATA},
        {
            "images/LynxID2025/database/a.jpg": ("7", "LynxID2025_lynx_1"),
            "images/SeaTurtleID2022/database/c.jpg": ("8", "SeaTurtleID2022_t001"),
        },
        {"images/LynxID2025/query/b.jpg": "9"},
    ),
    "hotel-id": (
        {
            "train.csv": "image,chain,hotel_id,timestamp\na.jpg,3,51,2019\nb.jpg,70,52,2020\n",
            "sample_submission.csv": "image,hotel_id\nq.jpg,51 52\n",
        },
        {"train_images/3/a.jpg": ("a.jpg", "51"), "train_images/70/b.jpg": ("b.jpg", "52")},
        {"test_images/q.jpg": "q.jpg"},
    ),
    "animalclef-2026": (
        {"metadata.csv": METADATA_2026},
        {"images/LynxID2025/train/a.jpg": ("7", "LynxID2025_lynx_1")},
        {
            "images/LynxID2025/test/b.jpg": "9",
            "images/TexasHornedLizards/test/c.jpg": "8",
        },
    ),
    "jaguar-2026": (
        {
            "train.csv": "filename,ground_truth\na.png,Akaloi\n",
            "test.csv": "row_id,query_image,gallery_image\n0,p.png,q.png\n1,q.png,p.png\n"
            "2,p.png,r.png\n3,r.png,p.png\n",
            "sample_submission.csv": "row_id,similarity\n0,0.5\n",
        },
        {"train/train/a.png": ("a.png", "Akaloi")},
        {"test/test/p.png": "p.png", "test/test/q.png": "q.png", "test/test/r.png": "r.png"},
    ),
    "landmark-recognition": (
        {
            "train.csv": "id,landmark_id\n6e158a47eb2ca3f6,142820\n202cd79556f30760,104169\n",
            "sample_submission.csv": "id,landmarks\n00084cdf8f600d00,137790 0.1\n",
        },
        {
            "train/6/e/1/6e158a47eb2ca3f6.jpg": ("6e158a47eb2ca3f6", "142820"),
            "train/2/0/2/202cd79556f30760.jpg": ("202cd79556f30760", "104169"),
        },
        {"test/0/0/0/00084cdf8f600d00.jpg": "00084cdf8f600d00"},
    ),
}


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def placed(name: str, root: Path) -> Competition:
    """A shipped competition over empty images in its layout."""
    tables, train, test = LAYOUTS[name]
    for path, text in tables.items():
        write(root / path, text)
    for path in [*train, *test]:
        write(root / path)
    return load_competition(name).model_copy(update={"root": root})


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_the_layout(name: str, tmp_path: Path) -> None:
    _, train, test = LAYOUTS[name]
    rows = read_rows(placed(name, tmp_path))
    labelled, queries = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
    named = zip(labelled["image"], labelled["identity"], strict=True)
    assert dict(zip(labelled["path"], named, strict=True)) == train
    assert dict(zip(queries["path"], queries["image"], strict=True)) == test
    assert queries["identity"].isna().all()


def test_one_table_gives_the_queries_alone_a_row_in_the_submission(tmp_path: Path) -> None:
    template = submission_template(placed("animalclef-2025", tmp_path / "data"), tmp_path)
    assert template.read_text() == "image_id,identity\n9,\n"


def test_each_pair_that_is_asked_about_has_a_row(tmp_path: Path) -> None:
    given = placed("jaguar-2026", tmp_path / "data")
    assert submission_template(given, tmp_path).read_text() == "row_id,similarity\n0,\n1,\n2,\n3,\n"
    asked = read_asked_pairs(given, np.array(["q.png", "p.png"]))  # the third could not be read
    assert dict(zip(asked.names, asked.places.tolist(), strict=True)) == {"0": [1, 0], "1": [0, 1]}
    with (tmp_path / "data/test.csv").open("a") as file:
        file.write("4,p.png,x.png\n")
    with pytest.raises(
        WhaleidError, match=r"test\.csv: row 6, column gallery_image: 'x\.png' is no image of the column"
    ):
        read_asked_pairs(given, np.array(["p.png"]))


def test_keys_change_with_the_rows_that_are_chosen(tmp_path: Path) -> None:
    given = placed("animalclef-2025", tmp_path)
    key, labelled = images_key(given), labelled_key(given)
    write(tmp_path / "images/LynxID2025/query/b.jpg", "other pixels")
    assert images_key(given) != key
    assert labelled_key(given) == labelled
    write(tmp_path / "images/LynxID2025/database/a.jpg", "other pixels")
    assert labelled_key(given) != labelled


def test_masks_of_the_labelled_rows_alone_are_in_their_key(tmp_path: Path) -> None:
    given = placed("animalclef-2025", tmp_path).model_copy(update={"masks": "masks"})
    for name in ("database/a", "query/b"):
        write(tmp_path / f"masks/images/LynxID2025/{name}.png", "white")
    key = labelled_masks_key(given)
    write(tmp_path / "masks/images/LynxID2025/query/b.png", "other")
    assert labelled_masks_key(given) == key
    write(tmp_path / "masks/images/LynxID2025/database/a.png", "other")
    assert labelled_masks_key(given) != key


def changed(given: Competition, **train: object) -> Competition:
    content = json.loads(given.model_dump_json())
    content["train"] |= train
    return Competition.model_validate(content)


def test_a_value_that_no_row_has_is_named_beside_those_that_there_are(tmp_path: Path) -> None:
    given = changed(placed("animalclef-2025", tmp_path), where={"split": "train"})
    with pytest.raises(WhaleidError, match=r"metadata\.csv: no row has split train; its values are database, query$"):
        read_rows(given)


def test_folders_by_the_first_characters_of_an_id(tmp_path: Path) -> None:
    given = changed(placed("hotel-id", tmp_path), file="{hotel_id[0]}/{hotel_id[1]}/{image}")
    for place in ("5/1/a.jpg", "5/2/b.jpg"):
        write(tmp_path / "train_images" / place)
    rows = read_rows(given)
    assert rows["path"].tolist() == ["train_images/5/1/a.jpg", "train_images/5/2/b.jpg", "test_images/q.jpg"]
    write(tmp_path / "train.csv", "image,chain,hotel_id\na.jpg,3,51\nb.jpg,70,5\n")
    with pytest.raises(WhaleidError, match=r"train\.csv: 'hotel_id' in row 3 is '5', too short for \{hotel_id\[1\]\}"):
        read_rows(given)


def test_a_file_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    given = placed("animalclef-2025", tmp_path / "data")
    write(tmp_path / "x.jpg")
    write(tmp_path / "data/metadata.csv", METADATA.replace("images/LynxID2025/database/a.jpg", "../x.jpg"))
    with pytest.raises(WhaleidError, match="outside"):
        read_rows(given)


@pytest.mark.parametrize("pattern", ["x.jpg", "{path", "{}", "{a.b}}", "{id[x]}"])
def test_a_pattern_that_is_none_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no pattern"):
        changed(placed("animalclef-2025", tmp_path), file=pattern)


def test_a_suffix_beside_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both set"):
        changed(placed("animalclef-2025", tmp_path), suffix=".jpg")
