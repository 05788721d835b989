"""Arrays of JAX that are shared out over processes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def whole_array(value: Any) -> Any:
    """See `keras_ranking.ops.replicas.whole_array`."""
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        return multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)
