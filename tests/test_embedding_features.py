"""What embeddings say of candidates, against loops over images; and how it reaches the stack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ladder_world import make_world, recipe, write_sources

from whaleid.config import KnnConfig
from whaleid.ensemble.embedding_features import COLUMNS, EmbeddingTable, embedding_table
from whaleid.ensemble.ladder import evaluate_ladder, rank_all
from whaleid.ensemble.protocol import QuerySet, read_protocol
from whaleid.ensemble.stack import split_identities

STACK = {"num_iterations": 10, "seeds": 1, "min_data_in_leaf": 20, "first": 8, "candidates": 15}


def unit(rng: np.random.Generator, rows: int, width: int = 6) -> np.ndarray:
    table = rng.normal(size=(rows, width)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def table_of(queries: np.ndarray, gallery: np.ndarray, codes: np.ndarray, classes: int) -> EmbeddingTable:
    """Of queries and a gallery that stand one below the other."""
    rows = np.arange(len(queries) + len(gallery))
    own, other = rows[: len(queries)], rows[len(queries) :]
    query_set = QuerySet(own, own.astype(str), other, codes, other)
    return embedding_table(np.concatenate([queries, gallery]), query_set, classes, KnnConfig())


def test_columns_equal_a_loop():
    rng = np.random.default_rng(0)
    queries, gallery, codes = unit(rng, 9), unit(rng, 40), rng.integers(0, 7, 40)
    codes[codes == 5] = 4  # identity 5 has no image
    asked = np.stack([rng.permutation(7)[:5] for _ in range(4)])
    asked[1, 3:] = -1
    out = table_of(queries, gallery, codes, 7).columns(slice(2, 6), asked)
    assert out.shape == (4, 5, len(COLUMNS)) and out.dtype == np.float32
    for row in range(4):
        query = queries[2 + row]
        for place, code in enumerate(asked[row]):
            own = gallery[codes == code]
            if code < 0 or not len(own):
                assert np.isnan(out[row, place, :4]).all()
                continue
            middle = own.sum(axis=0) / np.linalg.norm(own.sum(axis=0))
            spread = np.mean([image @ middle for image in own])
            assert out[row, place, 0] == pytest.approx(query @ middle, abs=2e-3)
            assert out[row, place, 2] == pytest.approx(spread, abs=2e-3)
            assert out[row, place, 3] == pytest.approx(query @ middle - spread, abs=4e-3)
        assert np.nanmax(out[row, :, 1]) == 0
        near = np.sort(gallery @ query)[::-1][:10]
        np.testing.assert_allclose(out[row, :, 4], near[0], atol=1e-5)
        np.testing.assert_allclose(out[row, :, 5], near.mean(), atol=1e-5)


def test_a_small_gallery_and_zero_rows():
    queries = np.zeros((2, 3), dtype=np.float32)
    table = table_of(queries, np.array([[1, 0, 0], [-1, 0, 0]], dtype=np.float32), np.array([0, 0]), 2)
    out = table.columns(slice(0, 2), np.array([[0, 1], [0, -1]]))
    assert out[0, 0, 0] == 0 and out[0, 0, 2] == 0  # images that cancel have no direction, and lie as by chance
    assert np.isnan(out[0, 1, :4]).all() and (out[:, :, 4:] == 0).all()


def test_only_the_folds_gallery_is_seen(tmp_path):
    """Features of the fold's own queries change no other query's columns; a candidate's come from other folds."""
    world = make_world(seed=1)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    part = protocol.parts[1]
    table = world.latent.astype(np.float32) / np.linalg.norm(world.latent, axis=1, keepdims=True).astype(np.float32)
    changed = table.copy()
    changed[part.rows[0]] = -changed[part.rows[0]]
    oof, test = protocol.queries(part)
    assert oof is not None and test is not None
    classes = len(protocol.classes)
    one, other = (embedding_table(given, oof, classes, KnnConfig()) for given in (table, changed))
    assert len(embedding_table(table, test, classes, KnnConfig()).queries) == len(protocol.test_rows)
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.spread, other.spread)
    np.testing.assert_array_equal(one.density[1:], other.density[1:])
    assert one.density[0] != other.density[0]
    alone = np.bincount(part.gallery_codes, minlength=len(protocol.classes)) == 0
    np.testing.assert_array_equal(np.isnan(one.spread), alone)


def test_the_stack_uses_them_without_a_leak(tmp_path, monkeypatch):
    world = make_world(seed=1)
    sources = write_sources(world, tmp_path, count=2)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    config = recipe(stack=STACK).combine
    rankings = rank_all(sources, world.images, protocol, config, 0)
    result = evaluate_ladder(protocol, rankings, config)
    importance = result.as_json()["stack"]["importance"]
    assert set(COLUMNS) <= set(importance) and sum(importance[name] for name in COLUMNS) > 0
    off = recipe().combine
    assert all(one.embedding_features is None for one in rank_all(sources, world.images, protocol, off, 0))
    part, groups = protocol.parts[1], split_identities(protocol, 3)
    monkeypatch.setattr("whaleid.ensemble.stack.split_identities", lambda *_: groups)
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    permuted = evaluate_ladder(replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2])), rankings, config)
    np.testing.assert_array_equal(result.final.oof[1].codes, permuted.final.oof[1].codes)
