"""The softmax classifier on features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whaleid.config import ClassifierConfig
from whaleid.ensemble import classifier
from whaleid.ensemble.classifier import Classifier, top_classes, train_classifier

CONFIG = ClassifierConfig(epochs=10, seeds=2)


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_BATCH", 64)


def clusters(seed=0, classes=12, each=8, dims=16, useless=16, noise=0.4):
    """Unit features whose first dimensions tell the class and whose others only disturb."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(classes, dims))
    codes = np.repeat(np.arange(classes), each) * 3  # codes with gaps: not every identity is in a fold
    useful = centre[codes // 3] + noise * rng.normal(size=(len(codes), dims))
    x = np.concatenate([useful, 2 * rng.normal(size=(len(codes), useless))], axis=1)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), codes.astype(np.int64)


def test_learns_more_than_its_start():
    x, codes = clusters(0)
    queries, truth = clusters(1)
    trained = train_classifier(x, codes, CONFIG.model_copy(update={"epochs": 60}))
    centroid = np.stack([x[codes == code].mean(axis=0) for code in np.unique(codes)])
    centroid /= np.linalg.norm(centroid, axis=1, keepdims=True)
    start = np.unique(codes)[(queries @ centroid.T).argmax(axis=1)]
    found, _ = top_classes(trained, queries, 1)
    assert (found[:, 0] == truth).mean() > (start == truth).mean() + 0.02


def test_probabilities_equal_numpy():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 5, 4)).astype(np.float32)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    codes, scores = top_classes(Classifier(np.array([1, 3, 5, 7, 9]), vectors, 2.0), x, 8)
    logits = 2.0 * np.einsum("qd,scd->sqc", x, vectors)
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    expected = -np.sort(-p.mean(axis=0), axis=1)
    np.testing.assert_allclose(scores[:, :5], expected, atol=1e-6)
    assert (codes[:, 5:] == -1).all() and np.isneginf(scores[:, 5:]).all()
    assert (codes[:, 0] == np.array([1, 3, 5, 7, 9])[p.mean(axis=0).argmax(axis=1)]).all()


def test_same_seed_same_result():
    x, codes = clusters()
    one, other = train_classifier(x, codes, CONFIG, 3), train_classifier(x, codes, CONFIG, 3)
    torch.rand(5)  # the global generator has no say
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert not np.array_equal(one.vectors, train_classifier(x, codes, CONFIG, 4).vectors)
    assert not np.array_equal(one.vectors[0], one.vectors[1])


def test_one_image_and_no_queries():
    trained = train_classifier(np.eye(3, dtype=np.float32)[:1], np.array([4]), CONFIG)
    codes, scores = top_classes(trained, np.eye(3, dtype=np.float32), 2)
    assert codes.tolist() == [[4, -1]] * 3 and scores[0, 0] == 1.0
    assert top_classes(trained, np.empty((0, 3), np.float32), 2)[0].shape == (0, 2)


def test_a_memory_mapped_half_file_trains_as_the_array(tmp_path):
    x, codes = clusters()
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one = train_classifier(mapped, codes, CONFIG)
    other = train_classifier(x.astype(np.float16).astype(np.float32), codes, CONFIG)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(top_classes(one, mapped, 3)[0], top_classes(other, x.astype(np.float16), 3)[0])


def test_chunks_change_nothing(monkeypatch):
    x, codes = clusters()
    trained = train_classifier(x, codes, CONFIG)
    whole = top_classes(trained, x, 5)
    start = classifier._centroids(x, codes // 3, 12).cpu().numpy()
    monkeypatch.setattr(classifier, "_CELLS", 12 * 7)
    monkeypatch.setattr(classifier, "_BLOCK", 5)
    np.testing.assert_array_equal(top_classes(trained, x, 5)[0], whole[0])
    np.testing.assert_allclose(classifier._centroids(x, codes // 3, 12).cpu().numpy(), start, atol=1e-6)
    naive = np.stack([x[codes == code].mean(axis=0) for code in np.unique(codes)])
    np.testing.assert_allclose(start, naive / np.linalg.norm(naive, axis=1, keepdims=True), atol=1e-5)
