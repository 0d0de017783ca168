"""What a killed run resumes from: one safetensors file, tensors in its body and the rest as JSON in its header.

One file that is renamed into place is either the old state or the new one, at whatever moment the run is killed.
No generator's state is in it: see seeds.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from whaleid.workspace import atomic_path


@dataclass
class Progress:
    """How far a run is. The position is between two steps; all counts are of finished work."""

    epoch: int = 0
    """Epochs finished; the one that runs is this one, counted from 0."""
    batch: int = 0
    """Batches of the running epoch's plan that were used."""
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    epoch_loss: float = 0.0
    """Sum over the running epoch's steps; `epoch_steps` of them."""
    epoch_steps: int = 0
    window_loss: float = 0.0
    """Sum since the last line of the log; `window_steps` of them."""
    window_steps: int = 0
    last_loss: float | None = None
    """Mean loss of the last finished epoch."""
    best_score: float | None = None
    best_epoch: int | None = None
    log_length: int = 0
    """Bytes of log.jsonl that belong to this state."""


@dataclass(frozen=True)
class State:
    """Content of a state file: `tensors` by group (`model`, `optimizer`, `ema`, `best`) and name."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    scaler: dict[str, Any]
    """GradScaler's own state; empty without fp16."""


def save_state(path: Path, key: str, state: State) -> None:
    """Write atomically. key: digest of all that must be equal when the run goes on."""
    header = {"key": key, "progress": json.dumps(asdict(state.progress)), "scaler": json.dumps(state.scaler)}
    flat = {f"{group}/{name}": tensor for group, named in state.tensors.items() for name, tensor in named.items()}
    with atomic_path(path) as temporary:
        save_file(storable(flat), temporary, metadata=header)


def load_state(path: Path, key: str) -> State | None:
    """The state at `path`, on the CPU; None when there is none, or when it is another configuration's or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, SafetensorError):
        return None
    tensors: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}, "best": {}}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        tensors[group][rest] = tensor
    return State(Progress(**json.loads(header["progress"])), tensors, json.loads(header["scaler"]))


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments as `<moment>/<parameter's name>`; parameters never stepped have none."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            if value is not None:
                tensors[f"{moment}/{names[parameter]}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved moments back, in each parameter's own memory layout (so that results stay equal to the bit)."""
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
