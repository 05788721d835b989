"""EventEmbedding and ActionEmbedding: an MLP over the columns of an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.layers import ActionEmbedding, EventEmbedding
from tests.layers.common import TOLERANCE, by_path, numpy, randomise, run_layer_checks, silu

FEATURES = (kr.Number("age"), kr.Id("item_id", buckets=30), kr.Number("ctr", known="context"))
ACTIONS = (kr.Number("click", known="after"), kr.Number("dwell", known="after"), kr.Category("kind", buckets=7, known="after"))


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "age": rng.normal(size=(2, 5)).astype("float32"),
        "item_id": rng.integers(0, 30, (2, 5)).astype("int32"),
        "ctr": rng.normal(size=(2, 5)).astype("float32"),
    }


def actions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "click": rng.integers(0, 2, (2, 5)).astype("float32"),
        "dwell": rng.normal(size=(2, 5)).astype("float32"),
        "kind": rng.integers(0, 7, (2, 5)).astype("int32"),
    }


def event(hidden: int | None) -> Any:
    return lambda **settings: EventEmbedding(FEATURES, dim=6, hidden=hidden, id_dim=4, **settings)


def action(hidden: int | None) -> Any:
    return lambda **settings: ActionEmbedding(ACTIONS, dim=6, hidden=hidden, id_dim=4, **settings)


CASES = [(event(None), columns, None), (event(9), columns, 9), (action(9), actions, 9), (action(None), actions, None)]


@pytest.mark.few(2)
@pytest.mark.parametrize(("make", "inputs", "hidden"), CASES)
def test_common(make: Any, inputs: Any, hidden: int | None, tmp_path: Path) -> None:
    run_layer_checks(make, {"inputs": inputs()}, tmp_path)


@pytest.mark.parametrize(("make", "inputs", "hidden"), CASES)
def test_reference(make: Any, inputs: Any, hidden: int | None) -> None:
    layer, x = make(), inputs()
    layer(x)
    randomise(layer)
    w = by_path(layer)
    table = next(weight for path, weight in w.items() if "table_" in path)
    parts = [table[value] if value.dtype == np.int32 else value[..., None].astype("float64") for value in x.values()]
    state = np.concatenate(parts, axis=-1)
    without = state @ w["projection/kernel"] + w["projection/bias"] if hidden is None else None
    if hidden is not None:
        inner = state @ w["inner/kernel"] + w["inner/bias"]
        state = silu(inner)
        without = inner @ w["projection/kernel"] + w["projection/bias"]
    want = state @ w["projection/kernel"] + w["projection/bias"]
    out = numpy(layer(x))
    np.testing.assert_allclose(out, want, **TOLERANCE)
    if hidden is not None:
        assert np.abs(out - without).max() > 0.1  # control: the same map without its activation


def test_events_do_not_depend_on_each_other() -> None:
    """The token of an event depends only on this event."""
    layer, x = event(9)(), columns()
    before = numpy(layer(x))
    changed = {name: value.copy() for name, value in x.items()}
    changed["age"][0, 2] += 1.0
    moved = np.abs(numpy(layer(changed)) - before).max(-1) > 0
    assert moved[0, 2]
    moved[0, 2] = False
    assert not moved.any()


@pytest.mark.quickest
def test_default_hidden_of_actions() -> None:
    assert ActionEmbedding(ACTIONS, dim=6).hidden == 64
    assert EventEmbedding(FEATURES, dim=6).hidden is None


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`features` must have at least one column"):
        EventEmbedding([], dim=4)
    with pytest.raises(ValueError, match="column 'dwell' is known only after scoring and cannot be in the token of an event."):
        EventEmbedding([kr.Number("dwell", known="after")], dim=4)
    with pytest.raises(ValueError, match="column 'age' is known='item'; an action is known only after scoring."):
        ActionEmbedding([kr.Number("age")], dim=4)
    with pytest.raises(ValueError, match="Received: dim=0, hidden=None"):
        EventEmbedding(FEATURES, dim=0)
    with pytest.raises(ValueError, match="Received: dim=4, hidden=0"):
        EventEmbedding(FEATURES, dim=4, hidden=0)
    with pytest.raises(ValueError, match="`id_dim` must be a positive integer. Received: id_dim=-1"):
        ActionEmbedding(ACTIONS, dim=4, id_dim=-1)
