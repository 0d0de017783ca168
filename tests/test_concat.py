"""Concatenation and whitening."""

from __future__ import annotations

import numpy as np
import pytest

from whaleid.config import ConcatConfig
from whaleid.ensemble import concat
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.errors import WhaleidError


def unit(rng, rows, dims):
    table = rng.normal(size=(rows, dims)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def spread_out(rng, rows, dims):
    """Data whose principal components have clearly different variances, correlated."""
    turn = np.linalg.qr(rng.normal(size=(dims, dims)))[0]
    return (rng.normal(size=(rows, dims)) * 0.8 ** np.arange(dims) @ turn).astype(np.float32)


def test_cosine_of_concatenation_is_weighted_mean_of_cosines():
    rng = np.random.default_rng(0)
    a, b, c = unit(rng, 6, 4), unit(rng, 6, 7), unit(rng, 6, 3)
    joined = concatenate([a, b, c], [1.0, 2.0, 0.0], [4, 7, 3])
    assert joined.dtype == np.float32 and joined.shape == (6, 11)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(joined @ joined.T, (a @ a.T + 4 * (b @ b.T)) / 5, atol=1e-6)


def test_no_weight_at_all():
    with pytest.raises(WhaleidError, match=r"concat\.weights"):
        concatenate([np.ones((2, 1))], [0.0], [1])


@pytest.mark.parametrize("rows", [200, 12])  # more and fewer images than dimensions
def test_full_whitening_gives_unit_covariance(rows):
    rng = np.random.default_rng(1)
    data = spread_out(rng, rows, 16)
    fit = fit_whitening(data, np.arange(rows), ConcatConfig(whiten=8, power=1.0))
    assert fit.projection is not None
    projected = (data - fit.mean) @ fit.projection
    np.testing.assert_allclose(np.cov(projected.T, bias=True), np.eye(8), atol=1e-3)


@pytest.mark.parametrize("rows", [200, 12])
def test_rotation_alone_is_numpy_pca(rows):
    data = spread_out(np.random.default_rng(2), rows, 16)
    fit = fit_whitening(data, np.arange(rows), ConcatConfig(whiten=5, power=0.0))
    assert fit.projection is not None
    left, singular, _ = np.linalg.svd(data - data.mean(axis=0), full_matrices=False)
    projected = (data - fit.mean) @ fit.projection
    np.testing.assert_allclose(np.abs(projected), np.abs(left * singular)[:, :5], atol=1e-3)
    assert fit.kept == pytest.approx((singular**2)[:5].sum() / (singular**2).sum(), abs=1e-4)


def test_randomised_method_finds_the_same_space(monkeypatch):
    data = spread_out(np.random.default_rng(3), 150, 60)
    exact = fit_whitening(data, np.arange(150), ConcatConfig(whiten=6, power=0.5))
    monkeypatch.setattr(concat, "_EXACT", 10)
    rough = fit_whitening(data, np.arange(150), ConcatConfig(whiten=6, power=0.5))
    a, b = whiten(data, exact), whiten(data, rough)
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-3)


def test_fit_sees_the_training_rows_alone():
    rng = np.random.default_rng(4)
    data = unit(rng, 50, 10)
    rows = np.arange(10, 50)
    one = fit_whitening(data, rows, ConcatConfig())
    data[:10] = unit(rng, 10, 10)
    other = fit_whitening(data, rows, ConcatConfig())
    assert one.projection is not None and other.projection is not None
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.projection, other.projection)


def test_directions_without_variance_are_dropped():
    rng = np.random.default_rng(5)
    flat = unit(rng, 40, 3) @ rng.normal(size=(3, 9)).astype(np.float32)
    fit = fit_whitening(flat, np.arange(40), ConcatConfig(whiten=9, power=1.0))
    assert fit.dim == 3 and np.isfinite(whiten(flat, fit)).all()


def test_no_whitening_keeps_the_features():
    data = unit(np.random.default_rng(6), 5, 4)
    fit = fit_whitening(data, np.arange(5), ConcatConfig(whiten=None))
    np.testing.assert_allclose(whiten(data, fit), data, atol=1e-6)


def test_equal_features_are_refused():
    with pytest.raises(WhaleidError, match="same features"):
        fit_whitening(np.ones((5, 3), np.float32), np.arange(5), ConcatConfig())
