"""Options in small frozen classes, given as objects or one by one: `f(x, Trunk(dim=64))` is `f(x, dim=64)`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def option_names(kinds: Iterable[type]) -> list[str]:
    """Names of all fields of some configuration classes, in order."""
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def check_types(hints: Mapping[str, Any], given: Mapping[str, Any], secret: bool = False) -> None:
    """Check that options have the types of their annotations: numbers of numpy are numbers, and lists, tuples and arrays are sequences.

    Args:
        hints: option -> annotation. Other annotations than numbers, texts, booleans, sequences, mappings and unions are not checked.
        given: option -> value.
        secret: show the type of a wrong value, not the value.

    Raises:
        TypeError: the option, what it must be, and what was received.
    """
    for name, value in given.items():
        kinds = _kinds(hints[name]) if name in hints else ()
        if kinds and not any(_CHECKS[kind][1](value) for kind in kinds):
            allowed = " or ".join(_CHECKS[kind][0] for kind in kinds)
            received = f"a value of type {type(value).__name__}" if secret else f"{name}={value!r}"
            raise TypeError(f"`{name}` must be {allowed}. Received: {received}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What an annotation allows, as keys of `_CHECKS`; (): anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return tuple(dict.fromkeys(kind for part in parts for kind in part)) if all(parts) else ()
    if origin is typing.Literal:
        return tuple(dict.fromkeys(type(value) for value in typing.get_args(hint)))
    kind = hint if origin is None else origin
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return (Mapping,)
    if isinstance(kind, type) and kind is not str and issubclass(kind, Iterable):
        return (Iterable,)
    return (kind,) if kind in _CHECKS else ()


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of Python or numpy; True and False are none."""
    return issubclass(type(value), numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a number, of Python or numpy; True and False are none."""
    return issubclass(type(value), numbers.Real) and not isinstance(value, bool)


_CHECKS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("an integer", is_integer),
    float: ("a number", is_real),
    bool: ("True or False", lambda value: isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")),
    str: ("a text", lambda value: isinstance(value, str)),
    type(None): ("None", lambda value: value is None),
    Iterable: ("a list", lambda value: isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))),
    Mapping: ("a mapping of names to values", lambda value: isinstance(value, Mapping)),
}


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
        check_types(typing.get_type_hints(kind), given, secret=True)
        gathered.append(found[kind] if kind in found else kind(**given))
    return gathered


def as_arguments(*objects: Any) -> dict[str, Any]:
    """Fields of some configuration objects as one dict for JSON: sequences and arrays as lists, mappings as dicts.

    Fields in `NEWER` of their class are written where they are chosen, as checkpoints of earlier versions have it.
    """
    pairs = [(value, field) for value in objects for field in dataclasses.fields(value)]
    return {
        field.name: _plain(getattr(value, field.name))
        for value, field in pairs
        if field.name not in getattr(value, "NEWER", ()) or getattr(value, field.name) != field.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # an array, or a number of numpy
        return value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple, range)) else value
