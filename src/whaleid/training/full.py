"""How long a run on all labelled images is, where no fold is left to say so."""

from __future__ import annotations

from typing import Any

from whaleid.config import Experiment


def with_epochs(experiment: Experiment, summaries: list[dict[str, Any]]) -> Experiment:
    """The experiment as it is trained on all labelled images: for the mean of the epochs that its folds' runs took.

    summaries: of the folds' runs. With `select: best` a fold took its best epoch; here no fold is left to choose by,
    so that the last weights of as many epochs as the folds' best on average are kept.
    """
    taken = [summary["best_epoch"] or summary["epochs"] for summary in summaries]
    epochs = max(1, int(sum(taken) / len(taken) + 0.5))
    settings = {"epochs": epochs, "images_seen": None, "select": "last"}
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=settings)})
