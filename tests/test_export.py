"""`whaleid export`: every answer in a spreadsheet, in Wildbook's bulk import and in the observations of Camtrap DP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from form_world import NEW, add_to_world, open_world, place_world
from typer.testing import CliRunner

from whaleid.cli.main import app
from whaleid.data.reviews import Review, append_review, now
from whaleid.evaluation.topk import read_guesses
from whaleid.export import formats, write
from whaleid.export.answers import PERSON, read_answers
from whaleid.export.formats import Filled
from whaleid.export.write import export_answers
from whaleid.features.files import read_features
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.submission import latest_submission
from whaleid.pipeline.workspace import read_images
from whaleid.utils.errors import WhaleidError

CAMTRAP = (
    "observationID,deploymentID,mediaID,eventID,eventStart,eventEnd,observationLevel,observationType,cameraSetupType,"
    "scientificName,count,lifeStage,sex,behavior,individualID,individualPositionRadius,individualPositionAngle,"
    "individualSpeed,bboxX,bboxY,bboxWidth,bboxHeight,classificationMethod,classifiedBy,classificationTimestamp,"
    "classificationProbability,observationTags,observationComments"
)
"""Header of the example package of Camtrap DP 1.0."""
TAKEN = "2026-05-04T12:00:00Z"


def make_world(place: Path, form: str, more: str = "") -> Project:
    """A small competition with a submission, whose test table holds species, time and camera of each image."""
    place_world(place, form)
    test = pd.read_csv(place / "test.csv")
    test.assign(kind="Lynx lynx", taken=TAKEN, camera="c-1").to_csv(place / "test.csv", index=False)
    text = (place / "world.yaml").read_text()
    extra = "extra: {dataset: dataset, kind: kind, taken: taken, camera: camera}}\nsolution"
    text = text.replace("extra: {dataset: dataset}}\nsolution", extra).replace("solution: solution.csv\n", "")
    (place / "world.yaml").write_text(text)
    add_to_world(place, f"unknown: {NEW}\nreviews: reviews.csv\n{more}")
    project = open_world(place)
    run(project, "submission")
    return project


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_world(tmp_path_factory.mktemp("export"), "topk")


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_a_spreadsheet_of_guesses(world: Project, tmp_path: Path) -> None:
    (path,) = export_answers(world, "csv", tmp_path / "a.csv")
    table = read(path)
    assert list(table.columns) == ["image", "identity", "confidence", "second", "second_confidence", "why"]
    guesses = read_guesses(latest_submission(world))
    assert table["image"].tolist() == guesses.images.tolist()
    assert table["identity"].tolist() == [row[0] for row in guesses.as_lists()]
    assert table["second"].tolist() == [row[1] for row in guesses.as_lists()]
    first, second = table["confidence"].astype(float), table["second_confidence"].astype(float)
    assert first.between(0, 1).all() and second.between(0, 1).all()
    assert (first + second <= 1.0001).all()
    assert table["why"].str.fullmatch(r"\w+; \d of \d rankers say so first; nearest labelled image \d+\.png").all()


def test_the_nearest_image_is_of_the_best_identity_and_none_of_its_images_is_nearer(world: Project) -> None:
    answers, images = read_answers(world), read_images(world.workspace)
    identity = images.set_index("image")["identity"]
    named = np.where(answers["identity"] == NEW, answers["second"], answers["identity"])
    assert identity[answers["nearest"]].tolist() == named.tolist()
    folder = Path(world.recipe.sources["foreign"]) / "fold0"
    embeddings = read_features(folder, images, np.arange(len(images)), logits=False).embeddings
    place = pd.Index(images["image"])
    for row in answers.to_dict("records"):
        own = np.flatnonzero(images["identity"] == identity[row["nearest"]])
        assert own[np.argmax(embeddings[own] @ embeddings[row["row"]])] == place.get_loc(row["nearest"])


def test_wildbook(world: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"species": "{kind}", "date": "{taken}", "place": "Valley {camera}"}
    (path,) = export_answers(world, "wildbook", tmp_path / "w.csv", **given)
    table, answers = read(path), read_answers(world)
    assert set(table["Encounter.genus"] + "|" + table["Encounter.specificEpithet"]) == {"Lynx|lynx"}
    assert set(table["Encounter.year"] + table["Encounter.month"] + table["Encounter.day"]) == {"20260504"}
    assert set(table["Encounter.locationID"]) == {"Valley c-1"}
    assert set(table["Encounter.state"]) == {"unapproved"}
    assert table["MarkedIndividual.individualID"].tolist() == answers["identity"].replace(NEW, "").tolist()
    assert (answers["identity"] == NEW).any()
    assert table["Encounter.mediaAsset0"].tolist() == answers["image"].tolist()
    monkeypatch.setattr(write, "MOST_ENCOUNTERS", len(table) - 1)
    parts = export_answers(world, "wildbook", tmp_path / "w.csv", **{**given, "date": "2026"})
    assert [part.name for part in parts] == ["w-1.csv", "w-2.csv"]
    assert [len(read(part)) for part in parts] == [len(table) - 1, 1]
    assert "Encounter.month" not in read(parts[0]).columns  # fields without data are left out


def test_observations_of_camtrap_dp(world: Project, tmp_path: Path) -> None:
    (path,) = export_answers(world, "camtrap-dp", tmp_path / "c.csv", date="{taken}", place="{camera}")
    table, answers = read(path), read_answers(world)
    assert ",".join(table.columns) == CAMTRAP
    assert table["observationID"].is_unique
    for name in ("deploymentID", "eventStart", "eventEnd", "observationLevel", "observationType"):
        assert (table[name] != "").all()  # required by the schema
    assert table["mediaID"].tolist() == answers["image"].tolist()
    assert set(table["eventStart"]) == {TAKEN}
    assert set(table["classificationMethod"]) == {"machine"}
    assert table["individualID"].tolist() == answers["identity"].replace(NEW, "").tolist()
    assert table["classificationProbability"].astype(float).between(0, 1).all()
    assert table["classificationTimestamp"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    assert (table["bboxX"] == "").all()  # no boxes


def test_boxes_are_shares_of_the_sides() -> None:
    rows = pd.DataFrame({"x0": [10.0, 0], "y0": [0.0, 0], "x1": [60.0, 100], "y1": [40.0, 50]})
    boxes = formats._boxes(rows.assign(width=100, height=50))
    assert boxes == {
        "bboxX": ["0.1000", ""],
        "bboxY": ["0.0000", ""],
        "bboxWidth": ["0.5000", ""],
        "bboxHeight": ["0.8000", ""],
    }


def test_what_a_person_decided_has_no_probability_and_is_said_to_be_human(world: Project, tmp_path: Path) -> None:
    answers, images = read_answers(world), read_images(world.workspace)
    image = str(answers["image"][0])
    other = images[(images["split"] == "train") & (images["identity"] != answers["identity"][0])].iloc[0]
    path = tmp_path / "reviews.csv"
    append_review(path, Review(image, str(other["image"]), "yes", now(), "nora"))
    reviewed = replace(world, competition=world.competition.model_copy(update={"reviews": str(path)}))
    run(reviewed, "submission")
    answer = read_answers(reviewed).iloc[0]
    assert (answer["identity"], answer["ranker"]) == (other["identity"], PERSON)
    assert np.isnan(answer["confidence"])
    (written,) = export_answers(reviewed, "camtrap-dp", tmp_path / "c.csv", date=TAKEN, place="c")
    row = read(written).iloc[0]
    assert (row["classificationMethod"], row["classifiedBy"], row["classificationProbability"]) == ("human", "", "")


def test_clusters_are_exported_with_the_best_labelled_identity_beside_them(tmp_path: Path) -> None:
    project = make_world(tmp_path, "clusters", "k: 1\nsubmission: {image: image, identities: cluster}\n")
    answers = read_answers(project)
    assert answers["identity"].str.startswith("cluster_").all()
    assert answers["confidence"].isna().all()
    assert set(answers["second"]) <= {NEW, *read_images(project.workspace)["identity"].dropna()}


# --------------------------------------------------------------------------------------------------- formulas


def answers_of(identity: str) -> pd.DataFrame:
    row = {"image": "a.jpg", "identity": identity, "confidence": 0.5, "second": "b", "second_confidence": 0.25}
    return pd.DataFrame([row | {"ranker": "blend", "agree": "", "nearest": "", "row": 0}])


GIVEN = Filled(["Lynx lynx"], [TAKEN], ["-3.5"], pd.Timestamp(TAKEN).to_pydatetime(), "r", NEW)
IMAGES = pd.DataFrame({"path": ["x/a.jpg"], "x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0, "width": 9, "height": 9})


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta", "\ra"])
def test_no_name_becomes_a_formula(name: str) -> None:
    assert formats.spreadsheet(answers_of(name), IMAGES, GIVEN)["identity"][0] == f"'{name}"
    for form in (formats.wildbook, formats.camtrap_dp):
        with pytest.raises(WhaleidError, match=r"image a\.jpg: .*ndividualID is .*formula; rename it"):
            form(answers_of(name), IMAGES, GIVEN)


def test_names_within_and_numbers_stay_as_they_are() -> None:
    table = formats.spreadsheet(answers_of("a=b"), IMAGES, GIVEN)
    assert (table["identity"][0], table["place"][0]) == ("a=b", "-3.5")


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("excel", {}, "no format 'excel'; choose one of csv, wildbook, camtrap-dp"),
        ("wildbook", {"date": "2026", "place": "x"}, "image .*: no species, which this format asks for"),
        ("wildbook", {"species": "lynx", "date": "2026", "place": "x"}, "--species is 'lynx'; .* a genus and an epi"),
        ("wildbook", {"species": "Lynx lynx", "date": "May", "place": "x"}, "--date is 'May'; .* a date or a year"),
        ("wildbook", {"species": "Lynx lynx", "date": "2026-13", "place": "x"}, "--date is '2026-13'"),
        ("camtrap-dp", {"date": "2026-05-04", "place": "x"}, "--date is '2026-05-04'; .* a time with its zone"),
        ("camtrap-dp", {"date": TAKEN, "place": "{river}"}, "images.parquet has no column 'river'; add it to"),
        ("camtrap-dp", {"date": TAKEN, "place": "{identity}"}, "image .*: no place"),
    ],
)
def test_what_is_missing_is_named(world: Project, tmp_path: Path, name: str, given: dict, message: str) -> None:
    with pytest.raises(WhaleidError, match=message):
        export_answers(world, name, tmp_path / "x.csv", **given)
    assert not (tmp_path / "x.csv").exists()


def test_files_of_one_name_are_refused_by_wildbook() -> None:
    answers = pd.concat([answers_of("a"), answers_of("b").assign(image="b.jpg", row=1)], ignore_index=True)
    images = pd.concat([IMAGES, IMAGES.assign(path="y/a.jpg")], ignore_index=True)
    two = replace(GIVEN, species=GIVEN.species * 2, date=GIVEN.date * 2, place=GIVEN.place * 2)
    with pytest.raises(WhaleidError, match=r"several images are named a\.jpg"):
        formats.wildbook(answers, images, two)


def test_forms_without_identities_have_nothing_to_export(world: Project) -> None:
    answer = world.competition.answer.model_copy(update={"form": "ranked_images"})
    other = replace(world, competition=world.competition.model_copy(update={"answer": answer}))
    with pytest.raises(WhaleidError, match="the form ranked_images answers no identity"):
        read_answers(other)


def test_the_command(world: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whaleid.auto.opening.open_project", lambda *_: world)
    path = tmp_path / "a.csv"
    found = CliRunner().invoke(app, ["export", "csv", "-o", str(path), "--place", "{camera}"])
    assert found.output == f"answers: {path}\n"
    assert set(read(path)["place"]) == {"c-1"}
