"""Configuration files: found by name or path, merged over what they extend, checked, or refused in one line.

Experiments extend one another (`extends: default`): omegaconf merges, pydantic checks.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from whaleid.config import Competition, Experiment, Model, PretextExperiment, Recipe, renamed
from whaleid.config.settings import Settings, read_settings, repository_root
from whaleid.utils.errors import WhaleidError

Checked = TypeVar("Checked", bound=Model)


def config_path(kind: Literal["competitions", "experiments", "recipes"], name: str, near: Path | None = None) -> Path:
    """Path of a YAML given by name (`configs/<kind>/<name>.yaml`) or by path.

    near: folder searched first, so that a recipe finds experiments lying beside it.
    """
    folder = repository_root() / "configs" / kind
    if name.endswith((".yaml", ".yml")):
        given = Path(name).expanduser()
        tries = [given] if given.is_absolute() else [(near or Path.cwd()) / given, Path.cwd() / given]
    else:
        tries = [parent / f"{name}.yaml" for parent in ([near] if near else []) + [folder]]
    for path in tries:
        if path.is_file():
            return path.resolve()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    guess = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{guess[0]}'?" if guess else f"known: {', '.join(known)}"
    raise WhaleidError(
        f"{kind[:-1]} '{name}' not found (looked for {tries[0]}); {hint}, or give the path of a YAML file"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file as plain dictionaries."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise WhaleidError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise WhaleidError(f"{path}: a mapping of keys to values is expected, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def load_competition(name: str, settings: Settings | None = None) -> Competition:
    """Competition by name or path; its `root` is made absolute.

    A relative root is looked for from the repository (`data/...` in RAW_DATA_DIR) where the YAML is one of its own,
    else from the YAML's folder first. settings: None: those of SETTINGS.json.
    """
    path = config_path("competitions", name)
    competition = _checked(Competition, read_yaml(path), path)
    root = competition.root.expanduser()
    if not root.is_absolute():
        places = [(settings or read_settings()).data_root(root), path.parent / root]
        if not path.is_relative_to(repository_root() / "configs"):
            places.reverse()
        root = next((place for place in places if place.exists()), places[0])
    return competition.model_copy(update={"root": root.resolve()})


def load_experiment(name: str, overrides: dict[str, Any] | None = None, near: Path | None = None) -> Experiment:
    """Experiment by name or path, merged over what it extends, then over dotted `overrides`."""
    path = config_path("experiments", name, near)
    return _checked(Experiment, _merged(path, overrides or {}), path)


def load_recipe(name: str) -> tuple[Recipe, list[Experiment]]:
    """Recipe by name or path, with its experiments (the recipe's `set` applied)."""
    return load_recipe_with(name, {})


def load_recipe_with(name: str, overrides: dict[str, Any]) -> tuple[Recipe, list[Experiment]]:
    """As `load_recipe`, with further overrides (SET) laid over the recipe's own."""
    path = config_path("recipes", name)
    content = read_yaml(path)
    content["name"] = path.stem
    recipe = _checked(Recipe, content, path)
    for message in renamed.old_key_messages(recipe.set, renamed.EXPERIMENT):
        raise WhaleidError(f"{path}: set: {message}")
    merged = {**recipe.set, **overrides}
    experiments = [load_experiment(item, merged, near=path.parent) for item in recipe.experiments]
    names = [experiment.name for experiment in experiments]
    if len(set(names) | set(recipe.sources)) < len(names) + len(recipe.sources):
        raise WhaleidError(f"{path}: two sources of the recipe have one name: {names + list(recipe.sources)}")
    sources = {key: str((path.parent / Path(value).expanduser()).resolve()) for key, value in recipe.sources.items()}
    return recipe.model_copy(update={"set": merged, "sources": sources}), experiments


def load_pretext(name: str, recipe: Recipe, experiments: list[Experiment]) -> PretextExperiment | None:
    """The experiment of the recipe's `pretrain`, None where it has none.

    name: the recipe's; recipe, experiments: as `load_recipe_with` gives them. Overrides reach the pretraining too, but
    for those of `head` and `sampler`, which are about labels. Raises WhaleidError where an experiment that would
    start from its backbone has another one, and where there is no such experiment.
    """
    if recipe.pretrain is None:
        return None
    path = config_path("recipes", name)
    place = config_path("experiments", recipe.pretrain.experiment, path.parent)
    overrides = {key: value for key, value in recipe.set.items() if key.split(".")[0] not in ("head", "sampler")}
    pretext = _checked(PretextExperiment, _merged(place, overrides), place)
    followers = [experiment for experiment in experiments if not experiment.model.names_file]
    if not followers:
        raise WhaleidError(f"{path}: no experiment starts from what `pretrain` trains: each names a file of its own")
    for experiment in followers:
        if experiment.model.backbone != pretext.model.backbone:
            raise WhaleidError(
                f"{path}: experiment {experiment.name} is a {experiment.model.backbone}, but `pretrain` trains a "
                f"{pretext.model.backbone}: give them one model.backbone, or the experiment model.weights of its own"
            )
    return pretext


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["image.width=128", ...]` as a mapping of dotted keys to values read as YAML."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, separator, _ = pair.partition("=")
        if not separator or not key.strip():
            raise WhaleidError(f"SET '{pair}': expected key=value, for example image.width=128")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([pair]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise WhaleidError(f"SET '{pair}': {' '.join(str(error).split())}") from error
        overrides[key] = _leaf(parsed, key)
    for message in renamed.old_key_messages(overrides, {**renamed.EXPERIMENT, **renamed.RECIPE}):
        raise WhaleidError(f"SET: {message}")
    return overrides


def override(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Copy of nested `content` with the dotted `key` set to `value`."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**content, head: value}
    inner = content.get(head)
    if not isinstance(inner, dict):
        raise WhaleidError(f"SET {key}: '{head}' is not a group of settings; groups: {', '.join(sorted(content))}")
    return {**content, head: override(inner, rest, value)}


def _leaf(parsed: Any, key: str) -> Any:
    for part in key.split("."):
        parsed = parsed[part]
    return parsed


def _merged(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Content of an experiment's YAML over what it extends, under dotted `overrides`."""
    merged = _extended(path, ())
    for key, value in overrides.items():
        merged = override(merged, key, value)
    return {**merged, "name": path.stem}


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise WhaleidError(f"{path}: extends itself through {' -> '.join(item.stem for item in seen)}")
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    base = _extended(config_path("experiments", str(parent), path.parent), (*seen, path))
    if "head" in content:  # another head brings its own settings: nothing of the parent's may linger
        base = {key: value for key, value in base.items() if key != "head"}
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(content)))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


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
        raise WhaleidError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{place}'; remove it or mend its spelling"
    if problem["type"] == "missing":
        return f"key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem.get("input"), dict) else f" (found {problem.get('input')!r})"
    return f"{place}: {message}{shown}" if place else message
