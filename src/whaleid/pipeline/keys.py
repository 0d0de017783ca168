"""What each stage's output depends on, as a short digest: its version, its settings and the keys of its inputs.

An output is current while its key is the one that was noted when it was made (`Workspace.is_current`). Settings
that change no output, such as the number of processes, are in no key.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from whaleid.config import Competition, Experiment, ExperimentBase
from whaleid.data.pseudo import labels_of
from whaleid.data.reviews import read_links
from whaleid.evaluation.forms import CLUSTERS, TOPK
from whaleid.local_matching.registry import weights_key
from whaleid.pipeline.project import Project
from whaleid.pipeline.versions import VERSION
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest, file_digest


def folds_key(project: Project) -> str:
    """Of folds.csv: the labelled images, and how they are assigned."""
    settings = project.competition.unknown, project.recipe.folds, project.recipe.seed
    return digest("folds", VERSION["folds"], project.keys.labelled, *settings)


def cache_key(project: Project, name: str, masked: bool = False) -> str:
    """Of a cache of resized images; its name says size, form and margin. masked: whether the background is removed."""
    masks = [project.keys.masks] if masked else []
    return digest("cache", VERSION["cache"], project.keys.images, name, *masks)


def keypoints_key(project: Project, name: str) -> str:
    """Of the keypoints; the folder's name says their kind, the image size and how many there are."""
    local = project.local_matching
    assert local is not None
    detector = weights_key(local.model_copy(update={"verify": None}), project.settings.weights)
    return digest("keypoints", VERSION["keypoints"], project.keys.images, name, project.keys.masks, detector)


def pretrain_key(project: Project) -> str:
    """Of the backbone that is trained without labels."""
    assert project.pretext is not None
    assert project.recipe.pretrain is not None
    test = project.recipe.pretrain.test
    images = project.keys.images if test else project.keys.labelled
    masks = [project.keys.masks] if project.pretext.image.needs_masks else []
    return digest("pretrain", VERSION["pretrain"], images, _training_settings(project.pretext), test, *masks)


def pretrained_name(project: Project) -> str:
    """`<competition>-<experiment>-<key>`: name of the pretrained weights and of the folder of their log."""
    assert project.recipe.pretrain is not None
    name = project.recipe.pretrain.experiment
    name = Path(name).stem if name.endswith((".yaml", ".yml")) else name.replace("/", "-")
    return f"{project.competition.name}-{name}-{pretrain_key(project)[:8]}"


def run_key(project: Project, experiment: Experiment, fold: int | None) -> str:
    """Of one run's weights.

    Parameters
    ----------
    project : Project
        In a round of pseudo-labels, the run depends on that round's labels.
    experiment : Experiment
        What is trained.
    fold : int or None
        The fold left out; None for the run on all labelled images, whose length is that of the folds' runs, or of a
        frozen network, of which the images decide nothing but the size of its input.
    """
    start: list[Any] = [pretrain_key(project)] if project.starts_pretrained(experiment) else []
    if experiment.frozen:
        return digest("frozen", VERSION["train"], project.keys.labelled, _training_settings(experiment), *start)
    labels = _labels_digest(project, fold)
    if experiment.is_adapter:
        start = [*start, experiment.features.model_dump(mode="json", exclude={"batch"})]
    if fold is None:
        runs = [run_key(project, experiment, number) for number in project.folds]
        return digest("full run", VERSION["train"], runs, _training_settings(experiment), *labels)
    masks = [project.keys.labelled_masks] if experiment.image.needs_masks else []
    settings = _training_settings(experiment)
    return digest("run", VERSION["train"], folds_key(project), settings, fold, *start, *labels, *masks)


def features_key(project: Project, experiment: Experiment, fold: int | None) -> str:
    """Of the features of every image by one run."""
    settings = experiment.features.model_dump(mode="json", exclude={"batch"})
    run = run_key(project, experiment, fold)
    masks = [project.keys.masks] if experiment.image.needs_masks else []
    return digest("features", VERSION["features"], project.keys.images, run, settings, *masks)


def candidates_key(project: Project) -> str:
    """Of the candidates and of the ladder, hence of the submission."""
    runs = [(item, fold) for item in project.experiments for fold in project.folds_of(item)]
    features = [(item.name, features_key(project, item, fold)) for item, fold in runs]
    foreign = {name: _listing(Path(folder)) for name, folder in project.recipe.sources.items()}
    local = project.local_matching
    networks = "" if local is None else weights_key(local, project.settings.weights)
    inputs = [project.keys.images, folds_key(project), project.keys.masks, networks, features, foreign]
    answer = project.competition.answer
    settings = {"unknown", "unknown_share", "k"} | (set() if answer.form == TOPK else {"answer"})
    protocol = project.competition.model_dump(mode="json", include=settings)
    divided = {name: getattr(project.competition, name) for name in ("species_column", "view", "group_is_individual")}
    protocol |= {name: value for name, value in divided.items() if value}  # keys from before them hold
    combine = project.recipe.combine.model_dump(mode="json")
    protocol |= {} if answer.form == TOPK else {"outcomes": 1}  # of these forms alone they lie beside the answers
    asked = [] if answer.pairs is None else [_asked_digest(project.competition)]
    decided = _decisions(project) if answer.form == CLUSTERS else []
    return digest("candidates", VERSION["candidates"], inputs, protocol, combine, project.recipe.seed, *asked, *decided)


def _asked_digest(competition: Competition) -> str:
    """Digest of the CSV that names the pairs of test images."""
    return "" if competition.test is None else file_digest(competition.root / competition.test.csv)


def labels_key(project: Project) -> str:
    """Of the pseudo-labels of the project's round, which the blend of the round before gives."""
    assert project.recipe.pseudo is not None
    before = project.at_round(project.workspace.round - 1).with_combine(**BLEND_ALONE)
    decided = _decisions(project)
    return digest("labels", VERSION["labels"], candidates_key(before), project.recipe.pseudo.confidence, *decided)


def answer_key(project: Project, ladder: str) -> str:
    """Of the submission: the ladder's key and, where there are any, what people decided; empty where the former is."""
    decided = _decisions(project)
    return digest("answer", ladder, *decided) if ladder and decided else ladder


def _decisions(project: Project) -> list[dict[str, Any]]:
    """What people decided of pairs of images; empty where that is nothing."""
    links = read_links(project.competition)
    return [asdict(links)] if len(links) else []


BLEND_ALONE: dict[str, object] = {"stack": None, "full_gallery": False}
"""Settings of `combine` without what stands on the blend."""


def _labels_digest(project: Project, fold: int | None) -> list[str]:
    """Digest of the pseudo-labels that a run is trained on: the identities, not their confidence."""
    if project.pseudo_labels is None:
        return []
    labels = labels_of(project.pseudo_labels, fold)[["image", "identity"]].to_numpy().tolist()
    return [digest(project.keys.images, labels)]


def _training_settings(experiment: ExperimentBase) -> dict[str, Any]:
    """Settings that trained weights depend on; runs that keep the background are those of before there was a choice."""
    image = set() if experiment.image.needs_masks else {"background"}
    left_out = {"name": True, "adapter_of": True, "features": True, "train": {"workers", "gpus"}, "image": image}
    return experiment.model_dump(mode="json", exclude=left_out)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files below a folder of foreign features."""
    if not folder.is_dir():
        raise WhaleidError(f"{folder}: folder of foreign features not found; correct `sources` in the recipe")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
