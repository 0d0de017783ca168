"""Every YAML file as a typed, checked model: competitions, experiments, recipes (`configfiles` reads them).

A key that is not known is refused with its file and its place, so that no setting is ever ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of all settings: immutable, and no key besides those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------------------------------------- competition


class Table(Model):
    """A CSV of images: which columns hold what, and the folder that holds the pictures."""

    csv: str
    images: str
    image: str
    identity: str | None = None
    extra: dict[str, str] = {}
    """Further columns to keep: name in images.parquet -> column of the CSV (happywhale: species)."""
    suffix: str = ""
    """Appended to the image's name to get its file, where the CSV leaves out `.jpg`."""


class Submission(Model):
    """The submission's columns: the image, and its guesses joined by spaces."""

    image: str
    identities: str


class Competition(Model):
    """Where images, labels and the submission's form come from (design: *A competition*)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    root: Path
    train: Table
    test: Table | None = None
    submission: Submission = Submission(image="Image", identities="Id")
    unknown: str | None = None
    unknown_share: Share | None = None
    k: Positive = 5
    boxes: str | None = None
    solution: str | None = None
    mend: dict[str, dict[str, str]] = {}
    """Spelling mistakes of the data: column of images.parquet -> wrong value -> right value."""
    group: str | None = None
    """Name in `train.extra` of a column whose equal values must share a fold (an encounter, a burst)."""
    kaggle: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Competition:
        if self.train.identity is None:
            raise ValueError("train.identity is missing: name the CSV column that holds the identity")
        if self.group is not None and self.group not in self.train.extra:
            raise ValueError(f"group '{self.group}' is not among train.extra: {sorted(self.train.extra)}")
        if self.unknown is None and self.unknown_share:
            raise ValueError("unknown_share is set but unknown is null: name the unknown label or drop the share")
        return self


# ----------------------------------------------------------------------------------------------- experiment


class ModelConfig(Model):
    """Backbone, pooling and neck: image to embedding."""

    backbone: str
    weights: str
    """`imagenet` (weights/ folder, then timm's hub), `random`, or the path of a .safetensors file."""
    pool: Literal["avg", "max", "sum", "gem"]
    gem_p: Annotated[float, Field(gt=0)]
    neck: Literal["none", "linear", "bnneck"]
    embedding: Positive
    """Size of the embedding; the backbone's own where neck is `none`."""
    dropout: Share
    drop_path: Share

    @property
    def names_file(self) -> bool:
        """Whether `weights` is the path of a file."""
        return self.weights not in ("imagenet", "random")


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
    """Any loss of pytorch-metric-learning by class name, with an optional miner by class name."""

    name: Literal["metric"]
    loss: str
    arguments: dict[str, Any] = {}
    miner: str | None = None
    miner_arguments: dict[str, Any] = {}


class SiameseHead(Model):
    """A learnt similarity of two embeddings instead of their cosine (model/siamese.py); wants sampler.name: balanced
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
    growth: Literal["flat", "bisect"] = "bisect"
    """K clusters at once (2019), or 2, 4, ... K by cutting each in two (2021); K is a power of two then."""
    smallest: Share = 0.25
    """Least images in a cluster, as a share of the mean cluster; a smaller one takes its nearest neighbours in."""
    subspace: Literal["slices", "masks", "learned"] = "slices"
    """slices: equal parts of the embedding, each of length 1 on its own (2019). masks: the same parts, one length for
    the whole embedding. learned: the embedding times relu(mask), the masks learnt with the rest (2021)."""
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
    """The network sees gradients instead of colours while it pretrains (model/pretext.py says what that costs)."""


PretextHead = Annotated[RotationHead | JigsawHead | DeepClusterHead, Field(discriminator="name")]
"""Losses that need no labels: what an experiment under a recipe's `pretrain` has."""

PRETEXTS = ("rotation", "jigsaw", "deepcluster")


class ImageConfig(Model):
    """Size of the network's input: width and height, or a budget of pixels with the data's own aspect."""

    width: Positive | None
    height: Positive | None
    pixels: Positive | None
    """width x height about this many, aspect of the median box, both multiples of 32 (or of 16 when small)."""
    box_margin: Annotated[float, Field(ge=0, le=1)]
    """Share of the box's sides added on each side before cropping."""
    cache: Literal["raw", "jpeg"]
    """Form of the cache of resized images: raw pixels (fastest, width x height x 3 bytes an image), or JPEG of
    quality 95 packed in one file (about a tenth of the disk, one decode an image)."""
    mirror_identities: bool
    """A mirrored image is another identity: doubles the classes (flukes and flanks are not symmetrical)."""

    @model_validator(mode="after")
    def _one_way(self) -> ImageConfig:
        if (self.width is None) != (self.height is None):
            raise ValueError("image.width and image.height go together")
        if (self.width is None) == (self.pixels is None):
            raise ValueError("give image.width and image.height, or image.pixels, not both and not neither")
        return self


class AugmentConfig(Model):
    """Strengths of the training augmentations; 0 turns one off."""

    flip: Share
    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shift: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, le=45)]
    perspective: Annotated[float, Field(ge=0, lt=0.5)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[float, Field(ge=0, le=0.5)]
    gray: Share
    blur: Share
    noise: Share
    erase: Share


class SamplerConfig(Model):
    """How batches are drawn: `shuffle`; `balanced`: P identities x K images each; `mined`: as balanced, of identities
    that the network of a while ago took for one another."""

    name: Literal["shuffle", "balanced", "mined"]
    images: Positive
    """K: images an identity in a balanced or mined batch (P = batch / K)."""
    unknown: Literal["drop", "own"]
    """Unknown images in training: left out, or each an identity of its own."""
    every: Positive = 2
    """mined: epochs from one look at all training images to the next; those before the first are balanced."""


class FreezeConfig(Model):
    epochs: Annotated[int, Field(ge=0)]
    """The backbone stands still for this many epochs at the start."""
    batchnorm: bool
    """The backbone's batch normalisation keeps its statistics throughout."""


class TrainConfig(Model):
    """The schedule of one run."""

    epochs: Positive | None
    images_seen: Positive | None
    """Instead of epochs: train until about this many images were seen (rounded to whole epochs, at least 1)."""
    batch: Annotated[int, Field(ge=2)]
    accumulate: Positive
    optimizer: Literal["adamw", "sgd"]
    lr: Annotated[float, Field(gt=0)]
    """Peak rate of neck and head."""
    backbone_lr: Annotated[float, Field(ge=0)]
    """Peak rate of the backbone as a multiple of lr."""
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Share
    """Share of all steps spent warming up; then half a cosine down to `final_lr` x lr."""
    final_lr: Share
    clip: Annotated[float, Field(ge=0)]
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights (0: none); it is what is saved and used."""
    precision: Literal["auto", "no", "fp16", "bf16"]
    select: Literal["last", "best"]
    """`last` weights, or the epoch with the fold's best own score: optimistic, and marked so in the report."""
    freeze: FreezeConfig
    seed: int
    workers: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.images_seen is None):
            raise ValueError("give train.epochs or train.images_seen, not both and not neither")
        return self


class FeatureConfig(Model):
    """Embedding of all images by a trained run."""

    batch: Positive
    mirror: bool
    """Also embed the mirrored image (averaged; side by side where mirror_identities is on)."""
    scales: Annotated[list[float], Field(min_length=1)]
    """Input sizes as multiples of the training size, averaged; [1.0] for one."""
    half: bool
    """float16 on disk."""
    logits: bool
    """Also write the head's class logits (n, classes), for the blend; costs disk with many classes."""


class ExperimentBase(Model):
    """What experiments with and without labels share."""

    name: str
    model: ModelConfig
    image: ImageConfig
    augment: AugmentConfig
    sampler: SamplerConfig
    train: TrainConfig
    features: FeatureConfig


class Experiment(ExperimentBase):
    """One training configuration (design: *An experiment*)."""

    head: Head

    @field_validator("head", mode="before")
    @classmethod
    def _has_labels(cls, head: Any) -> Any:
        name = head.get("name") if isinstance(head, dict) else None
        if name in PRETEXTS:
            raise ValueError(
                f"{name} trains without labels: name this experiment under the recipe's `pretrain`, not among its "
                "experiments"
            )
        return head

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.image.mirror_identities and self.augment.flip > 0:
            raise ValueError("augment.flip must be 0 where image.mirror_identities is on: a mirror is another identity")
        if self.sampler.name != "shuffle" and self.train.batch % self.sampler.images:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be a multiple of sampler.images ({self.sampler.images})"
            )
        if isinstance(self.head, DivideHead):
            self._check_divide(self.head)
        return self

    def _check_divide(self, head: DivideHead) -> None:
        equal = head.subspace != "learned"
        if equal and self.model.neck != "none" and self.model.embedding % head.clusters:
            raise ValueError(
                f"model.embedding ({self.model.embedding}) must be a multiple of head.clusters ({head.clusters}) for "
                f"subspace: {head.subspace}"
            )
        if self.sampler.name == "mined":
            raise ValueError("sampler: mined and head: divide both choose the batches; take sampler.name: balanced")

    @property
    def slices(self) -> int:
        """Parts of the embedding that are of length 1 each on their own: K of divide by slices, else 1."""
        return self.head.clusters if isinstance(self.head, DivideHead) and self.head.subspace == "slices" else 1


class PretextExperiment(ExperimentBase):
    """An experiment without labels: it trains a backbone for others to start from.

    All images count alike: `sampler` has no say, and of `features` the batch alone, where features are clustered.
    """

    head: PretextHead

    @field_validator("head", mode="before")
    @classmethod
    def _needs_no_labels(cls, head: Any) -> Any:
        name = head.get("name") if isinstance(head, dict) else None
        if name not in PRETEXTS:
            raise ValueError(f"{name} needs labels; an experiment under `pretrain` has one of {', '.join(PRETEXTS)}")
        return head

    @model_validator(mode="after")
    def _consistent(self) -> PretextExperiment:
        if self.image.mirror_identities:
            raise ValueError("image.mirror_identities must be off in an experiment without labels: it has no classes")
        if self.train.select == "best":
            raise ValueError("train.select must be last in an experiment without labels: nothing scores its epochs")
        return self


# --------------------------------------------------------------------------------------------------- recipe


class PretrainConfig(Model):
    """Training without labels before the recipe's experiments, which all start from its backbone."""

    experiment: str
    """One with a pretext head (rotation, jigsaw, deepcluster)."""
    test: bool = False
    """Test images too. Out of fold, every query was seen (without its label) in pretraining: only with `test: true`
    is that so of the test set as well, and the two scores alike."""


class ConcatConfig(Model):
    """Features of all sources side by side, whitened on the training part of the fold."""

    whiten: Positive | None = 512
    """At most this many dimensions after PCA; null: no PCA."""
    power: Share = 0.25
    """0: PCA rotation only; 1: full whitening; between: partial (eigenvalue ** -power/2)."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a source (default 1)."""


class KnnConfig(Model):
    """From image similarities to identity scores."""

    score: Literal["max", "mean", "centroid"] = "max"
    top: Positive = 2
    """`mean`: of the top this many images of the identity."""
    neighbours: Positive = 200
    """Images looked at for each query."""


class ClassifierConfig(Model):
    """Softmax classifier on the concatenated features."""

    epochs: Positive = 40
    batch: Positive = 256
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1.0e-2
    smoothing: Share = 0.1
    scale: Annotated[float, Field(gt=0)] = 20.0
    mixup: Annotated[float, Field(ge=0)] = 0.2
    seeds: Positive = 2


class LocalConfig(Model):
    """Local matching: RootSIFT descriptors vote for identities. Its time grows with images x keypoints.

    Defaults are chosen by out-of-fold figures of nyala (1,514 images of 237 identities).
    """

    size: Annotated[int, Field(ge=32)] = 256
    """Longer side of the picture (cropped to its box) in pixels, where it is larger."""
    keypoints: Positive = 1000
    """Strongest keypoints of each image, at the most. More are better and slower: MAP@5 of one fold of nyala 0.275
    with 500, 0.317 with 1000."""
    neighbours: Annotated[int, Field(ge=2)] = 3
    """Nearest descriptors looked at for each descriptor of the query; the last one says what chance gives."""
    power: Share = 0.25
    """An identity's votes are divided by its number of descriptors in the gallery to this power."""


class CombineConfig(Model):
    """How the sources become one ranking (design: *A recipe*)."""

    concat: ConcatConfig = ConcatConfig()
    knn: KnnConfig = KnnConfig()
    classifier: ClassifierConfig | None = ClassifierConfig()
    logits: Annotated[int, Field(ge=0)] = 3
    """Class probabilities of this many best single experiments join the blend."""
    local: LocalConfig | None = None
    """Local matching joins the blend; `{}` takes it as it is set above, null leaves it out."""
    rescore: Positive = 50
    """Nearest gallery images of each query that the pair similarity of a siamese head looks at again."""
    candidates: Positive = 50
    """Candidates kept for each query and source."""
    unknown: Literal["threshold", "share"] = "threshold"
    """Test set: the threshold tuned out of fold, or the one that gives the expected share."""


class Recipe(Model):
    """A list of experiments and how they are combined."""

    name: str
    folds: Annotated[int, Field(ge=2)]
    train_folds: list[int] | None = None
    """Train these folds alone (a quick look); null: all."""
    experiments: list[str] = []
    pretrain: PretrainConfig | None = None
    """Experiments with `model.weights` imagenet or random start from the backbone that this trains; one that names a
    file of its own starts from that."""
    sources: dict[str, str] = {}
    """Foreign features: name -> folder with `fold<k>/embeddings.npy` and `rows.csv`."""
    set: dict[str, Any] = {}
    """Overrides for every experiment: dotted key -> value, as SET on the command line."""
    combine: CombineConfig = CombineConfig()
    seed: int = 0

    @field_validator("experiments")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experiment listed twice: {', '.join(twice)}")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if not self.experiments and not self.sources:
            raise ValueError("a recipe needs experiments or sources")
        outside = [fold for fold in self.train_folds or [] if not 0 <= fold < self.folds]
        if outside:
            raise ValueError(f"train_folds {outside} are outside 0..{self.folds - 1}")
        return self
