"""Heads: what turns embeddings into a training loss, with and without labels (model/ builds them)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from whaleid.config.base import Model, Positive, Share


class SoftmaxHead(Model):
    """Linear classifier with cross entropy; `focal` > 0 turns it into the focal loss of that gamma."""

    name: Literal["softmax"]
    smoothing: Share = 0.0
    focal: Annotated[float, Field(ge=0)] = 0.0


class BySize(Model):
    """Margin that falls with the class's number of images n: `factor * n ** power + floor`."""

    factor: Annotated[float, Field(ge=0)] = 0.271
    power: Annotated[float, Field(le=0)] = -0.364
    floor: Annotated[float, Field(ge=0)] = 0.05


class MarginHead(Model):
    """ArcFace / CosFace family: cosine logits with a margin (ArcFace: radians) and a scale.

    `by_size`, where it is given, takes the place of `margin`. Margins above 2.33 are refused: the logit would no
    longer fall as the angle grows.
    """

    name: Literal["arcface", "cosface"]
    scale: Annotated[float, Field(gt=0)] = 30.0
    margin: Annotated[float, Field(ge=0, le=2.33)] = 0.3
    subcenters: Positive = 1
    smoothing: Share = 0.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    by_size: BySize | None = None


class MetricHead(Model):
    """Any loss of pytorch-metric-learning or of models/heads/own_losses.py by class name, with an optional miner
    likewise."""

    name: Literal["metric"]
    loss: str
    arguments: dict[str, Any] = {}
    miner: str | None = None
    miner_arguments: dict[str, Any] = {}


class SiameseHead(Model):
    """A learnt similarity of two embeddings instead of their cosine (models/heads/siamese.py); wants sampler.name:
    balanced
    or mined."""

    name: Literal["siamese"]
    hidden: Positive = 64
    """Width of the small network that all dimensions share."""
    negatives: Positive = 3
    """Most similar images of other identities in the batch that each image is told from."""
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Logit of a similarity of 1; at the start that is a cosine of 1."""


class SumHead(Model):
    """Weighted sum of heads on the same embedding."""

    name: Literal["sum"]
    parts: Annotated[list[WeightedHead], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_divide(self) -> SumHead:
        if any(part.head.name == "divide" for part in self.parts):
            raise ValueError("divide cannot be a part of a sum: it chooses the batches; make the sum its learner")
        return self


class DivideHead(Model):
    """Divide and conquer (Sanakoyeu et al., 2019, 2021): clusters of images, each with a learner and a sub-space.

    Epochs: `warmup` on the whole embedding, then clusters (made anew every `every` epochs), then `joint` on the
    whole embedding again. `warmup`, `every`, `joint` and `freeze` count epochs.
    """

    name: Literal["divide"]
    learner: Head
    """The loss of each learner and of the whole embedding: any other head."""
    clusters: Positive = 8
    """K."""
    every: Positive = 2
    """M: epochs from one clustering to the next."""
    space: Literal["features", "embedding"] = "features"
    """What is clustered: the pooled features before the neck (2019), or the embedding."""
    by: Literal["image", "identity"] = "image"
    """image: an identity's images may fall into several clusters, as published. identity: all go where their mean
    goes, and no pair of an identity is parted. With few images of each, most pairs are (`together` in the log)."""
    growth: Literal["flat", "bisect"] = "bisect"
    """K clusters at once (2019), or 2, 4, ... K by cutting each in two (2021); K is a power of two then."""
    smallest: Share = 0.25
    """Least images (or identities, by identity) in a cluster, as a share of the mean cluster; a smaller one takes its
    nearest neighbours in."""
    subspace: Literal["slices", "masks", "learned", "whole"] = "slices"
    """slices: equal parts of the embedding, each of length 1 on its own (2019). masks: the same parts, one length for
    the whole embedding. learned: the embedding times relu(mask), the masks learnt with the rest (2021). whole: no
    sub-spaces; learners and batches are the clusters' alone."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the mean cosine between learnt masks."""
    warmup: Annotated[int, Field(ge=0)] = 1
    joint: Annotated[int, Field(ge=0)] = 1
    freeze: Annotated[int, Field(ge=0)] = 0
    """The backbone stands still for this many epochs after each clustering (2021: 1)."""

    @model_validator(mode="after")
    def _consistent(self) -> DivideHead:
        if self.learner.name == "divide":
            raise ValueError("a learner of divide cannot be a divide itself: give it another head")
        if self.growth == "bisect" and self.clusters & (self.clusters - 1):
            raise ValueError(
                f"growth: bisect doubles the clusters, so clusters must be a power of two, not {self.clusters}; "
                "take one, or growth: flat"
            )
        return self

    @property
    def cuts(self) -> bool:
        """Whether the embedding is cut into equal parts."""
        return self.subspace in ("slices", "masks")

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of clusters that the run goes through; 1 stands for the whole embedding."""
        if self.clusters == 1:
            return (1,)
        if self.growth == "flat":
            return (1, self.clusters)
        return tuple(2**power for power in range(self.clusters.bit_length()))


class WeightedHead(Model):
    weight: Annotated[float, Field(gt=0)] = 1.0
    head: Head


Head = Annotated[
    SoftmaxHead | MarginHead | MetricHead | SiameseHead | SumHead | DivideHead, Field(discriminator="name")
]


class RotationHead(Model):
    """Which of four quarter turns was the image given? All four copies of an image are in its batch (Gidaris et al.,
    "Unsupervised Representation Learning by Predicting Image Rotations", 2018)."""

    name: Literal["rotation"]


class JigsawHead(Model):
    """Where, of eight places, does a patch lie around the centre patch? (Doersch et al., "Unsupervised Visual
    Representation Learning by Context Prediction", 2015.) Lengths are shares of a patch's side; the defaults are
    theirs: 48 and 7 of 96 pixels."""

    name: Literal["jigsaw"]
    gap: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Between neighbours: without it, a line that runs on from patch to patch gives the answer away."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.07
    """Each patch moves by up to this, either way."""

    @model_validator(mode="after")
    def _apart(self) -> JigsawHead:
        if 2 * self.jitter > self.gap:
            raise ValueError(f"jitter ({self.jitter:g}) above half the gap ({self.gap:g}) lets patches overlap")
        return self


class DeepClusterHead(Model):
    """Which cluster of the network's own features is the image in? (Caron et al., "Deep Clustering for Unsupervised
    Learning of Visual Features", 2018.)"""

    name: Literal["deepcluster"]
    clusters: Annotated[int, Field(ge=2)] = 100
    """kmeans: how many. pic, which finds their number itself: at most; the smallest join their nearest."""
    every: Positive = 1
    """Epochs from one clustering to the next; each starts the classifier anew."""
    clustering: Literal["kmeans", "pic"] = "kmeans"
    """kmeans, or power-iteration clustering on the graph of nearest neighbours (Lin & Cohen, 2010)."""
    dimensions: Positive = 256
    """Of the features after PCA, at most."""
    sobel: bool = False
    """The network sees gradients instead of colours while it pretrains (models/pretext.py says what that costs)."""


PretextHead = Annotated[RotationHead | JigsawHead | DeepClusterHead, Field(discriminator="name")]
"""Losses that need no labels: what an experiment under a recipe's `pretrain` has."""

PRETEXTS = ("rotation", "jigsaw", "deepcluster")
