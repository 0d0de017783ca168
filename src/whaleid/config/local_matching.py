"""Local matching: what is described of a picture, how it votes, and how the best candidates are looked at again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whaleid.config.base import Model, Positive, Share


class VerifyConfig(Model):
    """A second look at the images of the best identities by votes: keypoints matched pair by pair.

    Two photographs of one animal show its marks at about the same place, size and turn of the frame: a match that
    disagrees is no match. Defaults are chosen on 169 queries of one fold of nyala.
    """

    matcher: str = "mutual"
    """mutual: each other's nearest keypoints. lightglue: a network matches them (local_matching/lightglue.py), with
    features
    aliked alone; `ratio` then says nothing, all that follows holds for its matches too. A GPU's work."""
    images: Positive = 60
    """Gallery images matched with each query, at the most; they bound the time of a query."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A match is this much nearer than the second nearest keypoint of the same picture (Lowe 2004), and mutual."""
    scale: Annotated[float, Field(ge=1)] = 1.5
    """Largest factor between the sizes of two matched keypoints."""
    turn: Annotated[float, Field(ge=0, le=180)] = 30.0
    """Largest difference of their directions, in degrees."""
    shift: Annotated[float, Field(gt=0)] = 0.16
    """Largest distance of their places in the two frames, as a share of `size`; above 1.5 it forbids nothing."""
    magsac: Annotated[float, Field(gt=0)] | None = None
    """Pixels by which a match may miss the affine map that MAGSAC finds for the pair; null: no map is looked for."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """An identity's score is the logarithm of its share of votes + `weight` x log(1 + matches of its best image)."""


class TreesConfig(Model):
    """Trees that tell matches of one identity from others."""

    num_iterations: Positive = 120
    num_leaves: Annotated[int, Field(ge=2)] = 31
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    min_data_in_leaf: Positive = 200
    """Matches in a leaf at least."""
    others: Positive = 10
    """False matches that teach, for each true one."""


class PairsConfig(TreesConfig):
    """The pictures of the likeliest identities matched pair by pair, each match weighed as learnt
    (local_matching/pair_score.py).

    Defaults by out-of-fold figures of nyala. An identity's score is that of its best picture and `rest` times what its
    pictures have together: MAP@5 of one trial 0.436 with the best alone, 0.439 with 0.3.
    """

    images: Positive = 50
    """Gallery images matched with each query: time and memory grow with them, about 2 ms of a core a picture. More are
    not better: MAP@5 of nyala's pairs alone, out of fold, 0.422 with 50, 0.408 with 100."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.95
    """A match is this much nearer than the second nearest keypoint of the same picture (Lowe 2004), and mutual."""
    num_iterations: Positive = 100
    num_leaves: Annotated[int, Field(ge=2)] = 15
    rest: Annotated[float, Field(ge=0)] = 0.3


class LearnedConfig(TreesConfig):
    """What a match of two keypoints is worth, learnt from the other folds' queries (local_matching/match_score.py)."""

    neighbours: Annotated[int, Field(ge=2)] = 12
    """Nearest descriptors looked at for each descriptor of the query; the last one says what chance gives."""
    scale: Annotated[float, Field(ge=1)] = 1.4
    """Matches of two pictures support one another where their factors of size differ by this factor at most,"""
    turn: Annotated[float, Field(ge=0, le=180)] = 25.0
    """their turns by so many degrees"""
    shift: Annotated[float, Field(gt=0)] = 0.06
    """and their shifts, across and down, by this share of the frame."""
    power: Share = 0.25
    """An identity's evidence is divided by its number of descriptors in the gallery to this power."""
    pairs: PairsConfig | None = PairsConfig()
    """null leaves the matching pair by pair out."""


class LocalConfig(Model):
    """Local matching: descriptors of keypoints vote for identities. Its time grows with images x keypoints.

    Defaults are chosen by out-of-fold figures of nyala (1,514 images of 237 identities), with RootSIFT.
    Networks instead, their weights put into WEIGHTS_DIR by hand:
    `local_matching: {features: aliked, size: 512, verify: {matcher: lightglue, images: 20, magsac: 4}}`
    """

    features: str = "rootsift"
    """What finds and describes keypoints (local_matching/detectors.py). kaze: where the installed OpenCV has it.
    aliked: a
    network, whose weights must lie in WEIGHTS_DIR."""
    size: Annotated[int, Field(ge=32)] = 256
    """Longer side of the picture (cropped to its box) in pixels, where it is larger."""
    keypoints: Positive = 1000
    """Strongest keypoints of each image, at the most. More are better and slower: MAP@5 of one fold of nyala 0.275
    with 500, 0.317 with 1000."""
    neighbours: Annotated[int, Field(ge=2)] = 3
    """Nearest descriptors looked at for each descriptor of the query; the last one says what chance gives."""
    power: Share = 0.25
    """An identity's votes are divided by its number of descriptors in the gallery to this power."""
    verify: VerifyConfig | None = None
    """The best candidates' images are matched pair by pair; `{}` takes it as it is set above, null leaves it out."""
    learned: LearnedConfig | None = None
    """Matches weigh what the other folds' queries taught; `{}` takes it as it is set above, null leaves it out."""
