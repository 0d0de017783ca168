"""What a killed run resumes from: one safetensors file, tensors in its body, the rest as JSON in its header.

One file that is renamed into place is either the old state or the new one, whenever the run is killed.
No generator's state is in it: see seeds.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whaleid.utils.files import atomic_path

GROUPS = ("model", "optimizer", "ema", "best", "mined")
"""Groups of tensors in a state."""


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
    """Content of a state file."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    """By group (one of GROUPS) and name."""
    scaler: dict[str, Any]
    """GradScaler's own state; empty without fp16."""


def save_state(path: Path, key: str, state: State) -> None:
    """Write atomically. key: digest of all that must be equal when the run goes on."""
    rest = {"progress": asdict(state.progress), "scaler": state.scaler}
    header = {"key": key, **{name: json.dumps(value) for name, value in rest.items()}}
    flat = {f"{group}/{name}": tensor for group, named in state.tensors.items() for name, tensor in named.items()}
    with atomic_path(path) as temporary:
        save_file(storable(flat), temporary, metadata=header)


def load_state(path: Path, key: str) -> State | None:
    """The state at `path`, on the CPU; None where there is none, or it is broken or of another key."""
    if not is_state_of(path, key):
        return None
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    tensors: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        tensors[group][rest] = tensor
    return State(Progress(**json.loads(header["progress"])), tensors, json.loads(header["scaler"]))


def is_state_of(path: Path, key: str) -> bool:
    """Whether a whole state of this key lies at `path`; only its header is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("key") == key
    except (FileNotFoundError, SafetensorError):
        return False


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored
