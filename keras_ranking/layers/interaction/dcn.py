"""Deep and cross networks: cross layers in parallel with an MLP, or before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import PassesMask, WeightRules
from keras_ranking.layers.interaction.attention_low_rank_cross import AttentionLowRankCross
from keras_ranking.layers.interaction.gated_mlp import GatedMLP
from keras_ranking.layers.interaction.low_rank_cross import LowRankCross
from keras_ranking.layers.interaction.residual_dcn import ResidualDCN

CROSSES: dict[str, Any] = {"low_rank": LowRankCross, "attention": AttentionLowRankCross, "residual": ResidualDCN}


class CrossAndMLP(PassesMask, WeightRules, keras.layers.Layer):
    """Base of `ParallelDCN` and `StackedDCN`: a cross net, an MLP and their arguments."""

    def __init__(
        self,
        rank: int | None,
        num_layers: int = 2,
        hidden: Sequence[int] = (100, 100, 100, 100),
        cross: str = "low_rank",
        cross_options: Mapping[str, Any] | None = None,
        gate: str | None = None,
        gate_rank: int | str | None = "auto",
        gate_activation: str = "tanh",
        gate_identity_at_start: bool = True,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if cross not in CROSSES:
            raise ValueError(f"`cross` must be of {tuple(CROSSES)}. Received: cross={cross!r}")
        if not hidden or any(width < 1 for width in hidden):
            raise ValueError(f"`hidden` must be one or more positive integers. Received: hidden={tuple(hidden)}")
        options = dict(cross_options or {})
        self.cross, self._options = cross, tuple(options)
        given = {"dtype": self.dtype_policy, **self.rules(CROSSES[cross]), **options}
        self.cross_net = CROSSES[cross](rank, num_layers, **given, name="cross_net")
        self.mlp = GatedMLP(
            hidden,
            gate=gate,
            gate_rank=gate_rank,
            gate_activation=gate_activation,
            gate_identity_at_start=gate_identity_at_start,
            activation=activation,
            dropout=dropout,
            normalization=normalization,
            dtype=self.dtype_policy,
            **self.rules(GatedMLP),
            name="mlp",
        )

    def get_config(self) -> dict[str, Any]:
        cross, mlp = self.cross_net.get_config(), self.mlp.get_config()
        names = ("gate", "gate_rank", "gate_activation", "gate_identity_at_start", "activation", "dropout", "normalization")
        return {
            **super().get_config(),
            "rank": cross["rank"],
            "num_layers": cross["num_layers"],
            "hidden": mlp["widths"],
            "cross": self.cross,
            "cross_options": {name: cross[name] for name in self._options},
            **{name: mlp[name] for name in names},
        }


@keras.saving.register_keras_serializable(package="keras_ranking")
class ParallelDCN(CrossAndMLP):
    """A cross net and an MLP in parallel on one input: `out = [ cross(x) ; mlp(x) ]`.

    The parallel structure of DCNv2 (2008.13535, stated). With cross='residual' and gate='dense' it is the core of LiRank
    (2402.06859): Residual DCN and a gated MLP. That they are parallel is our choice: the paper does not say it.

    Args:
        rank, num_layers: of the cross net, see `LowRankCross`.
        hidden: widths of the MLP. 4 x 100 was LiRank's feed MLP before the large one (stated).
        cross: 'low_rank' (`LowRankCross`), 'attention' (`AttentionLowRankCross`) or 'residual' (`ResidualDCN`).
        cross_options: further arguments of that layer, such as {"head_dim": 4}.
        gate, gate_rank, gate_activation, gate_identity_at_start, activation, dropout, normalization: of the MLP, see `GatedMLP`;
            no gates by default, as in DCNv2.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of the cross net and
            the MLP, where `cross_options` do not say otherwise.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        (B, ..., D + hidden[-1]); 2 D + hidden[-1] with cross='residual' unless it merges by sum.

    Raises:
        ValueError: an unknown `cross`, no `hidden`, or errors of the layers above.

    Example:
        >>> kr.layers.ParallelDCN(rank=4, hidden=[8, 6], cross="residual", gate="dense")(np.ones((3, 16), "float32")).shape
        (3, 38)
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.cross_net.build(input_shape)
        self.mlp.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return ops.concatenate([self.cross_net(inputs), self.mlp(inputs, training=training)], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        crossed = self.cross_net.compute_output_shape(input_shape)
        width = None if crossed[-1] is None else crossed[-1] + self.mlp.widths[-1]
        return (*tuple(input_shape)[:-1], width)


@keras.saving.register_keras_serializable(package="keras_ranking")
class StackedDCN(CrossAndMLP):
    """A cross net, followed by an MLP: `out = mlp(cross(x))`.

    The stacked structure of DCNv2 (2008.13535, stated).

    Args:
        rank, num_layers, hidden, cross, cross_options, gate, gate_rank, gate_activation, gate_identity_at_start, activation,
            dropout, normalization, kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer,
                bias_constraint: see `ParallelDCN`.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        (B, ..., hidden[-1]).

    Raises:
        ValueError: see `ParallelDCN`.

    Example:
        >>> kr.layers.StackedDCN(rank=4, hidden=[8, 6])(np.ones((3, 16), "float32")).shape
        (3, 6)
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.cross_net.build(input_shape)
        self.mlp.build(self.cross_net.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.mlp(self.cross_net(inputs), training=training)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.mlp.widths[-1])
