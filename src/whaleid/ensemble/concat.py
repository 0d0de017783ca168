"""Features of several networks side by side, then whitened by PCA.

Within one fold every network sees the same images, so their unit embeddings can stand side by side: the
cosine of two such rows is the weighted mean of the networks' cosines. Networks repeat one another; principal
components say the common part once, and dividing by (a power of) their spread lets weak but independent
directions count (Jegou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
PCA and whitening", ECCV 2012). Mean and directions come from the training part of the fold alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from whaleid.config import ConcatConfig
from whaleid.errors import WhaleidError

_EXACT = 3072  # images or dimensions up to which all components are computed; above, only those wanted
_OVERSAMPLE = 32  # components more than wanted that the randomised method carries along
_ROUNDS = 4  # its power iterations: enough for the slowly falling spectra of embeddings (Halko et al. 2011)
_TINY = 1e-7  # share of the first component's variance below which a component is rounding error
_CHUNK = 8192  # rows projected at a time


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


def concatenate(parts: Iterable[np.ndarray], weights: Iterable[float], dims: Iterable[int]) -> np.ndarray:
    """Weighted unit embeddings side by side; each part is read, copied and let go before the next.

    parts: float (n, d_s) each, unit rows. weights: >= 0, one a part. dims: d_s of each part.
    Returns float32 (n, sum of d_s of the parts whose weight is above 0), rows of length 1.
    """
    used = [(weight, dim) for weight, dim in zip(weights, dims, strict=True)]
    length = float(np.sqrt(sum(weight**2 for weight, _ in used)))
    if length == 0.0:
        raise WhaleidError("combine.concat.weights: every source has weight 0; give one of them a weight above 0")
    joined: np.ndarray | None = None
    start = 0
    for (weight, dim), part in zip(used, parts, strict=True):
        if weight == 0.0:
            continue
        if joined is None:
            joined = np.empty((len(part), sum(dim for weight, dim in used if weight > 0)), dtype=np.float32)
        np.multiply(part, weight / length, out=joined[:, start : start + dim], casting="same_kind")
        start += dim
    assert joined is not None
    return joined


def fit_whitening(features: np.ndarray, rows: np.ndarray, config: ConcatConfig, seed: int = 0) -> Whitening:
    """Mean and principal directions of `features[rows]`, and of nothing else.

    features: float32 (n, d). rows: int64 (t,), t >= 2. seed: of the randomised method, used for large data.
    Keeps min(config.whiten, d, t - 1) directions, less those without variance.
    """
    if config.whiten is None:
        return Whitening(np.zeros(features.shape[1], np.float32), None, 1.0)
    most = min(config.whiten, features.shape[1], len(rows) - 1)
    if most < 1:
        raise WhaleidError(f"whitening: {len(rows)} training images; at least 2 are needed")
    training = features[rows]
    mean = training.mean(axis=0, dtype=np.float64).astype(np.float32)
    training -= mean
    total = float(np.einsum("ij,ij->", training, training, dtype=np.float64)) / len(rows)
    if min(training.shape) <= _EXACT:
        variance, directions = _exact_components(training, most)
    else:
        variance, directions = _randomised_components(training, most, seed)
    real = variance > _TINY * max(variance[0], 1e-30)
    if not real.any() or variance[0] <= 0:
        raise WhaleidError("whitening: all training images have the same features; embed them again")
    variance, directions = variance[real], directions[:, real]
    projection = (directions * variance ** (-config.power / 2)).astype(np.float32)
    return Whitening(mean, projection, min(float(variance.sum()) / total, 1.0))


def whiten(features: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Project, then L2-normalise. features: float32 (n, d) -> float32 (n, whitening.dim), unit rows.

    A row that lies exactly at the mean has no direction and stays zero: as similar to all as chance.
    """
    if whitening.projection is None:
        return _unit(features.astype(np.float32, copy=True))
    device = _device()
    mean, projection = (torch.from_numpy(part).to(device) for part in (whitening.mean, whitening.projection))
    out = np.empty((len(features), whitening.dim), dtype=np.float32)
    for start in range(0, len(features), _CHUNK):
        chunk = torch.from_numpy(np.ascontiguousarray(features[start : start + _CHUNK])).to(device)
        out[start : start + _CHUNK] = ((chunk - mean) @ projection).cpu().numpy()
    return _unit(out)


def _exact_components(centred: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest variances float64 (r,), descending, and directions float64 (d, r), from the smaller Gram
    matrix.
    """
    images, dims = centred.shape
    wide = dims > images
    gram = (centred @ centred.T if wide else centred.T @ centred).astype(np.float64) / images
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
    if wide:  # from image space to feature space: X^T u / |X^T u|
        length = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny) * images)
        vectors = (centred.T @ vectors.astype(np.float32)).astype(np.float64) / length
    return np.maximum(values, 0.0), vectors


def _randomised_components(centred: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_exact_components`, by random projection (Halko, Martinsson and Tropp 2011): n d r instead of n d
    d.
    """
    data = torch.from_numpy(centred).to(_device())
    wide = min(most + _OVERSAMPLE, *centred.shape)
    start = torch.randn(centred.shape[1], wide, generator=torch.Generator().manual_seed(seed)).to(data.device)
    basis = torch.linalg.qr(data @ start).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(data @ torch.linalg.qr(data.T @ basis).Q).Q
    _, singular, directions = torch.linalg.svd(basis.T @ data, full_matrices=False)
    variance = (singular.double() ** 2 / len(centred))[:most]
    return variance.cpu().numpy(), directions[:most].T.double().cpu().numpy()


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows divided by their length, in place."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, length, out=features, where=length > 1e-12)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
