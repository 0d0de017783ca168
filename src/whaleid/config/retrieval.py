"""Search and re-ranking: every list is a short grid, and the out-of-fold score chooses from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whaleid.config.base import Model, Positive, Share

Neighbours = Annotated[list[Positive], Field(min_length=1)]
Powers = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
Damping = Annotated[float, Field(gt=0, lt=1)]


class IndexConfig(Model):
    """How the nearest images are found."""

    kind: str = "auto"
    """exact: every image is compared. auto: exact as long as that is quicker on the whole, else an index by size. Any
    other word is a string for faiss's index_factory: IVF4096,Flat or IVF4096,PQ32 or HNSW32."""
    probes: Positive = 32
    """IVF: cells looked into for each query. More find more, and take longer in proportion."""
    breadth: Positive = 64
    """HNSW: images kept in sight on the way (efSearch), at least twice the neighbours asked for."""
    fetch: Positive = 4
    """Codes (PQ and the like) find this many times the neighbours asked for; the true cosines choose among them."""
    seed: int = 0


class ExpansionConfig(Model):
    """Alpha query expansion: the query becomes the mean of itself and its nearest gallery images."""

    neighbours: Neighbours = [1, 3, 8]
    alpha: Powers = [3.0, 6.0]
    """A neighbour weighs its cosine to this power."""


class AugmentationConfig(Model):
    """Database-side augmentation: every gallery image becomes the mean of itself and its nearest in the gallery."""

    neighbours: Neighbours = [1, 3, 8]
    alpha: Powers = [3.0, 6.0]


class ReciprocalConfig(Model):
    """k-reciprocal re-ranking. The paper's values (20, 6, 0.3) are of identities with some twenty images each."""

    k1: Neighbours = [8, 20]
    """Nearest images among which both must find each other."""
    k2: Neighbours = [1, 4]
    """Nearest images whose codes are averaged, the image itself among them."""
    lambda_value: Annotated[list[Share], Field(min_length=1)] = [0.3, 0.8]
    """Share of the plain cosine in the score (lambda in the paper)."""


class DiffusionConfig(Model):
    """Diffusion from a query over the graph of all images, until it stands."""

    neighbours: Neighbours = [10, 30]
    gamma: Powers = [3.0, 6.0]
    """An edge weighs its cosine to this power."""
    mutual: Annotated[list[bool], Field(min_length=1)] = [False]
    """Edges only between images that are both among each other's nearest."""
    alpha: Annotated[list[Damping], Field(min_length=1)] = [0.6, 0.9]
    """Share that goes on at each step; the rest stays with the query."""
    iterations: Positive = 30
    """Of the conjugate gradient, at most."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1.0e-4
    """It stops where what is left is this share of the query's own mass."""


class LabelConfig(Model):
    """Labels spread over the graph of all images for a number of steps, and stop early."""

    neighbours: Neighbours = [10, 30]
    gamma: Powers = [3.0, 6.0]
    mutual: Annotated[list[bool], Field(min_length=1)] = [False]
    alpha: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.5, 0.8]
    """Share that goes on at each step; the rest is what the labelled images say anew. 1: nothing is said anew."""
    steps: Neighbours = [1, 2, 4]
    balance: Share = 0.5
    """Each of an identity's n images starts with n ** -balance: 1 gives all identities one mass, 0 all images."""


class RerankConfig(Model):
    """Re-ranking of the sources side by side: null leaves a method out. Each is off in a fold where the other folds say
    that it does not help."""

    expansion: ExpansionConfig | None = ExpansionConfig()
    augmentation: AugmentationConfig | None = AugmentationConfig()
    reciprocal: ReciprocalConfig | None = ReciprocalConfig()
    diffusion: DiffusionConfig | None = DiffusionConfig()
    labels: LabelConfig | None = LabelConfig()
