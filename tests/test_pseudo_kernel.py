"""A kernel of a recipe with rounds: it holds the runs of the round that is used, and answers as home does."""

import json
from pathlib import Path

import pytest
from kernel_world import COMPETITION, make_world

from whaleid.ensemble.results import Gain
from whaleid.kaggle.kernel.local_run import RunOptions, compare_submissions, run_bundle, submission_of
from whaleid.pipeline import pseudo_labels as pseudo_stages

RECIPE = """
folds: 2
experiments: [one]
full: [one]
combine: {classifier: null, full_gallery: false}
pseudo: {confidence: 0.0}
"""


def test_the_submission_is_the_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_stages, "round_gain", lambda *_: Gain(0.1, 0.05, 0.2))
    rare = COMPETITION.replace("unknown_share: 0.276", "unknown_share: 0.01")  # else networks at chance name nobody
    monkeypatch.setattr("kernel_world.COMPETITION", rare)
    world = make_world(tmp_path / "world", RECIPE)
    labels = world.project.at_round(1).pseudo_labels
    assert labels is not None and len(labels)
    assets = world.bundle.folder / "datasets" / "assets"
    runs = sorted(
        path.parent.relative_to(assets / "runs").as_posix() for path in assets.rglob("checkpoint.safetensors")
    )
    assert runs == ["one.round1/fold0", "one.round1/fold1", "one.round1/full"]
    done = run_bundle(world.bundle.folder, world.project.competition, tmp_path / "run", RunOptions())
    compared = compare_submissions(world.submission, submission_of(done))
    assert compared.same, compared.line()
    notes = json.loads((done.working / "kernel.json").read_text())
    assert (sorted(notes["experiments"]), notes["dropped"]) == (["one"], [])
