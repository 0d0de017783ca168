"""Weights of ALIKED and LightGlue for tests: nobody's, for the published ones cannot be had everywhere."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from whaleid.local_matching.aliked import aliked_network
from whaleid.local_matching.lightglue import lightglue_network
from whaleid.local_matching.weights import ALIKED, ALIKED_LIGHTGLUE

SHARPNESS = 3000.0
"""What the plain LightGlue multiplies cosines by: descriptors of an untrained network are much alike."""


def random_aliked(seed: int = 0) -> dict[str, torch.Tensor]:
    """Drawn so that what goes through the network keeps its size: its descriptors then differ from place to place."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network = aliked_network()
        for name, values in network.named_parameters():
            if values.ndim > 1:
                inputs = values.shape[0] * values.shape[1] if "agg_weights" in name else values[0].numel()
                values.normal_(0, (2 / inputs) ** 0.5)
                if "offset_conv" in name:
                    values.mul_(0.1)
    return network.state_dict()


def plain_lightglue() -> dict[str, torch.Tensor]:
    """LightGlue whose layers change nothing: a double softmax of `SHARPNESS` x cosines, which loops can repeat."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = lightglue_network()
        for layer in network.transformers:
            for block in (layer.self_attn, layer.cross_attn):
                block.ffn[-1].weight.zero_()
                block.ffn[-1].bias.zero_()
        network.input_proj.weight.copy_(torch.eye(256, 128))
        network.input_proj.bias.zero_()
        for last in network.log_assignment:
            last.final_proj.weight.copy_(torch.eye(256) * (SHARPNESS * 256**0.5) ** 0.5)
            last.final_proj.bias.zero_()
            last.matchability.weight.zero_()
            last.matchability.bias.fill_(20.0)
    return network.state_dict()


def write_weights(folder: Path, seed: int = 0) -> Path:
    """Both files: ALIKED as safetensors, LightGlue in the form and with the names of its authors' file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_aliked(seed), folder / f"{ALIKED.name}.safetensors")
    torch.save(authors_names(plain_lightglue()), folder / f"{ALIKED_LIGHTGLUE.name}.pth")
    return folder


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`transformers.3.self_attn.x` as `self_attn.3.x`, as the published file has it."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "transformers":
            parts = [parts[2], parts[1], *parts[3:]]
        found[".".join(parts)] = tensor
    return found
