"""The package as a user installs it: its wheel holds the configurations, and works from an empty folder."""

import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from drawn import draw_sample
from test_cli import COMPETITION

from whaleid.config.settings import repository_root

ROOT = repository_root()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the unpacked wheel, as `pip install` leaves it in site-packages."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    script = (
        f"import sys; from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def whaleid(site: Path, folder: Path, *words: str) -> str:
    """Output of a command of the installed package, run in `folder`."""
    environment = dict(os.environ, PYTHONPATH=str(site), OMP_NUM_THREADS="1")
    environment.pop("WHALEID_SETTINGS")
    done = subprocess.run(
        [sys.executable, "-m", "whaleid", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_and_configuration(installed: Path) -> None:
    ours = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "configs").rglob("*.yaml")}
    theirs = installed / "whaleid" / "configs"
    assert len(ours) > 40
    assert ours == {f"configs/{path.relative_to(theirs)}": path.read_bytes() for path in theirs.rglob("*.yaml")}
    for path in (ROOT / "src" / "whaleid").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert (installed / path.relative_to(ROOT / "src")).is_file(), path
    assert not (installed / "configs").exists()


def test_an_installed_package_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Own configurations are found; data counts from the YAML, outputs from the current folder."""
    draw_sample(tmp_path / "turtles", identities=8, train_images=40, test_images=10)
    (tmp_path / "turtles.yaml").write_text(COMPETITION.format(root="turtles"))
    here = tmp_path / "empty"
    here.mkdir()
    assert "40 images in 3 folds" in whaleid(installed, here, "data", "folds", "-c", "../turtles.yaml", "-r", "sample")
    assert [path.name for path in here.iterdir()] == ["work"]
    assert (here / "work" / "drawn" / "folds.csv").is_file()


def test_requirements_pin_what_the_package_needs() -> None:
    """Every dependency of pyproject.toml is pinned in requirements.txt, at a version that it allows.

    Except for the engines of clusters and for trackers, whose versions are those of the cluster and of the server.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    theirs = ("cluster", "wandb", "mlflow")
    wanted = [
        *project["dependencies"],
        *(item for name, extra in project["optional-dependencies"].items() if name not in theirs for item in extra),
    ]
    for needed in map(Requirement, wanted):
        if needed.name == "whaleid":
            continue
        (pin,) = pins[canonicalize_name(needed.name)].specifier
        assert pin.operator == "==", pin
        assert needed.specifier.contains(pin.version), f"{needed} does not allow {pin}"


def test_continuous_integration_and_hooks_do_what_make_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("make test")
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (ROOT / "requirements.txt").read_text().splitlines()
