"""The choice as files: a recipe and its experiments, ordinary YAMLs that say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from whaleid.auto.choose import Choice
from whaleid.auto.options import Network
from whaleid.utils.files import atomic_path

WHITEN = 256
"""Dimensions of the concatenated features: those of one network's embedding."""


def write_recipe(choice: Choice, path: Path) -> None:
    """Write a recipe, and its experiments beside it as `<recipe>-<base>.yaml`; the recipe last.

    path: of the recipe's YAML.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.stem}-{network.base}" for network in choice.networks]
    for name, network in zip(names, choice.networks, strict=True):
        _write(
            path.with_name(f"{name}.yaml"), [f"Part of the recipe {path.stem}, which says why."], _experiment(network)
        )
    head = "Chosen by `recipe: auto`. The same command uses it again; remove it to choose anew."
    _write(path, [head, *choice.reasons], _recipe(choice, names))


def reasons_of(path: Path) -> list[str]:
    """The comments at the head of a written recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def _recipe(choice: Choice, names: list[str]) -> dict[str, Any]:
    combine: dict[str, Any] = {"concat": {"whiten": WHITEN}}
    if choice.local is not None:
        combine["local_matching"] = choice.local.model_dump(mode="json", exclude_defaults=True)
    if len(choice.trained) > 1:
        combine["stack"] = {}
    if not choice.full_gallery:
        combine["full_gallery"] = False
    partial = {} if len(choice.trained) == choice.folds else {"train_folds": list(choice.trained)}
    return {"folds": choice.folds, **partial, "experiments": names, "combine": combine}


def _experiment(network: Network) -> dict[str, Any]:
    made: dict[str, Any] = {"model": {"backbone": network.backbone}, "image": {"pixels": network.pixels}}
    if network.frozen:
        return {"extends": network.base, **made}
    return {"extends": f"auto/{network.base}", **made, "train": {"epochs": network.epochs}}


def _write(path: Path, comments: list[str], content: dict[str, Any]) -> None:
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    text = "".join(f"# {line}\n" for line in comments) + body
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
