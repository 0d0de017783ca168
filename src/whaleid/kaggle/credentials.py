"""Kaggle's credentials, found without importing the client, which would connect to Kaggle.

In the client's order: an access token, a user name and key, what `kaggle auth login` saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from whaleid.utils.errors import WhaleidError

WHERE_TO_GET = (
    "run `kaggle auth login`, or make a token at https://www.kaggle.com/settings/api and put it into "
    "~/.kaggle/access_token (or KAGGLE_API_TOKEN)"
)
SHORTEST_SECRET = 6
"""Characters: anything shorter is no key, and masking it would garble every text."""


@dataclass(frozen=True)
class Credentials:
    """Credentials of one kind.

    Attributes
    ----------
    form : str
        Where they are: ``KAGGLE_API_TOKEN``, ``~/.kaggle/kaggle.json``, ...
    user : str or None
        User name; None if only Kaggle knows it (access tokens).
    secret : str
        The token or key. It is not shown.
    path : Path, optional
        File that holds it.
    """

    form: str
    user: str | None
    secret: str = field(repr=False)
    path: Path | None = None

    @property
    def warning(self) -> str | None:
        """A warning if others can read the file."""
        if self.path is None or os.name == "nt" or not self.path.stat().st_mode & 0o077:
            return None
        return f"other users can read it: chmod 600 {_short(self.path)}"


def find_credentials() -> Credentials | None:
    """The credentials that the client will use; None if there are none."""
    return next((found for found in _candidates() if found.secret), None)


def require_credentials() -> Credentials:
    """The credentials that the client will use; raises WhaleidError if there are none."""
    found = find_credentials()
    if found is None:
        raise WhaleidError(f"no Kaggle credentials found{broken_files()}: {WHERE_TO_GET}")
    return found


def broken_files() -> str:
    """Files of credentials that the client cannot read, for a message; '' where there are none."""
    files = [_key_file(), Path.home() / ".kaggle" / "credentials.json"]
    broken = [_short(path) for path in files if path.is_file() and not _json(path)]
    return f" ({' and '.join(broken)}: cut short, or not JSON in UTF-8 without a byte order mark)" if broken else ""


def secret_values() -> tuple[str, ...]:
    """Every token and key on this machine, to mask them in texts. Never print them."""
    return tuple(dict.fromkeys(found.secret for found in _candidates() if len(found.secret) >= SHORTEST_SECRET))


def masked(text: str) -> str:
    """The text with *** in place of every secret."""
    for value in secret_values():
        text = text.replace(value, "***")
    return text


def _candidates() -> Iterator[Credentials]:
    """All credentials, in the client's order; some with an empty secret."""
    home = Path.home() / ".kaggle"
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    if _is_file(token):
        yield Credentials("the file that KAGGLE_API_TOKEN names", None, _text(Path(token)), Path(token))
    else:
        yield Credentials("KAGGLE_API_TOKEN", None, token)
    for path in (home / "access_token", home / "access_token.txt"):
        yield Credentials(_short(path), None, _text(path), path)
    path = _key_file()
    saved = _json(path)
    user = os.environ.get("KAGGLE_USERNAME", saved.get("username"))
    if user is not None and "KAGGLE_KEY" in os.environ:
        yield Credentials("KAGGLE_USERNAME and KAGGLE_KEY", user, os.environ["KAGGLE_KEY"])
    elif user is not None:
        yield Credentials(_short(path), user, saved.get("key", ""), path)
    path = home / "credentials.json"
    saved = _json(path)
    for name in ("refresh_token", "access_token"):
        yield Credentials(f"kaggle auth login ({_short(path)})", saved.get("username"), saved.get(name, ""), path)


def _key_file() -> Path:
    """kaggle.json where the client looks: a chosen folder, ~/.kaggle, or the desktop's configuration folder."""
    chosen, home = os.environ.get("KAGGLE_CONFIG_DIR"), Path.home() / ".kaggle"
    if chosen:
        return Path(chosen) / "kaggle.json"
    if sys.platform.startswith("linux") and not home.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle" / "kaggle.json"
    return home / "kaggle.json"


def _is_file(value: str) -> bool:
    try:
        return bool(value) and Path(value).is_file()
    except (OSError, ValueError):  # a token may be longer than a file name can be
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _json(path: Path) -> dict[str, str]:
    """The text values of a JSON object; empty if it cannot be read."""
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
