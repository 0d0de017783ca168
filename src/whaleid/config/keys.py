"""The dotted keys of a model: for suggestions, for overrides, and for docs/configuration.md."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from whaleid.config.heads import HEADS, HeadSettings


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's type names, in its unions, lists and `Annotated` too; for a head, all heads'."""
    if annotation is HeadSettings:
        return list(dict.fromkeys(entry for entry in HEADS.values() if not isinstance(entry, str)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def walk_fields(model: type[BaseModel], prefix: str = "", within: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted key and `FieldInfo` of every field, groups before their members; a model inside itself is not repeated."""
    hints = get_type_hints(model)  # pydantic leaves some of its own annotations unresolved
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        yield key, field
        for inner in models_in(hints[name]):
            if inner not in within:
                yield from walk_fields(inner, f"{key}.", (*within, model, inner))


def known_keys(*models: type[BaseModel]) -> dict[str, FieldInfo]:
    """All dotted keys of some models."""
    return {key: field for model in models for key, field in walk_fields(model)}


def suggestion(key: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for a misspelt key, else the keys of the same group, or nothing."""
    known = list(dict.fromkeys(known))
    last = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    close = close or sorted(
        (item for item in known if item.rpartition(".")[2] == last), key=lambda item: item.count(".")
    )
    if close:
        return f"did you mean '{close[0]}'?"
    group = key.rpartition(".")[0]
    beside = [item for item in known if item.rpartition(".")[0] == group] or [item for item in known if "." not in item]
    return f"known keys: {', '.join(beside)}"
