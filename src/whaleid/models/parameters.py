"""What the optimiser gets: groups of parameters with their rates, and what stands still."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from whaleid.models.embedder import Embedder


def parameter_groups(
    embedder: Embedder, head: nn.Module, lr: float, backbone_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: backbone and the rest, each with and without weight decay (empty ones
    left out).

    lr: peak rate of pool, neck and head. backbone_lr: the backbone's, as a multiple of lr.
    No decay on what is no matrix (biases, norms, GeM's p, learnt margins) nor on what timm exempts (position
    embeddings, class tokens). A backbone that stands still at the start is in its groups all the same, so
    that it can be let go later; only what never learns (BNNeck's offset) is left out.
    Each group: `params`, `lr`, `weight_decay`, `name`.
    """
    exempt = {f"net.{name}" for name in _timm_exemptions(embedder.backbone.net)}
    backbone = [(name, parameter) for name, parameter in embedder.backbone.named_parameters()]
    rest = [
        (name, parameter)
        for name, parameter in [*embedder.named_parameters(), *head.named_parameters()]
        if not name.startswith("backbone.") and parameter.requires_grad
    ]
    groups = _with_and_without_decay("backbone", backbone, exempt, lr * backbone_lr, weight_decay)
    return groups + _with_and_without_decay("head", rest, set(), lr, weight_decay)


def set_backbone_trainable(embedder: Embedder, trainable: bool) -> None:
    """Let the backbone learn, or stand still: no gradients, no moving statistics, no stochastic depth.

    Holds through later calls of `embedder.train()`.
    """
    backbone = embedder.backbone
    backbone.trainable = trainable
    backbone.requires_grad_(trainable)
    backbone.train(embedder.training)


def _timm_exemptions(net: nn.Module) -> Iterable[str]:
    exempt = getattr(net, "no_weight_decay", None)
    return exempt() if callable(exempt) else ()  # type: ignore[return-value]


def _with_and_without_decay(
    name: str, parameters: list[tuple[str, nn.Parameter]], exempt: set[str], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    decayed = [p for label, p in parameters if p.dim() > 1 and label not in exempt]
    plain = [p for label, p in parameters if p.dim() <= 1 or label in exempt]
    groups = [
        {"name": name, "params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"name": f"{name}, no decay", "params": plain, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
