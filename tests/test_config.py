"""Configurations: every shipped YAML loads; every mistake is one line that names file and key."""

from pathlib import Path

import pytest

from whaleid.config import Recipe
from whaleid.config.files import load_competition, load_experiment, load_recipe, parse_overrides, read_yaml
from whaleid.config.keys import known_keys
from whaleid.config.reference import reference
from whaleid.config.settings import config_root, repository_root
from whaleid.utils.errors import WhaleidError

CONFIGS = config_root()


@pytest.mark.parametrize("path", sorted((CONFIGS / "competitions").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_competition_loads(path: Path) -> None:
    assert load_competition(path.stem).name == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_loads(path: Path) -> None:
    name = path.relative_to(CONFIGS / "experiments").with_suffix("").as_posix()
    if name == "self/base":
        pytest.skip("what the experiments without labels share: it has no head of theirs")
    if name.startswith("self/"):
        with pytest.raises(WhaleidError, match="trains without labels"):
            load_experiment(name)
        return
    assert load_experiment(name).name == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_with_its_experiments(path: Path) -> None:
    recipe, experiments = load_recipe(path.stem)
    assert [Path(name).stem for name in recipe.experiments] == [experiment.name for experiment in experiments]


def test_gold_has_the_29_networks() -> None:
    _, experiments = load_recipe("gold")
    assert len({experiment.model.backbone for experiment in experiments}) >= 28
    assert len(experiments) == 29


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("image.widht=3", "unknown key 'image.widht'; did you mean 'image.width'"),
        ("head.margn=1", "unknown key 'head.margn'; did you mean 'head.margin'"),
        ("combine.stak=null", "unknown key 'combine.stak'; did you mean 'combine.stack'"),
        ("fold=4", "neither experiments nor recipes have 'fold'; did you mean 'folds'"),
        ("epochs=4", "neither experiments nor recipes have 'epochs'; did you mean 'train.epochs'"),
        ("folds.x=4", "'folds' is a value, not a group"),
        ("folds=[1]", "folds: "),
        ("head.margin=9", "less than or equal to 2.33"),
        ("foo.bar=1", "neither experiments nor recipes have 'foo'; known keys: .*combine"),
        ("train", "expected key=value"),
        ("train.batch=1", "greater than or equal to 2"),
        ("train.images_seen=10", "train.epochs or train.images_seen"),
        ("head.name=nonsense", "nonsense"),
    ],
)
def test_a_wrong_override_is_one_clear_line(pair: str, said: str) -> None:
    with pytest.raises(WhaleidError, match=said) as caught:
        load_recipe("sample", parse_overrides([pair]))
    assert "\n" not in str(caught.value)


def test_overrides_reach_every_experiment() -> None:
    _, experiments = load_recipe("sample", parse_overrides(["train.epochs=3", "image.width=64"]))
    assert {(experiment.train.epochs, experiment.image.width) for experiment in experiments} == {(3, 64)}


def test_overrides_reach_the_recipe() -> None:
    pairs = [
        "combine.stack=null",
        "combine.concat.whiten=99",
        "folds=4",
        "train.epochs=3",
        "combine.classifier.epochs=7",
    ]
    recipe, experiments = load_recipe("sample", parse_overrides(pairs))
    assert (recipe.combine.stack, recipe.combine.concat.whiten, recipe.folds) == (None, 99, 4)
    assert recipe.combine.classifier is not None
    assert recipe.combine.classifier.epochs == 7
    assert {experiment.train.epochs for experiment in experiments} == {3}
    assert recipe.set == {"train.epochs": 3}
    opened, _ = load_recipe("sample", parse_overrides(["combine.rerank.expansion=null"]))
    assert opened.combine.rerank is not None  # was null: an override inside of it opens it
    assert opened.combine.rerank.expansion is None


def test_recipes_extend_one_another(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "net.yaml").write_text("extends: default\nhead: {name: softmax}\n")
    text = "folds: 4\nexperiments: [net]\nsources: {other: features}\ncombine: {concat: {whiten: 8}, stack: {}}\n"
    (tmp_path / "base" / "parent.yaml").write_text(text)
    (tmp_path / "child.yaml").write_text("extends: base/parent.yaml\nfolds: 5\ncombine: {stack: null}\n")
    recipe, experiments = load_recipe(str(tmp_path / "child.yaml"))
    assert (recipe.name, recipe.folds, recipe.combine.concat.whiten, recipe.combine.stack) == ("child", 5, 8, None)
    assert [experiment.name for experiment in experiments] == ["net"]
    assert recipe.sources == {"other": str(tmp_path / "base" / "features")}
    (tmp_path / "named.yaml").write_text("extends: sample\nfolds: 2\n")
    assert load_recipe(str(tmp_path / "named.yaml"))[0].experiments == load_recipe("sample")[0].experiments


def test_another_head_brings_its_own_settings_alone(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: default\nhead: {name: arcface, margin: 0.5}\n")
    (tmp_path / "child.yaml").write_text("extends: base\nhead: {name: softmax}\n")
    assert load_experiment("child", {}, tmp_path).head.model_dump() == {
        "name": "softmax",
        "smoothing": 0.0,
        "focal": 0.0,
    }


def test_what_a_file_says_wins_over_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: default\ntrain: {lr: 0.5, batch: 12}\n")
    (tmp_path / "child.yaml").write_text("extends: base\ntrain: {lr: 0.25}\n")
    experiment = load_experiment(str(tmp_path / "child.yaml"))
    assert (experiment.train.lr, experiment.train.batch, experiment.name) == (0.25, 12, "child")


def test_what_is_done_to_a_files_content_does_not_reach_who_reads_it_next(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("a: {b: [1]}")
    read_yaml(path)["a"]["b"].append(2)
    assert read_yaml(path) == {"a": {"b": [1]}}
    path.write_text("a: 3")
    assert read_yaml(path) == {"a": 3}


def test_a_circle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    with pytest.raises(WhaleidError, match="extends itself"):
        load_experiment("a", {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "a mapping of keys"),
        ("name: [1\n", "not readable as YAML"),
        ("name: x\nroot: .\n", "key 'train' is missing"),
        ("name: x\nroot: .\ntrain: {csv: a, images: b, image: c}\n", "train.identity is missing"),
        (
            "name: x\nroot: .\ntrain: {csv: a, images: b, image: c, identity: d}\ncolour: 1\n",
            "unknown key 'colour'",
        ),
        ("name: ../x\nroot: .\ntrain: {csv: a, images: b, image: c, identity: d}\n", "name"),
    ],
)
def test_a_wrong_competition_names_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(WhaleidError, match=said) as caught:
        load_competition(str(path))
    assert str(path) in str(caught.value)


def test_a_name_that_is_not_known_gets_a_hint() -> None:
    with pytest.raises(WhaleidError, match="did you mean 'humpback'"):
        load_competition("humpbak")


def test_a_competition_elsewhere_finds_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nroot: photographs\ntrain: {csv: a, images: b, image: c, identity: d}\n")
    assert load_competition(str(path)).root == tmp_path / "photographs"


def test_its_own_folder_wins_over_one_of_the_same_name_in_the_repository(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nroot: configs\ntrain: {csv: a, images: b, image: c, identity: d}\n")
    assert CONFIGS.is_dir()
    assert load_competition(str(path)).root == tmp_path / "configs"


def test_a_recipe_finds_experiments_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: default\ntrain: {epochs: 7}\n")
    (tmp_path / "recipe.yaml").write_text("folds: 2\nexperiments: [mine]\n")
    _, experiments = load_recipe(str(tmp_path / "recipe.yaml"))
    assert experiments[0].train.epochs == 7


def test_the_page_of_all_keys_is_up_to_date() -> None:
    page = repository_root() / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "run `make docs`, or python -m whaleid.config.reference"


def test_the_page_says_type_default_and_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert {len(row) for row in rows} == {4}
    assert [row[0] for row in rows if not row[3].strip("| ")] == []
    cells = {row[0].removeprefix("| ").strip("`"): row[1:] for row in rows}
    assert cells["folds"][:2] == ["integer ≥ 2", "required"]
    assert cells["train.epochs"][:2] == ["integer ≥ 0 or null", "`20`"]
    assert cells["combine.concat.whiten"][2].startswith("Largest number of dimensions")
    assert cells["combine.stack"][1] == "`null`"
    assert set(known_keys(Recipe)) - {"name"} <= set(cells)
