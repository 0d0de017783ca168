"""A recipe: experiments, and how they are combined."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from whaleid.config.base import Model, Positive, Share
from whaleid.config.local_matching import LocalConfig, PairsConfig
from whaleid.config.retrieval import RerankConfig
from whaleid.config.stack import StackConfig

FEWEST_FOLDS = 3
"""Folds that `combine.local_matching.learned` needs: with two, no fold is left to fit what both are not part of."""


class PretrainConfig(Model):
    """Training without labels before the recipe's experiments, which start from its backbone."""

    experiment: str
    """An experiment with a head that needs no labels (rotation, jigsaw, deepcluster)."""
    test: bool = False
    """Whether to pretrain on the test images too. Out of fold, pretraining has seen every query without its label;
    only with `true` does that hold for the test set too, so that both scores mean the same."""


class ConcatConfig(Model):
    """Concatenated features of all sources, whitened by a PCA of the fold's training part."""

    whiten: Positive | None = 512
    """Largest number of dimensions after PCA; null: no PCA."""
    power: Share = 0.25
    """0: PCA rotation only; 1: full whitening; between: partial (eigenvalue ** -power/2)."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of each source; 1 where it is not named."""


class KnnConfig(Model):
    """Nearest neighbours. The score of an identity is that of its most similar image."""

    neighbours: Positive = 200
    """Nearest images that are retrieved for each query."""
    index: str = "auto"
    """`exact`, `auto` (exact up to 200,000 gallery images or 10,000 queries, else cells of codes of a bit a dimension),
    or a string for faiss's index_factory. An index is widened until it finds 95 % of the five nearest images of a
    sample of the queries."""


class ClassifierConfig(Model):
    """Softmax classifier on the concatenated features."""

    epochs: Positive = 40
    """Passes over the training part."""
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    """Peak learning rate of AdamW."""
    seeds: Positive = 2
    """Classifiers trained with different seeds and averaged."""


class CombineConfig(Model):
    """How the sources become one ranking."""

    concat: ConcatConfig = ConcatConfig()
    knn: KnnConfig = KnnConfig()
    classifier: ClassifierConfig | None = ClassifierConfig()
    logits: Annotated[int, Field(ge=0)] = 3
    """Number of experiments, the best first, whose class probabilities join the blend."""
    local_matching: LocalConfig | None = None
    """Local matching as a member of the blend: `{}` with its defaults, null without it."""
    rerank: RerankConfig | None = None
    """Re-ranking as members of the blend: `{}` with its defaults, null without it."""
    rescore: Positive = 50
    """Nearest gallery images of each query that a siamese head scores again."""
    candidates: Positive = 50
    """Candidates kept for each query and source."""
    stack: StackConfig | None = None
    """LambdaRank over the candidates of all rankers: `{}` with its defaults, null without it."""
    full_gallery: bool = True
    """Whether to estimate each score with every labelled image in the gallery, as the test set has it: all is ranked
    once more with half of each identity's images. No answer depends on it."""

    @property
    def pairs(self) -> PairsConfig | None:
        """Matching pair by pair, where the recipe has it."""
        learned = None if self.local_matching is None else self.local_matching.learned
        return None if learned is None else learned.pairs


class PseudoConfig(Model):
    """Pseudo-labels: confident test images join the training data (first places of humpback and happywhale)."""

    rounds: Positive = 1
    """Largest number of times that everything is trained again, with the labels of the round before. The first round
    that does not help out of fold is the last, and is not used."""
    confidence: Share = 0.8
    """Smallest probability of the first guess, which must also rank above the unknown identity."""


class Recipe(Model):
    """A list of experiments and how they are combined."""

    name: str
    folds: Annotated[int, Field(ge=2)]
    """Number of parts that the labelled images are split into."""
    train_folds: list[int] | None = None
    """Folds that are trained (`[0]` for a first look); null: all."""
    experiments: list[str] = []
    """Names or paths of experiments."""
    full: bool | list[str] = False
    """Experiments that are also trained on all labelled images, for the test set: true for all, or their names. They
    train for as many epochs as the folds' runs, which stand for them out of fold."""
    pseudo: PseudoConfig | None = None
    """Pseudo-labels: `{}` with their defaults, null without them."""
    pretrain: PretrainConfig | None = None
    """Training without labels. Experiments start from its backbone, except those whose `model.weights` names a file."""
    sources: dict[str, str] = {}
    """Features of other programs: name -> folder with `fold<k>/embeddings.npy` and `rows.csv`."""
    set: dict[str, Any] = {}
    """Overrides of all experiments: dotted key -> value, as `--set` on the command line, which overrides these."""
    combine: CombineConfig = CombineConfig()
    seed: int = 0
    """Of the folds and of everything random in the ensemble."""

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
            raise ValueError("pseudo needs experiments to train; sources of other programs are not trained")
        if self.pseudo is not None and self.train_folds is not None and len(set(self.train_folds)) < 2:
            raise ValueError(
                "pseudo needs two folds or more in train_folds: a fold is labelled by the models of the others"
            )
        used = len(set(self.train_folds or range(self.folds)))
        if (
            self.combine.local_matching is not None
            and self.combine.local_matching.learned is not None
            and used < FEWEST_FOLDS
        ):
            raise ValueError(
                f"combine.local_matching.learned needs {FEWEST_FOLDS} folds, and the recipe trains {used}: it is "
                "fitted on the other folds, of which one is held out; use more folds, or set it to null"
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
