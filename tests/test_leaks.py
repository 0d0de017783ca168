"""The whole second level finds nothing where there is nothing to find, and never reads the solution."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import draw_sample
from ladder_world import UNKNOWN, World, make_world, recipe, spread, write_folder, write_sources
from pipeline_world import submission_of
from test_match_score import FEW, NAMES, local_world
from test_pseudo import sure_recipe

from whaleid.ensemble.ladder import combine, evaluate_ladder, rank_all
from whaleid.ensemble.protocol import Protocol, read_protocol
from whaleid.ensemble.pseudo import pseudo_labels
from whaleid.ensemble.results import LadderResult
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.metrics import read_figures
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.score import solution_scores

RERANK = {
    "expansion": {"neighbours": [2], "alpha": [3]},
    "labels": {"neighbours": [6], "alpha": [0.7], "steps": [1, 3]},
}
EVERYTHING = {
    "rerank": RERANK,
    "stack": {
        "num_iterations": 30,
        "seeds": 1,
        "min_data_in_leaf": 5,
        "first": 8,
        "candidates": 15,
        "learning_rate": 0.1,
    },
}
LUCK = 0.06  # two standard errors of MAP@5 over some 250 queries
KINDS = {"knn", "logits", "concat", "rerank", "classifier", "blend", "stack"}


def relabelled(world: World, rng: np.random.Generator) -> World:
    """The same images under labels that were dealt anew, and folds that fit these labels."""
    images, folds = world.images.copy(), world.folds.copy()
    folds["identity"] = rng.permutation(folds["identity"].to_numpy(dtype=object))
    folds["fold"] = spread(folds["identity"].to_numpy(), 3)
    images["identity"] = images["image"].map(folds.set_index("image")["identity"])
    return replace(world, images=images, folds=folds)


def answered(world: World, folder: Path, **networks) -> tuple[Protocol, LadderResult]:
    sources = write_sources(world, folder, count=2, **networks)
    config = recipe(**EVERYTHING).combine
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    return protocol, evaluate_ladder(protocol, rank_all(sources, world.images, protocol, config, 0), config)


def best_without_looking(protocol: Protocol) -> float:
    """MAP@k of the best list that is the same for every query, chosen with the truth in hand."""
    places = list(range(len(protocol.parts)))
    truth, weights = protocol.truth(places), protocol.weights(places)
    share = np.bincount(truth + 1, weights) / weights.sum()
    return float(np.sort(share)[::-1][: protocol.k] @ (1 / np.arange(1, protocol.k + 1)))


@pytest.mark.parametrize("unknown", [True, False])
def test_random_labels_are_not_found_by_any_rung(tmp_path, unknown):
    """Networks that know their training labels by heart, all of it re-ranked, classified, blended and stacked."""
    world = relabelled(make_world(seed=4, unknown=unknown), np.random.default_rng(0))
    protocol, result = answered(world, tmp_path, overfit=0.1)
    assert {rung.kind for rung in result.rungs} == KINDS
    chance = best_without_looking(protocol)
    for rung in result.rungs:
        assert rung.score.map < chance + LUCK, (rung.name, rung.score.map, chance)


def swapped(world: World) -> World:
    """The same images and folds, in each of which the identities have changed their names with one another.

    A fold's images still belong together: whoever knew the labels of the queries' own fold would find them.
    """
    images, folds = world.images.copy(), world.folds.copy()
    names = np.array(sorted(set(folds["identity"]) - {UNKNOWN}), dtype=object)
    known = (folds["identity"] != UNKNOWN).to_numpy()
    place = np.searchsorted(names, folds["identity"].to_numpy()[known])
    folds.loc[known, "identity"] = names[(place + 7 * folds["fold"].to_numpy()[known]) % len(names)]
    images["identity"] = images["image"].map(folds.set_index("image")["identity"])
    return replace(world, images=images, folds=folds)


@pytest.mark.parametrize("unknown", [True, False])
def test_identities_swapped_between_folds_are_not_found_by_any_rung(tmp_path, unknown):
    protocol, result = answered(swapped(make_world(seed=4, unknown=unknown)), tmp_path, overfit=0.1)
    assert {rung.kind for rung in result.rungs} == KINDS
    chance = best_without_looking(protocol)
    for rung in result.rungs:
        assert rung.score.map < chance + LUCK, (rung.name, rung.score.map, chance)


def test_random_labels_are_worth_nothing_with_the_full_gallery_either(tmp_path):
    world = relabelled(make_world(seed=4, unknown=False), np.random.default_rng(0))
    sources = write_sources(world, tmp_path / "features", count=2, overfit=0.1)
    asked = recipe(classifier=None, full_gallery=True)
    result = combine(world.images, world.folds, sources, asked, world.competition, tmp_path / "out")
    chance = best_without_looking(read_protocol(world.images, world.folds, world.competition, [0, 1, 2]))
    given = {rung.name: rung.full_gallery.map for rung in result.rungs if rung.full_gallery is not None}
    assert {"net0", "concat kNN", "blend"} <= set(given) and max(given.values()) < chance + LUCK, (given, chance)


@pytest.mark.parametrize(
    "spoilt", [lambda world: relabelled(world, np.random.default_rng(1)), swapped], ids=["random", "swapped"]
)
def test_labels_that_tell_nothing_are_not_found_by_learned_matching(tmp_path, spoilt):
    """Marks that tell the animals, under labels that do not: match scores, pairs, queries together, a stack of them."""
    world = spoilt(local_world(tmp_path / "local", identities=40))
    sources = write_sources(world, tmp_path / "features", count=1, overfit=0.1)
    config = recipe(local_matching={"learned": FEW}, classifier=None, stack=EVERYTHING["stack"]).combine
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    ranked = rank_all(sources, world.images, protocol, config, 0, tmp_path / "local")
    result = evaluate_ladder(protocol, ranked, config)
    assert {*NAMES, "blend", "stack"} < {rung.name for rung in result.rungs}
    chance = best_without_looking(protocol)
    for rung in result.rungs:
        assert rung.score.map < chance + LUCK, (rung.name, rung.score.map, chance)


def test_random_labels_make_nobody_sure(tmp_path):
    """Networks that know their training labels by heart give hardly any test image a pseudo-label; true labels do."""
    world = make_world(seed=4)
    given = {}
    for name, one in (("true", world), ("random", relabelled(world, np.random.default_rng(0)))):
        sources = write_sources(one, tmp_path / name, count=2, overfit=0.1, noise=0.3)
        given[name] = len(pseudo_labels(one.images, one.folds, sources, sure_recipe(0.7), one.competition, 1))
    assert given["random"] < 0.05 * given["true"], given


def test_an_identitys_images_shuffled_between_folds_improve_nothing(tmp_path):
    """Which of an identity's images are in which fold is nothing that a score may live on."""
    world = make_world(seed=5)
    _, first = answered(world, tmp_path / "first", overfit=1.0)
    gains = {rung.name: [] for rung in first.rungs}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        folds = world.folds.copy()
        for _, rows in folds.groupby("identity").groups.items():
            folds.loc[rows, "fold"] = rng.permutation(folds.loc[rows, "fold"].to_numpy())
        assert (folds["fold"] != world.folds["fold"]).mean() > 0.3
        _, other = answered(replace(world, folds=folds), tmp_path / str(seed), overfit=1.0)
        for rung in other.rungs:
            gains[rung.name].append(rung.score.map - first.rung(rung.name).score.map)
    assert all(np.mean(own) < LUCK for own in gains.values()), gains


# ------------------------------------------------------------------------------------------------ the solution

COMPETITION = f"""
name: drawn
root: data
train: {{csv: train.csv, images: train, image: Image, identity: Id}}
test: {{csv: sample_submission.csv, images: test, image: Image}}
unknown: {UNKNOWN}
unknown_share: 0.276
solution: solution.csv
"""


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A competition of drawn images, its pipeline's first tables, and foreign features that know something."""
    place = tmp_path / "drawn"
    draw_sample(place / "data", identities=10, train_images=60, test_images=20)
    (place / "drawn.yaml").write_text(COMPETITION)
    combine = {"classifier": {"epochs": 5, "seeds": 1}, "concat": {"whiten": 8}, "full_gallery": False, **EVERYTHING}
    given = {"folds": 3, "sources": {"foreign": "foreign"}, "combine": combine}
    (place / "recipe.yaml").write_text(json.dumps(given))
    truth = pd.concat([pd.read_csv(place / "data" / name) for name in ("train.csv", "solution.csv")])
    rng = np.random.default_rng(0)
    names = np.unique(truth["Id"])
    prototypes = dict(zip(names, rng.normal(size=(len(names), 8)), strict=True))
    table = np.stack([prototypes[name] for name in truth["Id"]]) + 0.5 * rng.normal(size=(len(truth), 8))
    for fold in range(3):
        write_folder(place / "foreign" / f"fold{fold}", truth["Image"], table)
    return place


def told(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, list[str]]:
    monkeypatch.chdir(place)
    project = open_project("drawn.yaml", "recipe.yaml", Path("work"))
    return project, list(leaderboard_lines(project))


def test_a_permuted_solution_changes_nothing_but_the_score(drawn, tmp_path, monkeypatch):
    """One competition with its solution, one whose solution no stage but the score could read: a permuted one."""
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    solution = pd.read_csv(other / "data" / "solution.csv")
    (other / "data" / "solution.csv").write_bytes(b"\xff\xfe no table")
    monkeypatch.chdir(other)
    assert submission_of(open_project("drawn.yaml", "recipe.yaml", Path("work"))).is_file()
    solution["Id"] = np.roll(solution["Id"], 7)
    solution.to_csv(other / "data" / "solution.csv", index=False)
    (one, lines), (two, permuted) = told(drawn, monkeypatch), told(other, monkeypatch)
    written = sorted(path.relative_to(drawn) for path in (drawn / "work").rglob("*") if path.is_file())
    written += sorted(path.relative_to(drawn) for path in (drawn / "submissions").glob("drawn_*.csv"))
    assert len([path for path in written if path.suffix == ".parquet"]) >= 3
    for path in written:
        if path.name == "digests.parquet":  # absolute paths and times of the files
            continue
        if path.suffix in (".parquet", ".csv") or path.name == "ladder.json":
            assert (drawn / path).read_bytes() == (other / path).read_bytes(), path
    monkeypatch.chdir(drawn)
    figures, scores = read_figures(one), solution_scores(one)
    monkeypatch.chdir(other)
    assert read_figures(two)["ladder"] == figures["ladder"]
    assert solution_scores(two).keys() == scores.keys()
    assert solution_scores(two)["stack"].map < scores["stack"].map - 0.2
    assert [line for line in lines if "(solution)" in line] != [line for line in permuted if "(solution)" in line]
