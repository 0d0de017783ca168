"""What the check calls fit runs to its end, and what it refuses is named: small drawn competitions of every kind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from whaleid.config.settings import Settings
from whaleid.pipeline.leaderboard import leaderboard_lines
from whaleid.pipeline.preflight import check_project
from whaleid.pipeline.project import Project, open_project
from whaleid.utils.errors import WhaleidError

EXAMPLES = int(os.environ.get("WHALEID_EXAMPLES", "14"))
"""Competitions that are drawn: more where somebody looks for faults."""
EXPERIMENT = {
    "extends": "default",
    "model": {"backbone": "test_resnet", "weights": "random", "embedding": 8},
    "head": {"name": "arcface", "scale": 16.0, "margin": 0.2},
    "train": {"epochs": 1, "batch": 4},
}
ODD_LABELS = ["new_whale", "w1|mirror", "W1", "T,1", "Old Tom", "", "NA", "e\u0301"]
INDEXES = ["Flat", "IVF4,Flat", "PQ3", "Nonsense"]
NAMED = re.compile(r"\.(csv|yaml|jpg|png|tif)\b|combine\.|experiment |folds|data: ")
"""A refusal names a file, a key, an experiment, or the folds."""


@dataclass(frozen=True)
class Drawn:
    """A small competition: labels of the labelled pictures, how the data is laid out, and the recipe's settings."""

    labels: list[str]
    tests: int
    suffix: str
    sides: tuple[int, int]
    alike: bool
    one_name: bool
    boxes: str
    more: dict[str, Any]
    recipe: dict[str, Any]
    image: dict[str, Any]


@st.composite
def competitions(draw: st.DrawFn) -> Drawn:
    """Good competitions, about half of them with one odd thing."""
    odd = draw(st.sampled_from(["", "", "", "", "label", "few", "boxes", "index", "alike"]))
    labels = [name for name in ("w1", "w2", "w3") for _ in range(draw(st.integers(1 if odd == "few" else 2, 4)))]
    labels += draw(st.lists(st.sampled_from(ODD_LABELS), min_size=1, max_size=2)) if odd == "label" else []
    good = ["", "shares", "pixels"]
    return Drawn(
        labels=draw(st.permutations(labels[:1] if odd == "few" and draw(st.booleans()) else labels)),
        tests=draw(st.integers(0, 3)),
        suffix=draw(st.sampled_from([".jpg", ".png", ".tif"])),
        sides=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        alike=odd == "alike",
        one_name=draw(st.booleans()),
        boxes=draw(st.sampled_from(["outside", "others"] if odd == "boxes" else good)),
        more={
            "unknown": draw(st.sampled_from([None, "new_whale"])),
            "k": draw(st.sampled_from([1, 5])),
            "find_copies": draw(st.booleans()),
        },
        recipe={
            "folds": draw(st.integers(2, 3)),
            "combine": {
                "concat": {"whiten": draw(st.sampled_from([1, 8]))},
                "classifier": draw(st.sampled_from([None, {"epochs": 1, "seeds": 1}])),
                "knn": {"index": draw(st.sampled_from(INDEXES if odd == "index" else ["auto"]))},
            },
        },
        image={"width": 32, "height": 32, "mirror_identities": draw(st.booleans())},
    )


def write(drawn: Drawn, folder: Path) -> Project:
    """The files of a drawn competition, and the project on them."""
    data = folder / "data"
    random = np.random.default_rng(0)
    first = random.integers(0, 256, (*drawn.sides, 3), dtype=np.uint8)
    names = {"train": [], "test": []}
    for part, count in (("train", len(drawn.labels)), ("test", drawn.tests)):
        (data / part).mkdir(parents=True)
        for number in range(count):
            name = f"{'' if drawn.one_name else part}{number}{drawn.suffix}"
            pixels = first if drawn.alike else random.integers(0, 256, (*drawn.sides, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / part / name)
            names[part].append(name)
    pd.DataFrame({"Image": names["train"], "Id": drawn.labels}).to_csv(data / "train.csv", index=False)
    body = {"name": "drawn", "root": str(data), "train": _table("train") | {"identity": "Id"}, **drawn.more}
    if drawn.tests:
        pd.DataFrame({"Image": names["test"], "predictions": ""}).to_csv(data / "test.csv", index=False)
        body["test"] = _table("test")
    if drawn.boxes:
        corners = {"shares": (0.1, 0.1, 0.9, 0.9), "pixels": (0, 0, 20, 20), "outside": (50, 50, 60, 60)}
        box = corners.get(drawn.boxes, (0, 0, 5, 5))
        listed = (
            ["nobody.jpg"] if drawn.boxes == "others" else [f"{part}/{name}" for part in names for name in names[part]]
        )
        table = pd.DataFrame([(name, *box) for name in listed], columns=["image", "x0", "y0", "x1", "y1"])
        table.to_csv(data / "boxes.csv", index=False)
        body["boxes"] = "boxes.csv"
    flip = {"augment": {"flip": 0}} if drawn.image["mirror_identities"] else {}
    for name, content in (
        ("drawn", body),
        ("recipe", {**drawn.recipe, "experiments": ["tiny"]}),
        ("tiny", {**EXPERIMENT, "image": drawn.image, **flip}),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    places = Settings(submissions=folder / "submissions")
    paths = str(folder / "drawn.yaml"), str(folder / "recipe.yaml")
    return open_project(*paths, folder / "work", settings=places)


def _table(part: str) -> dict[str, str]:
    return {"csv": f"{part}.csv", "images": part, "image": "Image"}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink a competition trains for minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(competitions())
def test_fit_to_run_means_that_it_runs_to_its_end(drawn: Drawn) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        project = write(drawn, folder)
        report = check_project(project.competition, project, workers=1)
        assert all(NAMED.search(problem) for problem in report.problems), report.problems
        if report.ok:
            last = list(leaderboard_lines(project))[-1]
            assert last.startswith("submission: " if drawn.tests else "no submission")
        else:
            with pytest.raises(WhaleidError):
                list(leaderboard_lines(project))
            assert not list(project.workspace.root.rglob("checkpoint.safetensors"))  # refused before it trains
    finally:
        shutil.rmtree(folder)


def test_an_index_that_faiss_cannot_build_is_refused_before_training(tmp_path: Path) -> None:
    recipe = {"folds": 2, "combine": {"knn": {"index": "Nonsense"}}}
    image = {"width": 32, "height": 32, "mirror_identities": False}
    drawn = Drawn(["w1", "w2"] * 4, 2, ".png", (32, 32), False, False, "", {}, recipe, image)
    project = write(drawn, tmp_path)
    with pytest.raises(WhaleidError, match="index 'Nonsense'"):
        list(leaderboard_lines(project))
    assert not list(project.workspace.root.rglob("checkpoint.safetensors"))
