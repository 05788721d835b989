"""LinkedIn-class rankers in Keras 3: one schema from log to served score.

`import keras_ranking as kr`. Sub-packages load on first use, so that importing the package needs no backend at all and a
thin client pays for nothing it does not use.
"""

from __future__ import annotations

import importlib
from typing import Any

from keras_ranking.columns import Category, Count, Id, Ids, Number, SemanticId, Task, Vector
from keras_ranking.schema import Schema

__version__ = "0.1.0"

_SUBPACKAGES = ("data", "engines", "layers", "losses", "metrics", "models", "ops", "plots", "reports", "serving", "training", "tuning")

__all__ = ["Category", "Count", "Id", "Ids", "Number", "Schema", "SemanticId", "Task", "Vector", "__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
