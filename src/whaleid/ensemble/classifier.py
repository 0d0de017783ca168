"""Softmax classifier on the concatenated features: it learns weights where kNN weights all dimensions alike.

A linear layer on unit features with unit class vectors (a cosine softmax: Wang et al., "NormFace", 2017), started at
the class centroids, so that it begins as good as the nearest centroid. Label smoothing and mixup of features (Zhang et
al., "mixup", 2018; manifold mixup, Verma et al. 2019) keep it from memorising identities of one image: the training
images' features come from networks that were trained on these images, so they are tidier than any query's.

The number of epochs is fixed beforehand, because early stopping on the fold that is scored would make its score
optimistic. Time is linear in images. Features are read in mini-batches; held are classes x dimensions and `_CELLS`
logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from whaleid.config import ClassifierConfig
from whaleid.utils.device import default_device

_BATCH = 256  # rows; larger batches would make too few steps on a few thousand images
_WEIGHT_DECAY = 1e-2  # AdamW's default; class vectors are normalised, so it only keeps their lengths from growing
_SMOOTHING = 0.1  # the usual value (Szegedy et al., 2016); labels of identities with one image are easily memorised
_SCALE = 20.0  # from cosines to logits: 1 against 0 is then nearly certain even among thousands of classes
_MIXUP = 0.2  # of the beta distribution, in the paper's range for ImageNet; most mixtures stay close to one image
_WARMUP = 0.05  # share of the steps spent raising the learning rate
_CELLS = 1 << 24  # logits at a time: 64 MB
_BLOCK = 4096  # rows summed at a time for the centroids


@dataclass(frozen=True)
class Classifier:
    """Class vectors of several trainings: probability = mean over them of softmax(scale x cosine).

    Attributes
    ----------
    codes : int64 array, shape (c,)
        Identity of each class.
    vectors : float32 array, shape (seeds, c, d)
        Unit rows.
    scale : float
        Above 0.
    """

    codes: np.ndarray
    vectors: np.ndarray
    scale: float = _SCALE


def train_classifier(features: np.ndarray, codes: np.ndarray, config: ClassifierConfig, seed: int = 0) -> Classifier:
    """Train `config.seeds` classifiers on the same images; same arguments, same result on the same machine.

    Parameters
    ----------
    features : float array, shape (n, d)
        Unit rows; may be memory-mapped, only mini-batches are copied.
    codes : int64 array, shape (n,)
        Identities, >= 0.
    config : ClassifierConfig
    seed : int
    """
    classes, labels = np.unique(codes, return_inverse=True)
    start = _centroids(features, labels, len(classes))
    trained = [_train_once(features, labels, start, config, seed * 1000 + number) for number in range(config.seeds)]
    return Classifier(classes.astype(np.int64), torch.stack(trained).cpu().numpy())


def top_classes(
    classifier: Classifier, features: np.ndarray, keep: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` most probable identities of each query.

    Parameters
    ----------
    classifier : Classifier
    features : float array, shape (q, d)
        Unit rows.
    keep : int
    allowed : int64 array, optional
        Codes that may be named; None: all.

    Returns
    -------
    int64 and float32 arrays, shape (q, keep)
        Codes, -1 padded where there are fewer classes, and probabilities, descending, -inf padded.
    """
    device = default_device()
    used = slice(None) if allowed is None else np.isin(classifier.codes, allowed)
    networks = [torch.from_numpy(vectors[used]).to(device) for vectors in classifier.vectors]
    classes = classifier.codes[used]
    most = min(keep, len(classes))
    codes = np.full((len(features), keep), -1, dtype=np.int64)
    scores = np.full((len(features), keep), -np.inf, dtype=np.float32)
    step = max(1, _CELLS // max(1, len(classes)))
    for start in range(0, len(features), step):
        chunk = _batch(features, np.arange(start, min(start + step, len(features))))
        probability = torch.zeros(len(chunk), len(classes), device=device)
        for vectors in networks:
            probability += functional.softmax(classifier.scale * (chunk @ vectors.T), dim=1)
        best, place = (probability / len(networks)).topk(most, dim=1)
        codes[start : start + step, :most] = classes[place.cpu().numpy()]
        scores[start : start + step, :most] = best.cpu().numpy()
    return codes, scores


def _batch(features: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """`features[rows]` as float32 (m, d) on the device; a copy, so that a read-only file may stand behind."""
    return torch.from_numpy(np.ascontiguousarray(features[rows], dtype=np.float32)).to(default_device())


def _centroids(features: np.ndarray, labels: np.ndarray, classes: int) -> torch.Tensor:
    """Mean direction of each class, float32 (c, d); summed in sorted segments, a block at a time."""
    order = np.argsort(labels, kind="stable")
    sums = np.zeros((classes, features.shape[1]), dtype=np.float32)
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        present, first = np.unique(labels[rows], return_index=True)
        sums[present] += np.add.reduceat(features[rows].astype(np.float32, copy=False), first, axis=0)
    return functional.normalize(torch.from_numpy(sums).to(default_device()))


def _train_once(
    features: np.ndarray, labels: np.ndarray, start: torch.Tensor, config: ClassifierConfig, seed: int
) -> torch.Tensor:
    """One training from the centroids; returns unit class vectors float32 (c, d)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = np.random.default_rng(seed)
    target = torch.from_numpy(labels.astype(np.int64)).to(start.device)
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=config.lr, weight_decay=_WEIGHT_DECAY)
    batches = math.ceil(len(features) / _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(config.epochs * batches))
    for _ in range(config.epochs):
        order = torch.randperm(len(features), generator=generator)
        for batch in order.tensor_split(batches):
            data = _batch(features, batch.numpy())
            loss = _loss(vectors, data, target[batch.to(target.device)], mixing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return functional.normalize(vectors.detach())


def _loss(
    vectors: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, mixing: np.random.Generator
) -> torch.Tensor:
    """Cross entropy of one batch, each image mixed with the one before it in the (shuffled) batch."""
    share = float(mixing.beta(_MIXUP, _MIXUP))
    mixed = functional.normalize(share * features + (1 - share) * features.roll(1, 0))
    logits = _SCALE * (mixed @ functional.normalize(vectors).T)
    first = functional.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)
    second = functional.cross_entropy(logits, labels.roll(1, 0), label_smoothing=_SMOOTHING)
    return share * first + (1 - share) * second


def _cosine(steps: int):
    """Factor of the learning rate at each step: a short rise, then half a cosine down to 0."""
    warmup = max(1, int(_WARMUP * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
