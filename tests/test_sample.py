"""The embedded sample: layout, shares, every byte fixed by the seed, neither trivial nor noise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whaleid.data.flukes import draw_individual
from whaleid.data.photographs import Conditions, photograph
from whaleid.data.sample import (
    SINGLETONS,
    UNKNOWN,
    K,
    class_sizes,
    contact_sheet,
    make_sample,
    plan,
    read_pairs,
)
from whaleid.utils.errors import WhaleidError

SMALL = {"identities": 12, "train_images": 60, "test_images": 20}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "sample"
    make_sample(root, seed=3, workers=1, **SMALL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def known(pairs: list[tuple[str, str]]) -> list[str]:
    return [identity for _, identity in pairs if identity != UNKNOWN]


def test_layout_and_counts(sample: Path) -> None:
    train, solution = read_pairs(sample / "train.csv"), read_pairs(sample / "solution.csv")
    assert {path.name for path in (sample / "train").iterdir()} == {image for image, _ in train}
    assert {path.name for path in (sample / "test").iterdir()} == {image for image, _ in solution}
    assert (len(train), len(solution)) == (60, 20)
    assert len(set(known(train))) == 12
    assert sorted(path.name for path in sample.iterdir()) == [
        "sample.json", "sample_submission.csv", "solution.csv", "test", "train", "train.csv",
    ]  # fmt: skip


def test_submission_has_the_rows_of_the_solution_and_five_distinct_labels(sample: Path) -> None:
    submission, solution = read_pairs(sample / "sample_submission.csv"), read_pairs(sample / "solution.csv")
    assert [image for image, _ in submission] == [image for image, _ in solution]
    assert all(len(set(labels.split())) == K for _, labels in submission)
    assert (sample / "train.csv").read_text().startswith("Image,Id\n")


def test_every_image_opens_with_a_plausible_size(sample: Path) -> None:
    modes = Counter()
    for path in [*sample.glob("train/*.jpg"), *sample.glob("test/*.jpg")]:
        with Image.open(path) as picture:
            picture.load()
            modes[picture.mode] += 1
            assert 180 <= picture.width <= 300
            assert 1.25 <= picture.width / picture.height <= 3.3
    assert set(modes) == {"RGB", "L"}


def test_identities_of_the_solution_are_known_or_unknown(sample: Path) -> None:
    labelled = set(known(read_pairs(sample / "train.csv")))
    assert set(known(read_pairs(sample / "solution.csv"))) <= labelled


def test_same_seed_gives_the_same_bytes_whatever_the_workers(sample: Path, tmp_path: Path) -> None:
    make_sample(tmp_path / "again", seed=3, workers=2, **SMALL)
    assert contents(tmp_path / "again") == contents(sample)


def test_another_seed_gives_another_sample(sample: Path, tmp_path: Path) -> None:
    make_sample(tmp_path / "other", seed=4, workers=1, identities=5, train_images=30, test_images=5)
    assert not contents(sample).keys() & {name for name in contents(tmp_path / "other") if name.endswith("jpg")}


def test_shares_of_the_default_plan() -> None:
    photos = plan(seed=0, identities=150, train_images=1000, test_images=400)
    train = [photo for photo in photos if photo.path.startswith("train/")]
    test = [photo for photo in photos if photo.path.startswith("test/")]
    assert sum(photo.label == UNKNOWN for photo in train) / len(train) == pytest.approx(0.381, abs=0.001)
    assert sum(photo.label == UNKNOWN for photo in test) / len(test) == pytest.approx(0.276, abs=0.002)
    sizes = Counter(photo.label for photo in train if photo.label != UNKNOWN)
    assert len(sizes) == 150
    assert sum(size == 1 for size in sizes.values()) / 150 == pytest.approx(SINGLETONS, abs=0.01)
    queries = Counter(sizes[photo.label] == 1 for photo in test if photo.label != UNKNOWN)
    assert 10 <= queries[True] < queries[False]  # singletons are queries, but fewer
    assert 3 <= sum(photo.copy_of is not None for photo in photos) <= 5


def test_share_of_unknown_is_an_argument() -> None:
    photos = plan(seed=0, identities=100, train_images=400, test_images=50, unknown_train=0.5, unknown_test=0.0)
    train = [photo.label for photo in photos if photo.path.startswith("train/")]
    assert train.count(UNKNOWN) == 200 and len(set(train)) == 101
    assert UNKNOWN not in {photo.label for photo in photos if photo.path.startswith("test/")}


def test_unlabelled_individuals_have_no_label_anywhere() -> None:
    """An individual without a label has none anywhere, and none of the test set is in train."""
    photos = plan(seed=1, identities=20, train_images=200, test_images=100)
    labels: dict[int, set[str]] = {}
    for photo in photos:
        labels.setdefault(photo.individual, set()).add(photo.label)
    assert all(len(names) == 1 for names in labels.values())
    unlabelled = [photo for photo in photos if photo.label == UNKNOWN]
    in_train = Counter(photo.individual for photo in unlabelled if photo.path.startswith("train/"))
    in_test = Counter(photo.individual for photo in unlabelled if photo.path.startswith("test/"))
    assert not in_train.keys() & in_test.keys()
    assert set(in_train.values()) == {1, 2}
    assert sum(count == 2 for count in in_train.values()) < 0.25 * len(in_train)


def test_copies_stay_with_their_identity_in_train() -> None:
    photos = {photo.number: photo for photo in plan(seed=2, identities=50, train_images=400, test_images=50)}
    copies = [photo for photo in photos.values() if photo.copy_of is not None]
    assert copies
    for photo in copies:
        original = photos[photo.copy_of or 0]
        assert original.label == photo.label != UNKNOWN
        assert original.copy_of is None
        assert original.path.startswith("train/") and photo.path.startswith("train/")


@pytest.mark.parametrize("images", [30, 31, 100])
def test_class_sizes_sum_up_and_leave_nobody_out(images: int) -> None:
    sizes = class_sizes(np.random.default_rng(0), 15, images)
    assert sizes.sum() == images and sizes.min() == 1 and len(sizes) == 15


def test_too_few_images_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="20 identities cannot share"):
        make_sample(tmp_path / "sample", identities=20, train_images=30, test_images=5)
    assert not any(tmp_path.iterdir())


def test_a_complete_sample_is_kept_and_an_incomplete_one_replaced(tmp_path: Path) -> None:
    root, few = tmp_path / "sample", {"identities": 4, "train_images": 15, "test_images": 4, "workers": 1}
    (tmp_path / ".sample.partial" / "train").mkdir(parents=True)  # left behind by a killed process
    (tmp_path / ".sample.partial" / "train" / "half.jpg").write_bytes(b"half")
    seen: list[tuple[int, int]] = []
    assert make_sample(root, **few, progress=lambda done, total: seen.append((done, total))).made
    assert seen[-1] == (19, 19)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    first = contents(root)
    summary = make_sample(root, **few)
    assert not summary.made and (summary.train, summary.test, summary.identities) == (15, 4, 4)
    next(root.glob("train/*.jpg")).unlink()
    assert make_sample(root, **few).made
    assert contents(root) == first
    assert make_sample(root, seed=1, **few).made
    assert json.loads((root / "sample.json").read_text())["made_from"]["seed"] == 1


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WhaleidError, match="not a sample"):
        make_sample(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_drawing_is_a_function_of_its_generator() -> None:
    first, second = (draw_individual(np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.skin, second.skin) and first.skin.dtype == np.float32
    assert first.mask.min() >= 0 and first.mask.max() == 1
    pictures = [photograph(first, np.random.default_rng(6), Conditions(grey_share=0)) for _ in range(2)]
    assert np.array_equal(*pictures) and pictures[0].dtype == np.uint8 and pictures[0].shape[2] == 3


def test_contact_sheet_is_an_image(sample: Path, tmp_path: Path) -> None:
    contact_sheet(sample, tmp_path / "sheet.png", rows=3, columns=4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 400


def test_raw_pixels_do_better_than_chance_and_do_not_solve_it(tmp_path: Path) -> None:
    """A nearest neighbour on grey 64x32 pixels, scored on queries of known identity."""
    make_sample(tmp_path / "sample", seed=7, identities=20, train_images=130, test_images=50)
    train, test = read_pairs(tmp_path / "sample/train.csv"), read_pairs(tmp_path / "sample/solution.csv")
    train, test = ([pair for pair in pairs if pair[1] != UNKNOWN] for pairs in (train, test))
    gallery, queries = (
        np.stack([pixels(tmp_path / "sample" / folder / image) for image, _ in pairs])
        for folder, pairs in (("train", train), ("test", test))
    )
    order = np.argsort(-queries @ gallery.T, axis=1)
    scores = []
    for row, (_, identity) in zip(order, test, strict=True):
        guesses = list(dict.fromkeys(train[i][1] for i in row))[:K]
        scores.append(1 / (guesses.index(identity) + 1) if identity in guesses else 0.0)
    chance = sum(1 / rank for rank in range(1, K + 1)) / 20
    assert 1.5 * chance < np.mean(scores) < 0.45


def pixels(path: Path) -> np.ndarray:
    """Grey 64x32 pixels without their mean, L2-normalised: float32 (2048,)."""
    with Image.open(path) as picture:
        flat = np.asarray(picture.convert("L").resize((64, 32), Image.Resampling.BOX), np.float32).ravel()
    flat = flat - flat.mean()
    return flat / np.linalg.norm(flat)
