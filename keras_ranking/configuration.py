"""Options in small frozen classes, given as objects or one by one: `f(x, Trunk(dim=64))` is `f(x, dim=64)`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def option_names(kinds: Iterable[type]) -> list[str]:
    """Names of all fields of some configuration classes, in order."""
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def gather(function: Callable[..., Any], kinds: tuple[type, ...], objects: Iterable[Any], options: Mapping[str, Any]) -> list[Any]:
    """One object of each class, from objects and from single options by their names.

    Args:
        function: that was called, for messages.
        kinds: the classes, frozen dataclasses whose field names do not repeat.
        objects: instances of them, each class at most once.
        options: field name -> value, of the classes that no object was given for.

    Returns:
        Instances in the order of `kinds`.

    Raises:
        TypeError: an object of another class or two of one, an unknown option, or an option of a class that was given as an object.
            No message shows a value, which may be a secret.
    """
    owner, found = function.__name__, {}
    for value in objects:
        kind = type(value)
        if kind not in kinds:
            names = ", ".join(known.__name__ for known in kinds)
            hint = "Options are given by name, such as `dim=16`."
            raise TypeError(f"{owner}() takes configuration objects of {names}. {hint} Received: an object of {kind.__name__}")
        if kind in found:
            raise TypeError(f"{owner}() takes one {kind.__name__}. Received: two")
        found[kind] = value
    return _filled(function, kinds, found, options)


def gather_named(function: Callable[..., Any], given: Mapping[str, tuple[type, Any]], options: Mapping[str, Any]) -> list[Any]:
    """The same where each class has an argument of its own: argument name -> (class, object or None)."""
    found = {}
    for name, (kind, value) in given.items():
        if value is not None and type(value) is not kind:
            wanted = f"`{name}` of {function.__name__}() must be a {kind.__name__}"
            raise TypeError(f"{wanted}. Received: an object of {type(value).__name__}")
        if value is not None:
            found[kind] = value
    return _filled(function, tuple(kind for kind, _ in given.values()), found, options)


def _filled(function: Callable[..., Any], kinds: tuple[type, ...], found: Mapping[type, Any], options: Mapping[str, Any]) -> list[Any]:
    owner = function.__name__
    if unknown := [name for name in options if name not in option_names(kinds)]:
        own = [name for name, taken in inspect.signature(function).parameters.items() if taken.kind is taken.KEYWORD_ONLY]
        near = difflib.get_close_matches(unknown[0], [*own, *option_names(kinds)], n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        known = "; ".join(f"{kind.__name__}: {', '.join(option_names([kind]))}" for kind in kinds)
        raise TypeError(f"{owner}() has no option '{unknown[0]}'.{hint} Its arguments are {', '.join(own)}; options by class: {known}")
    gathered = []
    for kind in kinds:
        given = {name: options[name] for name in option_names([kind]) if name in options}
        if kind in found and given:
            raise TypeError(f"{owner}() got `{next(iter(given))}` twice: as an option, and in {kind.__name__}. Give one of the two.")
        gathered.append(found[kind] if kind in found else kind(**given))
    return gathered


def as_arguments(*objects: Any) -> dict[str, Any]:
    """Fields of some configuration objects as one dict for JSON: sequences and arrays as lists, mappings as dicts."""
    return {field.name: _plain(getattr(value, field.name)) for value in objects for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # an array, or a number of numpy
        return value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple, range)) else value
