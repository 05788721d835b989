"""CADET's self-gated attention: gates on the inputs of attention, before rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.attention.attention_scores import scores_of, softmax_over, visible_pairs, weighted
from keras_ranking.layers.attention.dropped_weights import attend_dropping, candidates_dropping
from keras_ranking.layers.attention.held_keys import Held, attend_held, hold
from keras_ranking.layers.attention.index_rotary import IndexRotaryEmbedding
from keras_ranking.layers.attention.timestamp_rotary import TimestampRotaryEmbedding
from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs, mask_of_all
from keras_ranking.ops import Spans, candidate_attention, span_attention
from keras_ranking.ops.masks import RealFirst, mask_of
from keras_ranking.ops.sequences import append_rows

GATES = ("representation", "query", "key", "output")
GATED = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")  # biases: of gates
ROTATIONS = ("time", "index", "split", None)


def whole_row(like: Any, causal: bool) -> Spans:
    """Spans of rows (B, T, ...) without padding that hold one sequence each: causal, or each token sees all."""
    shape = ops.shape(like)
    index = ops.zeros_like(like[:, :, 0], dtype="int32") + ops.arange(shape[1], dtype="int32")[None, :]
    first = ops.zeros_like(index)
    return Spans(first, index, index) if causal else Spans(first, first + shape[1], index + 1)


def _every(values: Any, stride: int) -> Any:
    """Every `stride`-th token of (B, T, ...)."""
    return values if values is None or stride == 1 else values[:, ::stride]


def _check_stride(inputs: Any, stride: int, mask: Any = None) -> None:
    if stride < 1 or (inputs.shape[1] is not None and inputs.shape[1] % stride):
        received = f"stride={stride}, inputs.shape={tuple(inputs.shape)}"
        raise ValueError(f"`stride` must be at least 1, and divide the number of tokens. Received: {received}")
    if stride > 1 and (mask is not None or mask_of(inputs) is not None):
        raise ValueError(f"`stride` drops tokens, and so does not go with a Keras mask. Received: stride={stride}, inputs with a mask")


def _of_row(query: Any, key: Any, value: Any, spans: Spans, mask: Any, stride: int) -> Any:
    """`span_attention` without the tokens that a mask hides."""
    if mask is None:
        return span_attention(query, key, value, Spans(*(_every(part, stride) for part in spans)), stride=stride)
    first = RealFirst.of(mask)
    return first.back(span_attention(first.rows(query), first.rows(key), first.rows(value), first.spans(spans)))


@keras.saving.register_keras_serializable(package="keras_ranking")
class SelfGatedAttention(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """Span attention whose gates are computed from the tensors they multiply.

        X~ = X * sigmoid(W_x X + b_x)                                       "representation"
        Q = X~ W_Q, K = X~ W_K, V = (X~ + A) W_V                            A: optional value injection
        Q~ = Q * sigmoid(W_q Q + b_q),  K~ = K * sigmoid(W_k K + b_k)       "query", "key"
        O = softmax(R_t(Q~) R_t(K~)^T / sqrt(d_h) + spans) V
        O = O * sigmoid(W_o' X + b_o')                                      "output" (Qwen's G1, for comparison)
        Y = O W_O

    The first three gates, on the inputs of attention, are CADET's (2602.11410; stated second-hand). Gates are applied before the
    rotation: unequal gates on a rotated pair would make scores depend on absolute time (tested). A full matrix for each gate, the
    biases and their initial value, and projections without bias are our choice. sigmoid(2) = 0.88: close to the block without gates.

    The same weights are used in four calls: a row (`spans`), the history with `return_cache=True`, candidates against cached keys
    (`cache`), and later events appended to cached ones (`cache` and `spans`). Cached keys are already gated and rotated, and stay
    valid for later request times.

    Args:
        num_heads: H.
        head_dim: width of a head; even if there is a rotation.
        num_kv_heads: key and value heads, a divisor of H; None: H.
        gates: any of 'representation', 'query', 'key', 'output'.
        gate_bias: initial bias b of every gate.
        rotary: (shortest, longest) periods of the rotation by time in ticks, or None for no rotation by time.
        rotate_by: 'time'; 'index': the index in the sequence, with the frequencies of `rotary_base`; 'split': the first half of the
            heads by index, the others by time (as in TO-RoPE, 2510.20455, for comparison); None: no rotation.
        rotary_base: of the rotation by index, see `IndexRotaryEmbedding`.
        qkv_bias: biases of W_Q, W_K, W_V and W_O, as `torch.nn.MultiheadAttention` has them.
        attention_dropout: rate at which softmax weights are dropped in training. Such a training stores all weights, (B, H, T, T), which
            kernels otherwise avoid; nothing else changes.
        causal: without `spans`, whether a token sees only itself and the tokens before it (as CADET's events do), or all tokens.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of all maps, gates included; the
            biases start at `gate_bias`.

    Call arguments:
        inputs: X (B, T, D), normalised by the caller.
        times: int32 (B, T), or None if nothing is rotated by time.
        spans: `Spans`, each (B, T): which tokens each token attends to. None: those of the whole row, see `causal`. With `cache`: see
            there.
        value_bias: A (B, T, D) or None.
        cache: (key, value, lengths): (B, L, H_kv, d_h) twice, and int32 (B,), the number of valid keys, which come first. The inputs
            are then candidates, which see those keys and, unless `see_self=False`, themselves. If `spans` (B, L + T) are given too,
            the inputs are T tokens that follow the first `lengths` keys, and the returned cache holds both. Or a `block` of `HeldKeys`,
            without `spans`: the inputs follow as well, and the returned cache is theirs alone.
        return_cache: also return (key, value).
        index: int32 (B, T). None if nothing is rotated by index; without `spans`, None counts the real tokens of the row from 0 on.
        stride: in a row, only every `stride`-th token, from the first on, is a query; all tokens are keys; T is a multiple of it. For
            the last block of a stack whose other outputs are not used: with 2, half the work and the same output.
        mask: boolean (B, T), true for real tokens, next to the Keras mask of the inputs: no token sees one that is not real, whatever
            `spans` say, and the gaps may be anywhere. Candidates with a `cache` see one another in no case.
        attention_mask: boolean (T, T) or (B, T, T), as in `keras.layers.MultiHeadAttention`: pairs that may be seen, of those that
            `spans` or `causal` and the mask show. All scores are then stored: memory B H T^2.
        return_attention_scores: also return the softmax weights. They are then stored, too, and computed in float32.

    Output:
        (B, T, D), or (B, T / stride, D) with a stride. With `return_cache` or `return_attention_scores` a tuple: this, key and value,
        scores float32 (B, H, T, T), of candidates (B, H, N, L + 1), the last column their own. Tokens that see nothing have zeros, also
        in the scores.

    Raises:
        ValueError: options or call arguments that do not go together, as the messages say.

    Example:
        >>> layer = kr.layers.SelfGatedAttention(num_heads=2, head_dim=4)
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
        rotate_by: str | None = "time",
        rotary_base: float = 10_000.0,
        qkv_bias: bool = False,
        attention_dropout: float = 0.0,
        causal: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            received = f"num_heads={num_heads}, num_kv_heads={num_kv_heads}"
            raise ValueError(f"`num_heads` must be a positive multiple of `num_kv_heads`. Received: {received}")
        if rotate_by not in ROTATIONS:
            raise ValueError(f"`rotate_by` must be one of {ROTATIONS}. Received: rotate_by={rotate_by!r}")
        if rotate_by == "split" and (num_kv_heads % 2 or rotary is None):
            received = f"num_kv_heads={num_kv_heads}, rotary={rotary}"
            raise ValueError(f"`num_kv_heads` must be even and `rotary` must be given with rotate_by='split'. Received: {received}")
        by_time = rotate_by in ("time", "split") and rotary is not None
        by_index = rotate_by in ("index", "split")
        if head_dim < 1 or ((by_time or by_index) and head_dim % 2):
            raise ValueError(f"`head_dim` must be positive, and even with a rotation. Received: head_dim={head_dim}")
        unknown = [gate for gate in gates if gate not in GATES]
        if unknown:
            raise ValueError(f"`gates` must be of {GATES}. Received: {unknown}")
        if rotary is not None and len(rotary) != 2:
            raise ValueError(f"`rotary` must be (shortest, longest) or None. Received: rotary={rotary}")
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be from 0 to below 1. Received: attention_dropout={attention_dropout}")
        self.num_heads, self.head_dim, self.num_kv_heads = num_heads, head_dim, num_kv_heads
        self.qkv_bias, self.attention_dropout = bool(qkv_bias), float(attention_dropout)
        self.gates, self.gate_bias = tuple(gates), float(gate_bias)
        self.rotary = None if rotary is None else (float(rotary[0]), float(rotary[1]))
        self.rotate_by, self.rotary_base, self.causal = rotate_by, float(rotary_base), bool(causal)
        policy = self.dtype_policy
        self.drop = keras.layers.Dropout(self.attention_dropout, dtype="float32", name="drop") if self.attention_dropout else None
        self.rotate = TimestampRotaryEmbedding(*(self.rotary or ()), dtype=policy, name="rotate") if by_time else None
        self.rotate_place = IndexRotaryEmbedding(self.rotary_base, dtype=policy, name="rotate_place") if by_index else None

    def _dense(self, units: int, name: str, bias: float | None = None) -> Any:
        initializer = "zeros" if bias is None else keras.initializers.Constant(bias)
        return self.dense(units, use_bias=bias is not None, bias_initializer=initializer, name=name)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = int(input_shape[-1] or 0)
        inner, kv_inner = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        bias = 0.0 if self.qkv_bias else None
        self.query = self._dense(inner, "query", bias)
        self.key = self._dense(kv_inner, "key", bias)
        self.value = self._dense(kv_inner, "value", bias)
        self.output_map = self._dense(width, "output_map", bias)
        for layer in (self.query, self.key, self.value):
            layer.build((None, None, width))
        self.output_map.build((None, None, inner))
        sizes = {"representation": (width, width), "query": (inner, inner), "key": (kv_inner, kv_inner), "output": (width, inner)}
        self.gate_maps = {gate: self._dense(sizes[gate][1], f"{gate}_gate", self.gate_bias) for gate in self.gates}
        for gate, layer in self.gate_maps.items():
            layer.build((None, None, sizes[gate][0]))
        for rotation in (self.rotate, self.rotate_place):
            if rotation is not None:
                rotation.build((None, None, self.num_heads, self.head_dim))
        self.built = True

    def _gate(self, kind: str, x: Any, source: Any = None) -> Any:
        if kind not in self.gates:
            return x
        return x * ops.sigmoid(self.gate_maps[kind](x if source is None else source))

    def _heads(self, x: Any, heads: int) -> Any:
        shape = ops.shape(x)
        return ops.reshape(x, (shape[0], shape[1], heads, self.head_dim))

    def _rotated(self, x: Any, times: Any, index: Any) -> Any:
        if self.rotate is not None and self.rotate_place is not None:
            half = x.shape[2] // 2
            return ops.concatenate([self.rotate_place(x[:, :, :half], index=index), self.rotate(x[:, :, half:], times=times)], axis=2)
        if self.rotate is not None:
            return self.rotate(x, times=times)
        return x if self.rotate_place is None else self.rotate_place(x, index=index)

    def _project(self, inputs: Any, times: Any, value_bias: Any = None, index: Any = None, stride: int = 1) -> tuple[Any, Any, Any]:
        """Gated and rotated queries of every `stride`-th token, gated and rotated keys, and values; each (B, T, heads, d_h)."""
        x = self._gate("representation", inputs)
        asking, *places = (_every(part, stride) for part in (x, times, index))
        query = self._rotated(self._heads(self._gate("query", self.query(asking)), self.num_heads), *places)
        key = self._rotated(self._heads(self._gate("key", self.key(x)), self.num_kv_heads), times, index)
        value = self._heads(self.value(x if value_bias is None else x + value_bias), self.num_kv_heads)
        return query, key, value

    def candidate_weights(self, inputs: Any, times: Any, cache: Any, see_self: bool = True, index: Any = None) -> Any:
        """The softmax weights that candidates give to cached keys and, in the last column, to themselves.

        For plots and tests: all weights are stored, which `call` never does.

        Args:
            inputs, times, cache, see_self, index: as in a call with `cache`.

        Returns:
            float32 (B, H, N, L + 1); zero for keys beyond the length.
        """
        query, own, _ = self._project(inputs, times, index=index)
        return self._cached_scores(query, own, cache, see_self)

    def _cached_scores(self, query: Any, own: Any, cache: Any, see_self: bool) -> Any:
        key, _, lengths = cache
        groups = self.num_heads // self.num_kv_heads
        query, own, key = (ops.cast(x, "float32") for x in (query, own, key))
        key, own = ops.repeat(key, groups, axis=2), ops.repeat(own, groups, axis=2)
        logits = ops.einsum("bnhd,blhd->bhnl", query, key)
        self_logits = ops.transpose(ops.sum(query * own, axis=-1, keepdims=True), (0, 2, 1, 3))
        logits = ops.concatenate([logits, self_logits], axis=-1) / self.head_dim**0.5
        slots = ops.arange(ops.shape(logits)[-1], dtype="int32")
        last = ops.shape(key)[1]
        seen = ops.logical_or(slots[None, :] < lengths[:, None], ops.logical_and(slots == last, see_self)[None, :])[:, None, None, :]
        return softmax_over(logits, seen)

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
        mask = mask_of_all(inputs, value_bias, mask=mask)
        self._check_call(inputs, spans, cache, stride, mask, attention_mask, return_attention_scores)
        if self.rotate is not None and times is None:
            raise ValueError(
                "`times` must be given: this attention rotates by time. Give int32 seconds (B, T), or make it without: rotary=None, or "
                "rotate_by='index' where the layer has it."
            )
        if self.rotate_place is not None and index is None:
            if spans is not None or cache is not None:
                raise ValueError("`index` must be given with `spans` or `cache`: this attention rotates by index.")
            index = whole_row(inputs, True).end if mask is None else RealFirst.of(mask).before[:, :-1]
        query, key, value = self._project(inputs, times, value_bias, index, stride)
        drop = self.drop if training else None
        scores = None
        if cache is None:
            spans = whole_row(inputs, self.causal) if spans is None else Spans(*spans)
            if return_attention_scores or attention_mask is not None or (drop is not None and mask is not None):
                seen = visible_pairs(spans, ops.shape(inputs)[1], mask, attention_mask)
                scores = scores_of(query, key, seen)
                out = weighted(scores if drop is None else drop(scores, training=True), value, seen)
            elif drop is not None:
                seen = Spans(*(_every(part, stride) for part in spans)).dense(ops.shape(key)[1], stride)
                out = attend_dropping(drop, query, key, value, seen)
            else:
                out = _of_row(query, key, value, spans, mask, stride)
        elif len(cache) == len(Held._fields):
            out = attend_held(query, key, value, Held(*cache), drop)
        elif spans is not None:
            out, key, value = self._appended(query, key, value, Spans(*spans), cache, drop)
        else:
            own = {"self_key": key, "self_value": value} if see_self else {}
            if drop is None:
                out = candidate_attention(query, cache[0], cache[1], cache[2], **own)
            else:
                out = candidates_dropping(drop, query, cache[0], cache[1], cache[2], **own)
            scores = self._cached_scores(query, key, cache, see_self) if return_attention_scores else None
        shape = ops.shape(out)
        out = ops.reshape(out, (shape[0], shape[1], self.num_heads * self.head_dim))
        out = self.output_map(self._gate("output", out, _every(inputs, stride)))
        found = (out, *((key, value) if return_cache else ()), *((scores,) if return_attention_scores else ()))
        return found if len(found) > 1 else out

    @staticmethod
    def _check_call(inputs: Any, spans: Any, cache: Any, stride: int, mask: Any, attention_mask: Any, scores: bool) -> None:
        _check_stride(inputs, stride, mask)
        if stride > 1 and cache is not None:
            raise ValueError(f"`stride` can be used only for a row of tokens, without `cache`. Received: stride={stride}")
        if stride > 1 and (scores or attention_mask is not None):
            raise ValueError(f"`attention_mask` and `return_attention_scores` go with stride=1. Received: stride={stride}")
        if attention_mask is not None and cache is not None:
            raise ValueError("`attention_mask` is for a row of tokens, without `cache`: of a cache, the first `lengths` keys are seen.")
        held = cache is not None and len(cache) == len(Held._fields)
        if held and spans is not None:
            raise ValueError("`spans` does not go with a block of `HeldKeys`, which was given the spans of these tokens.")
        if (held or (cache is not None and spans is not None)) and (mask is not None or scores):
            what = "a mask" if mask is not None else "`return_attention_scores`"
            raise ValueError(
                f"{what} does not go with `cache` and `spans` together. Put the real tokens first and let `spans` leave the others out; "
                "for scores, call the layer on the whole row."
            )

    @staticmethod
    def _appended(query: Any, key: Any, value: Any, spans: Spans, cache: Any, drop: Any = None) -> tuple[Any, Any, Any]:
        """What new tokens attend to, placed after the first `lengths` keys of a cache, and the keys and values of both."""
        held_key, held_value, lengths = cache
        place = lengths[:, None] + ops.arange(ops.shape(query)[1], dtype="int32")[None, :]
        later = Spans(*(ops.take_along_axis(part, place, axis=1) for part in spans))
        held = hold(held_key[:, None], held_value[:, None], later, lengths).block(0)
        return attend_held(query, key, value, held, drop), *append_rows((held_key, held_value), (key, value), lengths)

    def compute_output_spec(
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
        self._check_call(inputs, spans, cache, stride, mask_of_all(inputs, mask=mask), attention_mask, return_attention_scores)
        batch, tokens, width = inputs.shape
        out = keras.KerasTensor((batch, None if tokens is None else tokens // stride, width), dtype=self.compute_dtype)
        kept = None if cache is None else cache[0].shape[1]
        longer = cache is not None and spans is not None
        both = tokens if not longer else None if None in (tokens, kept) else tokens + kept  # those of the cache, and new
        pair = [keras.KerasTensor((batch, both, self.num_kv_heads, self.head_dim), dtype=self.compute_dtype) for _ in ("key", "value")]
        keys = tokens if cache is None else None if kept is None else kept + 1
        scores = keras.KerasTensor((batch, self.num_heads, tokens, keys), dtype="float32")
        found = (out, *(pair if return_cache else ()), *((scores,) if return_attention_scores else ()))
        return found if len(found) > 1 else out

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_kv_heads": self.num_kv_heads,
            "gates": list(self.gates),
            "gate_bias": self.gate_bias,
            "rotary": None if self.rotary is None else list(self.rotary),
            "rotate_by": self.rotate_by,
            "rotary_base": self.rotary_base,
            "qkv_bias": self.qkv_bias,
            "attention_dropout": self.attention_dropout,
            "causal": self.causal,
        }
