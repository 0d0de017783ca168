"""SETTINGS.json: the folders, in the convention of Kaggle's winners; and where the package's own files are.

A command reads the file once and passes the `Settings` on. The command line (--work, a path) overrides it. A relative
folder of inputs (RAW_DATA_DIR, WEIGHTS_DIR) counts from the repository; a relative folder of outputs (WORK_DIR,
SUBMISSION_DIR) counts from the current folder, as --work does. An installed package has no repository: all count from
the current folder.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from whaleid.utils.errors import WhaleidError

SETTINGS = "SETTINGS.json"
VARIABLE = "WHALEID_SETTINGS"
"""Environment variable that names another file than the repository's."""
RAW = "data"
"""First folder of a competition's relative `root` that stands for RAW_DATA_DIR."""
WEIGHTS = "weights"
"""First folder of an experiment's relative `model.weights` that stands for WEIGHTS_DIR."""


def _checkout() -> Path | None:
    folder = Path(__file__).resolve().parents[3]
    return folder if (folder / "configs").is_dir() else None


def repository_root() -> Path:
    """The checkout that this package runs from; for an installed package, the current folder."""
    return _checkout() or Path.cwd()


def config_root() -> Path:
    """Folder of the package's own YAML files: `configs/` of the checkout, or of the installed package."""
    checkout = _checkout()
    return Path(str(files("whaleid"))) / "configs" if checkout is None else checkout / "configs"


@dataclass(frozen=True)
class Settings:
    """Folders of inputs and outputs.

    Attributes
    ----------
    raw : Path
        The competitions' data.
    work : Path
        All intermediate results, checkpoints included.
    weights : Path
        Pretrained backbones.
    submissions : Path
        Submission files and log.csv.
    """

    raw: Path = field(default_factory=lambda: repository_root() / RAW)
    work: Path = Path("work")
    weights: Path = field(default_factory=lambda: repository_root() / WEIGHTS)
    submissions: Path = Path("submissions")

    def data_root(self, root: Path) -> Path:
        """Folder of a relative `root` of one of the repository's competitions; `data/...` is in RAW_DATA_DIR."""
        return self.raw.joinpath(*root.parts[1:]) if root.parts[:1] == (RAW,) else repository_root() / root

    def as_json(self) -> dict[str, str]:
        """Content of SETTINGS.json; folders of the repository without its path."""
        return {key: _relative(getattr(self, name)) for key, (name, _) in _KEYS.items()}


_KEYS = {
    "RAW_DATA_DIR": ("raw", True),
    "WORK_DIR": ("work", False),
    "WEIGHTS_DIR": ("weights", True),
    "SUBMISSION_DIR": ("submissions", False),
}
"""Key -> field, and whether a relative folder counts from the repository (else from the current folder)."""


def settings_path() -> Path:
    """The file that is read: the one that WHALEID_SETTINGS names, else the repository's."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else repository_root() / SETTINGS


def read_settings(path: Path | None = None) -> Settings:
    """Settings of a file; a missing key, or a missing file, means the default.

    Parameters
    ----------
    path : Path, optional
        Default: `settings_path()`.

    Raises
    ------
    WhaleidError
        If a file that was named is missing, is not a JSON object of folders, or has an unknown key.
    """
    place = path or settings_path()
    if not place.is_file():
        if path is not None or os.environ.get(VARIABLE):
            raise WhaleidError(f"{place}: settings file not found; correct {VARIABLE}, or unset it")
        return Settings()
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{place}: not readable as JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise WhaleidError(f"{place}: an object of folders is expected, with the keys {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            guess = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean '{guess[0]}'?" if guess else f"known: {', '.join(_KEYS)}"
            raise WhaleidError(f"{place}: unknown key '{key}'; {hint}")
    return Settings(**{_KEYS[key][0]: _folder(place, key, value) for key, value in content.items()})


def _folder(place: Path, key: str, value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise WhaleidError(f"{place}: {key}: the path of a folder is expected, found {value!r}")
    folder = Path(value).expanduser()
    if folder.is_file():
        raise WhaleidError(f"{place}: {key}: {folder} is a file; name a folder")
    return repository_root() / folder if _KEYS[key][1] else folder


def _relative(folder: Path) -> str:
    root = repository_root()
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()
