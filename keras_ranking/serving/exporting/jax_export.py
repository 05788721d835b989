"""Export of a model compiled by JAX: one program for each pair of lengths, for CPU and CUDA.

The graph holds `XlaCallModule` operations, which a server runs only with XLA enabled. Batch sizes are free.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_ranking.schema import Schema
from keras_ranking.serving.exporting.buckets import Lengths, by_bucket
from keras_ranking.serving.exporting.guard import guarded
from keras_ranking.serving.exporting.signatures import Endpoint, specs, with_raw
from keras_ranking.serving.exporting.weighted import with_weights
from keras_ranking.serving.protocol.model_folder import SIGNATURE

PLATFORMS = ("cpu", "cuda")


def endpoints(model: Any, schema: Schema, history: Lengths, candidates: Lengths, raw_ids: Any) -> dict[str, Endpoint]:
    """`serving_default`, `raw` and `raw_features`, and those with weights of the request."""
    import keras
    from jax.experimental import jax2tf

    graph = model.serving_model
    inputs, outputs = specs(graph, schema)
    values = [tf.Variable(keras.ops.convert_to_numpy(variable.value), name=variable.name) for variable in graph.variables]

    def scores(weights: Any, tensors: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(graph.variables, weights, strict=True))):
            return {name: keras.ops.cast(x, "float32") for name, x in graph(tensors, training=False).items()}

    def make(lengths: dict[str, int]) -> Any:
        shapes = {}
        for name, spec in inputs.items():
            size = [lengths[spec["axis"]]] if spec["axis"] in lengths else []
            shapes[name] = f"({', '.join(map(str, ['batch', *size, *spec['shape'][1 + len(size) :]]))})"
        converted = jax2tf.convert(
            scores,
            polymorphic_shapes=[[str(tuple(value.shape)) for value in values], shapes],
            native_serialization_platforms=PLATFORMS,
            with_gradient=False,
        )
        return lambda tensors: converted(values, tensors)

    plain = Endpoint(dict, inputs, outputs, values)
    made = with_weights({SIGNATURE: by_bucket(plain, history, candidates, make, plain=False)}, model.arguments.get("tasks", ()))
    return with_raw(guarded(made), schema, raw_ids)
