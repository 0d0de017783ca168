"""Bursts: found by colours and by time, reported by `data check` and `data folds`, and measured by the ladder."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from gallery_world import make_gallery_world, result_of
from PIL import Image
from test_images_table import jpeg, make

from whaleid.cli import main as cli
from whaleid.data.bursts import CHANCE, across, burst_numbers, bursts_of, find_bursts
from whaleid.data.check import check_data
from whaleid.data.competition import read_rows
from whaleid.data.images_table import build_images
from whaleid.ensemble.burst_risk import burst_risk, kept_together, near_queries
from whaleid.ensemble.protocol import NONE, read_protocol
from whaleid.ensemble.summary import burst_lines
from whaleid.evaluation.metrics import reciprocal_rank_at_k


def drawn(seed: int, identities: int = 12, pictures: int = 4) -> tuple[pd.DataFrame, np.ndarray, set[tuple[int, int]]]:
    """Labelled rows in any order, their colours, and the pairs of one identity that are in one place."""
    rng = np.random.default_rng(seed)
    who = rng.permutation(np.repeat(np.arange(identities), pictures))
    place = np.arange(len(who))
    for one in range(0, identities, 3):
        first, second = np.flatnonzero(who == one)[:2]
        place[second] = place[first]
    colours = rng.integers(0, 256, (len(who), 384))[place] + rng.integers(-5, 6, (len(who), 384))
    pairs = {(int(place[row]), row) for row in range(len(who)) if place[row] != row}
    rows = pd.DataFrame(
        {"image": [f"{row:03d}.jpg" for row in range(len(who))], "identity": [f"w{one}" for one in who]}
    )
    return rows, np.clip(colours, 0, 255).astype(np.uint8), pairs


def found(rows: pd.DataFrame, colours: np.ndarray, unknown: str | None = None) -> set[tuple[int, int]]:
    return {tuple(pair) for pair in find_bursts(rows, colours, unknown).tolist()}


@pytest.mark.parametrize("seed", range(3))
def test_planted_bursts_are_found_and_chance_finds_few(seed, monkeypatch):
    monkeypatch.setattr("whaleid.data.bursts.BLOCK", 3)
    rows, colours, planted = drawn(seed)
    pairs = found(rows, colours)
    assert planted <= pairs and len(planted) == 4
    assert len(pairs - planted) <= 1 + 4 * CHANCE * 12 * 6  # of 12 identities with 6 pairs each
    who = rows["identity"].to_numpy()
    assert all(one < other and who[one] == who[other] for one, other in pairs)


def test_where_nothing_can_be_told_nothing_is_found():
    rows, colours, _ = drawn(0)
    one_place = np.broadcast_to(colours[0], colours.shape)  # a camera that stands still
    assert found(rows, one_place) == set()
    assert found(rows.assign(identity="w0"), colours, "w0") == set()  # nobody knows which of them are the same
    assert found(rows[:10], colours[:10]) == set()  # too few pairs to tell what is rare
    assert found(rows, np.zeros_like(colours)) == set()  # unreadable images


def test_time_parts_what_looks_alike_and_joins_what_does_not():
    rows, colours, planted = drawn(0)
    (one, other), *others = sorted(planted)
    date = pd.Series("2026-01-01", index=rows.index)
    date[other] = "2026-01-05"
    assert found(rows.assign(date=date), colours) >= set(others)
    assert (one, other) not in found(rows.assign(date=date), colours)
    date[other] = "no date"
    assert (one, other) in found(rows.assign(date=date), colours)
    first, second, third, _ = np.flatnonzero(rows["identity"] == "w1")  # an identity without a burst
    date[first], date[second], date[third] = "2026-01-01 10:00:00", "2026-01-01T10:00:40Z", "2026-01-01 10:03:00"
    pairs = found(rows.assign(date=date), colours)
    assert (first, second) in pairs and (first, third) not in pairs


def test_chains_and_folds():
    pairs = np.array([[0, 2], [2, 3], [4, 5]])
    assert burst_numbers(pairs, 6).tolist() == [0, 1, 0, 0, 2, 2]
    assert across(pairs, np.array([0, 0, 1, 1, 2, 2])).tolist() == [[0, 2]]


def photograph(rng: np.random.Generator, place: np.ndarray) -> bytes:
    """An animal of any colours in a place whose light goes from one colour to another; place: int (2, 3)."""
    light = np.linspace(place[0], place[1], 64).astype(np.uint8)
    pixels = np.broadcast_to(light, (48, 64, 3)).copy()
    pixels[15:30, 20:40] = rng.integers(0, 256, (15, 20, 3))
    return jpeg(Image.fromarray(pixels))


def test_check_and_folds_say_which_photographs_seem_to_be_of_one_encounter(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    places = rng.integers(0, 256, (40, 2, 3))
    places[10:20] = places[:10]  # of ten individuals the first two photographs
    files = {f"{number:02d}.jpg": photograph(rng, place) for number, place in enumerate(places)}
    labels = {name: str(number % 10) for number, name in enumerate(files)}
    competition = make(tmp_path, {**files, "t.jpg": files["00.jpg"]}, labels)
    report = check_data(competition, 1)
    (line,) = (note for note in report.notes if note.startswith("bursts: "))
    assert "00.jpg and 10.jpg" in line and "of 40 labelled images" in line and "`group`" in line
    assert report.counts["across"] == 1  # the copy of a labelled image that was planted in the test set
    assert any("copy in train: t.jpg" in note for note in report.notes)
    images = build_images(competition, read_rows(competition), workers=1)
    names = images["image"].to_numpy()
    assert ("00.jpg", "10.jpg") in {tuple(names[pair]) for pair in bursts_of(competition, images)}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(competition.model_dump(mode="json", exclude_defaults=True)))
    (tmp_path / "tiny.yaml").write_text("{extends: default, model: {backbone: test_resnet, weights: random}}")
    (tmp_path / "recipe.yaml").write_text("{folds: 2, experiments: [tiny]}")
    words = ["data", "folds", "-c", "t.yaml", "-r", "recipe.yaml", "--work", "work"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["whaleid", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0), capsys.readouterr().err
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "bursts" in line)
    assert line.startswith("note: bursts: ") and "encounter in another fold: " in line


# ------------------------------------------------------------------------------------------------------ the ladder


def planted_world(seed: int = 0):
    """Identities of four pictures, of which half have two pictures of one encounter in two folds, almost equal."""
    world = make_gallery_world(4, 2, seed, noise=1.6, identities=40, tests=40)
    rng, embeddings = np.random.default_rng(seed), world.embeddings.copy()
    burst = np.arange(len(world.images))
    for name in np.unique(world.folds["identity"])[::2]:
        own = world.folds[world.folds["identity"] == name]
        one, other = own.index[own["fold"] == 0][0], own.index[own["fold"] == 1][0]
        burst[other] = burst[one]
        embeddings[other] = embeddings[one] + 0.02 * rng.normal(size=embeddings.shape[1])
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return replace(world, embeddings=embeddings), burst


def test_the_ladder_says_how_far_bursts_flatter(tmp_path):
    world, burst = planted_world()
    result = result_of(world, tmp_path, burst, full_gallery=False)
    risk = result.bursts
    assert risk.queries == 40 and risk.near > 0.95 and risk.others < 0.7
    assert risk.flatter == pytest.approx(result.final.score.map - risk.others)
    assert risk.simple.name == "concat kNN" and risk.simple.map == result.rung("concat kNN").score.map
    assert risk.simple.together < risk.simple.map - 0.1
    first, second = burst_lines(result.as_json())
    assert first.startswith("bursts: 40 of 160 queries") and f"up to {risk.flatter:.3f}" in first
    assert f"concat kNN scores {risk.simple.together:.3f} instead of {risk.simple.map:.3f}" in second
    none = result_of(world, tmp_path, np.arange(len(burst)), full_gallery=False)
    assert none.bursts is None and burst_lines(none.as_json()) == []


@pytest.mark.parametrize("unknown", [True, False])
def test_near_queries_and_galleries_equal_a_loop(unknown):
    rng = np.random.default_rng(1)
    world = make_gallery_world(3, 3, 0, unknown, identities=12, tests=5)
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    burst = np.arange(len(world.images))
    for name in np.unique(world.folds["identity"])[::2]:
        one, other, _ = world.folds.index[world.folds["identity"] == name]
        burst[other] = burst[one]
    near, together = near_queries(protocol, burst), kept_together(protocol, burst)
    place = 0
    for part, apart in zip(protocol.parts, together.parts, strict=True):
        for row, truth in zip(part.rows, part.truth, strict=True):
            assert near[place] == (truth >= 0 and any(burst[other] == burst[row] for other in part.gallery))
            place += 1
        kept = [row for row in part.gallery if burst[row] not in set(burst[part.rows])]
        assert apart.gallery.tolist() == kept and set(kept) <= set(apart.training)
        for truth, left, size in zip(part.truth, apart.truth, apart.sizes, strict=True):
            images = sum(code == truth for code in apart.gallery_codes)
            assert (left, size) == ((truth, images) if truth >= 0 and images else (NONE, 0))
    assert 0 < near.sum() < len(near)
    rank = rng.integers(0, 3, len(near))
    risk, scores = burst_risk(protocol, rank, near), reciprocal_rank_at_k(rank, 5)
    assert risk.near == pytest.approx(scores[near].mean())
    assert risk.others == pytest.approx(scores[~near].mean())  # every query's identity is known here
    assert burst_risk(protocol, rank, np.zeros_like(near)) is None
