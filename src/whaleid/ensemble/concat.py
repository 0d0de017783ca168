"""Features of several networks side by side, then whitened by PCA, read a few thousand rows at a time.

Within one fold every network sees the same images, so their unit embeddings can stand side by side: the
cosine of two such rows is the weighted mean of the networks' cosines. Networks repeat one another; principal
components say the common part once, and dividing by (a power of) their spread lets weak but independent
directions count (Jegou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
PCA and whitening", ECCV 2012). Mean and directions come from the training part of the fold alone.

29 networks of 2048 dimensions and 33,000 images are 7.8 GB in float32: the features stay in their files, and
nothing of images x dimensions is ever held whole. What is held: one block of `_CELLS` numbers, the directions
(dimensions x wanted) and the whitened result (images x wanted). Time is linear in images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whaleid.config import ConcatConfig
from whaleid.features.files import UnitTable
from whaleid.utils.device import default_device
from whaleid.utils.errors import WhaleidError

_EXACT = 3072  # images or dimensions up to which all components are computed; above, only those wanted
_OVERSAMPLE = 32  # components more than wanted that the randomised method carries along
_ROUNDS = 4  # its power iterations: enough for the slowly falling spectra of embeddings (Halko et al. 2011)
_TINY = 1e-7  # share of the first component's variance below which a component is rounding error
_CELLS = 1 << 25  # numbers of one block of rows: 128 MB in float32
_STRIPE = 64  # rows brought to float32 at a time: what the processor's cache holds
_WHOLE = 1 << 30  # numbers that features without PCA may hold in all: 4 GiB in float32


@dataclass(frozen=True)
class Whitening:
    """Affine map to whitened features; `projection` None leaves the features as they are.

    mean: float32 (d,). projection: float32 (d, r), each column a principal direction divided by its spread to
    the given power. kept: share of the variance that the r directions hold, in [0, 1].
    """

    mean: np.ndarray
    projection: np.ndarray | None
    kept: float

    @property
    def dim(self) -> int:
        return len(self.mean) if self.projection is None else self.projection.shape[1]


@dataclass(frozen=True)
class Concatenation:
    """Weighted unit embeddings side by side, of which only the rows asked for are ever read.

    parts: each (n, d_s), unit rows. factors: > 0, one a part; their squares sum to 1.
    """

    parts: tuple[np.ndarray | UnitTable, ...]
    factors: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(part.shape[1] for part in self.parts)

    def rows(self, selection: np.ndarray) -> np.ndarray:
        """Rows of length 1. selection: int (m,). Returns float32 (m, sum of d_s)."""
        return next(_blocks(self, selection, step=len(selection)), np.empty((0, self.shape[1]), np.float32))


def concatenate(parts: Sequence[np.ndarray | UnitTable], weights: Sequence[float]) -> Concatenation:
    """A view of the parts whose weight is above 0; nothing is read.

    parts: float (n, d_s) each, unit rows, of the same images. weights: >= 0, one a part.
    """
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    if not used:
        raise WhaleidError("combine.concat.weights: every source has weight 0; give one of them a weight above 0")
    sizes = sorted({len(part) for part, _ in used})
    if len(sizes) > 1:
        raise WhaleidError(f"concatenation: sources of {sizes} rows; all must be of the same images")
    length = float(np.sqrt(sum(weight**2 for _, weight in used)))
    return Concatenation(tuple(part for part, _ in used), tuple(weight / length for _, weight in used))


def fit_whitening(
    features: np.ndarray | Concatenation, rows: np.ndarray, config: ConcatConfig, seed: int = 0
) -> Whitening:
    """Mean and principal directions of `features[rows]`, and of nothing else.

    features: float (n, d). rows: int64 (t,), t >= 2. seed: of the randomised method, used for large data.
    Keeps min(config.whiten, d, t - 1) directions, less those without variance. The order of rows changes
    nothing but rounding.
    """
    dims = features.shape[1]
    if config.whiten is None:
        return Whitening(np.zeros(dims, np.float32), None, 1.0)
    most = min(config.whiten, dims, len(rows) - 1)
    if most < 1:
        raise WhaleidError(f"whitening: {len(rows)} training images; at least 2 are needed")
    training = _Training(features, rows, _mean(features, rows))
    if min(len(rows), dims) > _EXACT:
        variance, directions, total = _randomised_components(training, most, seed)
    elif dims > len(rows):
        variance, directions, total = _components_of_few_images(training, most)
    else:
        variance, directions, total = _components_of_few_dimensions(training, most)
    real = variance > _TINY * max(variance[0], 1e-30)
    if not real.any() or variance[0] <= 0:
        raise WhaleidError("whitening: all training images have the same features; embed them again")
    variance, directions = variance[real], directions[:, real]
    projection = (directions * variance ** (-config.power / 2)).astype(np.float32)
    return Whitening(training.mean, projection, min(float(variance.sum()) / total, 1.0))


def whiten(features: np.ndarray | Concatenation, whitening: Whitening) -> np.ndarray:
    """Project, then L2-normalise. features: float (n, d) -> float32 (n, whitening.dim), unit rows.

    A row that lies exactly at the mean has no direction and stays zero: as similar to all as chance.
    Without PCA the result is as large as the features: above 4 GiB that is refused.
    """
    if whitening.projection is None and len(features) * whitening.dim > _WHOLE:
        raise WhaleidError(
            f"combine.concat.whiten: null keeps {len(features)} images x {whitening.dim} dimensions in memory, "
            "more than 4 GiB; give the number of dimensions to keep, 2048 or fewer"
        )
    out = np.empty((len(features), whitening.dim), dtype=np.float32)
    device = default_device()
    projection = None if whitening.projection is None else torch.from_numpy(whitening.projection).to(device)
    start = 0
    mean = None if projection is None else whitening.mean
    for block in _blocks(features, np.arange(len(features)), mean):
        stop = start + len(block)
        if projection is None:
            out[start:stop] = block
        else:
            out[start:stop] = (torch.from_numpy(block).to(device) @ projection).cpu().numpy()
        start = stop
    return _unit(out)


# -------------------------------------------------------------------------------------------- blocks of rows


def _blocks(
    features: np.ndarray | Concatenation, rows: np.ndarray, mean: np.ndarray | None = None, step: int = 0
) -> Iterator[np.ndarray]:
    """`features[rows]`, less `mean` where given, float32 (b, d) at a time; one array, overwritten by the next block.

    A few rows at a time are widened, scaled and centred while the processor's cache holds them: every pass over the
    features pays for this again. step: rows of a block; 0: as many as `_CELLS` numbers hold.
    """
    step = step or max(1, _CELLS // features.shape[1])
    table = np.empty((min(step, len(rows)), features.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        block = table[: len(chosen)]
        for first in range(0, len(chosen), _STRIPE):
            stripe = block[first : first + _STRIPE]
            _fill(stripe, features, chosen[first : first + _STRIPE])
            if mean is not None:
                stripe -= mean
        yield block


def _fill(
    out: np.ndarray, table: np.ndarray | UnitTable | Concatenation, rows: np.ndarray, factor: float = 1.0
) -> None:
    """`factor` times these rows into `out`, float32 (m, d). torch widens float16 three times as fast as numpy."""
    if isinstance(table, Concatenation):
        stops = np.cumsum([part.shape[1] for part in table.parts])
        for part, own, stop in zip(table.parts, table.factors, stops, strict=True):
            _fill(out[:, stop - part.shape[1] : stop], part, rows, factor * own)
    elif isinstance(table, np.ndarray):
        np.multiply(table[rows], np.float32(factor), out=out, casting="same_kind")
    elif table.table.dtype != np.float16:
        np.multiply(table.rows(rows), np.float32(factor), out=out)
    else:
        stored, scale = table.stored(rows)  # no length of such a row, and no inverse of one, is too much for float32
        target = torch.from_numpy(out)
        target.copy_(torch.from_numpy(stored))
        target.mul_(torch.from_numpy((scale * factor).astype(np.float32)[:, None]))


def _mean(features: np.ndarray | Concatenation, rows: np.ndarray) -> np.ndarray:
    """Mean row, float32 (d,): float32 sums of a few rows each, added up in float64."""
    total = np.zeros(features.shape[1])
    for block in _blocks(features, rows, step=_STRIPE):
        total += block.sum(axis=0)
    return (total / len(rows)).astype(np.float32)


@dataclass(frozen=True)
class _Training:
    """The rows that whitening is fitted on. mean: float32 (d,)."""

    features: np.ndarray | Concatenation
    rows: np.ndarray
    mean: np.ndarray

    def centred(self) -> Iterator[torch.Tensor]:
        """Blocks less the mean, float32 (b, d), on the device; each may overwrite the one before."""
        for block in _blocks(self.features, self.rows, self.mean):
            yield torch.from_numpy(block).to(default_device())


# ------------------------------------------------------------------------------------------------ components


def _components_of_few_dimensions(training: _Training, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Largest variances float64 (r,), descending, directions float64 (d, r), and the variance of all, from the
    covariance.
    """
    dims = len(training.mean)
    covariance = np.zeros((dims, dims))
    for block in training.centred():
        covariance += (block.T @ block).cpu().numpy()
    covariance /= len(training.rows)
    return *_largest(covariance, most), float(np.trace(covariance))


def _components_of_few_images(training: _Training, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The same from the images' inner products: (t, t) instead of (d, d)."""
    images = len(training.rows)
    gram = np.empty((images, images))
    first = 0
    for one in training.centred():
        second = 0
        for other in training.centred():
            gram[first : first + len(one), second : second + len(other)] = (one @ other.T).cpu().numpy()
            second += len(other)
        first += len(one)
    values, vectors = _largest(gram / images, most)
    length = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny) * images)
    spread = torch.from_numpy(vectors.astype(np.float32)).to(default_device())
    directions, first = np.zeros((len(training.mean), vectors.shape[1])), 0
    for block in training.centred():  # from image space to feature space: X^T u / |X^T u|
        directions += (block.T @ spread[first : first + len(block)]).cpu().numpy()
        first += len(block)
    return values, directions / length, float(np.trace(gram)) / images


def _randomised_components(training: _Training, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The same by subspace iteration from random directions (Halko, Martinsson and Tropp 2011): n d r, not n d d.

    X^T X Q is summed block by block, so that an iteration reads the rows once and holds (d, r) alone.
    """
    dims = len(training.mean)
    wide = min(most + _OVERSAMPLE, dims, len(training.rows))
    basis = torch.randn(dims, wide, generator=torch.Generator().manual_seed(seed)).to(default_device())
    for _ in range(_ROUNDS):
        image = torch.zeros_like(basis)
        for block in training.centred():
            image.addmm_(block.T, block @ basis)
        basis = torch.linalg.qr(image).Q
    inner, total = np.zeros((wide, wide)), 0.0
    for block in training.centred():
        total += float(torch.linalg.vector_norm(block)) ** 2
        seen = block @ basis
        inner += (seen.T @ seen).cpu().numpy()
    values, vectors = _largest(inner / len(training.rows), most)
    return values, basis.cpu().numpy() @ vectors, total / len(training.rows)


def _largest(symmetric: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues float64 (r,), none below 0, descending, and their vectors (m, r)."""
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values[::-1][:most], 0.0), vectors[:, ::-1][:, :most]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows divided by their length, in place."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, length, out=features, where=length > 1e-12)
