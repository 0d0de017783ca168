"""Load a file of weights into a timm network, with a clear error where it does not fit."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from whaleid.utils.errors import WhaleidError

_SHOWN = 3
_CLASSIFIER_PARTS = ("head", "fc", "fc_norm", "head_dist", "attn_pool", "pre_logits")


def load_weights(net: nn.Module, path: Path, backbone: str) -> None:
    """Load `path` into `net`, a timm network without classifier; every other tensor must fit.

    timm's filter of the network's family adapts what depends on the input's size (position embeddings). The file's
    classifier is skipped. Raises WhaleidError with the first tensors that are missing, unknown or of another shape.
    """
    state = _adapted(_read(path), net)
    state = {key: tensor for key, tensor in state.items() if not _of_classifier(key, net)}
    problems = _problems(state, net.state_dict())
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WhaleidError(
            f"{path}: does not fit backbone '{backbone}': {'; '.join(problems[:_SHOWN])}{more}; "
            "give the weights of this very backbone"
        )
    net.load_state_dict(state, strict=False)  # only counters of batches can be missing


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of one of torch's, from which nothing but tensors is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise WhaleidError(f"{path}: not readable as safetensors ({' '.join(str(error).split())})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WhaleidError(f"{path}: not a file of tensors alone ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WhaleidError(f"{path}: a mapping of names to tensors is expected")
    return state


def _adapted(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """State after the network family's own `checkpoint_filter_fn`, as timm applies it to its downloads."""
    adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        # It fails on a file of another family, which the comparison that follows reports.
        with contextlib.suppress(RuntimeError, KeyError, ValueError, IndexError):
            state = adapt(state, net)
    own = net.state_dict()
    if "norm.weight" in own and "norm.weight" not in state:
        # A ViT that averages its tokens normalises the average (`fc_norm`); without its pool timm puts the
        # same layer before it (`norm`).
        state = {
            key.replace("fc_norm.", "norm.", 1) if key.startswith("fc_norm.") else key: value
            for key, value in state.items()
        }
    return state


def _of_classifier(key: str, net: nn.Module) -> bool:
    """Whether a tensor belongs to the layers that `num_classes=0, global_pool=''` removes."""
    if key in net.state_dict():
        return False
    config = getattr(net, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    return key.startswith(tuple(f"{name}." for name in (*names, *_CLASSIFIER_PARTS)))


def _problems(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    differ = [key for key in own if key in state and own[key].shape != state[key].shape]
    return (
        [f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in differ]
        + [f"{key} is missing" for key in missing]
        + [f"{key} is not part of it" for key in unknown]
    )
