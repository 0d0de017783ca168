"""Embedder: backbone, pooling and neck, from the pixels of an image to its embedding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import ModelConfig
from whaleid.models.backbone import Backbone, build_backbone
from whaleid.models.pooling import AveragePool, Pool, build_pool
from whaleid.models.snapshots import PooledNetwork
from whaleid.utils.errors import WhaleidError


class Embedder(nn.Module):
    """Images to embeddings: normalised pixels, backbone, pooling, neck.

    Attributes
    ----------
    dim : int
        Length of an embedding.
    slices : int
        Equal parts of it that are normalised each on its own.
    """

    def __init__(self, backbone: Backbone, pool: Pool, neck: nn.Module, dim: int, slices: int = 1):
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.neck = neck
        self.dim = dim
        self.slices = slices
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        # (x / 255 - mean) / std as one multiplication and one addition
        self.register_buffer("pixel_scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings float32 (b, dim) of RGB images (b, h, w, 3) in 0..255, uint8 or float.

        They are not normalised, except where there are slices (`equal_slices`).
        """
        return self.neck_of(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (b, channels), before the neck."""
        return self.pool(self.backbone(self.pixels(images)))

    def neck_of(self, features: Tensor) -> Tensor:
        """Embeddings float32 (b, dim), as from `forward`, of pooled features (b, channels)."""
        return equal_slices(self.neck(features).float(), self.slices)

    def embed(self, images: Tensor) -> Tensor:
        """Unit embeddings float32 (b, dim): what is compared and stored."""
        return functional.normalize(self(images), dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised pixels float32 (b, 3, h, w), in torch's channels_last layout, which is that of the images."""
        scale, shift = self.get_buffer("pixel_scale"), self.get_buffer("pixel_shift")
        return (images.float() * scale + shift).permute(0, 3, 1, 2)


def equal_slices(embeddings: Tensor, slices: int) -> Tensor:
    """Scale each of `slices` equal parts of every row to length sqrt(d / slices); unchanged for one slice.

    embeddings: float (b, d). The unit row is then `slices` unit vectors over sqrt(slices), the embedding of Sanakoyeu
    et al. (2019). The length is that of a batch-normalised row, which suits softmax learners.
    """
    if slices == 1:
        return embeddings
    parts = embeddings.unflatten(1, (slices, -1))
    return (functional.normalize(parts, dim=2) * math.sqrt(parts.shape[2])).flatten(1)


class BatchNormNeck(nn.Sequential):
    """BNNeck (Luo et al., 2019): dropout, linear layer, batch normalisation whose offset stays 0.

    Without an offset the embeddings stay around the origin, where angles between them are most informative.
    """

    def __init__(self, channels: int, dim: int, dropout: float):
        normalise = nn.BatchNorm1d(dim)
        normalise.bias.requires_grad_(False)
        super().__init__(nn.Dropout(dropout), nn.Linear(channels, dim, bias=False), normalise)


def build_embedder(
    config: ModelConfig,
    folder: Path | None = None,
    pretrained: bool = True,
    size: tuple[int, int] | None = None,
    slices: int = 1,
    snapshot: dict[str, Any] | None = None,
) -> Embedder:
    """Embedder of an experiment's `model` settings.

    Parameters
    ----------
    config : ModelConfig
    folder, pretrained, size, snapshot
        As in `build_backbone`.
    slices : int
        Parts of the embedding that are normalised each on its own (`HeadSettings.slices`).

    Raises
    ------
    WhaleidError
        For an unknown backbone, and for weights that are missing or do not fit.
    """
    backbone = build_backbone(config.backbone, config.weights, config.drop_path, folder, size, pretrained, snapshot)
    if isinstance(backbone.net, PooledNetwork) and config.pool == "gem":
        raise WhaleidError(
            f"model.pool: gem: backbone '{config.backbone}' pools itself, and what it gives can be negative; use avg"
        )
    neck, dim = _build_neck(config, backbone.channels)
    return Embedder(backbone, build_pool(config.pool, config.gem_p), neck, dim, slices)


class Adapter(Embedder):
    """A neck on the features of a frozen network: its input is rows of features (b, channels), not images."""

    def __init__(self, neck: nn.Module, channels: int, dim: int, slices: int):
        net = nn.Identity()
        net.num_features = channels  # type: ignore[assignment]
        super().__init__(Backbone(net, "features"), AveragePool(), neck, dim, slices)

    def features(self, images: Tensor) -> Tensor:
        """The features, scaled to length sqrt(channels): the neck's input is then of the size that others' have."""
        return functional.normalize(images.float(), dim=1) * math.sqrt(self.backbone.channels)


def build_adapter(config: ModelConfig, channels: int, slices: int = 1) -> Adapter:
    """Adapter of an experiment's `model` settings. channels: of the features. slices: as in `build_embedder`."""
    neck, dim = _build_neck(config, channels)
    return Adapter(neck, channels, dim, slices)


def _build_neck(config: ModelConfig, channels: int) -> tuple[nn.Module, int]:
    """Neck, and the length of an embedding."""
    if config.neck == "none":
        return nn.Dropout(config.dropout), channels
    if config.neck == "linear":
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, config.embedding)), config.embedding
    return BatchNormNeck(channels, config.embedding, config.dropout), config.embedding
