"""What a later stage would refuse, said before anything is made: by `whaleid data check -r`, and by every run.

Nothing is decided here: each check calls the function by which the later stage refuses, on what that stage will be
given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from whaleid.config import Competition, Experiment
from whaleid.data.check import DataReport, check_data
from whaleid.data.listing import read_listed
from whaleid.evaluation.forms import get_form
from whaleid.evaluation.tables import difference, read_answers, require_distinct, require_images
from whaleid.pipeline.project import Project
from whaleid.pipeline.submission import submission_template
from whaleid.utils.errors import WhaleidError

Check = Callable[[], object]


def settings_checks(project: Project) -> Iterator[Check]:
    """Checks of settings and tables alone; they take about a second."""
    yield lambda: require_answer(project.competition)
    yield lambda: project.removes_background  # it raises where masks are needed and none are named


def run_checks(project: Project, images: pd.DataFrame, folds: pd.DataFrame) -> Iterator[Check]:
    """Checks of every run's training images, and of what is left to score. Tables: images.parquet, folds.csv."""
    if project.pretext is not None and project.recipe.pretrain is not None:
        from whaleid.training.pretrain import unlabelled_items

        test = project.recipe.pretrain.test
        yield lambda: unlabelled_items(images, test)
    for experiment in project.trained:
        for fold in project.folds_of(experiment):
            yield lambda experiment=experiment, fold=fold: _require_trainable(project, experiment, fold, images, folds)
    yield lambda: _require_sources(project, images)
    yield lambda: _require_ranking(project, images, folds)


def require(checks: Iterator[Check]) -> None:
    """Raise WhaleidError at the first check that fails."""
    for check in checks:
        check()


def problems_of(checks: Iterator[Check]) -> list[str]:
    """The lines of all checks that fail."""
    lines = []
    for check in checks:
        try:
            check()
        except WhaleidError as error:
            lines.append(str(error))
    return list(dict.fromkeys(lines))


def recipe_problems(project: Project, images: pd.DataFrame) -> list[str]:
    """All that any stage would refuse of a recipe on readable images (images.parquet), a line each."""
    from whaleid.data.folds import make_folds

    problems = problems_of(settings_checks(project))
    try:
        folds = make_folds(images, project.recipe.folds, project.competition.unknown, project.recipe.seed)
    except WhaleidError as error:
        return [*problems, str(error)]
    return problems + problems_of(run_checks(project, images, folds))


def check_project(competition: Competition, project: Project | None = None, workers: int | None = None) -> DataReport:
    """The report on a competition's data, and on what a recipe would refuse of it.

    project: None: of the data and the answer alone. workers: processes that read images.
    """
    report = check_data(competition, workers)
    more, facts = [], []
    try:
        require_answer(competition)
        facts = [("submission", answer_line(competition))]
    except WhaleidError as error:
        more = [str(error)]
    if project is not None and report.images is not None:
        more = recipe_problems(project, report.images)
    problems = dict.fromkeys([*report.problems, *more])
    return replace(report, facts=(*report.facts, *facts), problems=tuple(problems))


def require_answer(competition: Competition) -> None:
    """Raise WhaleidError where the answer cannot be written: its form, or a sample of other images than the test's."""
    if competition.test is None:
        return
    get_form(competition.answer.form)
    with TemporaryDirectory() as folder:
        template = submission_template(competition, Path(folder))
        sample = read_answers(template)
        if template.is_relative_to(folder):
            return
    require_images(sample)
    require_distinct(sample)
    name = competition.test.image if competition.answer.pairs is None else competition.answer.pairs.row
    listed = read_listed(competition.root, competition.test, [name])[name]
    wanted = set(sample.images.to_pylist())
    missing, extra = sorted(set(listed) - wanted), sorted(wanted - set(listed))
    if missing or extra:
        raise WhaleidError(f"{template}: {difference(missing, extra, competition.root / competition.test.csv)}")


def answer_line(competition: Competition) -> str:
    """What the submission will look like, for the report."""
    if competition.test is None:
        return "none: the competition has no test images"
    with TemporaryDirectory() as folder:
        template = submission_template(competition, Path(folder))
        header = ",".join(read_answers(template).header)
        made = template.is_relative_to(folder)
    return f"columns {header}, as {'in the YAML' if made else f'in {template.name}'}"


def _require_trainable(
    project: Project, experiment: Experiment, fold: int | None, images: pd.DataFrame, folds: pd.DataFrame
) -> None:
    """Raise WhaleidError where a run has too little to learn from, or where its batches cannot be made."""
    from whaleid.data.samplers import training_items
    from whaleid.training.epochs import make_planner

    items = training_items(images, folds, fold, experiment, project.competition.unknown)
    title = f"experiment {experiment.name}, fold {'all' if fold is None else fold}"
    make_planner(experiment, items, None, title).lengths()


def _require_sources(project: Project, images: pd.DataFrame) -> None:
    """Raise WhaleidError where features of another program are missing, damaged, or of other images."""
    from whaleid.features.files import open_embeddings

    for folder in project.recipe.sources.values():
        for fold in project.folds:
            open_embeddings(Path(folder) / f"fold{fold}", images)


def _require_ranking(project: Project, images: pd.DataFrame, folds: pd.DataFrame) -> None:
    """Raise WhaleidError where nothing can be scored out of fold, or the gallery does not suit the index."""
    from whaleid.ensemble.protocol import read_protocol
    from whaleid.retrieval.approximate import require_index

    protocol = read_protocol(images, folds, project.competition, project.folds)
    protocol.weights(protocol.places)
    smallest = min(len(part.gallery) for part in protocol.parts)
    for experiment in project.experiments:
        if experiment.model.neck != "none":  # else the backbone says how wide it is
            width = experiment.model.embedding * (2 if experiment.image.mirror_identities else 1)
            require_index(project.recipe.combine.knn.index, smallest, width)
