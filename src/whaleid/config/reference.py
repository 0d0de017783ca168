"""docs/configuration.md: every key of every YAML file, generated from the typed models.

`python -m whaleid.config.reference docs/configuration.md` writes it; `make docs` does so.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from whaleid.config import Competition, Experiment, PretextExperiment, Recipe
from whaleid.config.files import config_path, read_yaml
from whaleid.config.keys import models_in

NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "any value"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
REQUIRED = object()
HEADER = "| key | type | default | meaning |\n|---|---|---|---|"


def reference() -> str:
    """The whole page as Markdown."""
    defaults = read_yaml(config_path("experiments", "default"))
    parts = [
        "# Configuration",
        "Generated from the typed models in `src/whaleid/config/` by `make docs`; do not edit. An unknown key is an "
        "error. `--set key=value` (`SET=` of make) overrides any key of experiments and recipes.",
        "## Competition",
        *_sections(Competition, "", {}),
        "## Experiment",
        "The defaults are those of `configs/experiments/default.yaml`, which an experiment takes over with "
        "`extends: default`. `extends` names any other experiment.",
        *_sections(Experiment, "", defaults),
        "### Heads without labels",
        "For an experiment that a recipe's `pretrain` names.",
        *_sections(PretextExperiment, "", {}, only="head"),
        "## Recipe",
        "`extends` names another recipe: its keys are taken over, groups merged.",
        *_sections(Recipe, "", {}),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(
    model: type[BaseModel], prefix: str, defaults: dict[str, Any], only: str | None = None, seen: tuple[Any, ...] = ()
) -> Iterator[str]:
    """The table of a model's keys, then those of the groups below it."""
    sentences, types = field_sentences(model), get_type_hints(model, include_extras=True)
    fields = {name: field for name, field in model.model_fields.items() if only in (None, name)}
    if only is None:
        kept = [name for name in fields if prefix or name != "name" or model is Competition]  # else the file's name
        rows = [
            _row(f"{prefix}{name}", types[name], fields[name], defaults.get(name, REQUIRED), sentences[name])
            for name in kept
        ]
        yield "\n".join([HEADER, *rows])
    described: dict[type[BaseModel], str] = {}
    for name in fields:
        labels = model is not PretextExperiment
        beside = [group for group in models_in(types[name]) if getattr(group, "needs_labels", labels) == labels]
        for group in beside:
            if group in seen:
                continue
            choice = get_args(group.model_fields["name"].annotation) if len(beside) > 1 else ()
            yield f"### `{prefix}{name}`" + (f": {', '.join(f'`{item}`' for item in choice)}" if choice else "")
            if group in described:
                yield f"The same keys as `{described[group]}`."
                continue
            described[group] = f"{prefix}{name}"
            if group.__doc__:
                yield " ".join(inspect.cleandoc(group.__doc__).split("Attributes\n")[0].split())
            inner = defaults.get(name) if isinstance(defaults.get(name), dict) and not choice else {}
            yield from _sections(group, f"{prefix}{name}.", inner or {}, None, (*seen, model, *beside))


def _row(key: str, annotation: Any, field: FieldInfo, default: Any, sentence: str) -> str:
    if default is REQUIRED and not field.is_required():
        default = field.get_default(call_default_factory=True)
    if key == "head.name":
        sentence = "Selects this head."
    groups = models_in(annotation)
    if groups and not sentence and len(groups) == 1:
        sentence = " ".join(inspect.cleandoc(groups[0].__doc__ or "").split("\n\n")[0].split())
    if isinstance(default, BaseModel) or (groups and isinstance(default, dict) and "name" not in default):
        text = "see below"
    elif default is REQUIRED:
        text = "required"
    else:
        text = f"`{_yaml(default)}`" if default != "" else '`""`'
    cells = (f"`{key}`", type_text(annotation), text, sentence)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def type_text(annotation: Any, metadata: Any = ()) -> str:
    """A type and its bounds in words: `integer ≥ 1 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [item for extra in arguments[1:] for item in getattr(extra, "metadata", [extra])]
        return type_text(arguments[0], [*constraints, *metadata])
    if origin is Literal:
        text = " or ".join(f"`{item}`" for item in arguments)
    elif origin is list:
        text = f"list of {type_text(arguments[0])}"
    elif origin is dict:
        text = f"mapping: {type_text(arguments[0])} to {type_text(arguments[1])}"
    elif arguments:
        texts = dict.fromkeys("null" if part is type(None) else type_text(part) for part in arguments)
        text = " or ".join(texts)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "group"
    else:
        text = NAMES.get(annotation, str(annotation))
    bounds = [
        f"{sign} {getattr(item, name):g}" for item in metadata for name, sign in BOUNDS.items() if hasattr(item, name)
    ]
    return " ".join([text, ", ".join(bounds)]).strip()


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def field_sentences(model: type[BaseModel]) -> dict[str, str]:
    """What is said of each field: the string below it, or its entry under `Attributes` of the class."""
    sentences = dict.fromkeys(model.model_fields, "")
    for parent in reversed(model.__mro__):
        if parent is not BaseModel and issubclass(parent, BaseModel):
            sentences.update({key: text for key, text in _own_sentences(parent).items() if key in sentences})
    return sentences


def _own_sentences(model: type[BaseModel]) -> dict[str, str]:
    found = {}
    _, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("Attributes\n----------\n")
    for name, text in re.findall(r"^(\w+) ?:.*\n((?:    .*\n?|\n)*)", attributes, flags=re.MULTILINE):
        found[name] = " ".join(text.split())
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
