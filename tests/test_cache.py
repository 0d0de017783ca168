"""The cache: what it holds, resuming after kill -9, broken images, full disks."""

import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from whaleid.config.files import load_experiment
from whaleid.data import cache as module
from whaleid.data.cache import build_cache, cache_name, open_cache
from whaleid.data.images import prepare
from whaleid.utils.errors import WhaleidError

SIZE = (32, 16)
FORMS = ["raw", "jpeg"]
COUNT = 100  # more than three chunks


def config(form: str):
    return load_experiment("default", {"image.cache": form}).image


@pytest.fixture
def images(tmp_path):
    """Table of COUNT images of different sizes with boxes, in tmp_path/images."""
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        width, height = int(rng.integers(40, 90)), int(rng.integers(30, 60))
        small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"{number}.jpg"), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
        rows.append((f"{number}.jpg", f"digest {number}", 3.0, 2.0, width - 4.0, height - 5.0))
    return pd.DataFrame(rows, columns=["path", "digest", "x0", "y0", "x1", "y1"])


def build(images, tmp_path, form="raw", workers=2, name="cache"):
    build_cache(images, tmp_path / "images", tmp_path / name, SIZE, config(form), workers)
    return open_cache(tmp_path / name)


def content(folder) -> str:
    names = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in names)).hexdigest()


def leftovers(tmp_path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", FORMS)
def test_cache_holds_the_prepared_images(images, tmp_path, form):
    cache = build(images, tmp_path, form)
    assert len(cache) == COUNT and cache.size == SIZE and leftovers(tmp_path) == []
    for row in (0, 31, 32, 63, COUNT - 1):
        record = images.iloc[row]
        box = record[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
        expected = prepare(tmp_path / "images" / record["path"], box, config(form).box_margin, SIZE)
        found = cache.read(row)
        assert found.shape == (16, 32, 3) and found.dtype == np.uint8
        if form == "raw":
            assert np.array_equal(found, expected)
        assert np.abs(found.astype(int) - expected.astype(int)).mean() < 8
    many = cache.read_many(np.array([5, 99, 5]))
    assert np.array_equal(many, np.stack([cache.read(5), cache.read(99), cache.read(5)]))
    many[:] = 0  # the caller's own copy
    assert cache.read(5).any()
    with pytest.raises(IndexError):
        cache.read(COUNT)
    with pytest.raises(IndexError):
        cache.read(-1)


@pytest.mark.parametrize("form", FORMS)
def test_cache_does_not_depend_on_workers(images, tmp_path, form):
    for workers in (1, 3, 7):
        build(images, tmp_path, form, workers, name=f"cache{workers}")
    assert len({content(tmp_path / f"cache{workers}") for workers in (1, 3, 7)}) == 1


@pytest.mark.parametrize("form", FORMS)
def test_cache_is_pickled_as_its_folder(images, tmp_path, form):
    cache = build(images, tmp_path, form)
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).read(7), cache.read(7))


SLOW_BUILD = """
import sys, time, pandas
from pathlib import Path
from whaleid.config.files import load_experiment
from whaleid.data import cache
here, form = Path(sys.argv[1]), sys.argv[2]
quick = cache.prepare
def slow(*arguments):
    time.sleep(0.02)
    return quick(*arguments)
cache.prepare = slow
config = load_experiment("default", {"image.cache": form}).image
images = pandas.read_csv(here / "images.csv")
cache.build_cache(images, here / "images", here / "cache", (32, 16), config, 2)
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_build_is_continued_to_the_same_result(images, tmp_path, form, monkeypatch):
    build(images, tmp_path, form, name="undisturbed")
    images.to_csv(tmp_path / "images.csv", index=False)
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(tmp_path), form])
    pixels = tmp_path / ".cache.partial" / ("pixels.npy" if form == "raw" else "offsets.bin")
    enough = 32 * 16 * 32 * 3 if form == "raw" else 32 * 8  # a chunk
    deadline = time.monotonic() + 60
    while not (pixels.exists() and pixels.stat().st_size >= enough):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cache").exists()
    with pixels.open("ab") as file:  # the kill may have come in the middle of a row
        file.write(b"\1\2\3")
    decoded = []
    monkeypatch.setattr(module, "prepare", lambda path, *rest: decoded.append(path) or prepare(path, *rest))
    build(images, tmp_path, form)
    assert 0 < len(decoded) < COUNT - 31
    assert content(tmp_path / "cache") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_done_twice_and_changes_are_seen(images, tmp_path, form, monkeypatch):
    build(images, tmp_path, form)
    decoded = []
    monkeypatch.setattr(module, "prepare", lambda path, *rest: decoded.append(path) or prepare(path, *rest))
    build(images, tmp_path, form)
    assert decoded == []
    cv2.imwrite(str(tmp_path / "images" / "3.jpg"), np.full((50, 70, 3), 200, np.uint8))
    images.loc[3, "digest"] = "another"
    images.loc[3, ["x0", "y0", "x1", "y1"]] = [0.0, 0.0, 70.0, 50.0]
    assert (build(images, tmp_path, form).read(3) > 190).all()
    assert len(decoded) == COUNT and len(build(images[:40], tmp_path, form)) == 40
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_broken_images_are_named_all_at_once(images, tmp_path, form):
    root = tmp_path / "images"
    (root / "0.jpg").write_bytes(b"")
    (root / "40.jpg").unlink()
    whole = (root / "77.jpg").read_bytes()
    (root / "77.jpg").write_bytes(whole[: len(whole) // 2])
    images.loc[99, ["x0", "x1"]] = [500.0, 600.0]
    with pytest.raises(WhaleidError, match=r"4 of 100 .*0\.jpg: 0 bytes.*40\.jpg.*77\.jpg.*99\.jpg: box") as caught:
        build(images, tmp_path, form)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() and leftovers(tmp_path) == []
    for number in range(12):
        (root / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(WhaleidError, match=r"15 of 100 .* and 5 more"):
        build(images, tmp_path, form)


def test_too_little_space_is_refused_before_starting(images, tmp_path):
    with pytest.raises(WhaleidError, match=r"needs .* MB and the disk has"):
        build_cache(images, tmp_path / "images", tmp_path / "cache", (10**6, 10**6), config("raw"), 1)
    assert not (tmp_path / "cache").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_reported_and_cleared(images, tmp_path, form, monkeypatch):
    appender = module._RawFile if form == "raw" else module._JpegFile
    append = appender.append

    def full(self, images):
        if self._written >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, images)
        self._written += 1

    monkeypatch.setattr(appender, "_written", 0, raising=False)
    monkeypatch.setattr(appender, "append", full)
    with pytest.raises(WhaleidError, match="disk is full") as caught:
        build(images, tmp_path, form)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_open_refuses_what_is_missing_or_damaged(images, tmp_path, form):
    with pytest.raises(WhaleidError, match="no complete cache"):
        open_cache(tmp_path / "absent")
    cache = build(images, tmp_path, form)
    pixels = cache.folder / ("pixels.npy" if form == "raw" else "pixels.bin")
    whole = pixels.read_bytes()
    for damaged in (whole[:-1], b""):
        pixels.write_bytes(damaged)
        with pytest.raises(WhaleidError, match="damaged"):
            open_cache(cache.folder)
    pixels.unlink()
    with pytest.raises(WhaleidError, match="damaged"):
        open_cache(cache.folder)


def test_an_empty_table_is_refused(images, tmp_path):
    with pytest.raises(WhaleidError, match="empty"):
        build(images[:0], tmp_path)


def test_name_says_what_differs():
    image = config("raw")
    names = {
        cache_name(image, (128, 64)),
        cache_name(image, (64, 128)),
        cache_name(config("jpeg"), (128, 64)),
        cache_name(image.model_copy(update={"box_margin": 0.1}), (128, 64)),
    }
    assert len(names) == 4 and "128x64-raw-m0.05" in names
