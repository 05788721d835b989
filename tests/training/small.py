"""A training of a LiRank that takes a second, for tests of what `train` does around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_ranking.data import Log
from keras_ranking.training import train
from tests.compiling import JIT

SMALL: dict[str, Any] = {
    "features": ("age_hours", "topic"),
    "history_features": (),
    "hidden": (8,),
    "cross_layers": 1,
    "id_dim": 4,
    "row_length": 64,
    "batch_size": 3,
    "jit_compile": JIT,
}


def quick(log: Log, out: Path | None = None, model: Any = "lirank", epochs: int = 1, **settings: Any) -> Any:
    """`train` with the options `SMALL` and those given."""
    options = {**SMALL, **settings.pop("options", {})}
    return train(log, model, out, epochs=epochs, options=options, **{"verbose": False, **settings})
