"""RankingHead: the five heads of Feed-SR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import RankingHead
from tests.layers.common import by_path, numpy, randomise, run_layer_checks, silu

TASKS = ["click", "like", "share"]
GROUPS = {"passive": ["click"], "active": ["like", "share"]}
KINDS = ("parallel_dcn", "stacked_dcn", "mmoe", "mlp", "linear")


def make(kind: str, **settings: Any) -> RankingHead:
    return RankingHead(kind, TASKS, **{"hidden": (7, 5), "num_experts": 3, "gate_dropout": 0.0, **settings})


def state() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")


def body(kind: str, name: str, w: dict[str, np.ndarray], h: np.ndarray) -> np.ndarray:
    def mlp(x: np.ndarray) -> np.ndarray:
        for i in range(2):
            x = silu(x @ w[f"{name}/mlp/dense_{i}/kernel"] + w[f"{name}/mlp/dense_{i}/bias"])
        return x

    if kind == "mlp":
        for i in range(2):
            h = silu(h @ w[f"{name}/dense_{i}/kernel"] + w[f"{name}/dense_{i}/bias"])
        return h
    x = h
    for layer in range(2):
        x = h * (x @ w[f"{name}/cross_net/up_{layer}"] + w[f"{name}/cross_net/bias_{layer}"]) + x
    return mlp(x) if kind == "stacked_dcn" else np.concatenate([x, mlp(h)], axis=-1)


def reference(layer: RankingHead, h: np.ndarray, groups: dict[str, list[str]] | None) -> dict[str, np.ndarray]:
    w, h = by_path(layer), h.astype("float64")
    out = {}
    for task in TASKS:
        group = next(name for name, held in groups.items() if task in held) if groups else ("all" if layer.kind != "mmoe" else task)
        if layer.kind == "linear":
            r = h
        elif layer.kind == "mmoe":
            gate = np.exp(h @ w[f"gate_{group}/kernel"])
            gate /= gate.sum(-1, keepdims=True)
            r = sum(gate[..., e, None] * body("parallel_dcn", f"expert_{e}", w, h) for e in range(3))
        else:
            r = body(layer.kind, f"body_{group}", w, h)
        out[task] = (r @ w[f"logit_{task}/kernel"] + w[f"logit_{task}/bias"])[..., 0]
    return out


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_reference(kind: str, groups: Any) -> None:
    layer, h = make(kind, groups=groups), state()
    layer.build(h.shape)
    randomise(layer, scale=0.4)
    out, want = numpy(layer(h)), reference(layer, h, groups)
    assert list(out) == TASKS
    for task in TASKS:
        np.testing.assert_allclose(out[task], want[task], rtol=1e-4, atol=1e-4)
    assert np.abs(out["click"] - out["like"]).max() > 0.1  # control


@pytest.mark.few(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "groups"), [("parallel_dcn", None), ("stacked_dcn", GROUPS), ("mmoe", GROUPS), ("mlp", None), ("linear", None)]
)
def test_common(kind: str, groups: Any, tmp_path: Path) -> None:
    run_layer_checks(lambda **s: make(kind, groups=groups, **s), {"inputs": state()}, tmp_path, mixed_dtype="float32")


def test_dropped_gates() -> None:
    layer, h = make("mmoe", gate_dropout=0.5, seed=1), np.random.default_rng(1).normal(size=(400, 8)).astype("float32")
    layer.build(h.shape)
    randomise(layer, scale=0.4)
    still, moved = numpy(layer(h))["click"], numpy(layer(h, training=True))["click"]
    np.testing.assert_array_equal(numpy(layer(h, training=False))["click"], still)
    bias = by_path(layer)["logit_click/bias"][0]
    # In an eighth of the rows all three gates are dropped: only the bias remains.
    assert 0.08 < (np.abs(moved - bias) < 1e-6).mean() < 0.18
    assert np.abs(moved - still).max() > 0.1


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`kind` must be one of"):
        make("tower")
    with pytest.raises(ValueError, match="`tasks` must be one or more names"):
        RankingHead("linear", "click")
    with pytest.raises(ValueError, match="`groups` must hold each of"):
        make("mlp", groups={"passive": ["click"]})
    with pytest.raises(ValueError, match="`gate_dropout` in"):
        make("mmoe", gate_dropout=1.0)
    with pytest.raises(ValueError, match="C known"):
        make("linear").build((None, None))
