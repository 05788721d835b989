"""AdamW takes the same steps as that of Keras, with one evaluation of the schedule per step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.optimizers import AdamW
from tests.compiling import JIT


class Counting(keras.optimizers.schedules.ExponentialDecay):
    """Counts its evaluations."""

    evaluations = 0

    def __call__(self, step: Any) -> Any:
        Counting.evaluations += 1
        return super().__call__(step)


def steps(kind: type, schedule: Any, number: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.normal(size=(3, 2)).astype("float32")) for _ in range(5)]
    optimizer = kind(schedule, weight_decay=0.1, global_clipnorm=1.0)
    optimizer.build(variables)
    for _ in range(number):
        optimizer.apply([keras.ops.convert_to_tensor(rng.normal(size=(3, 2)).astype("float32")) for _ in variables])
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def test_steps_are_those_of_keras_with_one_evaluation_of_the_schedule() -> None:
    Counting.evaluations = 0
    ours = steps(AdamW, Counting(0.1, 2, 0.5))
    evaluations, Counting.evaluations = Counting.evaluations, 0
    theirs = steps(keras.optimizers.AdamW, Counting(0.1, 2, 0.5))
    if keras.backend.backend() != "torch":  # there `compile_for` takes Keras's, whose sums are taken in another order
        assert evaluations == 4 < Counting.evaluations
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_its_rate_can_be_read_and_set() -> None:
    optimizer = AdamW(0.5)
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.5
    optimizer.learning_rate = 0.25
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.25
    again = keras.optimizers.deserialize(keras.optimizers.serialize(AdamW(Counting(0.1, 2, 0.5))), {"Counting": Counting})
    assert isinstance(again, AdamW)
    with pytest.raises(TypeError, match="not settable"):
        again.learning_rate = 0.1


def test_a_step_that_fails_leaves_no_rate_behind() -> None:
    optimizer = AdamW(0.5)
    with pytest.raises(ValueError):
        optimizer.apply([keras.ops.ones((2,))])
    optimizer.learning_rate = 0.25
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.25


def test_a_training_step_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made inside a traced function, as the state of an optimiser, has TensorFlow trace it again: `train` makes it before."""
    calls = []

    def apply(self: Any, *args: Any) -> None:
        calls.append(self)
        keras.optimizers.Optimizer.apply(self, *args)

    kind = AdamW if keras.backend.backend() != "torch" else type(keras.optimizers.AdamW(1.0))
    monkeypatch.setattr(kind, "apply", apply)
    log = kr.data.simulate(members=20, days=3, seed=0)
    options = {"dim": 8, "num_heads": 1, "num_layers": 1, "batch_size": 2, "jit_compile": JIT}
    kr.training.train(log, "cadet", options=options, epochs=1, verbose=False)
    if keras.backend.backend() == "torch":  # not traced: a call is a step
        assert len(calls) > 1
    else:
        assert len(calls) == 1
