"""Concatenation and whitening."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whaleid.config import ConcatConfig
from whaleid.ensemble import concat
from whaleid.ensemble.concat import concatenate, fit_whitening, whiten
from whaleid.features.files import open_embeddings, read_features
from whaleid.utils.errors import WhaleidError


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
    view = concatenate([a, b, c], [1.0, 2.0, 0.0])
    joined = view.rows(np.arange(6))
    assert view.shape == joined.shape
    assert joined.dtype == np.float32 and joined.shape == (6, 11)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(joined @ joined.T, (a @ a.T + 4 * (b @ b.T)) / 5, atol=1e-6)


def test_no_weight_at_all():
    with pytest.raises(WhaleidError, match=r"concat\.weights"):
        concatenate([np.ones((2, 1))], [0.0])


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


# ------------------------------------------------------------------------------------------- rows from files


def folder_of(path, table, order=None):
    """A folder of features of the images 0..n-1, their rows in any order."""
    path.mkdir()
    order = np.arange(len(table)) if order is None else order
    np.save(path / "embeddings.npy", table[order])
    pd.DataFrame({"image": [f"{number}.jpg" for number in order]}).to_csv(path / "rows.csv", index=False)
    return path


def images_of(rows):
    return pd.DataFrame({"image": [f"{number}.jpg" for number in range(rows)]})


def naive_whitening(parts, weights, rows, config):
    """Everything whole and in float64: normalise, weigh, join, SVD of the centred training rows."""
    parts = [part.astype(np.float64) for part in parts]
    joined = np.hstack([w * p / np.linalg.norm(p, axis=1, keepdims=True) for p, w in zip(parts, weights, strict=True)])
    joined /= np.linalg.norm(weights)
    mean = joined[rows].mean(axis=0)
    _, singular, directions = np.linalg.svd(joined[rows] - mean, full_matrices=False)
    most = min(config.whiten, len(rows) - 1, joined.shape[1])
    spread = (singular[:most] ** 2 / len(rows)) ** (config.power / 2)
    out = (joined - mean) @ directions[:most].T / spread
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(8, 40),
    dims=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    cells=st.integers(1, 200),
    stripe=st.integers(1, 9),
)
def test_blocks_from_files_equal_the_whole_in_memory(tmp_path_factory, seed, rows, dims, kind, cells, stripe):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("features")
    tables = [rng.normal(size=(rows, dim)).astype(kind) for dim in dims]
    weights = rng.uniform(0.5, 2, len(dims)).tolist()
    parts = [
        open_embeddings(folder_of(folder / f"{place}", table, rng.permutation(rows)), images_of(rows))
        for place, table in enumerate(tables)
    ]
    training = rng.permutation(rows)[: rows // 2 + 2]
    config = ConcatConfig(whiten=4, power=0.25)
    joined = concatenate(parts, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concat, "_CELLS", cells)
        patch.setattr(concat, "_STRIPE", stripe)
        got = whiten(joined, fit_whitening(joined, training, config))
    expected = naive_whitening(tables, weights, training, config)
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=2e-3)


def test_randomised_method_in_blocks(monkeypatch):
    data = spread_out(np.random.default_rng(7), 150, 60)
    monkeypatch.setattr(concat, "_EXACT", 10)
    whole = fit_whitening(data, np.arange(150), ConcatConfig(whiten=6))
    monkeypatch.setattr(concat, "_CELLS", 7 * 60)
    blocks = fit_whitening(data, np.arange(150), ConcatConfig(whiten=6))
    a, b = whiten(data, whole), whiten(data, blocks)
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-4)
    assert whole.kept == pytest.approx(blocks.kept, abs=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_open_table_gives_what_read_features_gives(tmp_path, kind):
    rng = np.random.default_rng(8)
    folder = folder_of(tmp_path / "a", rng.normal(size=(20, 5)).astype(kind), rng.permutation(20))
    opened = open_embeddings(folder, images_of(20))
    selection = rng.integers(0, 20, 30)
    assert isinstance(opened.table, np.memmap) and opened.shape == (20, 5)
    expected = read_features(folder, images_of(20)).embeddings[selection]
    np.testing.assert_allclose(opened.rows(selection), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rows_of_a_view_of_files_are_the_unit_rows_times_their_factor(tmp_path, monkeypatch, kind):
    """The quick way for float16 too: the longest rows it can hold, and the shortest."""
    rng = np.random.default_rng(9)
    tables = [rng.normal(size=(20, 5)) * 10.0 ** rng.integers(-4, 4, (20, 1)) for _ in range(2)]
    tables[0][3], tables[1][4] = 65_504, [6e-8, 0, 0, 0, 0]
    stored = [table.astype(kind) for table in tables]
    orders = [rng.permutation(20) for _ in stored]
    folders = [
        folder_of(tmp_path / f"{place}", table, order)
        for place, (table, order) in enumerate(zip(stored, orders, strict=True))
    ]
    monkeypatch.setattr(concat, "_STRIPE", 7)
    view = concatenate([open_embeddings(folder, images_of(20)) for folder in folders], [3.0, 4.0])
    selection = rng.integers(0, 20, 30)
    unit = [table.astype(np.float64) for table in stored]
    unit = [table / np.linalg.norm(table, axis=1, keepdims=True) for table in unit]
    expected = np.hstack([0.6 * unit[0], 0.8 * unit[1]])[selection]
    got = view.rows(selection)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "'7.jpg' holds NaN"), (0.0, "'7.jpg' is all zeros")])
def test_a_bad_row_is_named_when_opened(tmp_path, value, message):
    table = np.ones((9, 3), np.float16)
    table[7] = value
    with pytest.raises(WhaleidError, match=message):
        open_embeddings(folder_of(tmp_path / "a", table, np.arange(9)[::-1]), images_of(9))


def test_different_rows_are_refused(tmp_path):
    with pytest.raises(WhaleidError, match="2 of 9 images are missing"):
        open_embeddings(folder_of(tmp_path / "a", np.ones((7, 3), np.float16)), images_of(9))
    with pytest.raises(WhaleidError, match=r"sources of \[7, 9\] rows"):
        concatenate([np.ones((7, 3)), np.ones((9, 3))], [1.0, 1.0])


def test_a_row_at_the_mean_stays_zero():
    data = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]], np.float32)
    out = whiten(data, fit_whitening(data, np.arange(4), ConcatConfig(power=1.0)))
    np.testing.assert_array_equal(out[4], 0)
    np.testing.assert_allclose(np.linalg.norm(out[:4], axis=1), 1, atol=1e-6)


def test_too_much_without_whitening(monkeypatch):
    monkeypatch.setattr(concat, "_WHOLE", 10)
    data = np.ones((5, 3), np.float32)
    with pytest.raises(WhaleidError, match=r"concat\.whiten: null keeps 5 images x 3"):
        whiten(data, fit_whitening(data, np.arange(5), ConcatConfig(whiten=None)))
