"""LiGRBlock: attention and SwiGLU, each in a gated residual."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.layers.attention.gated_residual import GatedResidual
from keras_ranking.layers.attention.self_gated_attention import GATED, SelfGatedAttention
from keras_ranking.layers.attention.swiglu import SwiGLU
from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs


@keras.saving.register_keras_serializable(package="keras_ranking")
class LiGRBlock(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """Two gated residuals, attention over spans and SwiGLU:

        x <- x + drop(Attention(LN(x))) * sigmoid(x W_a + b_a)
        x <- x + drop(SwiGLU(LN(x)))    * sigmoid(x W_f + b_f)

    Source: LiGR (2502.03417; second-hand, see `GatedResidual`). Public re-implementations have softmax attention, a
    SwiGLU of width 4 D, and gates with a bias that start near one half. Sizes, and the encoding of order or time, are unknown: they
    are arguments here. The form of a public re-implementation in PyTorch is
    `LiGRBlock(H, D // H, rotary=None, qkv_bias=True, epsilon=1e-5, dropout=p, attention_dropout=p)`; `load_ligr_weights` loads its weights.

    Args:
        num_heads, head_dim, num_kv_heads, rotary: see `SelfGatedAttention`, used here without its own gates.
        ffn_multiple: hidden width of the SwiGLU over D.
        use_bias, gate_bias, gate: see `GatedResidual`; `gate=False` gives the plain pre-norm block.
        activation: of the SwiGLU.
        dropout: rate on both branches and the SwiGLU's hidden units, in training.
        qkv_bias, attention_dropout: see `SelfGatedAttention`.
        ffn_bias: whether the linear maps of the SwiGLU have biases.
        epsilon: of both normalisations.
        causal: without `spans`, whether a token sees only itself and the tokens before it, as in a history, or all tokens, as in LiGR's
            sets of items shown together (for sets in one row see `SetwiseAttention`).
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of all maps, gates included.

    Call arguments:
        inputs, times, spans, cache, see_self, return_cache, mask, attention_mask, return_attention_scores: see `SelfGatedAttention`.

    Output:
        (B, T, D); with `return_cache` or `return_attention_scores` a tuple of this, key and value, scores.

    Example:
        >>> layer = kr.layers.LiGRBlock(num_heads=2, head_dim=4, rotary=None)
        >>> x = np.ones((1, 3, 8), "float32")
        >>> layer(x, spans=kr.ops.Spans.causal(np.ones((1, 3), "int32"))).shape
        (1, 3, 8)
    """

    whole = ("times",)
    weight_rules = GATED

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_kv_heads: int | None = None,
        rotary: tuple[float, float] | None = (8.0, 15_552_000.0),
        ffn_multiple: float = 4.0,
        use_bias: bool = True,
        gate_bias: float = 0.0,
        gate: bool = True,
        activation: str = "silu",
        dropout: float = 0.0,
        qkv_bias: bool = False,
        attention_dropout: float = 0.0,
        ffn_bias: bool = False,
        epsilon: float = 1e-6,
        causal: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if ffn_multiple <= 0:
            raise ValueError(f"`ffn_multiple` must be positive. Received: ffn_multiple={ffn_multiple}")
        if epsilon <= 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}")
        self.ffn_multiple, self.activation, self.dropout_rate = float(ffn_multiple), activation, float(dropout)
        self.use_bias, self.gate_bias, self.gate = bool(use_bias), float(gate_bias), bool(gate)
        self.ffn_bias, self.epsilon = bool(ffn_bias), float(epsilon)
        options: dict[str, Any] = {"gates": (), "rotary": rotary, "qkv_bias": qkv_bias, "attention_dropout": attention_dropout}
        options |= {"causal": causal, **self.rules(SelfGatedAttention)}
        attention = SelfGatedAttention(num_heads, head_dim, num_kv_heads, **options, dtype=self.dtype_policy, name="attention")
        self.attend = self._residual(attention, "attention_half")

    def _residual(self, sublayer: Any, name: str) -> GatedResidual:
        options: dict[str, Any] = {"use_bias": self.use_bias, "gate_bias": self.gate_bias, "gate": self.gate, "dropout": self.dropout_rate}
        options |= {"epsilon": self.epsilon, **self.rules(GatedResidual)}
        return GatedResidual(sublayer, **options, dtype=self.dtype_policy, name=name)

    @property
    def attention(self) -> Any:
        return self.attend.sublayer

    @property
    def attention_norm(self) -> Any:
        return self.attend.norm

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (None, None, int(input_shape[-1] or 0))
        hidden = max(1, round(self.ffn_multiple * shape[-1]))
        options: dict[str, Any] = {"dropout": self.dropout_rate, "use_bias": self.ffn_bias, **self.rules(SwiGLU)}
        ffn = SwiGLU(hidden, self.activation, **options, dtype=self.dtype_policy, name="ffn")
        self.feed = self._residual(ffn, "ffn_half")
        self.attend.build(shape)
        self.feed.build(shape)
        self.built = True

    def call(
        self,
        inputs: Any,
        times: Any = None,
        spans: Any = None,
        cache: Any = None,
        see_self: bool = True,
        return_cache: bool = False,
        mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Any:
        given = {"times": times, "spans": spans, "cache": cache, "mask": mask, "attention_mask": attention_mask, "training": training}
        normed, asked = self.attention_norm(inputs), {"return_cache": True, "return_attention_scores": return_attention_scores}
        attended, key, value, *scores = self.attention(normed, **given, see_self=see_self, **asked)
        x = self.feed(self.attend.merge(inputs, attended, training=training), training=training)
        found = (x, *((key, value) if return_cache else ()), *scores)
        return found if len(found) > 1 else x

    def compute_output_spec(
        self, inputs: Any, times: Any = None, spans: Any = None, cache: Any = None, training: bool | None = None, **settings: Any
    ) -> Any:
        return self.attention.compute_output_spec(inputs, times=times, spans=spans, cache=cache, **settings)

    def get_config(self) -> dict[str, Any]:
        attention = self.attention.get_config()
        return {
            **super().get_config(),
            **{name: attention[name] for name in ("num_heads", "head_dim", "num_kv_heads", "rotary")},
            **{name: attention[name] for name in ("qkv_bias", "attention_dropout", "causal")},
            "ffn_multiple": self.ffn_multiple,
            "use_bias": self.use_bias,
            "gate_bias": self.gate_bias,
            "gate": self.gate,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "ffn_bias": self.ffn_bias,
            "epsilon": self.epsilon,
        }
