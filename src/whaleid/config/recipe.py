"""A recipe: experiments, and how they are combined."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from whaleid.config.base import Model, Positive, Share
from whaleid.config.local_matching import LocalConfig
from whaleid.config.retrieval import RerankConfig
from whaleid.config.stack import StackConfig

FEWEST_FOLDS = 3
"""Of a recipe with `combine.local_matching.learned`: with two, nobody is left to teach what both had no part in."""


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
    index: str = "auto"
    """exact, auto (exact up to 200,000 gallery images or 10,000 queries, else approximate) or a string for faiss's
    index_factory."""


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


class CombineConfig(Model):
    """How the sources become one ranking (design: *A recipe*)."""

    concat: ConcatConfig = ConcatConfig()
    knn: KnnConfig = KnnConfig()
    classifier: ClassifierConfig | None = ClassifierConfig()
    logits: Annotated[int, Field(ge=0)] = 3
    """Class probabilities of this many best single experiments join the blend."""
    local_matching: LocalConfig | None = None
    """Local matching joins the blend; `{}` takes it as it is set above, null leaves it out."""
    rerank: RerankConfig | None = None
    """Re-ranking joins the blend; `{}` takes it as config/retrieval.py sets it, null leaves it out."""
    rescore: Positive = 50
    """Nearest gallery images of each query that the pair similarity of a siamese head looks at again."""
    candidates: Positive = 50
    """Candidates kept for each query and source."""
    unknown: Literal["threshold", "share"] = "threshold"
    """threshold: the score of the unknown identity, fitted out of fold. share: for the test set, the threshold that
    puts the unknown identity first as often as the competition's `unknown_share` says."""
    stack: StackConfig | None = None
    """A learned order on top of all rankings and the blend; `{}` takes it as it is set, null leaves it out."""


class PseudoConfig(Model):
    """Confident test images join training, round after round (humpback's and happywhale's first places)."""

    rounds: Positive = 1
    """At most this often everything is trained again, with the labels that the round before gave. The first round
    that does not help out of fold is the last, and is not used."""
    confidence: Share = 0.8
    """Least probability of the first guess. It must stand before the unknown identity, too."""


class Recipe(Model):
    """A list of experiments and how they are combined."""

    name: str
    folds: Annotated[int, Field(ge=2)]
    train_folds: list[int] | None = None
    """Train these folds alone (a quick look); null: all."""
    experiments: list[str] = []
    full: bool | list[str] = False
    """Experiments trained once more on all labelled images, as members of the test set's ensemble: true for all, or
    their names. They train for as many epochs as the folds' runs, and out of fold they are worth what those are."""
    pseudo: PseudoConfig | None = None
    """Rounds of pseudo-labels; `{}` takes one as it is set above, null none."""
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
        foreign = sorted(set(self.full_members) - set(self.experiments))
        if foreign:
            raise ValueError(f"full: '{foreign[0]}' is none of the recipe's experiments")
        if self.pseudo is not None and not self.experiments:
            raise ValueError("pseudo needs experiments to train; foreign sources alone learn nothing from it")
        if self.pseudo is not None and self.train_folds is not None and len(set(self.train_folds)) < 2:
            raise ValueError("pseudo needs two folds or more in train_folds: what is sure for one, the others say")
        used = len(set(self.train_folds or range(self.folds)))
        if (
            self.combine.local_matching is not None
            and self.combine.local_matching.learned is not None
            and used < FEWEST_FOLDS
        ):
            raise ValueError(
                f"combine.local_matching.learned needs {FEWEST_FOLDS} folds, and the recipe trains {used}: what is "
                "learnt for a fold is shown by folds that had no part in it; take more, or leave it out"
            )
        outside = [fold for fold in self.train_folds or [] if not 0 <= fold < self.folds]
        if outside:
            raise ValueError(f"train_folds {outside} are outside 0..{self.folds - 1}")
        return self

    @property
    def full_members(self) -> list[str]:
        """Entries of `experiments` that are trained on all labelled images too."""
        if isinstance(self.full, bool):
            return list(self.experiments) if self.full else []
        return self.full
