"""One trained work folder in every form of answer: its score out of fold, and on the solution, with intervals.

    .venv/bin/python benchmarks/trained_forms.py --competition nyala-open --work work --recipe auto \\
        --truth ../shared/data/nyala/by_identity.csv [--out benchmarks/results/forms.json]

The work folder is only read: images, folds, features and keypoints are those of its `whaleid leaderboard`. The rankers
rank once for the forms that are made from identities. Each form is a competition of its own in a temporary folder, with
a solution made from the truth: a CSV with the columns image and identity, in which test images of individuals that
training does not hold have their own identities, too.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd

from whaleid.auto.opening import open_project
from whaleid.config import Answer, Competition, Table
from whaleid.config.competition import RANKED_IMAGES, PairColumns
from whaleid.ensemble.answers import FormAnswer, answer_by_identities
from whaleid.ensemble.ladder import evaluate_ladder, protocol_of, rank_all
from whaleid.ensemble.pair_answers import answer_by_pairs
from whaleid.ensemble.protocol import Protocol
from whaleid.ensemble.results import LadderResult
from whaleid.ensemble.simulation import with_simulated_unknowns
from whaleid.evaluation.form_input import ImagePairs
from whaleid.evaluation.form_score import FormScore
from whaleid.evaluation.forms import FORMS, TOPK, Form, Score, get_form, score_files, score_options
from whaleid.pipeline.data_stages import keypoints_folder
from whaleid.pipeline.metrics import answer_score, require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.score import answer_on
from whaleid.pipeline.sources import sources
from whaleid.pipeline.submission import latest_submission
from whaleid.pipeline.workspace import read_folds, read_images
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import write_json


@dataclass(frozen=True)
class Trained:
    """A trained work folder. truth: identity of every test image."""

    project: Project
    images: pd.DataFrame
    protocol: Protocol
    truth: pd.Series

    @property
    def test(self) -> pd.DataFrame:
        """image, identity, known of each test image."""
        names = self.protocol.test_names
        identity = self.truth[names].to_numpy()
        return pd.DataFrame(
            {"image": names, "identity": identity, "known": np.isin(identity, self.protocol.classes.astype(str))}
        )


def open_trained(competition: str, recipe: str | None, work: Path, truth: Path) -> Trained:
    """Read what the work folder holds; nothing is written to it."""
    project = open_project(competition, recipe, work)
    images, folds = read_images(project.workspace), read_folds(project.workspace)
    protocol = protocol_of(images, folds, project.competition, sources(project))
    table = pd.read_csv(truth, dtype=str).set_index("image")["identity"]
    missing = sorted(set(protocol.test_names.tolist()) - set(table.index))
    if missing:
        raise WhaleidError(f"{truth}: no identity of {len(missing)} test images, first '{missing[0]}'; add their rows")
    return Trained(project, images, protocol, table)


def in_form(trained: Trained, form: str, root: Path) -> Competition:
    """The competition in another form; pairs that are asked about are those of all test images."""
    changes: dict[str, Any] = {"answer": Answer(form=form), "k": RANKED_IMAGES if form == "ranked_images" else 1}
    if form == "pairs":
        names = trained.protocol.test_names.tolist()
        rows = [(f"{one} {other}", one, other) for one, other in itertools.permutations(names, 2)]
        pd.DataFrame(rows, columns=["row", "image", "other"]).to_csv(root / "pairs.csv", index=False)
        changes["answer"] = Answer(form=form, pairs=PairColumns(row="row", other="other"))
        changes |= {"root": root, "test": Table(csv="pairs.csv", images=".", image="image")}
    return trained.project.competition.model_copy(update=changes)


def solution_of(trained: Trained, form: str) -> pd.DataFrame:
    """What `whaleid score --form` compares an answer in this form with."""
    test = trained.test
    if form == "pairs":
        pairs = test.merge(test, how="cross", suffixes=("", "_other")).query("image != image_other")
        return pd.DataFrame(
            {
                "row": pairs["image"] + " " + pairs["image_other"],
                "query_image": pairs["image"],
                "query_identity": pairs["identity"],
                "gallery_identity": pairs["identity_other"],
            }
        )
    if form == "one_confident":
        return test[["image"]].assign(label=test["identity"].where(test["known"], ""))
    if form == "ranked_images":
        labelled = trained.images[trained.images["split"] == "train"]
        relevant = labelled.groupby("identity")["image"].agg(" ".join)
        return test[["image"]].assign(images=relevant.reindex(test["identity"]).fillna("").to_numpy())
    return test[["image", "identity"]] if form == "clusters" else test


def ranked(trained: Trained) -> tuple[Protocol, LadderResult]:
    """The ladder of the recipe, from the features of the work folder."""
    project, combine = trained.project, trained.project.recipe.combine
    given = sources(project), trained.images, trained.protocol, combine, project.recipe.seed, keypoints_folder(project)
    rankings = rank_all(*given, weights_folder=project.settings.weights)
    simulated, rankings = with_simulated_unknowns(trained.protocol, rankings)
    return simulated, evaluate_ladder(simulated, rankings, combine, project.recipe.seed)


def by_pairs(trained: Trained, form: Form, competition: Competition) -> FormAnswer:
    """The answer in a form that is made from pairs of images."""
    project = trained.project
    given = sources(project), trained.images, project.recipe, competition, keypoints_folder(project)
    return answer_by_pairs(form, trained.protocol, *given)


def clusters_of_test(
    competition: str, recipe: str | None, work: Path, truth: Path
) -> tuple[ImagePairs, dict[str, Any], np.ndarray]:
    """The test images' pairs, what `clusters` fitted, and their identities."""
    trained = open_trained(competition, recipe, work, truth)
    form, seen = get_form("clusters"), []

    def answer(pairs: ImagePairs, fitted: dict[str, Any], unknown: str | None) -> list[str]:
        seen.append((pairs, fitted))
        return form.answer(pairs, fitted, unknown)

    watched = cast(Form, SimpleNamespace(**{**vars(form), "answer": answer}))
    by_pairs(trained, watched, in_form(trained, "clusters", Path()))
    pairs, fitted = seen[-1]  # the test images come last
    return pairs, fitted, trained.truth[pairs.images].to_numpy(dtype=str)


def row_of(trained: Trained, form: str, ladder: tuple[Protocol, LadderResult], root: Path) -> dict[str, Any]:
    """Both scores of one form."""
    project, competition = trained.project, in_form(trained, form, root)
    if form == TOPK:
        solution = project.competition.root / str(project.competition.solution)
        score = answer_on(solution, latest_submission(project), project.competition)
        oof = answer_score(require_figures(project))
        return {"form": form, "oof": oof.as_json(), "solution": _plain(score)}
    if get_form(form).NEEDS == "pairs":
        answer = by_pairs(trained, get_form(form), competition)
    else:
        protocol, result = ladder
        assert result.final_ranking is not None and result.blend_ranking is not None
        given = protocol, result.final_ranking, result.blend_ranking, trained.images, competition
        answer = answer_by_identities(get_form(form), *given, project.recipe.seed)
    score = score_of_test(trained, form, answer.cells, root)
    return {"form": form, "oof": answer.score.as_json(), "solution": _plain(score)}


def score_of_test(trained: Trained, form: str, cells: dict[str, str], root: Path) -> Score:
    """Score of the answers to the test images (row -> answer) against a solution made from the truth."""
    submission, solution = root / f"{form}.csv", root / f"{form}-solution.csv"
    pd.DataFrame({"row": list(cells), "answer": list(cells.values())}).to_csv(submission, index=False)
    solution_of(trained, form).to_csv(solution, index=False)
    unknown = trained.project.competition.unknown if "unknown" in score_options(form) else None
    return score_files(submission, solution, form, unknown=unknown)


def _plain(score: Score) -> dict[str, Any]:
    return {"value": score.value, "low": score.low, "high": score.high, "queries": score.queries}


def shown(row: dict[str, Any]) -> str:
    """A row of the table, in Markdown."""
    metric = FormScore(**row["oof"]).metric
    cells = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (row["oof"], row["solution"])]
    return f"| `{row['form']}` | {metric} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--competition", required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--forms", default=",".join(FORMS), help="separated by commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "forms.json")
    given = parser.parse_args()
    trained = open_trained(given.competition, given.recipe, given.work, given.truth)
    forms = given.forms.split(",")
    if trained.project.competition.unknown is None and "one_or_unknown" in forms:
        print("left out: one_or_unknown, because the competition has no unknown label")
        forms.remove("one_or_unknown")
    ladder = cast(Any, None)
    if any(get_form(form).NEEDS == "identities" for form in forms):
        ladder = ranked(trained)
    print("| form | metric | out of fold | solution |\n|---|---|---|---|", flush=True)
    rows = []
    with TemporaryDirectory() as place:
        for form in forms:
            rows.append(row_of(trained, form, ladder, Path(place)))
            print(shown(rows[-1]), flush=True)
    write_json(given.out, rows)


if __name__ == "__main__":
    main()
