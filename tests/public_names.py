"""Every public name of the package and the object behind it: what the documentation shows and the tests of docstrings read."""

from __future__ import annotations

import importlib
import inspect

import keras_ranking as kr

ROOMS = ("data", "layers", "losses", "metrics", "models", "ops", "plots", "reports", "serving", "training", "tuning")


def public_objects() -> list[tuple[str, object]]:
    """('kr.layers.KeepFirst', the class) for each public class and function, in the order of the rooms."""
    found: list[tuple[str, object]] = [(f"kr.{name}", getattr(kr, name)) for name in kr.__all__ if name not in ("__version__", *ROOMS)]
    for room in ROOMS:
        module = importlib.import_module(f"keras_ranking.{room}")
        found += [(f"kr.{room}.{name}", getattr(module, name)) for name in module.__all__]
    return [(name, value) for name, value in found if inspect.isclass(value) or inspect.isfunction(value)]
