"""The images table: sizes, boxes, duplicates, unreadable files, and what makes it out of date."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse.csgraph import connected_components

from whaleid.config import Competition
from whaleid.data import digests
from whaleid.data.check import check_data
from whaleid.data.competition import read_rows
from whaleid.data.digests import content_digest, file_digests
from whaleid.data.duplicates import (
    CORRELATION,
    HASH_DISTANCE,
    duplicate_components,
    duplicate_pairs,
    standardised_detail,
)
from whaleid.data.fingerprints import THUMBNAIL, Fingerprints, fingerprint_images
from whaleid.data.folds import make_folds
from whaleid.data.images_table import build_images, group_names, images_key, labelled_key
from whaleid.utils.errors import WhaleidError

digest_of = digests._read_digest


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A soft random picture that has features of its own."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 10)
    return Image.fromarray(np.clip(128 + 50 * soft / soft.std(), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def make(root: Path, files: dict[str, bytes], labels: dict[str, str], **settings) -> Competition:
    """A competition of the given train (labelled) and test files, all in one folder."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / "images" / name).write_bytes(data)
    train = "Image,Id\n" + "".join(f"{name},{label}\n" for name, label in labels.items())
    (root / "train.csv").write_text(train)
    (root / "test.csv").write_text("Image\n" + "".join(f"{name}\n" for name in files if name not in labels))
    given = {
        "name": "t",
        "root": root,
        "train": {"csv": "train.csv", "images": "images", "image": "Image", "identity": "Id"},
        "test": {"csv": "test.csv", "images": "images", "image": "Image"},
        **settings,
    }
    return Competition.model_validate(given)


def build(competition: Competition, **options) -> pd.DataFrame:
    return build_images(competition, read_rows(competition), workers=1, **options)


@pytest.fixture
def files() -> dict[str, bytes]:
    """Five pictures, of which e is b again at another size and quality, and d has c's very bytes."""
    first = {name: jpeg(picture(seed)) for seed, name in enumerate(("a.jpg", "b.jpg", "c.jpg"))}
    copy = jpeg(picture(1).resize((240, 180)), quality=40)
    return {**first, "d.jpg": first["c.jpg"], "e.jpg": copy, "q.jpg": jpeg(picture(9, 90, 200))}


LABELS = {"a.jpg": "1", "b.jpg": "1", "c.jpg": "2", "d.jpg": "2", "e.jpg": "new"}


def test_table(tmp_path, files):
    images = build(make(tmp_path, files, LABELS))
    assert list(images.columns[:6]) == ["image", "path", "split", "identity", "width", "height"]
    assert list(images.columns[6:]) == ["x0", "y0", "x1", "y1", "phash", "digest", "group"]
    assert images["group"].tolist() == ["a.jpg", "b.jpg", "c.jpg", "c.jpg", "b.jpg", "q.jpg"]
    assert images[["width", "height"]].iloc[-1].tolist() == [90, 200]
    assert images.loc[4, ["x0", "y0", "x1", "y1"]].tolist() == [0, 0, 240, 180]
    assert images["phash"].str.fullmatch("[0-9a-f]{16}").all()
    assert images["digest"].tolist() == [content_digest(files[name]) for name in images["image"]]
    images.to_parquet(tmp_path / "images.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "images.parquet"), images)


def test_hash_is_that_of_the_library(tmp_path, files):
    import imagehash

    images = build(make(tmp_path, files, LABELS))
    assert images["phash"][0] == str(imagehash.phash(Image.open(tmp_path / "images/a.jpg").convert("L")))


def test_processes_give_the_same_table(tmp_path, files):
    competition = make(tmp_path, {f"{i}{n}": d for i in range(12) for n, d in files.items()}, {"0a.jpg": "1"})
    rows = read_rows(competition)
    one, two = (build_images(competition, rows, workers=workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_is_as_seen(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(0, 300, 200).save(tmp_path / "x", kind, exif=exif)
    found = fingerprint_images(tmp_path, ["x"], 1)
    assert found.problem[0] == ""
    assert found.size[0].tolist() == ([200, 300] if orientation == 6 else [300, 200])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixel_is_read(tmp_path, mode):
    grey = picture(0).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGB").convert(mode)
    image.save(tmp_path / "x", "TIFF" if mode == "CMYK" else "PNG")
    grey.save(tmp_path / "y", "PNG")
    found = fingerprint_images(tmp_path, ["x", "y"], 1)
    assert found.problem.tolist() == ["", ""]
    if mode != "1":
        assert np.corrcoef(found.thumbnail)[0, 1] > 0.99
    assert int(np.bitwise_count(found.phash[0] ^ found.phash[1])) <= 10


# ------------------------------------------------------------------------------------------------ unreadable


def damaged() -> dict[str, bytes]:
    whole = jpeg(picture(3))
    png = io.BytesIO()
    picture(4).save(png, "PNG")
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "progressive.jpg": (data := jpeg(picture(5), progressive=True))[: len(data) // 2],
        "cut.png": png.getvalue()[: len(png.getvalue()) // 2],
        "empty.jpg": b"",
        "text.jpg": b"no picture",
        "head.jpg": whole[:30],
    }


def test_all_unreadable_are_named_at_once(tmp_path, files):
    competition = make(tmp_path, {**files, **damaged()}, LABELS)
    with pytest.raises(WhaleidError) as error:
        build(competition)
    message = str(error.value)
    assert "6 of 12 images" in message and "--skip-unreadable" in message
    for part in (
        "cut.jpg (truncated)",
        "cut.png (truncated)",
        "empty.jpg (0 bytes)",
        "text.jpg (not an image)",
    ):
        assert part in message


def test_no_more_than_ten_are_named(tmp_path):
    competition = make(tmp_path, {f"{i:02d}.jpg": b"" for i in range(13)}, {"00.jpg": "1"})
    with pytest.raises(WhaleidError, match=r"13 of 13 .*09\.jpg \(0 bytes\) and 3 more"):
        build(competition)
    with pytest.raises(WhaleidError, match="no image is left"):
        build(competition, skip_unreadable=True)


def test_unreadable_are_left_out_on_request(tmp_path, files, capsys):
    clean = build(make(tmp_path, files, LABELS))
    labels = {"text.jpg": "1", **LABELS}
    left = build(make(tmp_path, {**damaged(), **files}, labels), skip_unreadable=True)
    pd.testing.assert_frame_equal(left, clean)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and "6 of 12" in warning and "5 of them need guesses" in warning


# ------------------------------------------------------------------------------------------------ duplicates


def fingerprints(n: int, seed: int = 0) -> Fingerprints:
    """Random fingerprints in which copies with a few flipped bits and a little noise are planted."""
    rng = np.random.default_rng(seed)
    origin = rng.integers(0, n // 2, n)
    flips = rng.integers(0, 64, (n, 4))
    phash = rng.integers(0, 2**63, n, dtype=np.uint64)[origin]
    for column in range(4):
        phash ^= (rng.random(n) < 0.5).astype(np.uint64) << flips[:, column].astype(np.uint64)
    thumbnail = rng.integers(0, 256, (n, THUMBNAIL**2))[origin] + rng.integers(-30, 30, (n, THUMBNAIL**2))
    thumbnail = np.clip(thumbnail, 0, 255).astype(np.uint8)
    source = np.where(rng.random(n) < 0.8, np.arange(n), rng.integers(0, n, n))  # a fifth are equal files
    digest = np.array([f"{row:020d}" for row in range(n)])[source]
    size = np.full((n, 2), 100, np.int32)
    return Fingerprints(size, phash[source], thumbnail[source], thumbnail[source], digest, np.full(n, "", object))


def naive_components(found: Fingerprints) -> np.ndarray:
    n = len(found.phash)
    joined = np.zeros((n, n), bool)
    side = THUMBNAIL
    for i in range(n):
        for j in range(i):
            distance = bin(int(found.phash[i]) ^ int(found.phash[j])).count("1")
            details = []
            for row in (i, j):
                grid = found.thumbnail[row].reshape(side, side).astype(float)
                grid = grid - grid.mean(0)[None] - grid.mean(1)[:, None] + grid.mean()
                details.append(grid.ravel())
            alike = np.corrcoef(*details)[0, 1] >= CORRELATION
            joined[i, j] = found.digest[i] == found.digest[j] or (distance <= HASH_DISTANCE and alike)
    return pd.factorize(connected_components(joined, directed=False)[1])[0]


@pytest.mark.parametrize("seed", range(3))
def test_components_equal_a_naive_search(seed, monkeypatch):
    monkeypatch.setattr("whaleid.data.duplicates.TILE", (7, 11))
    monkeypatch.setattr("whaleid.data.duplicates.CONFIRM", 3)
    found = fingerprints(90, seed)
    components = duplicate_components(found)
    assert 1 < len(set(components)) < 90
    np.testing.assert_array_equal(components, naive_components(found))


def sea(seed: int) -> np.ndarray:
    """A picture of sky, horizon and faint waves, as thousands of whale photographs have them."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, 1, 200)[:, None]
    ground = np.where(rows < 0.4, 210 - 30 * rows, 120 - 50 * rows) + np.zeros((200, 300))
    waves = cv2.GaussianBlur(rng.normal(size=(200, 300)), (0, 0), sigmaX=9, sigmaY=2)
    return np.clip(ground + (rows > 0.4) * 6 * waves / waves.std(), 0, 255).astype(np.uint8)


def test_two_seas_are_not_one_photograph(tmp_path):
    for seed in range(12):
        Image.fromarray(sea(seed)).save(tmp_path / f"{seed}.jpg", quality=95)
    Image.fromarray(sea(0)).resize((450, 300)).save(tmp_path / "copy.jpg", quality=80)
    found = fingerprint_images(tmp_path, [*(f"{seed}.jpg" for seed in range(12)), "copy.jpg"], 1)
    near = replace(found, phash=found.phash * np.uint64(0))
    plain = np.corrcoef(found.thumbnail[:12])
    assert plain.min() > 0.97  # what a plain correlation would join, were the hashes near
    np.testing.assert_array_equal(duplicate_components(near), [*range(12), 0])


def test_flat_pictures_are_not_joined_but_equal_files_are(tmp_path):
    for name, level in (("a", 10), ("b", 200), ("c", 10)):
        Image.new("L", (64, 64), level).save(tmp_path / name, "PNG")
    found = fingerprint_images(tmp_path, ["a", "b", "c"], 1)
    assert not standardised_detail(found.thumbnail).any()
    assert duplicate_components(found).tolist() == [0, 1, 0]


def test_animals_before_one_background_are_no_copies_inside_their_boxes(tmp_path):
    """A camera that stands still: copies are searched inside the boxes, and not at all where that is turned off."""
    scene, boxes = picture(50, 640, 480), ["image,x0,y0,x1,y1"]
    files = {"t.jpg": jpeg(picture(60))}
    for number in range(4):
        photograph, (x, y) = scene.copy(), (20 + 130 * number, 180)
        photograph.paste(picture(number // 2, 96, 72), (x, y))  # two photographs of each of two animals
        files[f"{number}.jpg"] = jpeg(photograph, 92)
        boxes.append(f"{number}.jpg,{x},{y},{x + 96},{y + 72}")
    labels = {f"{number}.jpg": str(number // 2) for number in range(4)}
    whole = build(make(tmp_path, files, labels))["group"].tolist()
    assert whole == ["0.jpg"] * 4 + ["t.jpg"]
    (tmp_path / "boxes.csv").write_text("\n".join(boxes))
    inside = build(make(tmp_path, files, labels, boxes="boxes.csv"))["group"].tolist()
    assert inside == ["0.jpg", "0.jpg", "2.jpg", "2.jpg", "t.jpg"]
    files["4.jpg"], labels["4.jpg"] = files["0.jpg"], "0"
    off = build(make(tmp_path, files, labels, find_copies=False))["group"].tolist()
    assert off == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "0.jpg", "t.jpg"]  # equal files are copies all the same
    with pytest.raises(WhaleidError, match=r"4 groups of copies.*0\.jpg, 4\.jpg.* find_copies"):
        make_folds(build(make(tmp_path, files, labels, find_copies=False)), 5, None)
    notes = check_data(make(tmp_path, files, labels), 1).notes
    assert any("0.jpg (0) = 1.jpg (0) = 2.jpg (1)" in note and "find_copies" in note for note in notes)


def test_nothing_to_compare():
    assert duplicate_pairs(fingerprints(4)).shape[1] == 2
    empty = Fingerprints(*(values[:0] for values in vars(fingerprints(4)).values()))
    assert duplicate_components(empty).tolist() == []


def test_encounters_share_a_group_with_copies():
    images = pd.Series(["d", "c", "b", "a", "e"])
    encounter = pd.Series(["x", None, "y", "x", None])
    photographs = np.array([0, 1, 1, 2, 3])  # c and b are one photograph; d and a one encounter
    assert group_names(images, photographs, encounter).tolist() == ["a", "b", "b", "a", "e"]
    assert group_names(images, photographs, None).tolist() == ["d", "b", "b", "a", "e"]


def test_group_column_of_a_competition(tmp_path, files):
    competition = make(tmp_path, files, LABELS)
    (tmp_path / "train.csv").write_text("Image,Id,met\na.jpg,1,x\nb.jpg,1,\nc.jpg,2,x\nd.jpg,2,\ne.jpg,new,\n")
    train = competition.train.model_copy(update={"extra": {"encounter": "met"}})
    images = build(competition.model_copy(update={"train": train, "group": "encounter"}))
    assert images["group"].tolist() == ["a.jpg", "b.jpg", "a.jpg", "a.jpg", "b.jpg", "q.jpg"]
    assert images.columns[-1] == "encounter"


def test_no_test_image_joins_labelled_ones(tmp_path, files):
    """q has c's very bytes and was met with a: that must not bring c to a, or every test set had other folds."""
    (tmp_path / "images").mkdir()
    competition = make(tmp_path, {**files, "0q.jpg": files["c.jpg"]}, LABELS)
    (tmp_path / "train.csv").write_text("Image,Id,met\na.jpg,1,x\nb.jpg,1,\nc.jpg,2,\nd.jpg,2,\ne.jpg,new,\n")
    (tmp_path / "test.csv").write_text("Image,met\n0q.jpg,x\nq.jpg,y\n")
    extra = {"extra": {"encounter": "met"}}
    assert competition.test is not None
    tables = {"train": competition.train.model_copy(update=extra), "test": competition.test.model_copy(update=extra)}
    images = build(competition.model_copy(update={**tables, "group": "encounter"})).set_index("image")["group"]
    assert images[["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]].tolist() == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "c.jpg",
        "b.jpg",
    ]
    assert images["0q.jpg"] == "a.jpg"
    assert images["q.jpg"] == "q.jpg"


# ----------------------------------------------------------------------------------------------------- boxes


def test_boxes_of_a_competition(tmp_path, files):
    competition = make(tmp_path, files, LABELS, boxes="boxes.csv")
    with pytest.raises(WhaleidError, match=r"boxes\.csv: boxes file not found"):
        build(competition)
    assert not check_data(competition, workers=1).ok
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\nb.jpg,10,20,50,60\n")
    assert build(competition).loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [10, 20, 50, 60]
    report = check_data(competition, workers=1)
    assert report.ok and report.counts["boxes"] == 1
    assert any("5 images have no box" in line for line in report.lines())


# ------------------------------------------------------------------------------------------------------- key


def test_key_changes_with_what_the_table_depends_on_alone(tmp_path, files):
    competition = make(tmp_path, files, LABELS)
    key = images_key(competition)
    assert images_key(competition.model_copy(update={"solution": "x.csv", "k": 3, "name": "other"})) == key
    (tmp_path / "images/unlisted.jpg").write_bytes(b"")
    assert images_key(competition) == key
    assert images_key(competition.model_copy(update={"rename_values": {"identity": {"1": "2"}}})) != key
    os.utime(tmp_path / "images/a.jpg", (1, 1))
    assert images_key(competition) == key
    (tmp_path / "images/a.jpg").write_bytes(files["a.jpg"] + b"0")
    changed = images_key(competition)
    assert changed != key
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text().replace("new", "3"))
    assert images_key(competition) not in (key, changed)


def test_another_test_set_leaves_the_labelled_key_as_it_is(tmp_path, files):
    competition = make(tmp_path, files, LABELS, boxes="boxes.csv")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x0,y0,x1,y1\nb.jpg,10,20,50,60\n")
    key, every = labelled_key(competition), images_key(competition)
    (tmp_path / "images/new.jpg").write_bytes(files["a.jpg"])
    with (tmp_path / "test.csv").open("a") as file:
        file.write("new.jpg\n")
    boxes.write_text("image,x0,y0,x1,y1\nnew.jpg,1,2,3,4\nb.jpg,10,20,50,60\n")
    os.utime(tmp_path / "images/q.jpg", (1, 1))
    assert labelled_key(competition) == key
    assert images_key(competition) != every
    assert labelled_key(competition.model_copy(update={"test": None})) == key
    assert labelled_key(competition.model_copy(update={"boxes": None})) != key
    assert labelled_key(competition.model_copy(update={"rename_values": {"identity": {"1": "2"}}})) != key
    boxes.write_text("image,x0,y0,x1,y1\nb.jpg,10,20,50,61\n")
    changed = labelled_key(competition)
    assert changed != key
    (tmp_path / "images/a.jpg").write_bytes(files["a.jpg"] + b"0")
    another = labelled_key(competition)
    assert another not in (key, changed)
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text().replace("new", "3"))
    assert labelled_key(competition) not in (key, changed, another)


def test_a_copy_with_new_times_has_the_same_keys(tmp_path, files):
    competition = make(tmp_path / "here", files, LABELS)
    keys = images_key(competition), labelled_key(competition)
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    for path in (tmp_path / "there" / "images").iterdir():
        os.utime(path, (1, 1))
    copy = competition.model_copy(update={"root": tmp_path / "there"})
    assert (images_key(copy), labelled_key(copy)) == keys


def test_unchanged_images_are_not_read_again(tmp_path, files, monkeypatch):
    competition = make(tmp_path, files, LABELS)
    table = tmp_path / "work" / "digests.parquet"
    key = images_key(competition, table)
    read: list[str] = []
    monkeypatch.setattr(digests, "_read_digest", lambda name: read.append(Path(name).name) or digest_of(name))
    assert images_key(competition, table) == key and read == []
    labelled_key(competition, table)
    assert read == []
    os.utime(tmp_path / "images/a.jpg", (1, 1))  # the same content: read once, then known again
    assert images_key(competition, table) == key and read == ["a.jpg"]
    assert images_key(competition, table) == key and read == ["a.jpg"]
    place, time = tmp_path / "images/b.jpg", (tmp_path / "images/b.jpg").stat().st_mtime_ns
    place.write_bytes(files["b.jpg"][:-1] + b"0")  # as long as before
    os.utime(place, ns=(time, time + 1))
    assert images_key(competition, table) != key and read == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("damage", ["gone", "cut", "foreign"])
def test_a_damaged_table_of_digests_is_made_anew(tmp_path, files, damage):
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name])
    table = tmp_path / "digests.parquet"
    expected = [content_digest(content) for content in files.values()]
    assert file_digests(paths, table) == expected
    whole = table.read_bytes()
    if damage == "gone":
        table.unlink()
    elif damage == "cut":
        table.write_bytes(whole[: len(whole) // 2])
    else:
        pd.DataFrame({"path": ["x"]}).to_parquet(table)
    assert file_digests(paths, table) == expected == file_digests(paths)
    assert len(pd.read_parquet(table)) == len(files)


def test_digests_found_before_an_interruption_are_kept(tmp_path, files, monkeypatch):
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name])
    table = tmp_path / "digests.parquet"
    monkeypatch.setattr(digests, "PORTION", 2)

    def interrupted(name: str) -> str:
        if name.endswith("d.jpg"):
            raise KeyboardInterrupt
        return digest_of(name)

    monkeypatch.setattr(digests, "_read_digest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file_digests(paths, table)
    assert len(pd.read_parquet(table)) == 2
    read: list[str] = []
    monkeypatch.setattr(digests, "_read_digest", lambda name: read.append(name) or digest_of(name))
    assert file_digests(paths, table) == [content_digest(content) for content in files.values()]
    assert len(read) == len(files) - 2


def test_what_is_no_file_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    assert file_digests([tmp_path, tmp_path / "pipe", tmp_path / "none"], tmp_path / "digests.parquet") == [""] * 3


def test_key_stays_when_the_folder_moves(tmp_path, files):
    competition = make(tmp_path / "here", files, LABELS)
    key = images_key(competition)
    (tmp_path / "here").rename(tmp_path / "there")
    assert images_key(competition.model_copy(update={"root": tmp_path / "there"})) == key


# ----------------------------------------------------------------------------------------------------- check


def test_check_counts(tmp_path, files):
    labels = {"a.jpg": "1", "b.jpg": "1", "c.jpg": "2", "e.jpg": "new"}
    competition = make(tmp_path, files, labels, unknown="new", unknown_share=0.3, solution="no.csv")
    report = check_data(competition, workers=1)
    expected = {"train": 4, "test": 2, "identities": 2, "singletons": 1, "unknown": 1}
    expected |= {"near_duplicates": 2, "duplicate_groups": 2, "largest_group": 2}
    expected |= {"contradictory_copies": 1, "across": 1, "boxes": None, "masks": None}
    assert {name: report.counts[name] for name in expected} == expected
    assert report.counts["class_sizes"]["1"] == (1, 1) and report.counts["class_sizes"]["2-5"] == (1, 2)
    assert ("median size", "160 x 120 pixels") in report.facts
    assert len(report.problems) == 1 and "solution not found" in report.problems[0]
    text = "\n".join(report.lines())
    assert (
        "b.jpg (1) = e.jpg (new)" in text and "copy in train: d.jpg" in text and "(25.0%)" in text and "30.0%" in text
    )


def test_check_collects_instead_of_raising(tmp_path, files):
    competition = make(tmp_path, {**files, **damaged()}, LABELS)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("a.jpg,1\nb.jpg,9\ngone.jpg,1\ncut.jpg,\n/etc/x.jpg,1\n")
    report = check_data(competition, workers=1)
    kinds = ("missing", "unreadable", "duplicate_rows", "contradictory_rows", "train", "test")
    assert [report.counts[kind] for kind in kinds] == [1, 6, 1, 1, 5, 1] and not report.ok
    kinds = ["empty", "contradictory", "duplicate row", "outside", "are not in", "cannot be read"]
    assert len(report.problems) == len(kinds)
    for kind, line in zip(kinds, report.problems, strict=True):
        assert kind in line
    missing = check_data(competition.model_copy(update={"root": tmp_path / "no"}))
    assert "folder not found" in missing.lines()[-2]


def test_check_of_nothing_readable(tmp_path):
    report = check_data(make(tmp_path, {"a.jpg": b"", "q.jpg": b""}, {"a.jpg": "1"}), workers=1)
    assert report.counts["unreadable"] == 2 and report.lines()
