"""What is compiled in a test that is not about compiling."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import pytest

from keras_ranking.models.graph import CheckedModel

# Whether a training step is. XLA takes seconds for a step of TensorFlow; before a release the step of each layer is compiled. Compiled
# steps, with the losses of uncompiled ones: tests/ops/test_span_attention_models.py,
# tests/models/test_compiled_training.py, tests/models/test_lirank.py, tests/losses/test_training.py,
# tests/optimizers/test_table_optimizer.py.
JIT: bool | str = False if keras.backend.backend() == "tensorflow" else "auto"


def whole_models_compiled(patch: pytest.MonkeyPatch) -> None:
    """Each call of a whole model is one program of JAX, which otherwise compiles each of its operations: a third of the time."""
    import jax

    by_operations = CheckedModel.__call__

    def compiled(model: Any, inputs: Any, training: bool = False, **masks: Any) -> Any:
        leaves = keras.tree.flatten(inputs)
        if any(isinstance(leaf, (keras.KerasTensor, jax.core.Tracer)) for leaf in leaves):
            return by_operations(model, inputs, training=training, **masks)
        programs = model.__dict__.setdefault("_programs_of_tests", {})
        if training not in programs:
            programs[training] = jax.jit(partial(model.stateless_call, training=training))
        values = [[variable.value for variable in group] for group in (model.trainable_variables, model.non_trainable_variables)]
        outputs, moved = programs[training](*values, model.whole(inputs))
        for variable, value in zip(model.non_trainable_variables if training else (), moved, strict=training):
            variable.assign(value)
        return outputs

    patch.setattr(CheckedModel, "__call__", compiled)
