"""Re-scoring against a loop over images, and its rung in the ladder: each fold by the head of its own run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ladder_world import World, make_world, recipe, write_folder, write_sources

from whaleid.config import Experiment
from whaleid.config.files import load_experiment
from whaleid.ensemble.ladder import combine, common_folds, rank_all
from whaleid.ensemble.protocol import read_protocol
from whaleid.ensemble.rankings import Ranking, Source
from whaleid.features.files import read_features
from whaleid.models.embedder import build_embedder
from whaleid.models.heads.registry import build_head
from whaleid.models.heads.siamese import SiamesePairs
from whaleid.pipeline.keys import features_key, run_key
from whaleid.pipeline.project import DataKeys, Project
from whaleid.pipeline.run_stages import feature_tasks, train_tasks
from whaleid.pipeline.sources import sources
from whaleid.pipeline.tasks import do
from whaleid.pipeline.workspace import Workspace
from whaleid.retrieval.rescore import load_pairs, rescored_identities
from whaleid.training.checkpoint import save_checkpoint, write_description
from whaleid.utils.errors import WhaleidError

DIM = 12


def experiment(head: str = "siamese") -> Experiment:
    settings = {
        "model.backbone": "test_resnet",
        "model.weights": "random",
        "model.embedding": DIM,
        "image.width": 64,
        "image.height": 32,
    }
    return load_experiment(f"lite0_{head}", settings)


def write_run(folder: Path, seed: int, head: str = "siamese") -> Path:
    """A finished run whose head has random numbers; its backbone is not asked anything here."""
    torch.manual_seed(seed)
    config = experiment(head)
    embedder = build_embedder(config.model, pretrained=False, size=(64, 32))
    module = torch.nn.ModuleDict({"embedder": embedder, "head": build_head(config.head, DIM, [2, 2])})
    with torch.no_grad():
        for parameter in module["head"].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    write_description(folder, config, ["a", "b"])
    save_checkpoint(folder, module.state_dict(), np.array([2, 2]), (64, 32), {"name": "siamese"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), 0)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(identities=20, seed=2)


@pytest.fixture(scope="module")
def drawn(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two networks; the first one's runs have siamese heads, another one for each fold."""
    folder = tmp_path_factory.mktemp("features")
    first, second = write_sources(world, folder, count=2)
    pairs = {fold: write_run(folder / "runs" / f"fold{fold}", fold + 1) for fold in first.folds}
    return [Source(first.name, first.folds, pairs=pairs), second]


def unit(count: int, dims: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive(head: SiamesePairs, query: np.ndarray, gallery: np.ndarray, codes: np.ndarray, images: int) -> dict:
    """Identity -> its best logit among the `images` nearest images by cosine, by loops."""
    nearest = sorted(range(len(gallery)), key=lambda row: (-float(query @ gallery[row]), row))[:images]
    found: dict[int, float] = {}
    for row in nearest:
        sides = len(query) // DIM
        logits = [
            float(head.score_pairs(torch.from_numpy(a[None]), torch.from_numpy(b[None]), torch.zeros(1, 1).long()))
            for a, b in zip(np.split(query, sides), np.split(gallery[row], sides), strict=True)
        ]
        code = int(codes[row])
        found[code] = max(found.get(code, -np.inf), float(np.mean(logits)))
    return found


def listed(codes: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    return {int(code): float(score) for code, score in zip(codes, scores, strict=True) if code >= 0}


# -------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("images", [1, 7, 100])
def test_rescored_identities_equal_a_loop(run, sides, images):
    head = load_pairs(run)
    queries, gallery = unit(9, sides * DIM, 0), unit(40, sides * DIM, 1)
    codes = np.random.default_rng(2).integers(0, 11, 40)
    found, scores = rescored_identities(head, queries, gallery, codes, images, 20)
    assert found.shape == scores.shape == (9, 20)
    assert found.dtype == np.int64 and scores.dtype == np.float32
    for query in range(9):
        expected = naive(head, queries[query], gallery, codes, images)
        assert listed(found[query], scores[query]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        known = scores[query][found[query] >= 0]
        assert (np.diff(known) <= 0).all() and np.isneginf(scores[query][len(expected) :]).all()


def test_it_changes_the_order_of_the_cosine(run):
    head, queries, gallery = load_pairs(run), unit(50, DIM, 3), unit(60, DIM, 4)
    codes = np.arange(60)
    found, _ = rescored_identities(head, queries, gallery, codes, 10, 10)
    nearest = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :10]
    assert (np.sort(found, axis=1) == np.sort(nearest, axis=1)).all() and (found != nearest).any()


def test_features_of_another_training_are_refused(run):
    with pytest.raises(WhaleidError, match="18 dimensions, but the siamese head compares 12"):
        rescored_identities(load_pairs(run), unit(2, 18, 0), unit(3, 18, 1), np.arange(3), 2, 2)


def test_a_run_with_another_head_is_refused(tmp_path):
    with pytest.raises(WhaleidError, match="its head scores no pairs"):
        load_pairs(write_run(tmp_path, 0, head="softmax"))
    with pytest.raises(WhaleidError, match="there is no checkpoint"):
        load_pairs(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------------- the ladder


def ranking_of(world: World, found: list[Source], **settings) -> Ranking:
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(found))
    rankings = rank_all(found, world.images, protocol, recipe(classifier=None, **settings).combine, 0)
    return next(ranking for ranking in rankings if ranking.kind == "siamese")


def test_each_fold_is_ranked_by_its_own_run(world, drawn):
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    ranking = ranking_of(world, drawn, rescore=15)
    assert ranking.name == "net0 siamese" and not ranking.probability
    for place, part in enumerate(protocol.parts):
        head = load_pairs(drawn[0].pairs[part.fold])
        rows = read_features(drawn[0].folds[part.fold], world.images).embeddings
        for query in (0, 5):
            expected = naive(head, rows[part.rows[query]], rows[part.gallery], part.gallery_codes, 15)
            oof = ranking.oof[place]
            assert listed(oof.codes[query], oof.scores[query]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            gallery, codes = rows[protocol.gallery], protocol.gallery_codes
            expected = naive(head, rows[protocol.test_rows[query]], gallery, codes, 15)
            test = ranking.test[place]
            assert listed(test.codes[query], test.scores[query]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_folds_labels_do_not_reach_its_own_rescoring(world, drawn):
    images, folds = world.images.copy(), world.folds.copy()
    rows = np.flatnonzero(folds["fold"] == 1)
    labels = folds["identity"].to_numpy(dtype=object).copy()
    labels[rows] = labels[np.random.default_rng(0).permutation(rows)]
    folds["identity"] = labels
    images["identity"] = images["image"].map(folds.set_index("image")["identity"])
    changed = World(images, folds, world.latent, world.solution, world.competition)
    before, after = ranking_of(world, drawn), ranking_of(changed, drawn)
    np.testing.assert_array_equal(before.oof[1].codes, after.oof[1].codes)
    np.testing.assert_array_equal(before.oof[1].scores, after.oof[1].scores)
    assert not np.array_equal(before.oof[0].codes, after.oof[0].codes)


def test_it_is_a_rung_and_a_member_of_the_blend(world, drawn, tmp_path):
    settings = recipe(classifier=None)
    result = combine(world.images, world.folds, drawn, settings, world.competition, tmp_path / "out")
    names = [rung.name for rung in result.rungs]
    assert names == ["net0", "net0 logits", "net0 siamese", "net1", "net1 logits", "concat kNN", "blend"]
    rung = result.rung("net0 siamese")
    protocol = read_protocol(world.images, world.folds, world.competition, common_folds(drawn))
    simulated = sum(int((part.truth >= 0).sum()) for part in protocol.parts)
    assert rung.weight is not None and rung.score.queries == len(world.folds) + simulated
    assert rung.test_guesses(5).shape == (len(world.solution), 5)


def test_without_test_images(world, drawn, tmp_path):
    keep = (world.images["split"] == "train").to_numpy()
    images = world.images[keep].reset_index(drop=True)
    folders = {}
    for fold, path in drawn[0].folds.items():
        folders[fold] = tmp_path / f"fold{fold}"
        write_folder(folders[fold], images["image"], np.load(path / "embeddings.npy")[keep])
    found = [Source("net0", folders, pairs=drawn[0].pairs)]
    result = combine(images, world.folds, found, recipe(classifier=None), world.competition, tmp_path / "out")
    assert result.rung("net0 siamese").test is None


# -------------------------------------------------------------------------------------------------- the pipeline


KEYS = DataKeys("images", "labelled", "")


def test_sources_name_the_runs_of_siamese_experiments_alone(world, tmp_path):
    experiments = (experiment(), experiment("softmax"))
    project = Project(world.competition, recipe(), experiments, Workspace(tmp_path))
    own, other = sources(project)[:2]
    assert own.pairs == {fold: tmp_path / "runs" / "lite0_siamese" / f"fold{fold}" for fold in range(3)}
    assert other.pairs == {}


def test_features_of_a_siamese_run_need_the_run(world, tmp_path, monkeypatch):
    """Features alone are no finished job: the head is wanted too. Other heads' runs may go."""
    monkeypatch.setattr("whaleid.pipeline.run_stages.count_rows", lambda project: 8)
    for head, wanted in (("siamese", False), ("softmax", True)):
        one = experiment(head)
        project = Project(world.competition, recipe(), (one,), Workspace(tmp_path / head), data_keys=KEYS)
        for fold in range(3):
            out = project.workspace.features(one.name, fold)
            out.mkdir(parents=True)
            project.workspace.mark_current(out, features_key(project, one, fold))
        assert [task.current for task in feature_tasks(project)] == [wanted] * 3
        out = project.workspace.run(one.name, 0)
        out.mkdir(parents=True)
        project.workspace.mark_current(out, run_key(project, one, 0))
        assert feature_tasks(project)[0].current


def test_training_again_makes_the_features_of_before_outdated(world, tmp_path, monkeypatch):
    """Also where their key is still right: head and features are of one training, or the head reads noise."""
    for read in ("read_images", "read_folds", "read_cache"):
        monkeypatch.setattr(f"whaleid.pipeline.run_stages.{read}", lambda *_: None)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whaleid.training.run.train_run", killed)
    for head, outdated in (("siamese", True), ("softmax", False)):
        one = experiment(head)
        project = Project(world.competition, recipe(), (one,), Workspace(tmp_path / head), data_keys=KEYS)
        out, key = project.workspace.features(one.name, 0), features_key(project, one, 0)
        out.mkdir(parents=True)
        project.workspace.mark_current(out, key)
        with pytest.raises(KeyboardInterrupt):
            do(train_tasks(project)[0])
        assert project.workspace.is_current(out, key) != outdated


def test_an_ensemble_imports_no_networks() -> None:
    """Only a siamese head needs them, and timm is nearly half of what an ensemble's imports take."""
    script = "import sys; import whaleid.ensemble.ladder; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
