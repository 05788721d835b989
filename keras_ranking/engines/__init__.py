"""Engines that divide a log by member and hand the parts to `keras_ranking.data`, which computes: DuckDB and Spark.

An engine is loaded on first use: `kr.engines.duckdb` needs the extra `scale`, `kr.engines.spark` the extra `spark`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["duckdb", "spark"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
