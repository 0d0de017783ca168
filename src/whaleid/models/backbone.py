"""Any timm network as one kind of thing: normalised pixels in, feature map (b, c, h, w) out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vgg import ConvMlp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from whaleid.models.loading import load_weights
from whaleid.models.names import check_backbone
from whaleid.models.weights import default_folder, fetch_weights, find_weights
from whaleid.utils.errors import WhaleidError

Layout = Literal["NCHW", "NHWC", "NLC"]


class Backbone(nn.Module):
    """A timm network without pool and classifier.

    net: the network. channels: c of the feature map. mean, std: of the pixels (0..1) that it was pretrained
    with. Maps of convolutional networks come out as they are. Tokens of transformers lose their prefix (class
    token, registers) and stand in one column: (b, c, tokens, 1), which the pools read like any map.
    """

    def __init__(self, net: nn.Module, name: str):
        super().__init__()
        self.net = net
        self.name = name
        self.channels = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
        config = getattr(net, "pretrained_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(config.get("mean") or IMAGENET_DEFAULT_MEAN)
        self.std: tuple[float, ...] = tuple(config.get("std") or IMAGENET_DEFAULT_STD)
        self.trainable = True
        self.batchnorm_frozen = False

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: float (b, 3, h, w), normalised. Returns float (b, c, h', w')."""
        features = self.net(pixels)
        if features.dim() == 2:  # a few networks pool whatever they are told
            return features[:, :, None, None]
        if features.dim() == 3:
            prefix = int(getattr(self.net, "num_prefix_tokens", 0) or 0)
            return features[:, prefix:].transpose(1, 2).unsqueeze(3)
        if features.shape[1] != self.channels and features.shape[3] == self.channels:  # Swin: channels last
            return features.permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module.train, but what is frozen stays in evaluation mode, whoever calls this."""
        super().train(mode and self.trainable)
        if self.batchnorm_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def build_backbone(
    name: str,
    weights: str = "imagenet",
    drop_path: float = 0.0,
    folder: Path | None = None,
    size: tuple[int, int] | None = None,
    pretrained: bool = True,
) -> Backbone:
    """Backbone by its timm name, with its weights.

    weights: `imagenet` (folder/<name>.safetensors, else timm's hub), `random`, or the path of a .safetensors
    file.
    drop_path: rate of stochastic depth (Huang et al., 2016). folder: the weights folder (None: the
    repository's).
    size: (width, height) in pixels, needed by transformers alone; None: their own.
    pretrained: False looks for no weights at all (a checkpoint follows, or torch's meta device).
    Raises WhaleidError for an unknown name, or weights that are not to be had or do not fit.
    """
    check_backbone(name)
    folder = folder or default_folder()
    source = find_weights(name, weights, folder) if pretrained else None
    if pretrained and source is None and weights == "imagenet":
        source = fetch_weights(name, folder)
    net = _create(name, drop_path, size)
    if source is not None:
        load_weights(net, source, name)
    return Backbone(net, name)


def freeze_batchnorm(backbone: Backbone) -> None:
    """The backbone's batch normalisation uses and keeps the statistics that it has, from now on."""
    backbone.batchnorm_frozen = True
    backbone.train(backbone.training)


def _create(name: str, drop_path: float, size: tuple[int, int] | None) -> nn.Module:
    """The timm network, told the input's size in the way that its family understands."""
    wanted: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
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
            return _without_hidden_layers(timm.create_model(name, pretrained=False, **wanted, **way))
        except TypeError as error:
            reason = str(error)
            if "drop_path_rate" in reason:
                raise WhaleidError(
                    f"model.drop_path: backbone '{name}' has no stochastic depth; set it to 0"
                ) from error
            if "unexpected keyword" not in reason or way is ways[-1]:
                raise
        except AssertionError as error:  # a few transformers (distilled DeiT) insist on their own pool
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
