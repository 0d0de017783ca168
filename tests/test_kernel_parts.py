"""The kernel's parts by themselves: names, metadata, script, wheels, the time budget, folders of rows."""

import importlib.util
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_world import MODULE, write_wheel

import whaleid
from whaleid.features.rows import join_rows, keep_rows
from whaleid.kaggle.kernel.budget import CAUTION, Budget, Cost, make_plan
from whaleid.kaggle.kernel.bundle import kernel_notebook, kernel_script
from whaleid.kaggle.kernel.local_run import Comparison, KernelRun, compare_submissions, require_equal
from whaleid.kaggle.kernel.size import KernelSize, experiment_size
from whaleid.kaggle.kernel.wheels import KAGGLE_HAS, collect_wheels, imported_modules, install_wheels, needed_wheels
from whaleid.kaggle.metadata import (
    LARGEST_DATA_SET,
    check_name,
    dataset_metadata,
    kernel_metadata,
    slug_of,
    slugify,
    title_of,
)
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.manifest import check_manifest, write_manifest


@given(st.lists(st.text(min_size=1), min_size=1))
def test_every_slug_obeys_the_rules(words: list[str]) -> None:
    slug = slug_of("whaleid", *words)
    assert 5 <= len(slug) <= 50
    assert slugify(title_of(slug)) == slug
    check_name("data set", "someone", slug, title_of(slug))


def test_long_names_stay_apart() -> None:
    assert slug_of("whale" * 20, "a") != slug_of("whale" * 20, "b")


@pytest.mark.parametrize(
    ("owner", "slug"), [("some one", "whaleid"), ("me", "abcd"), ("me", "Whaleid"), ("me", "a--bc")]
)
def test_names_that_kaggle_would_refuse(owner: str, slug: str) -> None:
    with pytest.raises(WhaleidError):
        check_name("kernel", owner, slug, slug)


def test_metadata_says_offline_and_which_gpu() -> None:
    made = kernel_metadata("me", "whaleid-x", "whaleid-x.ipynb", ["whaleid-code"], ["humpback"], gpu=True)
    assert made["enable_internet"] is False
    assert made["machine_shape"] == "NvidiaTeslaT4"
    assert (made["kernel_type"], made["dataset_sources"]) == ("notebook", ["me/whaleid-code"])
    assert "machine_shape" not in kernel_metadata("me", "whaleid-x", "whaleid-x.py", [], [], gpu=False)
    assert len(dataset_metadata("me", "whaleid-code")["licenses"]) == 1


def test_script_and_notebook_hold_the_same_code() -> None:
    settings = {"mode": "inference", "datasets": {"code": "whaleid-code"}, "name": "a 'quoted' \\ \"name\""}
    text = kernel_script("Whaleid x", settings)
    compile(text, "kernel", "exec")
    book = nbformat.reads(kernel_notebook("Whaleid x", settings), as_version=4)
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert book.cells[1].source.strip() == text.split('"""', 2)[2].strip()
    held = text.split('r"""\n', 1)[1].split('\n"""', 1)[0]
    assert json.loads(held) == settings


def test_wheels_are_found_by_walking_the_imports() -> None:
    package = Path(whaleid.__file__).parent
    needed = needed_wheels(package)
    assert {"faiss", "pytorch_metric_learning", "imagehash"} <= set(needed)
    assert needed["faiss"].startswith("faiss-cpu==")
    assert not KAGGLE_HAS & set(needed)
    assert not [module for module in needed if module.startswith(("nvidia", "cuda", "triton"))]
    assert "torch" in imported_modules(package) and "json" not in imported_modules(package)


def test_a_wheel_is_installed_offline_where_its_module_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "packages" not in Path(place).parts])
    write_wheel(tmp_path / "cache")
    collect_wheels({MODULE: f"{MODULE}==1.0", "json": f"{MODULE}==1.0"}, tmp_path / "cache", tmp_path / "wheels")
    assert install_wheels(tmp_path / "wheels", tmp_path / "target") == [MODULE]
    found = importlib.util.find_spec(MODULE)
    assert found is not None and found.origin == str(tmp_path / "target" / f"{MODULE}.py")
    assert install_wheels(tmp_path / "wheels", tmp_path / "target") == []


def test_wheels_that_cannot_be_installed_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "packages" not in Path(place).parts])
    write_wheel(tmp_path / "cache")
    module = "whaleid_no_such_module"
    collect_wheels({module: f"{MODULE}==1.0"}, tmp_path / "cache", tmp_path / "wheels")
    wheel = next((tmp_path / "wheels").glob("*.whl"))
    with pytest.raises(WhaleidError, match=f"module '{module}' is still not found") as error:
        install_wheels(tmp_path / "wheels", tmp_path / "one")
    assert "\n" not in str(error.value)
    wheel.write_bytes(b"half a wheel")
    with pytest.raises(WhaleidError, match="pip cannot install") as error:
        install_wheels(tmp_path / "wheels", tmp_path / "two")
    assert "\n" not in str(error.value)
    wheel.unlink()
    with pytest.raises(WhaleidError, match="push the data set of wheels again"):
        install_wheels(tmp_path / "wheels", tmp_path / "three")


def test_a_manifest_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "dataset-metadata.json").write_text("{}")
    assert set(write_manifest(tmp_path, "code").files) == {"a"}
    assert check_manifest(tmp_path).size == 3
    (tmp_path / "a").write_text("two")
    with pytest.raises(WhaleidError, match="checksum"):
        check_manifest(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(WhaleidError, match="missing"):
        check_manifest(tmp_path)


# ------------------------------------------------------------------------------------------------------- the time

COSTS = [Cost("weak", 0.1, 10, 40), Cost("strong", 0.9, 10, 40), Cost("middle", 0.5, 10, 10)]


@pytest.mark.parametrize(
    ("left", "kept", "plain"),
    [
        (90 * CAUTION, "strong middle weak", ""),
        (60 * CAUTION, "strong middle weak", "weak"),
        (30 * CAUTION, "strong middle weak", "weak strong"),
        (20 * CAUTION, "strong middle", "strong"),
        (1, "strong", "strong"),
        (-5, "strong", "strong"),
    ],
)
def test_views_go_before_sources_and_the_weak_before_the_strong(left: float, kept: str, plain: str) -> None:
    plan = make_plan(COSTS, left)
    assert (" ".join(plan.kept), set(plan.one_view)) == (kept, set(plain.split()))
    assert set(plan.kept) | set(plan.dropped) == {"weak", "middle", "strong"}


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 50), st.floats(1, 6)), min_size=1, max_size=6), st.floats(0, 500)
)
def test_a_plan_fits_unless_only_the_strongest_is_left(items, left: float) -> None:
    costs = [Cost(str(place), score, one, one * times) for place, (score, one, times) in enumerate(items)]
    plan = make_plan(costs, left)
    assert plan.seconds <= left or len(plan.kept) == 1
    if plan.dropped and left > 0:
        weakest_kept = min(cost.score for cost in costs if cost.experiment in plan.kept)
        assert all(cost.score <= weakest_kept for cost in costs if cost.experiment in plan.dropped)
    assert not make_plan(costs, -1, keep_one=False).kept


def test_the_budget_keeps_a_reserve() -> None:
    now = [0.0]
    budget = Budget(1000.0, 0.0, lambda: now[0])
    assert budget.left() == 850
    now[0] = 900.0
    assert budget.left() == -50
    assert Budget(12 * 3600.0, 0.0, lambda: 0.0).reserve == 3600


# -------------------------------------------------------------------------------------------------- folders of rows


def write_rows(folder: Path, names: list[str], counts: list[int], start: int) -> dict[str, np.ndarray]:
    folder.mkdir()
    pd.DataFrame({"image": names}).to_csv(folder / "rows.csv", index=False)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    tables = {
        "values": np.arange(start, start + 3 * len(names), dtype=np.float16).reshape(len(names), 3),
        "points": np.arange(start, start + 2 * offsets[-1], dtype=np.float32).reshape(-1, 2),
        "constant": np.arange(17),
        "offsets": offsets,
    }
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table)
    (folder / "classes.txt").write_text("x\n")
    return tables


def test_rows_kept_and_joined_again_are_the_whole(tmp_path: Path) -> None:
    names, counts = ["a", "b", "c", "d", "e"], [2, 0, 3, 1, 4]
    whole = write_rows(tmp_path / "whole", names, counts, 0)
    keep_rows(tmp_path / "whole", tmp_path / "first", pd.Series(names[:3]))
    keep_rows(tmp_path / "whole", tmp_path / "last", pd.Series(names[3:]))
    join_rows([tmp_path / "first", tmp_path / "last"], tmp_path / "joined")
    for name, table in whole.items():
        found = np.load(tmp_path / "joined" / f"{name}.npy")
        assert found.dtype == table.dtype and np.array_equal(found, table), name
    assert (tmp_path / "joined" / "rows.csv").read_text() == (tmp_path / "whole" / "rows.csv").read_text()
    keep_rows(tmp_path / "whole", tmp_path / "turned", pd.Series(["d", "a"]))
    assert np.array_equal(np.load(tmp_path / "turned" / "points.npy"), whole["points"][[5, 0, 1]])
    with pytest.raises(WhaleidError, match="'z'"):
        keep_rows(tmp_path / "whole", tmp_path / "none", pd.Series(["a", "z"]))


def test_a_table_keeps_the_rows_of_fewer_images_and_lists_them(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    whole = write_rows(tmp_path / "whole", names, [1] * 5, 0)
    few = {"values.npy": pd.Series(["d", "b"]), "not there.npy": pd.Series(["a"])}
    keep_rows(tmp_path / "whole", tmp_path / "few", pd.Series(names[:4]), few)
    assert (tmp_path / "few" / "values.rows.csv").read_text() == "image\nd\nb\n"
    assert np.array_equal(np.load(tmp_path / "few" / "values.npy"), whole["values"][[3, 1]])
    assert len(np.load(tmp_path / "few" / "points.npy")) == 4
    write_rows(tmp_path / "test", ["x", "y"], [1, 1], 100)
    join_rows([tmp_path / "few", tmp_path / "test"], tmp_path / "joined")
    assert pd.read_csv(tmp_path / "joined" / "values.rows.csv")["image"].tolist() == ["b", "d", "x", "y"]
    assert np.load(tmp_path / "joined" / "values.npy")[:, 0].tolist() == [3, 9, 100, 103]
    assert len(pd.read_csv(tmp_path / "joined" / "rows.csv")) == 6
    keep_rows(tmp_path / "joined", tmp_path / "again", pd.Series(["y", "a", "d"]))  # the list stays true
    assert pd.read_csv(tmp_path / "again" / "values.rows.csv")["image"].tolist() == ["y", "d"]
    assert np.load(tmp_path / "again" / "values.npy")[:, 0].tolist() == [103, 9]
    with pytest.raises(WhaleidError, match=r"values\.rows\.csv.*'a'"):
        keep_rows(tmp_path / "joined", tmp_path / "none", pd.Series(names[:4]), {"values.npy": pd.Series(["a"])})


# ---------------------------------------------------------------------------------------------- the two submissions


def test_submissions_are_compared_by_bytes_then_by_image(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,a b c" for number in range(200)]
    home, other = tmp_path / "home.csv", tmp_path / "submission.csv"
    home.write_text("\n".join(["Image,Id", *rows]) + "\n")
    (tmp_path / "kernel.json").write_text(json.dumps({"dropped": [], "without_views": []}))
    run = KernelRun(tmp_path, tmp_path / "kernel.log", 1.0, "")

    def compared(changed: int, more: tuple[str, ...] = ()) -> Comparison:
        text = [row.replace("a b c", "b a c") for row in rows[:changed]] + rows[changed:]
        other.write_text("\n".join(["Image,Id", *text, *more]) + "\n")
        return compare_submissions(home, other)

    assert "byte for byte" in compared(0).line()
    require_equal(run, compared(2))
    assert compared(2).line().startswith("2 of 200 rows differ from the local submission: 0.jpg, 1.jpg")
    with pytest.raises(WhaleidError, match=r"3 of 200 rows differ .* more than 1%") as error:
        require_equal(run, compared(3))
    assert "\n" not in str(error.value)
    assert compared(0, ("new.jpg,a",)).differing == ("new.jpg",)
    (tmp_path / "kernel.json").write_text(json.dumps({"dropped": ["weak"], "without_views": []}))
    require_equal(run, compared(100))


# --------------------------------------------------------------------------------------------------------- its size


def test_the_size_of_an_experiment_is_that_of_its_arrays() -> None:
    found = experiment_size(1000.0, dim=8, classes=6, itemsize=2, runs=5, labelled=100)
    assert found.weights == 5000
    assert found.embeddings == 5 * np.zeros((100, 8), np.float16).nbytes
    assert found.logits == np.zeros((100, 6), np.float16).nbytes  # each image once: by its own fold's run
    assert found.total == found.weights + found.embeddings + found.logits
    both = found + experiment_size(1.0, 1, 0, 4, 1, 10, covered=0.2)
    assert (both.weights, both.embeddings, both.logits) == (5001, found.embeddings + 40, found.logits)
    assert KernelSize().total == 0


def test_a_recipe_too_large_for_a_data_set_is_refused_in_one_line() -> None:
    fits = KernelSize(LARGEST_DATA_SET / 2, other=LARGEST_DATA_SET / 2)
    fits.require_fit("gold")
    with pytest.raises(WhaleidError, match=r"recipe gold: .* 200\.1 GB.* at most 200\.0 GB") as error:
        replace(fits, logits=1e8).require_fit("gold")
    assert "\n" not in str(error.value)


def test_a_project_is_transferred_completely() -> None:
    """A new field of Project must be transferred too (transfer.py)."""
    known = {"competition", "recipe", "experiments", "workspace", "skip_unreadable", "pretext", "settings"}
    known |= {"data_keys"}
    as_files = {"stack_models"}  # a folder of the assets
    assert {field.name for field in fields(Project)} == known | as_files
