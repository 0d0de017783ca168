"""Configuration files: found by name or path, merged over the file that they extend, checked by the typed models.

Experiments and recipes extend one another (`extends: default`). An error is one line with the file and the key.
"""

from __future__ import annotations

import difflib
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from whaleid.config import Competition, Experiment, Model, PretextExperiment, Recipe, renamed
from whaleid.config.keys import known_keys, suggestion
from whaleid.config.settings import Settings, config_root, read_settings
from whaleid.utils.errors import WhaleidError

Checked = TypeVar("Checked", bound=Model)
Kind = Literal["competitions", "experiments", "recipes"]


def config_path(kind: Kind, name: str, *near: Path) -> Path:
    """Path of a YAML file that is given by name (`configs/<kind>/<name>.yaml`) or by path.

    Parameters
    ----------
    kind : {"competitions", "experiments", "recipes"}
        Folder of `configs/`.
    name : str
        A name, or a path that ends in .yaml or .yml.
    *near : Path
        Folders that are searched first, so that a recipe finds the experiments beside it.

    Raises
    ------
    WhaleidError
        If there is no such file; the message suggests a name.
    """
    folder = config_root() / kind
    if name.endswith((".yaml", ".yml")):
        given = Path(name).expanduser()
        tries = [given] if given.is_absolute() else [place / given for place in (*near, Path.cwd())]
    else:
        tries = [place / f"{name}.yaml" for place in (*near, folder)]
    for path in tries:
        if path.is_file():
            return path.resolve()
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    guess = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{guess[0]}'?" if guess else f"known: {', '.join(known)}"
    raise WhaleidError(
        f"{kind[:-1]} '{name}' not found (looked for {tries[0]}); {hint}, or give the path of a YAML file"
    )


AUTO = "auto"
"""The recipe that is chosen by data, machine and minutes (`whaleid.auto`), and written as a YAML."""


def default_recipe(competition: str) -> str:
    """Recipe of a competition for which none was named."""
    return "sample" if competition == "sample" else AUTO


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file as plain dictionaries.

    `${...}` stays text, because it could put a variable of the environment, a key say, into what is published.
    """
    try:
        content = deepcopy(_parsed(path, path.read_bytes()))
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        raise WhaleidError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise WhaleidError(f"{path}: a mapping of keys to values is expected, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


@lru_cache(maxsize=64)
def _parsed(path: Path, written: bytes) -> Any:
    """Content of a YAML file; each of a recipe's experiments asks for `default.yaml`, which takes 0.05 s to parse."""
    _refuse_traps(path, written)
    return OmegaConf.to_container(OmegaConf.load(BytesIO(written)), resolve=False)


def _refuse_traps(path: Path, written: bytes) -> None:
    """Refuse aliases, a few of which nested stand for billions of values, and NUL, which no name of a file holds."""
    for token in yaml.scan(written):
        place = f"{path}: row {token.start_mark.line + 1}"
        if isinstance(token, yaml.AliasToken):
            raise WhaleidError(f"{place}: alias '*{token.value}' is not read; write its values out")
        if isinstance(token, yaml.ScalarToken) and "\0" in token.value:
            raise WhaleidError(f"{place}: a value holds the character NUL; remove it")


def load_competition(name: str, settings: Settings | None = None) -> Competition:
    """Competition by name or path, its `root` made absolute.

    A relative root of one of the package's own competitions counts from the repository (`data/...` from
    RAW_DATA_DIR), that of any other YAML from the YAML's folder first. settings: None reads SETTINGS.json.
    """
    path = config_path("competitions", name)
    competition = _checked(Competition, read_yaml(path), path)
    root = competition.root.expanduser()
    if not root.is_absolute():
        places = [(settings or read_settings()).data_root(root), path.parent / root]
        if not path.is_relative_to(config_root()):
            places.reverse()
        root = next((place for place in places if place.exists()), places[0])
    return competition.model_copy(update={"root": root.resolve()})


def load_experiment(name: str, overrides: dict[str, Any] | None = None, *near: Path) -> Experiment:
    """Experiment by name or path, merged over the file that it extends, then under the dotted `overrides`.

    Overrides that concern training do not reach a frozen network.
    """
    path = config_path("experiments", name, *near)
    content = _merged("experiments", path, {})[0]
    out_of_reach = _OF_TRAINING if content.get("train", {}).get("epochs") == 0 else ()
    for key, value in (overrides or {}).items():
        if not key.startswith(out_of_reach):
            content = override(content, key, value)
    return _checked(Experiment, content, path)


_OF_TRAINING = ("train", "head", "sampler", "augment", "model.neck")


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> tuple[Recipe, list[Experiment]]:
    """Recipe by name or path, with its experiments.

    Parameters
    ----------
    name : str
        Name in configs/recipes, or path.
    overrides : dict, optional
        Dotted key -> value (`parse_overrides`). Keys of recipes override the recipe; the others override all
        experiments, after the recipe's own `set`.

    Raises
    ------
    WhaleidError
        For a file that is missing or wrong, an unknown key, or two sources of one name.
    """
    path = config_path("recipes", name)
    of_recipe, of_experiments = _split(overrides or {})
    content, folders = _merged("recipes", path, of_recipe)
    recipe = _checked(Recipe, content, path)
    for message in renamed.old_key_messages(recipe.set, renamed.EXPERIMENT):
        raise WhaleidError(f"{path}: set: {message}")
    merged = {**recipe.set, **of_experiments}
    experiments = [load_experiment(item, merged, *folders) for item in recipe.experiments]
    for experiment in experiments:
        _check_adapter(experiment, experiments, path)
    names = [experiment.name for experiment in experiments]
    if len(set(names) | set(recipe.sources)) < len(names) + len(recipe.sources):
        raise WhaleidError(f"{path}: two sources of the recipe have the same name: {names + list(recipe.sources)}")
    return recipe.model_copy(update={"set": merged}), experiments


def _check_adapter(adapter: Experiment, experiments: list[Experiment], path: Path) -> None:
    """Raise WhaleidError unless the recipe has the frozen network of an adapter, with the same input and features."""
    if adapter.adapter_of is None:
        return
    frozen = {item.name: item for item in experiments if item.frozen}.get(adapter.adapter_of)
    if frozen is None:
        raise WhaleidError(
            f"{path}: experiment {adapter.name} is an adapter of {adapter.adapter_of}, which is no frozen experiment "
            "of the recipe; add it to `experiments`"
        )
    for name, own, other in (
        ("model.backbone", adapter.model.backbone, frozen.model.backbone),
        ("model.weights", adapter.model.weights, frozen.model.weights),
        ("model.pool", adapter.model.pool, frozen.model.pool),
        ("image", adapter.image, frozen.image),
        ("features", adapter.features, frozen.features),
    ):
        if own != other:
            raise WhaleidError(
                f"{path}: experiment {adapter.name}: {name} differs from that of {frozen.name}, whose features it "
                "reads; leave it out"
            )


def load_pretext(name: str, recipe: Recipe, experiments: list[Experiment]) -> PretextExperiment | None:
    """The experiment of the recipe's `pretrain`; None for a recipe without.

    Parameters
    ----------
    name : str
        Of the recipe.
    recipe, experiments
        As `load_recipe` returns them. The recipe's overrides also apply to pretraining, except those of `head` and
        `sampler`, which concern labels.

    Raises
    ------
    WhaleidError
        If no experiment would start from the pretrained backbone, or one that would has another backbone.
    """
    if recipe.pretrain is None:
        return None
    path = config_path("recipes", name)
    place = config_path("experiments", recipe.pretrain.experiment, path.parent)
    overrides = {key: value for key, value in recipe.set.items() if key.split(".")[0] not in ("head", "sampler")}
    pretext = _checked(PretextExperiment, _merged("experiments", place, overrides)[0], place)
    followers = [experiment for experiment in experiments if not experiment.model.names_file]
    if not followers:
        raise WhaleidError(
            f"{path}: `pretrain` would be of no use: the model.weights of each experiment names a file of its own"
        )
    for experiment in followers:
        if experiment.model.backbone != pretext.model.backbone:
            raise WhaleidError(
                f"{path}: experiment {experiment.name} has backbone {experiment.model.backbone}, but `pretrain` trains "
                f"{pretext.model.backbone}: use the same model.backbone, or give the experiment model.weights"
            )
    return pretext


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["image.width=128", ...]` as a mapping of dotted keys to values, each value read as YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, separator, _ = pair.partition("=")
        if not separator or not key.strip():
            raise WhaleidError(f"SET '{pair}': expected key=value, for example image.width=128")
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([pair]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise WhaleidError(f"SET '{pair}': {' '.join(str(error).split())}") from error
        for part in key.split("."):
            parsed = parsed[part]
        overrides[key] = parsed
    for message in renamed.old_key_messages(overrides, {**renamed.EXPERIMENT, **renamed.RECIPE}):
        raise WhaleidError(f"SET: {message}")
    return overrides


def override(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Copy of nested `content` with the dotted `key` set to `value`; groups on the way that are null are opened."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**content, head: value}
    inner = content.get(head)
    if not isinstance(inner, dict | None):
        raise WhaleidError(f"SET {key}: '{head}' is a value, not a group of settings")
    return {**content, head: override(inner or {}, rest, value)}


_OF_RECIPE = set(Recipe.model_fields) - {"name", "set"}
_OF_EXPERIMENT = (set(Experiment.model_fields) | set(PretextExperiment.model_fields)) - {"name"}


def _split(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of the recipe, and those of its experiments."""
    of_recipe, of_experiments = {}, {}
    for key, value in overrides.items():
        first = key.split(".")[0]
        if first in _OF_RECIPE:
            of_recipe[key] = value
        elif first in _OF_EXPERIMENT:
            of_experiments[key] = value
        else:
            known = [
                item for item in known_keys(Recipe, Experiment) if item.split(".")[0] in _OF_RECIPE | _OF_EXPERIMENT
            ]
            raise WhaleidError(f"SET {key}: neither experiments nor recipes have '{first}'; {suggestion(key, known)}")
    return of_recipe, of_experiments


def _merged(kind: Kind, path: Path, overrides: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Content of a YAML file over the file that it extends, under `overrides`; and the folders of these files."""
    merged, files = _extended(kind, path, ())
    for key, value in overrides.items():
        merged = override(merged, key, value)
    return {**merged, "name": path.stem}, [file.parent for file in files]


def _extended(kind: Kind, path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], list[Path]]:
    if path in seen:
        raise WhaleidError(f"{path}: extends itself through {' -> '.join(item.stem for item in seen)}")
    content = read_yaml(path)
    if kind == "recipes" and isinstance(
        content.get("sources"), dict
    ):  # its folders count from the file that names them
        content["sources"] = {key: _resolved(value, path.parent) for key, value in content["sources"].items()}
    parent = content.pop("extends", None) or content.get("adapter_of")
    if parent is None:
        return content, [path]
    place = config_path(kind, str(parent), path.parent)
    if parent == content.get("adapter_of"):
        content["adapter_of"] = place.stem
    base, files = _extended(kind, place, (*seen, path))
    if "head" in content:  # another head brings its own settings: none of the parent's may remain
        base = {key: value for key, value in base.items() if key != "head"}
    return _merge(base, content), [path, *files]


def _merge(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`content` over `base`: groups are merged, lists and values replaced."""
    merged = dict(base)
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _resolved(folder: Any, near: Path) -> Any:
    """A folder of features as an absolute path; what is none is left to the check of the recipe."""
    return str((near / Path(folder).expanduser()).resolve()) if isinstance(folder, str) else folder


_OLD_KEYS: dict[type[Model], dict[str, str]] = {
    Competition: renamed.COMPETITION,
    Experiment: renamed.EXPERIMENT,
    PretextExperiment: renamed.EXPERIMENT,
    Recipe: renamed.RECIPE,
}


def _checked(kind: type[Checked], content: dict[str, Any], path: Path) -> Checked:
    for message in renamed.old_key_messages(content, _OLD_KEYS[kind]):
        raise WhaleidError(f"{path}: {message}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise WhaleidError(f"{path}: {_first_problem(error, kind, content)}") from error


def _first_problem(error: ValidationError, kind: type[Model], content: dict[str, Any]) -> str:
    problem = error.errors()[0]
    place = _dotted(problem["loc"], content)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{place}'; {suggestion(place, known_keys(kind))}"
    if problem["type"] == "missing":
        return f"key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem.get("input"), dict) else f" (found {problem.get('input')!r})"
    return f"{place}: {message}{found}" if place else message


def _dotted(location: tuple[int | str, ...], content: Any) -> str:
    """Pydantic's location as a key of the file: without the names of a union's members, such as a head's."""
    parts = []
    for number, part in enumerate(location, start=1):
        if isinstance(content, dict) and part not in content and number < len(location):
            continue
        parts.append(str(part))
        content = content.get(part) if isinstance(content, dict) else None if isinstance(part, str) else content[part]
    return ".".join(parts)
