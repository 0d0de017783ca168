"""A kernel whose recipe matches keypoints by networks: it carries their weights, and answers as at home, offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_world import MODULE, make_world, write_wheel
from keypoint_networks import write_weights

import whaleid
from whaleid.config.settings import Settings
from whaleid.kaggle.kernel import wheels as wheels_module
from whaleid.kaggle.kernel.assets import inference_size
from whaleid.kaggle.kernel.bundle import KernelOptions, wants_gpu
from whaleid.kaggle.kernel.local_run import RunOptions, compare_submissions, run_bundle, submission_of
from whaleid.kaggle.kernel.wheels import collect_wheels, install_wheels, needed_wheels
from whaleid.utils.errors import WhaleidError

LOCAL = (
    "local_matching: {features: aliked, size: 64, keypoints: 60, verify: {matcher: lightglue, images: 2, magsac: 4}}"
)


def test_the_kernel_answers_as_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a place"
    write_weights(folder / "weights")
    combined = f"combine: {{classifier: null, full_gallery: false, {LOCAL}}}\n"
    world = make_world(folder, f"folds: 2\nexperiments: [one]\n{combined}")
    carried = world.bundle.folder / "datasets" / "assets"
    names = ["aliked-n16.safetensors", "aliked_lightglue.pth"]
    assert sorted(path.name for path in (carried / "weights").iterdir()) == names
    assert np.load(carried / "local" / "aliked-64-60" / "descriptors.npy").shape[1] == 128
    listed = json.loads((carried / "MANIFEST.json").read_text())["files"]
    assert all(any(f"weights/{name}" in str(entry) for entry in listed) for name in names)
    assert world.bundle.sizes["assets"] == pytest.approx(inference_size(world.project).total, rel=0.1)
    assert wants_gpu(world.project, KernelOptions()) and not wants_gpu(world.project, KernelOptions(gpu=False))

    done = run_bundle(world.bundle.folder, world.project.competition, tmp_path / "run", RunOptions())
    compared = compare_submissions(world.submission, submission_of(done))
    assert compared.same, compared.line()
    assert "keypoints of 13 test images" in done.log.read_text()

    bare = replace(world.project, settings=Settings(weights=tmp_path))
    with pytest.raises(WhaleidError, match=r"aliked-n16\.safetensors: no such file"):
        inference_size(bare)


def test_kornia_is_shipped_and_an_older_one_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no image for sure, or in a version without ALIKED."""
    needed = needed_wheels(Path(whaleid.__file__).parent)
    assert needed["kornia"].startswith("kornia==") and needed["kornia_rs"].startswith("kornia_rs==")
    monkeypatch.setattr(wheels_module, "EXACT", frozenset({MODULE}))
    write_wheel(tmp_path / "cache")
    collect_wheels({MODULE: f"{MODULE}==1.0"}, tmp_path / "cache", tmp_path / "wheels")
    older = tmp_path / "image" / f"{MODULE}-0.9.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 0.9\n")
    (tmp_path / "image" / f"{MODULE}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "image"))
    assert install_wheels(tmp_path / "wheels", tmp_path / "target") == [MODULE]
    assert install_wheels(tmp_path / "wheels", tmp_path / "target") == []  # it comes before the image's own
