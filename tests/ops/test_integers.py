"""Integers stay exact and integers, whatever Keras's float type: bfloat16 holds every integer up to 256 alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking import layers
from keras_ranking.ops import Spans, rotary_periods, rotate
from keras_ranking.ops.integers import as_tensor, at_least, at_most, int32
from keras_ranking.ops.search import search
from keras_ranking.ops.seeded_normal import seeded_normal
from keras_ranking.ops.sequences import gather_rows, session_ids

T = 1200
INDEX = np.arange(T, dtype="int32")[None]
TIMES = 100_000_000 + 37 * INDEX
SEGMENTS = 1 + INDEX // 1000
LARGE = 20_000_001  # not in float32


@pytest.fixture
def bfloat16() -> Iterator[Callable[[], None]]:
    yield lambda: keras.config.set_floatx("bfloat16")
    keras.config.set_floatx("float32")


def numbers(offset: int = 0) -> Any:
    return as_tensor(INDEX + offset)


def latest(size: int) -> Any:
    layer = layers.LatestKeys(size)
    return layer(np.broadcast_to(INDEX[:, None, :, None].astype("float32"), (1, 1, T, 1)), length=np.array([1100], "int32"))


def encoded(step: str, **options: Any) -> Any:
    """A candidate of each request against 300 events of a history of 1,200."""
    layer = layers.HistoryEncoder(max_history=300, num_heads=1, num_layers=1, dtype="float32", **options)
    history = np.broadcast_to(np.sin(INDEX[..., None] * np.arange(1, 5)).astype("float32"), (1, T, 4))
    inputs = {"history": history, "candidates": np.ones((1, 2, 4), "float32"), "slot": np.array([[1, 1]], "int32")}
    places = {"stream": SEGMENTS, "begin": np.array([[300]], "int32"), "end": np.array([[600]], "int32")}
    layer.build({"visible": (1,), **{name: np.shape(x) for name, x in inputs.items()}})
    return layer({**inputs, **(places if step == "streams" else {"visible": np.array([1100], "int32")})}, step=step)


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "as_tensor": lambda: as_tensor(np.array([LARGE], "int32")),
    "at_least": lambda: at_least(numbers(LARGE), LARGE + 1000),
    "at_most": lambda: at_most(numbers(LARGE), LARGE + 1000),
    "int32": lambda: int32(LARGE),
    "window": lambda: tuple(Spans.window(300, SEGMENTS)),
    "delayed": lambda: tuple(Spans.delayed(TIMES, TIMES - 99_999_999, SEGMENTS)),
    "sessions": lambda: tuple(Spans.sessions(1 + INDEX // 7, SEGMENTS)),
    "setwise": lambda: tuple(Spans.setwise(1 + INDEX // 7, SEGMENTS)),
    "candidates": lambda: tuple(Spans.candidates(np.array([1001], "int32"), 1100, 20)),
    "interleave": lambda: tuple(Spans.causal(SEGMENTS).interleave()),
    "search": lambda: search(numbers(), ops.zeros_like(numbers()), numbers() + 1, numbers() - 700),
    "gather_rows": lambda: gather_rows(numbers(), as_tensor(np.array([900], "int32")), 1000),
    "session_ids": lambda: session_ids(TIMES, 37),
    "rotate": lambda: rotate(np.ones((1, T, 1, 4), "float32"), TIMES, rotary_periods(4, 8.0, 1e6)),
    "seeded_normal": lambda: seeded_normal(as_tensor(np.array([LARGE], "int32")), 6),
    "owners": lambda: layers.SlotOwners()(numbers(), requests=np.zeros((1, T), "float32")),
    "latest": lambda: latest(1050),
    "array": lambda: layers.SlotOwners()(INDEX, requests=np.zeros((1, T), "float32")),
    "quotient": lambda: layers.QuotientRemainderEmbedding(2, 65_536, dtype="float32")(np.array([[LARGE, -LARGE]], "int32")),
    "semantic": lambda: layers.SemanticIdEmbedding(2, 700, 2, dtype="float32")(np.array([[699, 513]], "int32")),
    "packed": lambda: encoded("packed", fusion="concat"),
    "appended": lambda: encoded("packed"),
    "streams": lambda: encoded("streams", history_mask="causal"),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_results_do_not_depend_on_the_float_type(name: str, bfloat16: Callable[[], None]) -> None:
    def run() -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        return [ops.convert_to_numpy(x) for x in keras.tree.flatten(FUNCTIONS[name]())]

    expected = run()
    bfloat16()
    found = run()
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
