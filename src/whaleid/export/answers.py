"""The answers of a recipe's latest submission, with what is known of each: confidence, second guess, nearest image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from whaleid.data.competition import listed_names
from whaleid.evaluation.forms import CLUSTERS, get_form
from whaleid.evaluation.topk import read_guesses
from whaleid.identify.rank import probabilities_of
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.rounds import in_used_round
from whaleid.pipeline.submission import latest_submission, read_rungs, reviewed_lists
from whaleid.pipeline.workspace import read_images
from whaleid.report.inputs import features_of_best
from whaleid.review.pairs import Pair, with_nearest_images
from whaleid.utils.errors import WhaleidError

PERSON = "a person"
"""What decided where a person said that the image is the same as a labelled one."""


def read_answers(project: Project) -> pd.DataFrame:
    """A row for each image of the latest submission, in its order.

    Returns
    -------
    DataFrame
        image : str, as the submission names it.
        identity : str, its answer: an identity, the unknown label or, in the form clusters, a cluster; '' for none.
        confidence : float, probability of the identity; NaN for a cluster, and where a person decided.
        second, second_confidence : str, float, the best guess that is not the answer.
        ranker : str, what the answer comes from; `PERSON` where a person decided, '' where the image is unreadable.
        agree : str, how many rankers have the answer first: '3 of 5'; '' in the form clusters.
        nearest : str, the labelled image, of the best named identity, that is nearest to the image; '' where none is.
        row : int, of images.parquet; -1 where the image is unreadable.

    Raises
    ------
    WhaleidError
        Where there is no submission yet, and for forms whose answers are no identities.
    """
    form = project.competition.answer.form
    if form != CLUSTERS and get_form(form).NEEDS == "pairs":
        raise WhaleidError(f"export: the form {form} answers no identity of an image, so that there is none to export")
    path = latest_submission(project)
    table = _of_file(path)
    known = _of_candidates(project, dict(zip(table["image"], table["identity"], strict=True)))
    joined = table.merge(known, on="image", how="left")
    text = ["second", "ranker", "agree", "nearest"]
    return joined.assign(row=joined["row"].fillna(-1).astype(int), **{name: joined[name].fillna("") for name in text})


def _of_file(path: Path) -> pd.DataFrame:
    """Image and first guess of each row of a submission."""
    guesses = read_guesses(path)
    return pd.DataFrame({"image": guesses.images, "identity": [row[0] if row else "" for row in guesses.as_lists()]})


def _of_candidates(project: Project, answer_of: dict[str, str]) -> pd.DataFrame:
    """What the last ranker's candidates say of each readable image, with the columns of `read_answers`."""
    competition, images = project.competition, read_images(project.workspace)
    rung, lists, decided = reviewed_lists(project)
    probabilities = probabilities_of(lists, require_figures(project), competition.unknown)
    names = np.append(lists.classes.astype(str), "")[lists.codes]
    listed = listed_names(competition, lists.queries.tolist())
    answers = np.array([answer_of[image] for image in listed], dtype=object)
    rows = pd.Index(images["image"]).get_indexer(pd.Index(lists.queries))
    clustered = competition.answer.form == CLUSTERS
    by_person = np.array([query in decided.same and not clustered for query in lists.queries.tolist()])
    own = (names == answers[:, None]) & (names != "")
    second = (names != "") & ~own
    best = _first(names, (names != "") & (names != competition.unknown), "")
    return pd.DataFrame(
        {
            "image": listed,
            "confidence": np.where(by_person | clustered, np.nan, _first(probabilities, own, np.nan)),
            "second": _first(names, second, ""),
            "second_confidence": _first(probabilities, second, np.nan),
            "ranker": np.where(by_person, PERSON, rung),
            "agree": "" if clustered else _agreeing(project, lists.queries, answers),
            "nearest": _nearest(project, images, rows, best),
            "row": rows,
        }
    )


def _first(values: np.ndarray, wanted: np.ndarray, otherwise: str | float) -> np.ndarray:
    """The first wanted value of each row, or `otherwise` where none is wanted."""
    first = np.take_along_axis(values, wanted.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(wanted.any(axis=1), first, otherwise)


def _agreeing(project: Project, queries: np.ndarray, answers: np.ndarray) -> list[str]:
    """How many of the ladder's rankers guess each answer first."""
    rungs = read_rungs(project)
    count = np.zeros(len(queries), dtype=int)
    for _, lists in rungs:
        place = pd.Index(lists.queries).get_indexer(pd.Index(queries))
        count += np.append(lists.classes.astype(str), "")[lists.codes[place, 0]] == answers
    return [f"{number} of {len(rungs)}" for number in count]


def _nearest(project: Project, images: pd.DataFrame, rows: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """Name of the labelled image of each identity that is nearest to the image in the row, by the best network."""
    used = in_used_round(project)
    folders = features_of_best(used, require_figures(project))[1]
    named = np.flatnonzero(identities != "")
    pairs = [Pair("guess", int(rows[i]), -1, str(identities[i]), "", 0.0, used.folds[0]) for i in named]
    found = np.full(len(rows), "", dtype=object)
    found[named] = [str(images["image"][pair.other]) for pair in with_nearest_images(pairs, images, folders)]
    return found
