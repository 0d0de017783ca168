"""Embedder: backbone, pooling and neck, from the pixels of an image to its embedding."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import ModelConfig
from whaleid.models.backbone import Backbone, build_backbone
from whaleid.models.pooling import Pool, build_pool


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
) -> Embedder:
    """Embedder of an experiment's `model` settings.

    Parameters
    ----------
    config : ModelConfig
    folder, pretrained, size
        As in `build_backbone`.
    slices : int
        Parts of the embedding that are normalised each on its own (`HeadSettings.slices`).

    Raises
    ------
    WhaleidError
        For an unknown backbone, and for weights that are missing or do not fit.
    """
    backbone = build_backbone(config.backbone, config.weights, config.drop_path, folder, size, pretrained)
    pool = build_pool(config.pool, config.gem_p)
    if config.neck == "none":
        return Embedder(backbone, pool, nn.Dropout(config.dropout), backbone.channels, slices)
    if config.neck == "linear":
        neck: nn.Module = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(backbone.channels, config.embedding))
    else:
        neck = BatchNormNeck(backbone.channels, config.embedding, config.dropout)
    return Embedder(backbone, pool, neck, config.embedding, slices)
