"""DISK and XFeat with random weights: what kornia finds, the mask, images of any size, LightGlue for DISK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from keypoint_networks import authors_names, plain_lightglue
from kornia.feature import DISK, XFeat
from safetensors.torch import load_file, save_file
from test_aliked import colour, nudged
from test_local import write_images
from test_masks import disc

from whaleid.config import LocalConfig
from whaleid.local_matching.detectors import Detector, detector_of, signed_bytes
from whaleid.local_matching.disk import disk_network
from whaleid.local_matching.geometric_verification import matched_keypoints
from whaleid.local_matching.keypoints import describe_images, read_described
from whaleid.local_matching.matchers import matcher_of
from whaleid.local_matching.registry import DETECTORS, weights_files
from whaleid.local_matching.xfeat import xfeat_network
from whaleid.utils.errors import WhaleidError

NAMES = ("disk", "xfeat")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """DISK and its LightGlue in the form of their authors' files, XFeat as safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"extractor": disk_network().state_dict(), "epoch": 3}, folder / "disk.pth")
        save_file(xfeat_network().state_dict(), folder / "xfeat.safetensors")
    torch.save(authors_names(plain_lightglue()), folder / "disk_lightglue.pth")
    return folder


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def detect(name: str, weights: Path) -> Detector:
    return detector_of(LocalConfig(features=name), weights)


def kornias(name: str, weights: Path, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and descriptors of all keypoints, strongest first."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        if name == "disk":
            network = DISK().eval()
            network.load_state_dict(torch.load(weights / "disk.pth", weights_only=True)["extractor"])
            found = network(pixels, score_threshold=-torch.inf)[0]
            places, scores, vectors = found.keypoints, found.detection_scores, found.descriptors
        else:
            detector = XFeat(top_k=100_000, detection_threshold=0.0).eval()
            detector.net.load_state_dict(load_file(weights / "xfeat.safetensors"))
            found = detector.detectAndCompute(pixels)[0]
            places, scores, vectors = found["keypoints"], found["scores"], found["descriptors"]
    order = np.argsort(-scores.numpy(), kind="stable")
    return places.numpy()[order], vectors.numpy()[order]


def test_keypoints_are_kornias(name: str, detect: Detector, weights: Path):
    """Of an image whose sides need no margin."""
    picture = colour(1)
    places, expected = kornias(name, weights, picture)
    vectors, points = detect(picture, 25, None)
    assert vectors.shape == (25, DETECTORS[name].length) and len(places) > 25
    assert np.allclose(points[:, :2], places[:25], atol=1e-3)
    assert (np.abs(vectors.astype(int) - signed_bytes(expected[:25])) <= 1).all()


def test_strongest_first_and_inside_the_mask(detect: Detector):
    every, places = detect(colour(2), 10_000, None)
    few, few_places = detect(colour(2), 9, None)
    assert np.array_equal(few, every[:9]) and np.array_equal(few_places, places[:9])
    white = disc(128, 128)
    column, row = np.rint(places[:, :2]).astype(int).T
    inside = np.flatnonzero(white[row, column])
    vectors, points = detect(colour(2), 10_000, white)
    assert np.array_equal(vectors, every[inside]) and np.array_equal(points, places[inside])
    assert 5 < len(inside) < len(every)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 90), (90, 4), (33, 9), (70, 45)])
def test_images_of_any_size(name: str, detect: Detector, height: int, width: int):
    """Keypoints are in the image, and never in the margin that the network needs."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    vectors, points = detect(picture, 10_000, np.full((height, width), 255, np.uint8))
    assert vectors.shape == (len(points), DETECTORS[name].length)
    assert (points[:, 0] <= width - 1).all() and (points[:, 1] <= height - 1).all() and (points[:, :2] >= 0).all()
    assert len(points) > 0 or min(height, width) < 5


def test_another_photograph_is_matched_by_lightglue(tmp_path: Path, weights: Path):
    """The plain LightGlue and DISK's own weights: matches are at the same place of the animal."""
    config = LocalConfig.model_validate(
        {"features": "disk", "size": 128, "keypoints": 60, "verify": {"matcher": "lightglue"}}
    )
    assert [path.name for path in weights_files(config, weights)] == ["disk.pth", "disk_lightglue.pth"]
    table = write_images(tmp_path, [colour(1), nudged(colour(1), 0)])
    describe_images(table, tmp_path, tmp_path / "out", config, 1, weights=weights)
    described = read_described(tmp_path / "out", table, "disk")
    one, other, _ = matched_keypoints(described, 0, 1, config, matcher_of(described, table, config, weights))
    assert len(one) >= 10 and np.median(np.linalg.norm(one - other, axis=1)) < 5  # turned by 2 degrees


def test_weights_of_another_network_are_refused(name: str, tmp_path: Path, weights: Path):
    torch.save(authors_names(plain_lightglue()), tmp_path / f"{name}.pth")
    with pytest.raises(WhaleidError, match=rf"{name}\.pth: not the weights of "):
        detector_of(LocalConfig(features=name), tmp_path)
