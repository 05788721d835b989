"""LiRank's MLP with a gate after each hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules
from keras_ranking.layers.interaction.dense_gate import DenseGate

NORMALIZATIONS = {"batch": keras.layers.BatchNormalization, "layer": keras.layers.LayerNormalization}


@keras.saving.register_keras_serializable(package="keras_ranking")
class GatedMLP(PassesMask, WeightRules, keras.layers.Layer):
    """Hidden layers, each followed by a `DenseGate`.

        h_i = a(norm(h_{i-1} W_i + b_i));   h_i <- dropout(gate_i(h_i))           i = 1..M, h_0 the input

    LiRank (2402.06859) states: gates on the hidden layers; the largest MLP offline has 4 layers of 3500, +1.23 %, with a gain online
    only together with personalised embeddings; the earlier feed MLP had 4 layers of 100. Production widths, activation, dropout and
    normalisation are not given: each is an argument. There is no output layer: the last hidden layer is the input of the heads.

    Args:
        widths: of the hidden layers, at least one.
        gate: 'dense', a `DenseGate` after each hidden layer, or None.
        gate_rank, gate_activation, gate_identity_at_start: of the gates, see `DenseGate`. Our choice: 'auto', a full matrix up to a
            width of 128 and two factors beyond; and gates that start as the identity, because each plain product with a tanh shrinks
            the signal: at the start of training, four layers turn unit inputs into outputs of size 1e-4 (width 100) or 1e-12 (width
            1000), without gates of size 0.2.
        activation: a.
        dropout: rate after each hidden layer, in training.
        normalization: before the activation: 'batch' (W then has no bias; all tokens enter the moments, padding too), 'layer' or
            None.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of W_i and b_i; the
            kernel's also of the gates.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        (B, ..., widths[-1]).

    Raises:
        ValueError: no widths or one below 1; an unknown `gate` or `normalization`; errors of `DenseGate`; inputs of rank below 2, or an
            unknown last axis.

    Example:
        >>> kr.layers.GatedMLP([8, 4])(np.ones((3, 6), "float32")).shape
        (3, 4)
    """

    def __init__(
        self,
        widths: Sequence[int],
        gate: str | None = "dense",
        gate_rank: int | str | None = "auto",
        gate_activation: str = "tanh",
        gate_identity_at_start: bool = True,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not widths or any(width < 1 for width in widths):
            raise ValueError(f"`widths` must be one or more positive integers. Received: widths={tuple(widths)}")
        if gate not in ("dense", None):
            raise ValueError(f"`gate` must be 'dense' or None. Received: gate={gate!r}")
        if normalization is not None and normalization not in NORMALIZATIONS:
            raise ValueError(f"`normalization` must be of {tuple(NORMALIZATIONS)} or None. Received: normalization={normalization!r}")
        self.widths, self.gate, self.activation, self.dropout_rate = tuple(int(width) for width in widths), gate, activation, float(dropout)
        self.gate_rank, self.gate_activation, self.gate_identity_at_start = gate_rank, gate_activation, bool(gate_identity_at_start)
        self.normalization = normalization
        policy = self.dtype_policy
        self.steps: list[list[Any]] = []
        for i, width in enumerate(self.widths):
            step = [self.dense(width, use_bias=normalization != "batch", name=f"dense_{i}")]
            if normalization is not None:
                step.append(NORMALIZATIONS[normalization](dtype=policy, name=f"normalization_{i}"))
            step.append(keras.layers.Activation(activation, dtype=policy, name=f"activation_{i}"))
            if gate is not None:
                options: dict[str, Any] = {"activation": gate_activation, "identity_at_start": gate_identity_at_start}
                step.append(DenseGate(gate_rank, **options, **self.rules(DenseGate), dtype=policy, name=f"gate_{i}"))
            step.append(keras.layers.Dropout(dropout, dtype=policy, name=f"dropout_{i}"))
            self.steps.append(step)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(f"`inputs` must be (B, ..., D) with D known. Received: shape={tuple(input_shape)}")
        before = int(input_shape[-1])
        for width, (dense, *rest) in zip(self.widths, self.steps):
            dense.build((None, before))
            for layer in rest:
                layer.build((None, width))
            before = width
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: int(input_shape[-1])})
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        # Leading axes merged: a BatchNormalization accepts only the number of axes with which it was built.
        x = inputs if len(inputs.shape) == 2 else ops.reshape(inputs, (-1, inputs.shape[-1]))
        for step in self.steps:
            for layer in step:
                switches = isinstance(layer, (keras.layers.Dropout, keras.layers.BatchNormalization))
                x = layer(x, training=training) if switches else layer(x)
        return x if len(inputs.shape) == 2 else ops.reshape(x, (*ops.shape(inputs)[:-1], self.widths[-1]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.widths[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "widths": list(self.widths),
            "gate": self.gate,
            "gate_rank": self.gate_rank,
            "gate_activation": self.gate_activation,
            "gate_identity_at_start": self.gate_identity_at_start,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "normalization": self.normalization,
        }
