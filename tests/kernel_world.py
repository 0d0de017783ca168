"""A tiny trained project, its kernel's bundle (with one hand-made wheel), and ways to run it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import secret_search
from drawn import draw_sample

from whaleid.config.settings import Settings
from whaleid.kaggle.kernel import bundle as bundle_module
from whaleid.kaggle.kernel.bundle import Bundle, KernelOptions, bundle_folder, make_bundle
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import submission_path

EXPERIMENT = """
extends: default
model: {{backbone: test_resnet, weights: random, embedding: 16}}
head: {{name: {head}}}
image: {{width: 64, height: 32}}
train: {{epochs: 2, batch: 8}}
features: {{batch: 8, mirror: true, scales: [1.0, 1.5]}}
"""
RECIPE = (
    "folds: 2\nexperiments: [one, two]\nfull: [two]\n"
    "combine: {concat: {whiten: 8, weights: {one: 1.0, two: 2.0}}, classifier: {epochs: 2, seeds: 1}, "
    "full_gallery: false, local_matching: {size: 96, keypoints: 60}, rerank: {}, "
    " stack: {num_iterations: 20, learning_rate: 0.3, min_data_in_leaf: 5}}\n"
)
COMPETITION = """
name: drawn
root: data
train: {csv: train.csv, images: train, image: Image, identity: Id}
test: {csv: sample_submission.csv, images: test, image: Image}
unknown: new_whale
unknown_share: 0.276
solution: solution.csv
kaggle: drawn-whales
"""
MODULE = "whaleid_test_wheel"
TRAIN, TEST = 45, 13
"""Images: neither a multiple of the batch (8), so that the test images' first batch begins with labelled ones."""


@dataclass(frozen=True)
class World:
    folder: Path
    project: Project
    bundle: Bundle
    submission: Path


def shared_world(factory: pytest.TempPathFactory) -> World:
    """The world of this test session: made by whichever of pytest-xdist's workers needs it first, read by all.

    Tests must not change what lies in it; other bundles of its project may come to lie there.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "a kernel"
    with folder.with_name("a kernel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "made.json"
        if not made.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # another's that did not come to its end
            world = make_world(folder)
            content = {"bundle": world.bundle.kernel, "sizes": world.bundle.sizes, "submission": str(world.submission)}
            made.write_text(json.dumps(content))
            return world
    content = json.loads(made.read_text())
    project = _open(folder)
    bundle = Bundle(bundle_folder(project), content["bundle"], content["sizes"])
    return World(folder, project, bundle, Path(content["submission"]))


def own_copy(world: World, folder: Path) -> World:
    """The same world in a folder of the test's own, for tests that write into it or compare all that lies in it."""
    shutil.copytree(world.folder, folder)
    project = _open(folder)
    bundle = Bundle(bundle_folder(project), world.bundle.kernel, world.bundle.sizes)
    return World(folder, project, bundle, folder / world.submission.relative_to(world.folder))


def _open(folder: Path) -> Project:
    settings = Settings(weights=folder / "weights")
    return open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work", settings=settings)


def make_world(folder: Path, recipe: str = RECIPE) -> World:
    """Train two experiments on two folds, answer, and make the kernel."""
    draw_sample(folder / "data", identities=10, train_images=TRAIN, test_images=TEST)
    (folder / "drawn.yaml").write_text(COMPETITION)
    (folder / "one.yaml").write_text(EXPERIMENT.format(head="softmax"))
    (folder / "two.yaml").write_text(EXPERIMENT.format(head="arcface"))
    (folder / "recipe.yaml").write_text(recipe)
    write_wheel(folder / "wheels")
    project = _open(folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        for name, value in secret_search.ENVIRONMENT.items():  # the user is logged in, and none of it may get in
            patch.setenv(name, value)
        patch.setattr(bundle_module, "needed_wheels", lambda _: {MODULE: f"{MODULE}==1.0"})
        run(project, "submission")
        figures = read_figures(project)
        assert figures is not None
        submission = folder / submission_path(project, figures["key"])
        bundle = make_bundle(project, KernelOptions(), folder / "wheels")
    return World(folder, project, bundle, submission)


def write_wheel(folder: Path) -> None:
    """A wheel of one empty module, as pip wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{MODULE}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{MODULE}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{MODULE}.py", "HERE = __file__\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
