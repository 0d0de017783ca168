"""An experiment: network, images, batches and schedule of one training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from whaleid.config.base import Model, Positive, Share
from whaleid.config.heads import Head, HeadSettings


class ModelConfig(Model):
    """Backbone, pooling and neck: image to embedding."""

    backbone: str
    weights: str
    """`imagenet` (weights/ folder, then timm's hub), `random`, or the path of a .safetensors file."""
    pool: Literal["avg", "max", "gem"]
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


class ImageConfig(Model):
    """Size of the network's input: width and height, or a budget of pixels with the data's own aspect."""

    width: Positive | None
    height: Positive | None
    pixels: Positive | None
    """width x height is about this many, with the aspect of the median box; both are multiples of 32 (16 if small)."""
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
    """How batches are drawn: `shuffle`; `balanced`: P identities x K images each; `mined`: as balanced, with identities
    that the network of some epochs ago confused."""

    name: Literal["shuffle", "balanced", "mined"]
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
    head: Head


class Experiment(ExperimentBase):
    """One training configuration with labels."""

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
        if self.sampler.name != "shuffle" and self.train.batch % self.sampler.images:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be a multiple of sampler.images ({self.sampler.images})"
            )
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
