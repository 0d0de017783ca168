"""The notebooks: .py and .ipynb agree, are small and clean; all four run on a tiny competition, with training."""

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd
import pytest
from kernel_world import COMPETITION, EXPERIMENT, MODULE, write_wheel
from PIL import Image
from secret_search import LOOKS_SECRET

from whaleid.data.images import prepare
from whaleid.data.sample import make_sample
from whaleid.notebooks import notebook_project
from whaleid.report.grid import draw_grid
from whaleid.report.thumbnails import MARGIN, SIZE, thumbnails
from whaleid.utils.errors import WhaleidError

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIMIT = 200_000  # bytes: of a notebook that is committed, and of one output of an executed one
ABSOLUTE = re.compile(r"(?:^|[\s\"'`(=\[,])(?:/[A-Za-z][\w.-]*|[A-Za-z]:\\|~/)", re.MULTILINE)
RECIPE = """
folds: 2
experiments: [one, two]
combine: {concat: {whiten: 8}, classifier: {epochs: 2, seeds: 1}}
"""
# The wheels of a real kernel come from a package index: here one hand-made wheel stands for them.
STARTUP = f"""
from whaleid.kaggle.kernel import bundle

bundle.needed_wheels = lambda _: {{"{MODULE}": "{MODULE}==1.0"}}
"""


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


make = load(FOLDER / "make.py")
SCRIPTS = make.scripts()


def named(script: Path) -> str:
    return script.stem


# ------------------------------------------------------------------------------------------------ as committed


def test_there_are_four_and_no_notebook_without_its_text() -> None:
    assert [script.stem for script in SCRIPTS] == [
        "01_explore",
        "02_train_one",
        "03_read_the_ensemble",
        "04_kaggle_inference",
    ]
    assert {path.stem for path in FOLDER.rglob("*.ipynb")} == {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_the_notebook_is_made_from_its_text(script: Path) -> None:
    assert script.with_suffix(".ipynb").read_text() == make.notebook_text(script), "run `python notebooks/make.py`"


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_it_is_small_without_outputs_paths_secrets_or_typed_figures(script: Path) -> None:
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size < LIMIT
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not ABSOLUTE.search(cell.source), cell.source
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        else:
            assert not re.search(r"\d[.,]\d", cell.source), "a figure typed by hand"
    for file in (script, path):
        assert not LOOKS_SECRET.search(file.read_bytes())


def test_the_pattern_finds_absolute_paths() -> None:
    for text in ("/home/a/b", 'Path("/tmp")', "see\n/mnt/x", "work=/data", "C:\\Users", "in ~/.kaggle"):
        assert ABSOLUTE.search(text), text
    for text in ("work/<competition>/runs", 'a / "b"', "and/or", "</b>", "(02_train_one.ipynb)", '"/".join'):
        assert not ABSOLUTE.search(text), text


def test_the_same_text_gives_the_same_notebook_and_another_text_another(tmp_path: Path) -> None:
    script = tmp_path / "01_x.py"
    script.write_text(
        "# %% [markdown]\n# # One\n\n# %% tags=['parameters']\nx = 1\n\n# %%\n\n\ndef f():\n    return x\n"
    )
    text = make.notebook_text(script)
    assert text == make.notebook_text(script)
    cells = json.loads(text)["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code"]
    assert "".join(cells[1]["source"]) == "x = 1" and cells[1]["metadata"]["tags"] == ["parameters"]
    script.write_text(script.read_text().replace("x = 1", "x = 2"))
    assert text != make.notebook_text(script)


# ------------------------------------------------------------------------------------- pages of the documentation


def test_a_page_has_the_outputs_of_an_executed_copy_of_the_same_text(tmp_path: Path) -> None:
    hook = load(FOLDER.parent / "docs" / "notebook_pages.py")
    cells = [
        nbformat.v4.new_markdown_cell("# One\n\nNext: [two](02_two.ipynb)"),
        nbformat.v4.new_code_cell("show()"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    data = {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}
    table = {"text/html": "<style>p {}</style><table></table>", "text/plain": "x"}
    cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="\x1b[1mMAP@5\x1b[0m: 1\n"),
        nbformat.v4.new_output("display_data", data=data),
        nbformat.v4.new_output("execute_result", data=table),
    ]
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    made = dict(hook.pages(tmp_path / "01_one.ipynb", tmp_path / "executed.ipynb"))
    assert made["notebooks/01_one-3.png"] == b"hello"
    assert made["notebooks/01_one.md"].split("\n\n") == [
        "# One",
        "Next: [two](02_two.md)",
        "```python\nshow()\n```",
        "```text\nMAP@5: 1\n```",
        "![output of the cell above](01_one-3.png)",
        "<table></table>",
    ]
    notebook.cells[1].outputs = []
    notebook.cells[1].source = "show(2)"  # another text: its outputs are not shown
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    (page,) = dict(hook.pages(tmp_path / "01_one.ipynb", tmp_path / "executed.ipynb")).values()
    assert hook.NOT_RUN in page and "hello" not in page and "show(2)" in page


# --------------------------------------------------------------------------------------------------- executed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The settings of a tiny competition and of its recipe; there are no images yet, and nothing is trained."""
    (tmp_path / "drawn.yaml").write_text(COMPETITION)
    (tmp_path / "one.yaml").write_text(EXPERIMENT.format(head="softmax"))
    (tmp_path / "two.yaml").write_text(EXPERIMENT.format(head="arcface"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_wheel(tmp_path / "work" / "kaggle-wheels")
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-wheels.py").write_text(STARTUP)
    return tmp_path


def test_all_four_run_one_after_the_other(place: Path) -> None:
    make_sample(place / "data", identities=10, train_images=61, test_images=20, workers=1)
    environment = os.environ | {
        "COMPETITION": "drawn.yaml",
        "RECIPE": "recipe.yaml",
        "WORK": "work",
        "SET": "",
        "IPYTHONDIR": str(place / "ipython"),
    }
    told = {}
    for script in SCRIPTS:
        done = make.execute(script, place, environment, place / "out" / f"{script.stem}.ipynb")
        outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert max(len(json.dumps(output)) for output in outputs) < LIMIT
        assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
        assert any("image/png" in output.get("data", {}) for output in outputs)
        told[script.stem] = "".join(output.get("text", "") for output in outputs)
    assert "the data can be used" in told["01_explore"]
    assert "2 images in 1 groups" in told["01_explore"]
    assert "trained now" in told["02_train_one"] and "MAP@5 (one, " in told["02_train_one"]
    figures = json.loads((place / "work" / "drawn" / "metrics.json").read_text())["recipe"]
    final = figures["ladder"]["rungs"][-1]
    assert final["name"] == "blend" and f"{final['map']:.5f}" in told["03_read_the_ensemble"]
    assert f"{final['map']:.5f}" in told["04_kaggle_inference"]
    assert "byte for byte (20 rows)" in told["04_kaggle_inference"]
    assert len(list((place / "submissions").glob("drawn_recipe_*.csv"))) == 1  # where the command line puts it
    assert {path.stem for path in (place / "out").iterdir()} == {script.stem for script in SCRIPTS}


def test_a_cell_that_fails_is_one_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    script = tmp_path / "05_broken.py"
    script.write_text("# %%\nprint('so far')\n\n# %%\nraise ValueError('no such whale')\n\n# %%\nprint('never')\n")
    out = tmp_path / "out" / "05_broken.ipynb"
    with pytest.raises(WhaleidError, match=r"^05_broken\.py: ValueError: no such whale$"):
        make.execute(script, tmp_path, os.environ, out)
    kept = [cell.outputs for cell in nbformat.read(out, as_version=4).cells]
    assert kept[0][0].text == "so far\n" and kept[1][0].ename == "ValueError" and kept[2] == []


# -------------------------------------------------------------------------------------------- what they are made of


def test_the_environment_wins_over_the_first_cell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    here = notebook_project({}, competition="drawn.yaml", recipe="recipe.yaml", work="elsewhere")
    assert (here.competition.name, here.recipe.name) == ("drawn", "recipe")
    assert here.workspace.root == Path("elsewhere", "drawn")
    outside = {
        "RECIPE": "recipe.yaml",
        "COMPETITION": "drawn.yaml",
        "WORK": "there",
        "SET": "train.epochs=7 train.batch=4",
    }
    other = notebook_project(outside, competition="sample", recipe=None)
    assert (other.competition.name, other.workspace.root) == ("drawn", Path("there", "drawn"))
    assert {(item.train.epochs, item.train.batch) for item in other.experiments} == {(7, 4)}
    auto = place / "work" / "drawn" / "recipes" / "auto-7.yaml"  # written before: it is not chosen again
    auto.parent.mkdir(parents=True)
    auto.write_text("extends: sample\n")
    left = {"COMPETITION": "drawn.yaml", "RECIPE": "", "MINUTES": "7"}
    assert notebook_project(left, recipe="sample").recipe.name == "auto-7"
    assert notebook_project({}).recipe.name == "sample"
    assert Path.cwd() == place


def test_a_notebook_that_starts_in_its_folder_works_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    assert notebook_project({}).workspace.root == Path("work", "sample")
    assert Path.cwd() == FOLDER.parent


def test_views_are_the_boxes_with_their_margin(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (80, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(4)]})
    table[["x0", "y0", "x1", "y1"]] = [10.0, 5.0, 110.0, 65.0]
    seen = thumbnails(table, np.array([3, 0]), tmp_path)
    box = np.array([10.0, 5.0, 110.0, 65.0])
    for picture, row in zip(seen, (3, 0), strict=True):
        assert picture.shape == (132, 220, 3) and picture.shape[1] <= SIZE[0]
        np.testing.assert_array_equal(picture, prepare(tmp_path / table["path"][row], box, MARGIN, (220, 132)))
    assert not np.array_equal(*seen)


def test_a_grid_shows_every_picture_under_its_title_and_mark() -> None:
    pictures = [np.full((20, 30 + number, 3), number, dtype=np.uint8) for number in range(5)]
    titles = ["a", "two\nlines", "price $1$", "x" * 60, "e"]
    figure = draw_grid(pictures, titles, columns=2, right=[None, True, False, None, None])
    assert len(figure.axes) == 5
    for axes, picture in zip(figure.axes, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(axes.get_images()[0].get_array()), picture)
    shown = [axes.get_title() for axes in figure.axes]
    assert shown[:3] == ["a", "✓ two\nlines", "✗ price \\$1\\$"]
    assert shown[3].endswith("…") and len(shown[3]) < 40
    places = [axes.get_subplotspec().get_geometry()[:3] for axes in figure.axes]
    assert places == [(3, 2, number) for number in range(5)]


@pytest.mark.parametrize(("titles", "right"), [(["a"], None), (["a", "b"], [True]), ([], None)])
def test_a_grid_refuses_numbers_that_differ(titles: list[str], right: list[bool | None] | None) -> None:
    with pytest.raises(WhaleidError, match=r"2 images, \d titles, \d marks"):
        draw_grid([np.zeros((2, 2, 3), np.uint8)] * 2, titles, right=right)


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(WhaleidError, match="0 images"):
        draw_grid([], [])
