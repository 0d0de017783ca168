"""Why a network finds two images similar: where they agree, what the similarity depends on, and regions that match.

Maps please the eye whether or not they tell anything (Adebayo et al., "Sanity checks for saliency maps", 2018). So each
has a deletion score, to be compared with that of a map by a network of random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from whaleid.models.embedder import Embedder
from whaleid.utils.errors import WhaleidError

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Shares of an image that are deleted beside none and all: close where the similarity falls fastest."""
FINER = 16
"""A middle layer has at least as many times the positions of the last one: a stage of a quarter of its stride."""
_BLUR = 0.03  # of the width: gradients of single pixels are noise, as pixels next to one another share them


def similarity_maps(embedder: Embedder, images: np.ndarray) -> tuple[float, np.ndarray]:
    """Where two images agree: the share of each position of the feature map in their similarity.

    Parameters
    ----------
    embedder : Embedder
        In evaluation mode, whose neck is then affine.
    images : uint8 array, shape (2, h, w, 3)
        RGB.

    Returns
    -------
    cosine : float
        Of the two embeddings.
    maps : float32 array, shape (2, h', w')
        Each map's sum is the cosine. Exact where `embedder.pool.exact`: a position's value depends on no other one but
        through the embeddings' lengths (Stylianou et al., "Visualizing deep similarity networks", 2019).
    """
    with torch.no_grad():
        features = embedder.backbone(embedder.pixels(torch.from_numpy(images).to(_device(embedder))))
        parts = embedder.pool.parts(features).transpose(1, 2)  # (2, positions, c)
        nothing = embedder.neck(torch.zeros_like(parts[0, :1]))
        added = embedder.neck(parts.flatten(0, 1)).unflatten(0, parts.shape[:2]) - nothing
        added = (added + nothing / parts.shape[1]).float()  # the neck's offset belongs to all positions alike
        units = added / _lengths(added.sum(1), embedder.slices)[:, None]
        maps = torch.einsum("bpd,bd->bp", units, units.sum(1).flip(0))
    height, width = grid_shape(features.shape[2:], images.shape[1:3])
    return float(maps[0].sum()), maps.cpu().numpy().reshape(2, height, width)


def saliency_maps(embedder: Embedder, images: np.ndarray) -> np.ndarray:
    """What the similarity of two images depends on: its gradient by the pixels, smoothed.

    Parameters
    ----------
    embedder, images
        As in `similarity_maps`.

    Returns
    -------
    float32 array, shape (2, h, w)
        Size of the gradient, >= 0.
    """
    pixels = torch.from_numpy(images).to(_device(embedder)).float().requires_grad_()
    one, other = embedder.embed(pixels)
    (gradient,) = torch.autograd.grad(one @ other, pixels)
    maps = gradient.abs().sum(dim=3).cpu().numpy()
    return np.stack([cv2.GaussianBlur(one, (0, 0), _BLUR * images.shape[2]) for one in maps])


@dataclass(frozen=True)
class Regions:
    """What a middle layer of a network has to do with the similarity of two images.

    Attributes
    ----------
    relevance : float32 array, shape (2, h, w)
        How much each of its positions adds to the similarity: the sum over the channels of activation times gradient
        at fixed lengths of the embeddings, where that is above 0 (the element-wise class-activation map of Draelos and
        Carin, 2020).
    pairs : int64 array, shape (n, 2)
        Positions (row by row) of the first and of the second image whose activations are each other's nearest.
    strength : float32 array, shape (n,)
        Cosine of a pair's activations, times the geometric mean of their relevances; > 0, the largest first.
    """

    relevance: np.ndarray
    pairs: np.ndarray
    strength: np.ndarray


def agreeing_regions(embedder: Embedder, images: np.ndarray) -> Regions | None:
    """Regions of two images that a middle layer matches and that the similarity depends on, as PAIR-X pairs them.

    Shrack et al., "Pairwise matching of intermediate representations for fine-grained explainability" (2025), spread
    relevance by layer-wise rules; here it is activation times gradient.

    Parameters
    ----------
    embedder, images
        As in `similarity_maps`.

    Returns
    -------
    Regions or None
        None where no layer has more positions than the last one: a transformer of one resolution.
    """
    pixels = torch.from_numpy(images).to(_device(embedder)).float().requires_grad_()
    layer = _middle_layer(embedder, pixels[:1])
    if layer is None:
        return None
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(output)

    with layer.register_forward_hook(keep):
        embeddings = embedder.neck(embedder.features(pixels)).float()
    # at fixed lengths: the cosine of two parallel embeddings has no gradient, whatever they agree in
    one, other = embeddings / _lengths(embeddings.detach(), embedder.slices)
    (gradient,) = torch.autograd.grad(one @ other, kept[0])
    relevance = (kept[0] * gradient).sum(1).clamp(min=0).detach()
    units = nn.functional.normalize(kept[0].detach().flatten(2).transpose(1, 2), dim=2)
    pairs, strength = _mutual_pairs(units[0] @ units[1].T, *relevance.flatten(1))
    return Regions(relevance.cpu().numpy(), pairs.cpu().numpy(), strength.cpu().numpy())


def _middle_layer(embedder: Embedder, pixels: Tensor) -> nn.Module | None:
    """The last layer with FINER times the positions of the feature map; None where there is none."""
    seen: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            seen.append((module, output.shape[2] * output.shape[3]))

    inner = [module for module in embedder.backbone.modules() if module is not embedder.backbone]
    with ExitStack() as hooks, torch.no_grad():
        for module in inner:
            hooks.enter_context(module.register_forward_hook(note))
        features = embedder.backbone(embedder.pixels(pixels))
    last = features.shape[2] * features.shape[3]
    # tokens are a column; of a network with its channels last (Swin) the positions would be counted wrongly
    if features.shape[3] == 1 or not seen or seen[-1][1] != last:
        return None
    return next((module for module, positions in reversed(seen) if positions >= FINER * last), None)


def _mutual_pairs(cosines: Tensor, relevance: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Places of mutual nearest neighbours, int64 (n, 2), and their strength (n,); relevances are (p,) and (q,)."""
    place = torch.arange(len(cosines), device=cosines.device)
    nearest = cosines.argmax(1)
    mutual = cosines.argmax(0)[nearest] == place
    pairs = torch.stack([place, nearest], dim=1)[mutual]
    strength = cosines[pairs[:, 0], pairs[:, 1]] * (relevance[pairs[:, 0]] * other[pairs[:, 1]]).sqrt()
    order = strength.argsort(descending=True)
    order = order[strength[order] > 0]
    return pairs[order], strength[order].float()


def deletion_scores(embedder: Embedder, images: np.ndarray, maps: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean similarity while an image is deleted, parts with the largest values of a map first: low for a good map.

    Parameters
    ----------
    embedder, images
        As in `similarity_maps`.
    maps : mapping of str to float array, shape (2, h', w')
        They are enlarged to the images' size.

    Returns
    -------
    dict of str to float
        Of each map the area under the similarity against the share that is deleted, by trapezoids between SHARES; the
        mean over both images, of which one at a time is deleted. A deleted pixel gets the image's mean colour.
    """
    lefts = [_partly_deleted(images[side], [values[side] for values in maps.values()]) for side in range(2)]
    with torch.inference_mode():
        one, other = (embedder.embed(torch.from_numpy(left).to(_device(embedder))) for left in lefts)
        areas = (_areas(one @ other[0]) + _areas(other @ one[0])) / 2
    return dict(zip(maps, areas.tolist(), strict=True))


def _areas(similarity: Tensor) -> Tensor:
    """Areas (m,) under the curves of m maps. similarity: (2 + m * len(SHARES),), rows as of `_partly_deleted`."""
    between = similarity[2:].unflatten(0, (-1, len(SHARES)))
    whole, nothing = (end.expand(len(between), 1) for end in similarity[:2])
    return torch.trapezoid(torch.cat([whole, between, nothing], dim=1), similarity.new_tensor([0, *SHARES, 1]))


def grid_shape(shape: tuple[int, ...], image: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a feature map; of a transformer's column of tokens those that fit the image's (h, w)."""
    height, width = shape
    if width > 1 or height == 1:
        return height, width
    rows = round(math.sqrt(height * image[0] / image[1]))
    if rows < 1 or height % rows:
        size = f"{image[1]} x {image[0]}"
        raise WhaleidError(f"the network's {height} tokens are no grid over {size} pixels: there is no map of them")
    return rows, height // rows


def _lengths(embeddings: Tensor, slices: int) -> Tensor:
    """What embeddings (b, d) are divided by to be unit rows whose slices have equal lengths, (b, d)."""
    parts = embeddings.unflatten(1, (slices, -1))
    return (parts.norm(dim=2, keepdim=True) * math.sqrt(slices)).expand_as(parts).flatten(1)


def _partly_deleted(image: np.ndarray, maps: Sequence[np.ndarray]) -> np.ndarray:
    """The image, all of it deleted, and SHARES of it deleted by each map.

    image: uint8 (h, w, 3). maps: float (h', w') each. Returns uint8 (2 + len(maps) * len(SHARES), h, w, 3).
    """
    height, width = image.shape[:2]
    colour = image.mean(axis=(0, 1)).astype(np.uint8)
    left = [image, np.broadcast_to(colour, image.shape)]
    for values in maps:
        large = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        place = np.empty(large.size, dtype=int)
        place[np.argsort(-large, axis=None, kind="stable")] = np.arange(large.size)
        place = place.reshape(height, width, 1)
        left += [np.where(place < share * place.size, colour, image) for share in SHARES]
    return np.stack(left)


def _device(embedder: Embedder) -> torch.device:
    return embedder.get_buffer("pixel_scale").device
