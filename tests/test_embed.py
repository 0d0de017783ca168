"""Features as a run writes them: views, refusals, and a kill at any moment."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from whaleid.config import Experiment
from whaleid.config.files import load_experiment
from whaleid.data.cache import ImageCache
from whaleid.features import extractor
from whaleid.features.extraction import extract_features
from whaleid.features.files import read_features
from whaleid.training.checkpoint import TrainedRun
from whaleid.utils.errors import WhaleidError

SIZE = (64, 32)
IMAGES = 23


class TinyEmbedder(nn.Module):
    """Sums of the image's quarters through a fixed matrix: sees left from right, and any size."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, self.dim, generator=torch.Generator().manual_seed(0)))
        self.batches: list[tuple[int, ...]] = []
        self.fail_at = 10**9

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(tuple(images.shape))
        if len(self.batches) > self.fail_at:
            raise KeyboardInterrupt
        quarters = functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, 2)
        return (quarters.flatten(1) - 0.5) @ self.matrix


class TinyHead(nn.Module):
    """A linear classifier."""

    def __init__(self, classes: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, classes, generator=torch.Generator().manual_seed(1)))

    def logits(self, embeddings: Tensor) -> Tensor | None:
        return embeddings @ self.matrix if self.matrix.shape[1] else None


def experiment(**settings: object) -> Experiment:
    base = {"features.batch": 4, "features.half": False, "features.mirror": False}
    return load_experiment("default", base | {key.replace("__", "."): value for key, value in settings.items()})


@pytest.fixture
def images() -> pd.DataFrame:
    names = [f"{number}, with comma.jpg" for number in range(IMAGES)]
    identities = [["w_a", "w_b", "new_whale", None][number % 4] for number in range(IMAGES)]
    return pd.DataFrame({"image": names, "identity": identities})


@pytest.fixture
def cache() -> ImageCache:
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return ImageCache(Path("nowhere"), SIZE, pixels, None)


Fake = Callable[..., SimpleNamespace]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Put a tiny run in the place of what `load_run` would read."""

    def put(classes: list[str], **settings: object) -> SimpleNamespace:
        run = SimpleNamespace(
            embedder=TinyEmbedder(),
            head=TinyHead(len(classes)),
            classes=classes,
            experiment=experiment(**settings),
            size=SIZE,
        )
        for module in (run.embedder, run.head):
            module.requires_grad_(False)
        monkeypatch.setattr(extractor, "load_run", lambda folder, device: run)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "checkpoint.safetensors").write_text("weights")
        return run

    return put


def embed(tmp_path: Path, images: pd.DataFrame, cache: ImageCache) -> Path:
    out = tmp_path / "features" / "tiny" / "fold0"
    extract_features(tmp_path / "run", images, cache, out, "tiny")
    return out


def raw(run: SimpleNamespace, cache: ImageCache, mirror: bool = False) -> Tensor:
    """The embedder's own output for all images at once."""
    pixels = torch.from_numpy(cache.read_many(np.arange(IMAGES)))
    return run.embedder(pixels.flip(2) if mirror else pixels)


def close(found: np.ndarray | None, expected: Tensor) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=1e-6)


CLASSES = ["new_whale|3.jpg", "w_a", "w_b"]
MIRRORED = [*CLASSES, *(f"{name}|mirror" for name in CLASSES)]


# -------------------------------------------------------------------------------------------- what is written


def test_plain_embeddings_and_logits(tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake) -> None:
    run = fake(CLASSES)
    out = embed(tmp_path, images, cache)
    assert sorted(path.name for path in out.iterdir()) == [
        "classes.txt", "embeddings.npy", "logits.npy", "rows.csv"
    ]  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["fold0"]
    assert [shape[0] for shape in run.embedder.batches] == [4] * 5 + [3]
    features = read_features(out, images)
    close(features.embeddings, functional.normalize(raw(run, cache), dim=1))
    assert features.classes is not None and features.classes.tolist() == ["w_a", "w_b"]
    close(features.logits, run.head.logits(raw(run, cache))[:, 1:])


def test_mirror_is_averaged(tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake) -> None:
    run = fake(CLASSES, features__mirror=True)
    features = read_features(embed(tmp_path, images, cache), images)
    both = [raw(run, cache, mirror) for mirror in (False, True)]
    mean = sum(functional.normalize(side, dim=1) for side in both)
    close(features.embeddings, functional.normalize(mean, dim=1))
    close(features.logits, sum(run.head.logits(side) for side in both)[:, 1:] / 2)


def test_the_mirror_view_can_be_left_out(fake: Fake, tmp_path: Path) -> None:
    run = fake(CLASSES, features__mirror=True)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)
    loaded = extractor.load_extractor(tmp_path, np.array(CLASSES))
    trained = replace(loaded, run=TrainedRun(**vars(run), class_sizes=np.ones(3), metadata={}))
    found = trained.without_mirror().embed(pixels)[0]
    close(found, functional.normalize(run.embedder(torch.from_numpy(pixels)), dim=1))


def test_mirror_identities_stand_side_by_side(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    """The cosine of two images is the mean of their two sides' cosines; a mirror has its own class."""
    run = fake(MIRRORED, features__mirror=True, image__mirror_identities=True)
    features = read_features(embed(tmp_path, images, cache), images)
    sides = [functional.normalize(raw(run, cache, mirror), dim=1) for mirror in (False, True)]
    assert features.embeddings.shape == (IMAGES, 12)
    close(features.embeddings @ features.embeddings.T, sum(side @ side.T for side in sides) / 2)
    assert features.classes is not None and features.classes.tolist() == ["w_a", "w_b"]
    plain, mirrored = (run.head.logits(raw(run, cache, mirror)) for mirror in (False, True))
    close(features.logits, (plain[:, [1, 2]] + mirrored[:, [4, 5]]) / 2)


def test_mirror_identities_without_the_mirror_view(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake(MIRRORED, image__mirror_identities=True)
    features = read_features(embed(tmp_path, images, cache), images)
    close(features.embeddings, functional.normalize(raw(run, cache), dim=1))
    close(features.logits, run.head.logits(raw(run, cache))[:, [1, 2]])


def test_scales_are_averaged_at_multiples_of_32(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake(CLASSES, features__scales=[1.0, 1.6, 0.2])
    features = read_features(embed(tmp_path, images, cache), images)
    assert {shape[1:3] for shape in run.embedder.batches} == {(32, 64), (64, 96), (32, 32)}
    np.testing.assert_allclose(np.linalg.norm(features.embeddings, axis=1), 1, atol=1e-6)
    cosine = (features.embeddings * functional.normalize(raw(run, cache), dim=1).numpy()).sum(axis=1)
    assert cosine.min() > 0.9 and not np.allclose(cosine, 1, atol=1e-6)


def test_half_precision_and_a_head_without_logits(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake([], features__half=True)
    out = embed(tmp_path, images, cache)
    assert not (out / "logits.npy").exists() and not (out / "classes.txt").exists()
    assert np.load(out / "embeddings.npy").dtype == np.float16
    expected = functional.normalize(raw(run, cache), dim=1).numpy()
    np.testing.assert_allclose(read_features(out, images).embeddings, expected, atol=1e-3)


def test_logits_can_be_left_out(tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake) -> None:
    fake(CLASSES, features__logits=False)
    assert read_features(embed(tmp_path, images, cache), images).logits is None


def test_nan_is_refused_and_the_image_named(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake(CLASSES)
    run.embedder.matrix.fill_(torch.nan)
    with pytest.raises(WhaleidError, match=r"image '0, with comma\.jpg'"):
        embed(tmp_path, images, cache)
    run.embedder.matrix.fill_(0.0)
    with pytest.raises(WhaleidError, match="all zeros"):
        embed(tmp_path, images, cache)
    assert not (tmp_path / "features" / "tiny" / "fold0").exists()


def test_logits_too_large_for_half_precision_are_refused(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    fake(CLASSES, features__half=True).head.matrix.mul_(1e6)
    with pytest.raises(WhaleidError, match=r"features\.half=false"):
        embed(tmp_path, images, cache)


def test_a_cache_that_does_not_fit_is_refused(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake(CLASSES)
    with pytest.raises(WhaleidError, match="23 images, but"):
        embed(tmp_path, images.iloc[:-1], cache)
    run.size = (32, 32)
    with pytest.raises(WhaleidError, match=r"trained on images of \(32, 32\)"):
        embed(tmp_path, images, cache)


# ----------------------------------------------------------------------------------------------------- a kill


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("torn", [0, 5])
def test_an_interrupted_job_goes_on_to_the_same_files(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake, torn: int
) -> None:
    run = fake(CLASSES)
    whole = contents(embed(tmp_path, images, cache))
    run.embedder.batches.clear()
    run.embedder.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, images, cache)
    part = tmp_path / "features" / "tiny" / ".fold0.part"
    with (part / "logits.npy").open("ab") as file:  # a kill in the middle of a write leaves part of a row
        file.write(b"x" * torn)
    assert contents(part.with_name("fold0")) == whole  # the older features stand until the new are whole
    run.embedder.batches.clear()
    run.embedder.fail_at = 10**9
    assert contents(embed(tmp_path, images, cache)) == whole
    assert len(run.embedder.batches) == 3 and not part.exists()


def test_a_part_of_other_weights_is_begun_again(
    tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake
) -> None:
    run = fake(CLASSES)
    run.embedder.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, images, cache)
    (tmp_path / "run" / "checkpoint.safetensors").write_text("other weights")
    run = fake(CLASSES)
    (tmp_path / "run" / "checkpoint.safetensors").write_text("other weights")
    embed(tmp_path, images, cache)
    assert len(run.embedder.batches) == 6


def test_two_at_once_are_refused(tmp_path: Path, images: pd.DataFrame, cache: ImageCache, fake: Fake) -> None:
    fake(CLASSES)
    lock = tmp_path / "features" / "tiny" / ".fold0.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WhaleidError, match="another process"):
            embed(tmp_path, images, cache)


class Slow(ImageCache):
    """Takes its time for each batch, in which a process can be killed."""

    def read_many(self, rows: np.ndarray) -> np.ndarray:
        time.sleep(0.4)
        return super().read_many(rows)


def real_run(folder: Path, images: pd.DataFrame, cache: ImageCache) -> None:
    """A real checkpoint of a small random network, as training would leave it."""
    from whaleid.models.embedder import build_embedder
    from whaleid.models.heads.registry import build_head
    from whaleid.training.checkpoint import save_checkpoint, write_description

    settings = experiment(
        model__backbone="test_resnet.r160_in1k",
        model__weights="random",
        features__half=True,
        features__batch=2,
    )
    torch.manual_seed(0)
    classes, sizes = ["w_a", "w_b"], np.array([5, 5])
    embedder = build_embedder(settings.model, pretrained=False)
    head = build_head(settings.head, embedder.dim, sizes)
    weights = nn.ModuleDict({"embedder": embedder, "head": head}).state_dict()
    write_description(folder / "run", settings, classes)
    save_checkpoint(folder / "run", weights, sizes, SIZE, {})


def test_kill_9_in_a_real_run_changes_nothing(tmp_path: Path, images: pd.DataFrame, cache: ImageCache) -> None:
    real_run(tmp_path, images, cache)
    extract_features(tmp_path / "run", images, cache, tmp_path / "whole", "tiny")
    slow = Slow(tmp_path, SIZE, cache.read_many(np.arange(IMAGES)), None)
    child = os.fork()  # a process that imports torch takes seconds of a core
    if child == 0:
        try:
            extract_features(tmp_path / "run", images, slow, tmp_path / "out", "tiny")
        finally:
            os._exit(1)
    table = tmp_path / ".out.part" / "embeddings.npy"
    deadline = time.monotonic() + 60
    while (not table.exists() or table.stat().st_size < 1500) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (tmp_path / "out").exists() and table.exists()
    extract_features(tmp_path / "run", images, cache, tmp_path / "out", "tiny")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    features = read_features(tmp_path / "out", images)
    assert features.embeddings.shape == (IMAGES, 256) and features.logits is not None
    assert len(np.unique(features.embeddings.round(4), axis=0)) == IMAGES
