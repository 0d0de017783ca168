"""A finished run on disk: checkpoint.safetensors, config.yaml, classes.txt; written once, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whaleid.config import Experiment, ExperimentBase
from whaleid.config.files import read_yaml
from whaleid.models.embedder import Embedder, build_adapter, build_embedder
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.registry import build_head
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.yaml"
CLASSES = "classes.txt"
SIZES = "class_sizes"
"""Name of the int64 (c,) tensor beside `embedder.*` and `head.*`: training images of each class."""


@dataclass(frozen=True)
class TrainedRun:
    """One experiment trained on one fold, ready to embed: eval mode, no gradients."""

    embedder: Embedder
    head: HeadModule
    classes: list[str]
    """Of the head's logits; those of mirrored images are `<identity>|mirror`."""
    class_sizes: np.ndarray
    """int64 (c,): training images of each class."""
    experiment: Experiment
    size: tuple[int, int]
    """Width and height of the training images, pixels; of an adapter: width of the features and 1."""
    metadata: dict[str, Any]
    """Of the checkpoint: `summary`, `key`, `snapshot` (`Backbone.snapshot`), ..."""


def write_description(folder: Path, experiment: ExperimentBase, classes: list[str]) -> None:
    """Write `config.yaml` and `classes.txt`, before training."""
    broken = next((name for name in classes if "\n" in name), None)
    if broken is not None:
        raise WhaleidError(f"identity {broken!r} holds a line break: rename it in the competition's CSV")
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    with atomic_path(folder / CLASSES) as temporary:
        temporary.write_bytes("".join(f"{name}\n" for name in classes).encode())


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    class_sizes: np.ndarray,
    size: tuple[int, int],
    metadata: dict[str, Any],
) -> None:
    """Write `checkpoint.safetensors` atomically.

    Parameters
    ----------
    folder : Path
    weights : mapping of names to tensors
        `embedder.*` and `head.*`.
    class_sizes : int64 array, shape (c,)
    size : tuple of int
        Width and height of the training images.
    metadata : dict of JSON values
    """
    tensors = {**weights, SIZES: torch.from_numpy(np.asarray(class_sizes, dtype=np.int64))}
    header = {name: json.dumps(value) for name, value in {**metadata, "size": list(size)}.items()}
    with atomic_path(folder / CHECKPOINT) as temporary:
        save_file(storable(tensors), temporary, metadata=header)


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """The checkpoint's metadata without its weights; None where there is no readable checkpoint."""
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            return {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except (FileNotFoundError, SafetensorError, ValueError):
        return None


def load_run(folder: Path, device: str | torch.device = "cpu") -> TrainedRun:
    """Read a finished run.

    Raises
    ------
    WhaleidError
        Where a file is missing or broken, or a tensor is missing, unknown or of another shape.
    """
    weights, metadata = _read_weights(folder / CHECKPOINT)
    experiment = _read_experiment(folder / CONFIG)
    classes = _read_classes(folder / CLASSES)
    sizes = weights.pop(SIZES, torch.zeros(0)).numpy()
    if len(classes) != len(sizes):
        raise WhaleidError(
            f"{folder / CLASSES}: {len(classes)} classes, but {CHECKPOINT} has {len(sizes)}: {_AGAIN.format(folder)}"
        )
    width, height = metadata["size"]
    slices = experiment.head.slices
    if experiment.is_adapter:
        embedder = build_adapter(experiment.model, width, slices)
    else:
        embedder = build_embedder(experiment.model, None, False, (width, height), slices, metadata.get("snapshot"))
    head = build_head(experiment.head, embedder.dim, sizes)
    _fill(torch.nn.ModuleDict({"embedder": embedder, "head": head}), weights, folder)
    for module in (embedder, head):
        module.to(device).eval().requires_grad_(False)
    return TrainedRun(embedder, head, classes, sizes, experiment, (width, height), metadata)


_AGAIN = "the run's files do not belong together; delete {} and train it again"


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise WhaleidError(f"{path}: there is no checkpoint; the run is not finished: train it first (`whaleid train`)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError) as error:
        raise WhaleidError(f"{path}: broken or cut short ({error}); delete it and train the run again") from error
    if "size" not in metadata:
        raise WhaleidError(f"{path}: not a checkpoint of whaleid (its header has no 'size'); train the run again")
    return weights, metadata


def _read_experiment(path: Path) -> Experiment:
    if not path.is_file():
        raise WhaleidError(f"{path}: missing; the checkpoint's network is built from it: train the run again")
    try:
        return Experiment.model_validate(read_yaml(path))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise WhaleidError(f"{path}: {place}: {problem['msg']}; train the run again") from error


def _read_classes(path: Path) -> list[str]:
    if not path.is_file():
        raise WhaleidError(f"{path}: missing; it has the names of the checkpoint's classes: train the run again")
    try:
        return path.read_bytes().decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise WhaleidError(f"{path}: not readable as UTF-8 ({error}); {_AGAIN.format(path.parent)}") from error


def _fill(module: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Strict load_state_dict, with an error of one line."""
    wanted = module.state_dict()
    missing, unexpected = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    misshapen = [name for name in wanted if name in weights and wanted[name].shape != weights[name].shape]
    for what, names in (
        ("lacks", missing),
        ("has too much:", unexpected),
        ("has another shape of", misshapen),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WhaleidError(f"{folder / CHECKPOINT}: {what} {names[0]}{more}: {_AGAIN.format(folder)}")
    module.load_state_dict(weights)


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored
