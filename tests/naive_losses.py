"""What losses should say, as loops over images that follow the papers; batches to try them on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whaleid.config import MetricHead

DIM = 8
SIZES = [4, 3, 9, 2, 6, 1, 1, 5]
Rows = np.ndarray
Reference = Callable[[Rows, list[int]], float]


def metric(loss: str, /, **arguments: object) -> MetricHead:
    return MetricHead(name="metric", loss=loss, arguments=arguments)


def batch(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings float32 (count, DIM) of many lengths in loose heaps; classes of very unequal size, some of one."""
    rng = np.random.default_rng([seed, count])
    labels = rng.choice(6, count, p=[0.3, 0.25, 0.2, 0.15, 0.05, 0.05])
    labels[-2:] = [6, 7]  # two images that are each alone
    heaps = rng.normal(size=(8, DIM))[labels]
    rows = (heaps + 1.5 * rng.normal(size=(count, DIM))) * rng.uniform(0.5, 5, (count, 1))
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(labels)


def unit(embeddings: Tensor) -> Rows:
    return functional.normalize(embeddings.double(), dim=1).numpy()


def apart(rows: Rows, i: int, j: int) -> float:
    return math.sqrt(((rows[i] - rows[j]) ** 2).sum())


def others(labels: list[int], a: int) -> tuple[list[int], list[int]]:
    """Positives and negatives of image a."""
    same = [i for i in range(len(labels)) if labels[i] == labels[a] and i != a]
    return same, [i for i in range(len(labels)) if labels[i] != labels[a]]


def mean_of_positive(values: list[float]) -> float:
    """The library's default for hinges: the mean over those that are not zero."""
    above = [value for value in values if value > 0]
    return float(np.mean(above)) if above else 0.0


def contrastive(rows: Rows, labels: list[int]) -> float:
    """Hadsell et al. (2006), without the square; margin 1.1."""
    together, separate = [], []
    for a in range(len(rows)):
        same, different = others(labels, a)
        together += [apart(rows, a, p) for p in same]
        separate += [max(0.0, 1.1 - apart(rows, a, n)) for n in different]
    return mean_of_positive(together) + mean_of_positive(separate)


def triplet(rows: Rows, labels: list[int]) -> float:
    """Schroff et al. (2015), on distances; margin 0.2."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        values += [max(0.0, apart(rows, a, p) - apart(rows, a, n) + 0.2) for p in same for n in different]
    return mean_of_positive(values)


BOUNDARIES = [0.9, 1.0, 1.1, 1.2, 1.3, 0.8, 1.05, 0.95]


def margin(rows: Rows, labels: list[int]) -> float:
    """Wu et al. (2017): a boundary for each class of anchor; margin 0.2, nu 0.1."""
    total, counted = 0.0, 0
    for a in range(len(rows)):
        same, different = others(labels, a)
        boundary = BOUNDARIES[labels[a]]
        for p in same:
            for n in different:
                costs = [max(0.0, 0.2 + apart(rows, a, p) - boundary), max(0.0, 0.2 + boundary - apart(rows, a, n))]
                total += sum(costs) + 0.1 * boundary
                counted += sum(cost > 0 for cost in costs)
    return total / counted


def lifted_structure(rows: Rows, labels: list[int]) -> float:
    """Oh Song et al. (2016), equation 4, over ordered pairs; margin 1."""
    values = []
    for i in range(len(rows)):
        for j in others(labels, i)[0]:
            far = sum(math.exp(1 - apart(rows, a, n)) for a in (i, j) for n in others(labels, a)[1])
            values.append(max(0.0, math.log(far) + apart(rows, i, j)) ** 2 / 2)
    return float(np.mean(values))


def multi_similarity(rows: Rows, labels: list[int]) -> float:
    """Wang et al. (2019), equation 16; alpha 2, beta 50, base 0.5."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        near = sum(math.exp(-2 * (rows[a] @ rows[p] - 0.5)) for p in same)
        far = sum(math.exp(50 * (rows[a] @ rows[n] - 0.5)) for n in different)
        values.append(math.log1p(near) / 2 + math.log1p(far) / 50)
    return float(np.mean(values))


def histogram(rows: Rows, labels: list[int]) -> float:
    """Ustinova and Lempitsky (2016); 20 bins."""
    centers = np.linspace(-1, 1, 21)
    density = {True: np.zeros(21), False: np.zeros(21)}
    for i in range(len(rows)):
        for j in range(i):
            density[labels[i] == labels[j]] += np.maximum(0, 1 - np.abs(rows[i] @ rows[j] - centers) / 0.1)
    positive, negative = (density[kind] / density[kind].sum() for kind in (True, False))
    return float(sum(negative[r] * positive[: r + 1].sum() for r in range(21)))


def fast_ap(rows: Rows, labels: list[int]) -> float:
    """Cakir et al. (2019): squared distances in 0..4; 10 bins."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        hits, seen, precision = 0.0, 0.0, 0.0
        for edge in np.linspace(0, 4, 11):
            share = {i: max(0.0, 1 - abs(apart(rows, a, i) ** 2 - edge) / 0.4) for i in same + different}
            here = sum(share[i] for i in same)
            hits, seen = hits + here, seen + sum(share.values())
            precision += here * hits / seen if seen > 0 else 0.0
        values += [1 - precision / len(same)] if same else []
    return float(np.mean(values))


def smooth_ap(rows: Rows, labels: list[int]) -> float:
    """Brown et al. (2020); temperature 0.1, the query among its positives."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        if not same:
            continue
        precision = 0.0
        for i in [a, *same]:
            before = {
                j: 1 / (1 + math.exp(-(rows[a] @ rows[j] - rows[a] @ rows[i]) / 0.1))
                for j in [a, *same, *different]
                if j != i
            }
            precision += (1 + sum(before[j] for j in [a, *same] if j != i)) / (1 + sum(before.values()))
        values.append(1 - precision / (1 + len(same)))
    return float(np.mean(values))


def quantized_ap(rows: Rows, labels: list[int]) -> float:
    """Revaud et al. (2019), equations 4 to 7; 20 bins from 1 down to -1."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        hits, seen, average = 0.0, 0.0, 0.0
        for m in range(20):
            center = 1 - m * 2 / 19
            share = {i: max(0.0, 1 - abs(rows[a] @ rows[i] - center) / (2 / 19)) for i in same + different}
            here = sum(share[i] for i in same)
            hits, seen = hits + here, seen + sum(share.values())
            average += (hits / seen if seen > 0 else 0.0) * (here / len(same) if same else 0.0)
        values += [1 - average] if same else []
    return float(np.mean(values))


def supervised_contrastive(rows: Rows, labels: list[int]) -> float:
    """Khosla et al. (2020), L_out; temperature 0.2."""
    values = []
    for a in range(len(rows)):
        same, different = others(labels, a)
        total = math.log(sum(math.exp(rows[a] @ rows[i] / 0.2) for i in same + different))
        values += [-float(np.mean([rows[a] @ rows[p] / 0.2 - total for p in same]))] if same else []
    return float(np.mean(values))


def log_ratio(rows: Rows, labels: list[int]) -> float:
    """Kim et al. (2019), equation 4, where labels are identities."""
    return log_ratio_of(rows, lambda a, i: 0.01 if labels[a] == labels[i] else 1.0)


def log_ratio_of(rows: Rows, label_distance: Callable[[int, int], float]) -> float:
    values = []
    for a in range(len(rows)):
        mates = [i for i in range(len(rows)) if i != a]
        for i in mates:
            for j in [j for j in mates if j != i]:
                ratio = math.log((apart(rows, a, i) ** 2 + 1e-6) / (apart(rows, a, j) ** 2 + 1e-6))
                values.append((ratio - math.log(label_distance(a, i) / label_distance(a, j))) ** 2)
    return float(np.mean(values))
