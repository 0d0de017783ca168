"""`whaleid data import`: what it writes is read again with the rows that are there; nothing is overwritten unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from whaleid.config.files import load_competition
from whaleid.data.competition import read_rows
from whaleid.data.importing import import_data
from whaleid.utils.errors import WhaleidError

METADATA = """image_id,identity,path,split
1,t1,images/a.jpg,database
2,t2,images/b.jpg,database
3,,images/c.jpg,query
"""


def files(root: Path, *names: str, **tables: str) -> Path:
    """Empty images, and CSVs by their stem."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


def imported(source: Path, output: Path) -> list[tuple[str, str, str | None]]:
    """Path, split and identity of the rows of the competition that is written."""
    made = import_data(source, output)
    rows = read_rows(load_competition(str(made.yaml)))
    identities = [
        None if split == "test" else name for split, name in zip(rows["split"], rows["identity"], strict=True)
    ]
    return list(zip(rows["path"], rows["split"], identities, strict=True))


SPLIT = [("images/a.jpg", "train", "t1"), ("images/b.jpg", "train", "t2"), ("images/c.jpg", "test", None)]


@pytest.mark.parametrize("source", ["", "metadata.csv"])
def test_one_table_with_a_split(tmp_path: Path, source: str) -> None:
    root = files(tmp_path / "d", "images/a.jpg", "images/b.jpg", "images/c.jpg", metadata=METADATA)
    assert imported(root / source, tmp_path / "x.yaml") == SPLIT


def test_paths_that_count_from_a_folder_of_the_root(tmp_path: Path) -> None:
    table = METADATA.replace("images/", "")
    root = files(tmp_path / "d", "images/a.jpg", "images/b.jpg", "images/c.jpg", metadata=table)
    assert imported(root, tmp_path / "deep/x.yaml") == SPLIT


def test_kaggles_layout_without_suffixes(tmp_path: Path) -> None:
    root = files(
        tmp_path / "d",
        "train/a.png",
        "test/q.png",
        train="Image,Id\na,w1\n",
        sample_submission="Image,Labels\nq,w1\n",
    )
    rows = imported(root, tmp_path / "x.yaml")
    assert rows == [("train/a.png", "train", "w1"), ("test/q.png", "test", None)]
    assert load_competition(str(tmp_path / "x.yaml")).submission.identities == "Labels"


def test_a_folder_for_each_identity(tmp_path: Path) -> None:
    root = files(tmp_path / "d", "Old Tom/a.JPG", "Old Tom/far/b.jpg", "w2/a.JPG", "w2/notes.txt")
    assert imported(root, tmp_path / "x.yaml") == [
        ("Old Tom/a.JPG", "train", "Old_Tom"),
        ("Old Tom/far/b.jpg", "train", "Old_Tom"),
        ("w2/a.JPG", "train", "w2"),
    ]


def test_folders_of_identities_beside_queries(tmp_path: Path) -> None:
    root = files(tmp_path / "d", "train/w1/a.jpg", "test/q.jpg")
    assert imported(root, tmp_path / "x.yaml") == [("train/w1/a.jpg", "train", "w1"), ("test/q.jpg", "test", None)]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    root = files(tmp_path / "d", "w1/a.jpg")
    import_data(root, tmp_path / "x.yaml")
    before = (tmp_path / "x.yaml").read_text()
    with pytest.raises(WhaleidError, match=r"x\.yaml: exists"):
        import_data(root, tmp_path / "x.yaml")
    assert (tmp_path / "x.yaml").read_text() == before
    import_data(root, tmp_path / "x.yaml", overwrite=True)


def test_a_table_that_exists_is_kept(tmp_path: Path) -> None:
    root = files(tmp_path / "d", "train/w1/a.jpg", "test/q.jpg", test="my own\n")
    with pytest.raises(WhaleidError, match=r"test\.csv: exists"):
        import_data(root, tmp_path / "x.yaml")
    assert (root / "test.csv").read_text() == "my own\n"
    assert not (root / "train.csv").exists()
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize(
    ("names", "tables", "words"),
    [
        ([], {}, "no CSV and no folder of images"),
        (["Old Tom/a.jpg", "Old_Tom/b.jpg"], {}, "'Old Tom' and 'Old_Tom' would both be identity Old_Tom"),
        (["a.jpg"], {"train": "picture,whale\na.jpg,1\n"}, "no column of images among picture, whale"),
        (["a.jpg"], {"train": "image,whale\na.jpg,1\n"}, "no column of identities among whale"),
        (["a.jpg"], {"train": "image,identity\nz.jpg,1\n"}, "image z.jpg is neither in"),
        (["a.jpg"], {"metadata": "image,identity,split\na.jpg,1,A\n"}, "column 'split' holds A and none of train"),
        (["a.jpg"], {"train": "image,identity\n"}, "lists no image"),
    ],
)
def test_what_is_not_understood_is_one_line(tmp_path: Path, names, tables, words) -> None:
    (tmp_path / "d").mkdir()
    root = files(tmp_path / "d", *names, **tables)
    with pytest.raises(WhaleidError, match=words) as error:
        import_data(root, tmp_path / "x.yaml")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.yaml").exists()
