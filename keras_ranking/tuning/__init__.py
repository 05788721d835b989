"""Tuning: studies over trainings, on Optuna, with workers that survive and figures of fresh seeds. Needs the extra `tune`.

Names load on first use: `tune --list` and `--cancel` on the command line start no Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_ranking.tuning.reporting import Report
    from keras_ranking.tuning.settings import Search
    from keras_ranking.tuning.spaces import Choice, Float, Int, default_space
    from keras_ranking.tuning.studies import Study, tune, tune_model

_MODULES = {
    "Choice": "spaces",
    "Float": "spaces",
    "Int": "spaces",
    "Report": "reporting",
    "Search": "settings",
    "Study": "studies",
    "default_space": "spaces",
    "tune": "studies",
    "tune_model": "studies",
}

__all__ = ["Choice", "Float", "Int", "Report", "Search", "Study", "default_space", "tune", "tune_model"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
