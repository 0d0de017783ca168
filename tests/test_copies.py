"""Near duplicates across folds: pictures of one photograph that the folds do not know of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from test_local import texture

from whaleid.config import Competition
from whaleid.data.competition import read_rows
from whaleid.data.images_table import build_images
from whaleid.report import copies
from whaleid.report.copies import copies_across_folds, copies_section


@pytest.fixture
def results(tmp_path: Path) -> SimpleNamespace:
    """Six textures, the first three in fold 0, and copies of two of them; a test image is a copy, too."""
    rows, folds = [], []
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), texture(number))
        rows.append((f"{number}.png", f"w{number}"))
        folds.append(number // 3)
    for name, seed, fold in (("copy a", 3, 0), ("copy b", 4, 1)):
        small = cv2.resize(texture(seed), None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 60])
        rows.append((f"{name}.jpg", f"w{seed}"))
        folds.append(fold)
    pd.DataFrame(rows, columns=["image", "id"]).to_csv(tmp_path / "train.csv", index=False)
    cv2.imwrite(str(tmp_path / "test.png"), texture(0))
    pd.DataFrame({"image": ["test.png"]}).to_csv(tmp_path / "test.csv", index=False)
    table = {"images": ".", "image": "image"}
    competition = Competition.model_validate(
        {
            "name": "copied",
            "root": tmp_path,
            "train": {"csv": "train.csv", "identity": "id", **table},
            "test": {"csv": "test.csv", **table},
            "find_copies": False,
        }
    )
    images = build_images(competition, read_rows(competition), workers=1)
    labelled = pd.DataFrame({"image": [name for name, _ in rows], "identity": [of for _, of in rows], "fold": folds})
    return SimpleNamespace(images=images, folds=labelled, project=SimpleNamespace(competition=competition))


def test_a_copy_in_another_fold_is_found(results: SimpleNamespace) -> None:
    (found,) = copies_across_folds(results)
    assert results.images["image"].iloc[list(found.rows)].tolist() == ["3.png", "copy a.jpg"]
    assert 0.9 <= found.correlation <= 1.0
    section = copies_section([found], results)
    (pair,) = section["pairs"]
    assert section["count"] == 1 and pair["same"]
    assert [(one["name"], one["fold"]) for one in pair["images"]] == [("3.png", 1), ("copy a.jpg", 0)]


def test_pairs_are_those_of_a_naive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 40, dtype=np.uint64)
    hashes[20:] = hashes[:20] ^ (np.uint64(1) << rng.integers(0, 60, 20).astype(np.uint64)) ^ np.uint64(3)
    fold = rng.integers(0, 3, 40)
    naive = {
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if fold[i] != fold[j] and bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= copies.DISTANCE
    }
    assert {tuple(pair) for pair in copies._nearest_pairs(hashes, fold).tolist()} == naive and naive
    monkeypatch.setattr(copies, "LOOKED_AT", 3)
    few = copies._nearest_pairs(hashes, fold)
    distances = [bin(int(hashes[i]) ^ int(hashes[j])).count("1") for i, j in few.tolist()]
    every = sorted(bin(int(hashes[i]) ^ int(hashes[j])).count("1") for i, j in naive)
    assert distances == every[:3]
