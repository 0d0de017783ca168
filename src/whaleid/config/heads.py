"""Heads: the settings of each, what others need to know of it, and the registry by `name`.

A head is one file and one line of `HEADS`: a class of settings (a subclass of `HeadSettings`) and a
`whaleid.models.heads.base.HeadModule`, which `module` names. Heads that come with whaleid have their settings here, so
that reading a YAML does not import torch; another head may keep both in its own file, and its line in `HEADS` is then
the place of its settings, `"package.file:Class"`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from whaleid.config.base import Model, Positive, Share

if TYPE_CHECKING:
    from whaleid.config.experiment import ExperimentBase


class HeadSettings(Model):
    """Base of the settings of all heads. Its class variables and properties say what others need to know of a head."""

    name: str

    module: ClassVar[str]
    """The `HeadModule` that is built from these settings: `"package.file:Class"`."""
    planner: ClassVar[str] = "whaleid.training.epochs:EpochPlanner"
    """What plans the epochs of a run: `training.epochs.EpochPlanner` or a subclass."""
    needs_labels: ClassVar[bool] = True
    """False for the heads of a recipe's `pretrain`."""
    scores_pairs: ClassVar[bool] = False
    """Whether it is a similarity of two embeddings, by which candidates can be re-scored."""

    @property
    def starts_from_means(self) -> bool:
        """Whether its classes start from the means of their images' embeddings."""
        return False

    @property
    def plans_epochs(self) -> bool:
        """Whether it has a planner of its own, and so cannot be a part of another head."""
        return self.planner != HeadSettings.planner

    @property
    def has_logits(self) -> bool:
        """Whether it gives class scores, which features store and the blend uses."""
        return False

    @property
    def slices(self) -> int:
        """Equal parts of the embedding that are normalised each on its own."""
        return 1

    def check(self, experiment: ExperimentBase) -> None:
        """Raise ValueError where the rest of the experiment does not suit the head."""


def head_settings(value: Any) -> HeadSettings:
    """Settings of a head from its mapping in a YAML, checked by the class that `HEADS` has for its name.

    Raises
    ------
    ValueError
        Where the name is missing or unknown, or a setting is not valid.
    """
    if isinstance(value, HeadSettings):
        return value
    name = value.get("name") if isinstance(value, dict) else None
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, n=1) if isinstance(name, str) else []
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(HEADS)}"
        raise ValueError(f"there is no head named {name!r}; {hint}")
    entry = HEADS[name]
    settings = find_class(entry) if isinstance(entry, str) else entry
    return settings.model_validate(value)


def find_class(place: str) -> Any:
    """Import the class at `"package.file:Class"`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


Head = Annotated[SerializeAsAny[HeadSettings], BeforeValidator(head_settings)]


def require_trained(head: HeadSettings, place: str) -> None:
    """Raise ValueError for `none` where a loss is needed. place: what the head would be."""
    if head.name == "none":
        raise ValueError(f"{place} needs a loss: name any head but none")


# -------------------------------------------------------------------------------------------- heads with labels


class NoHead(HeadSettings):
    """No loss: the pretrained network as it is, with `train.epochs: 0`."""

    module: ClassVar[str] = "whaleid.models.heads.none:NoLoss"

    name: Literal["none"]


class SoftmaxHead(HeadSettings):
    """Linear classifier with cross entropy; `focal` > 0 turns it into the focal loss of that gamma."""

    module: ClassVar[str] = "whaleid.models.heads.classifiers:SoftmaxClassifier"

    name: Literal["softmax"]
    smoothing: Share = 0.0
    """Label smoothing."""
    focal: Annotated[float, Field(ge=0)] = 0.0
    """Gamma of the focal loss; 0: cross entropy."""

    @property
    def has_logits(self) -> bool:
        return True


class BySize(Model):
    """Margin that falls with the class's number of images n: `factor * n ** power + floor`."""

    factor: Annotated[float, Field(ge=0)] = 0.271
    """Factor of the formula."""
    power: Annotated[float, Field(le=0)] = -0.364
    """Exponent of the formula."""
    floor: Annotated[float, Field(ge=0)] = 0.05
    """Smallest margin."""


class MarginHead(HeadSettings):
    """ArcFace and CosFace: cosine logits with a margin (ArcFace: radians) and a scale.

    `by_size` overrides `margin`. Margins above 2.33 are refused: the logit would no longer fall as the angle grows.
    """

    module: ClassVar[str] = "whaleid.models.heads.classifiers:MarginClassifier"

    name: Literal["arcface", "cosface"]
    scale: Annotated[float, Field(gt=0)] = 30.0
    """Factor from cosines to logits."""
    margin: Annotated[float, Field(ge=0, le=2.33)] = 0.3
    """Margin of the true class, in radians for ArcFace."""
    subcenters: Positive = 1
    """Centres of each class; the nearest counts (sub-center ArcFace)."""
    smoothing: Share = 0.0
    """Label smoothing."""
    focal: Annotated[float, Field(ge=0)] = 0.0
    """Gamma of the focal loss; 0: cross entropy."""
    by_size: BySize | None = None
    start: Literal["random", "means"] = "random"
    """Where the centres begin: random, or means: the mean embedding of each class's images before the first step (Qi,
    Brown and Lowe, "Low-shot learning with imprinted weights", 2018). Where steps are few and classes many, random
    centres do not find their images in time. Needs `model.neck: bnneck`."""

    @property
    def starts_from_means(self) -> bool:
        return self.start == "means"

    @property
    def has_logits(self) -> bool:
        return True


class MetricHead(HeadSettings):
    """Any loss and miner of pytorch-metric-learning, or of models/heads/extra_*.py, by class name."""

    module: ClassVar[str] = "whaleid.models.heads.metric:MetricLearning"

    name: Literal["metric"]
    loss: str
    """Class name of the loss."""
    arguments: dict[str, Any] = {}
    """Arguments of the loss."""
    miner: str | None = None
    """Class name of the miner; null: all pairs of a batch."""
    miner_arguments: dict[str, Any] = {}
    """Arguments of the miner."""


class SiameseHead(HeadSettings):
    """A learned similarity of two embeddings instead of their cosine; use it with `sampler.name: balanced` or
    `mined`."""

    module: ClassVar[str] = "whaleid.models.heads.siamese:SiamesePairs"
    scores_pairs: ClassVar[bool] = True

    name: Literal["siamese"]
    hidden: Positive = 64
    """Width of the small network that all dimensions share."""
    negatives: Positive = 3
    """Most similar images of other identities in the batch that each image is compared with."""
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Logit of a similarity of 1; at the start of training that is a cosine of 1."""


class WeightedHead(Model):
    """One part of a sum."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of its loss."""
    head: Head
    """Any head that does not choose the batches."""


class SumHead(HeadSettings):
    """Weighted sum of heads on the same embedding; its logits are those of the first part that has any."""

    module: ClassVar[str] = "whaleid.models.heads.sum:WeightedSum"

    name: Literal["sum"]
    parts: Annotated[list[WeightedHead], Field(min_length=1)]
    """Heads and their weights."""

    @property
    def starts_from_means(self) -> bool:
        return any(part.head.starts_from_means for part in self.parts)

    @property
    def has_logits(self) -> bool:
        return any(part.head.has_logits for part in self.parts)

    @model_validator(mode="after")
    def _plain_parts(self) -> SumHead:
        for part in self.parts:
            require_trained(part.head, "a part of a sum")
            if part.head.plans_epochs:
                raise ValueError(
                    f"{part.head.name} cannot be a part of a sum: it chooses the batches; make the sum its learner"
                )
        return self


@dataclass(frozen=True)
class DividePreset:
    """A published form of divide and conquer. Of `epochs`, those before `divided` train sub-spaces in turn, those
    before `merged` the full embedding, both on batches of one cluster, and the others the full embedding on all
    images."""

    epochs: int
    divided: int
    merged: int
    bisected: bool
    """Whether K is reached by cutting clusters in two, from one cluster on (the warm-up)."""
    masks: bool
    """Whether sub-spaces are learned masks of the embedding, or slices of it."""
    frozen: int
    """Epochs after each clustering in which the backbone is frozen."""


DIVIDE_PRESETS = {
    "cvpr2019": DividePreset(epochs=200, divided=80, merged=190, bisected=False, masks=False, frozen=0),
    "tpami2021": DividePreset(epochs=180, divided=80, merged=180, bisected=True, masks=True, frozen=1),
}
"""Sanakoyeu et al., CVPR 2019 and TPAMI 2021."""


class DivideHead(HeadSettings):
    """Divide and conquer (Sanakoyeu et al., 2019, 2021): clusters of images, each with a learner and a sub-space.

    The phases of a run keep the shares of the epochs that they have in the preset. `clusters: 1` is the learner alone.
    """

    module: ClassVar[str] = "whaleid.divide.learners:DivideLearners"
    planner: ClassVar[str] = "whaleid.divide.schedule:DividePlanner"

    name: Literal["divide"]
    preset: Literal["cvpr2019", "tpami2021"] = "cvpr2019"
    """cvpr2019: K clusters at once, slices of the embedding, each normalised on its own; sub-spaces in 40 % of the
    epochs, the full embedding on batches of one cluster in 55 %, on all images in 5 %. tpami2021: 1, 2, 4, ... K
    clusters, learned masks, the backbone frozen for the epoch after each clustering; sub-spaces in 44 % of the epochs,
    then the full embedding on batches of one cluster."""
    learner: Head
    """The loss of each learner and of the full embedding: any other head."""
    clusters: Positive = 8
    """K. Published: 8 (4 for CUB200) in 2019, 32 in 2021, where it is a power of two."""
    every: Positive = 2
    """M: epochs from one clustering to the next."""
    by: Literal["image", "identity"] = "image"
    """image: an identity's images may fall into several clusters, as published. identity: they stay together, in the
    cluster of their mean. With few images an identity, clusters of images separate most pairs (`together` in the
    log)."""

    @model_validator(mode="after")
    def _consistent(self) -> DivideHead:
        require_trained(self.learner, "the learner of divide")
        if self.learner.plans_epochs:
            raise ValueError(f"a learner of divide cannot be a {self.learner.name} itself: give it another head")
        if self.learner.starts_from_means:
            raise ValueError("a learner of divide starts at random: leave `start: means` out")
        if self.form.bisected and self.clusters & (self.clusters - 1):
            raise ValueError(
                f"clusters must be a power of two with preset: {self.preset}, not {self.clusters}: each clustering "
                "cuts the clusters in two"
            )
        return self

    @property
    def form(self) -> DividePreset:
        """The preset's numbers."""
        return DIVIDE_PRESETS[self.preset]

    @property
    def has_logits(self) -> bool:
        return self.learner.has_logits

    @property
    def slices(self) -> int:
        return 1 if self.form.masks else self.clusters

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of clusters that the run goes through: 1 (the full embedding), then K, or 2, 4, ... K."""
        if self.form.bisected:
            return tuple(2**power for power in range(self.clusters.bit_length()))
        return (1, self.clusters) if self.clusters > 1 else (1,)

    def check(self, experiment: ExperimentBase) -> None:
        if experiment.model.neck != "none" and experiment.model.embedding % self.slices:
            raise ValueError(
                f"model.embedding ({experiment.model.embedding}) must be a multiple of head.clusters "
                f"({self.clusters}), which cut it into slices"
            )
        if experiment.sampler.name == "mined":
            raise ValueError("sampler: mined and head: divide both choose the batches; use sampler.name: balanced")


# ----------------------------------------------------------------------------------------- heads without labels


class RotationHead(HeadSettings):
    """Which of four quarter turns was the image given? All four copies of an image are in its batch (Gidaris et al.,
    "Unsupervised Representation Learning by Predicting Image Rotations", 2018)."""

    module: ClassVar[str] = "whaleid.models.heads.rotation:RotationClassifier"
    planner: ClassVar[str] = "whaleid.training.epochs:UnlabelledPlanner"
    needs_labels: ClassVar[bool] = False

    name: Literal["rotation"]


class JigsawHead(HeadSettings):
    """Where, of eight places, does a patch lie around the centre patch? (Doersch et al., "Unsupervised Visual
    Representation Learning by Context Prediction", 2015.) Lengths are shares of a patch's side; the defaults are
    theirs: 48 and 7 of 96 pixels."""

    module: ClassVar[str] = "whaleid.models.heads.jigsaw:JigsawClassifier"
    planner: ClassVar[str] = "whaleid.training.epochs:UnlabelledPlanner"
    needs_labels: ClassVar[bool] = False

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


class DeepClusterHead(HeadSettings):
    """Which cluster of the network's own features is the image in? (Caron et al., "Deep Clustering for Unsupervised
    Learning of Visual Features", 2018.)"""

    module: ClassVar[str] = "whaleid.models.heads.deepcluster:ClusterClassifier"
    planner: ClassVar[str] = "whaleid.training.deepcluster:DeepClusterPlanner"
    needs_labels: ClassVar[bool] = False

    name: Literal["deepcluster"]
    clusters: Annotated[int, Field(ge=2)] = 100
    """kmeans: how many. pic, which finds their number itself: at most; the smallest join their nearest."""
    every: Positive = 1
    """Epochs from one clustering to the next; each starts the classifier anew."""
    clustering: Literal["kmeans", "pic"] = "kmeans"
    """kmeans, or power-iteration clustering on the graph of nearest neighbours (Lin & Cohen, 2010)."""
    dimensions: Positive = 256
    """Of the features after PCA, at most."""


# ----------------------------------------------------------------------------------------------------- registry

HEADS: dict[str, type[HeadSettings] | str] = {
    "softmax": SoftmaxHead,
    "arcface": MarginHead,
    "cosface": MarginHead,
    "metric": MetricHead,
    "siamese": SiameseHead,
    "sum": SumHead,
    "divide": DivideHead,
    "none": NoHead,
    "rotation": RotationHead,
    "jigsaw": JigsawHead,
    "deepcluster": DeepClusterHead,
}
"""Settings of each head, or where they are (`"package.file:Class"`), by `head.name`."""
