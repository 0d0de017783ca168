"""Pretexts: questions about images whose answers need no labels, and the heads that answer them.

A pretext turns a batch into what the network is shown, and the right answers; the backbone that learns to answer is
a start for experiments with few labels. All transformations run on the images' own device.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import DeepClusterHead, JigsawHead, PretextExperiment, PretextHead, RotationHead
from whaleid.models.embedder import Embedder, build_embedder
from whaleid.models.heads.base import HeadModule
from whaleid.utils.errors import WhaleidError

PLACES = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))
"""The neighbours of a 3 x 3 grid's centre (x, y), in reading order: what a label of `jigsaw` stands for."""

SMALLEST_PATCH = 4  # pixels a side; smaller ones show nothing

_STRIDE = 32  # inputs of the usual networks are multiples of it


# --------------------------------------------------------------------------------------------- transformations


def four_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every image turned by 0, 90, 180 and 270 degrees, anticlockwise, and the number of quarter turns.

    images: (b, h, w, 3), 0..255, uint8 or float. Returns float32 (4b, h, w, 3), all images at 0 degrees first, and
    int64 (4b,) in 0..3. What was wide is high after a quarter turn, and is brought back to the network's size; the
    stretch tells quarter turns from half turns, but not the two of a kind from each other.
    """
    height, width = images.shape[1:3]
    turned = [resized(torch.rot90(images, turns, (1, 2)).float(), (width, height)) for turns in range(4)]
    return torch.cat(turned), torch.arange(4, device=images.device).repeat_interleave(len(images))


def patch_size(size: tuple[int, int], gap: float, jitter: float) -> tuple[int, int]:
    """Width and height of a patch: the largest for which the jittered 3 x 3 grid fits into images of `size`.

    size: (width, height). gap, jitter: shares of the patch. Raises WhaleidError where patches show nothing.
    """
    width, height = (int(side / (3 + 2 * gap + 2 * jitter)) for side in size)
    if min(width, height) < SMALLEST_PATCH:
        raise WhaleidError(
            f"head jigsaw: images of {size[0]}x{size[1]} give patches of {width}x{height} pixels; take larger images "
            "(image.width, image.height)"
        )
    return width, height


def patch_corners(
    size: tuple[int, int], patch: tuple[int, int], gap: float, jitter: float, place: Tensor, shifts: Tensor
) -> Tensor:
    """Upper left corners (x, y) of the centre patch and of one neighbour, int64 (b, 2, 2): image, patch, axis.

    size, patch: (width, height) of images and patches. place: int64 (b,), index into PLACES. shifts: float
    (b, 2, 2) in -1..1, the jitter of either patch along either axis. All on the CPU.
    """
    side = torch.tensor(patch, dtype=torch.float64)
    centre = (torch.tensor(size, dtype=torch.float64) - side) / 2
    steps = torch.tensor(PLACES, dtype=torch.float64)[place] * side * (1 + gap)
    nominal = torch.stack([centre.expand(len(place), 2), centre + steps], dim=1)
    return (nominal + shifts * jitter * side).round().long()


def patch_pairs(images: Tensor, corners: Tensor, patch: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The patches at `corners`, brought to `size`: float32 (2b, h, w, 3), all centres first, then all neighbours.

    images: (b, h, w, 3), uint8 or float. corners: int64 (b, 2, 2), as `patch_corners` gives them. patch, size:
    (width, height) as cut and as returned.
    """
    corners = corners.to(images.device)
    rows = corners[:, :, 1, None, None] + torch.arange(patch[1], device=images.device)[:, None]
    columns = corners[:, :, 0, None, None] + torch.arange(patch[0], device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    cut = images[image, rows, columns]  # (b, 2, h, w, 3)
    return resized(cut.transpose(0, 1).flatten(0, 1).float(), size)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images (n, h, w, 3) brought to `size` (width, height), bilinear, averaging where they shrink."""
    if (images.shape[2], images.shape[1]) == size:
        return images
    planes = images.permute(0, 3, 1, 2)
    return functional.interpolate(planes, (size[1], size[0]), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def sobel(pixels: Tensor) -> Tensor:
    """Gradients of the gray image along x and y, and their length: float (b, 3, h, w) of float (b, 3, h, w).

    Gray is the channels' mean. A quarter of Sobel's kernels, so that a unit step gives a gradient of 1; beyond the
    edge the image goes on as it ends. Three channels, since every timm network's first layer takes three.
    """
    gray = functional.pad(pixels.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    along_x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=pixels.device) / 4
    kernels = torch.stack([along_x, along_x.T])[:, None].to(pixels.dtype)
    gradients = functional.conv2d(gray, kernels)
    return torch.cat([gradients, gradients.square().sum(dim=1, keepdim=True).sqrt()], dim=1)


# ------------------------------------------------------------------------------------------------------- heads


class PretextClassifier(HeadModule):
    """Base of the heads that bring their own question."""

    def shown(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown of a batch, and the right answers.

        images: uint8 (b, h, w, 3). labels: int64 (b,), of the items: pseudo-labels of `deepcluster`, else unused.
        Returns float or uint8 (m, h', w', 3), and int64 answers. Draws from torch's CPU generator, which the loop
        seeds for every batch.
        """
        raise NotImplementedError

    def _loss(self, embeddings: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        """among: no use here; all answers compete."""
        return functional.cross_entropy(self._logits(embeddings), labels)

    def _logits(self, embeddings: Tensor) -> Tensor:
        raise NotImplementedError


class RotationClassifier(PretextClassifier):
    """Linear classifier of the four turns."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 4)

    def shown(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return four_turns(images)

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)


class PlaceClassifier(PretextClassifier):
    """Place of the second patch around the first, from both embeddings side by side.

    A hidden layer, since the answer lies in how the two go together: a linear layer would judge each on its own.
    shown_at: (width, height) that the patches are brought to.
    The source warns of lenses that part the colours towards the edge, a cue to the place; in photographs shrunk to a
    few hundred pixels it is gone, and the augmentation's grays and hues are what is left to do against colour.
    """

    def __init__(self, config: JigsawHead, dim: int, size: tuple[int, int], shown_at: tuple[int, int]):
        super().__init__()
        self.config = config
        self.shown_at = shown_at
        self.patch = patch_size(size, config.gap, config.jitter)
        self.layers = nn.Sequential(nn.Linear(2 * dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, 8))

    def shown(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        size = (images.shape[2], images.shape[1])
        place = torch.randint(len(PLACES), (len(images),))
        shifts = 2 * torch.rand(len(images), 2, 2) - 1
        corners = patch_corners(size, self.patch, self.config.gap, self.config.jitter, place, shifts)
        return patch_pairs(images, corners, self.patch, self.shown_at), place.to(images.device)

    def _logits(self, embeddings: Tensor) -> Tensor:
        centres, neighbours = embeddings.chunk(2)
        return self.layers(torch.cat([centres, neighbours], dim=1))


class ClusterClassifier(PretextClassifier):
    """Linear classifier of the pseudo-labels; of its `clusters` outputs, the first `found` compete."""

    def __init__(self, dim: int, clusters: int):
        super().__init__()
        self.linear = nn.Linear(dim, clusters)
        self.register_buffer("found", torch.tensor(clusters))

    def start_anew(self, found: int) -> None:
        """Forget the last clustering; the new one has `found` clusters. Draws from the device's generator."""
        self.linear.reset_parameters()
        self.get_buffer("found").fill_(found)

    def shown(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, labels

    def _logits(self, embeddings: Tensor) -> Tensor:
        logits = self.linear(embeddings)
        unused = torch.arange(logits.shape[1], device=logits.device) >= self.get_buffer("found")
        return logits.masked_fill(unused, -torch.inf)


def build_pretext_head(experiment: PretextExperiment, dim: int, size: tuple[int, int]) -> PretextClassifier:
    """Head of a pretext experiment. dim: length of an embedding. size: (width, height) of the images."""
    config = experiment.head
    if isinstance(config, RotationHead):
        return RotationClassifier(dim)
    if isinstance(config, JigsawHead):
        return PlaceClassifier(config, dim, size, shown_size(config, experiment.model.backbone, size))
    return ClusterClassifier(dim, config.clusters)


def shown_size(config: PretextHead, backbone: str, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of what the network is shown of images of `size`. backbone: a timm name.

    Patches come at half the sides, in multiples of 32: larger, they would be blurred, and cost more. Transformers are
    shown patches at the images' own size: timm brings their positions to another size from square images alone.
    """
    family = timm.get_pretrained_cfg(backbone)
    if not isinstance(config, JigsawHead) or (family is not None and family.fixed_input_size):
        return size
    width, height = (max(_STRIDE, round(side / 2 / _STRIDE) * _STRIDE) for side in size)
    return width, height


# ---------------------------------------------------------------------------------------------------- embedder


class SobelEmbedder(Embedder):
    """An embedder whose backbone reads gradients (`sobel`) instead of colours.

    The source keeps its filters for good, so that what is built on the backbone sees gradients too. Here they go
    with the pretraining: the experiments that start from the backbone read colours, and their first layers have to
    learn that anew. Hence `sobel: false` is the default, and the augmentation's grays and hues do the filters' work of
    keeping clusters from being made of colours.
    """

    def pixels(self, images: Tensor) -> Tensor:
        return sobel(super().pixels(images))


def build_pretext_embedder(
    experiment: PretextExperiment, folder: Path, pretrained: bool, size: tuple[int, int]
) -> Embedder:
    """Embedder of a pretext experiment; arguments as in `build_embedder`, size: (width, height) of the images."""
    shown_at = shown_size(experiment.head, experiment.model.backbone, size)
    plain = build_embedder(experiment.model, folder, pretrained, shown_at)
    if isinstance(experiment.head, DeepClusterHead) and experiment.head.sobel:
        return SobelEmbedder(plain.backbone, plain.pool, plain.neck, plain.dim)
    return plain
