"""Pure functions on tensors: spans, attention, rotation, hashing."""

from __future__ import annotations

import importlib
from typing import Any

from keras_ranking.ops.hashing import fingerprint64

# The schema and a small client need the hash but not Keras: modules that import Keras are loaded on first use.
_LAZY = {
    "Spans": "spans",
    "span_attention": "attention",
    "candidate_attention": "attention",
    "rotary_periods": "rotary",
    "rotate": "rotary",
}

__all__ = ["Spans", "candidate_attention", "fingerprint64", "rotary_periods", "rotate", "span_attention"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
