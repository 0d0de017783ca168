"""Stages of the rounds of pseudo-labels: the labels of a round, and what the round is worth over the one before."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console

from whaleid.data.pseudo import FULL, describe_pseudo_labels, labels_of, write_pseudo_labels
from whaleid.data.reviews import read_links
from whaleid.pipeline import keys
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.ladder import first_row, read_ranks, read_round_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import GAIN, Round, gain_key, label_state, round_state
from whaleid.pipeline.run_stages import feature_reads
from whaleid.pipeline.sources import sources
from whaleid.pipeline.tasks import Task
from whaleid.pipeline.workspace import fold_name, read_folds, read_images
from whaleid.utils.files import write_json

if TYPE_CHECKING:
    from whaleid.ensemble.intervals import Gain


def label_tasks(project: Project) -> list[Task]:
    """The test images that join training in the project's round, labelled by the networks of the round before."""
    workspace, number = project.workspace, project.workspace.round
    state = label_state(project)
    if not number or project.recipe.pseudo is None or state is Round.CLOSED:
        return []
    before, path = project.at_round(number - 1), workspace.pseudo_labels(project.recipe.name)

    def make() -> None:
        from whaleid.ensemble.pseudo import pseudo_labels

        images = read_images(workspace)
        labels = pseudo_labels(
            images,
            read_folds(workspace),
            sources(before),
            project.recipe,
            project.competition,
            number,
            keypoints_folder(project),
            project.settings.weights,
            read_links(project.competition),
        )
        write_pseudo_labels(labels, path)
        used = labels if project.full_experiments else labels[labels["fold"] != FULL]
        for line in describe_pseudo_labels(used, int((images["split"] == "test").sum())):
            Console(stderr=True).print(f"pseudo-labels of round {number}: {line}", markup=False)

    known = state is Round.OPEN and round_state(before) is Round.OPEN
    key = keys.labels_key(project) if known else ""
    reads = ("images", "folds", "keypoints", *feature_reads(before))
    return [Task("labels", f"round{number}", workspace, path, key, make, reads)]


def gain_tasks(project: Project) -> list[Task]:
    """What the project's round is worth over the one before: its row in metrics.json."""
    workspace, number = project.workspace, project.workspace.round
    state = round_state(project)
    if not number or project.recipe.pseudo is None or state is Round.CLOSED:
        return []
    path = workspace.round_candidates(project.recipe.name) / GAIN

    def make() -> None:
        worth = round_gain(project.at_round(number - 1), project)
        row = first_row(read_round_figures(project))
        labels = count_labels(project)
        write_json(path, {**row, "round": number, "labels": labels, "gain": asdict(worth), "used": worth.low > 0})

    key = gain_key(project) if state is Round.OPEN else ""
    reads = (f"candidates/round{number - 1}", f"candidates/round{number}")
    return [Task("gain", f"round{number}", workspace, path, key, make, reads)]


def round_gain(before: Project, project: Project) -> Gain:
    """Difference of two rounds' out-of-fold MAP@k on the same queries, with its interval."""
    from whaleid.ensemble.intervals import rank_gain
    from whaleid.ensemble.ladder import protocol_of
    from whaleid.ensemble.simulation import simulated_protocol

    images, folds = read_images(project.workspace), read_folds(project.workspace)
    protocol = simulated_protocol(protocol_of(images, folds, project.competition, sources(project)))
    return rank_gain(protocol, read_ranks(project), read_ranks(before), project.recipe.seed)


def count_labels(project: Project) -> dict[str, int]:
    """Test images that join training, for each fold and, where there are such, for the full-data runs."""
    labels = project.pseudo_labels
    assert labels is not None
    runs = [*project.folds, *([None] if project.full_experiments else [])]
    return {fold_name(fold): len(labels_of(labels, fold)) for fold in runs}
