"""What keeps a kernel that runs here from seeing more than it would on Kaggle: no network, no repository, no packages
that the image lacks, inputs that cannot be written to.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError

_CUSTOMIZE = '''"""Read by Python as it starts: modules found in the kernel's own folders alone, and no network."""

import importlib.machinery
import sys

HIDDEN = {hidden}
ALLOWED = {allowed}


class Hidden:
    """Finds the hidden modules below ALLOWED and nowhere else."""

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
_MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
_NAMESPACES = (["unshare", "-rnm", "sh", "-c", _MOUNTED], ["unshare", "-rn"])


@dataclass(frozen=True)
class Sandbox:
    """prefix: words before the command. site: folder for PYTHONPATH.

    isolated: the network is cut by a namespace, else by a blocked socket. mounted: the inputs are a read-only mount,
    else their folders are closed by their modes (which do not bind root; a comparison afterwards does).
    """

    prefix: tuple[str, ...]
    site: Path
    isolated: bool
    mounted: bool

    def words(self) -> str:
        network = "a network namespace" if self.isolated else "a blocked socket"
        inputs = "a read-only mount" if self.mounted else "closed by their modes"
        return f"network cut by {network}, inputs {inputs}"


def make_sandbox(readonly: Path, site: Path, allowed: Path, hidden: set[str], namespaces: bool = True) -> Sandbox:
    """The strictest that this machine allows.

    readonly: folder that the kernel may only read. hidden: modules to be found below `allowed` alone. namespaces:
    False blocks the sockets of the process instead.
    """
    site.mkdir(parents=True, exist_ok=True)
    for number, words in enumerate(_NAMESPACES if namespaces else ()):
        mounted = number == 0
        prefix = [*words, str(readonly)] if mounted else words
        if _works(prefix, readonly):
            return _written(Sandbox(tuple(prefix), site, True, mounted), allowed, hidden)
    return _written(Sandbox((), site, False, False), allowed, hidden)


def _works(prefix: list[str], readonly: Path) -> bool:
    """Whether a command can be run behind `prefix`, and sees what it must."""
    try:
        done = subprocess.run([*prefix, "ls", str(readonly)], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _written(sandbox: Sandbox, allowed: Path, hidden: set[str]) -> Sandbox:
    text = _CUSTOMIZE.format(
        hidden=sorted(hidden), allowed=json.dumps(f"{allowed}{os.sep}"), blocked=not sandbox.isolated
    )
    (sandbox.site / "sitecustomize.py").write_text(text)
    return sandbox


# -------------------------------------------------------------------------------------------- read-only inputs


def close_folders(root: Path) -> None:
    """Take the right to write away from every folder below; files may be second names of others' and stay."""
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)


def open_folders(root: Path) -> None:
    """Undo `close_folders`, so that the tree can be removed."""
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below: path -> bytes and time of change."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            state = (Path(folder) / name).lstat()
            found[f"{folder}/{name}"] = (state.st_size, state.st_mtime_ns)
    return found


def require_untouched(root: Path, before: dict[str, tuple[int, int]]) -> None:
    """Raise WhaleidError when a file below came, went or changed."""
    after = listing(root)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise WhaleidError(f"{changed[0]}: the kernel wrote to its inputs ({len(changed)} files); Kaggle would refuse")
