"""An environment with the versions of Kaggle's Python image, made once, and the Python 3.12 that it is made with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torchvision

from whaleid.kaggle.kernel.wheels import KAGGLE_PYTHON
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

IMAGE = (
    "numpy==2.0.*",
    "pandas==2.2.*",
    "scikit-learn==1.6.*",
    "timm==1.0.26",
    "omegaconf==2.3.*",
    "lightgbm==4.6.*",
    "accelerate==1.13.*",
    "albumentations==2.0.8",
    "opencv-python-headless==4.13.*",
    "safetensors==0.7.*",
)
"""What is known of the image of August 2026. torch is the one used here, so that nothing else differs."""
OTHERS = ("matplotlib", "pillow", "psutil", "pyarrow", "pydantic", "pyyaml", "rich", "scipy", "typer")
READY = "ready"
_SPACE = 8e9
_ANSWER_WITHIN = 20.0
"""Seconds that a Python may take to say which one it is."""


def kaggle_environment(folder: Path, python: str | None = None, compiled: Sequence[str] = ()) -> Path:
    """Interpreter of the environment in `folder`, made where it is not there, or is of other versions.

    python: a Python 3.12; None: one that is found here, else this Python, which is said. compiled: requirements whose
    wheels in the bundle serve Kaggle's Python alone; another Python gets its own from the package index.
    Raises WhaleidError where a given Python does not serve, or the disk or the package index does not.
    """
    base = choose_python(python)
    version = python_version(base)
    assert version is not None  # choose_python asked
    requirements = [*_torch(), *IMAGE, *OTHERS, *(compiled if version != KAGGLE_PYTHON else ())]
    wanted = "\n".join([f"python {version}", *requirements])
    interpreter, note = folder / "bin" / "python", folder / READY
    if interpreter.exists() and note.is_file() and note.read_text() == wanted:
        return interpreter
    if shutil.disk_usage(folder.parent if folder.parent.exists() else Path.cwd()).free < _SPACE:
        raise WhaleidError(f"{folder}: an environment like Kaggle's takes {_SPACE / 1e9:.0f} GB, and the disk has less")
    print(f"making {folder}: Python {version} with the versions of Kaggle's image (some minutes, once)", flush=True)
    if not interpreter.exists() or python_version(interpreter) != version:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_path(folder) as temporary:  # its scripts name the final place by way of --upgrade below
            _run([str(base), "-m", "venv", str(temporary)])
        _run([str(base), "-m", "venv", "--upgrade", str(folder)])
    note.unlink(missing_ok=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *requirements], "connect to the package index, and run the same command again: it carries on")
    note.write_text(wanted)
    return interpreter


def choose_python(given: str | None = None) -> Path:
    """A Python of Kaggle's version that works: the given one, else the first that is found, else this one.

    A name on PATH may be a shim that knows of no such version, so each is asked before it is taken. Raises
    WhaleidError for a given one that does not work, or is another version.
    """
    if given is not None:
        found = shutil.which(given)
        version = python_version(Path(found)) if found else None
        if found is None or version != KAGGLE_PYTHON:
            said = "not found" if found is None else f"Python {version}" if version else "does not work, or has no venv"
            raise WhaleidError(f"{given}: {said}; Kaggle's is {KAGGLE_PYTHON}: give its path (PYTHON312=, --python)")
        return Path(found).absolute()
    for path in python_candidates():
        if python_version(path) == KAGGLE_PYTHON:
            return path.absolute()
    own = ".".join(map(str, sys.version_info[:2]))
    print(
        f"no Python {KAGGLE_PYTHON} that works is found: Python {own} is taken; "
        "the versions of the packages are Kaggle's (PYTHON312=path gives another)",
        flush=True,
    )
    return Path(sys.executable).absolute()


def python_candidates() -> Iterator[Path]:
    """Files that may be Kaggle's Python: this one's, all of that name on PATH, those that uv and pyenv installed."""
    name = f"python{KAGGLE_PYTHON}"
    home = Path.home()
    folders = [Path(sys.base_prefix, "bin"), *map(Path, os.get_exec_path())]
    kept = (
        (Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python"), f"*-{KAGGLE_PYTHON}.*"),
        (Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions", f"{KAGGLE_PYTHON}*"),
    )
    for place, pattern in kept:
        folders += [version / "bin" for version in sorted(place.glob(pattern), reverse=True)]
    for folder in dict.fromkeys(folders):
        if (folder / name).is_file():
            yield folder / name


def python_version(python: Path) -> str | None:
    """`3.12`, as the interpreter itself says; None where it does not work, or has no venv to make environments with."""
    command = [str(python), "-I", "-c", "import sys, ensurepip, venv; print(*sys.version_info[:2], sep='.')"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_WITHIN, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _torch() -> list[str]:
    return [f"{module.__name__}=={module.__version__.split('+')[0]}" for module in (torch, torchvision)]


def _run(command: list[str], todo: str = f"give another Python {KAGGLE_PYTHON} (PYTHON312=)") -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise WhaleidError(f"{command[0]}: {error.strerror}; {todo}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WhaleidError(f"{' '.join(command[:4])}: failed ({said}); {todo}")
