"""Re-ranking. Every list is a short grid, from which the out-of-fold score chooses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whaleid.config.base import Model, Positive, Share

Neighbours = Annotated[list[Positive], Field(min_length=1)]
Powers = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
Damping = Annotated[float, Field(gt=0, lt=1)]


class ExpansionConfig(Model):
    """Alpha query expansion: the query becomes the mean of itself and its nearest gallery images."""

    neighbours: Neighbours = [1, 3, 8]
    """Nearest gallery images that are averaged."""
    alpha: Powers = [3.0, 6.0]
    """A neighbour has the weight cosine ** alpha."""


class AugmentationConfig(Model):
    """Database augmentation: every gallery image becomes the mean of itself and its nearest in the gallery."""

    neighbours: Neighbours = [1, 3, 8]
    """Nearest gallery images that are averaged."""
    alpha: Powers = [3.0, 6.0]
    """A neighbour has the weight cosine ** alpha."""


class ReciprocalConfig(Model):
    """k-reciprocal re-ranking. The paper's values (20, 6, 0.3) are for identities with some twenty images each."""

    k1: Neighbours = [8, 20]
    """Nearest images among which both must find each other."""
    k2: Neighbours = [1, 4]
    """Nearest images whose codes are averaged, the image itself among them."""
    lambda_value: Annotated[list[Share], Field(min_length=1)] = [0.3, 0.8]
    """Share of the plain cosine in the score."""


class DiffusionConfig(Model):
    """Diffusion from a query over the graph of all images, until convergence."""

    neighbours: Neighbours = [10, 30]
    """Edges of each image, to its nearest ones."""
    gamma: Powers = [3.0, 6.0]
    """An edge has the weight cosine ** gamma."""
    mutual: Annotated[list[bool], Field(min_length=1)] = [False]
    """Edges only between images that are both among each other's nearest."""
    alpha: Annotated[list[Damping], Field(min_length=1)] = [0.6, 0.9]
    """Share that moves on at each step; the rest stays with the query."""


class LabelConfig(Model):
    """Labels spread over the graph of all images for a few steps."""

    neighbours: Neighbours = [10, 30]
    """Edges of each image, to its nearest ones."""
    gamma: Powers = [3.0, 6.0]
    """An edge has the weight cosine ** gamma."""
    mutual: Annotated[list[bool], Field(min_length=1)] = [False]
    """Edges only between images that are both among each other's nearest."""
    alpha: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.5, 0.8]
    """Share that moves on at each step; the rest comes from the labelled images again. 1: nothing comes again."""
    steps: Neighbours = [1, 2, 4]
    """Number of steps."""


class RerankConfig(Model):
    """Re-ranking of the concatenation: null leaves a method out (methods: retrieval/rerankers). Each is off in a fold
    where it does not help on the other folds."""

    expansion: ExpansionConfig | None = ExpansionConfig()
    augmentation: AugmentationConfig | None = AugmentationConfig()
    reciprocal: ReciprocalConfig | None = ReciprocalConfig()
    diffusion: DiffusionConfig | None = DiffusionConfig()
    labels: LabelConfig | None = LabelConfig()
