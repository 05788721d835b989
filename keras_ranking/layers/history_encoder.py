"""A member's recent events, read for one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.decoder_block import DecoderBlock
from keras_ranking.ops import Spans

_FUSIONS = ("concat",)


@keras.saving.register_keras_serializable(package="keras_ranking")
class HistoryEncoder(keras.layers.Layer):
    """Encodes the latest events of a history together with each candidate (LiRank's "TransAct", 2402.06859).

        token_nj = [h_j ; c_n]              j: the W latest visible events, h = item and action embeddings, c: the candidate
        H_n      = LN(Block^num_layers(token_n))                     events of one window see each other, both ways
        out_n    = [max_j H_nj ; H_n,latest ; ... ; H_n,latest-k+1]      the k latest events, most recent first

    Stated: the candidate is joined to every event ("early fusion"), 2 layers, a feed-forward layer half as wide as its input,
    max-pooling and the last five outputs. Ours: pre-norm blocks, heads, no encoding of order or time unless `rotary` is given, the
    window's length (the paper's offline gains: 25, 50 and 100 events). Slots without an event take no part in attention and
    pooling; where there are none at all the output is zero.

    Every candidate repeats the whole encoder, which is what this form costs: N W tokens a request.

    Args:
        fusion: 'concat'.
        max_history: W, latest visible events that are read.
        num_layers, num_heads, head_dim: of the blocks; `head_dim=None`: the token's width over the heads, made even.
        ffn_multiple: width of the feed-forward layer over the token's.
        latest: k, how many of the last outputs are returned one by one.
        projection: width to which the output is mapped by a linear layer; None: (1 + k) times the token's width.
        rotary: (shortest, longest) seconds of timestamp rotation, or None.
        activation, dropout: of the blocks.

    Call arguments:
        inputs: dict of `history` h (B, L, E), oldest first; `candidates` c (B, N, C); `visible` int32 (B,), how many of the first
            events are visible; and, for a rotation, `times` int32 (B, L).

    Output:
        (B, N, projection), or (B, N, (1 + k) (E + C)).

    Raises:
        ValueError: an unknown fusion, a size below 1, widths unknown, or no `times` for a rotation.

    Example:
        >>> layer = HistoryEncoder(max_history=4, num_heads=1, latest=2)
        >>> history, candidates = np.ones((2, 6, 3), "float32"), np.ones((2, 5, 5), "float32")
        >>> layer({"history": history, "candidates": candidates, "visible": np.array([6, 0], "int32")}).shape
        (2, 5, 24)
    """

    def __init__(
        self,
        fusion: str = "concat",
        max_history: int = 50,
        num_layers: int = 2,
        num_heads: int = 2,
        head_dim: int | None = None,
        ffn_multiple: float = 0.5,
        latest: int = 5,
        projection: int | None = None,
        rotary: tuple[float, float] | None = None,
        activation: str = "silu",
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if fusion not in _FUSIONS:
            raise ValueError(f"`fusion` must be one of {_FUSIONS}. Received: fusion={fusion!r}")
        for name, value in (("max_history", max_history), ("num_layers", num_layers), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if not 0 <= latest <= max_history:
            raise ValueError(f"`latest` must be from 0 to max_history={max_history}. Received: latest={latest}")
        if projection is not None and projection < 1:
            raise ValueError(f"`projection` must be a positive integer or None. Received: projection={projection}")
        self.fusion, self.max_history, self.num_layers, self.num_heads = fusion, int(max_history), int(num_layers), int(num_heads)
        self.head_dim, self.ffn_multiple, self.latest, self.projection = head_dim, float(ffn_multiple), int(latest), projection
        self.rotary = None if rotary is None else (float(rotary[0]), float(rotary[1]))
        self.activation, self.dropout_rate = activation, float(dropout)

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        needed = ["history", "candidates", "visible"] + (["times"] if self.rotary is not None else [])
        missing = [name for name in needed if name not in input_shape]
        if missing:
            raise ValueError(f"`inputs` must be a dict of {needed}. Missing: {missing}")
        widths = [input_shape[name][-1] for name in ("history", "candidates")]
        if None in widths:
            raise ValueError(f"the last axes of history and candidates must be known. Received: {widths}")
        width = sum(int(size or 0) for size in widths)
        head_dim = self.head_dim or max(2, width // self.num_heads // 2 * 2)
        policy, shape = self.dtype_policy, (None, None, width)
        self.blocks = []
        for i in range(self.num_layers):
            block = DecoderBlock(
                self.num_heads,
                head_dim,
                gates=(),
                rotary=self.rotary,
                ffn_multiple=self.ffn_multiple,
                activation=self.activation,
                dropout=self.dropout_rate,
                dtype=policy,
                name=f"block_{i}",
            )
            block.build(shape)
            self.blocks.append(block)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.norm.build(shape)
        self.out = None if self.projection is None else keras.layers.Dense(self.projection, dtype=policy, name="projection")
        if self.out is not None:
            self.out.build((None, None, (1 + self.latest) * width))
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        history, candidates, visible = (inputs[name] for name in ("history", "candidates", "visible"))
        shape = ops.shape(candidates)
        batch, count, window = shape[0], shape[1], self.max_history
        slots = ops.arange(window, dtype="int32")
        # The window ends at the last visible event, so the latest events stand in fixed slots.
        index = visible[:, None] - window + slots[None, :]
        real = index >= 0
        index = ops.maximum(index, 0)
        recent = ops.take_along_axis(history, index[:, :, None], axis=1)
        recent = ops.where(real[:, :, None], recent, ops.zeros_like(recent))
        wide = (batch, count, window)
        tokens = ops.concatenate(
            [
                ops.broadcast_to(recent[:, None], (*wide, recent.shape[-1])),
                ops.broadcast_to(ops.cast(candidates, recent.dtype)[:, :, None], (*wide, candidates.shape[-1])),
            ],
            axis=-1,
        )
        width = recent.shape[-1] + candidates.shape[-1]

        def rows(x: Any, *trailing: int) -> Any:
            return ops.reshape(x, (-1, window, *trailing))

        x, real = rows(tokens, width), rows(ops.broadcast_to(real[:, None], wide))
        first = ops.sum(ops.cast(ops.logical_not(real), "int32"), axis=1, keepdims=True)
        start = ops.where(real, first, window)  # a slot without an event sees nothing
        spans = Spans(start, ops.full_like(start, window), ops.zeros_like(start) + slots[None, :] + 1)
        moments = None
        if self.rotary is not None:
            moments = rows(ops.broadcast_to(ops.take_along_axis(inputs["times"], index, axis=1)[:, None], wide))
        for block in self.blocks:
            x = block(x, times=moments, spans=spans, training=training)
        x = self.norm(x)
        real = real[:, :, None]
        highest = ops.max(ops.where(real, x, ops.full_like(x, -3e4)), axis=1)  # within float16 and bfloat16
        pooled = ops.where(ops.any(real, axis=1), highest, ops.zeros_like(highest))
        x = ops.where(real, x, ops.zeros_like(x))
        latest = [x[:, window - 1 - i] for i in range(self.latest)]
        out = ops.reshape(ops.concatenate([pooled, *latest], axis=-1), (batch, count, (1 + self.latest) * width))
        return out if self.out is None else self.out(out)

    def compute_output_spec(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        candidates = inputs["candidates"]
        width = self.projection or (1 + self.latest) * (inputs["history"].shape[-1] + candidates.shape[-1])
        return keras.KerasTensor((*tuple(candidates.shape[:2]), width), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "fusion": self.fusion,
            "max_history": self.max_history,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "ffn_multiple": self.ffn_multiple,
            "latest": self.latest,
            "projection": self.projection,
            "rotary": None if self.rotary is None else list(self.rotary),
            "activation": self.activation,
            "dropout": self.dropout_rate,
        }
