"""What a killed run resumes from: one safetensors file, tensors in its body, the rest as JSON in its header.

It is renamed into place as one file, so whenever the run is killed there is either the old state or the new one.
accelerate's `save_state` writes a folder of pickles, which a kill can leave half written. No generator's state is
needed: see seeds.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whaleid.training.checkpoint import storable
from whaleid.training.optimizer import optimizer_tensors, restore_optimizer
from whaleid.training.session import Progress, Session
from whaleid.utils.files import atomic_path

STATE = Path("state", "state.safetensors")
"""Place of the state in a run's folder."""

GROUPS = ("model", "optimizer", "ema", "planner")
"""Groups of tensors in a state."""


@dataclass(frozen=True)
class State:
    """Content of a state file."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    """By group (one of GROUPS) and name."""
    scaler: dict[str, Any]
    """GradScaler's own state; empty without fp16."""


def take_state(session: Session) -> State:
    """What the session needs to continue; the tensors are the session's own, not copies."""
    scaler = session.accelerator.scaler
    return State(
        progress=session.progress,
        tensors={
            "model": session.module.state_dict(),
            "optimizer": optimizer_tensors(session.optimizer, session.module),
            "ema": session.ema.module.state_dict() if session.ema else {},
            "planner": session.planner_state,
        },
        scaler=scaler.state_dict() if scaler is not None else {},
    )


def restore(session: Session, state: State) -> None:
    """Put a session back to where `state` was taken."""
    session.progress = state.progress
    session.module.load_state_dict(state.tensors["model"])
    restore_optimizer(session.optimizer, session.module, state.tensors["optimizer"])
    session.planner_state = state.tensors["planner"]
    if session.ema:
        session.ema.module.load_state_dict(state.tensors["ema"])
    if session.accelerator.scaler is not None:
        session.accelerator.scaler.load_state_dict(state.scaler)


def save_state(path: Path, key: str, state: State) -> None:
    """Write a state atomically. key: digest of all that must be equal for the run to continue."""
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


def saved_step(path: Path) -> int | None:
    """Steps that were done when the state at `path` was saved, None where there is none; only its header is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["progress"])["step"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def is_state_of(path: Path, key: str) -> bool:
    """Whether there is a complete state of this key at `path`; only its header is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("key") == key
    except (FileNotFoundError, SafetensorError):
        return False
