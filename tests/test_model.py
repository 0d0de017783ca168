"""Embedder: pixels to embeddings, on every family of networks."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whaleid.config import MarginHead, MetricHead, ModelConfig, SumHead
from whaleid.config.files import load_recipe
from whaleid.config.heads import WeightedHead
from whaleid.models.backbone import build_backbone, freeze_batchnorm, set_backbone_trainable
from whaleid.models.embedder import Embedder, build_embedder
from whaleid.models.heads.registry import build_head
from whaleid.models.pooling import build_pool
from whaleid.training.optimizer import parameter_groups
from whaleid.utils.errors import WhaleidError

SMALL = ModelConfig(
    backbone="test_resnet",
    weights="random",
    pool="gem",
    gem_p=3.0,
    neck="bnneck",
    embedding=24,
    dropout=0.0,
    drop_path=0.0,
)


def model_config(**changes: object) -> ModelConfig:
    return ModelConfig(**{**SMALL.model_dump(), **changes})  # type: ignore[arg-type]


def some_images(count: int = 4, width: int = 64, height: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


# ---------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("name", ["avg", "max", "gem"])
def test_pools_equal_loops(name: str) -> None:
    features = torch.rand(3, 5, 2, 4, generator=torch.Generator().manual_seed(1)) * 3
    pooled = build_pool(name, 2.5)(features).detach()  # type: ignore[arg-type]
    for image in range(3):
        for channel in range(5):
            values = [float(v) for v in features[image, channel].flatten()]
            expected = {
                "avg": sum(values) / 8,
                "max": max(values),
                "gem": (sum(v**2.5 for v in values) / 8) ** (1 / 2.5),
            }[name]
            assert float(pooled[image, channel]) == pytest.approx(expected, rel=1e-5)


@given(p=st.floats(0.05, 300), largest=st.floats(1e-3, 6e4), half=st.booleans())
@settings(max_examples=50, deadline=None)
def test_gem_is_finite_and_between_smallest_and_largest(p: float, largest: float, half: bool) -> None:
    features = (torch.linspace(0.1, 1, 12).reshape(1, 1, 3, 4) * largest).to(torch.float16 if half else torch.float32)
    features.requires_grad_()
    pool = build_pool("gem", p)
    pooled = pool(features)
    pooled.sum().backward()
    assert features.float().min() * 0.99 <= pooled.item() <= features.float().max() * 1.01
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(pool.get_parameter("p").grad).all()  # type: ignore[arg-type]


def test_gem_power_learns() -> None:
    pool = build_pool("gem", 3.0)
    pool(torch.rand(2, 3, 4, 4)).sum().backward()
    assert abs(float(pool.get_parameter("p").grad)) > 1e-4  # type: ignore[arg-type]


def test_gem_survives_a_map_of_zeros() -> None:
    features = torch.zeros(2, 3, 2, 2, requires_grad=True)
    pooled = build_pool("gem", 3.0)(features)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- embedder


def test_pixels_are_normalised_as_the_backbone_was_trained() -> None:
    embedder = build_embedder(model_config(backbone="resnet10t"))
    images = some_images()
    mean, std = timm.get_pretrained_cfg("resnet10t").mean, timm.get_pretrained_cfg("resnet10t").std  # type: ignore
    pixels = embedder.pixels(images)
    for channel in range(3):
        expected = (images[..., channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(pixels[:, channel].double(), expected, rtol=0, atol=1e-5)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("neck", "dim"), [("none", 96), ("linear", 24), ("bnneck", 24)])
def test_embedding_sizes_and_unit_rows(neck: str, dim: int) -> None:
    embedder = build_embedder(model_config(neck=neck)).eval()
    with torch.no_grad():
        raw, unit = embedder(some_images()), embedder.embed(some_images())
    assert raw.shape == (4, dim)
    assert raw.dtype == torch.float32
    assert embedder.dim == dim
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(unit * raw.norm(dim=1, keepdim=True), raw)
    assert (raw.norm(dim=1) - 1).abs().max() > 1e-3  # the raw ones are not normalised


def test_float_images_in_0_to_255_equal_bytes() -> None:
    embedder = build_embedder(SMALL).eval()
    torch.testing.assert_close(embedder(some_images().float()), embedder(some_images()))


def test_bnneck_has_no_offset_to_learn() -> None:
    embedder = build_embedder(SMALL).train()
    embeddings = embedder(some_images(8))
    torch.testing.assert_close(embeddings.mean(dim=0), torch.zeros(24), atol=1e-5, rtol=0)
    learnt = {name for name, parameter in embedder.neck.named_parameters() if parameter.requires_grad}
    assert learnt == {"1.weight", "2.weight"}


STRIDES = {
    "tf_efficientnet_lite0": 32,
    "mobilenetv3_small_100": 32,
    "resnet50": 32,
    "resnest14d": 32,
    "seresnext50_32x4d": 32,
    "convnext_tiny": 32,
    "densenet121": 32,
    "dm_nfnet_f0": 32,
    "regnety_016": 32,
    "vgg11_bn": 32,
    "vit_small_patch16_224": 16,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_base_patch16_siglip_224": 16,
    "eva02_tiny_patch14_224": 14,
    "beit_base_patch16_224": 16,
    "swin_tiny_patch4_window7_224": 32,
    "swinv2_tiny_window8_256": 32,
}


@pytest.mark.parametrize("name", STRIDES)
def test_families_build_and_learn_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        embedder = build_embedder(model_config(backbone=name, pool="avg"), pretrained=False, size=(128, 64))
        images = torch.empty(2, 64, 128, 3, dtype=torch.uint8)
        features = embedder.backbone(embedder.pixels(images))
        embedder(images).sum().backward()
    assert features.shape[:2] == (2, embedder.backbone.channels)
    stride = STRIDES[name]  # a size that the patches do not divide is padded
    assert features.shape[2] * features.shape[3] == -(-64 // stride) * -(-128 // stride)
    idle = [key for key, value in embedder.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []  # a parameter that no gradient reaches would stop training on several GPUs


def test_every_network_of_gold_builds_on_the_meta_device() -> None:
    _, experiments = load_recipe("gold")
    sizes = {e.model: (e.image.width or 256, e.image.height or 128) for e in experiments}
    for model, size in sizes.items():
        with torch.device("meta"):
            embedder = build_embedder(model, pretrained=False, size=size)
        assert embedder.pixels(torch.empty(2, 8, 8, 3, device="meta")).device.type == "meta"
        assert embedder.dim == (embedder.backbone.channels if model.neck == "none" else model.embedding)
        assert all(parameter.is_meta for parameter in embedder.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_convnext", "test_efficientnet"])
def test_other_sizes_than_the_one_built_for(name: str) -> None:
    embedder = build_embedder(model_config(backbone=name, pool="avg"), size=(64, 32)).eval()
    with torch.no_grad():
        for width, height in [(64, 32), (96, 48), (70, 50)]:
            assert embedder(some_images(2, width, height)).shape == (2, 24)


def test_prefix_tokens_are_dropped() -> None:
    backbone = build_backbone("test_vit", "random", size=(64, 32)).eval()
    pixels = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    tokens = backbone.net.forward_features(pixels)  # type: ignore[operator]
    prefix = int(backbone.net.num_prefix_tokens)  # type: ignore[arg-type]
    assert prefix >= 1
    torch.testing.assert_close(backbone(pixels)[:, :, 0, 0], tokens[:, prefix])
    assert backbone(pixels).shape[2] == tokens.shape[1] - prefix


def test_drop_path_reaches_the_network() -> None:
    backbone = build_backbone("test_convnext", "random", drop_path=0.4)
    rates = [float(m.drop_prob) for m in backbone.modules() if type(m).__name__ == "DropPath"]  # type: ignore
    assert max(rates) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "tf_efficientnet_lite00"}, "did you mean tf_efficientnet_lite0"),
        ({"backbone": "resnet10t.c4_in1k"}, "known: resnet10t.c3_in1k"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "gives no feature map"),
        ({"backbone": "vgg11", "drop_path": 0.1}, "has no stochastic depth"),
    ],
)
def test_unusable_backbones_are_one_clear_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WhaleidError, match=message) as caught:
        build_embedder(model_config(**changes))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ freezing and parameters


def statistics(module: nn.Module) -> torch.Tensor:
    found = [m.running_mean for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.cat([value.detach().clone() for value in found if value is not None])


def one_step(embedder: Embedder) -> None:
    embedder.train()
    embedder(some_images(4)).square().sum().backward()


def test_frozen_batchnorm_keeps_its_statistics_through_train_calls() -> None:
    embedder = build_embedder(SMALL)
    before = statistics(embedder.backbone)
    one_step(embedder)
    moved = statistics(embedder.backbone)
    assert not torch.equal(before, moved)
    freeze_batchnorm(embedder.backbone)
    one_step(embedder)
    assert torch.equal(moved, statistics(embedder.backbone))
    assert embedder.neck.training
    assert all(parameter.requires_grad for parameter in embedder.backbone.parameters())


def test_backbone_stands_still_and_is_let_go() -> None:
    embedder = build_embedder(SMALL)
    set_backbone_trainable(embedder.backbone, False)
    before = statistics(embedder.backbone)
    one_step(embedder)
    assert torch.equal(before, statistics(embedder.backbone))
    assert all(parameter.grad is None for parameter in embedder.backbone.parameters())
    assert embedder.neck[1].weight.grad is not None  # type: ignore[index]
    set_backbone_trainable(embedder.backbone, True)
    one_step(embedder)
    assert not torch.equal(before, statistics(embedder.backbone))
    assert all(parameter.grad is not None for parameter in embedder.backbone.parameters())


def test_letting_go_in_evaluation_does_not_start_training() -> None:
    embedder = build_embedder(SMALL).eval()
    set_backbone_trainable(embedder.backbone, True)
    assert not any(module.training for module in embedder.modules())


def test_parameter_groups_hold_each_parameter_once_with_its_rate() -> None:
    embedder = build_embedder(model_config(backbone="test_vit"), size=(64, 32))
    loss = MetricHead(name="metric", loss="MarginLoss", arguments={"learn_beta": True})
    parts = [WeightedHead(head=MarginHead(name="arcface")), WeightedHead(head=loss)]
    head = build_head(SumHead(name="sum", parts=parts), 24, [3, 4])
    groups = parameter_groups(embedder, head, lr=1e-2, backbone_lr=0.1, weight_decay=0.05)
    names = {id(p): name for module in (embedder, head) for name, p in module.named_parameters()}
    seen = {names[id(p)]: group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(seen)
    frozen = {"neck.2.bias"}  # BNNeck's offset
    assert set(seen) == set(names.values()) - frozen
    for name, group in seen.items():
        assert group["lr"] == pytest.approx(1e-3 if name.startswith("backbone.") else 1e-2)
    free = {name for name, group in seen.items() if group["weight_decay"] == 0}
    assert {
        "pool.p",
        "neck.2.weight",
        "heads.1.loss.beta",
        "backbone.net.pos_embed",
        "backbone.net.norm.weight",
    } <= free
    assert {"neck.1.weight", "heads.0.centers", "backbone.net.blocks.0.attn.qkv.weight"}.isdisjoint(free)
    assert all(name.endswith((".bias",)) is False or name in free for name in seen)
