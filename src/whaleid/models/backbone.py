"""Backbones: any timm network, with normalised pixels as input and a feature map (b, c, h, w) as output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import group_modules
from timm.models.vgg import ConvMlp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from whaleid.models.loading import load_weights
from whaleid.models.snapshots import PooledNetwork, describe, is_snapshot, read_config
from whaleid.models.weights import check_backbone, default_folder, fetch_weights, find_weights
from whaleid.utils.errors import WhaleidError


class Backbone(nn.Module):
    """A timm network without pooling and classifier.

    A transformer's tokens, without its prefix tokens (class token, registers), are a map of one column,
    (b, c, tokens, 1).

    Attributes
    ----------
    net : timm network
    channels : int
        c of the feature map.
    mean, std : tuple of float
        Of the pixels (0..1) that it was pretrained with.
    snapshot : dict or None
        Content of its config.json, from which a trained run builds it again; None for timm's own networks.
    frozen_layers : tuple of nn.Module
        Layers that are never trained (`freeze_stages`).
    """

    def __init__(self, net: nn.Module, name: str, snapshot: dict[str, Any] | None = None):
        super().__init__()
        self.net = net
        self.name = name
        self.snapshot = snapshot
        self.channels = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
        config = getattr(net, "pretrained_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(config.get("mean") or IMAGENET_DEFAULT_MEAN)
        self.std: tuple[float, ...] = tuple(config.get("std") or IMAGENET_DEFAULT_STD)
        self.trainable = True
        self.batchnorm_frozen = False
        self.frozen_layers: tuple[nn.Module, ...] = ()

    def forward(self, pixels: Tensor) -> Tensor:
        """Feature map float (b, c, h', w') of normalised pixels float (b, 3, h, w)."""
        features = self.net(pixels)
        if features.dim() == 2:  # a few networks pool in any case
            return features[:, :, None, None]
        if features.dim() == 3:
            prefix = int(getattr(self.net, "num_prefix_tokens", 0) or 0)
            return features[:, prefix:].transpose(1, 2).unsqueeze(3)
        if features.shape[1] != self.channels and features.shape[3] == self.channels:  # Swin: channels last
            return features.permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module.train, but what is frozen stays in evaluation mode."""
        super().train(mode and self.trainable)
        if self.batchnorm_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        for layer in self.frozen_layers:
            layer.eval()
        return self


def build_backbone(
    name: str,
    weights: str = "imagenet",
    drop_path: float = 0.0,
    folder: Path | None = None,
    size: tuple[int, int] | None = None,
    pretrained: bool = True,
    snapshot: dict[str, Any] | None = None,
) -> Backbone:
    """Backbone by its timm name or that of its snapshot, with its weights.

    Parameters
    ----------
    name : str
    weights : str
        `imagenet` (folder/<name>.safetensors, else timm's hub), `random`, or the path of a .safetensors file.
    drop_path : float
        Rate of stochastic depth (Huang et al., 2016).
    folder : Path, optional
        Folder of weights; by default that of SETTINGS.json.
    size : tuple of int, optional
        Width and height of the input, which transformers need; by default their own.
    pretrained : bool
        False loads no weights: for a checkpoint, or torch's meta device.
    snapshot : dict, optional
        Content of a snapshot's config.json, where a run has kept it.

    Raises
    ------
    WhaleidError
        For an unknown name, and for weights that are not available or do not fit.
    """
    check_backbone(name)
    folder = folder or default_folder()
    source = find_weights(name, weights, folder) if pretrained else None
    if pretrained and source is None and weights == "imagenet":
        source = fetch_weights(name, folder)
    if snapshot is None and is_snapshot(name):
        snapshot = read_config(name, folder)
    net = _create(name, drop_path, size) if snapshot is None else _of_snapshot(snapshot, name, drop_path, size)
    if source is not None:
        load_weights(net, source, name)
    return Backbone(net, name, snapshot)


def pretrained_size(name: str, folder: Path) -> tuple[int, int]:
    """Width and height of the images that a backbone was pretrained with. folder: of weights."""
    check_backbone(name)
    given, architecture = {}, name
    if is_snapshot(name):
        description = describe(read_config(name, folder), name)
        given, architecture = description.pretrained, description.architecture
    config = timm.get_pretrained_cfg(architecture)
    _, height, width = given.get("input_size") or (config.input_size if config is not None else (3, 224, 224))
    return int(width), int(height)


def freeze_batchnorm(backbone: Backbone) -> None:
    """From now on, the backbone's batch normalisation uses the statistics that it has, and keeps them."""
    backbone.batchnorm_frozen = True
    backbone.train(backbone.training)


def freeze_stages(backbone: Backbone, number: int) -> None:
    """From now on, the first stages stay as they are: no gradients, no moving statistics.

    Stages are timm's coarse groups of layers: the stem, then each stage of blocks. No gradient is computed before the
    first layer that learns, and the first layers have the largest maps: their backward pass is the dearest.

    Raises
    ------
    WhaleidError
        For a network that names no stages, or has no more than `number`.
    """
    matcher = getattr(backbone.net, "group_matcher", None)
    if matcher is None:
        raise WhaleidError(f"train.freeze.stages: backbone '{backbone.name}' names no stages; set it to 0")
    stages = group_modules(backbone.net, matcher(coarse=True))
    if number >= len(stages):
        most = f"at most {len(stages) - 1} of the {len(stages)} stages of '{backbone.name}' fit"
        raise WhaleidError(f"train.freeze.stages={number}: {most}")
    names = [name for stage in range(number) for name in stages[stage]]
    backbone.frozen_layers = tuple(backbone.net.get_submodule(name) for name in names)
    set_backbone_trainable(backbone, backbone.trainable)


def set_backbone_trainable(backbone: Backbone, trainable: bool) -> None:
    """Train the backbone, or freeze it: no gradients, no moving statistics, no stochastic depth.

    Holds through later calls of `train()`. Frozen layers stay frozen.
    """
    backbone.trainable = trainable
    backbone.requires_grad_(trainable)
    for layer in backbone.frozen_layers:
        layer.requires_grad_(False)
    backbone.train(backbone.training)


def _of_snapshot(content: dict[str, Any], name: str, drop_path: float, size: tuple[int, int] | None) -> nn.Module:
    """The network that a snapshot's config.json describes, with the preprocessing that it says."""
    description = describe(content, name)
    try:
        net = _create(description.architecture, drop_path, size, description.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WhaleidError(f"{name}: config.json: timm makes no {description.architecture} of it ({reason})") from error
    if description.pooled:
        net = PooledNetwork(net, int(getattr(net, "head_hidden_size", None) or net.num_features))  # type: ignore[arg-type]
    net.pretrained_cfg = {**(getattr(net, "pretrained_cfg", None) or {}), **description.pretrained}  # type: ignore[assignment]
    return net


def _create(
    name: str, drop_path: float, size: tuple[int, int] | None, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """The timm network, with the input's size given in the way that its family accepts.

    arguments: of the network, besides its defaults.
    """
    wanted: dict[str, Any] = {**(arguments or {}), "num_classes": 0, "global_pool": ""}
    if drop_path > 0:
        wanted["drop_path_rate"] = drop_path
    image = {} if size is None else {"img_size": (size[1], size[0])}
    config = timm.get_pretrained_cfg(name)
    ways: list[dict[str, Any]] = [{}]
    if config is not None and config.fixed_input_size:  # transformers: positions depend on the size
        ways = [
            {"dynamic_img_size": True, "dynamic_img_pad": True, **image},
            {"dynamic_img_size": True, **image},
            {"strict_img_size": False, **image},
            image,
            {},
        ]
    for way in ways:
        try:
            return _without_hidden_layers(timm.create_model(name, pretrained=False, **{**wanted, **way}))
        except TypeError as error:
            reason = str(error)
            if "drop_path_rate" in reason:
                raise WhaleidError(
                    f"model.drop_path: backbone '{name}' has no stochastic depth; set it to 0"
                ) from error
            if "unexpected keyword" not in reason or way is ways[-1]:
                raise
        except AssertionError as error:  # a few transformers (distilled DeiT) need their own pool
            raise WhaleidError(
                f"model.backbone '{name}': timm gives no feature map of it ({error}); choose another"
            ) from error
    raise AssertionError("unreachable: the last way returns or raises")


def _without_hidden_layers(net: nn.Module) -> nn.Module:
    """VGG without the two hidden layers of its classifier: 120 million weights that expect a 7 x 7 map."""
    if isinstance(getattr(net, "pre_logits", None), ConvMlp):
        net.pre_logits = nn.Identity()
        net.head_hidden_size = net.num_features
    return net
