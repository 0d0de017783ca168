"""Species and views divide galleries, thresholds, scores and reports; a group of one individual is one cluster."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from form_world import NEW, add_to_world, open_world, place_world
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_world import UNKNOWN, World, make_world, recipe, write_sources
from test_local import write_described
from test_match_score import described_at_random

from whaleid.config import Competition
from whaleid.ensemble.comparable import Comparable, read_comparable
from whaleid.ensemble.ladder import combine
from whaleid.ensemble.pair_answers import group_links
from whaleid.ensemble.protocol import QuerySet
from whaleid.evaluation.clusters import _thinned
from whaleid.evaluation.form_input import ImagePairs, PairTable
from whaleid.local_matching.votes import nearest_apart, nearest_descriptors
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import latest_submission
from whaleid.report.inputs import read_results
from whaleid.report.page import write_report
from whaleid.report.queries import query_data, shown_queries
from whaleid.utils.errors import WhaleidError

COMBINE = {
    "concat": {"whiten": 16},
    "classifier": {"epochs": 2, "seeds": 1},
    "rerank": {"expansion": None, "augmentation": None, "diffusion": None, "labels": None},
    "local_matching": {"neighbours": 5},
    "stack": {"num_iterations": 10, "min_data_in_leaf": 5},
}


def divided(competition: Competition, **columns: str) -> Competition:
    """The competition with `species` or `view`."""
    extra = {column: column for column in columns.values()}
    train = competition.train.model_copy(update={"extra": extra})
    return competition.model_copy(update={"train": train, **columns})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list, Path]:
    """Two species whose individuals look alike in pairs: identity 2 n is a lynx, 2 n + 1 its twin, a turtle."""
    made = make_world(identities=14, seed=4)
    truth = made.images["identity"].to_numpy(dtype=object).copy()
    truth[made.images["split"].to_numpy() == "test"] = made.solution
    number = np.array([int(name[2:]) if name != UNKNOWN else 1000 + row for row, name in enumerate(truth)])
    prototypes = np.random.default_rng(0).normal(size=(2000, made.latent.shape[1]))
    latent = prototypes[number // 2] + 0.7 * np.random.default_rng(1).normal(size=made.latent.shape)
    images = made.images.assign(kind=np.where(number % 2, "turtle", "lynx"), side="left")
    made = replace(made, images=images, latent=latent, competition=divided(made.competition, species="kind"))
    folder = tmp_path_factory.mktemp("species")
    twins = np.array([f"{one // 2}" for one in number], dtype=object)
    write_described(folder / "local", images, twins)
    return made, write_sources(made, folder / "features", count=1), folder


def test_no_ranker_names_an_identity_of_another_species(world: tuple, tmp_path: Path) -> None:
    made, sources, folder = world
    given = made.images, made.folds, sources, recipe(**COMBINE)
    result = combine(*given, made.competition, tmp_path / "apart", folder / "local")
    kind = made.images.set_index("image")["kind"]
    named = made.images["identity"].notna() & (made.images["identity"] != UNKNOWN)
    of_identity = made.images[named].drop_duplicates("identity").set_index("identity")["kind"]
    rankers = set()
    for name in ("oof", "test"):
        table = pd.read_parquet(tmp_path / "apart" / f"{name}.parquet")
        table = table[(table["rank"] > 0) & (table["identity"] != UNKNOWN)]
        query = table["query"].astype(str).str.replace(" (identity taken out)", "")
        assert (kind[query].to_numpy() == of_identity[table["identity"].astype(str)].to_numpy()).all()
        rankers |= set(table["source"])
    assert rankers == {rung.name for rung in result.rungs} and len(rankers) >= 8
    assert result.final.score.map > 0.6


def test_twins_of_two_species_are_told_apart(world: tuple, tmp_path: Path) -> None:
    made, sources, _ = world
    given = made.images, made.folds, sources, recipe(classifier=None, concat={"whiten": None})
    apart = combine(*given, made.competition, tmp_path / "apart")
    together = combine(*given, made.competition.model_copy(update={"species": None}), tmp_path / "together")
    assert apart.final.score.map > together.final.score.map + 0.1


def test_thresholds_and_scores_of_each_species(world: tuple, tmp_path: Path) -> None:
    """The threshold of a species is that of its queries alone, and the scores are those of its queries."""
    made, sources, _ = world
    config = recipe(classifier=None, concat={"whiten": None})
    result = combine(made.images, made.folds, sources, config, made.competition, tmp_path)
    rung, ranking = result.rung("blend"), result.blend_ranking
    assert rung.thresholds is not None and ranking is not None
    thresholds = rung.thresholds.species
    assert set(thresholds) == set(rung.species) == {"lynx", "turtle"}
    assert sum(one.queries for one in rung.species.values()) == rung.score.queries
    assert thresholds["lynx"].by_fold != thresholds["turtle"].by_fold
    table = pd.read_parquet(tmp_path / "oof.parquet")
    unknown = table[(table["source"] == "blend") & (table["identity"] == UNKNOWN)]
    kind = made.images.set_index("image")["kind"]
    for name, own in thresholds.items():
        query = unknown["query"].astype(str).str.replace(" (identity taken out)", "")
        for fold, value in own.by_fold.items():
            scores = unknown["score"][(kind[query].to_numpy() == name) & (unknown["fold"] == fold)]
            assert np.allclose(scores, value)


def test_a_species_with_few_queries_has_the_threshold_of_all(world: tuple, tmp_path: Path) -> None:
    made, sources, _ = world
    sizes = made.images["identity"].value_counts()
    rare = made.images["identity"] == sizes[sizes.between(2, 5)].index[0]
    images = made.images.assign(kind=made.images["kind"].where(~rare, "seal"))
    config = recipe(classifier=None, concat={"whiten": None})
    result = combine(images, made.folds, sources, config, made.competition, tmp_path)
    thresholds = result.final.thresholds
    assert thresholds is not None and thresholds.species["seal"].by_fold == thresholds.by_fold


# -------------------------------------------------------------------------------------------------- what divides


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_hold_every_query_once_with_all_images_that_it_may_be_compared_with(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    species, view = (
        np.array(data.draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=count, max_size=count)), dtype=object)
        for _ in range(2)
    )
    split = data.draw(st.integers(1, count - 1))
    rows, gallery = np.arange(split), np.arange(split, count)
    queries = QuerySet(rows, rows.astype(str), gallery, gallery * 10, gallery)
    seen = []
    for places, piece in Comparable(species, view).pieces(queries):
        seen += places.tolist()
        assert piece.names.tolist() == rows[places].astype(str).tolist()
        assert (piece.gallery_codes == piece.gallery * 10).all()
        for row in piece.rows:
            expected = [
                other
                for other in gallery
                if all(one[row] == one[other] or "" in (one[row], one[other]) for one in (species, view))
            ]
            assert piece.gallery.tolist() == piece.labelled.tolist() == expected
    assert sorted(seen) == rows.tolist()


def test_neighbours_of_keypoints_are_those_of_each_gallery() -> None:
    described, _ = described_at_random(np.random.default_rng(0), [3, 0, 4, 2, 5, 1, 6])
    queries, pieces = np.array([0, 2, 1, 3]), [(np.array([1, 3]), np.array([4, 5])), (np.array([0, 2]), np.array([6]))]
    found = nearest_apart(described, queries, pieces, 8)
    start = 0
    for place, query in enumerate(queries):
        gallery = next(gallery for places, gallery in pieces if place in places)
        alone = nearest_descriptors(described, queries[place : place + 1], gallery, 8)
        own, stop = alone.distance.shape[1], start + int(described.counts(np.array([query]))[0])
        assert np.array_equal(found.distance[start:stop, :own], alone.distance)
        assert np.array_equal(found.places[start:stop, :own], alone.places)
        assert (found.places[start:stop, own:] == -1).all()
        start = stop
    assert start == len(found.distance)


def images_of(**columns: list) -> pd.DataFrame:
    table = pd.DataFrame({"image": ["a", "b", "c"], "split": ["train", "train", "test"], "identity": ["x", "y", None]})
    return table.assign(**columns)


@pytest.mark.parametrize(
    ("kinds", "identity", "unknown", "message"),
    [
        (["lynx", None, "lynx"], ["x", "y", None], NEW, "1 labelled images have no 'kind', first b; fill it in"),
        (["lynx", "seal", "lynx"], ["x", "x", None], NEW, "identity x has images of lynx and of seal"),
        (["lynx", "lynx", "seal"], ["x", "y", None], None, "test images are of seal .*no image is labelled"),
    ],
)
def test_species_that_cannot_be_are_named(kinds: list, identity: list, unknown: str | None, message: str) -> None:
    competition = divided(make_world(identities=5).competition, species="kind").model_copy(update={"unknown": unknown})
    with pytest.raises(WhaleidError, match=message):
        read_comparable(images_of(kind=kinds, identity=identity), competition)


def test_images_of_the_unknown_label_may_be_of_any_species() -> None:
    competition = divided(make_world(identities=5).competition, species="kind")
    found = read_comparable(images_of(kind=["lynx", "seal", None], identity=[UNKNOWN, UNKNOWN, None]), competition)
    assert found is not None and found.species.tolist() == ["lynx", "seal", ""]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"species": "kind"}, "species 'kind' is not among train.extra"),
        ({"view": "side"}, "view 'side' is not among train.extra"),
        ({"group_is_individual": True}, "group_is_individual needs a group"),
    ],
)
def test_columns_that_are_not_kept_are_named(key: dict, message: str) -> None:
    table = {"csv": "a.csv", "images": ".", "image": "i"}
    with pytest.raises(ValueError, match=message):
        Competition.model_validate(
            {"name": "x", "root": "/", "train": {**table, "identity": "id"}, "test": table, **key}
        )


# -------------------------------------------------------------------------------------------------- the pipeline


def place_divided(place: Path, form: str, more: str) -> pd.DataFrame:
    """`place_world` with images of two sides (alternating) and encounters of two test images of an individual each."""
    test = place_world(place, form, identities=20)
    for name in ("train", "test"):
        table = pd.read_csv(place / f"{name}.csv")
        side = np.where(np.arange(len(table)) % 2, "left", "right")
        met = [f"{name} {row}" for row in range(len(table))]
        if name == "test":
            met = (
                test["identity"] + (test.groupby("identity").cumcount() > 1).map({True: " later", False: ""})
            ).tolist()
        table.assign(side=side, met=met).to_csv(place / f"{name}.csv", index=False)
    text = (place / "world.yaml").read_text()
    text = text.replace("extra: {dataset: dataset}", "extra: {dataset: dataset, side: side, met: met}")
    (place / "world.yaml").write_text(text)
    add_to_world(place, more)
    return test.assign(met=pd.read_csv(place / "test.csv")["met"])


def test_species_and_views_through_the_pipeline(tmp_path: Path) -> None:
    test = place_divided(tmp_path, "topk", f"unknown: {NEW}\nspecies: dataset\nview: side\n")
    solution = test.assign(identity=test["identity"].where(test["known"], NEW))
    solution[["image", "identity"]].to_csv(tmp_path / "solution.csv", index=False)
    project = open_world(tmp_path)
    lines = list(leaderboard_lines(project))
    assert any(re.match(r"out of fold by species: lynx [01]\.\d+ \(\d+\), turtle", line) for line in lines)
    train, asked = (pd.read_csv(tmp_path / f"{name}.csv").set_index("image") for name in ("train", "test"))
    table = pd.read_parquet(project.workspace.candidates(project.recipe.name) / "test.parquet")
    table = table[(table["rank"] > 0) & (table["identity"] != NEW)]
    sides = train.groupby("identity")["side"].agg(set)
    for query, identity in zip(table["query"].astype(str), table["identity"].astype(str), strict=True):
        assert asked["dataset"][query] == train["dataset"][train["identity"] == identity].iloc[0]
        assert asked["side"][query] in sides[identity]
    results = read_results(project)
    data = query_data(results, shown_queries(results))
    assert set(data["fold"]) <= set(data["thresholds"]) and "0 lynx" in data["thresholds"]
    page = (write_report(project)).read_text()
    assert "<td>lynx</td>" in page and "<td>turtle</td>" in page


def test_a_group_of_one_individual_is_one_cluster(tmp_path: Path) -> None:
    more = "k: 1\nsubmission: {image: image, identities: cluster}\ngroup: met\ngroup_is_individual: true\nview: side\n"
    test = place_divided(tmp_path, "clusters", more)
    test[["image", "identity"]].to_csv(tmp_path / "solution.csv", index=False)
    project = open_world(tmp_path)
    run(project, "submission")
    clusters = pd.read_csv(latest_submission(project)).set_index("image")["cluster"]
    by_group = test.assign(cluster=clusters[test["image"]].to_numpy()).groupby("met")["cluster"]
    assert (by_group.size() > 1).any() and (by_group.nunique() == 1).all()
    assert require_figures(project)["ladder"]["answer"]["value"] > 0.3


def test_links_of_groups_and_what_thinning_leaves_of_them() -> None:
    links = group_links(pd.Series(["g", "h", None, "g", "h", None, "g"], index=range(5, 12)))
    assert links.tolist() == [[0, 3], [1, 4], [0, 6]]
    nothing = PairTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    names = np.arange(40).astype(str)
    pairs = ImagePairs(names, np.full(40, ""), names[:0], names[:0], nothing, nothing)
    linked = replace(pairs, must_link=group_links(pd.Series(np.arange(40) // 2)))
    sparse = replace(pairs, among=PairTable(np.array([0]), np.array([1]), np.array([9.0])))
    left, identity = _thinned(linked, np.arange(40) // 2, sparse)
    assert 2 < len(identity) < 40 and len(left.must_link)
    assert (identity[left.must_link[:, 0]] == identity[left.must_link[:, 1]]).all()
