"""Maps of the similarity of two images: they add up to it, show a known mark, and are told from those of chance."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_world import World, own_copy, shared_world
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from whaleid.cli.main import app
from whaleid.models.embedder import BatchNormNeck, Embedder
from whaleid.models.explanations import (
    SHARES,
    _mutual_pairs,
    agreeing_regions,
    deletion_scores,
    grid_shape,
    saliency_maps,
    similarity_maps,
)
from whaleid.models.pooling import AveragePool, build_pool
from whaleid.pipeline.workspace import read_folds
from whaleid.report.explain import load_networks, write_explanations
from whaleid.utils.errors import WhaleidError

NECKS = {
    "none": nn.Identity(),
    "linear": nn.Linear(8, 6),
    "batchnorm": BatchNormNeck(8, 6, dropout=0.3),
}


class TinyBackbone(nn.Module):
    """A convolution of stride 4, or one that sees nothing but red."""

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    channels = 8

    def __init__(self, red: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.red = red
        self.filters = nn.Conv2d(3, self.channels, 4, stride=4)

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.red:
            return self.filters(pixels)
        red = (pixels[:, :1] - pixels[:, 1:2] - 0.5).clamp(min=0)  # an image's mean colour is not red enough
        return torch.nn.functional.avg_pool2d(red, 4).expand(-1, self.channels, -1, -1) + 1e-3


def embedder(pool: str = "avg", neck: str = "none", slices: int = 1, red: bool = False) -> Embedder:
    torch.manual_seed(1)
    made = Embedder(TinyBackbone(red), build_pool(pool), NECKS[neck], 8 if neck == "none" else 6, slices)  # type: ignore
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = torch.randn(6)
            module.running_var = torch.rand(6) + 0.5
    return made.eval().requires_grad_(False)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("neck", list(NECKS))
@pytest.mark.parametrize("pool", ["avg", "gem", "max"])
def test_a_map_adds_up_to_the_similarity(pool: str, neck: str, slices: int) -> None:
    net = embedder(pool, neck, slices)
    cosine, maps = similarity_maps(net, noise())
    one, other = net.embed(torch.from_numpy(noise()))
    assert maps.shape == (2, 6, 10)
    assert cosine == pytest.approx(float(one @ other), abs=1e-5)
    assert maps.sum(axis=(1, 2)) == pytest.approx([cosine, cosine], abs=1e-5)


def test_the_map_of_a_mean_is_each_positions_own_part() -> None:
    """By loops: a position's features times the other image's pooled ones."""
    net = embedder()
    images = torch.from_numpy(noise())
    features = net.backbone(net.pixels(images)).numpy()
    means = features.mean(axis=(2, 3))
    lengths = np.linalg.norm(means, axis=1)
    _, maps = similarity_maps(net, noise())
    for image in range(2):
        for row, column in ((0, 0), (5, 9), (3, 2)):
            expected = features[image, :, row, column] @ means[1 - image] / 60 / lengths.prod()
            assert maps[image, row, column] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["avg", "gem", "max"])
def test_parts_of_a_pool_add_up_to_it(name: str) -> None:
    features = torch.randn(3, 5, 4, 7, generator=torch.Generator().manual_seed(0)).abs()
    pool = build_pool(name)
    with torch.no_grad():
        parts, pooled = pool.parts(features), pool(features)
        assert torch.allclose(parts.sum(2), pooled, atol=1e-6)
        if name == "gem":
            cubes = features.flatten(2) ** 3
            assert torch.allclose(parts, cubes / cubes.sum(2, keepdim=True) * pooled[:, :, None], atol=1e-6)
    assert pool.exact == isinstance(pool, AveragePool)


def marked() -> tuple[np.ndarray, np.ndarray]:
    """Two grey pictures with a red mark at different places, and where the marks are, bool (2, h, w)."""
    images = np.full((2, 48, 96, 3), 120, np.uint8)
    where = np.zeros(images.shape[:3], bool)
    where[0, 8:20, 12:28] = where[1, 24:36, 60:76] = True
    images[where] = (230, 20, 30)
    return images, where


@pytest.mark.parametrize("pool", ["avg", "gem", "max"])
def test_a_known_mark_holds_most_of_the_map(pool: str) -> None:
    images, where = marked()
    _, maps = similarity_maps(embedder(pool, red=True), images)
    for values, mark in zip(maps, where, strict=True):
        assert values[mark[2::4, 2::4]].sum() > 0.9 * values.sum()


def test_deleting_what_matters_first_lowers_the_similarity_first() -> None:
    """A network that sees red along one axis and grey along another: without its mark an image points elsewhere."""
    images, where = marked()
    scores = deletion_scores(embedder(neck="linear", red=True), images, {"good": where, "bad": ~where})
    assert list(scores) == ["good", "bad"] and scores["good"] < scores["bad"]


def test_saliency_is_where_the_similarity_depends_on_pixels() -> None:
    """Against finite differences: no pixel outside of what the network sees changes the score."""
    images, where = marked()

    class Left(TinyBackbone):
        def forward(self, pixels: Tensor) -> Tensor:
            return self.filters(pixels[..., :48])

    net = Embedder(Left(), build_pool("avg"), nn.Identity(), 8).eval().requires_grad_(False)  # type: ignore[arg-type]
    maps = saliency_maps(net, images)
    assert maps.shape == (2, 48, 96) and maps[:, :, :40].min() > 0 and maps[:, :, 64:].max() < 1e-3 * maps.max()
    assert where.any()


class TwoStages(TinyBackbone):
    """Red, and what is not red, at stride 4; their means at stride 16."""

    def __init__(self) -> None:
        super().__init__(red=True)
        self.stage, self.last = nn.Identity(), nn.AvgPool2d(4)

    def forward(self, pixels: Tensor) -> Tensor:
        red = super().forward(pixels)[:, :4]
        return self.last(self.stage(torch.cat([red, 1e-3 / (1e-2 + red)], dim=1)))


def staged() -> Embedder:
    return Embedder(TwoStages(), build_pool("avg"), nn.Identity(), 8).eval().requires_grad_(False)  # type: ignore


def test_regions_are_matched_where_the_mark_is() -> None:
    images, where = marked()
    found = agreeing_regions(staged(), images)
    assert found is not None and found.relevance.shape == (2, 12, 24)
    for relevance, mark in zip(found.relevance, where, strict=True):
        assert relevance[mark[2::4, 2::4]].mean() > 5 * relevance[~mark[2::4, 2::4]].mean()
    ends = [where[side, 2::4, 2::4].ravel()[found.pairs[0, side]] for side in range(2)]
    assert ends == [True, True] and (np.diff(found.strength) <= 0).all()


class ThreeStages(TwoStages):
    """One more stage, of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2))


def test_the_middle_layer_is_of_a_quarter_of_the_stride() -> None:
    net = Embedder(ThreeStages(), build_pool("avg"), nn.Identity(), 8).eval().requires_grad_(False)  # type: ignore
    found = agreeing_regions(net, marked()[0])
    assert found is not None and found.relevance.shape == (2, 12, 24)  # not the half, 6 x 12


def test_relevance_adds_up_to_the_similarity_where_all_behind_it_is_linear() -> None:
    images = noise(3)[:, :16, :32]
    found, net = agreeing_regions(staged(), np.ascontiguousarray(images)), staged()
    assert found is not None
    one, other = net.embed(torch.from_numpy(images))
    assert found.relevance.sum(axis=(1, 2)) == pytest.approx([float(one @ other)] * 2, abs=1e-5)


def test_mutual_pairs_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(7, 9, generator=generator) * 2 - 1
    relevance, other = torch.rand(7, generator=generator), torch.rand(9, generator=generator)
    relevance[2] = 0
    pairs, strength = _mutual_pairs(cosines, relevance, other)
    expected = {}
    for row in range(7):
        column = int(cosines[row].argmax())
        value = float(cosines[row, column]) * math.sqrt(float(relevance[row] * other[column]))
        if int(cosines[:, column].argmax()) == row and value > 0:
            expected[row, column] = pytest.approx(value)
    assert dict(zip(map(tuple, pairs.tolist()), strength.tolist(), strict=True)) == expected and len(expected) > 1


class ChannelsLast(TwoStages):
    """Its layers' maps are (b, h, w, c), as those of Swin."""

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stage(TinyBackbone.forward(self, pixels).permute(0, 2, 3, 1))
        return self.stage(maps[:, ::4, ::4]).permute(0, 3, 1, 2)


def test_a_network_of_one_resolution_or_with_its_channels_last_has_no_middle_layer() -> None:
    assert agreeing_regions(embedder(), noise()) is None
    assert agreeing_regions(embedder(red=True), noise()) is None
    net = Embedder(ChannelsLast(), build_pool("avg"), nn.Identity(), 8).eval().requires_grad_(False)  # type: ignore
    assert agreeing_regions(net, noise()) is None


def test_shares_of_an_image_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that tells how much is left of an image: the area under the line from 1 to 0 is 1/2."""
    images = np.zeros((2, 20, 40, 3), np.uint8)
    images[:, ::2] = 200
    seen: list[Tensor] = []

    def share_left(pixels: Tensor) -> Tensor:
        seen.append((pixels != 100).any(dim=3).float().mean(dim=(1, 2)))
        return seen[-1][:, None]

    net = embedder()
    monkeypatch.setattr(net, "embed", share_left)
    maps = {name: np.random.default_rng(seed).random((2, 5, 10)) for seed, name in enumerate("ab")}
    assert deletion_scores(net, images, maps) == pytest.approx({"a": 0.5, "b": 0.5})
    parts = [1 - share for share in SHARES]
    assert [left.tolist() for left in seen] == [pytest.approx([1, 0, *parts, *parts])] * 2


def test_a_deletion_score_by_loops() -> None:
    """One pass at a time, one map: the trapezoids of the similarity with the whole other image."""
    net, images = embedder(neck="linear"), noise(5)
    maps = np.random.default_rng(1).random((2, *images.shape[1:3]))
    areas = []
    for side in range(2):
        order, curve = np.argsort(-maps[side], axis=None), []
        for share in (0, *SHARES, 1):
            left = images[side].copy()
            left.reshape(-1, 3)[order[: round(share * len(order))]] = images[side].mean(axis=(0, 1)).astype(np.uint8)
            one, other = net.embed(torch.from_numpy(np.stack([left, images[1 - side]])))
            curve.append(float(one @ other))
        areas.append(np.trapezoid(curve, [0, *SHARES, 1]))
    found = deletion_scores(net, images, {"other": maps[::-1], "map": maps})
    assert found["map"] == pytest.approx(np.mean(areas), abs=1e-5) and found["other"] != pytest.approx(found["map"])


def test_tokens_are_laid_out_as_the_image() -> None:
    assert grid_shape((7, 14), (224, 448)) == (7, 14)
    assert grid_shape((98, 1), (224, 448)) == (7, 14)
    assert grid_shape((1, 1), (32, 32)) == (1, 1)
    with pytest.raises(WhaleidError, match="97 tokens are no grid over 448 x 224 pixels"):
        grid_shape((97, 1), (224, 448))


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared_world(tmp_path_factory)


def test_a_trained_network_explains_two_images(world: World, tmp_path: Path) -> None:
    folds = read_folds(world.project.workspace)
    images = [folds.loc[folds["fold"] == fold, "image"].iloc[0] for fold in (0, 1)]
    (lines,) = write_explanations(world.project, images[0], {images[1]: tmp_path / "pair.png"})
    assert re.fullmatch(r"similarity -?\d\.\d{4} by one/fold0", lines[0])
    (other,) = write_explanations(world.project, images[1], {images[0]: tmp_path / "other.png"})
    assert other[0].endswith(" by one/fold1")  # the run that did not see the first image
    assert re.fullmatch(r"keypoints: \d+ of \d+ mutual matches agree in geometry", lines[1])
    assert re.fullmatch(r"regions of a middle layer: \d+ of \d+ pairs, \d+% of their weight", lines[2])
    assert "similarity map (" in lines[3] and lines[4].startswith("saliency: ")
    assert lines[5].startswith("activation map of a middle layer: ") and "random weights" in lines[6]
    with Image.open(tmp_path / "pair.png") as picture:
        assert picture.format == "PNG" and picture.height > picture.width / 2


def test_several_others_are_explained_as_each_alone(world: World, tmp_path: Path) -> None:
    image, *others = read_folds(world.project.workspace)["image"].iloc[:3]
    alone = [next(write_explanations(world.project, image, {name: tmp_path / "alone.png"})) for name in others]
    paths = {name: tmp_path / f"{place}.png" for place, name in enumerate(others)}
    together = list(write_explanations(world.project, image, paths))
    assert [lines[:-1] for lines in together] == [lines[:-1] for lines in alone] and alone[0][:-1] != alone[1][:-1]
    assert [lines[-1] for lines in together] == [str(path) for path in paths.values() if path.is_file()]


def test_the_untrained_network_is_the_trained_ones_and_always_the_same(world: World) -> None:
    folder = world.project.workspace.run("one", 0)
    networks, again = load_networks(folder), load_networks(folder)
    trained, control, other = (
        list(net.parameters()) for net in (networks.run.embedder, networks.untrained, again.untrained)
    )
    assert [one.shape for one in control] == [one.shape for one in trained]
    assert not torch.equal(control[0], trained[0]) and all(map(torch.equal, control, other))


def test_the_command_says_what_is_wrong_in_one_line(world: World, tmp_path: Path) -> None:
    options = ["-c", str(world.folder / "drawn.yaml"), "-r", str(world.folder / "recipe.yaml")]
    for words, work, said in (
        (("no.jpg", "no.jpg"), "work", "no image 'no.jpg' in the competition"),
        (("a", "b", "-o", "x.jpg"), "work", "x.jpg: the image is written as PNG"),
        (("a", "b", "c", "-o", "x.png"), "work", "x.png: one picture for 2 pairs; leave out -o"),
        (("a", "b"), "empty", "not there yet"),
    ):
        found = CliRunner().invoke(app, ["explain", *words, *options, "-w", str(world.folder / work)])
        assert isinstance(found.exception, WhaleidError) and said in str(found.exception)
        assert "\n" not in str(found.exception)
    assert not (tmp_path / "x.jpg").exists()


def test_the_picture_goes_to_the_work_folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, here = own_copy(world, tmp_path / "world"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    images = read_folds(world.project.workspace)["image"].iloc[:2].tolist()
    options = ["-c", str(world.folder / "drawn.yaml"), "-r", str(world.folder / "recipe.yaml")]
    found = CliRunner().invoke(app, ["explain", *images, *options, "-w", str(world.folder / "work")])
    path = Path(found.stdout.splitlines()[-1])
    assert path == world.project.workspace.root / "report" / f"explain-{images[0]}-{images[1]}.png" and path.is_file()
    assert not list(here.iterdir())
