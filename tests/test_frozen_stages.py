"""Frozen stages: the first layers of a backbone stay as pretrained, and cost no backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from whaleid.config import FreezeConfig
from whaleid.config.files import load_experiment
from whaleid.models.backbone import build_backbone, freeze_stages, set_backbone_trainable
from whaleid.pipeline.plan import Census, experiment_cost
from whaleid.utils.errors import WhaleidError

NAME = "tf_efficientnet_lite0"
STAGES = 8  # the stem and seven stages of blocks


def first_layers(number: int) -> tuple[str, ...]:
    """Start of the names of the first stages' parameters, as they stand in the network."""
    return ("conv_stem", "bn1", *(f"blocks.{stage}." for stage in range(number - 1)))


@pytest.mark.parametrize("number", [1, 5])
def test_first_stages_stand_still_and_the_others_move(number: int) -> None:
    backbone = build_backbone(NAME, "random")
    freeze_stages(backbone, number)
    start = {name: tensor.clone() for name, tensor in backbone.net.state_dict().items()}
    set_backbone_trainable(backbone, False)
    set_backbone_trainable(backbone, True)  # let go again: the first stages stay
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    backbone.train()
    backbone(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    end = backbone.net.state_dict()
    still = {name for name in start if name.startswith(first_layers(number))}
    assert all(torch.equal(start[name], end[name]) for name in still)
    assert not any(torch.equal(start[name], end[name]) for name in start.keys() - still if "running" in name)
    assert all((p.grad is None) == (name in still) for name, p in backbone.net.named_parameters())


def test_a_stage_is_left_to_learn() -> None:
    freeze_stages(build_backbone(NAME, "random"), STAGES - 1)
    with pytest.raises(WhaleidError, match=r"train\.freeze\.stages=8: at most 7 of the 8 stages of"):
        freeze_stages(build_backbone(NAME, "random"), STAGES)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_the_plan_counts_no_backward_pass_of_them(number: int) -> None:
    settings = {"model.backbone": NAME, "image.pixels": 8192, "train.epochs": 4, "train.freeze.stages": number}
    cost = experiment_cost(load_experiment("auto/arcface", settings), Census(1000, 0, 20, 300, 2.0, True), 4, 1)
    net = build_backbone(NAME, "random").net.eval()
    layers = [net.conv_stem, *net.blocks[: number - 1]] if number else []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pixels = torch.rand(1, 3, cost.size[1], cost.size[0])
        for layer in layers:
            pixels = layer(pixels)
    backward = 2 * (cost.forward_flops - counter.get_total_flops())
    assert cost.training_flops == pytest.approx(cost.images_seen * (cost.forward_flops + backward))


def test_runs_of_before_have_none() -> None:
    assert FreezeConfig.model_validate({"epochs": 0, "batchnorm": True}).stages == 0
