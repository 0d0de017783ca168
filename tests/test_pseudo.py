"""Pseudo-labels: who gets which, what they must not know, and the rounds that they teach."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import draw_sample
from ladder_world import UNKNOWN, World, make_world, recipe, write_sources
from pipeline_world import current, figures_of, submission_of
from test_cli import COMPETITION, EXPERIMENT
from test_match_score import local_world
from training_world import small, stop_after, train, write_case

from whaleid.cli import main as cli
from whaleid.config import Recipe
from whaleid.config.settings import Settings
from whaleid.data.pseudo import (
    FULL,
    describe_pseudo_labels,
    labels_of,
    read_pseudo_labels,
    with_pseudo_labels,
    write_pseudo_labels,
)
from whaleid.data.samplers import training_items
from whaleid.ensemble.ladder import protocol_of, rank_all
from whaleid.ensemble.protocol import FULL_DATA, Protocol
from whaleid.ensemble.pseudo import confident_labels, pseudo_labels, rank_with_own_gallery
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.ensemble.results import Gain
from whaleid.ensemble.summary import ladder_lines
from whaleid.pipeline import pseudo_labels as pseudo_stages
from whaleid.pipeline.keys import candidates_key
from whaleid.pipeline.plan import Census, plan_lines, recipe_needs
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.submission import read_guesses_of_rungs, submission_path
from whaleid.pipeline.transfer import ensemble_inputs, project_from_json, project_to_json
from whaleid.utils.errors import WhaleidError

PLAIN = {"name": "x", "folds": 3, "experiments": ["a"]}
RERANK = {
    "augmentation": None,
    "expansion": {"neighbours": [1, 4], "alpha": [0.0, 3.0]},
    "reciprocal": None,
    "diffusion": None,
    "labels": {"neighbours": [5], "gamma": [3.0], "steps": [2, 4]},
}


def sure_recipe(confidence: float = 0.7, **combine) -> Recipe:
    pseudo = Recipe.model_validate(PLAIN | {"pseudo": {"confidence": confidence}}).pseudo
    return recipe(**combine).model_copy(update={"pseudo": pseudo})


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(identities=30, noise=0.6)


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two networks; the first has a model of all labelled images, too."""
    return write_sources(world, tmp_path_factory.mktemp("features"), count=2, full=1)


@pytest.fixture(scope="module")
def protocol(world: World, sources: list[Source]) -> Protocol:
    return protocol_of(world.images, world.folds, world.competition, sources)


def labels_with(world: World, sources: list[Source], confidence: float) -> pd.DataFrame:
    return pseudo_labels(world.images, world.folds, sources, sure_recipe(confidence), world.competition, 2)


@pytest.fixture(scope="module")
def labels(world: World, sources: list[Source]) -> pd.DataFrame:
    return labels_with(world, sources, 0.7)


# --------------------------------------------------------------------------------------------------- the labels


def test_confident_labels_are_mostly_right_and_never_unknown(world: World, labels: pd.DataFrame) -> None:
    test = world.images.loc[world.images["split"] == "test", "image"].to_numpy()
    truth = labels["image"].map(dict(zip(test, world.solution, strict=True)))
    assert set(labels["fold"]) == {FULL, 0, 1, 2} and set(labels["round"]) == {2}
    assert (labels["confidence"] >= 0.7).all()
    assert UNKNOWN not in set(labels["identity"])
    assert not labels.duplicated(["image", "fold"]).any()
    assert (labels["identity"] == truth).mean() > 0.8
    assert len(list(describe_pseudo_labels(labels, len(test)))) == 4


def test_more_confidence_gives_a_part_of_the_labels(world: World, sources: list[Source], labels: pd.DataFrame) -> None:
    few, many = labels_with(world, sources, 0.85).set_index(["image", "fold"]), labels.set_index(["image", "fold"])
    assert 0 < len(few) < len(many)
    assert few["identity"].equals(many.loc[few.index, "identity"])


def test_a_folds_truth_does_not_reach_its_own_labels(world: World, sources: list[Source], protocol: Protocol) -> None:
    """Permute what fold 1's queries truly are: its labels stay, bit for bit; those that it teaches change."""
    given = sure_recipe(0.5, rerank=RERANK)

    def found(asked: Protocol) -> pd.DataFrame:
        rankings = rank_all(sources, world.images, asked, given.combine, 0)
        return confident_labels(asked, rankings, sources, world.images, given)

    part = protocol.parts[1]
    order = np.random.default_rng(0).permutation(len(part.truth))
    wrong = replace(part, truth=part.truth[order], sizes=part.sizes[order])
    before, after = found(protocol), found(replace(protocol, parts=(protocol.parts[0], wrong, protocol.parts[2])))
    pd.testing.assert_frame_equal(labels_of(before, 1), labels_of(after, 1))
    assert not labels_of(before, 0).equals(labels_of(after, 0))
    assert not labels_of(before, None).equals(labels_of(after, None))


def test_a_fold_sees_neither_its_own_images_nor_who_saw_them(
    world: World, sources: list[Source], protocol: Protocol
) -> None:
    """Rename the fold's own images, and spoil the model of all labelled images: how its models rank stays."""
    given = sure_recipe(rerank=RERANK)
    decided = {"query expansion": "4 neighbours, alpha 3", "label diffusion": "off"}

    def ranked(images: pd.DataFrame, folds: pd.DataFrame, networks: list[Source], fold: int) -> list[Ranking]:
        asked = protocol_of(images, folds, world.competition, networks)
        return rank_with_own_gallery(networks, images, asked, asked.parts[fold], given, decided, None)

    spoilt = [replace(source, full=source.full and sources[1].folds[0]) for source in sources]
    for fold in range(3):
        images, folds = world.images.copy(), world.folds.copy()
        own = folds["fold"] == fold
        folds.loc[own, "identity"] = folds.loc[own, "identity"].to_numpy()[::-1]
        images["identity"] = images["image"].map(folds.set_index("image")["identity"])
        plain, other = ranked(world.images, world.folds, sources, fold), ranked(images, folds, spoilt, fold)
        assert {one.kind for one in plain} == {"knn", "logits", "concat", "rerank", "classifier"}
        gallery = set(protocol.parts[fold].gallery_codes)
        for one, renamed in zip(plain, other, strict=True):
            assert one.oof == () and len(one.test) == 1
            assert set(np.unique(one.test[0].codes)) - {-1} <= gallery
            np.testing.assert_array_equal(_names(one), _names(renamed))
            np.testing.assert_array_equal(one.test[0].scores, renamed.test[0].scores)


def _names(ranking: Ranking) -> np.ndarray:
    lists = ranking.test[0]
    return np.append(lists.classes.astype(object), "")[lists.codes]


def test_a_folds_ranking_is_that_of_its_model_against_its_gallery(
    world: World, sources: list[Source], protocol: Protocol
) -> None:
    part = protocol.parts[2]
    found = rank_with_own_gallery(sources, world.images, protocol, part, sure_recipe(), {}, None)
    table = np.load(sources[1].folds[2] / "embeddings.npy")
    similarity = table[protocol.test_rows] @ table[part.gallery].T
    nearest = part.gallery_codes[similarity.argmax(axis=1)]
    lists = next(one for one in found if one.name == "net1").test[0]
    np.testing.assert_array_equal(lists.codes[:, 0], nearest)
    np.testing.assert_allclose(lists.scores[:, 0], similarity.max(axis=1), atol=1e-5)


def test_learned_match_scores_are_left_out_of_the_labels(tmp_path: Path) -> None:
    """They are fitted across folds, and a fold's own labels know its gallery alone."""
    drawn = local_world(tmp_path / "local")
    sources = write_sources(drawn, tmp_path / "features", count=1)
    given = [
        pseudo_labels(drawn.images, drawn.folds, sources, one, drawn.competition, 1, tmp_path / "local")
        for one in (sure_recipe(0.5, local_matching=local) for local in ({}, {"learned": {}}))
    ]
    assert len(given[0]) and given[0].equals(given[1])


def test_nothing_to_label_and_nobody_to_learn_from(world: World, sources: list[Source]) -> None:
    single = [Source(source.name, {1: source.folds[1]}) for source in sources]
    with pytest.raises(WhaleidError, match="at least two folds"):
        labels_with(world, single, 0.7)
    with pytest.raises(ValueError, match="two folds or more"):
        Recipe.model_validate(PLAIN | {"train_folds": [1], "pseudo": {}})
    with pytest.raises(ValueError, match="pseudo needs experiments"):
        Recipe.model_validate({"name": "x", "folds": 3, "sources": {"a": "b"}, "pseudo": {}})


# --------------------------------------------------------------------------------------------------- the training


def test_training_gets_the_folds_own_labels_and_nothing_moves(world: World, labels: pd.DataFrame) -> None:
    experiment = small()
    for fold in (0, 1, 2, None):
        own = labels_of(labels, fold)
        images, folds = with_pseudo_labels(world.images, world.folds, own)
        plain = training_items(world.images, world.folds, fold, experiment, UNKNOWN)
        items = training_items(images, folds, fold, experiment, UNKNOWN)
        added = set(items.rows) - set(plain.rows)
        assert set(plain.rows) <= set(items.rows) and items.classes == plain.classes
        assert set(world.images["image"].to_numpy()[sorted(added)]) == set(own["image"])
        named = dict(zip(items.rows, np.array(items.classes)[items.labels], strict=True))
        place = {image: row for row, image in enumerate(world.images["image"])}
        assert all(named[place[image]] == name for image, name in zip(own["image"], own["identity"], strict=True))
    assert world.images["identity"].isna().sum() == (world.images["split"] == "test").sum()


def test_labels_of_other_images_are_refused(world: World) -> None:
    for name in ("nowhere.jpg", world.folds["image"].iloc[0]):
        foreign = pd.DataFrame({"image": [name], "identity": ["w_0001"]})
        with pytest.raises(WhaleidError, match="pseudo-labels: their images are not the test images"):
            with_pseudo_labels(world.images, world.folds, foreign)


def test_a_run_is_trained_on_them(tmp_path: Path) -> None:
    write_case(tmp_path)
    images, folds = pd.read_parquet(tmp_path / "images.parquet"), pd.read_csv(tmp_path / "folds.csv")
    test = images["image"].str.endswith("_4.png")
    truth = images.loc[test, ["image", "identity"]].reset_index(drop=True)
    images.loc[test, ["split", "identity"]] = ["test", None]
    images.to_parquet(tmp_path / "images.parquet")
    folds[folds["fold"] != 4].to_csv(tmp_path / "folds.csv", index=False)
    experiment = small(train_epochs=1)
    without = train(tmp_path, tmp_path / "a", experiment)
    trained = train(tmp_path, tmp_path / "b", experiment, labels=truth)
    assert (without.pseudo, trained.pseudo) == (0, 8)
    assert trained.images == without.images + 8


def test_the_table_on_disk(tmp_path: Path, labels: pd.DataFrame) -> None:
    path = tmp_path / "pseudo" / "round2.csv"
    write_pseudo_labels(labels, path)
    again = read_pseudo_labels(path)
    pd.testing.assert_frame_equal(
        again.drop(columns="confidence"), labels.drop(columns="confidence"), check_dtype=False
    )
    assert list(again.columns) == ["image", "identity", "fold", "round", "confidence"]
    with pytest.raises(WhaleidError, match=r"round1\.csv: file not found"):
        read_pseudo_labels(path.with_name("round1.csv"))
    path.write_text("image,identity,fold\na.jpg,w,0\n")
    with pytest.raises(WhaleidError, match=r"round2\.csv: .*'confidence'"):
        read_pseudo_labels(path)


# ----------------------------------------------------------------------------------------------------- the rounds


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A competition and an experiment, and nothing made of them."""
    return placed(tmp_path / "place", monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the recipe without rounds brought to its end."""
    with pytest.MonkeyPatch.context() as patch:
        folder = placed(tmp_path_factory.mktemp("trained") / "place", patch)
        figures_of(opened(folder, ""))
    return folder


@pytest.fixture
def drawn(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`: round 0, which all rounds begin with, is not trained again."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def placed(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    draw_sample(folder / "data", identities=8, train_images=60, test_images=16)
    text = COMPETITION.format(root="data").replace("unknown: new_whale\nunknown_share: 0.276\n", "")
    (folder / "drawn.yaml").write_text(text)
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    patch.chdir(folder)
    return folder


def opened(folder: Path, more: str = "pseudo: {rounds: 2, confidence: 0.05}\n") -> Project:
    concat, classifier = "{whiten: 8, weights: {tiny: 2.0}}", "{epochs: 2, seeds: 1}"
    combined = f"combine: {{full_gallery: false, concat: {concat}, classifier: {classifier}}}\n"
    (folder / "recipe.yaml").write_text(f"folds: 2\nexperiments: [tiny]\n{combined}{more}")
    return open_project(str(folder / "drawn.yaml"), str(folder / "recipe.yaml"), folder / "work")


def written(project: Project) -> dict[str, int]:
    runs = project.workspace.root / "runs"
    found = sorted(runs.rglob("checkpoint.safetensors"))
    return {path.parent.relative_to(runs).as_posix(): path.stat().st_mtime_ns for path in found}


def worth(monkeypatch: pytest.MonkeyPatch, lows: list[float]) -> None:
    """Let each round in turn be worth this much over the one before."""
    monkeypatch.setattr(pseudo_stages, "round_gain", lambda _, found: Gain(0.1, lows[found.workspace.round - 1], 0.2))


def test_rounds_as_long_as_they_help(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = figures_of(opened(drawn, ""))
    project = opened(drawn)
    worth(monkeypatch, [0.01, -0.01])
    figures = figures_of(project)
    first = written(project)
    names = [f"tiny{name}/fold{fold}" for name in ("", ".round1", ".round2") for fold in range(2)]
    assert sorted(first) == sorted(names)
    assert [(row["round"], row["used"]) for row in figures["rounds"]] == [(0, True), (1, True), (2, False)]
    assert figures["rounds"][0]["map"] == plain["ladder"]["rungs"][-1]["map"]
    assert figures["key"] == candidates_key(project.at_round(1)) != plain["key"]
    said = "\n".join(ladder_lines(figures))
    assert "round 1 of pseudo-labels (fold0" in said and "over the round before: used" in said
    assert "[-0.01000, +0.20000] over the round before: not used, its interval reaches 0" in said

    table = read_pseudo_labels(project.at_round(1).workspace.pseudo_labels("recipe"))
    test = {path.name for path in (drawn / "data" / "test").iterdir()}
    assert set(table["image"]) <= test and set(table["round"]) == {1}
    for fold in range(2):
        assert figures["runs"][f"tiny/fold{fold}"]["pseudo"] == len(labels_of(table, fold)) > 0
    folder = project.workspace.candidates("recipe")
    for name in ("oof.parquet", "test.parquet", "ladder.json"):
        assert (folder / name).read_bytes() == (folder / "round1" / name).read_bytes()
    assert (folder / "oof.parquet").read_bytes() != (folder / "round0" / "oof.parquet").read_bytes()
    queries = pd.read_parquet(folder / "oof.parquet")["query"]
    assert not set(queries) & test  # nobody is scored who was labelled by a network
    assert len(read_guesses_of_rungs(project)[-1].images) == 16
    assert submission_of(project) == submission_path(project, figures["key"])

    assert figures_of(opened(drawn))["rounds"] == figures["rounds"]
    timed = {line["item"] for line in figures["times"] if line["stage"] == "train"}
    assert timed == set(names)
    assert written(project) == first
    assert figures_of(opened(drawn, ""))["ladder"] == plain["ladder"]  # without rounds, as before
    assert figures_of(opened(drawn))["rounds"] == figures["rounds"]
    assert written(project) == first
    assert json.loads((drawn / "work" / "drawn" / "metrics.json").read_text())["recipe"]["key"] == figures["key"]


def test_a_round_that_does_not_help_is_the_last_and_changes_no_answer(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = json.loads(json.dumps(figures_of(opened(drawn, ""))))
    answer = (drawn / "work" / "drawn" / "candidates" / "recipe" / "test.parquet").read_bytes()
    worth(monkeypatch, [0.0, 1.0])
    project = opened(drawn)
    figures = figures_of(project)
    assert [(row["round"], row["used"]) for row in figures["rounds"]] == [(0, True), (1, False)]
    assert figures["key"] == plain["key"] and figures["ladder"] == plain["ladder"]
    assert (drawn / "work" / "drawn" / "candidates" / "recipe" / "test.parquet").read_bytes() == answer
    assert not any(name.startswith("tiny.round2") for name in written(project))
    assert in_used_round(project).workspace.round == 0


def test_a_run_is_trained_again_when_its_own_labels_change(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth(monkeypatch, [-1.0])
    project = opened(drawn, "pseudo: {confidence: 0.05}\nfull: true\n")
    figures = figures_of(project)
    assert list(figures["rounds"][1]["labels"]) == ["fold0", "fold1", "full"]
    path = project.at_round(1).workspace.pseudo_labels("recipe")
    table = read_pseudo_labels(path)

    def left(changed: pd.DataFrame) -> list[str]:
        write_pseudo_labels(changed, path)
        of_round = in_used_round(project).at_round(1)
        return [item for item, is_current in current(of_round, "train").items() if not is_current]

    assert left(table.assign(confidence=1.0)) == []
    assert left(table.drop(index=table.index[table["fold"] == 1][0])) == ["tiny.round1/fold1", "tiny.round1/full"]
    assert left(table.drop(index=table.index[table["fold"] == FULL][0])) == ["tiny.round1/full"]
    assert list(current(in_used_round(project), "train").values()) == [True] * 3


def test_killed_in_a_round_it_goes_on_to_the_same_end(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth(monkeypatch, [0.01])
    more = "pseudo: {confidence: 0.05}\n"
    shutil.copytree(drawn / "work", drawn / "before")
    whole = figures_of(opened(drawn, more))
    (drawn / "work").rename(drawn / "whole")
    (drawn / "before").rename(drawn / "work")
    monkeypatch.setattr("whaleid.training.log.EPOCH_SAVE_SECONDS", 0.0)
    broken = opened(drawn, more)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            figures_of(broken)
    assert (broken.at_round(1).workspace.run("tiny", 0) / "state").is_dir()
    table = broken.at_round(1).workspace.pseudo_labels("recipe").stat().st_mtime_ns
    figures = figures_of(opened(drawn, more))
    assert broken.at_round(1).workspace.pseudo_labels("recipe").stat().st_mtime_ns == table
    assert figures["ladder"] == whole["ladder"] and figures["key"] == whole["key"]


def test_nobody_sure_trains_nothing(drawn: Path) -> None:
    project = opened(drawn, "pseudo: {confidence: 1.0}\n")
    figures = figures_of(project)
    assert [row["used"] for row in figures["rounds"]] == [True, False]
    assert "no test image is confident enough" in ladder_lines(figures)[-1]
    assert sorted(written(project)) == ["tiny/fold0", "tiny/fold1"]


def test_several_at_once_and_a_round_by_itself(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round named alone trains what comes before it; the processes of a round's runs find their round."""
    project = opened(untrained, "pseudo: {confidence: 0.05}\n")
    where = ["--competition", str(untrained / "drawn.yaml"), "--recipe", str(untrained / "recipe.yaml")]

    def train_round(number: int, jobs: int) -> int | str | None:
        options = ["--work", str(untrained / "work"), "--jobs", str(jobs), "--round", str(number)]
        monkeypatch.setattr(sys, "argv", ["whaleid", "train", *where, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    assert not train_round(1, jobs=1), capsys.readouterr().err
    whole = written(project)
    assert sorted(whole) == ["tiny.round1/fold0", "tiny.round1/fold1", "tiny/fold0", "tiny/fold1"]
    assert all(current(project, "train").values())
    for fold in range(2):  # of each process most is its start: the round's own runs alone are trained by some
        shutil.rmtree(project.at_round(1).workspace.run("tiny", fold))
    assert not train_round(1, jobs=2), capsys.readouterr().err
    again = written(project)
    assert {name for name in whole if again[name] != whole[name]} == {"tiny.round1/fold0", "tiny.round1/fold1"}
    assert all(current(project, "train").values())
    assert train_round(2, jobs=2) == 2 and "has 1 rounds of pseudo-labels" in capsys.readouterr().err


def test_the_round_that_is_used_is_carried_alone(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's project has its runs, its labels and its keys, and no round to make."""
    worth(monkeypatch, [0.01, -0.01])
    figures = figures_of(opened(drawn))
    project = in_used_round(opened(drawn))
    assert (project.workspace.round, project.recipe.pseudo) == (1, None)
    reads = ensemble_inputs(project)
    assert [path.as_posix() for path in reads.runs] == ["runs/tiny.round1/fold0", "runs/tiny.round1/fold1"]
    elsewhere = Settings(work=drawn / "elsewhere")
    there = project_from_json(project_to_json(project), drawn / "data", elsewhere)
    with pytest.raises(WhaleidError, match=r"round1\.csv: file not found"):
        candidates_key(there)
    assert project.pseudo_labels is not None
    write_pseudo_labels(project.pseudo_labels, there.workspace.pseudo_labels("recipe"))
    again = project_from_json(project_to_json(project), drawn / "data", elsewhere)
    assert candidates_key(again) == figures["key"]


def test_the_plan_counts_the_rounds(drawn: Path) -> None:
    census = Census(1000, 100, 20, 300, 2.0, estimated=True)
    plain, given = opened(drawn, ""), opened(drawn)
    assert "2 runs, at most 2 times more with pseudo-labels" in "\n".join(plan_lines(given, census, 1.0, 8, None))
    assert recipe_needs(given, census, "cpu").hours == pytest.approx(3 * recipe_needs(plain, census, "cpu").hours)


def test_the_whole_and_the_full_labels_have_one_number() -> None:
    assert FULL == FULL_DATA
