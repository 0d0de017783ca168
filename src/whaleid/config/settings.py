"""SETTINGS.json: the one place where folders are named (the convention of Kaggle's winners).

A command reads it once and passes the `Settings` on; what the command line says (--work, a path) wins. A relative
folder that is read (RAW_DATA_DIR, WEIGHTS_DIR) counts from the repository; one that is written (WORK_DIR,
SUBMISSION_DIR) from where the command runs, as --work does. `make` runs in the repository, where both are the same.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from whaleid.utils.errors import WhaleidError

SETTINGS = "SETTINGS.json"
VARIABLE = "WHALEID_SETTINGS"
"""Environment variable that names another file than the repository's."""
RAW = "data"
"""First folder of a competition's relative `root` that stands for RAW_DATA_DIR."""
WEIGHTS = "weights"
"""First folder of an experiment's relative `model.weights` that stands for WEIGHTS_DIR."""


def repository_root() -> Path:
    """Folder that holds `configs/`: the checkout this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "configs").is_dir() else Path.cwd()


@dataclass(frozen=True)
class Settings:
    """Folders. raw: competitions' data. work: all that is made on the way, checkpoints too. submissions: with log.csv.

    weights: pretrained backbones, to start from.
    """

    raw: Path = field(default_factory=lambda: repository_root() / RAW)
    work: Path = Path("work")
    weights: Path = field(default_factory=lambda: repository_root() / WEIGHTS)
    submissions: Path = Path("submissions")

    def data_root(self, root: Path) -> Path:
        """Place of a relative `root` of a competition of the repository: `data/...` lies in RAW_DATA_DIR."""
        return self.raw.joinpath(*root.parts[1:]) if root.parts[:1] == (RAW,) else repository_root() / root

    def as_json(self) -> dict[str, str]:
        """As SETTINGS.json holds them; what lies in the repository without its path."""
        return {key: _shown(getattr(self, name)) for key, (name, _) in _KEYS.items()}


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
    """Settings of SETTINGS.json (path: another file); a key that it leaves out has its default, as has no file at all.

    Raises WhaleidError for a file that is named but not there, for what is no JSON object of folders, and for
    unknown keys.
    """
    place = path or settings_path()
    if not place.is_file():
        if path is not None or os.environ.get(VARIABLE):
            raise WhaleidError(f"{place}: settings file not found; mend {VARIABLE}, or unset it for the repository's")
        return Settings()
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{place}: not readable as JSON ({error}); mend or remove it") from error
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


def _shown(folder: Path) -> str:
    root = repository_root()
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()
