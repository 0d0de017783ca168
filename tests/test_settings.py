"""SETTINGS.json: honoured by every stage, beaten by the command line, refused in one line where it is wrong."""

import json
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_sample
from test_cli import COMPETITION, EXPERIMENT, RECIPE, refused

from whaleid.cli import main as cli
from whaleid.config.files import load_competition
from whaleid.config.settings import SETTINGS, VARIABLE, Settings, read_settings, repository_root, settings_path
from whaleid.models.weights import default_folder, find_weights
from whaleid.utils.errors import WhaleidError

ROOT = repository_root()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a settings file, which is the one in force."""
    path = tmp_path / "place" / SETTINGS
    path.parent.mkdir()
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def said(file: Path, content: Any) -> str:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(WhaleidError) as refusal:
        read_settings()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(str(file))
    return str(refusal.value)


def test_the_repository_s_file_names_the_defaults() -> None:
    assert read_settings(ROOT / SETTINGS) == Settings()
    assert json.loads((ROOT / SETTINGS).read_text()) == Settings().as_json()


def test_folders_that_are_read_count_from_the_repository_those_that_are_written_from_here(file: Path) -> None:
    content = {"RAW_DATA_DIR": "raw", "WORK_DIR": "w", "WEIGHTS_DIR": "/mnt/weights", "SUBMISSION_DIR": "~/answers"}
    file.write_text(json.dumps(content))
    settings = read_settings()
    assert settings == Settings(ROOT / "raw", Path("w"), Path("/mnt/weights"), Path.home() / "answers")
    assert settings.as_json() == {**content, "SUBMISSION_DIR": str(Path.home() / "answers")}
    with pytest.raises(FrozenInstanceError):
        settings.work = Path("x")  # type: ignore[misc]


def test_a_key_left_out_has_its_default_and_so_has_everything_without_a_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('{"WORK_DIR": "elsewhere"}')
    assert read_settings() == Settings(work=Path("elsewhere"))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("whaleid.config.settings.SETTINGS", "none.json")
    assert settings_path() == ROOT / "none.json"
    assert read_settings() == Settings()


def test_what_is_wrong_is_one_line(file: Path) -> None:
    assert "did you mean 'WORK_DIR'?" in said(file, {"WORKDIR": "x"})
    assert "known: RAW_DATA_DIR" in said(file, {"LEARNING": "x"})
    assert "not readable as JSON" in said(file, '{"WORK_DIR": ')
    assert "an object of folders" in said(file, ["work"])
    for value in (3, None, "", "  ", ["a"]):
        assert "WORK_DIR: the path of a folder" in said(file, {"WORK_DIR": value})
    assert "is a file" in said(file, {"WORK_DIR": str(file)})
    file.write_bytes(b'{"WORK_DIR": "\xff"}')
    with pytest.raises(WhaleidError, match="not readable"):
        read_settings()
    file.unlink()
    with pytest.raises(WhaleidError, match="not found"):
        read_settings()


def test_a_wrong_file_ends_a_command_with_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('{"WORKDIR": "x"}')
    for words in (
        ["data", "build"],
        ["data", "sample"],
        ["weights"],
        ["data", "check"],
        ["plan"],
        ["submission", "--check", "x"],
    ):
        assert "unknown key 'WORKDIR'" in refused(monkeypatch, capsys, words)


def test_data_of_the_repository_s_competitions_lie_in_the_raw_data(file: Path, tmp_path: Path) -> None:
    file.write_text(json.dumps({"RAW_DATA_DIR": str(tmp_path / "raw")}))
    assert load_competition("humpback").root == tmp_path / "raw" / "humpback"
    assert load_competition("nyala").root == (ROOT / "../shared/data/nyala").resolve()
    (tmp_path / "own.yaml").write_text(COMPETITION.format(root="data/own"))
    assert load_competition(str(tmp_path / "own.yaml")).root == tmp_path / "data" / "own"
    (tmp_path / "raw" / "own").mkdir(parents=True)
    assert load_competition(str(tmp_path / "own.yaml")).root == tmp_path / "raw" / "own"
    (tmp_path / "data" / "own").mkdir(parents=True)
    assert load_competition(str(tmp_path / "own.yaml")).root == tmp_path / "data" / "own"


def test_a_path_of_weights_means_the_weights_folder(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file.write_text(json.dumps({"WEIGHTS_DIR": str(folder)}))
    assert default_folder() == folder
    (folder / "own.safetensors").write_bytes(b"")
    assert find_weights("resnet18", "weights/own.safetensors", folder) == folder / "own.safetensors"
    with pytest.raises(WhaleidError, match="no such file"):
        find_weights("resnet18", "other/own.safetensors", folder)


def test_every_stage_keeps_to_the_folders_and_the_command_line_wins(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole pipeline, jobs as processes of their own too, from an empty current folder that stays empty."""
    place = tmp_path / "configs"
    place.mkdir()
    (place / "drawn.yaml").write_text(COMPETITION.format(root="data/drawn"))
    (place / "tiny.yaml").write_text(EXPERIMENT)
    (place / "recipe.yaml").write_text(RECIPE)
    folders = {key: str(tmp_path / "all" / key) for key in Settings().as_json()}
    file.write_text(json.dumps(folders))
    draw_sample(tmp_path / "all" / "RAW_DATA_DIR" / "drawn", identities=8, train_images=40, test_images=10)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--competition", str(place / "drawn.yaml"), "--recipe", str(place / "recipe.yaml")]
    run(monkeypatch, ["leaderboard", *options, "--jobs", "2"])
    submissions = Path(folders["SUBMISSION_DIR"])
    assert [path.name for path in submissions.glob("*.csv")].count("log.csv") == 1
    assert len(list(submissions.glob("drawn_recipe_*.csv"))) == 1
    assert (Path(folders["WORK_DIR"]) / "drawn" / "metrics.json").is_file()
    run(monkeypatch, ["data", "folds", *options, "--work", str(tmp_path / "given")])
    assert (tmp_path / "given" / "drawn" / "folds.csv").is_file()
    assert list(here.iterdir()) == []


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_follows_the_file_and_cleans_its_own_folders_alone(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    for folder in ("mine", "raw/sample", "raw/kept", "work", "../outside"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / SETTINGS).write_text('{\n  "RAW_DATA_DIR": "raw",\n  "WORK_DIR" : "mine"\n}\n')
    made(tmp_path, "clean")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"raw", "work"}
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["kept"]
    for outside in ("../outside", str(tmp_path.parent / "outside"), ".", "work/../../outside"):
        (tmp_path / SETTINGS).write_text(json.dumps({"WORK_DIR": outside}))
        assert f"left alone, because it is not a folder in here: {outside}" in made(tmp_path, "clean")
    assert (tmp_path.parent / "outside").is_dir()
    assert (tmp_path / "work").is_dir()
    assert "--work" not in made(tmp_path, "-n", "score", "setup=", "-o", "setup")
    assert '--work "other"' in made(tmp_path, "-n", "score", "WORK=other", "-o", "setup")


def made(folder: Path, *words: str) -> str:
    done = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
