"""Spoilt tables, settings and photographs, a few of each; `make trust` tries hundreds, and every other kind of file."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image
from trust.fuzz import TARGETS, Target, fuzz
from trust.world import make_world

from whaleid.data.fingerprints import fingerprint_images

TIMES = 8
UNTRAINED = [target for target in TARGETS if not target.needs_results]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition in which nothing was run, and a file of guesses."""
    world = make_world(tmp_path_factory.mktemp("trust") / "world")
    shutil.copyfile(world / "data" / "sample_submission.csv", world / "guesses.csv")
    return world


@pytest.mark.parametrize("target", UNTRAINED, ids=lambda target: target.name)
def test_a_spoilt_file_is_one_line_and_nothing_is_lost(pristine: Path, tmp_path: Path, target: Target) -> None:
    found = [one for seed in range(TIMES) if (one := fuzz(pristine, tmp_path / "spoilt", target, seed))]
    assert found == []


def test_every_kind_of_untrained_input_is_among_them() -> None:
    assert [target.name for target in UNTRAINED] == [
        "table of guesses or truth", "table of images", "competition, recipe, experiment", "image",
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts it so")
def test_a_small_file_of_very_many_pixels_is_named_before_it_is_decoded(tmp_path: Path) -> None:
    side = 20_000  # 400 million pixels, in 50 kB
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    (problem,) = fingerprint_images(tmp_path, ["bomb.png"], workers=1).problem
    assert "exceeds limit" in problem
    assert memory("VmHWM") - before < side**2 / 8


def memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[kind].split()[0])
