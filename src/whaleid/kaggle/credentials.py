"""Kaggle's credentials: which form of them is there, found without importing the client (that would authenticate).

The client's order: an access token, then the older pair of user name and key, then what `kaggle auth login` left.
A value never leaves this file but through `secret_values`, which is for finding secrets in what is about to be shown.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError

WHERE_TO_GET = (
    "run `kaggle auth login`, or make a token at https://www.kaggle.com/settings/api and put it into "
    "~/.kaggle/access_token (or KAGGLE_API_TOKEN)"
)
SHORTEST_SECRET = 6
"""Characters: a shorter value is no key, and masking it would spoil every text."""


@dataclass(frozen=True)
class Credentials:
    """What the client will use: the form and the user, never the value."""

    form: str
    """Where it is: `KAGGLE_API_TOKEN`, `~/.kaggle/kaggle.json`, ..."""
    user: str | None
    """None where only Kaggle knows whose it is (an access token)."""
    warning: str | None = None
    """What is wrong with the way it is kept."""


def find_credentials() -> Credentials | None:
    """The first form that the client would take; None if there is none."""
    return _access_token() or _legacy_key() or _login()


def require_credentials() -> Credentials:
    """The same, or the line that says how to get some."""
    found = find_credentials()
    if found is None:
        raise WhaleidError(f"no Kaggle credentials found: {WHERE_TO_GET}")
    return found


def secret_values() -> tuple[str, ...]:
    """Every secret of every form that is here, to be looked for in texts and files. Never print them."""
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    values = [_text(Path(token)) if _is_file(token) else token, os.environ.get("KAGGLE_KEY", "")]
    values += [_text(path) for path in _token_files()]
    for path in dict.fromkeys([_key_file(), Path.home() / ".kaggle" / "kaggle.json"]):
        values.append(_json(path).get("key", ""))
    login = _json(_login_file())
    values += [login.get("refresh_token", ""), login.get("access_token", "")]
    return tuple(dict.fromkeys(value for value in values if len(value) >= SHORTEST_SECRET))


def masked(text: str) -> str:
    """The text with every secret of `secret_values` replaced by ***."""
    for value in secret_values():
        text = text.replace(value, "***")
    return text


# ------------------------------------------------------------------------------------------------ the forms


def _access_token() -> Credentials | None:
    token = os.environ.get("KAGGLE_API_TOKEN")
    if token:
        if not _is_file(token):
            return Credentials("KAGGLE_API_TOKEN", None)
        if _text(Path(token)):
            return Credentials("the file that KAGGLE_API_TOKEN names", None, _open_to_others(Path(token)))
        return None  # an empty file ends the client's search for a token
    for path in _token_files():
        if _text(path):
            return Credentials(f"~/.kaggle/{path.name}", None, _open_to_others(path))
    return None


def _legacy_key() -> Credentials | None:
    """User name and key: each from the environment, else from kaggle.json."""
    path = _key_file()
    kept = _json(path)
    user = os.environ.get("KAGGLE_USERNAME", kept.get("username"))
    if user is None or not os.environ.get("KAGGLE_KEY", kept.get("key")):
        return None
    if "KAGGLE_KEY" in os.environ:
        return Credentials("KAGGLE_USERNAME and KAGGLE_KEY", user)
    return Credentials(_short(path), user, _open_to_others(path))


def _login() -> Credentials | None:
    path = _login_file()
    kept = _json(path)
    if not kept.get("refresh_token"):
        return None
    return Credentials(f"kaggle auth login ({_short(path)})", kept.get("username"), _open_to_others(path))


def _token_files() -> list[Path]:
    return [Path.home() / ".kaggle" / name for name in ("access_token", "access_token.txt")]


def _key_file() -> Path:
    """kaggle.json where the client looks: a folder of the user's choice, ~/.kaggle, or the desktop's config folder."""
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    if chosen:
        return Path(chosen) / "kaggle.json"
    home = Path.home() / ".kaggle"
    if sys.platform.startswith("linux") and not home.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle" / "kaggle.json"
    return home / "kaggle.json"


def _login_file() -> Path:
    return Path.home() / ".kaggle" / "credentials.json"


def _is_file(value: str) -> bool:
    try:
        return bool(value) and Path(value).is_file()
    except (OSError, ValueError):  # a token longer than a file name may be
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _json(path: Path) -> dict[str, str]:
    """The text values of a JSON file; empty where it cannot be read."""
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def _open_to_others(path: Path) -> str | None:
    """A warning where others of this machine may read the file."""
    if os.name == "nt" or not path.stat().st_mode & 0o077:
        return None
    return f"others may read it: chmod 600 {_short(path)}"


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
