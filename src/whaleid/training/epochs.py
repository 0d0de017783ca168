"""What each epoch of a run trains on: its length, what must be computed before it, and its batches.

Most samplers need the labels only. Hard mining needs neighbours, and other planners clusters: these are computed
between two epochs, from features of all training items with the network as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from whaleid.config import ExperimentBase
from whaleid.config.heads import find_class
from whaleid.data.cache import Inputs
from whaleid.data.samplers import EpochPlan, TrainingItems, epoch_batches
from whaleid.training.extract_features import Space, class_means, extract_item_features
from whaleid.training.schedule import epochs_of
from whaleid.training.session import Session, from_main_process

HARD_OTHERS, HARD_SAME = 16, 2
"""Neighbours kept of each image: enough of other identities to fill a batch, and the two least similar of its own."""

_UNIFORM = 3  # stream of random numbers; data/samplers.py has 0 and 1, divide/sampler.py 2


class EpochPlanner:
    """Plans the epochs of a run with `sampler.name` shuffle, balanced or mined; base of other planners.

    Whatever it computes between epochs is in `session.planner_state`, which is saved to resume from: on a GPU the same
    weights do not give the same features to the last bit.
    """

    def __init__(self, experiment: ExperimentBase, items: TrainingItems, cache: Inputs | None, title: str):
        self.experiment, self.items, self.cache, self.title = experiment, items, cache, title

    def lengths(self) -> list[int]:
        """Batches of each epoch, known before the first step. Raises WhaleidError where the data do not suit the
        run."""
        batches = epoch_batches(self.items.labels, self.experiment.sampler, self.experiment.train.batch, 0, 0)
        return [len(batches)] * epochs_of(self.experiment.train, sum(len(chosen) for chosen in batches))

    def frozen(self, session: Session) -> bool:
        """Whether the backbone is frozen in the epoch."""
        return session.progress.epoch < self.experiment.train.freeze.epochs

    def prepare(self, session: Session) -> dict[str, Any] | None:
        """Compute what the epoch needs, where it is due; returns a line for the log, or None."""
        sampler, epoch = self.experiment.sampler, session.progress.epoch
        if self.experiment.head.starts_from_means and not epoch:
            self._start_from_means(session)
        if sampler.name != "mined" or not epoch or epoch % sampler.every:
            return None
        from whaleid.data.mined_samplers import hard_neighbours

        rows = self.extract(session, "embedding")
        others, same = hard_neighbours(rows, self.items.labels, HARD_OTHERS, HARD_SAME)
        session.planner_state = {
            "others": torch.from_numpy(from_main_process(session.accelerator, others)),
            "same": torch.from_numpy(from_main_process(session.accelerator, same)),
        }
        similarity = float((rows * rows[others[:, 0]]).sum(axis=1).mean())
        return {"kind": "mined", "nearest_other": round(similarity, 5)}

    def labels(self, session: Session) -> np.ndarray:
        """Labels of the items in the epoch, int64 (n,)."""
        return self.items.labels

    def items_of(self, session: Session) -> TrainingItems:
        """The items with the labels of the epoch."""
        return replace(self.items, labels=self.labels(session))

    def plan(self, session: Session) -> EpochPlan:
        """Batches of the epoch, and the learner of each."""
        sampler, batch, epoch = self.experiment.sampler, self.experiment.train.batch, session.progress.epoch
        if "others" not in session.planner_state:
            batches = epoch_batches(self.items.labels, sampler, batch, epoch, session.seed)
        else:
            from whaleid.data.mined_samplers import mined_batches

            others, same = (session.planner_state[name].cpu().numpy() for name in ("others", "same"))
            batches = mined_batches(self.items.labels, others, same, batch, sampler.images, epoch, session.seed)
        return EpochPlan(batches, [0] * len(batches))

    def extract(self, session: Session, space: Space) -> np.ndarray:
        """Unit features float32 (n, d) of all items with the network as it is; called by all processes."""
        assert self.cache is not None
        batch = self.experiment.features.batch
        return extract_item_features(session.accelerator, session.module.embedder, self.items, self.cache, batch, space)

    def _start_from_means(self, session: Session) -> None:
        """Start the head's classes from the means of their images' embeddings."""
        embeddings = from_main_process(session.accelerator, self.extract(session, "embedding"))
        means = class_means(embeddings, self.items.labels, len(self.items.classes))
        started = session.module.head.start_from_means(torch.from_numpy(means).to(session.accelerator.device))
        session.restart_average([f"head.{name}" for name in started])


class UnlabelledPlanner(EpochPlanner):
    """Plans the epochs of a run without labels: every image once an epoch."""

    def lengths(self) -> list[int]:
        config, count = self.experiment.train, len(self.items)
        return [batches_of(count, config.batch)] * epochs_of(config, count)

    def prepare(self, session: Session) -> dict[str, Any] | None:
        return None

    def plan(self, session: Session) -> EpochPlan:
        batch = self.experiment.train.batch
        batches = uniform_batches(self.labels(session), batch, session.progress.epoch, session.seed)
        return EpochPlan(batches, [0] * len(batches))


def make_planner(experiment: ExperimentBase, items: TrainingItems, cache: Inputs | None, title: str) -> EpochPlanner:
    """The planner that the experiment's head asks for. cache: None where only `lengths` is asked."""
    return find_class(experiment.head.planner)(experiment, items, cache, title)


def uniform_batches(labels: np.ndarray, batch: int, epoch: int, seed: int) -> list[np.ndarray]:
    """Batches of an epoch that draws equally many images from every cluster.

    Clusters have n / c images each, or one more, drawn anew each epoch; a smaller cluster repeats its images, each as
    often as the others or once more. With one cluster the epoch is every image once.

    Parameters
    ----------
    labels : int64 array, shape (n,), 0..c-1
        Clusters, none of them empty; n >= 2.
    batch, epoch, seed : int

    Returns
    -------
    list of int64 arrays
        n indices in all, in batches whose sizes differ by at most 1, none above `batch` (3 for an odd n in batches of
        2); their number depends on n and batch only.
    """
    generator = np.random.default_rng([seed % 2**64, epoch, _UNIFORM])
    count, clusters = len(labels), int(labels.max()) + 1
    shares = np.full(clusters, count // clusters)
    shares[generator.permutation(clusters)[: count % clusters]] += 1
    members = [np.flatnonzero(labels == cluster) for cluster in range(clusters)]
    drawn = [_draw(items, share, generator) for items, share in zip(members, shares, strict=True)]
    return np.array_split(generator.permutation(np.concatenate(drawn)), batches_of(count, batch))


def batches_of(images: int, batch: int) -> int:
    """Batches of an epoch of `images`, so that none has a single one."""
    return max(1, min(-(-images // batch), images // 2))


def _draw(members: np.ndarray, share: int, generator: np.random.Generator) -> np.ndarray:
    """`share` of the members, in rounds of all of them."""
    rounds = [generator.permutation(members) for _ in range(-(-share // len(members)))]
    return np.concatenate([members[:0], *rounds])[:share]
