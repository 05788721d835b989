"""Signatures compiled by XLA for fixed lengths: the graph pads a request to its bucket, outside the compiled part.

XLA compiles a program for each shape, so free lengths would mean unlimited compilations. Each pair of a history length and a
candidate count has a compiled function; longer requests run in the plain graph. Each batch size is compiled too: use few sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from keras_ranking.serving.exporting.signatures import Endpoint, Tensors
from keras_ranking.serving.protocol.model_folder import AXES, CACHE, ENCODE, EXPLORE, SCORE, SIGNATURE

Lengths = Sequence[int]


def compiled(made: dict[str, Endpoint], history: Lengths, candidates: Lengths) -> dict[str, Endpoint]:
    """Compile the endpoints with attention and trunk for each bucket; the others, such as `raw` and `explore`, are unchanged."""
    out = dict(made)
    for name in (SIGNATURE, ENCODE):
        if name in made:
            body = made[name].body
            out[name] = by_bucket(made[name], history, candidates, partial(_jitted_for, body))
    if SCORE in made:
        out[SCORE] = _scored(made[SCORE], made[ENCODE], history, candidates)
    return {name: endpoint for name, endpoint in out.items() if name != EXPLORE} | {k: v for k, v in made.items() if k == EXPLORE}


def jitted(body: Callable[[Tensors], Tensors]) -> Any:
    """A function that XLA compiles for each shape of its inputs."""
    return tf.function(body, jit_compile=True, autograph=False)


def _jitted_for(body: Callable[[Tensors], Tensors], pair: dict[str, int]) -> Any:
    """A separate compiled function for each pair of lengths."""
    return jitted(body)


def by_bucket(
    endpoint: Endpoint, history: Lengths, candidates: Lengths, make: Callable[[dict[str, int]], Any], plain: bool = True
) -> Endpoint:
    """An endpoint that selects the function of its request's bucket.

    Args:
        endpoint: with the plain body.
        history, candidates: lengths.
        make: lengths by axis -> function of the padded tensors.
        plain: whether longer requests run in the plain body; False: their scores are NaN, which `guarded` marks.
    """
    axes = {axis: sizes for axis, sizes in (("history", history), ("candidate", candidates)) if _first(endpoint, axis)}
    pairs: list[dict[str, int]] = [{}]
    for axis, sizes in axes.items():
        pairs = [{**pair, axis: size} for pair in pairs for size in sizes]
    functions = [make(pair) for pair in pairs]

    def body(tensors: Tensors) -> Tensors:
        tensors = dict(tensors)
        width = {axis: tf.shape(tensors[_first(endpoint, axis)])[1] for axis in axes}
        index, inside = tf.constant(0), tf.constant(True)
        for axis, sizes in axes.items():
            place = tf.searchsorted(tf.constant(sizes), width[axis][None])[0]
            inside &= place < len(sizes)
            index = index * len(sizes) + tf.minimum(place, len(sizes) - 1)

        def run(number: int) -> Tensors:
            given = {name: padded(x, endpoint.inputs[name]["axis"], pairs[number]) for name, x in tensors.items()}
            return _cut(dict(functions[number](given)), endpoint, width)

        branches: list[Any] = [lambda number=number: run(number) for number in range(len(pairs))]
        if plain:
            return dict(tf.switch_case(tf.where(inside, index, len(pairs)), [*branches, lambda: endpoint.body(tensors)]))
        shorter, beyond = _shortened(tensors, {axis: max(sizes) for axis, sizes in axes.items()})
        tensors.update(shorter)
        outputs = dict(tf.switch_case(index, branches))
        return {name: _wide(x, endpoint.outputs[name]["axis"], width, beyond) for name, x in outputs.items()}

    return replace(endpoint, body=body)


def _scored(score: Endpoint, encode: Endpoint, history: Lengths, candidates: Lengths) -> Endpoint:
    """`score_candidates` for caches as `encode_history` returns them, at the length of a bucket; other lengths run in the plain graph."""
    shapes = [_cache_shapes(encode, size) for size in history]
    made = [(shape, size, jitted(score.body)) for shape in shapes for size in candidates]

    def body(tensors: Tensors) -> Tensors:
        width = tf.shape(tensors[_first(score, "candidate")])[1]
        index = tf.constant(len(made))
        for number, (shape, size, _) in reversed(list(enumerate(made))):
            fits = width <= size
            for name, dims in shape.items():
                for axis, dim in enumerate(dims):
                    fits &= True if axis == 0 or dim is None else tf.equal(tf.shape(tensors[name])[axis], dim)
            index = tf.where(fits, number, index)

        def run(number: int) -> Tensors:
            shape, size, function = made[number]
            given = {name: padded(x, score.inputs[name]["axis"], {"candidate": size}) for name, x in tensors.items()}
            for name, dims in shape.items():
                given[name] = tf.ensure_shape(given[name], dims)
            return _cut(dict(function(given)), score, {"candidate": width})

        return dict(
            tf.switch_case(index, [*[lambda number=number: run(number) for number in range(len(made))], lambda: score.body(tensors)])
        )

    return replace(score, body=body)


def _cache_shapes(encode: Endpoint, size: int) -> dict[str, list[int | None]]:
    """Shapes of the cache of a history of `size` events."""
    wanted = {}
    for name, spec in encode.inputs.items():
        shape = list(spec["shape"])
        if spec["axis"] == "history":
            shape[1] = size
        wanted[name] = tf.TensorSpec(shape, spec["dtype"], name=name)
    found = jitted(encode.body).get_concrete_function(wanted).structured_outputs
    return {name: x.shape.as_list() for name, x in found.items() if name.startswith(CACHE)}


def _first(endpoint: Endpoint, axis: str) -> str:
    return next((name for name, spec in endpoint.inputs.items() if spec["axis"] == axis), "")


def padded(x: Any, axis: str | None, lengths: dict[str, int]) -> Any:
    """Pad with zeros (empty texts) to the bucket, with a static shape."""
    if axis not in lengths:
        return x
    rest = [[0, 0]] * (len(x.shape) - 2)
    x = tf.pad(x, [[0, 0], [0, tf.maximum(lengths[axis] - tf.shape(x)[1], 0)], *rest])
    x = x[:, : lengths[axis]]
    x.set_shape([x.shape[0], lengths[axis], *x.shape[2:]])
    return x


def _shortened(tensors: Tensors, longest: dict[str, int]) -> tuple[Tensors, Any]:
    """Counts of at most the longest bucket, and (B,) bool: requests with a larger one."""
    beyond = tf.zeros(tf.shape(next(iter(tensors.values())))[:1], tf.bool)
    counts = {}
    for axis, size in longest.items():
        name = AXES[axis]
        if name in tensors:
            beyond |= tensors[name] > size
            counts[name] = tf.minimum(tensors[name], size)
    return counts, beyond


def _wide(x: Any, axis: str | None, width: dict[str, Any], beyond: Any) -> Any:
    """Scores at the width of the request, zero beyond the bucket; NaN in requests that are longer than it."""
    rest = len(x.shape) - 1
    if axis in width:
        x = tf.pad(x, [[0, 0], [0, tf.maximum(width[axis] - tf.shape(x)[1], 0)], *[[0, 0]] * (rest - 1)])
    return tf.where(tf.reshape(beyond, [-1] + [1] * rest), tf.constant(float("nan"), x.dtype), x)


def _cut(outputs: Tensors, endpoint: Endpoint, width: dict[str, Any]) -> Tensors:
    cut = {}
    for name, x in outputs.items():
        axis = endpoint.outputs[name]["axis"]
        cut[name] = x[:, : width[axis]] if axis in width else x
    return cut
