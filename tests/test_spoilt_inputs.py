"""Spoilt tables, settings and photographs, a few of each; `make trust` tries hundreds, and every other kind of file."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image
from trust.fuzz import TARGETS, Target, fuzz, problem_of, spoilt_bytes
from trust.world import make_world

from whaleid.data.fingerprints import fingerprint_images
from whaleid.kaggle.push import read_bundle
from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import check_manifest, write_manifest

TIMES = 8
UNTRAINED = [target for target in TARGETS if not target.needs_results]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition in which nothing was run, and a file of guesses."""
    world = make_world(tmp_path_factory.mktemp("trust") / "world")
    shutil.copyfile(world / "data" / "sample_submission.csv", world / "guesses.csv")
    return world


@pytest.mark.parametrize(
    ("ended", "found"),
    [
        ((0, "a warning\n", ""), False),
        ((2, "[1/2] train\nerror: a.csv: row 3\n", ""), False),
        ((2, "error: a.csv: row 3\nand more\n", ""), True),
        ((2, "error: one\nerror: two\n", ""), True),
        ((2, "", ""), True),
        ((1, "error: one\n", ""), True),
        ((None, "", "ValueError"), True),
    ],
)
def test_the_fuzz_sees_what_it_is_for(ended: tuple[int | None, str, str], found: bool) -> None:
    assert (problem_of(*ended) is not None) is found


@pytest.mark.parametrize("target", UNTRAINED, ids=lambda target: target.name)
def test_a_spoilt_file_is_one_line_and_nothing_is_lost(pristine: Path, tmp_path: Path, target: Target) -> None:
    found = [one for seed in range(TIMES) if (one := fuzz(pristine, tmp_path / "spoilt", target, seed))]
    assert found == []


def test_every_kind_of_untrained_input_is_among_them() -> None:
    assert [target.name for target in UNTRAINED] == [
        "table of guesses or truth", "table of images", "competition, recipe, experiment", "image",
    ]  # fmt: skip


def test_every_change_of_a_listed_file_of_a_bundle_is_noticed(tmp_path: Path) -> None:
    bundle, noticed = tmp_path / "bundle", 0
    for seed in range(150):
        file, changed = spoilt_bundle(bundle, random.Random(seed))
        try:
            read_bundle(bundle)
            check_manifest(bundle / "datasets" / "code")
        except WhaleidError as error:
            noticed += 1
            assert str(bundle) in str(error) and "\n" not in str(error), seed
        else:
            assert not (changed and file == "weights.bin"), seed
    assert noticed > 50


def spoilt_bundle(folder: Path, rng: random.Random) -> tuple[str, bool]:
    """A kernel and a data set of which one file is spoilt: its name, and whether it has changed."""
    shutil.rmtree(folder, ignore_errors=True)
    kernel, data = folder / "kernel", folder / "datasets" / "code"
    for place, name in ((kernel, "kernel-metadata.json"), (data, "dataset-metadata.json")):
        place.mkdir(parents=True)
        (place / name).write_text(json.dumps({"id": "fan/whales", "title": "whales"}))
    (data / "weights.bin").write_bytes(bytes(range(256)) * 8)
    write_manifest(data, "code")
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    before = file.read_bytes()
    file.write_bytes(spoilt_bytes(before, rng))
    return file.name, file.read_bytes() != before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts it so")
def test_a_small_file_of_very_many_pixels_is_named_before_it_is_decoded(tmp_path: Path) -> None:
    side = 20_000  # 400 million pixels, in 50 kB
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    (problem,) = fingerprint_images(tmp_path, ["bomb.png"], workers=1).problem
    assert "make it smaller" in problem
    assert memory("VmHWM") - before < side**2 / 8


def memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[kind].split()[0])
