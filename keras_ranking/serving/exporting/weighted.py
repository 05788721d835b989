"""Signatures whose `score` has weights of the request in the place of the exported ones. TensorFlow backend.

All inputs of a signature are required in TensorFlow Serving, and with batching each has the requests first: a weight cannot be left out.
So the weights of a request are inputs of a signature of their own, and a call without them goes to the signature without.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from keras_ranking.models.served_values import weighted_sum
from keras_ranking.serving.exporting.signatures import Endpoint, Specs, Tensors, calling
from keras_ranking.serving.protocol.model_folder import SCORE, SIGNATURE, WEIGHTED
from keras_ranking.utility import SCORE as UTILITY, WEIGHT


def with_weights(made: Mapping[str, Endpoint], tasks: Collection[str]) -> dict[str, Endpoint]:
    """The endpoints, with `weighted` and `score_candidates_weighted` where the model has a utility.

    Args:
        made: endpoints on encoded tensors, not guarded.
        tasks: that are served. Each has an input `weight_<task>` float32 (B,).
    """
    out = dict(made)
    for name in (SIGNATURE, SCORE):
        if name in made and UTILITY in made[name].outputs:
            shared = made[name].function()  # traced once, called by both
            out[name] = replace(made[name], body=calling(shared))
            inputs = made[name].inputs | weight_specs(tasks)
            out[WEIGHTED[name]] = replace(made[name], body=_Weighted(shared, list(made[name].inputs), tasks), inputs=inputs)
    return out


def weight_specs(tasks: Collection[str]) -> Specs:
    """The inputs with the weights, as in `Card`."""
    return {WEIGHT + task: {"dtype": "float32", "shape": [None], "axis": None, "rows": None} for task in tasks}


def weighted_outputs(outputs: Mapping[str, Any], weights: Mapping[str, Any]) -> Tensors:
    """Outputs with the `score` of these weights, (B,) by input; arrays and tensors alike."""
    named = {name.removeprefix(WEIGHT): weight[:, None] for name, weight in weights.items()}
    return {**outputs, UTILITY: weighted_sum(outputs, named)}


class _Weighted:
    """The body of such an endpoint."""

    def __init__(self, scored: Any, inputs: Collection[str], tasks: Collection[str]) -> None:
        self._scored, self._inputs, self._weights = scored, inputs, [WEIGHT + task for task in tasks]

    def __call__(self, tensors: Tensors) -> Tensors:
        outputs = self._scored({name: tensors[name] for name in self._inputs})
        return weighted_outputs(outputs, {name: tensors[name] for name in self._weights})
