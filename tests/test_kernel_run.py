"""The kernel executed as Kaggle would: equal to the local answer, and one clear line for whatever is wrong."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import secret_search
from kernel_world import MODULE, TEST, World, shared_world

from whaleid.kaggle.kernel import size as size_module
from whaleid.kaggle.kernel.assets import inference_size
from whaleid.kaggle.kernel.bundle import KernelOptions, kernel_settings, make_bundle
from whaleid.kaggle.kernel.local_run import (
    KEPT,
    RunOptions,
    compare_submissions,
    mount_inputs,
    run_bundle,
    submission_of,
)
from whaleid.kaggle.kernel.main import prepare, run_kernel
from whaleid.kaggle.kernel.sandbox import make_sandbox
from whaleid.pipeline.keys import run_key
from whaleid.utils.errors import WhaleidError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared_world(tmp_path_factory)


def settings(world: World) -> dict:
    slugs = {"code": "whaleid-code", "wheels": "whaleid-wheels", "assets": "whaleid-drawn-recipe"}
    return kernel_settings(world.project, KernelOptions(), slugs)


@pytest.fixture
def mounted(world: World, tmp_path: Path) -> Path:
    """A copy of the mounted inputs, to break."""
    metadata = json.loads((world.bundle.folder / "kernel" / "kernel-metadata.json").read_text())
    mount_inputs(world.bundle.folder, world.project.competition, metadata, tmp_path / "linked", "new")
    shutil.copytree(tmp_path / "linked", tmp_path / "input")
    return tmp_path / "input"


def run(world: World, mounted: Path) -> int:
    return run_kernel(settings(world), mounted, mounted.parent / "working", mounted.parent / "scratch")


def refused(world: World, mounted: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(world, mounted) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    assert not (mounted.parent / "working" / "submission.csv").exists()
    return said


def assets(mounted: Path) -> Path:
    return mounted / "datasets" / "OWNER" / "whaleid-drawn-recipe"


def test_the_submission_is_the_local_one(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in secret_search.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    done = run_bundle(world.bundle.folder, world.project.competition, tmp_path / "run", RunOptions())
    compared = compare_submissions(world.submission, submission_of(done))
    assert compared.same, compared.line()
    assert f"installed offline: {MODULE}" in done.log.read_text()
    assert not list((tmp_path / "run" / "readonly").rglob("solution.csv"))
    assert secret_search.places(tmp_path) == []  # its log, its output, what it left anywhere


def test_the_submission_is_the_local_one_in_the_old_layout(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what members are worth, on which no answer depends, is not measured there."""
    monkeypatch.setattr("whaleid.ensemble.ladder.blend_worth", lambda *_: pytest.fail("measured in a kernel"))
    metadata = json.loads((world.bundle.folder / "kernel" / "kernel-metadata.json").read_text())
    mount_inputs(world.bundle.folder, world.project.competition, metadata, tmp_path / "input", "old")
    assert run(world, tmp_path / "input") == 0
    compared = compare_submissions(world.submission, tmp_path / "working" / "submission.csv")
    assert compared.same, compared.line()


def test_no_secret_is_in_the_bundle_or_in_anything_made_on_the_way(world: World) -> None:
    assert list((world.bundle.folder / "kernel").glob("*.ipynb"))
    assert secret_search.places(world.folder) == []
    assert not [name for name in KEPT if "KAGGLE" in name.upper()]
    leak = world.bundle.folder.parent / "planted" / "kernel.ipynb"  # the search looks where it should
    leak.parent.mkdir()
    leak.write_text(f"key = '{secret_search.KEY}'")
    assert secret_search.places(world.folder) == ["work/drawn/kernel/planted/kernel.ipynb"]
    shutil.rmtree(leak.parent)


def test_logits_are_carried_out_of_fold_alone_and_the_size_was_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = pd.read_csv(world.project.workspace.folds)
    kept = 0
    for path in sorted((world.bundle.folder / "datasets" / "assets" / "features").rglob("logits.npy")):
        images = pd.read_csv(path.with_name("logits.rows.csv"))["image"]
        own = "fold" + folds["fold"].astype(str) == path.parent.name  # nobody's where the model is fitted on all images
        assert list(images) == list(folds["image"][own])
        assert len(np.load(path)) == len(images) < len(np.load(path.with_name("embeddings.npy"))) == len(folds)
        kept += path.stat().st_size
    size = inference_size(world.project)
    assert 0 < kept - size.logits < 5 * 200  # the files' headers
    assert world.bundle.sizes["assets"] == pytest.approx(size.total, rel=0.1)

    monkeypatch.setattr(size_module, "LARGEST_DATA_SET", size.total - 1)
    before = world.bundle.folder.stat().st_ino
    with pytest.raises(WhaleidError, match="a data set of Kaggle holds at most"):
        make_bundle(world.project, KernelOptions(), world.folder / "wheels")
    assert world.bundle.folder.stat().st_ino == before
    assert not list(world.bundle.folder.parent.glob(".recipe.*"))  # nothing half-made


def test_the_network_is_cut_either_way(tmp_path: Path) -> None:
    (tmp_path / "readonly").mkdir()
    attempt = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    for namespaces in (True, False):
        sandbox = make_sandbox(tmp_path / "readonly", tmp_path / "site", tmp_path, {"numpy"}, namespaces)
        done = subprocess.run(
            [*sandbox.prefix, sys.executable, "-c", attempt],
            env={"PYTHONPATH": str(sandbox.site), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "Network is unreachable" in done.stderr or "the network is cut" in done.stderr
    hidden = subprocess.run([sys.executable, "-c", "import numpy"], env={"PYTHONPATH": str(tmp_path / "site")})
    assert hidden.returncode == 1


def test_a_kernel_that_writes_to_its_inputs_is_found_out(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(world.bundle.folder, broken)
    script = next((broken / "kernel").glob("*.py"))
    script.write_text("import os; open(os.environ['KAGGLE_INPUT'] + '/mine', 'w').write('x')\n")
    with pytest.raises(WhaleidError, match=r"Read-only|Permission|wrote to its inputs"):
        run_bundle(broken, world.project.competition, tmp_path / "run", RunOptions())


# --------------------------------------------------------------------------------------------------- what is wrong


def test_a_missing_wheel(world: World, mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((mounted / "datasets" / "OWNER" / "whaleid-wheels").glob("*.whl")).unlink()
    assert "missing" in refused(world, mounted, capsys)


def test_a_truncated_weight(world: World, mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = assets(mounted) / "runs" / "one" / "fold1" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    said = refused(world, mounted, capsys)
    assert str(path) in said and "cut short" in said


def test_a_wrong_checksum(world: World, mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = assets(mounted) / "features" / "two" / "fold0" / "embeddings.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    said = refused(world, mounted, capsys)
    assert str(path) in said and "checksum" in said


@pytest.mark.parametrize("lost", ["datasets/OWNER/whaleid-drawn-recipe", "competitions/drawn-whales"])
def test_an_input_that_is_not_mounted(
    world: World, mounted: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    shutil.rmtree(mounted / lost)
    assert run(world, mounted) == 2
    told = capsys.readouterr()
    assert "is not mounted" in told.err
    assert "datasets/OWNER/whaleid-code" in told.out  # the tree


def test_inputs_at_unknown_places_are_found(world: World, mounted: Path) -> None:
    for old, new in (("datasets/OWNER/whaleid-drawn-recipe", "a/b/x"), ("competitions/drawn-whales", "y/z")):
        (mounted / new).parent.mkdir(parents=True, exist_ok=True)
        (mounted / old).rename(mounted / new)
    found = prepare(settings(world), mounted, mounted.parent / "working", mounted.parent / "scratch")
    assert (found.assets, found.competition) == (mounted / "a" / "b" / "x", mounted / "y" / "z")


def test_corrupt_test_images_are_answered_by_the_prior(
    world: World, mounted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, empty, text, gone = sorted((mounted / "competitions" / "drawn-whales" / "test").iterdir())[3:7]
    cut.write_bytes(cut.read_bytes()[:700])
    empty.write_bytes(b"")
    text.write_text("not a picture")
    gone.unlink()
    bad = [path.name for path in (cut, empty, text, gone)]
    assert run(world, mounted) == 0
    said = capsys.readouterr().out
    assert said.count("they get the most frequent labels") == 2
    assert f"1 of {TEST} listed test images are missing: {gone.name}" in said
    assert f"3 of {TEST - 1} images cannot be read" in said and cut.name in said
    working = mounted.parent / "working"
    rows = {row[0]: row[1] for row in csv.reader((working / "submission.csv").open())}
    assert len(rows) == TEST + 1
    prior = {rows[name] for name in bad}
    assert len(prior) == 1
    first, *others = prior.pop().split()
    assert first == "new_whale" and len(set(others)) == 4
    assert json.loads((working / "kernel.json").read_text())["unreadable"] == bad  # as listed


def test_a_spent_budget_drops_views_and_sources_and_still_answers(
    world: World, mounted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHALEID_HOURS", "0.000001")
    assert run(world, mounted) == 0
    notes = json.loads((mounted.parent / "working" / "kernel.json").read_text())
    assert len(notes["experiments"]) == len(notes["dropped"]) == 1
    assert notes["without_views"] == notes["experiments"]
    assert "dropped, the weakest first" in capsys.readouterr().out
    assert len((mounted.parent / "working" / "submission.csv").read_text().splitlines()) == TEST + 1


def test_training_one_run_gives_what_counts_as_up_to_date_at_home(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the old layout and without namespaces, which the kernel of the first test has."""
    from whaleid.kaggle.kernel import bundle as module

    for name, value in secret_search.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "needed_wheels", lambda _: {MODULE: f"{MODULE}==1.0"})
    made = make_bundle(world.project, KernelOptions(experiment="one", fold=1), world.folder / "wheels")
    options = RunOptions("old", namespaces=False)
    done = run_bundle(made.folder, world.project.competition, tmp_path / "run", options)
    assert f"installed offline: {MODULE}" in done.log.read_text()
    assert not list((tmp_path / "run" / "readonly").rglob("solution.csv"))
    assert secret_search.places(tmp_path) == []
    for name in ("checkpoint.safetensors", "config.yaml", "classes.txt"):
        assert (done.working / "runs" / "one" / "fold1" / name).is_file()
    assert (done.working / "features" / "one" / "fold1" / "embeddings.npy").is_file()
    stamp = json.loads((done.working / ".stamps" / "runs" / "one" / "fold1.json").read_text())
    assert stamp["key"] == run_key(world.project, world.project.experiment("one"), 1)
