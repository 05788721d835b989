"""Options in small frozen classes, given as objects or one by one: `f(x, Trunk(dim=64))` is `f(x, dim=64)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


def option_names(kinds: Iterable[type]) -> list[str]:
    """Names of all fields of some configuration classes, in order."""
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def gather(owner: str, kinds: tuple[type, ...], objects: Iterable[Any], options: Mapping[str, Any]) -> list[Any]:
    """One object of each class, from objects and from single options by their names.

    Args:
        owner: name of the function that was called, for messages.
        kinds: the classes, frozen dataclasses whose field names do not repeat.
        objects: instances of them, each class at most once.
        options: field name -> value, of the classes that no object was given for.

    Returns:
        Instances in the order of `kinds`.

    Raises:
        TypeError: an object of another class or two of one, an unknown option, or an option of a class that was given as an object.
    """
    found: dict[type, Any] = {}
    for value in objects:
        if type(value) not in kinds:
            raise TypeError(f"{owner}() takes configuration objects of {_names(kinds)} by position. Received: {value!r}")
        if type(value) in found:
            raise TypeError(f"{owner}() takes one {type(value).__name__}. Received: {found[type(value)]} and {value}")
        found[type(value)] = value
    if unknown := [name for name in options if name not in option_names(kinds)]:
        known = "; ".join(f"{kind.__name__}: {', '.join(option_names([kind]))}" for kind in kinds)
        raise TypeError(f"{owner}() has no option '{unknown[0]}'. Options by class are {known}")
    gathered = []
    for kind in kinds:
        given = {name: options[name] for name in option_names([kind]) if name in options}
        if kind in found and given:
            raise TypeError(f"{owner}() got `{next(iter(given))}` twice: as an option, and in {kind.__name__}. Give one of the two.")
        gathered.append(found[kind] if kind in found else kind(**given))
    return gathered


def as_arguments(*objects: Any) -> dict[str, Any]:
    """Fields of some configuration objects as one dict for JSON: sequences as lists, mappings as dicts."""
    return {field.name: _plain(getattr(value, field.name)) for value in objects for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
