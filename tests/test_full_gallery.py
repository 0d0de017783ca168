"""The score with the full gallery: nearer to a test set's than the score out of fold, and silent where not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_world import make_gallery_world, result_of, solution_map
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import make_world, recipe, write_sources
from scipy.special import expit, logit

from whaleid.ensemble.full_gallery import FARTHEST, GallerySizes, estimate, gallery_sizes, halved
from whaleid.ensemble.ladder import combine, rank_all
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.summary import full_gallery_line, ladder_lines
from whaleid.evaluation.metrics import reciprocal_rank_at_k


@pytest.mark.parametrize(
    ("unknown", "pictures", "folds", "seeds"), [(False, 4, 3, (0, 1)), (False, 8, 2, (0, 1)), (True, 4, 3, (1,))]
)
def test_it_is_nearer_to_the_test_sets_score(tmp_path, unknown, pictures, folds, seeds):
    """A few sets; docs/trust.md has the means of ten."""
    own, full = [], []
    for seed in seeds:
        world = make_gallery_world(pictures, folds, seed, unknown)
        rung = result_of(world, tmp_path / str(seed)).rung("concat kNN")
        score = solution_map(world, rung)
        own.append(rung.score.map - score)
        full.append(rung.full_gallery.map - score)
        assert rung.full_gallery.low - 0.02 < score < rung.full_gallery.high + 0.02  # the test set has luck too
    assert np.mean(own) < -0.02 and abs(np.mean(full)) < 0.7 * abs(np.mean(own)), (own, full)


def test_identities_of_two_pictures_have_no_estimate(tmp_path):
    """One picture is left out of fold, which cannot be halved."""
    result = result_of(make_gallery_world(2, 3, 0, tests=50, identities=20), tmp_path)
    assert result.gallery is None and {rung.full_gallery for rung in result.rungs} == {None}
    figures = {"ladder": result.as_json()}
    assert not any("full gallery" in line for line in ladder_lines(figures))
    assert full_gallery_line(figures["ladder"]) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("whole")
    world = make_world(identities=20, seed=3)
    sources = write_sources(world, folder, count=2)
    return world, sources, recipe(classifier={"epochs": 2, "seeds": 1}, full_gallery=True)


def test_no_answer_depends_on_it_and_every_ranker_of_galleries_has_it(whole, tmp_path):
    world, sources, asked = whole
    off = asked.model_copy(update={"combine": asked.combine.model_copy(update={"full_gallery": False})})
    with_it, without = (
        combine(world.images, world.folds, sources, one, world.competition, tmp_path) for one in (asked, off)
    )
    assert without.gallery is None
    bare = tuple(replace(rung, full_gallery=None) for rung in with_it.rungs)
    plain = replace(with_it, rungs=bare, gallery=None)
    assert plain.as_json() == without.as_json()
    np.testing.assert_array_equal(with_it.test_guesses, without.test_guesses)
    given = {rung.kind: rung.full_gallery is not None for rung in with_it.rungs}
    assert given == {"knn": True, "logits": False, "concat": True, "classifier": False, "blend": True}
    figures = {"ladder": with_it.as_json()}
    full, lines = with_it.final.full_gallery, ladder_lines(figures)
    assert full_gallery_line(figures["ladder"]).startswith(f"MAP@5 (full gallery, estimated): {full.map:.5f} ± ")
    assert "full gallery" in lines[0] and f"{full.map:.5f} ± {(full.high - full.low) / 2:.5f}" in lines[len(bare)]
    assert any(line.startswith("full gallery: estimated") for line in lines)


def test_one_fold_alone_has_no_estimate(whole, tmp_path):
    world, sources, asked = whole
    alone = [replace(source, folds={0: source.folds[0]}) for source in sources]
    result = combine(world.images, world.folds, alone, asked, world.competition, tmp_path)
    assert result.final.optimistic and result.final.full_gallery is None


def test_an_index_by_faiss_string_has_no_estimate(whole, tmp_path):
    """Half of the images may be too few for it."""
    world, sources, asked = whole
    settings = {"knn": asked.combine.knn.model_copy(update={"index": "IVF2,Flat"})}
    asked = asked.model_copy(update={"combine": asked.combine.model_copy(update=settings)})
    assert combine(world.images, world.folds, sources, asked, world.competition, tmp_path).gallery is None


def test_the_halved_ranking_is_that_of_the_images_that_are_kept(whole):
    """As if the images left out had never been labelled, for a network that is what it was."""
    world, sources, asked = whole
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    half = halved(protocol, 0)
    (found, *_) = rank_all(sources, world.images, half, asked.combine, 0)
    assert found.name == "net0" and found.test == ()
    for part, lists in zip(half.parts, found.oof, strict=True):
        table = np.load(sources[0].folds[part.fold] / "embeddings.npy")
        kept = np.flatnonzero(~np.isin(part.gallery, part.left_out))
        similarity = table[part.rows] @ table[part.gallery[kept]].T
        for row, query in enumerate(lists.codes[:, 0]):
            assert query == part.gallery_codes[kept][similarity[row].argmax()]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 4), unknown=st.booleans())
def test_halves_equal_a_loop(seed, folds, unknown):
    world = make_world(identities=8, folds=folds, seed=seed, unknown=unknown)
    protocol = read_protocol(world.images, world.folds, world.competition, list(range(folds)))
    half = halved(protocol, seed)
    assert not len(half.test_rows)
    logs: dict[str, list[float]] = {"half": [], "out_of_fold": [], "full": []}
    for part, smaller in zip(protocol.parts, half.parts, strict=True):
        query_set, _ = half.queries(smaller)
        assert set(query_set.gallery) == set(part.gallery) - set(smaller.left_out)
        assert set(query_set.labelled) == set(part.training) - set(smaller.left_out)
        assert (smaller.gallery == part.gallery).all() and (smaller.training == part.training).all()
        for code in range(len(protocol.classes)):
            own, kept = (int((codes == code).sum()) for codes in (part.gallery_codes, query_set.gallery_codes))
            assert kept == (max(1, own // 2) if own else 0)
        for truth, size, size_of_half in zip(part.truth, part.sizes, smaller.sizes, strict=True):
            assert size_of_half == (query_set.gallery_codes == truth).sum()
            if truth >= 0:
                in_all = (protocol.gallery_codes == truth).sum()
                for name, images in zip(logs, (size_of_half, size, in_all), strict=True):
                    logs[name].append(np.log(images))
    sizes = gallery_sizes(protocol, half)
    for name, values in logs.items():
        assert getattr(sizes, name) == pytest.approx(np.exp(np.mean(values)))


def test_the_line_is_followed_in_the_odds():
    sizes = GallerySizes(half=2, out_of_fold=4, full=6)
    assert sizes.reach == pytest.approx(np.log(1.5) / np.log(2))
    rank = np.array([1] * 60 + [0] * 40)
    half = np.array([1] * 50 + [0] * 50)
    found = estimate(rank, half, np.ones(100), 5, sizes.reach, 0)
    assert found.half == 0.5
    assert found.map == pytest.approx(expit(logit(0.6) + sizes.reach * (logit(0.6) - logit(0.5))))
    assert found.low < found.map < found.high < 1
    assert GallerySizes(1, 1, 2).reach > FARTHEST  # identities of two images


@pytest.mark.parametrize("rank", [1, 0])
def test_scores_of_nothing_and_of_everything_stay(rank):
    same = np.full(10, rank)
    found = estimate(same, same, np.ones(10), 5, 1.0, 0)
    assert found.map == found.low == found.high == rank


def test_the_interval_equals_a_naive_bootstrap():
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 4, 300)
    half = np.where(rng.random(300) < 0.7, rank, rng.integers(0, 4, 300))
    weights = rng.choice([0.0, 0.5, 1.5], 300)
    found = estimate(rank, half, weights, 5, 0.5, 0)
    own, smaller = (reciprocal_rank_at_k(one, 5) for one in (rank, half))
    used = np.flatnonzero(weights)
    drawn = []
    for _ in range(2000):
        rows = rng.choice(used, len(used))
        one, other = (np.average(scores[rows], weights=weights[rows]) for scores in (own, smaller))
        drawn.append(expit(logit(one) + 0.5 * (logit(one) - logit(other))))
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, (0.025, 0.975)), atol=0.006)


def test_files_of_an_older_version_have_no_estimate(tmp_path: Path):
    assert full_gallery_line({"k": 5, "rungs": [{"map": 0.5}]}) is None
