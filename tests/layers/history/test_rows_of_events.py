"""JoinHistories and AppendEvents: events of several requests in one row, and later events behind those of a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_ranking.layers import AppendEvents, JoinHistories
from tests.layers.common import numpy, run_layer_checks

RNG = np.random.default_rng(0)
ROWS, REQUESTS, L = 2, 3, 4
EVENTS = {
    "vector": RNG.normal(size=(ROWS * REQUESTS, L, 5)).astype("float32"),
    "time": RNG.integers(0, 99, (ROWS * REQUESTS, L)).astype("int32"),
}
VISIBLE = np.array([4, 0, 2, 1, 3, 4], "int32")
HELD, NEW = RNG.normal(size=(3, 4, 2)).astype("float32"), RNG.normal(size=(3, 3, 2)).astype("float32")


def test_histories_of_a_row() -> None:
    out = numpy(JoinHistories()(EVENTS, visible=VISIBLE, like=np.zeros((ROWS, REQUESTS), "int32")))
    assert sorted(out) == ["begin", "end", "time", "vector"]
    for request, visible in enumerate(VISIBLE):
        row, place = divmod(request, REQUESTS)
        span = slice(out["begin"][row, place], out["end"][row, place])
        for name, x in EVENTS.items():
            np.testing.assert_array_equal(out[name][row, span], x[request, :visible])
    assert out["vector"].shape == (ROWS, REQUESTS * L, 5)


def test_later_events_follow_the_last_real_one() -> None:
    length = np.array([4, 0, 2], "int32")
    out = numpy(AppendEvents()(HELD, new=NEW, length=length))
    assert out.shape == (3, 7, 2)
    for row, held in enumerate(length):
        np.testing.assert_array_equal(out[row, : held + 3], np.concatenate([HELD[row, :held], NEW[row]]))


def test_common_histories(tmp_path: Path) -> None:
    inputs = {"inputs": EVENTS, "visible": VISIBLE, "like": np.zeros((ROWS, REQUESTS), "int32")}
    run_layer_checks(lambda **more: JoinHistories(**more), inputs, tmp_path, mixed_dtype=None)


def test_common_events(tmp_path: Path) -> None:
    inputs = {"inputs": HELD, "new": NEW, "length": np.array([4, 0, 2], "int32")}
    run_layer_checks(lambda **more: AppendEvents(**more), inputs, tmp_path, mixed_dtype=None)
