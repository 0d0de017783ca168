"""ALIKED and LightGlue with random weights: the stage, the matcher, the whole pipeline, and missing files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from keypoint_networks import SHARPNESS, plain_lightglue, random_aliked, write_weights
from kornia.feature import LightGlue
from pipeline_world import figures_of, keypoints_of
from safetensors.torch import save_file
from test_local import texture, write_images
from test_masks import disc
from test_report_images import make_drawn

from whaleid.cli import main as cli
from whaleid.config import LearnedConfig, LocalConfig, VerifyConfig
from whaleid.config.settings import Settings
from whaleid.local_matching.aliked import aliked_detector, aliked_network
from whaleid.local_matching.detectors import SIGNED, Detector, signed_bytes, signed_floats
from whaleid.local_matching.geometric_verification import agreeing, matched_keypoints, verified_candidates
from whaleid.local_matching.keypoints import Described, describe_images, frames_of, read_described
from whaleid.local_matching.lightglue import lightglue_matcher, lightglue_network
from whaleid.local_matching.match_score import FEATURES, fit_match_scorer, matches_of, supported, training_matches_of
from whaleid.local_matching.matchers import Matcher, matcher_of
from whaleid.local_matching.network_keypoints import DIRECTION, SIZE
from whaleid.local_matching.pair_score import MATCH_FEATURES, match_pairs
from whaleid.local_matching.votes import local_candidates, nearest_descriptors
from whaleid.local_matching.weights import ALIKED, ALIKED_LIGHTGLUE, find_published, load_published
from whaleid.pipeline.keys import candidates_key, keypoints_key
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_images
from whaleid.report.page import write_report
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import file_digest

LOCAL = {"features": "aliked", "size": 128, "keypoints": 40, "verify": {"matcher": "lightglue", "magsac": 4.0}}
CONFIG = LocalConfig.model_validate(LOCAL)
MUTUAL = CONFIG.model_copy(update={"verify": VerifyConfig(ratio=0.95)})


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def detect(weights: Path) -> Detector:
    return aliked_detector(find_published(ALIKED, weights))


def colour(seed: int, side: int = 128) -> np.ndarray:
    return cv2.merge([texture(seed + 50 * number, side) for number in range(3)])


# ------------------------------------------------------------------------------------------------- one picture


def test_descriptors_are_those_of_the_whole_network(detect, weights: Path):
    """kornia's own way through the network, asked for the strongest alone, finds the same."""
    network = load_published(aliked_network(), find_published(ALIKED, weights))
    network.dkd.top_k = 25  # type: ignore[union-attr]
    picture = colour(1)
    vectors, points = detect(picture, 25, None)
    with torch.inference_mode():
        found = network(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)[0]
    order = np.argsort(-found.keypoint_scores.numpy(), kind="stable")
    assert np.allclose(points[:, :2], found.keypoints.numpy()[order], atol=1e-3)
    assert (np.abs(vectors.astype(int) - signed_bytes(found.descriptors.numpy()[order])) <= 1).all()
    assert vectors.dtype == np.uint8 and points.dtype == np.float32 and vectors.shape == (25, 128)
    assert (points[:, 2] == SIZE).all() and (points[:, 3] == DIRECTION).all() and SIZE > 0
    exact = found.descriptors.numpy()[order]
    distance = np.linalg.norm(exact[:, None] - exact, axis=2)
    stored = np.linalg.norm(vectors[:, None].astype(float) - vectors, axis=2) / SIGNED
    assert np.abs(stored - distance)[distance > 0.3].max(initial=0) < 0.02


def test_strongest_first_and_inside_the_mask(detect):
    every, places = detect(colour(2), 10_000, None)
    few, few_places = detect(colour(2), 9, None)
    assert np.array_equal(few, every[:9]) and np.array_equal(few_places, places[:9])
    white = disc(128, 128)
    column, row = np.rint(places[:, :2]).astype(int).T
    inside = np.flatnonzero(white[row, column])
    for most in (5, 10_000):
        vectors, points = detect(colour(2), most, white)
        assert np.array_equal(vectors, every[inside[:most]]) and np.array_equal(points, places[inside[:most]])
    assert 5 < len(inside) < len(every) and places[:, :2].min() >= 0 and places[:, :2].max() <= 127
    assert len(detect(colour(2), 50, np.zeros((128, 128), np.uint8))[0]) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 90), (90, 4), (5, 5), (6, 40), (33, 9)])
def test_pictures_of_any_size(detect, height: int, width: int):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    vectors, points = detect(picture, 20, None)
    assert vectors.shape == (len(points), 128) and points.shape[1] == 4 and len(points) <= 20
    assert len(detect(np.full((40, 40, 3), 9, np.uint8), 20, np.zeros((40, 40), np.uint8))[1]) == 0


# ---------------------------------------------------------------------------------------------- many pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, weights: Path) -> tuple[Described, pd.DataFrame]:
    """Eight pictures, the same eight again, a turned copy of each, and one without a keypoint."""
    folder = tmp_path_factory.mktemp("pictures")
    originals = [colour(seed)[: 128 - 4 * seed] for seed in range(8)]
    copies = [nudged(one, n) for n, one in enumerate(originals)]
    table = write_images(folder, [*originals, *originals, *copies, np.full((3, 60), 9, np.uint8)])
    for workers in (1, 3):
        describe_images(table, folder, folder / f"out{workers}", CONFIG, workers, weights=weights)
    described = read_described(folder / "out3", table, "aliked")
    assert file_digest(folder / "out1" / "descriptors.npy") == file_digest(folder / "out3" / "descriptors.npy")
    return described, table


def nudged(picture: np.ndarray, seed: int) -> np.ndarray:
    """Another photograph of it: turned by two degrees, with some noise."""
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 2, 1.02)
    moved = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.clip(moved + np.random.default_rng(seed).normal(0, 2, moved.shape), 0, 255).astype(np.uint8)


def matcher(pictures: tuple[Described, pd.DataFrame], config: LocalConfig, weights: Path) -> Matcher:
    return matcher_of(*pictures, config, weights)


@pytest.mark.parametrize("config", [MUTUAL, CONFIG], ids=["mutual", "lightglue"])
def test_the_same_picture_comes_first(pictures, weights: Path, config: LocalConfig):
    """By votes, and by votes and matches; a query without keypoints has an empty list."""
    described, _ = pictures
    queries, gallery, codes = np.array([*range(8, 16), 24]), np.arange(8), np.arange(8)
    voted = local_candidates(described, queries, gallery, codes, config, 4)
    assert voted[0][:8, 0].tolist() == list(range(8)) and (voted[0][8] == -1).all()
    found = verified_candidates(
        described, queries, gallery, codes, voted, config, 2, matcher(pictures, config, weights)
    )
    assert found[0][:8, 0].tolist() == list(range(8)) and (found[1][:8, 0] - voted[1][:8, 0]).min() > np.log(20)


def test_another_photograph_is_found_among_others(pictures, weights: Path):
    described, _ = pictures
    queries, gallery, codes = np.arange(16, 24), np.arange(8), np.arange(8)
    voted = local_candidates(described, queries, gallery, codes, CONFIG, 8)
    assert (voted[0][:, 0] == codes).sum() >= 6  # by chance: 1
    found_by = matcher(pictures, CONFIG, weights)
    for config in (CONFIG, MUTUAL):
        found = verified_candidates(described, queries, gallery, codes, voted, config, 1, found_by)
        assert (found[0][:, 0] == codes).sum() >= 6
    one, other, used = matched_keypoints(described, 16, 0, CONFIG, found_by)
    turn = cv2.getRotationMatrix2D((64, 64), 2, 1.02)
    back = (one - turn[:, 2]) @ np.linalg.inv(turn[:, :2]).T
    assert used.sum() >= 5 and np.median(np.linalg.norm(other - back, axis=1)[used]) < 3


def test_lightglue_is_the_double_softmax_that_its_weights_say(pictures, weights: Path, monkeypatch):
    """Whatever the batch, against loops; empty pictures match nothing."""
    described, table = pictures
    file, frames = find_published(ALIKED_LIGHTGLUE, weights), frames_of(table, CONFIG.size)
    rows = np.array([0, 24, 3, 17, 9, 5])
    found = list(lightglue_matcher(described, frames, file)(16, rows))
    monkeypatch.setattr("whaleid.local_matching.lightglue._BATCH", 1)
    alone = list(lightglue_matcher(described, frames, file)(16, rows))
    own = signed_floats(described.image(16)[0])
    for row, pair, again in zip(rows, found, alone, strict=True):
        sharp = SHARPNESS * own @ signed_floats(described.image(int(row))[0]).T
        assert all(np.array_equal(one, other) for one, other in zip(pair, again, strict=True))
        if not sharp.size:
            assert len(pair[0]) == len(pair[1]) == 0
            continue
        likely = softmax(sharp, 1) * softmax(sharp, 0)
        expected = [
            (i, int(likely[i].argmax()))
            for i in range(len(own))
            if likely[:, likely[i].argmax()].argmax() == i and likely[i].max() > 0.1
        ]
        assert list(zip(*(side.tolist() for side in pair), strict=True)) == expected
    assert sum(len(asked) for asked, _ in found) > 40
    assert all(not len(asked) for asked, _ in lightglue_matcher(described, frames, file)(24, rows))


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def test_lightglue_is_given_places_frames_and_unit_vectors(pictures, weights: Path, monkeypatch):
    described, _ = pictures
    given: list[dict] = []
    real = LightGlue.forward
    monkeypatch.setattr(LightGlue, "forward", lambda self, data: given.append(data) or real(self, data))
    list(matcher(pictures, CONFIG, weights)(5, np.array([2])))
    for side, row in (("image0", 5), ("image1", 2)):
        vectors, points = described.image(row)
        assert np.array_equal(given[0][side]["keypoints"][0].numpy(), points[:, :2])
        assert given[0][side]["image_size"].tolist() == [[128, 128 - 4 * row]]  # width and height
        exact = (vectors - 128) / np.linalg.norm(vectors - 128, axis=1, keepdims=True)
        assert np.allclose(given[0][side]["descriptors"][0].numpy(), exact, atol=1e-6)


def test_sizes_and_directions_that_are_all_the_same(pictures):
    """No division by zero, nothing left out by size or turn, and trees that find nothing in them."""
    described, table = pictures
    points = np.asarray(described.points)
    narrow = VerifyConfig(scale=1.0, turn=0.0, shift=9)
    assert agreeing(points[:30], points[30:60], 128, narrow).all()
    queries, gallery, frames = np.arange(16, 24), np.arange(8), frames_of(table, CONFIG.size)
    codes = np.full(len(table), -1)
    codes[gallery] = np.arange(8)
    nearest = nearest_descriptors(described, queries, gallery, 6)
    with np.errstate(all="raise"):
        found = matches_of(described, frames, queries, nearest)
    columns = {name: found.values[:, FEATURES.index(name)] for name in FEATURES}
    assert np.isfinite(found.values).all() and len(found.query) > 50
    assert not columns["size ratio"].any() and not columns["turn"].any() and (columns["size"] == SIZE).all()
    assert 0 < columns["distance"].max() < 2  # between unit vectors, whatever they are stored as
    assert supported(found, described, frames, LearnedConfig()).any()
    config = LearnedConfig(min_data_in_leaf=5, num_iterations=5)
    model = fit_match_scorer(
        [training_matches_of(described, frames, queries, np.arange(8), codes, nearest, config)], config
    )
    assert model is not None and np.isfinite(model.log_ratio(found.values)).all()
    pairs = match_pairs(described, frames, queries, np.tile(gallery, (8, 1)), MUTUAL_PAIRS, 1)
    assert np.isfinite(pairs.values).all() and (pairs.values[:, MATCH_FEATURES.index("size")] == SIZE).all()


MUTUAL_PAIRS = LearnedConfig().pairs or pytest.fail("pairs are on by default")


# ------------------------------------------------------------------------------------------------ the whole pipeline


@pytest.fixture(scope="module")
def project(tmp_path_factory, weights: Path) -> Project:
    made = make_drawn(tmp_path_factory.mktemp("drawn"))
    local = LocalConfig.model_validate({**LOCAL, "verify": {**LOCAL["verify"], "images": 6}})
    combine = made.recipe.combine.model_copy(update={"local_matching": local})
    recipe = made.recipe.model_copy(update={"combine": combine})
    return replace(made, recipe=recipe, settings=replace(made.settings, weights=weights))


def test_the_pipeline_with_networks(project: Project):
    figures = figures_of(project)
    scores = {rung["name"]: rung["map"] for rung in figures["ladder"]["rungs"]}
    assert scores["local matching"] > 0.5 and scores["local verified"] > 0.5  # by chance: about 0.3
    folder = keypoints_of(project)
    assert folder is not None and folder.name == "aliked-128-40"
    assert read_described(folder, read_images(project.workspace), "aliked").vectors.shape[1] == 128
    assert "mutual matches agree" in write_report(project).read_text()


def test_other_weights_are_other_keys(project: Project, tmp_path: Path):
    """ALIKED's: described anew, and another answer. LightGlue's: another answer from the same descriptors."""
    before = keypoints_key(project, "n"), candidates_key(project)
    plain = replace(project, settings=Settings(weights=tmp_path))
    write_weights(tmp_path, seed=0)
    assert (keypoints_key(plain, "n"), candidates_key(plain)) == before  # the same content elsewhere
    torch.save(lightglue_network().state_dict(), tmp_path / f"{ALIKED_LIGHTGLUE.name}.pth")
    matching = replace(project, settings=Settings(weights=tmp_path))
    second = candidates_key(matching)
    assert keypoints_key(matching, "n") == before[0] and second != before[1]
    save_file(random_aliked(1), tmp_path / f"{ALIKED.name}.safetensors")
    other = replace(project, settings=Settings(weights=tmp_path))
    assert keypoints_key(other, "n") != before[0] and candidates_key(other) not in (before[1], second)


def test_missing_weights_end_before_any_work(project: Project, tmp_path: Path, monkeypatch):
    """One line, whichever stage is asked: the file, where it is published, what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    workspace = replace(project.workspace, root=tmp_path / "w")
    bare = replace(project, settings=Settings(weights=tmp_path), workspace=workspace)
    with pytest.raises(
        WhaleidError, match=r"aliked-n16\.safetensors: no such file.*weights aliked-n16.*leave"
    ) as caught:
        run(bare, "ladder")
    assert "\n" not in str(caught.value) and "No matching distribution" in str(caught.value)
    assert not (tmp_path / "w").exists()
    with pytest.raises(WhaleidError, match=r"aliked-n16"):
        keypoints_of(bare)
    save_file(random_aliked(), tmp_path / f"{ALIKED.name}.safetensors")
    with pytest.raises(WhaleidError, match=r"aliked_lightglue\.safetensors: no such file.*lightglue.*cvg/LightGlue"):
        run(bare, "ladder")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("command", ["train", "ensemble", "matches"])
def test_the_command_line_says_it_in_one_line(project: Project, tmp_path: Path, monkeypatch, capsys, command: str):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    given = project.competition.model_dump(mode="json", exclude={"rename_values"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(given))
    recipe = {"folds": 2, "sources": project.recipe.sources, "combine": {"local_matching": LOCAL}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "settings.json").write_text(json.dumps({"WEIGHTS_DIR": str(tmp_path)}))
    monkeypatch.setenv("WHALEID_SETTINGS", str(tmp_path / "settings.json"))
    names = ["00&.png", "01&.png", "--output", str(tmp_path / "x.png")] if command == "matches" else []
    options = ["-c", str(tmp_path / "tiny.yaml"), "-r", str(tmp_path / "own.yaml"), "-w", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["whaleid", command, *names, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert (
        ended.value.code == 2 and said.splitlines()[-1].startswith("error: ") and "whaleid weights aliked-n16" in said
    )
    assert not (tmp_path / "work" / "tiny" / "local").exists() and not (tmp_path / "x.png").exists()


# ------------------------------------------------------------------------------------------------------ the files


def test_both_forms_give_the_same_network(tmp_path: Path):
    state = random_aliked()
    torch.save(state, tmp_path / f"{ALIKED.name}.pth")
    assert find_published(ALIKED, tmp_path).suffix == ".pth"
    pickled = load_published(aliked_network(), find_published(ALIKED, tmp_path)).state_dict()
    save_file(state, tmp_path / f"{ALIKED.name}.safetensors")
    assert find_published(ALIKED, tmp_path).suffix == ".safetensors"
    other = load_published(aliked_network(), find_published(ALIKED, tmp_path))
    assert all(torch.equal(pickled[name], tensor) for name, tensor in other.state_dict().items())
    assert not other.training and not any(one.requires_grad for one in other.parameters())


def test_files_may_lack_what_is_not_learned(tmp_path: Path):
    """As the authors' files do: tables that follow from the settings, and counts of batches."""
    state = {name: tensor for name, tensor in random_aliked().items() if "hw_grid" not in name and "num_b" not in name}
    assert len(state) < len(random_aliked())
    torch.save(state, tmp_path / "some.pth")
    network = load_published(aliked_network(), tmp_path / "some.pth")
    assert torch.equal(network.state_dict()["dkd.hw_grid"], aliked_network().state_dict()["dkd.hw_grid"])


class Code:
    """What a pickle could run."""


def test_files_that_are_not_the_weights(tmp_path: Path):
    short = {name: tensor for name, tensor in random_aliked().items() if name != "desc_head.agg_weights"}
    wide = {**random_aliked(), "block1.conv1.weight": torch.zeros(3, 3)}
    given = {
        "not the weights of ALIKED: desc_head.agg_weights is missing": short,
        r"block1.conv1.weight is of shape \(3, 3\)": wide,
        "not the weights of ALIKED": plain_lightglue(),
        "no readable weights": {"block1.conv1.weight": Code()},
        "a table of tensors is expected": [torch.zeros(3)],
    }
    for said, content in given.items():
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(WhaleidError, match=said) as caught:
            load_published(aliked_network(), tmp_path / "a.pth")
        assert "\n" not in str(caught.value) and "a.pth" in str(caught.value)
    for name in ("b.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"<html>no such page</html>")
        with pytest.raises(WhaleidError, match=f"{name}: no readable weights"):
            load_published(aliked_network(), tmp_path / name)
