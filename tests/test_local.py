"""Local matching: descriptors, votes, honesty of the folds, and its rung in the ladder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from ladder_world import make_world, recipe, write_sources
from pipeline_world import keypoints_of

from whaleid.config import Competition, LocalConfig
from whaleid.ensemble.ladder import combine, rank_all
from whaleid.ensemble.protocol import read_protocol
from whaleid.local_matching import votes as local
from whaleid.local_matching.keypoints import Described, describe, describe_images, read_described
from whaleid.local_matching.rootsift import LENGTH, UNIT, root_sift, rooted
from whaleid.local_matching.votes import local_candidates
from whaleid.pipeline.project import Project
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError

CONFIG = LocalConfig(size=128, keypoints=60, neighbours=5, power=0.5)


def texture(seed: int, side: int = 128) -> np.ndarray:
    """A grey picture of blots, uint8 (side, side): as good as a flank."""
    rng = np.random.default_rng(seed)
    blots = cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), 3)
    return cv2.normalize(blots, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def turned(grey: np.ndarray, degrees: float, noise_seed: int) -> np.ndarray:
    """Another photograph of it: turned, cut, brighter, with some noise."""
    side = grey.shape[0]
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 1.1)
    moved = cv2.warpAffine(grey, turn, (side, side), borderMode=cv2.BORDER_REFLECT)[10:-5, 5:-10]
    noise = np.random.default_rng(noise_seed).normal(0, 4, moved.shape)
    return np.clip(0.8 * moved + 30 + noise, 0, 255).astype(np.uint8)


def write_images(root: Path, pictures: list[np.ndarray]) -> pd.DataFrame:
    """Pictures as files, and their table with the columns that describing needs."""
    names = [f"{number:03d}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        cv2.imwrite(str(root / name), picture)
    table = pd.DataFrame({"image": names, "path": names, "x0": 0.0, "y0": 0.0})
    return table.assign(x1=[float(one.shape[1]) for one in pictures], y1=[float(one.shape[0]) for one in pictures])


def random_described(counts: list[int], seed: int = 0) -> Described:
    """Descriptors of nothing, crowded enough that neighbours differ."""
    rng = np.random.default_rng(seed)
    middles = rng.integers(0, 120, (8, LENGTH))
    total = sum(counts)
    vectors = middles[rng.integers(0, 8, total)] + rng.integers(0, 12, (total, LENGTH))
    return Described(vectors.astype(np.uint8), np.cumsum([0, *counts], dtype=np.int64))


# ------------------------------------------------------------------------------------------------ descriptors


def test_rooted_equals_the_formula():
    sift = np.random.default_rng(0).integers(0, 200, (20, LENGTH)).astype(np.float32)
    for row, found in zip(sift, rooted(sift), strict=True):
        expected = [min(round(UNIT * (value / sum(row.tolist())) ** 0.5), 255) for value in row.tolist()]
        assert np.abs(found.astype(int) - expected).max() <= 1 and found.dtype == np.uint8
    assert np.linalg.norm(rooted(sift) / UNIT, axis=1) == pytest.approx(1, abs=0.01)
    assert not rooted(np.zeros((1, LENGTH), np.float32)).any()


def test_strongest_keypoints_come_first():
    many, places = root_sift(texture(1), 1000)
    few, few_places = root_sift(texture(1), 40)
    assert len(few) == len(few_places) == 40 < len(many) == len(places)
    assert {tuple(place) for place in few_places} <= {tuple(place) for place in places}
    assert places.shape[1] == 4 and places.min() >= 0 and places[:, :2].max() < 128 and places.dtype == np.float32


def test_picture_without_keypoints():
    vectors, places = root_sift(np.full((64, 64), 128, np.uint8), 50)
    assert vectors.shape == (0, LENGTH) and vectors.dtype == np.uint8 and places.shape == (0, 4)


def test_box_and_size(tmp_path):
    """Only what is inside the box is described, shrunk to the size and never enlarged."""
    wide = np.full((200, 500), 128, np.uint8)
    wide[40:168, 300:428] = texture(2)
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    inside, places = describe(tmp_path / "a.png", np.array([300, 40, 428, 168]), CONFIG)
    alone, alone_places = root_sift(texture(2), CONFIG.keypoints)
    assert np.array_equal(inside, alone) and np.array_equal(places, alone_places)
    _, shrunk = describe(tmp_path / "a.png", np.array([0, 0, 500, 200]), CONFIG)
    assert len(shrunk) and shrunk[:, 0].max() < 128 and shrunk[:, 1].max() < 51.2 + 1
    assert len(describe(tmp_path / "a.png", np.array([0, 0, 100, 100]), CONFIG)[0]) == 0


def test_folder_holds_each_image_whatever_the_workers(tmp_path):
    pictures = [texture(0), np.full((90, 70), 9, np.uint8), texture(3)[:, :100], texture(4)]
    images = write_images(tmp_path, pictures)
    for workers in (1, 3):
        describe_images(images, tmp_path, tmp_path / f"out{workers}", CONFIG, workers)
        described = read_described(tmp_path / f"out{workers}", images)
        places = np.load(tmp_path / f"out{workers}" / "points.npy")
        assert len(places) == len(described.vectors) == described.offsets[-1]
        for row, picture in enumerate(pictures):
            part = slice(described.offsets[row], described.offsets[row + 1])
            vectors, points = root_sift(picture, CONFIG.keypoints)
            assert np.array_equal(described.vectors[part], vectors) and np.array_equal(places[part], points)
    assert described.counts(np.arange(4))[1] == 0
    taken, owner = described.take(np.array([3, 1, 0]))
    assert np.array_equal(taken[owner == 0], root_sift(pictures[3], CONFIG.keypoints)[0])
    assert np.array_equal(taken[owner == 2], root_sift(pictures[0], CONFIG.keypoints)[0])
    assert not (owner == 1).any()


def test_broken_images_are_all_named_and_nothing_is_left(tmp_path):
    images = write_images(tmp_path, [texture(number) for number in range(5)])
    (tmp_path / "001.png").write_bytes(b"")
    (tmp_path / "003.png").write_bytes(b"no picture")
    with pytest.raises(WhaleidError, match=r"2 of 5 images.*001\.png.*003\.png") as caught:
        describe_images(images, tmp_path, tmp_path / "out" / "local", CONFIG, 2)
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").iterdir())


def test_foreign_folder_is_refused(tmp_path):
    images = write_images(tmp_path, [texture(0), texture(1)])
    describe_images(images, tmp_path, tmp_path / "out", CONFIG, 1)
    with pytest.raises(WhaleidError, match="not the descriptors of these images"):
        read_described(tmp_path / "out", images[::-1])
    with pytest.raises(WhaleidError, match="no readable descriptors"):
        read_described(tmp_path / "nowhere", images)


# ------------------------------------------------------------------------------------------------------ votes


def naive(described: Described, query: int, gallery: list[int], codes: list[int], config: LocalConfig) -> dict:
    """Score of each identity with a vote, by loops."""
    off, all_vectors = described.offsets, np.asarray(described.vectors, dtype=int)
    pool = [
        (all_vectors[j], code) for row, code in zip(gallery, codes, strict=True) for j in range(off[row], off[row + 1])
    ]
    held = {code: sum(one == code for _, one in pool) for code in set(codes)}
    votes: dict[int, float] = {}
    for descriptor in all_vectors[off[query] : off[query + 1]]:
        near = sorted((int(((descriptor - other) ** 2).sum()), code) for other, code in pool)[: config.neighbours]
        best: dict[int, int] = {}
        for distance, code in near:
            best[code] = min(best.get(code, distance), distance)
        for code, distance in best.items():
            votes[code] = votes.get(code, 0.0) + (near[-1][0] - distance) / UNIT**2
    fair = {code: vote / held[code] ** config.power for code, vote in votes.items() if vote > 0}
    return {code: np.log(vote / sum(fair.values())) for code, vote in fair.items()}


@pytest.mark.parametrize(("neighbours", "power"), [(2, 0.0), (5, 0.5), (11, 1.0), (500, 0.3)])
def test_votes_equal_loops(neighbours, power):
    config = CONFIG.model_copy(update={"neighbours": neighbours, "power": power})
    described = random_described([12, 0, 7, 9, 20, 5, 14, 3, 10], seed=neighbours)
    gallery, gallery_codes = np.array([2, 3, 4, 6, 8]), np.array([0, 1, 2, 1, 3])
    queries = np.array([7, 0, 1, 5])
    codes, scores = local_candidates(described, queries, gallery, gallery_codes, config, 6)
    for place, query in enumerate(queries):
        expected = naive(described, query, gallery.tolist(), gallery_codes.tolist(), config)
        found = {int(code): float(score) for code, score in zip(codes[place], scores[place], strict=True) if code >= 0}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert (np.diff(scores[place][codes[place] >= 0]) <= 0).all()
    assert (codes[2] == -1).all() and (scores[2] == -np.inf).all()  # image 1 has no keypoints
    assert codes.dtype == np.int64 and scores.dtype == np.float32


def test_chunks_change_nothing(monkeypatch):
    described = random_described([9] * 40)
    rows, codes = np.arange(20), np.arange(20) % 7
    whole = local_candidates(described, rows + 20, rows, codes, CONFIG, 5)
    monkeypatch.setattr("whaleid.local_matching.keypoints._CHUNK", 130)
    parts = local_candidates(described, rows + 20, rows, codes, CONFIG, 5)
    assert np.array_equal(whole[0], parts[0]) and np.array_equal(whole[1], parts[1])


def test_a_query_never_finds_itself():
    described = random_described([5] * 4)
    with pytest.raises(WhaleidError, match="its own gallery"):
        local_candidates(described, np.array([1]), np.arange(3), np.arange(3), CONFIG, 3)


def test_gallery_without_keypoints():
    described = random_described([5, 0, 0])
    codes, scores = local_candidates(described, np.array([0]), np.array([1, 2]), np.array([0, 1]), CONFIG, 3)
    assert (codes == -1).all() and (scores == -np.inf).all()


def test_turned_copy_finds_its_identity_among_distractors(tmp_path):
    originals = [texture(seed) for seed in range(12)]
    images = write_images(tmp_path, [*originals, *(turned(one, 20 * n - 90, n) for n, one in enumerate(originals))])
    describe_images(images, tmp_path, tmp_path / "out", CONFIG, 1)
    described = read_described(tmp_path / "out", images)
    codes, _ = local_candidates(described, np.arange(12, 24), np.arange(12), np.arange(12), CONFIG, 3)
    assert (codes[:, 0] == np.arange(12)).sum() >= 11  # by chance: 1


# ------------------------------------------------------------------------------------------------- the ladder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A drawn world in which an image's descriptors are those of its identity, disturbed; some have none."""
    world = make_world(identities=20, seed=4, noise=1.5)
    folder = tmp_path_factory.mktemp("drawn")
    sources = write_sources(world, folder / "features", count=2)
    truth = world.images["identity"].to_numpy(dtype=object).copy()
    truth[world.images["split"].to_numpy() == "test"] = world.solution
    write_described(folder / "local", world.images, truth)
    return world, sources, folder / "local"


def write_described(folder: Path, images: pd.DataFrame, truth: np.ndarray, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    marks = {name: rng.integers(0, 90, (10, LENGTH)) for name in sorted(set(truth.tolist()))}
    counts = np.where(np.arange(len(images)) % 9 == 4, 0, 10)
    vectors = [
        marks[name] + rng.integers(0, 60, (10, LENGTH)) for name, count in zip(truth, counts, strict=True) if count
    ]
    folder.mkdir(parents=True)
    np.save(folder / "descriptors.npy", np.concatenate(vectors).astype(np.uint8))
    np.save(folder / "offsets.npy", np.cumsum([0, *counts], dtype=np.int64))
    images[["image"]].to_csv(folder / "rows.csv", index=False)


def test_ladder_with_local_matching(drawn, tmp_path):
    world, sources, folder = drawn
    config = recipe(local_matching={"neighbours": 5})
    result = combine(world.images, world.folds, sources, config, world.competition, tmp_path, folder)
    assert [rung.name for rung in result.rungs][-3:] == ["classifier", "local matching", "blend"]
    rung = result.rung("local matching")
    assert rung.kind == "votes" and rung.weight > 0 and rung.score.map > 0.5
    without = combine(world.images, world.folds, sources, recipe(), world.competition, tmp_path)
    assert result.final.score.map > without.final.score.map + 0.02
    assert result.best_single == without.best_single != "local matching"
    answered = (rung.test.codes[:, 0] >= 0).sum()
    assert rung.test_guesses(5).shape == (len(world.solution), 5) and answered > 0
    again = combine(world.images, world.folds, sources, config, world.competition, tmp_path, folder)
    assert again.as_json() == result.as_json()


def test_own_fold_never_matters(drawn, tmp_path):
    """Other labels and other descriptors for the rest of a fold leave its queries' candidates as they are."""
    world, sources, folder = drawn
    config = recipe(local_matching={"neighbours": 5}).combine
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])

    def of(where: Path, given=protocol):
        return rank_all(sources, world.images, given, config, 0, where)[-1]

    before, part = of(folder), protocol.parts[1]
    spared = part.rows[::2]
    described = read_described(folder, world.images)
    changed = np.array(described.vectors)
    for row in np.setdiff1d(part.rows, spared):
        own = slice(described.offsets[row], described.offsets[row + 1])
        changed[own] = np.random.default_rng(row).permutation(changed[own].ravel()).reshape(-1, LENGTH)
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "descriptors.npy", changed)
    np.save(other / "offsets.npy", described.offsets)
    world.images[["image"]].to_csv(other / "rows.csv", index=False)
    after = of(other)
    kept = np.isin(part.rows, spared)
    assert np.array_equal(before.oof[1].codes[kept], after.oof[1].codes[kept])
    assert np.array_equal(before.oof[1].scores[kept], after.oof[1].scores[kept])
    assert not np.array_equal(before.oof[0].scores, after.oof[0].scores)  # to the other folds they do matter

    shuffled = world.images.copy()
    names = shuffled["identity"].to_numpy(dtype=object).copy()
    names[part.rows] = np.random.default_rng(0).permutation(names[part.rows])
    shuffled["identity"] = names
    folds = world.folds.assign(identity=world.folds["image"].map(shuffled.set_index("image")["identity"]))
    relabelled = read_protocol(shuffled, folds, world.competition, [0, 1, 2])
    assert np.array_equal(relabelled.classes, protocol.classes)
    relabelled_oof = of(folder, relabelled).oof
    assert np.array_equal(before.oof[1].codes, relabelled_oof[1].codes)
    assert np.array_equal(before.oof[1].scores, relabelled_oof[1].scores)
    assert not np.array_equal(before.oof[0].codes, relabelled_oof[0].codes)


def test_test_set_is_matched_once_against_all(drawn, monkeypatch):
    world, sources, folder = drawn
    asked = []
    real = local.local_candidates
    monkeypatch.setattr(
        "whaleid.ensemble.rankers.local.local_candidates",
        lambda described, queries, gallery, *rest: (
            asked.append((queries, gallery)) or real(described, queries, gallery, *rest)
        ),
    )
    protocol = read_protocol(world.images, world.folds, world.competition, [0, 1, 2])
    ranking = rank_all(sources, world.images, protocol, recipe(local_matching={}).combine, 0, folder)[-1]
    assert len(asked) == 4 and len(ranking.test) == 3 and ranking.test[0] is ranking.test[2]
    assert np.array_equal(asked[-1][0], protocol.test_rows) and np.array_equal(asked[-1][1], protocol.gallery)
    for part, (queries, gallery) in zip(protocol.parts, asked[:3], strict=True):
        assert np.array_equal(queries, part.rows) and np.array_equal(gallery, part.gallery)


def test_recipe_and_folder_go_together(drawn, tmp_path):
    world, sources, folder = drawn
    for config, where in ((recipe(local_matching={}), None), (recipe(), folder)):
        with pytest.raises(WhaleidError, match="go together"):
            combine(world.images, world.folds, sources, config, world.competition, tmp_path, where)


def test_no_labelled_keypoints_at_all(drawn, tmp_path):
    world, sources, _ = drawn
    np.save(tmp_path / "descriptors.npy", np.empty((0, LENGTH), np.uint8))
    np.save(tmp_path / "offsets.npy", np.zeros(len(world.images) + 1, np.int64))
    world.images[["image"]].to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(WhaleidError, match="no labelled image has a keypoint"):
        combine(
            world.images, world.folds, sources, recipe(local_matching={}), world.competition, tmp_path / "out", tmp_path
        )


def test_ladder_without_unknown(drawn, tmp_path):
    """Queries without keypoints, and no `unknown` to fall back on: the blend answers them all the same."""
    world = make_world(identities=15, seed=5, unknown=False)
    sources = write_sources(world, tmp_path / "features", count=1)
    truth = world.images["identity"].to_numpy(dtype=object).copy()
    truth[world.images["split"].to_numpy() == "test"] = world.solution
    write_described(tmp_path / "local", world.images, truth)
    competition = world.competition.model_copy(update={"unknown": None, "unknown_share": None})
    result = combine(
        world.images, world.folds, sources, recipe(local_matching={}), competition, tmp_path / "out", tmp_path / "local"
    )
    assert (result.test_guesses[:, 0] != "").all() and result.rung("local matching").weight > 0


# ------------------------------------------------------------------------------------------------- the stage


def test_stage_describes_once(tmp_path, monkeypatch):
    """Made once for a size and number of keypoints; again for others; not at all where the recipe has none."""
    (tmp_path / "pictures").mkdir()
    images = write_images(tmp_path / "pictures", [texture(number) for number in range(4)])
    images.assign(identity=["a", "b", "a", "b"])[["image", "identity"]].to_csv(tmp_path / "train.csv", index=False)
    table = {"csv": "train.csv", "images": "pictures", "image": "image", "identity": "identity"}
    competition = Competition.model_validate({"name": "small", "root": tmp_path, "train": table})

    def stage(settings: dict | None) -> Path | None:
        return keypoints_of(Project(competition, recipe(local_matching=settings), (), Workspace(tmp_path / "work")))

    folder = stage({"keypoints": 30, "size": 64})
    assert folder == tmp_path / "work" / "local" / "64-30"
    assert read_described(folder, images).counts(np.arange(4)).max() <= 30
    other = stage({"keypoints": 20, "size": 64})
    assert other != folder and stage(None) is None
    monkeypatch.setattr("whaleid.local_matching.keypoints.describe_images", None)
    assert stage({"keypoints": 30, "size": 64, "neighbours": 7}) == folder
    cv2.imwrite(str(tmp_path / "pictures" / "000.png"), texture(9)[:100])
    with pytest.raises(TypeError):  # another picture: described again
        stage({"keypoints": 30, "size": 64})
