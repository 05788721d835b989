"""The signatures of an export, as functions of named tensors over one set of weights. TensorFlow backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_ranking.columns import Category, Id, Ids, SemanticId
from keras_ranking.schema import Schema
from keras_ranking.serving.exporting.raw_graph import RawEncoder
from keras_ranking.serving.protocol.model_folder import (
    CACHE,
    ENCODE,
    EXPLORE,
    EXTEND,
    FEATURES,
    MEMBER,
    RAW,
    SCORE,
    SIGNATURE,
    WEIGHTED,
    axis_of,
    column_name,
)
from keras_ranking.serving.protocol.raw_values import raw_specs

Specs = dict[str, dict[str, Any]]
Tensors = dict[str, Any]


@dataclass
class Endpoint:
    """One signature.

    Args:
        body: tensors -> tensors.
        inputs, outputs: name -> {"dtype", "shape", "axis", "rows"}, as in `Card`.
        tracked: models (for their variables), variables and tables that the saved graph must track.
    """

    body: Callable[[Tensors], Tensors]
    inputs: Specs
    outputs: Specs
    tracked: list[Any]

    def function(self) -> Any:
        """`body` as one traced graph function."""
        wanted = {name: tf.TensorSpec(spec["shape"], spec["dtype"], name=name) for name, spec in self.inputs.items()}
        made = tf.function(self.body, input_signature=[wanted], autograph=False)
        made.get_concrete_function()
        return made


def trunk_endpoints(model: Any, schema: Schema) -> dict[str, Endpoint]:
    """Endpoints of the model on encoded tensors, by signature name.

    Args:
        model: a `RankingModel`, or an object with `serving_model` and optionally `encoder`, `scorer` and `explore_model`.
        schema: names the inputs.
    """
    made = {SIGNATURE: _graph(model.serving_model, schema)}
    if getattr(model, "explore_model", None) is not None:
        made[EXPLORE] = _graph(model.explore_model, schema)
    if hasattr(type(model), "encoder") and any(name.startswith("history_") for name in model.serving_model.input):
        made[ENCODE] = _encode(model.encoder, schema)
        made[SCORE] = _score(model, schema, made[ENCODE], made[SIGNATURE])
        if getattr(model, "extends", False):
            made[EXTEND] = _extend(model.extender, schema, made[ENCODE])
    return made


def with_raw(made: Mapping[str, Endpoint], schema: Schema, raw_ids: Mapping[str, str] | None = None) -> dict[str, Endpoint]:
    """The endpoints with `raw` and `raw_features`, which encode values of the log for `serving_default`, and `raw_weighted`.

    Args:
        raw_ids: see `raw_values.raw_specs`.
    """
    serving = made[SIGNATURE]
    inputs = raw_specs(schema, serving.inputs, raw_ids)
    encoder = RawEncoder(schema, inputs)
    tables = list(encoder.tables.values())
    out = {**made, FEATURES: Endpoint(encoder, inputs, serving.inputs, tables)}
    for name, raw in ((SIGNATURE, RAW), (WEIGHTED[SIGNATURE], WEIGHTED[RAW])):
        if name in made:
            scored = made[name].function()  # traced once, called by both
            weights = {key: spec for key, spec in made[name].inputs.items() if key not in serving.inputs}
            out[name] = replace(made[name], body=calling(scored))
            out[raw] = Endpoint(_OfRaw(scored, encoder, list(weights)), inputs | weights, serving.outputs, serving.tracked + tables)
    return out


def calling(function: Any) -> Callable[[Tensors], Tensors]:
    """The body of an endpoint that calls a traced function."""
    return lambda tensors: dict(function(tensors))


class _OfRaw:
    """The body of an endpoint on values of the log; `plain` inputs are not encoded."""

    def __init__(self, scored: Any, encoder: RawEncoder, plain: list[str]) -> None:
        self._scored, self._encoder, self._plain = scored, encoder, plain

    def __call__(self, tensors: Tensors) -> Tensors:
        return dict(self._scored({**self._encoder(tensors), **{name: tensors[name] for name in self._plain}}))


def float32_of(outputs: Mapping[str, Any]) -> Tensors:
    """Floats in float32, also if the trunk computes in a 16-bit type, which JSON and most clients do not support."""
    return {name: tf.cast(x, tf.float32) if x.dtype.is_floating else x for name, x in outputs.items()}


def _graph(graph: Any, schema: Schema) -> Endpoint:
    inputs, outputs = specs(graph, schema)
    return Endpoint(lambda tensors: float32_of(graph(tensors, training=False)), inputs, outputs, [graph])


def _encode(encoder: Any, schema: Schema) -> Endpoint:
    inputs = input_specs(encoder.input, schema)
    outputs = {CACHE + name: _spec(x, None) for name, x in encoder.output.items()}

    def body(tensors: Tensors) -> Tensors:
        return float32_of({CACHE + name: x for name, x in encoder(tensors, training=False).items()})

    return Endpoint(body, inputs, outputs, [encoder])


def _extend(extender: Any, schema: Schema, encode: Endpoint) -> Endpoint:
    new = {name: x for name, x in extender.input.items() if not name.startswith(CACHE)}
    inputs = dict(encode.outputs) | input_specs(new, schema)

    def body(tensors: Tensors) -> Tensors:
        named = {name: tf.cast(tensors[name], tensor.dtype) for name, tensor in extender.input.items()}
        return float32_of({CACHE + name: x for name, x in extender(named, training=False).items()})

    return Endpoint(body, inputs, encode.outputs, [extender])


def _score(model: Any, schema: Schema, encode: Endpoint, serving: Endpoint) -> Endpoint:
    import keras

    from keras_ranking.layers import KeepFirst

    scorer, keep = model.scorer, KeepFirst(name="keep_candidates")
    inputs = dict(encode.outputs)
    others = {name: x for name, x in scorer.input.items() if not name.startswith(CACHE)}
    inputs |= input_specs({**others, "candidate_count": keras.KerasTensor((None,), dtype="int32")}, schema)

    def body(tensors: Tensors) -> Tensors:
        count = tensors["candidate_count"]
        named = {}
        for name, tensor in scorer.input.items():
            x = tf.cast(tensors[name], tensor.dtype)
            named[name] = keep(x, length=count) if axis_of(name, tuple(tensor.shape)) == "candidate" else x
        return float32_of(model.probabilities(scorer(named, training=False), count))

    return Endpoint(body, inputs, serving.outputs, [scorer])


def specs(graph: Any, schema: Schema) -> tuple[Specs, Specs]:
    """Inputs and outputs of a functional model, as in `Card`.

    Raises:
        ValueError: tensors without names, or without a free batch dimension first.
    """
    for what, tensors in (("inputs", graph.input), ("outputs", graph.output)):
        if not isinstance(tensors, dict):
            raise ValueError(f"`model.serving_model` must have its {what} in a dict by name. Received: {type(tensors).__name__}")
        for name, tensor in tensors.items():
            if not tensor.shape or tensor.shape[0] is not None:
                raise ValueError(
                    f"'{name}' of `model.serving_model` must have a free batch dimension first. Received: shape={tensor.shape}"
                )
    outputs = {name: {**_spec(x, "candidate" if len(x.shape) > 1 else None), "dtype": "float32"} for name, x in graph.output.items()}
    return input_specs(graph.input, schema), outputs


def input_specs(tensors: Mapping[str, Any], schema: Schema) -> Specs:
    """Inputs by name, as in `Card`."""
    columns = {column.name: column for column in (*schema.features, *schema.actions) if isinstance(column, (Id, Category, Ids, SemanticId))}
    out = {}
    for name, tensor in tensors.items():
        axis = axis_of(name, tuple(tensor.shape))
        column = columns.get(column_name(name, axis)) if axis or name.startswith(MEMBER) else None
        out[name] = _spec(tensor, axis, None if column is None else column.rows)
        if isinstance(column, Ids):
            out[name]["sets"] = True
    return out


def _spec(tensor: Any, axis: str | None, rows: int | None = None) -> dict[str, Any]:
    shape = [None if size is None else int(size) for size in tensor.shape]
    dtype = "float32" if "float" in str(tensor.dtype) else str(tensor.dtype)
    return {"dtype": dtype, "shape": shape, "axis": axis, "rows": rows}


def write(made: Mapping[str, Endpoint], target: Path) -> None:
    """Write the endpoints as a SavedModel with their functions, variables and tables, without other Keras objects.

    Untracked variables would load in Python and be missing in a server: every variable of a graph must be tracked.
    """
    held: dict[int, Any] = {}
    for endpoint in made.values():
        for item in endpoint.tracked:
            values = [variable.value for variable in item.variables] if hasattr(item, "variables") else [item]
            held.update({id(value): value for value in values})
    module = tf.Module()
    module.resources = list(held.values())
    # The functions are not attributes of the module: `save` would trace each one again.
    signatures = {name: endpoint.function().get_concrete_function() for name, endpoint in made.items()}
    # Without gradients: a served graph is not trained, and the gradients of attention are half of its size.
    tf.saved_model.save(module, str(target), signatures, tf.saved_model.SaveOptions(experimental_custom_gradients=False))
