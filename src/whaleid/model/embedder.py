"""Backbone, pool and neck joined: from the pixels of an image to its embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import ModelConfig
from whaleid.model.backbone import Backbone, build_backbone
from whaleid.model.pooling import build_pool


class Embedder(nn.Module):
    """Images to embeddings: normalise pixels, backbone, pool, neck.

    dim: length of an embedding.
    """

    def __init__(self, backbone: Backbone, pool: nn.Module, neck: nn.Module, dim: int):
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.neck = neck
        self.dim = dim
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        # (x / 255 - mean) / std as one multiplication and one addition
        self.register_buffer("pixel_scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, h, w, 3) RGB in 0..255, uint8 (or float, after a mix of images).

        Returns float32 (b, dim): not normalised, as the heads want it.
        """
        features = self.backbone(self.pixels(images))
        return self.neck(self.pool(features)).float()

    def embed(self, images: Tensor) -> Tensor:
        """As forward, with rows of length 1: what is compared and stored."""
        return functional.normalize(self(images), dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """What the backbone reads: float32 (b, 3, h, w), normalised.

        The images lie in memory pixel by pixel, which is torch's channels_last already: nothing is copied
        twice.
        """
        scale, shift = self.get_buffer("pixel_scale"), self.get_buffer("pixel_shift")
        return (images.float() * scale + shift).permute(0, 3, 1, 2)


class BatchNormNeck(nn.Sequential):
    """BNNeck (Luo et al., 2019): dropout, linear layer, batch normalisation whose offset stays 0.

    Without an offset the embeddings stay around the origin, where angles between them mean most.
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
) -> Embedder:
    """Embedder of an experiment's `model` settings.

    folder: the weights folder (None: the repository's). pretrained: False where a checkpoint follows, or on
    torch's meta device. size: (width, height) of the input in pixels; transformers adapt their positions to
    it. Raises WhaleidError for an unknown backbone and for weights that are missing or do not fit.
    """
    backbone = build_backbone(config.backbone, config.weights, config.drop_path, folder, size, pretrained)
    pool = build_pool(config.pool, config.gem_p)
    if config.neck == "none":
        return Embedder(backbone, pool, nn.Dropout(config.dropout), backbone.channels)
    if config.neck == "linear":
        neck: nn.Module = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(backbone.channels, config.embedding))
    else:
        neck = BatchNormNeck(backbone.channels, config.embedding, config.dropout)
    return Embedder(backbone, pool, neck, config.embedding)
