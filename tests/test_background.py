"""Experiments that see the animal alone: pixels, what has to be made again, and what is said without masks."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn import draw_sample
from test_cli import COMPETITION, EXPERIMENT, RECIPE, arguments, done
from test_masks import disc, make_project, project_at

from whaleid.config.files import load_experiment
from whaleid.data.images import prepare
from whaleid.data.masks import GREY, Mask
from whaleid.features.context import measure_context
from whaleid.pipeline.data_stages import read_cache
from whaleid.pipeline.keys import candidates_key, features_key, folds_key, run_key
from whaleid.pipeline.project import Project
from whaleid.pipeline.runner import run
from whaleid.pipeline.transfer import project_from_json, project_to_json
from whaleid.pipeline.versions import VERSION
from whaleid.pipeline.workspace import read_images
from whaleid.report.mask_sheet import MOST_BYTES
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import digest

SIZE = 64, 32


def with_experiment(project: Project, background: str) -> Project:
    settings = {"image.width": SIZE[0], "image.height": SIZE[1], "image.background": background}
    alone = project.recipe.model_copy(update={"sources": {}, "experiments": ["default"]})
    return replace(project, recipe=alone, experiments=(load_experiment("default", settings),))


def test_the_cache_is_grey_outside_of_the_masks(tmp_path: Path) -> None:
    project = with_experiment(make_project(tmp_path, local=False), "remove")
    run(project, "cache")
    images, white = (
        read_images(project.workspace),
        cv2.resize(disc(128, 128), SIZE, interpolation=cv2.INTER_AREA) >= 128,
    )
    cache = read_cache(project.workspace, project.experiments[0])
    for row, path in enumerate(images["path"]):
        whole = prepare(tmp_path / path, np.array([0.0, 0.0, 128.0, 128.0]), 0.05, SIZE)
        shown = cache.read(row)
        assert np.array_equal(shown[white], whole[white]) and (shown[~white] == GREY).all()
    both = replace(project, experiments=(*project.experiments, *with_experiment(project, "keep").experiments))
    assert len(run(both, "cache")) == 1  # the other one has a cache of its own


class Pixels:
    """Features of a run: the pixels themselves."""

    size, batch = (32, 32), 3
    run = SimpleNamespace(experiment=SimpleNamespace(image=SimpleNamespace(box_margin=0.0)))

    def without_mirror(self) -> "Pixels":
        return self

    def embed(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        flat = images.reshape(len(images), -1).astype(np.float32) - GREY
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), None


def test_the_context_ratio_tells_animals_from_backgrounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Animals say who it is, and each query stands before the background of another identity's gallery image."""
    white, masks = disc(32, 32) > 0, []
    for row, (animal, behind) in enumerate([(0, 1), (1, 2), (2, 0), (0, 0), (1, 1), (2, 2)]):
        noise = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3)) for seed in (animal, 10 + behind)]
        cv2.imwrite(str(tmp_path / f"{row}.png"), np.where(white[..., None], *noise).astype(np.uint8))
        cv2.imwrite(str(tmp_path / f"{row}-mask.png"), disc(32, 32))
        masks.append(Mask(tmp_path / f"{row}-mask.png", (32, 32)))
    images = pd.DataFrame({"path": [f"{row}.png" for row in range(6)], "identity": list("abcabc")})
    images["image"] = [f"image {row}" for row in range(6)]
    images["view"] = ["left", "right", "left", None, None, None]
    images = images.assign(x0=0.0, y0=0.0, x1=32.0, y1=32.0)
    monkeypatch.setattr("whaleid.features.extractor.load_extractor", lambda *_: Pixels())
    found = measure_context(tmp_path, images, np.arange(3), np.arange(3, 6), tmp_path, masks)
    assert (found.queries, found.animal, found.background, found.ratio) == (3, 1.0, 0.0, 0.0)
    assert found.offenders == []
    assert {view: part["queries"] for view, part in found.table.items()} == {"": 3, "left": 2, "right": 1}
    swapped = [2, 0, 1]  # the gallery's identities are those of the backgrounds
    images["identity"] = list("abc") + [list("abc")[place] for place in swapped]
    found = measure_context(tmp_path, images, np.arange(3), np.arange(3, 6), tmp_path, masks)
    assert (found.animal, found.background, found.ratio) == (0.0, 1.0, None)
    pairs = [(one["image"], one["match"], one["animal"]) for one in found.offenders]
    assert sorted(pairs) == [(f"image {row}", f"image {3 + (row + 1) % 3}", False) for row in range(3)]
    cosines = [one["cosine"] for one in found.offenders]
    assert cosines == sorted(cosines, reverse=True) and all(value > 0.9 for value in cosines)


def test_in_the_mirror_a_network_of_one_side_knows_mirrored_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query is the mirrored picture of its gallery image."""
    rng, masks = np.random.default_rng(0), []
    cv2.imwrite(str(tmp_path / "mask.png"), disc(32, 32))
    for row in range(4):
        picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{row}.png"), picture)
        cv2.imwrite(str(tmp_path / f"{row + 4}.png"), picture[:, ::-1])
        masks += [Mask(tmp_path / "mask.png", (32, 32))] * 2
    images = pd.DataFrame({"path": [f"{row}.png" for row in range(8)], "identity": list("abcdabcd")})
    images = images.assign(image=images["path"], x0=0.0, y0=0.0, x1=32.0, y1=32.0)
    monkeypatch.setattr("whaleid.features.extractor.load_extractor", lambda *_: Pixels())
    table = measure_context(tmp_path, images, np.arange(4), np.arange(4, 8), tmp_path, masks).table[""]
    assert table["mirrored"] == {"accuracy": 1.0, "low": 1.0, "high": 1.0}
    assert table["one side"]["accuracy"] < 1.0


def keys(project: Project) -> tuple[str, str, str]:
    (one,) = project.experiments
    return run_key(project, one, 0), features_key(project, one, 0), candidates_key(project)


def test_what_another_mask_makes_again(tmp_path: Path) -> None:
    """A labelled image's: runs, features, answer; a test image's: no run. Where the background is kept: nothing."""
    make_project(tmp_path, local=False)

    def all_keys(background: str) -> tuple[str, str, str]:
        return keys(with_experiment(project_at(tmp_path, local=False), background))

    kept, removed = all_keys("keep"), all_keys("remove")
    assert all(one != other for one, other in zip(kept, removed, strict=True))
    cv2.imwrite(str(tmp_path / "masks" / "8.png"), 255 - disc(128, 128))
    of_test = all_keys("remove")
    assert [one == other for one, other in zip(of_test, removed, strict=True)] == [True, False, False]
    cv2.imwrite(str(tmp_path / "masks" / "x" / "1.png"), 255 - disc(128, 128))
    of_labelled = all_keys("remove")
    assert all(one != other for one, other in zip(of_labelled, of_test, strict=True))
    assert all_keys("keep") == kept


def test_a_run_that_keeps_the_background_has_the_key_of_before_there_was_a_choice(tmp_path: Path) -> None:
    project = with_experiment(make_project(tmp_path, local=False), "keep")
    (one,) = project.experiments
    dumped = one.model_dump(
        mode="json", exclude={"name": True, "adapter_of": True, "features": True, "train": {"workers", "gpus"}}
    )
    del dumped["image"]["background"]
    assert run_key(project, one, 0) == digest("run", VERSION["train"], folds_key(project), dumped, 0)


def test_the_keys_travel(tmp_path: Path) -> None:
    project = with_experiment(make_project(tmp_path, local=False), "remove")
    there = project_from_json(project_to_json(project), tmp_path, project.settings)
    assert keys(there) == keys(project) and there.removes_background


def test_no_masks_is_one_line(tmp_path: Path) -> None:
    project = with_experiment(make_project(tmp_path, masks=None, local=False), "remove")
    with pytest.raises(WhaleidError, match="background: remove needs `masks` in the YAML of masked") as caught:
        run(project, "cache")
    assert "\n" not in str(caught.value)
    missing = with_experiment(project_at(tmp_path, local=False), "remove")
    (tmp_path / "masks" / "9.png").unlink()
    with pytest.raises(WhaleidError, match=r"9\.png: mask not found"):
        run(missing, "cache")
    assert not (missing.workspace.cache("64x32-raw-m0.05-animal")).exists()


def test_the_context_ratio_is_in_the_metrics_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, on a small trained project; the next ensemble does not lose it for good."""
    draw_sample(tmp_path / "data", identities=6, train_images=24, test_images=10)
    (tmp_path / "drawn.yaml").write_text(COMPETITION.format(root="data") + "masks: masks\n")
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for path in [*(tmp_path / "data" / "train").iterdir(), *(tmp_path / "data" / "test").iterdir()]:
        height, width = cv2.imread(str(path)).shape[:2]
        place = tmp_path / "data" / "masks" / f"{path.stem}.png"
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), disc(width, height))
    said = done(monkeypatch, capsys, tmp_path, arguments(tmp_path, "background"))
    metrics = tmp_path / "work" / "drawn" / "metrics.json"
    context = json.loads(metrics.read_text())["recipe"]["context"]
    assert said.startswith("context ratio ") and context["run"] == "tiny/fold0"
    assert all(0 <= context[name] <= 1 for name in ("whole", "animal", "background"))

    again = json.loads(metrics.read_text())
    del again["recipe"]["context"]
    metrics.write_text(json.dumps(again))
    assert done(monkeypatch, capsys, tmp_path, arguments(tmp_path, "background")) == said
    done(monkeypatch, capsys, tmp_path, arguments(tmp_path, "report"))
    page = tmp_path / "work" / "drawn" / "report" / "recipe"
    content = (page / "index.html").read_text()
    assert said.strip()[1:] in content and "queries mirrored, the gallery not" in content
    for one in context["offenders"]:
        assert f"query {one['image']}" in content and f"nearest background {one['match']}" in content
    assert 0 < (page / "masks.jpg").stat().st_size <= MOST_BYTES
