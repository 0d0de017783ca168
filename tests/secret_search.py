"""Looking for secrets where none may be: in folders (archives opened), and in every commit of a repository."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

USER = "whalefan"
KEY = "marked0key0that0must0never0show0"
TOKEN = "KGAT_" + "marked0token0that0must0never0show"
ENVIRONMENT = {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY, "KAGGLE_API_TOKEN": TOKEN}
"""Credentials in every form that the environment takes, marked so that they are found wherever they turn up."""

LOOKS_SECRET = re.compile(
    rb"KGAT_[A-Za-z0-9]{20,}"  # an access token of Kaggle's
    rb"|[\"']?key[\"']?\s*[:=]\s*[\"'][0-9a-f]{32}[\"']"  # a key as kaggle.json holds it
    rb"|KAGGLE_(?:KEY|API_TOKEN)\s*=\s*[\"']?[0-9a-f]{32}"
    rb"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    rb"|\b(?:gh[pousr]_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b",  # of hubs and clouds
    re.IGNORECASE,
)


def places(folder: Path, secrets: Sequence[str] = (KEY, TOKEN)) -> list[str]:
    """Files below a folder, and members of the zips among them, that hold one of the secrets, in any of its forms."""
    wanted = [form for secret in secrets for form in _forms(secret)]
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            whole = path.read_bytes()
        except FileNotFoundError:  # another test's temporary file
            continue
        for name, content in _contents(path.name, whole):
            if any(form in content for form in wanted):
                found.append(f"{path.relative_to(folder).parent / name}")
    return found


def in_commits(repository: Path, secrets: Sequence[str] = ()) -> list[str]:
    """Commits of all branches that add a line which looks like a credential, or holds one of the secrets."""
    words = ["git", "-C", str(repository), "log", "--all", "-p", "-m", "--no-color", "--text", "--format=commit %h"]
    text = subprocess.run(words, capture_output=True, check=True).stdout
    found: dict[str, None] = {}
    commit = ""
    for line in text.split(b"\n"):
        if line.startswith(b"commit "):
            commit = line.decode()
            continue
        line = line.replace(TOKEN.encode(), b"").replace(KEY.encode(), b"")  # the tests' own, which open nothing
        if line.startswith(b"+") and (LOOKS_SECRET.search(line) or any(word.encode() in line for word in secrets)):
            found[commit] = None
    return list(found)


def _forms(secret: str) -> list[bytes]:
    """As it is, and as a client sends it in a header."""
    return [secret.encode(), base64.b64encode(f"{USER}:{secret}".encode()).rstrip(b"=")]


def _contents(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, and what is in it where it is a zip (a wheel, an archive for an upload)."""
    yield name, content
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                yield from _contents(f"{name}/{info.filename}", archive.read(info))
