"""Keys of older YAML files: what they are called now, or why they are gone.

A table for each kind of file. To rename a key, add `"old.dotted.key": "new.dotted.key"`. To remove one, add
`"old.dotted.key": "a sentence that says what to do"`. To remove one value of a key, add `"key=value": "a sentence"`.
Keys below `head` hold for every head, also inside `divide` and `sum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COMPETITION: dict[str, str] = {}

EXPERIMENT: dict[str, str] = {}

RECIPE: dict[str, str] = {}


def old_key_messages(content: dict[str, Any], table: dict[str, str]) -> Iterator[str]:
    """One message for each key (or value) of `content` that `table` lists.

    Parameters
    ----------
    content : dict
        A YAML file or overrides, nested or with dotted keys.
    table : dict
        COMPETITION, EXPERIMENT or RECIPE.

    Yields
    ------
    str
        What is old and what to write instead, without the name of the file.
    """
    for key, value in _flat(content):
        for old in (key, f"{key}={_as_yaml(value)}"):
            if old in table:
                yield _message(old, table[old])


def _message(old: str, new: str) -> str:
    if " " in new:
        return f"'{old}' was removed: {new}"
    return f"'{old}' was renamed: write '{new}'"


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, groups before their members; heads inside of heads appear as `head`."""
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        for inner in (".parts.head", ".learner"):
            dotted = dotted.removesuffix(inner) if dotted.endswith(f"head{inner}") else dotted
        yield dotted, value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _flat(item, f"{dotted}.")


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
