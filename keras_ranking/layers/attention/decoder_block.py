"""A pre-norm decoder block over spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ranking.layers.attention.rescale_and_add import RescaleAndAdd
from keras_ranking.layers.attention.self_gated_attention import GATED, SelfGatedAttention
from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs

ADDS = ("attention_add", "ffn_add")


@keras.saving.register_keras_serializable(package="keras_ranking")
class DecoderBlock(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """Pre-norm block of attention and feed-forward:

        X <- add(X, drop(SelfGatedAttention(LN(X))))
        X <- add(X, drop(W_2 silu(W_1 LN(X))))                  add: two separate `RescaleAndAdd`, by default the plain sum

    Pre-norm is needed (stated by Feed-SR, 2602.12354: without it the AUC collapses to 0.5); CADET's own norm placement,
    feed-forward type and sizes are unknown. They are our choice, and each is an argument.

    Args:
        num_heads, head_dim, num_kv_heads, gates, gate_bias, rotary, rotate_by, rotary_base, causal: see `SelfGatedAttention`.
        ffn_multiple: width of the feed-forward layer over D. Related public code: 4.
        activation: of the feed-forward layer. Related public code: 'silu'.
        dropout: rate on both branches, in training.
        residual, residual_initial: `kind` and `initial` of `RescaleAndAdd`, which Feed-SR puts around both branches (stated).
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of all maps of attention, feed-forward
            layer and gates.

    Call arguments:
        inputs, times, spans, value_bias, cache, see_self, return_cache, index, stride, mask, attention_mask, return_attention_scores:
            see `SelfGatedAttention`.

    Output:
        (B, T, D), or (B, T / stride, D) with a stride; with `return_cache` or `return_attention_scores` a tuple of this, key and value,
        scores.

    Example:
        >>> layer = kr.layers.DecoderBlock(num_heads=2, head_dim=4)
        >>> x = np.ones((1, 3, 8), "float32")
        >>> layer(x, times=np.array([[1, 2, 3]], "int32"), spans=kr.ops.Spans.causal(np.ones((1, 3), "int32"))).shape
        (1, 3, 8)
    """

    whole = ("times", "index")
    weight_rules = GATED

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_kv_heads: int | None = None,
        gates: Sequence[str] = ("representation", "query", "key"),
        gate_bias: float = 2.0,
        rotary: tuple[float, float] | None = (8.0, 15_552_000.0),
        ffn_multiple: float = 4.0,
        activation: str = "silu",
        dropout: float = 0.0,
        residual: str = "plain",
        residual_initial: float | None = None,
        rotate_by: str | None = "time",
        rotary_base: float = 10_000.0,
        causal: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if ffn_multiple <= 0:
            raise ValueError(f"`ffn_multiple` must be positive. Received: ffn_multiple={ffn_multiple}")
        self.ffn_multiple, self.activation, self.dropout_rate = float(ffn_multiple), activation, float(dropout)
        policy = self.dtype_policy
        options: dict[str, Any] = {"rotary": rotary, "rotate_by": rotate_by, "rotary_base": rotary_base, "causal": causal}
        options |= {"gates": gates, "gate_bias": gate_bias, "dtype": policy, **self.rules(SelfGatedAttention)}
        self.attention = SelfGatedAttention(num_heads, head_dim, num_kv_heads, **options, name="attention")
        adding = {name: RescaleAndAdd(residual, residual_initial, dtype=policy, name=name, **self.rules(RescaleAndAdd)) for name in ADDS}
        self.attention_add, self.ffn_add = adding["attention_add"], adding["ffn_add"]
        self.attention_norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="attention_norm")
        self.ffn_norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="ffn_norm")
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = int(input_shape[-1] or 0)
        hidden = max(1, round(self.ffn_multiple * width))
        self.ffn_in = self.dense(hidden, activation=self.activation, name="ffn_in")
        self.ffn_out = self.dense(width, name="ffn_out")
        shape = (None, None, width)
        self.attention_norm.build(shape)
        self.attention.build(shape)
        self.ffn_norm.build(shape)
        self.ffn_in.build(shape)
        self.ffn_out.build((None, None, hidden))
        self.dropout.build(shape)
        self.attention_add.build(shape)
        self.ffn_add.build(shape)
        self.built = True

    def call(
        self,
        inputs: Any,
        times: Any = None,
        spans: Any = None,
        value_bias: Any = None,
        cache: Any = None,
        see_self: bool = True,
        return_cache: bool = False,
        index: Any = None,
        stride: int = 1,
        mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Any:
        given = {"times": times, "index": index, "spans": spans, "value_bias": value_bias, "cache": cache, "stride": stride}
        given |= {"mask": mask, "attention_mask": attention_mask, "return_attention_scores": return_attention_scores}
        attended, key, value, *scores = self.attention(self.attention_norm(inputs), **given, see_self=see_self, return_cache=True)
        queries = inputs if stride == 1 else inputs[:, ::stride]
        x = self.with_attended(queries, attended, training=training)
        found = (x, *((key, value) if return_cache else ()), *scores)
        return found if len(found) > 1 else x

    def with_attended(self, inputs: Any, attended: Any, training: bool | None = None) -> Any:
        """The block's output, where what attention adds to its inputs is known."""
        x = self.attention_add(inputs, self.dropout(attended, training=training))
        return self.ffn_add(x, self.dropout(self.ffn_out(self.ffn_in(self.ffn_norm(x))), training=training))

    def compute_output_spec(self, inputs: Any, *given: Any, training: bool | None = None, **settings: Any) -> Any:
        return self.attention.compute_output_spec(inputs, *given, **settings)

    def get_config(self) -> dict[str, Any]:
        attention = self.attention.get_config()
        names = ("num_heads", "head_dim", "num_kv_heads", "gates", "gate_bias", "rotary", "rotate_by", "rotary_base", "causal")
        shared = {name: attention[name] for name in names}
        return {
            **super().get_config(),
            **shared,
            "ffn_multiple": self.ffn_multiple,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "residual": self.attention_add.kind,
            "residual_initial": None if self.attention_add.kind == "plain" else self.attention_add.initial,
        }
