"""The archive of a finished project, and its submission built again: the same bytes, or one line that says why."""

import json
import os
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from drawn import draw_sample
from pipeline_world import submission_of, without_processes
from test_cli import COMPETITION, EXPERIMENT, refused
from test_cli import RECIPE as WITH_GALLERY

from whaleid.cli import main as cli
from whaleid.config import Recipe
from whaleid.config.settings import Settings
from whaleid.ensemble.results import Gain
from whaleid.pipeline import pseudo_labels as pseudo_stages
from whaleid.pipeline.archive import SUFFIXES, Start, archive_path, rebuild, rebuild_folder, write_archive
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError

RECIPE = WITH_GALLERY.replace("combine: {", "combine: {full_gallery: false, ")  # no answer depends on it
Files = dict[str, bytes]
Change = Callable[[Files], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished project, its archive in the default place, its submission in `submission.csv`."""
    folder = tmp_path_factory.mktemp("finished")
    draw_sample(folder / "data", identities=8, train_images=40, test_images=10)
    (folder / "drawn.yaml").write_text(COMPETITION.format(root="data"))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "recipe.yaml").write_text(RECIPE)
    project = opened(folder)
    with pytest.raises(WhaleidError, match="run whaleid leaderboard first"):
        write_archive(project, archive_path(project))
    shutil.copyfile(submission_of(project), folder / "submission.csv")
    write_archive(project, archive_path(project))
    return folder


def opened(folder: Path, pairs: list[str] | None = None) -> Project:
    settings = Settings(submissions=folder / "submissions")
    yamls = str(folder / "drawn.yaml"), str(folder / "recipe.yaml")
    return open_project(*yamls, folder / "work", pairs, settings=settings)


def content_of(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture
def changed(finished: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Makes a copy of the archive with its files changed."""

    def change(by: Change) -> Path:
        files = content_of(archive_path(opened(finished)))
        by(files)
        with zipfile.ZipFile(tmp_path / "changed.zip", "w") as copy:
            for name, content in files.items():
                copy.writestr(name, content)
        return tmp_path / "changed.zip"

    return change


def listed(files: Files, name: str, content: bytes) -> None:
    """Put a file into an archive and its manifest."""
    manifest = json.loads(files["MANIFEST.json"])
    manifest["files"][name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    files |= {"MANIFEST.json": json.dumps(manifest).encode(), name: content}


def refusal(finished: Path, out: Path, archive: Path, start: Start = "weights", pairs: list[str] | None = None) -> str:
    """The line that a rebuild which must fail says; nothing of the archive is left in the work folder then."""
    with pytest.raises(WhaleidError) as error:
        rebuild(opened(finished, pairs), start, archive, out, 1, [])
    assert "\n" not in str(error.value)
    assert not list(out.rglob("*.safetensors"))
    return str(error.value)


@pytest.mark.parametrize("start", ["predictions", "weights", "train"])
def test_a_rebuilt_submission_is_the_original(
    finished: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: object) -> None:
        raise AssertionError("saved ones are to be used")

    if start != "train":
        monkeypatch.setattr("whaleid.training.run.train_run", called)
        monkeypatch.setattr("whaleid.models.weights.ensure_weights", called)
    if start == "predictions":
        monkeypatch.setattr("whaleid.features.extraction.extract_features", called)
        monkeypatch.setattr("whaleid.ensemble.ladder.combine", called)
    project = opened(finished)
    result = rebuild(project, start, archive_path(project), tmp_path / "out", 1, [])
    assert result.same is True
    assert result.path.read_bytes() == (finished / "submission.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["drawn", "submission.csv"]


def test_the_project_is_left_as_it_is(finished: Path) -> None:
    """The default folders of rebuilds lie in the work folder, and change nothing there."""
    project = opened(finished)
    before = {path: path.stat().st_mtime_ns for path in project.workspace.root.rglob("*") if path.is_file()}
    rebuild(project, "weights", archive_path(project), rebuild_folder(project, "weights"), 1, [])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(rebuild_folder(project, "weights"))


def test_an_archive_holds_no_pickle_and_its_bytes_are_decided_by_the_project(finished: Path, tmp_path: Path) -> None:
    project = opened(finished)
    hidden = project.workspace.run("tiny", 0) / ".checkpoint.safetensors.1.tmp"
    state = project.workspace.run("tiny", 0) / "state" / "one.safetensors"
    state.parent.mkdir()
    for path in (hidden, state, hidden.with_name("old.pkl")):
        path.write_bytes(b"left by a killed command")
    write_archive(project, tmp_path / "again.zip")
    for path in (hidden, state, hidden.with_name("old.pkl")):
        path.unlink()
    state.parent.rmdir()
    assert (tmp_path / "again.zip").read_bytes() == archive_path(project).read_bytes()
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        names = archive.namelist()
        assert all(name.endswith(SUFFIXES) for name in names)
        assert all(stat.S_ISREG(info.external_attr >> 16) for info in archive.infolist())
    assert {"MANIFEST.json", "project.json", "submission.csv", "work/metrics.json", "work/folds.csv"} < set(names)
    assert sum(name.endswith("checkpoint.safetensors") for name in names) == 2
    assert str(finished) not in b"".join(content_of(tmp_path / "again.zip").values()).decode(errors="ignore")


def test_the_data_may_have_moved(finished: Path, tmp_path: Path) -> None:
    """On another machine files have other times: their content says that the data are the same."""
    shutil.copytree(finished / "data", tmp_path / "data", copy_function=shutil.copyfile)
    for path in (tmp_path / "data").rglob("*.jpg"):
        os.utime(path, (1, 1))
    project = opened(finished)
    moved = replace(project, competition=project.competition.model_copy(update={"root": tmp_path / "data"}))
    assert moved.keys.images == project.keys.images
    for start in ("predictions", "weights"):
        assert rebuild(moved, start, archive_path(project), tmp_path / "out", 1, []).same is True


def test_a_damaged_archive_is_refused(finished: Path, tmp_path: Path, changed: Callable[[Change], Path]) -> None:
    name = "work/runs/tiny/fold0/checkpoint.safetensors"
    out = tmp_path / "out"

    def flip(files: Files) -> None:
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])

    archive = changed(flip)
    said = refusal(finished, out, archive)
    assert said.startswith(f"{archive}: {name}: its checksum differs")
    assert "cut short" in refusal(finished, out, changed(lambda files: files.update({name: files[name][:-1]})))
    assert "missing" in refusal(finished, out, changed(lambda files: files.pop(name) and None))
    archive = changed(lambda files: files.pop("MANIFEST.json") and None)
    assert "not a readable manifest" in refusal(finished, out, archive)
    assert "not an archive that" in refusal(finished, out, _kernel_like(tmp_path))
    assert "key: Field required" in refusal(finished, out, changed(_without_key))
    whole = archive_path(opened(finished)).read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "not a whole zip" in refusal(finished, out, archive)
    assert "archive not found" in refusal(finished, out, tmp_path / "none.zip")
    assert rebuild(opened(finished), "predictions", changed(flip), out, 1, []).same is True  # it reads no weights


def _without_key(files: Files) -> None:
    content = json.loads(files["project.json"])
    del content["key"]
    listed(files, "project.json", json.dumps(content).encode())


def _kernel_like(tmp_path: Path) -> Path:
    """A zip with a manifest of something else."""
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MANIFEST.json", json.dumps({"format": 1, "name": "code", "files": {}}))
    return path


def test_an_archive_writes_nowhere_else(finished: Path, tmp_path: Path, changed: Callable[[Change], Path]) -> None:
    out = tmp_path / "a" / "out"
    for name in ("work/runs/../../../../escaped.csv", "/tmp/escaped.csv", "..\\escaped.csv"):
        assert "outside" in refusal(finished, out, changed(lambda files, name=name: files.update({name: b"x"})))
    climbs = "work/runs/../../../escaped.csv"
    (tmp_path / "escaped.csv").write_bytes(b"x")

    def only_listed(files: Files) -> None:
        listed(files, climbs, b"x")
        del files[climbs]

    assert "outside of the archive" in refusal(finished, out, changed(only_listed))
    (tmp_path / "escaped.csv").unlink()
    assert "kind" in refusal(finished, out, changed(lambda files: listed(files, "work/runs/tiny/fold0/x.pkl", b"x")))
    archive = changed(lambda _: None)
    with zipfile.ZipFile(archive, "a") as more:
        info = zipfile.ZipInfo("work/runs/link.csv")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        more.writestr(info, "/etc/hostname")
    assert "link" in refusal(finished, out, archive)
    rebuild(opened(finished), "weights", changed(lambda files: files.update({"work/runs/x.csv": b"x"})), out, 1, [])
    assert not (out / "drawn" / "runs" / "x.csv").exists()  # in no manifest: nobody's
    assert not list(tmp_path.rglob("escaped.csv"))


def test_other_settings_or_data_are_refused(finished: Path, tmp_path: Path, changed: Callable[[Change], Path]) -> None:
    archive, out = archive_path(opened(finished)), tmp_path / "out"
    for start in ("predictions", "weights"):
        assert "made with other settings" in refusal(finished, out, archive, start, ["train.epochs=3"])

    def other(key: str, value: object) -> Path:
        def change(files: Files) -> None:
            content = {**json.loads(files["project.json"]), key: value}
            listed(files, "project.json", json.dumps(content).encode())

        return changed(change)

    assert "not the images and CSVs" in refusal(finished, out, other("images_key", "0"))
    assert "recipe gold on competition drawn" in refusal(finished, out, other("recipe", "gold"))
    assert "made with other settings" in refusal(finished, out, other("sources", ["foreign"]))
    assert "sources" in refusal(finished, out, other("sources", "foreign"))


def test_weights_of_another_version_are_not_trained_anew(
    finished: Path, tmp_path: Path, changed: Callable[[Change], Path]
) -> None:
    stamp = "stamps/runs/tiny/fold1.json"
    archive = changed(lambda files: listed(files, stamp, files[stamp].replace(b'"key": "', b'"key": "0')))
    with pytest.raises(WhaleidError, match="no weights of tiny/fold1"):
        rebuild(opened(finished), "weights", archive, tmp_path / "out", 1, [])


def test_foreign_features_are_named_not_packed(finished: Path, tmp_path: Path) -> None:
    """Their files' times are of this machine; the answer is known by all else."""
    project = opened(finished)
    foreign = tmp_path / "foreign"
    for fold in project.folds:
        shutil.copytree(project.workspace.features("tiny", fold), foreign / f"fold{fold}")
    settings = {**project.recipe.model_dump(), "sources": {"other": str(foreign)}}
    mixed = replace(
        project,
        recipe=Recipe.model_validate(settings),
        settings=Settings(submissions=tmp_path / "submissions"),
        workspace=Workspace(tmp_path / "work"),
    )
    shutil.copytree(project.workspace.root, tmp_path / "work", ignore=shutil.ignore_patterns("archive", "candidates"))
    submission_of(mixed)
    write_archive(mixed, tmp_path / "mixed.zip")
    for path in foreign.rglob("*.*"):
        os.utime(path, (1, 1))
    for start in ("predictions", "weights"):
        assert rebuild(mixed, start, tmp_path / "mixed.zip", tmp_path / "out", 1, []).same is True


def test_a_round_of_pseudo_labels_comes_along_with_its_labels(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of the round that is used are packed, no others, and the answer is that round's."""
    monkeypatch.setattr(pseudo_stages, "round_gain", lambda *_: Gain(0.1, 0.05, 0.2))
    for name in ("drawn.yaml", "tiny.yaml"):
        shutil.copyfile(finished / name, tmp_path / name)
    (tmp_path / "data").symlink_to(finished / "data")
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}pseudo: {{confidence: 0.0}}\n")
    project = opened(tmp_path)
    submission_of(project)
    archive = archive_path(project)
    write_archive(project, archive)
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    assert {name.split("/")[2] for name in names if name.startswith("work/runs/")} == {"tiny.round1"}
    assert "work/pseudo/recipe/round1.csv" in names
    assert not any("candidates/recipe/round" in name for name in names)
    for start in ("predictions", "weights"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("whaleid.training.run.train_run", None)
            assert rebuild(project, start, archive, tmp_path / "out", 1, []).same is True


def test_from_the_command_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)  # where its submissions/ lies
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["-c", "drawn.yaml", "-r", "recipe.yaml", "-w", "work"]
    packed = tmp_path / "packed.zip"
    assert f"archive: {packed}: " in run(monkeypatch, capsys, ["archive", *options, "--output", str(packed)])
    said = run(monkeypatch, capsys, ["rebuild", *options, "--from", "predictions", "--archive", str(packed)])
    assert said.startswith("equal to the archive's, byte for byte\nsubmission: work/drawn/rebuilt/recipe-predictions/")
    started = without_processes(monkeypatch)
    said = run(monkeypatch, capsys, ["rebuild", *options, "--from", "train", "--jobs", "2", "--archive", str(packed)])
    assert len(started) == 2
    assert said.startswith("equal to the archive's, byte for byte\n")  # its processes trained in the rebuild's folder
    assert (finished / "work" / "drawn" / "rebuilt" / "recipe-train" / "drawn" / "runs" / "tiny" / "fold1").is_dir()
    said = refused(monkeypatch, capsys, ["rebuild", *options, "--from", "weights", "--archive", "none.zip"])
    assert said == "error: none.zip: archive not found; whaleid archive writes one from a finished project"
    shutil.rmtree(finished / "work" / "drawn" / "rebuilt")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    return capsys.readouterr().out
