"""Snapshots: a network's description and its weights in one folder, as the hub has them.

`hf-hub:<owner>/<name>` is looked for in WEIGHTS_DIR/<name>, then in the hub's cache, then on the hub;
`local-dir:<path>` is a folder. Both hold `config.json` and `model.safetensors` or, of older networks,
`pytorch_model.bin`, which is read without unpickling objects. No code of a snapshot is run.

Two layouts are known: timm's own (`architecture`), and MiewID's (`MiewIdNet`: a timm network, generalised mean, batch
normalisation).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from whaleid.config.settings import WEIGHTS, repository_root
from whaleid.models.hub import from_hub
from whaleid.models.pooling import GeMPool
from whaleid.utils.errors import WhaleidError

HUB, LOCAL = "hf-hub:", "local-dir:"
"""timm's own prefixes."""
CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")
_MIEWID, _MIEWID_NETWORK = "MiewIdNet", "efficientnetv2_rw_m"
_OURS = {"pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir", "num_classes", "global_pool"}
"""Arguments of timm.create_model that a snapshot does not decide."""


@dataclass(frozen=True)
class Description:
    """What a snapshot's config.json says of its network.

    Attributes
    ----------
    architecture : str
        A timm name.
    arguments : dict
        Of the network, besides its defaults.
    pretrained : dict
        `mean`, `std` (of pixels in 0..1) and `input_size` (channels, height, width), where it says so.
    pooled : bool
        Whether the network ends with its own pooling and normalisation (MiewID).
    """

    architecture: str
    arguments: dict[str, Any]
    pretrained: dict[str, Any]
    pooled: bool


def is_snapshot(backbone: str) -> bool:
    """Whether a backbone's name is that of a snapshot, not of a timm network."""
    return backbone.startswith((HUB, LOCAL))


def read_config(backbone: str, folder: Path) -> dict[str, Any]:
    """Content of a snapshot's config.json.

    Parameters
    ----------
    backbone : str
        Name with its prefix.
    folder : Path
        WEIGHTS_DIR.

    Raises
    ------
    WhaleidError
        Where it is neither here nor on the hub, or is not JSON; in seconds, if the hub does not respond.
    """
    path = find_file(backbone, (CONFIG,), folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhaleidError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from error
    describe(content, str(path))
    return content


def find_file(backbone: str, names: tuple[str, ...], folder: Path) -> Path:
    """The first of some files that a snapshot has, downloaded where it is missing; WhaleidError where it has none."""
    for name in names:
        path = _file(backbone, name, folder)
        if path is not None:
            return path
    raise WhaleidError(
        f"model.backbone '{backbone}': no {' and no '.join(names)} in {snapshot_folder(backbone, folder)}; put it there"
    )


def snapshot_folder(backbone: str, folder: Path) -> Path:
    """Folder in which a snapshot lies, or would lie: WEIGHTS_DIR/<name> for one of the hub."""
    if backbone.startswith(HUB):
        return folder / backbone.rpartition("/")[2]
    path = Path(backbone.removeprefix(LOCAL)).expanduser()
    inside = [folder.joinpath(*path.parts[1:])] if path.parts and path.parts[0] == WEIGHTS else []
    places = (*inside, path, repository_root() / path)
    return next((place for place in places if place.is_dir()), places[0])


def _file(backbone: str, name: str, folder: Path) -> Path | None:
    """A snapshot's file, from WEIGHTS_DIR or the hub; None where the snapshot has none of this name."""
    own = snapshot_folder(backbone, folder)
    if (own / name).is_file():
        return own / name
    if backbone.startswith(LOCAL) or own.is_dir():
        return None
    try:
        return from_hub(backbone.removeprefix(HUB), name)
    except OSError as error:
        raise WhaleidError(
            f"model.backbone '{backbone}': {own} is not there and the hub is out of reach ({error}); put {CONFIG} and "
            f"{FILES[0]} there, or run once where the hub can be reached"
        ) from error


# ------------------------------------------------------------------------------------------------- the network


def describe(content: dict[str, Any], where: str) -> Description:
    """Description in a config.json of timm's or MiewID's layout; WhaleidError for another one. where: named in it."""
    if not isinstance(content, dict):
        raise WhaleidError(f"{where}: a mapping of keys to values is expected, found {type(content).__name__}")
    pooled = _MIEWID in content.get("architectures", ())
    architecture = content.get("model_name", _MIEWID_NETWORK) if pooled else content.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture.partition(".")[0]):
        raise WhaleidError(
            f"{where}: 'architecture' is {architecture!r}, which is no network of timm {timm.__version__}; "
            "a snapshot of timm or of MiewID is needed"
        )
    given = content.get("pretrained_cfg", content)  # old snapshots have everything at the top
    pretrained = {name: given[name] for name in ("mean", "std", "input_size") if given.get(name)}
    if any(not isinstance(value, list) or len(value) != 3 for value in pretrained.values()):
        raise WhaleidError(f"{where}: mean, std and input_size are lists of three numbers, not {pretrained}")
    arguments = {name: value for name, value in content.get("model_args", {}).items() if name not in _OURS}
    return Description(architecture, arguments, pretrained, pooled)


class PooledNetwork(nn.Module):
    """MiewID's network, under its own names: a convolutional timm network, generalised mean, batch normalisation."""

    pretrained_cfg: dict[str, Any]

    def __init__(self, net: nn.Module, channels: int):
        super().__init__()
        self.backbone = net
        self.pooling = GeMPool()
        self.bn = nn.BatchNorm1d(channels)
        self.num_features = channels
        self.pretrained_cfg = {"classifier": ("final", "fc")}  # in its files, and not used

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float (b, channels) of normalised pixels float (b, 3, h, w)."""
        return self.bn(self.pooling(self.backbone(pixels)))
