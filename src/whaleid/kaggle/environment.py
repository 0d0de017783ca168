"""An environment with the versions of Kaggle's Python image, made once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch
import torchvision

from whaleid.errors import WhaleidError
from whaleid.workspace import atomic_path

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
_SPACE = 6e9


def kaggle_environment(folder: Path, python: str) -> Path:
    """Interpreter of the environment in `folder`, made with `python` (3.12) where it is not there."""
    interpreter = folder / "bin" / "python"
    torches = (f"torch=={torch.__version__.split('+')[0]}", f"torchvision=={torchvision.__version__.split('+')[0]}")
    wanted = "\n".join([*torches, *IMAGE, *OTHERS])
    note = folder / READY
    if interpreter.exists() and note.is_file() and note.read_text() == wanted:
        return interpreter
    if shutil.disk_usage(folder.parent if folder.parent.exists() else Path.cwd()).free < _SPACE:
        raise WhaleidError(f"{folder}: an environment like Kaggle's takes {_SPACE / 1e9:.0f} GB, and the disk has less")
    print(f"making {folder}: Python 3.12 with the versions of Kaggle's image (some minutes, once)", flush=True)
    if not interpreter.exists():
        found = _run([python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], python)
        if found.strip() != "3.12":
            raise WhaleidError(f"{python} is Python {found.strip()}; Kaggle's is 3.12: give its path with --python")
        with atomic_path(folder) as temporary:  # its scripts name the final place by way of --upgrade below
            _run([python, "-m", "venv", str(temporary)], python)
        _run([python, "-m", "venv", "--upgrade", str(folder)], python)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *torches, *IMAGE, *OTHERS], python)
    note.write_text(wanted)
    return interpreter


def _run(command: list[str], python: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise WhaleidError(f"{python}: {error.strerror}; give the path of a Python 3.12 with --python") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WhaleidError(f"{' '.join(command[:4])}: failed ({said}); give another Python 3.12 with --python")
    return done.stdout
