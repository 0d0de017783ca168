"""What people decided changes the answers to test images and pseudo-labels, and nothing that is scored out of fold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from review_world import add, review_project
from test_report import UNKNOWN

from whaleid.config import Recipe
from whaleid.data.pseudo import FULL
from whaleid.data.reviews import Links, read_links
from whaleid.ensemble.pseudo import with_decisions
from whaleid.ensemble.reviews import Decided, decide, reviewed_candidates, reviewed_labels
from whaleid.evaluation.topk import read_guesses
from whaleid.kaggle.kernel.assets import write_inference_assets
from whaleid.kaggle.kernel.inference import open_bundle
from whaleid.kaggle.kernel.inputs import KernelFolders
from whaleid.pipeline.keys import labels_key
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.metrics import require_figures
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run, tasks_to_do
from whaleid.pipeline.submission import foreign_reviews_line, latest_submission
from whaleid.pipeline.workspace import read_images
from whaleid.retrieval.candidates import Candidates
from whaleid.utils.errors import WhaleidError

LABELS = {"x1": "X", "x2": "X", "y": "Y", "u": "new"}
QUERIES = ("p", "q", "r")


@st.composite
def consistent_links(draw: st.DrawFn) -> Links:
    """Links of images that were put into groups: the same within a group, different between groups."""
    images = (*LABELS, *QUERIES)
    group = {image: draw(st.integers(0, 2)) for image in images}
    chosen = draw(st.sets(st.sampled_from(list(itertools.combinations(sorted(images), 2))), max_size=8))
    same = tuple(sorted(pair for pair in chosen if group[pair[0]] == group[pair[1]]))
    return Links(same, tuple(sorted(chosen - set(same))))


def closure(links: Links) -> set[tuple[str, str]]:
    """Pairs that are the same, both ways and with themselves, by passes over all triples."""
    images = {image for pair in (*links.must, *links.cannot) for image in pair}
    same = {(image, image) for image in images}
    same |= {(a, b) for pair in links.must for a, b in (pair, pair[::-1])}
    for _ in images:
        same |= {(a, d) for a, b in same for c, d in same if b == c}
    return same


@given(consistent_links())
def test_decisions_hold_for_all_images_that_are_the_same(links: Links) -> None:
    decided, same = decide(links, LABELS), closure(links)
    apart = {
        (a, d)
        for pair in links.cannot
        for b, c in (pair, pair[::-1])
        for a, e in same
        if e == b
        for f, d in same
        if f == c
    }
    for query in QUERIES:
        equal = {LABELS[other] for image, other in same if image == query and other in LABELS}
        unlike = {LABELS[other] for image, other in apart if image == query and other in LABELS}
        assert decided.same.get(query, ()) == tuple(sorted(equal))
        assert decided.different.get(query, set()) == unlike - equal
    assert decided.images <= set(QUERIES)


@settings(max_examples=60)
@given(consistent_links(), st.permutations(["X", "Y", "Z", "new"]), st.integers(1, 4))
def test_candidates_follow_the_decisions(links: Links, order: list[str], width: int) -> None:
    classes = np.array(["X", "Y", "Z", "new"])
    codes = np.tile([list(classes).index(name) for name in order[:width]], (3, 1))
    scores = np.sort(np.random.default_rng(0).random((3, width)).astype(np.float32))[:, ::-1]
    lists, decided = Candidates(np.array(QUERIES), classes, codes, scores), decide(links, LABELS)
    found = reviewed_candidates(lists, decided, "new")
    for row, query in enumerate(QUERIES):
        first, wrong = decided.same.get(query, ()), decided.different.get(query, set()) - {"new"}
        names = [str(found.classes[code]) for code in found.codes[row] if code >= 0]
        assert names == [*first, *(name for name in order[:width] if name not in (*first, *wrong))]
        if first:
            assert found.scores[row, 0] == scores.max()
        kept = [scores[row, order.index(name)] for name in names[len(first) :]]
        assert found.scores[row, len(first) : len(names)].tolist() == kept


def test_an_identity_that_no_list_holds_comes_first() -> None:
    lists = Candidates(np.array(["q"]), np.array(["X"]), np.array([[0]]), np.array([[0.2]], np.float32))
    found = reviewed_candidates(lists, Decided({"q": ("W",)}), None)
    assert found.classes[found.codes].tolist() == [["W", "X"]]
    assert reviewed_candidates(lists, Decided({"other": ("W",)}), None) is lists


def test_a_fold_learns_nothing_about_its_own_queries() -> None:
    images = pd.DataFrame({"image": [*LABELS, *QUERIES], "split": ["train"] * 4 + ["test"] * 3})
    folds = pd.DataFrame({"image": list(LABELS), "identity": list(LABELS.values()), "fold": [0, 1, 1, 0]})
    labels = pd.DataFrame({"image": ["p", "q"], "identity": ["Y", "Y"], "confidence": [0.8, 0.9]})

    def labelled(links: Links, fold: int) -> dict[str, tuple[str, float]]:
        found = reviewed_labels(labels, links, images, folds[folds["fold"] != fold], "new")
        columns = (found[name].tolist() for name in ("image", "identity", "confidence"))
        return {image: (label, confidence) for image, label, confidence in zip(*columns, strict=True)}

    machine = {"p": ("Y", 0.8), "q": ("Y", 0.9)}
    same = Links(must=(("r", "x1"),))
    assert labelled(same, 0) == machine  # x1 is a query of fold 0
    assert labelled(same, 1) == {**machine, "r": ("X", 1.0)}
    through = Links(must=(("q", "r"), ("r", "x1")))
    assert labelled(through, 0) == machine and labelled(through, 1)["q"] == ("X", 1.0)
    past = Links(must=(("q", "x1"), ("x1", "x2")))  # to a label of fold 1, past the query x1 of fold 0
    assert labelled(past, 0) == machine and labelled(past, 1)["q"] == ("X", 1.0)
    different = Links(cannot=(("p", "y"),))
    assert labelled(different, 1) == machine and labelled(different, 0) == {"q": ("Y", 0.9)}
    assert labelled(Links(must=(("q", "u"),)), 1) == {"p": ("Y", 0.8)}  # unknown is no label
    assert labelled(Links(must=(("q", "x1"), ("q", "y"))), -1) == {"p": ("Y", 0.8)}  # two identities


def test_every_fold_and_the_full_data_models_have_their_labels_reviewed() -> None:
    images = pd.DataFrame({"image": [*LABELS, *QUERIES], "split": ["train"] * 4 + ["test"] * 3})
    folds = pd.DataFrame({"image": list(LABELS), "identity": list(LABELS.values()), "fold": [0, 1, 1, 0]})
    labels = pd.DataFrame({"image": ["p", "p"], "identity": ["Y", "Y"], "fold": [0, FULL], "confidence": [0.8, 0.9]})
    protocol: Any = SimpleNamespace(parts=[SimpleNamespace(fold=0), SimpleNamespace(fold=1)], unknown="new")
    found = with_decisions(labels, Links(must=(("r", "x1"),)), protocol, images, folds)
    rows = list(zip(found["fold"].tolist(), found["image"].tolist(), found["identity"].tolist(), strict=True))
    assert rows == [(0, "p", "Y"), (1, "r", "X"), (FULL, "p", "Y"), (FULL, "r", "X")]


# ------------------------------------------------------------------------------------------------- the pipeline


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Project:
    return review_project(tmp_path_factory.getbasetemp(), tmp_path / "reviews.csv")


def answers(project: Project) -> dict[str, list[str]]:
    found = read_guesses(latest_submission(project))
    return dict(zip(found.images.tolist(), found.as_lists(), strict=True))


def test_decisions_change_the_submission_and_no_score_out_of_fold(project: Project) -> None:
    before, first = answers(project), latest_submission(project)
    scores = require_figures(project)["ladder"]
    assert not any(" decisions: " in line for line in leaderboard_lines(project))
    query, other = list(before)[:2]
    named = next(name for name in before[query] if name != UNKNOWN)
    train = pd.read_csv(project.competition.root / "train.csv", dtype=str)
    image_of = dict(zip(train["Id"], train["Image"], strict=True))
    right = next(name for name in image_of if name not in (*before[query], UNKNOWN))
    add(project, query, image_of[right], "yes")
    add(project, other, image_of[next(name for name in before[other] if name != UNKNOWN)], "unsure")
    add(project, query, image_of[named], "no")
    assert [task.stage for task in tasks_to_do(project, "score")] == ["submission", "score"]
    lines = list(leaderboard_lines(project))
    assert "2 decisions: 1 queries answered otherwise" in lines
    after = answers(project)
    assert after[query] == [right, *(name for name in before[query] if name != named)][:5]
    assert {name: row for name, row in after.items() if name != query} == {
        name: row for name, row in before.items() if name != query
    }
    assert require_figures(project)["ladder"] == scores
    add(project, query, image_of[named], "")
    add(project, query, image_of[right], "")
    assert latest_submission(project) == first and answers(project) == before


def test_contradictory_decisions_end_the_pipeline_in_one_line(project: Project) -> None:
    add(project, "a", "b", "yes")
    add(project, "c", "b", "yes")
    add(project, "a", "c", "no")
    with pytest.raises(WhaleidError, match=r"a = b \(nora\), c = b \(nora\), but a != c \(nora\)") as caught:
        run(project, "submission")
    assert "reviews.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_pseudo_labels_are_made_again_after_a_decision(project: Project) -> None:
    recipe = Recipe.model_validate({"name": "x", "folds": 2, "experiments": ["a"], "pseudo": {"confidence": 0.7}})
    recipe = project.recipe.model_copy(update={"pseudo": recipe.pseudo})
    second = replace(project, recipe=recipe).at_round(1)
    before = labels_key(second)
    add(project, "a", "b", "unsure")
    assert labels_key(second) == before
    add(project, "a", "b", "no")
    assert labels_key(second) != before


def test_a_kernel_carries_the_decisions(project: Project, tmp_path: Path) -> None:
    add(project, "a", "b", "yes")
    folders = KernelFolders(tmp_path / "assets", project.competition.root, tmp_path / "working", tmp_path / "scratch")
    folders.assets.mkdir()
    write_inference_assets(project, folders.assets)
    copy, _ = open_bundle(folders)
    assert copy.competition.reviews == str(folders.assets / "reviews.csv")
    assert read_links(copy.competition) == Links(must=(("a", "b"),))


def test_decisions_about_images_that_are_not_there_are_counted(project: Project) -> None:
    run(project, "submission")
    assert foreign_reviews_line(project) == ""
    labelled = read_images(project.workspace)["image"][0]
    add(project, labelled, "nobody.png", "no")
    add(project, "a", "b", "yes")
    line = foreign_reviews_line(project)
    assert "2 decisions are about images that are not in this competition, first a: they change nothing" in line
    assert line in list(leaderboard_lines(project))
