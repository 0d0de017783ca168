"""The Python interface: its example runs as it stands, and importing it costs nothing."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from drawn import draw_sample
from test_cli import COMPETITION, EXPERIMENT, RECIPE

import whaleid
from whaleid.config.settings import repository_root
from whaleid.utils.errors import WhaleidError


def example() -> str:
    """The code in the docstring of `whaleid`."""
    lines = (whaleid.__doc__ or "").split("from Python:\n\n")[1]
    return dedent(lines)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw_sample(tmp_path / "turtles", identities=8, train_images=40, test_images=10)
    (tmp_path / "turtles.yaml").write_text(COMPETITION.format(root="turtles"))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    code, shipped = example(), {"minutes=30": 'recipe="recipe.yaml"'}
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    for own, small in shipped.items():
        assert own in code
        code = code.replace(own, small)
    names: dict = {}
    exec(compile(code, "example", "exec"), names)
    printed = capsys.readouterr().out
    images, vectors, ladder, candidates = (names[name] for name in ("images", "vectors", "ladder", "candidates"))
    assert len(images) == 50
    assert vectors.shape == (50, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert str(ladder["map"].iloc[-1])[:6] in printed
    assert ladder["low"].le(ladder["map"]).all()
    assert set(candidates["query"]) == set(images["image"][images["split"] == "test"])
    assert candidates["source"].nunique() == 1
    assert names["path"].is_file()
    labelled = whaleid.rank(names["project"], split="train", ranker=ladder["ranker"].iloc[0])
    assert set(labelled["query"]) <= set(images["image"][images["split"] == "train"])
    assert [path.name for path in whaleid.train(names["project"], "tiny", 1)] == ["fold1"]


def test_the_page_shows_the_same_example() -> None:
    page = (repository_root() / "docs" / "python.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert block.strip() == example().strip()


def test_import_is_fast_and_lazy() -> None:
    script = (
        "import sys, whaleid; sys.exit(any(name in sys.modules for name in ('numpy', 'pandas', 'torch', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert set(whaleid.__all__) <= set(dir(whaleid))
    assert all(callable(getattr(whaleid, name)) for name in whaleid.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        whaleid.fly  # noqa: B018


def test_overrides_of_every_type_arrive() -> None:
    values = {"train.epochs": 3, "combine.stack": None, "features.scales": [1.0, 1.5], "image.mirror_identities": True}
    project = whaleid.open_project("sample", overrides={**values, "model.weights": "random"})
    assert project.recipe.combine.stack is None
    for experiment in project.experiments:
        assert (experiment.train.epochs, experiment.features.scales) == (3, [1.0, 1.5])
        assert (experiment.image.mirror_identities, experiment.model.weights) == (True, "random")
    with pytest.raises(WhaleidError, match=r"did you mean 'train\.epochs'"):
        whaleid.open_project("sample", overrides={"train.epoch": 3})
