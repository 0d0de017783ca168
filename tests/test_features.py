"""Features read from a folder: our own, a stranger's, and broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from whaleid.features.files import SomeRows, read_features
from whaleid.utils.errors import WhaleidError

IMAGES = 23


@pytest.fixture
def images() -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{number}, with comma.jpg" for number in range(IMAGES)]})


@pytest.fixture
def foreign(tmp_path: Path, images: pd.DataFrame) -> Path:
    """Features of another program: raw float64 rows in another order."""
    order = np.random.default_rng(1).permutation(IMAGES)
    np.save(tmp_path / "embeddings.npy", table()[order])
    np.save(tmp_path / "logits.npy", table()[order, :2].astype(np.float16))
    images.iloc[order][["image"]].to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "classes.txt").write_text("w_a\nw_b\n")
    return tmp_path


def table() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(IMAGES, 5)) * 1000


def test_foreign_features_are_put_in_order_and_brought_to_length_1(foreign: Path, images: pd.DataFrame) -> None:
    features = read_features(foreign, images)
    expected = table() / np.linalg.norm(table(), axis=1, keepdims=True)
    assert features.embeddings.dtype == np.float32
    np.testing.assert_allclose(features.embeddings, expected, atol=1e-6)
    np.testing.assert_array_equal(features.logits, table()[:, :2].astype(np.float16))


def test_only_the_rows_asked_for(foreign: Path, images: pd.DataFrame) -> None:
    whole, rows = read_features(foreign, images), np.array([7, 2, 2, 11])
    some = read_features(foreign, images, rows)
    np.testing.assert_array_equal(some.embeddings, whole.embeddings[rows])
    assert whole.logits is not None
    np.testing.assert_array_equal(some.logits, whole.logits[rows])
    assert read_features(foreign, images, logits=False).logits is None


def test_logits_in_order_stay_on_disk(tmp_path: Path, images: pd.DataFrame) -> None:
    np.save(tmp_path / "embeddings.npy", table().astype(np.float16))
    np.save(tmp_path / "logits.npy", table()[:, :2].astype(np.float16))
    images[["image"]].to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "classes.txt").write_text("w_a\r\nw_b\r\n")
    features = read_features(tmp_path, images)
    assert isinstance(features.logits, np.memmap)
    assert features.classes is not None and features.classes.tolist() == ["w_a", "w_b"]


def edit_rows(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    names = pd.read_csv(folder / "rows.csv")["image"].tolist()
    pd.DataFrame({"image": change(names)}).to_csv(folder / "rows.csv", index=False)


def set_row(folder: Path, value: float, name: str = "embeddings.npy") -> None:
    place = pd.read_csv(folder / "rows.csv")["image"].tolist().index("4, with comma.jpg")
    values = np.load(folder / name)
    values[place] = value
    np.save(folder / name, values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "rows.csv").unlink(), r"rows\.csv: not found"),
        (lambda folder: (folder / "embeddings.npy").unlink(), r"embeddings\.npy: not found"),
        (lambda folder: (folder / "rows.csv").write_text(""), "not readable as CSV"),
        (lambda folder: (folder / "rows.csv").write_text("name\na.jpg\n"), "column 'image' is missing"),
        (lambda folder: edit_rows(folder, lambda names: names[:-2]), "2 of 23 images are missing, first '"),
        (lambda folder: edit_rows(folder, lambda names: [*names, "x.jpg"]), "1 images are not in .*'x.jpg'"),
        (lambda folder: edit_rows(folder, lambda names: [*names, names[3]]), "listed twice"),
        (lambda folder: np.save(folder / "embeddings.npy", table()[:-1]), "22 rows, but rows.csv lists 23"),
        (lambda folder: np.save(folder / "embeddings.npy", table().astype(int)), "int64 .* is needed"),
        (lambda folder: np.save(folder / "embeddings.npy", table()[:, 0]), "is needed"),
        (lambda folder: np.save(folder / "embeddings.npy", np.array([{}])), "not a complete .npy"),
        (lambda folder: (folder / "embeddings.npy").write_bytes(b""), "not a complete .npy"),
        (lambda folder: os.truncate(folder / "embeddings.npy", 500), "not a complete .npy"),
        (lambda folder: set_row(folder, np.nan), "'4, with comma.jpg' holds NaN"),
        (lambda folder: set_row(folder, 0.0), "'4, with comma.jpg' is all zeros"),
        (lambda folder: set_row(folder, 1e200), "too large"),
        (lambda folder: set_row(folder, np.inf, "logits.npy"), "logits.npy: the row of '4, with comma.jpg'"),
        (lambda folder: (folder / "classes.txt").unlink(), "go together"),
        (lambda folder: (folder / "classes.txt").write_text("w_a\n"), "1 distinct identities, but .* 2 col"),
        (lambda folder: (folder / "classes.txt").write_text("w_a\nw_a\n"), "1 distinct identities"),
        (lambda folder: np.save(folder / "logits.npy", table()[:-1, :2]), "logits.npy: 22 rows"),
    ],
)
def test_broken_features_are_one_clear_line(
    foreign: Path, images: pd.DataFrame, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(foreign)
    with pytest.raises(WhaleidError, match=message) as caught:
        read_features(foreign, images)
    assert str(foreign) in str(caught.value) and "\n" not in str(caught.value)


def test_logits_of_some_images_are_read_by_their_own_list(foreign: Path, images: pd.DataFrame) -> None:
    whole = read_features(foreign, images)
    assert isinstance(whole.logits, np.ndarray)
    wanted = np.array([7, 2, 19])
    np.save(foreign / "logits.npy", whole.logits[wanted])
    images["image"].iloc[wanted].to_frame().to_csv(foreign / "logits.rows.csv", index=False)
    some = read_features(foreign, images)
    assert isinstance(some.logits, SomeRows) and some.logits.shape == whole.logits.shape
    for rows in (wanted, wanted[::-1], wanted[:1], wanted[:0]):
        assert np.array_equal(some.logits[rows], whole.logits[rows])
    few = read_features(foreign, images, np.array([19, 7]))
    assert few.logits is not None and np.array_equal(few.logits[np.array([1, 0])], whole.logits[[7, 19]])
    with pytest.raises(WhaleidError, match=r"logits\.npy: has no row for 1 of the 2 images"):
        some.logits[np.array([2, 3])]
    np.save(foreign / "logits.npy", whole.logits[:2])
    with pytest.raises(WhaleidError, match=r"2 rows, but logits\.rows\.csv lists 3"):
        read_features(foreign, images)
    np.save(foreign / "logits.npy", np.full((3, 2), np.nan))
    with pytest.raises(WhaleidError, match="holds NaN"):
        read_features(foreign, images)
    (foreign / "logits.rows.csv").write_text("image\nno such image\nx\ny\n")
    with pytest.raises(WhaleidError, match=r"3 images are not in images\.parquet"):
        read_features(foreign, images)


def test_reading_needs_no_torch() -> None:
    code = "import sys, whaleid.features.files; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
