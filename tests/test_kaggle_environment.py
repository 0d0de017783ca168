"""The environment with Kaggle's versions: which Python makes it, and when it is made anew. Pythons here are scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from whaleid.kaggle.kernel import environment
from whaleid.kaggle.kernel.environment import (
    IMAGE,
    choose_python,
    kaggle_environment,
    python_candidates,
    python_version,
)
from whaleid.utils.errors import WhaleidError

SHIM = "#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n"
PYTHON = """#!/bin/sh
# a Python that says its version, makes "environments" of itself, and notes what pip is asked for
if [ "$2" = -c ]; then echo {version}; exit 0; fi
if [ "$1 $2" = "-m venv" ]; then
  for last; do :; done
  mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
  exit 0
fi
echo "$@" >> {log}
exit {status}
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_python(path: Path, log: Path, version: str = "3.12", status: int = 0) -> Path:
    return script(path, PYTHON.format(version=version, log=f"'{log}'", status=status))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a PATH of the test's own, on which python3.12 is a shim that knows of no such version."""
    script(tmp_path / "shims" / "python3.12", SHIM)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "none"))
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        environment.os, "get_exec_path", lambda: [str(tmp_path / "shims"), str(tmp_path / "later")]
    )  # what the machine has in /usr/bin is not the test's
    return tmp_path


def test_a_shim_that_does_not_work_is_passed_over(place: Path) -> None:
    assert python_version(place / "shims" / "python3.12") is None
    pyenv = fake_python(place / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3.12", place / "log")
    assert choose_python() == pyenv
    uv = fake_python(place / ".local/share/uv/python/cpython-3.12.8-linux-x86_64-gnu/bin/python3.12", place / "log")
    assert choose_python() == uv
    later = fake_python(place / "later" / "python3.12", place / "log")
    assert choose_python() == later
    assert list(python_candidates()) == [place / "shims" / "python3.12", later, uv, pyenv]


def test_where_there_is_none_this_python_is_taken_and_one_line_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_python(place / "later" / "python3.12", place / "log", version="3.11")  # a name is no version
    assert choose_python() == Path(sys.executable).absolute()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "no Python 3.12 that works is found" in said[0] and "PYTHON312=" in said[0]


@pytest.mark.parametrize(
    ("given", "said"), [("nowhere/python", "not found"), ("python3.12", "does not work"), ("old", "Python 3.10")]
)
def test_a_given_python_that_does_not_serve_is_one_line(place: Path, given: str, said: str) -> None:
    fake_python(place / "shims" / "old", place / "log", version="3.10")
    with pytest.raises(WhaleidError, match=said) as error:
        choose_python(given)
    assert "\n" not in str(error.value) and given in str(error.value)


def test_the_environment_is_made_once_and_anew_for_another_python(place: Path) -> None:
    folder, log = place / "a work" / "env", place / "log"
    python = fake_python(place / "later" / "python3.12", log)
    assert kaggle_environment(folder, compiled=["PyWavelets==1.0"]) == folder / "bin" / "python"
    asked = log.read_text()
    assert all(name in asked for name in (*IMAGE, "torch==", "torchvision=="))
    assert "PyWavelets" not in asked  # the bundle's own wheel serves 3.12
    kaggle_environment(folder)
    assert log.read_text() == asked

    python.unlink()
    fake_python(place / "own", log, version="3.11")
    (folder / "mark").write_text("of the first environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(place / "own"))
        kaggle_environment(folder, compiled=["PyWavelets==1.0"])
    assert "PyWavelets==1.0" in log.read_text().removeprefix(asked)
    assert not (folder / "mark").exists()


def test_an_installation_that_failed_is_told_and_done_again(place: Path) -> None:
    log = place / "log"
    fake_python(place / "later" / "python3.12", log, status=1)
    with pytest.raises(WhaleidError, match="package index"):
        kaggle_environment(place / "env")
    fake_python(place / "env" / "bin" / "python", log)
    before = log.read_text()
    kaggle_environment(place / "env")
    assert log.read_text() != before


def test_a_disk_too_small_is_said_before_anything_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(place / "later" / "python3.12", place / "log")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1})())
    with pytest.raises(WhaleidError, match="takes 8 GB"):
        kaggle_environment(place / "env")
    assert not (place / "env").exists()
