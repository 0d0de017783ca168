"""Local matching: keypoints of an image, their votes, geometric verification and the learned match score."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whaleid.config.base import Model, Positive, Share


class VerifyConfig(Model):
    """Geometric verification: images of the best identities by votes are matched pair by pair.

    Two images of one animal show its marks at about the same place, size and turn of the frame: a match that disagrees
    does not count. Defaults are chosen on 169 queries of one fold of nyala.
    """

    matcher: str = "mutual"
    """mutual: each other's nearest keypoints. lightglue: a network, for features aliked and disk; `ratio` has no effect
    then. Use a GPU. Others: local_matching/registry.py."""
    images: Positive = 60
    """Largest number of gallery images matched with each query; the time grows with it."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A match is nearer than this times the second nearest keypoint of the same image (Lowe 2004), and mutual."""
    scale: Annotated[float, Field(ge=1)] = 1.5
    """Largest factor between the sizes of two matched keypoints."""
    turn: Annotated[float, Field(ge=0, le=180)] = 30.0
    """Largest difference of their directions, in degrees."""
    shift: Annotated[float, Field(gt=0)] = 0.16
    """Largest distance of their places in the two frames, as a share of `size`; above 1.5 there is no limit."""
    magsac: Annotated[float, Field(gt=0)] | None = None
    """Largest distance, in pixels, of a match from the affine map that MAGSAC finds for the pair; null: no map."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """An identity's score is the logarithm of its share of votes + `weight` x log(1 + matches of its best image)."""


class TreesConfig(Model):
    """LightGBM on matches: are the two images of one identity? Fields are LightGBM's parameters of the same names."""

    num_iterations: Positive = 60
    """Number of trees: of the match scores' time, most is theirs. MAP@5 out of fold with 60 trees, and with 120 and
    learning_rate 0.1: nyala (a third of its queries) 0.414 and 0.414, cow faces 0.825 and 0.824, lion 0.404 and 0.408,
    in two thirds of the time."""
    num_leaves: Annotated[int, Field(ge=2)] = 31
    """Largest number of leaves of a tree."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.15
    """Shrinkage of each tree."""
    min_data_in_leaf: Positive = 200
    """Smallest number of matches in a leaf."""
    false_per_true: Positive = 10
    """False matches that are trained on for each true one."""


class PairsConfig(TreesConfig):
    """Images of the likeliest identities matched pair by pair, with a learned score (local_matching/pair_score.py).

    Defaults by out-of-fold figures of nyala, lion and cow faces.
    """

    images: Positive = 50
    """Gallery images matched with each query: time and memory grow with them, about 1 ms of a core an image."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.95
    """A match is nearer than this times the second nearest keypoint of the same image (Lowe 2004), and mutual."""
    num_iterations: Positive = 60
    """Number of trees that score matches. Pairs are scored by smaller ones."""
    num_leaves: Annotated[int, Field(ge=2)] = 15
    """Largest number of leaves of a tree."""
    min_data_in_leaf: Positive = 100
    """Smallest number of matches in a leaf."""
    rest: Annotated[float, Field(ge=0)] = 0.3
    """An identity's score is that of its best image and `rest` times what its images score together: MAP@5 of one trial
    0.436 with the best alone, 0.439 with 0.3."""


class LearnedConfig(TreesConfig):
    """Match score: what a match of two keypoints is worth, fitted on the other folds' queries
    (local_matching/match_score.py)."""

    neighbours: Annotated[int, Field(ge=2)] = 12
    """Nearest descriptors of each of the query's descriptors; the last one gives the distance of a chance match."""
    scale: Annotated[float, Field(ge=1)] = 1.4
    """Two matches of the same images support one another where their factors of size differ by at most this factor,"""
    turn: Annotated[float, Field(ge=0, le=180)] = 25.0
    """their turns by at most so many degrees"""
    shift: Annotated[float, Field(gt=0)] = 0.06
    """and their shifts, across and down, by at most this share of the frame."""
    power: Share = 0.25
    """An identity's score is divided by its number of descriptors in the gallery to this power."""
    pairs: PairsConfig | None = PairsConfig()
    """null leaves the matching pair by pair out."""


class LocalConfig(Model):
    """Local matching: descriptors of keypoints vote for identities. Its time grows with images x keypoints.

    Defaults are chosen by out-of-fold figures of nyala (1,514 images of 237 identities), with RootSIFT. With networks:
    `local_matching: {features: aliked, size: 512, verify: {matcher: lightglue, images: 20, magsac: 4}}`
    """

    features: str = "rootsift"
    """Keypoint detector: rootsift; kaze, where the installed OpenCV has it; aliked, disk and xfeat, networks
    whose weights `whaleid weights` fetches. Others: local_matching/registry.py."""
    size: Annotated[int, Field(ge=32)] = 256
    """Longer side in pixels that an image, cropped to its box, is shrunk or enlarged to. Small pictures gain: those of
    130 pixels (lion, MAP@5 out of fold of local matching 0.391 to 0.462) and of 185 (cow faces, 0.831 to 0.848)."""
    keypoints: Positive = 1000
    """Largest number of keypoints of an image, the strongest. More are better and slower: MAP@5 of one fold of nyala
    0.275 with 500, 0.317 with 1000."""
    neighbours: Annotated[int, Field(ge=2)] = 3
    """Nearest descriptors of each of the query's descriptors; the last one gives the distance of a chance match."""
    power: Share = 0.25
    """An identity's votes are divided by its number of descriptors in the gallery to this power."""
    verify: VerifyConfig | None = None
    """Geometric verification of the best candidates; `{}` takes its defaults, null leaves it out."""
    learned: LearnedConfig | None = None
    """Learned match score; `{}` takes its defaults, null leaves it out."""
