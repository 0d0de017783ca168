"""An experiment: network, images, batches and schedule of one training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from whaleid.config.base import Model, Positive, Share
from whaleid.config.heads import Head, HeadSettings


class ModelConfig(Model):
    """Backbone, pooling and neck: image to embedding."""

    backbone: str
    """Name of a timm network, `hf-hub:<owner>/<name>` for one of the hub, or `local-dir:<path>` for its folder."""
    weights: str
    """`imagenet` (those that the backbone was published with: weights/ folder, then the hub), `random`, or the path of
    a .safetensors file."""
    pool: Literal["avg", "max", "gem"]
    """Pooling of the feature map: mean, maximum, or generalised mean (GeM)."""
    gem_p: Annotated[float, Field(gt=0)]
    """Exponent at which GeM pooling starts; it is trained."""
    neck: Literal["none", "linear", "bnneck"]
    """Layers from the pooled features to the embedding: none, dropout and linear, or those and batch normalisation."""
    embedding: Positive
    """Size of the embedding; the backbone's own where neck is `none`."""
    dropout: Share
    """Dropout before the linear layer of the neck."""
    drop_path: Share
    """Stochastic depth of the backbone, where it has any."""

    @property
    def names_file(self) -> bool:
        """Whether `weights` is the path of a file."""
        return self.weights not in ("imagenet", "random")


class ImageConfig(Model):
    """Size of the network's input: width and height, a budget of pixels with the data's own aspect, or none of them:
    the size that the network was pretrained at."""

    width: Positive | None
    """Width of the input in pixels."""
    height: Positive | None
    """Height of the input in pixels."""
    pixels: Positive | None
    """width x height is about this many, with the aspect of the median box; both are multiples of 32 (16 if small)."""
    box_margin: Annotated[float, Field(ge=0, le=1)]
    """Share of the box's sides added on each side before cropping."""
    cache: Literal["raw", "jpeg"]
    """Form of the cache of resized images: raw pixels (fastest, width x height x 3 bytes an image), or JPEG of
    quality 95 packed in one file (about a tenth of the disk, one decode an image)."""
    background: Literal["keep", "remove"] = "keep"
    """What the network sees outside of an image's mask: the picture, or grey. Two experiments that differ in this alone
    see both; the blend weighs them out of fold."""
    mirror_identities: bool
    """A mirrored image is another identity: doubles the classes (flukes and flanks are not symmetrical)."""

    @property
    def needs_masks(self) -> bool:
        """Whether the network sees the animal alone."""
        return self.background == "remove"

    @property
    def has_size(self) -> bool:
        """Whether it says a size; else it is that of the pretrained network."""
        return self.width is not None or self.pixels is not None

    @model_validator(mode="after")
    def _one_way(self) -> ImageConfig:
        if (self.width is None) != (self.height is None):
            raise ValueError("image.width and image.height go together")
        if self.width is not None and self.pixels is not None:
            raise ValueError("give image.width and image.height, or image.pixels, not both")
        return self


class AugmentConfig(Model):
    """Strengths of the training augmentations; 0 turns one off."""

    flip: Share
    """Probability of a horizontal flip."""
    rotate: Annotated[float, Field(ge=0, le=180)]
    """Largest angle in degrees, to either side."""
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Largest change of size, of each axis separately, as a share."""
    shift: Annotated[float, Field(ge=0, lt=1)]
    """Largest shift, as a share of the image's sides."""
    shear: Annotated[float, Field(ge=0, le=45)]
    """Largest angle of shear in degrees."""
    perspective: Annotated[float, Field(ge=0, lt=0.5)]
    """Largest shift of each corner, as a share of the image's sides."""
    brightness: Annotated[float, Field(ge=0, le=1)]
    """Largest change of the brightness factor."""
    contrast: Annotated[float, Field(ge=0, le=1)]
    """Largest change of the contrast factor."""
    hue: Annotated[float, Field(ge=0, le=0.5)]
    """Largest shift of the hue, as a share of the colour circle."""
    gray: Share
    """Probability of grey values."""
    blur: Share
    """Probability of Gaussian blur."""
    noise: Share
    """Probability of Gaussian noise."""
    erase: Share
    """Probability that a random rectangle is erased."""


class SamplerConfig(Model):
    """How batches are drawn: `shuffle`; `balanced`: P identities x K images each; `mined`: as balanced, with identities
    that the network of some epochs ago confused."""

    name: Literal["shuffle", "balanced", "mined"]
    """How batches are drawn."""
    images: Positive
    """K: images an identity in a balanced or mined batch (P = batch / K)."""
    unknown: Literal["drop", "own"]
    """Unknown images in training: left out, or each an identity of its own."""
    every: Positive = 2
    """mined: epochs from one search for hard neighbours to the next; the epochs before the first are balanced."""


class FreezeConfig(Model):
    epochs: Annotated[int, Field(ge=0)]
    """The backbone is frozen for this many epochs at the start."""
    batchnorm: bool
    """The backbone's batch normalisation keeps its statistics throughout."""
    stages: Annotated[int, Field(ge=0)] = 0
    """First stages of the backbone that stay as pretrained throughout: the stem is one, then each stage of blocks."""


class TrainConfig(Model):
    """The schedule of one run."""

    epochs: Annotated[int, Field(ge=0)] | None
    """Passes over the training images; 0: the pretrained network as it is, with `head: {name: none}`."""
    images_seen: Positive | None
    """Instead of epochs: train until about this many images were seen (rounded to whole epochs, at least 1)."""
    batch: Annotated[int, Field(ge=2)]
    """Images in a batch."""
    accumulate: Positive
    """Batches whose gradients are summed for one step."""
    optimizer: Literal["adamw", "sgd"]
    """AdamW or SGD with momentum."""
    lr: Annotated[float, Field(gt=0)]
    """Peak rate of neck and head."""
    backbone_lr: Annotated[float, Field(ge=0)]
    """Peak rate of the backbone as a multiple of lr."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Weight decay."""
    warmup: Share
    """Share of all steps spent warming up; then half a cosine down to `final_lr` x lr."""
    final_lr: Share
    """Learning rate at the end, as a share of the peak."""
    clip: Annotated[float, Field(ge=0)]
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights (0: none); it is what is saved and used."""
    precision: Literal["auto", "no", "fp16", "bf16"]
    """Of the computation; auto: bf16 or fp16 on GPUs that have it, else full precision."""
    freeze: FreezeConfig
    """What of the backbone is not trained."""
    seed: int
    """Of initial weights, batches and augmentation."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that prepare images; 0: none, the threads of this process do."""
    gpus: Positive = 1
    """Of a run: more than one divide each batch among them. Without GPUs, so many processes share the cores."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.images_seen is None):
            raise ValueError("give train.epochs or train.images_seen, not both and not neither")
        return self


class FeatureConfig(Model):
    """Embedding of all images by a trained run."""

    batch: Positive
    """Images in a batch."""
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
    """The file's name."""
    model: ModelConfig
    image: ImageConfig
    augment: AugmentConfig
    sampler: SamplerConfig
    train: TrainConfig
    features: FeatureConfig
    head: Head
    """What turns embeddings into a training loss."""

    @property
    def frozen(self) -> bool:
        """Whether it is a pretrained network as it is: without training, the same for every fold."""
        return self.train.epochs == 0

    @property
    def is_adapter(self) -> bool:
        """Whether its input is features of a frozen network instead of images."""
        return False

    @model_validator(mode="after")
    def _frozen_alone(self) -> Self:
        if self.frozen != (self.head.name == "none"):
            raise ValueError("train.epochs: 0 and head: {name: none} go together: a frozen network has no loss")
        if self.frozen and self.model.neck != "none":
            raise ValueError(f"model.neck: {self.model.neck} of a frozen network would stay random; set it to none")
        return self


class Experiment(ExperimentBase):
    """One training configuration with labels."""

    adapter_of: str | None = None
    """A frozen experiment of the recipe: neck and head alone are trained, on its features. This one extends it."""

    @property
    def is_adapter(self) -> bool:
        return self.adapter_of is not None

    @field_validator("head")
    @classmethod
    def _has_labels(cls, head: HeadSettings) -> HeadSettings:
        if not head.needs_labels:
            raise ValueError(
                f"{head.name} trains without labels: name this experiment under the recipe's `pretrain`, not among its "
                "experiments"
            )
        return head

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.image.mirror_identities and self.augment.flip > 0:
            raise ValueError("augment.flip must be 0 where image.mirror_identities is on: a mirror is another identity")
        if self.head.starts_from_means and self.model.neck != "bnneck":
            raise ValueError(
                f"head.start: means needs model.neck: bnneck, not {self.model.neck}; set it, or leave start: means out"
            )
        if self.sampler.name != "shuffle" and self.train.batch % self.sampler.images:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be a multiple of sampler.images ({self.sampler.images})"
            )
        if self.is_adapter and self.frozen:
            raise ValueError("adapter_of: an adapter is trained; give it train.epochs and a head")
        if self.is_adapter and self.image.mirror_identities:
            raise ValueError("adapter_of: features are of whole images; image.mirror_identities must be off")
        self.head.check(self)
        return self


class PretextExperiment(ExperimentBase):
    """An experiment without labels: it trains a backbone for others to start from.

    All images count alike: `sampler` is not used, and of `features` only the batch, where features are clustered.
    """

    @field_validator("head")
    @classmethod
    def _needs_no_labels(cls, head: HeadSettings) -> HeadSettings:
        if head.needs_labels:
            raise ValueError(
                f"{head.name} needs labels; an experiment under `pretrain` has a head without: rotation, jigsaw or "
                "deepcluster"
            )
        return head

    @model_validator(mode="after")
    def _consistent(self) -> PretextExperiment:
        if self.image.mirror_identities:
            raise ValueError("image.mirror_identities must be off in an experiment without labels: it has no classes")
        return self
