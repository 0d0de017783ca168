"""The optimizer: its parameter groups, their learning rates during the schedule, and its moments as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from whaleid.config import TrainConfig
from whaleid.models.embedder import Embedder
from whaleid.models.heads.base import HeadModule

_MOMENTUM = 0.9  # of SGD (Nesterov); AdamW keeps its usual betas


def parameter_groups(
    embedder: Embedder, head: HeadModule, lr: float, backbone_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: the backbone and the rest, each with and without weight decay, and each parameter
    of the head that has a rate of its own (`HeadModule.rates`).

    timm's rule: no decay on biases and vectors (norms, GeM's p, learned margins) nor on what the network exempts
    (position embeddings, class tokens). Parameters without gradients (BNNeck's offset) are left out.

    Parameters
    ----------
    embedder : Embedder
    head : HeadModule
    lr : float
        Peak learning rate of pool, neck and head.
    backbone_lr : float
        That of the backbone, as a multiple of `lr`.
    weight_decay : float

    Returns
    -------
    list of dict
        `params`, `lr`, `weight_decay`.
    """
    net = embedder.backbone.net
    exempt = getattr(net, "no_weight_decay", set)()
    backbone = param_groups_weight_decay(net, weight_decay, no_weight_decay_list=exempt)
    rest = param_groups_weight_decay(nn.ModuleList([embedder.pool, embedder.neck, head]), weight_decay)
    own = {head.get_parameter(name): factor for name, factor in head.rates.items()}
    for group in rest:
        group["params"] = [parameter for parameter in group["params"] if parameter not in own]
    return [
        *({**group, "lr": lr * backbone_lr} for group in backbone),
        *({**group, "lr": lr} for group in rest),
        *({"params": [parameter], "lr": lr * factor, "weight_decay": 0.0} for parameter, factor in own.items()),
    ]


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; each group's `lr` is its peak, kept as `peak` for `set_rates`.

    Fused kernels (one pass over all parameters) are used wherever torch has them.
    """
    groups = [{**group, "peak": group["lr"]} for group in groups]
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=_MOMENTUM, nesterov=True, weight_decay=config.weight_decay, fused=fused
    )


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`, in [0, 1]."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments as `<moment>/<parameter's name>`; parameters never updated have none."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            if value is not None:
                tensors[f"{moment}/{names[parameter]}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore saved moments, in each parameter's own memory layout: results stay equal to the bit."""
    parameters = dict(module.named_parameters())
    order = {
        parameter: place
        for place, parameter in enumerate(item for group in optimizer.param_groups for item in group["params"])
    }
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        moment, _, owner = name.partition("/")
        parameter = parameters[owner]
        if tensor.shape == parameter.shape and tensor.ndim:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(order[parameter], {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
