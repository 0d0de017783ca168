"""Names of timm's networks: which there are, and what was meant."""

from __future__ import annotations

import difflib

import timm

from whaleid.utils.errors import WhaleidError


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
