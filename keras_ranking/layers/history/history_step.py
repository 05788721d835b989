"""One step of a history encoder as a layer, for functional models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_ranking.layers.base import RefusesMask, WholeInputs

_STEPS = ("prefill", "score", "extend")


@keras.saving.register_keras_serializable(package="keras_ranking")
class HistoryStep(WholeInputs, RefusesMask, keras.layers.Layer):
    """One step of a `HistoryEncoder` as a layer of its own, over the same weights.

    For functional models: in these, a layer must have the same number of outputs in every call, and a cache is several tensors.

    Args:
        encoder: a `HistoryEncoder` that is built.
        step: 'prefill', 'score' or 'extend'.

    Call arguments:
        inputs, cache: see the method of `HistoryEncoder` with the name of the step.

    Output:
        'score': candidates as in `HistoryEncoder.score`; else a cache, a dict of tensors.

    Example:
        >>> encoder = kr.layers.HistoryEncoder(max_history=4, num_heads=1)
        >>> inputs = {"history": np.ones((2, 6, 4)), "candidates": np.ones((2, 5, 3)), "visible": np.array([6, 0], "int32")}
        >>> _ = encoder(inputs)
        >>> sorted(kr.layers.HistoryStep(encoder, "prefill")({"history": inputs["history"], "visible": inputs["visible"]}))
        ['key', 'length', 'value']
    """

    whole = ("times", "time", "request_time", "visible", "slot", "count", "length", "sessions", "session")
    mask_instead = "`visible` and the other entries of its dict"

    def __init__(self, encoder: Any, step: str, **settings: Any) -> None:
        if isinstance(encoder, dict):
            encoder = keras.saving.deserialize_keras_object(encoder)
        if step not in _STEPS:
            raise ValueError(f"`step` must be one of {_STEPS}. Received: step={step!r}")
        super().__init__(**{"dtype": encoder.dtype_policy, **settings, "autocast": False})
        self.encoder, self.step = encoder, step

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Mapping[str, Any], cache: Mapping[str, Any] | None = None, training: bool | None = None) -> Any:
        return self.encoder(inputs, cache=cache, step=self.step, training=training)

    def compute_output_spec(self, inputs: Any, cache: Any = None, training: bool | None = None) -> Any:
        return self.encoder.compute_output_spec(inputs, cache=cache, step=self.step)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "encoder": keras.saving.serialize_keras_object(self.encoder), "step": self.step}
