"""The multi-task layers: SharedBottom, GroupedTasks, MMoE, SparseMMoE, PLE and MultiTaskHead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.layers import PLE, GroupedTasks, MLPBank, MMoE, MultiTaskHead, SharedBottom, SparseMMoE
from tests.layers.common import TOLERANCE, a_rounding, by_path, numpy, randomise, run_layer_checks, silu

TASKS = ["click", "like", "share"]
GROUPS = {"active": ["share", "like"], "passive": ["click"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "shared_bottom": {"bottom": (7,)},
    "grouped": {"groups": GROUPS, "bottom": (7,)},
    "mmoe": {"num_experts": 4, "expert": (7,)},
    "ple": {"levels": 2, "task_experts": 2, "shared_experts": 3, "expert": (7,)},
    "sparse_mmoe": {"num_experts": 4, "expert": (7,), "top_k": 2},
}
CLASSES = {"shared_bottom": SharedBottom, "grouped": GroupedTasks, "mmoe": MMoE, "ple": PLE, "sparse_mmoe": SparseMMoE}


def make(kind: str, **settings: Any) -> Any:
    return CLASSES[kind](TASKS, tower=(5,), **{**OPTIONS[kind], **settings})


def state() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(2, 6, 8)).astype("float32")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mlp(w: dict[str, np.ndarray], bank: str, m: int, x: np.ndarray, linear: bool = False) -> np.ndarray:
    """MLP m of a bank, layer by layer; `linear`: the last layer has no activation."""
    i = 0
    while f"{bank}/kernel_{i}" in w:
        x = x @ w[f"{bank}/kernel_{i}"][m]
        x = x + w[f"{bank}/bias_{i}"][m] if f"{bank}/bias_{i}" in w else x
        i += 1
        x = x if linear and f"{bank}/kernel_{i}" not in w else silu(x)
    return x


def reference(kind: str, w: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """One token and one task at a time."""
    states = np.zeros((*x.shape[:2], 3, 7))
    for b, t, k in np.ndindex(2, 6, 3):
        token = x[b, t].astype("float64")
        if kind == "shared_bottom":
            states[b, t, k] = mlp(w, "bottom", 0, token)
        elif kind == "grouped":
            states[b, t, k] = mlp(w, "bottom", 1 if TASKS[k] == "click" else 0, token)
        elif kind in ("mmoe", "sparse_mmoe"):
            scores = token @ w["gates/kernel_0"][k]
            if kind == "sparse_mmoe":
                scores[np.argsort(-scores)[2:]] = -np.inf
            gates = softmax(scores)
            states[b, t, k] = sum(gates[e] * mlp(w, "experts", e, token) for e in range(4))
        else:
            own, shared = [token] * 3, token
            for level in range(2):
                mine = [[mlp(w, f"own_{level}", 2 * j + e, own[j]) for e in range(2)] for j in range(3)]
                common = [mlp(w, f"shared_{level}", e, shared) for e in range(3)]
                before = own
                own = [softmax(before[j] @ w[f"gates_{level}/kernel_0"][j]) @ np.array(mine[j] + common) for j in range(3)]
                if level == 0:
                    shared = softmax(shared @ w["shared_gate_0/kernel_0"][0]) @ np.array(mine[0] + mine[1] + mine[2] + common)
            states[b, t, k] = own[k]
    return {task: mlp(w, "towers", k, states[:, :, k], linear=True)[..., 0] for k, task in enumerate(TASKS)}


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", list(CLASSES))
def test_common(kind: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    run_layer_checks(lambda **settings: make(kind, **settings), {"inputs": state()}, tmp_path, mixed_dtype="float32")


@pytest.mark.parametrize("shape", [(6, 8), (6, 3, 8)])
def test_bank_common(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=shape).astype("float32")
    layer = MLPBank(3, (7, 5), last_activation="linear")
    out = layer(x)
    w = {f"bank/{path}": weight for path, weight in by_path(layer).items()}
    for m in range(3):
        np.testing.assert_allclose(numpy(out)[:, m], mlp(w, "bank", m, x if len(shape) == 2 else x[:, m], linear=True), **TOLERANCE)
    kernels = w["bank/kernel_0"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01, "each MLP is drawn separately"
    limit = np.sqrt(6 / (8 + 7))
    assert 0.8 * limit < np.abs(kernels).max() <= limit  # Glorot of one kernel, not of the stack


def test_bank_sums_in_float32() -> None:
    """A wide product in bfloat16 has the rounding error of its result only, not of each term."""
    wide = MLPBank(2, (16,), last_activation="linear", dtype="bfloat16")
    x = ops.cast(np.random.default_rng(3).normal(size=(8, 2048)), "bfloat16")
    got = numpy(wide(x))
    want = np.einsum("nd,mdh->nmh", numpy(x).astype("float64"), numpy(wide.kernels[0].value).astype("float64"))
    assert np.abs(got - want).max() <= a_rounding() * np.abs(want).max()


@pytest.mark.parametrize("kind", list(CLASSES))
def test_reference(kind: str) -> None:
    layer, x = make(kind), state()
    layer(x)
    randomise(layer)
    out, want = numpy(layer(x)), reference(kind, by_path(layer), x)
    assert set(out) == set(TASKS)
    for task in TASKS:
        assert out[task].shape == (2, 6)
        np.testing.assert_allclose(out[task], want[task], rtol=1e-5, atol=1e-5)
    assert np.abs(out["click"] - want["like"]).max() > 0.1  # control: tasks differ


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", list(CLASSES))
def test_tokens_do_not_depend_on_each_other(kind: str) -> None:
    layer, x = make(kind), state()
    before, changed = numpy(layer(x)), x.copy()
    changed[1, 3] += 1.0
    for task, after in numpy(layer(changed)).items():
        moved = np.abs(after - before[task]) > 1e-6
        assert moved[1, 3] and moved.sum() == 1


@pytest.mark.quickest
@pytest.mark.parametrize("kind", list(CLASSES))
def test_head_equals_the_layer_of_its_kind(kind: str) -> None:
    head, layer, x = MultiTaskHead(kind, TASKS, tower=(5,), **OPTIONS[kind]), make(kind), state()
    head(x), layer(x)
    head.set_weights(layer.get_weights())
    got, want = numpy(head(x)), numpy(layer(x))
    for task in TASKS:
        np.testing.assert_array_equal(got[task], want[task])
    assert head.tasks == tuple(TASKS)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["grouped", "sparse_mmoe"])
def test_head_common(kind: str, tmp_path: Path) -> None:
    def head(**settings: Any) -> Any:
        return MultiTaskHead(kind, TASKS, tower=(5,), **OPTIONS[kind], **settings)

    keras.utils.set_random_seed(2)
    run_layer_checks(head, {"inputs": state()}, tmp_path, mixed_dtype="float32")


def test_rank_two_inputs() -> None:
    out = make("ple")(state()[:, 0])
    assert {task: tuple(logit.shape) for task, logit in out.items()} == dict.fromkeys(TASKS, (2,))


def test_gate_dropout() -> None:
    """In training, remaining gates are divided by 1 - rate, and normalised again only with `renormalise`."""
    x = np.random.default_rng(1).normal(size=(4000, 8)).astype("float32")
    for renormalise in (False, True):
        layer = make("mmoe", gate_dropout=0.5, renormalise=renormalise, seed=3)
        layer.build(x.shape)
        plain, dropped = numpy(layer._weights(x, False)), numpy(layer._weights(x, True))
        zero = dropped == 0
        assert 0.4 < zero.mean() < 0.55
        sums = dropped.sum(-1)
        if renormalise:
            np.testing.assert_allclose(sums, 1.0, rtol=1e-5)
        else:
            np.testing.assert_allclose(dropped[~zero], 2 * plain[~zero], rtol=1e-5)
            assert sums.std() > 0.1 and abs(sums.mean() - 1) < 0.05
        np.testing.assert_array_equal(plain, numpy(layer._weights(x, None)))


def test_sparse_gates() -> None:
    layer = make("sparse_mmoe", seed=7)
    x = state().reshape(-1, 8)
    layer.build(x.shape)
    gates = numpy(layer._weights(x, False))
    np.testing.assert_array_equal((gates > 0).sum(-1), 2)
    np.testing.assert_allclose(gates.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(gates, numpy(layer._weights(x, False)))
    assert np.abs(numpy(layer._weights(x, True)) - gates).max() > 0.01  # noise
    quiet = make("sparse_mmoe", noise=False)
    quiet.build(x.shape)
    np.testing.assert_array_equal(numpy(quiet._weights(x, True)), numpy(quiet._weights(x, False)))


def test_ties_go_to_the_lower_index() -> None:
    layer = make("sparse_mmoe")
    scores = np.array([[[1, 1, 1, 1], [0, 2, 2, 2], [2, 0, 0, 1]]], "float32")
    want = [[[True, True, False, False], [False, True, True, False], [True, False, False, True]]]
    np.testing.assert_array_equal(numpy(layer.selected(scores)), want)


def test_all_experts_selected_is_mmoe() -> None:
    sparse, dense, x = make("sparse_mmoe", top_k=4, noise=False), make("mmoe"), state()
    sparse(x), dense(x)
    dense.set_weights(sparse.get_weights())
    for task, want in numpy(dense(x)).items():
        np.testing.assert_allclose(numpy(sparse(x))[task], want, **TOLERANCE)


def test_balance_loss() -> None:
    x = np.abs(state())
    layer = make("sparse_mmoe", noise=False, balance=0.5)
    layer(x)
    assert not layer.losses
    kernel = layer.gates.kernels[0]
    rng = np.random.default_rng(0)
    values = {"random": rng.normal(size=kernel.shape).astype("float32"), "collapsed": np.zeros(kernel.shape, "float32")}
    values["collapsed"][..., :2] = 100.0
    losses = {}
    for name, value in values.items():
        kernel.assign(value)
        layer(x, training=True)
        losses[name] = float(numpy(sum(layer.losses)))
        share, mean = np.zeros((3, 4)), np.zeros((3, 4))
        for token in x.reshape(-1, 8):
            for k in range(3):
                scores = token @ value[k]
                share[k, np.argsort(-scores, kind="stable")[:2]] += 1 / 12
                mean[k] += softmax(scores) / 12
        np.testing.assert_allclose(losses[name], 0.5 * (share * mean).sum(-1).mean() * 4 / 2, rtol=1e-4)
    assert losses["collapsed"] > 0.9  # twice the balanced value: all tokens use half of the experts
    assert losses["random"] < losses["collapsed"]
    unbalanced = make("sparse_mmoe", balance=0.0)
    unbalanced(x, training=True)
    assert not unbalanced.losses


def test_balance_loss_reaches_fit() -> None:
    """Through the head and a compiled model: the loss reported by fit contains the balance term."""
    x = state()
    reported = []
    for balance in (0.0, 100.0):
        keras.utils.set_random_seed(1)
        head = MultiTaskHead("sparse_mmoe", TASKS, num_experts=4, noise=False, balance=balance)
        inputs = keras.Input((6, 8))
        model = keras.Model(inputs, head(inputs))
        model.compile("sgd", loss=dict.fromkeys(TASKS, "mse"))
        history = model.fit(x, {task: np.zeros((2, 6), "float32") for task in TASKS}, verbose=0)
        reported.append(history.history["loss"][0])
    assert 90 < reported[1] - reported[0] < 400


@pytest.mark.quickest
def test_errors() -> None:
    cases: list[tuple[str, Any]] = [
        (r"`tasks` must be one or more names, each once. Received: tasks=\['a', 'a'\]", lambda: SharedBottom(["a", "a"])),
        ("`tasks` must be one or more names", lambda: SharedBottom("click")),
        (r"`tower` must be positive widths. Received: tower=\(0,\)", lambda: SharedBottom(["a"], tower=(0,))),
        (r"`widths` must be one or more positive integers. Received: widths=\(\)", lambda: SharedBottom(["a"], bottom=())),
        ("`groups` must hold each of", lambda: GroupedTasks(["a", "b"], groups={"g": ["a"]})),
        ("`groups` must hold each of", lambda: GroupedTasks(["a"], groups={"g": ["a"], "h": []})),
        ("`num_experts` must be a positive integer. Received: num_experts=0", lambda: MMoE(["a"], num_experts=0)),
        (r"`gate_dropout` must be in \[0, 1\). Received: gate_dropout=1", lambda: MMoE(["a"], gate_dropout=1)),
        ("`top_k` must be from 2 to num_experts=4. Received: top_k=1", lambda: SparseMMoE(["a"], num_experts=4, top_k=1)),
        ("`balance` must not be negative. Received: balance=-1", lambda: SparseMMoE(["a"], balance=-1)),
        ("are arguments of MMoE only", lambda: SparseMMoE(["a"], gate_dropout=0.1)),
        ("`levels` must be a positive integer. Received: levels=0", lambda: PLE(["a"], levels=0)),
        ("`kind` must be one of .* Received: kind='none'", lambda: MultiTaskHead("none", ["a"])),
        ("`count` must be a positive integer. Received: count=0", lambda: MLPBank(0, (3,))),
        ("with D known. Received: shape=", lambda: SharedBottom(["a"]).build((None, None))),
    ]
    for match, make_wrong in cases:
        with pytest.raises(ValueError, match=match):
            make_wrong()
