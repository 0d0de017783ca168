"""Pretrained weights of backbones: from the weights/ folder, the hub's cache, timm's hub, packages, or a snapshot.

Each is a .safetensors file under timm's own names, which `models/loading.py` loads into a network.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import timm

from whaleid.config.settings import WEIGHTS, read_settings, repository_root
from whaleid.models import snapshots
from whaleid.models.hub import from_hub
from whaleid.models.packaged_weights import LITE, install_weights
from whaleid.utils.errors import WhaleidError


def default_folder() -> Path:
    """WEIGHTS_DIR of SETTINGS.json, for callers without a project."""
    return read_settings().weights


def check_backbone(name: str) -> None:
    """Raise WhaleidError with the nearest names unless timm has a network (and tag) of this name.

    What a snapshot is, its config.json says.
    """
    if snapshots.is_snapshot(name):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all"
        raise WhaleidError(f"model.backbone '{name}': timm {timm.__version__} has no such network; {hint}")
    if tag and name not in timm.list_models(f"{architecture}.*", pretrained=True):
        known = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise WhaleidError(f"model.backbone '{name}': '{architecture}' has no weights named '{tag}'; known: {known}")


# ----------------------------------------------------------------------------------------------- finding them


def find_weights(backbone: str, weights: str, folder: Path) -> Path | None:
    """File of the backbone's weights; None for random weights, or where timm's hub must be asked (`fetch_weights`).

    Parameters
    ----------
    backbone : str
        A timm name, or that of a snapshot.
    weights : str
        `imagenet`, `random`, or the path of an existing .safetensors file.
    folder : Path
        Folder of `<backbone>.safetensors` for `imagenet`, and of paths that begin with `weights/`.
    """
    if weights == "random":
        return None
    if weights == "imagenet":
        if snapshots.is_snapshot(backbone):
            return None
        path = folder / f"{backbone}.safetensors"
        return path if path.is_file() else None
    path = Path(weights).expanduser()
    if path.suffix != ".safetensors":
        raise WhaleidError(f"model.weights '{weights}': expected imagenet, random or the path of a .safetensors file")
    inside = [folder.joinpath(*path.parts[1:])] if path.parts[0] == WEIGHTS else []
    for place in (*inside, path, repository_root() / path):
        if place.is_file():
            return place
    raise WhaleidError(f"model.weights '{weights}': no such file (for backbone '{backbone}')")


def at_hand(backbone: str, folder: Path) -> bool:
    """Whether a backbone's pretrained weights are here, or can be had: from the hub they are downloaded."""
    if find_weights(backbone, "imagenet", folder) is not None or backbone in LITE:
        return True
    try:
        fetch_weights(backbone, folder)
    except WhaleidError:
        return False
    return True


def ensure_weights(backbone: str, weights: str, folder: Path) -> None:
    """Have a backbone's weights on this machine, before several processes need them.

    Those of `whaleid weights` are made where they are missing, others are downloaded from the hub. Raises WhaleidError
    for an unknown backbone and for weights that are not available.
    """
    check_backbone(backbone)
    if find_weights(backbone, weights, folder) is not None or weights == "random":
        return
    if backbone in LITE:
        list(install_weights([backbone], folder))
    else:
        fetch_weights(backbone, folder)


def starting_files(backbone: str, weights: str, folder: Path) -> dict[Path, Path]:
    """Files that training starts from, which `ensure_weights` made: place below WEIGHTS_DIR -> file.

    The parameters are those of `find_weights`.
    """
    found = find_weights(backbone, weights, folder)
    if found is None and weights == "imagenet":
        found = fetch_weights(backbone, folder)
    if not snapshots.is_snapshot(backbone):
        return {} if found is None else {_place(found, folder, f"{backbone}.safetensors"): found}
    home = Path(snapshots.snapshot_folder(backbone, folder).name)
    files = {home / snapshots.CONFIG: snapshots.find_file(backbone, (snapshots.CONFIG,), folder)}
    return files if found is None else {**files, _place(found, folder, (home / found.name).as_posix()): found}


def _place(file: Path, folder: Path, otherwise: str) -> Path:
    """Place of a file below the folder of weights, or what it is called there where it lies elsewhere."""
    return file.relative_to(folder) if file.is_relative_to(folder) else Path(otherwise)


def fetch_weights(backbone: str, folder: Path) -> Path:
    """File of the backbone's pretrained weights in its snapshot or the hub's cache, downloaded where it is missing.

    Raises WhaleidError within seconds where the hub cannot be reached.
    """
    if snapshots.is_snapshot(backbone):
        snapshots.read_config(backbone, folder)
        return snapshots.find_file(backbone, snapshots.FILES, folder)
    looked_for = folder / f"{backbone}.safetensors"
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.hf_hub_id:
        raise WhaleidError(
            f"backbone '{backbone}' has no pretrained weights on timm's hub and {looked_for} is not there; "
            "put a file there or set model.weights to random"
        )
    try:
        path, reason = from_hub(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"), "has no such file"
    except OSError as error:
        path, reason = None, f"is out of reach ({error})"
    if path is None:
        raise WhaleidError(
            f"no pretrained weights for backbone '{backbone}': {looked_for} is not there and timm's hub {reason}; "
            "run `whaleid weights` (for tf_efficientnet_lite0 to 2), put the file there, or set model.weights=random"
        )
    return path
