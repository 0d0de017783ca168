"""The optimizer, its rates during the schedule, and its moments as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whaleid.config import TrainConfig

_MOMENTUM = 0.9  # of SGD (Nesterov); AdamW keeps its usual betas


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum over parameter groups that bring their own `lr` and `weight_decay`.

    Each group's `lr` is its peak; it is kept as `peak`, for `set_rates`. Fused kernels (one pass over all
    parameters) are used wherever torch has them.
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
    """Give every group its peak rate times `factor`, [0, 1]."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments as `<moment>/<parameter's name>`; parameters never stepped have none."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            if value is not None:
                tensors[f"{moment}/{names[parameter]}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved moments back, in each parameter's own memory layout: results stay equal to the bit."""
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
