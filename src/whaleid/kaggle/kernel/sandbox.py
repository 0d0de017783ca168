"""What a kernel that runs here must not see: the network, the repository, packages that Kaggle's image lacks, and
inputs that it could write to.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError

_SITECUSTOMIZE = '''"""Read by Python when it starts: hides modules outside the kernel's folders, cuts the network."""

import importlib.machinery
import sys

HIDDEN = {hidden}
ALLOWED = {allowed}


class Hidden:
    """Finds the hidden modules below ALLOWED only."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in HIDDEN:
            return None
        places = [place for place in (sys.path if path is None else path) if str(place).startswith(ALLOWED)]
        spec = importlib.machinery.PathFinder.find_spec(name, places, target)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return spec


sys.meta_path.insert(0, Hidden)

if {blocked}:
    import errno
    import socket

    def refuse(*_, **__):
        raise OSError(errno.ENETUNREACH, "the network is cut")

    socket.socket.connect = refuse
    socket.socket.connect_ex = refuse
    socket.socket.sendto = refuse
    socket.create_connection = refuse
    socket.getaddrinfo = refuse
'''
_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


@dataclass(frozen=True)
class Sandbox:
    """How a kernel is isolated.

    Attributes
    ----------
    prefix : tuple of str
        Words before the command.
    site : Path
        Folder for PYTHONPATH.
    isolated : bool
        The network is cut by a namespace, else by a patched socket.
    mounted : bool
        The inputs are a read-only mount, else their folders have no write permission (which does not stop root; the
        comparison afterwards does).
    """

    prefix: tuple[str, ...]
    site: Path
    isolated: bool
    mounted: bool

    def description(self) -> str:
        network = "a network namespace" if self.isolated else "a patched socket"
        inputs = "a read-only mount" if self.mounted else "file permissions"
        return f"network cut by {network}, inputs protected by {inputs}"


def make_sandbox(readonly: Path, site: Path, allowed: Path, hidden: set[str], namespaces: bool = True) -> Sandbox:
    """The strictest isolation that this machine allows.

    Parameters
    ----------
    readonly : Path
        Folder that the kernel may only read.
    site : Path
        Folder to write a sitecustomize.py to.
    allowed, hidden : Path and set of str
        The hidden modules are found below `allowed` only.
    namespaces : bool
        Try Linux namespaces; without them, sockets are patched.
    """
    options = [
        Sandbox(("unshare", "-rnm", "sh", "-c", _MOUNT, str(readonly)), site, True, True),
        Sandbox(("unshare", "-rn"), site, True, False),
    ]
    working = (option for option in options if namespaces and _works(option.prefix, readonly))
    sandbox = next(working, Sandbox((), site, False, False))
    text = _SITECUSTOMIZE.format(
        hidden=sorted(hidden), allowed=json.dumps(f"{allowed}{os.sep}"), blocked=not sandbox.isolated
    )
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(text)
    return sandbox


def _works(prefix: tuple[str, ...], readonly: Path) -> bool:
    try:
        done = subprocess.run([*prefix, "ls", str(readonly)], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


# -------------------------------------------------------------------------------------------- read-only inputs


def set_writable(root: Path, writable: bool) -> None:
    """Give or take the write permission of every folder below; files may be hard links to others' and stay."""
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755 if writable else 0o555)


def file_states(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below: path -> size and time of change."""
    states = {str(path): path.lstat() for path in root.rglob("*") if not path.is_dir()}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def require_unchanged(root: Path, before: dict[str, tuple[int, int]]) -> None:
    """Raise WhaleidError if a file below was added, removed or changed."""
    after = file_states(root)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise WhaleidError(f"{changed[0]}: the kernel wrote to its inputs ({len(changed)} files); Kaggle would refuse")
