"""Pretrained weights of backbones: from the weights/ folder, the hub's cache, timm's hub, or packages.

Each is a .safetensors file under timm's own names, which `models/loading.py` loads into a network.
"""

from __future__ import annotations

import contextlib
import difflib
import urllib.error
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from whaleid.config.settings import WEIGHTS, read_settings, repository_root
from whaleid.models.packaged_weights import LITE, install_weights
from whaleid.utils.errors import WhaleidError

HUB_PATIENCE = 5.0
"""Seconds to wait for the hub's first response; huggingface_hub itself would retry for most of a minute."""


def default_folder() -> Path:
    """WEIGHTS_DIR of SETTINGS.json, for callers without a project."""
    return read_settings().weights


def check_backbone(name: str) -> None:
    """Raise WhaleidError with the nearest names unless timm has a network (and tag) of this name."""
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
        A timm name.
    weights : str
        `imagenet`, `random`, or the path of an existing .safetensors file.
    folder : Path
        Folder of `<backbone>.safetensors` for `imagenet`, and of paths that begin with `weights/`.
    """
    if weights == "random":
        return None
    if weights == "imagenet":
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


def fetch_weights(backbone: str, folder: Path) -> Path:
    """File of the backbone's pretrained weights in the hub's cache, downloaded where it is missing.

    Raises WhaleidError within seconds where the hub cannot be reached.
    """
    looked_for = folder / f"{backbone}.safetensors"
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.hf_hub_id:
        raise WhaleidError(
            f"backbone '{backbone}' has no pretrained weights on timm's hub and {looked_for} is not there; "
            "put a file there or set model.weights to random"
        )
    filename = config.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask_hub(f"{hub_constants.ENDPOINT}/{config.hf_hub_id}/resolve/main/{filename}")
        return Path(hf_hub_download(config.hf_hub_id, filename))
    except Exception as error:  # whatever the hub's HTTP library raises
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise WhaleidError(
            f"no pretrained weights for backbone '{backbone}': {looked_for} is not there and timm's hub is "
            f"out of reach ({reason}); run `whaleid weights` (for tf_efficientnet_lite0 to 2), put the file "
            "there, or set model.weights=random"
        ) from error


def _ask_hub(url: str) -> None:
    """A short request before the download, which raises where the hub does not respond."""
    if hub_constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(url, method="HEAD")
    # An HTTP error is a response too: the hub's client has the clearer message (a token, another file).
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=HUB_PATIENCE).close()
