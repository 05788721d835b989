"""Blocks over many short windows of tokens, in which every real token of a window sees every other one."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_ranking.ops import Spans
from keras_ranking.ops.rows import take_in_rows

LONGEST = 128  # tokens of a window whose logits are stored; longer windows are read by the kernels of `span_attention`


def block_over_windows(
    block: Any, x: Any, real: Any, rotation: Any = None, projected: Any = None, training: bool | None = None, stored: bool = True
) -> Any:
    """A `DecoderBlock` over windows: equal to a call with `Spans.bidirectional(real)` in the real tokens.

    Args:
        block: the layer, built.
        x: (N, W, D).
        real: boolean (N, W).
        rotation: times (N, W), or None.
        projected: queries, keys and values of `x`, (N, W, ..) each, where they are known; None: the block's own projections.
        training: as in a call of the block.
        stored: whether the logits of a window are stored, as is fast for short ones; False: a call of the block.

    Returns:
        (N, W, D); tokens that are not real have any finite value.
    """
    if not stored:
        return block(x, times=rotation, spans=tuple(Spans.bidirectional(ops.cast(real, "int32"))), training=training)
    attention = block.attention
    if projected is None:
        query, key, value = attention._project(block.attention_norm(x), rotation)
    else:
        query, key, value = (
            attention._heads(part, heads)
            for part, heads in zip(projected, (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads), strict=True)
        )
        query, key = attention._rotated(query, rotation, None), attention._rotated(key, rotation, None)
    attended = _attended(query, key, value, real)
    shape = ops.shape(attended)
    attended = ops.reshape(attended, (shape[0], shape[1], attention.num_heads * attention.head_dim))
    if "output" in attention.gates:
        attended = attention._gate("output", attended, block.attention_norm(x))
    return block.with_attended(x, attention.output_map(attended), training=training)


def _attended(query: Any, key: Any, value: Any, real: Any) -> Any:
    """softmax(Q K^T / sqrt(d_h)) V over the real keys of each window, in float32; (N, W, H, d_h) each."""
    dtype, groups = query.dtype, query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = ops.repeat(key, groups, axis=2), ops.repeat(value, groups, axis=2)
    logits = ops.einsum("nqhd,nkhd->nhqk", ops.cast(query, "float32"), ops.cast(key, "float32")) * query.shape[-1] ** -0.5
    weights = ops.softmax(ops.where(real[:, None, None, :], logits, -1e9))
    return ops.einsum("nhqk,nkhd->nqhd", ops.cast(weights, dtype), value)


def projects_linearly(block: Any) -> bool:
    """Whether queries, keys and values are a linear map of the normalised input of a block, so that parts of a token may be shared."""
    return (
        not (block.attention.gates or block.attention.qkv_bias)
        and block.attention.rotate_place is None
        and block.compute_dtype in ("float32", "float64")
    )


class SharedProjections:
    """The first block's queries, keys and values of tokens [h_j ; c_n], from one projection of each h_j and each c_n.

        LN([h ; c]) W = (P h + R c) / sigma(h, c) + beta W
        P h = (gamma_h (h - mean h)) W_h + mean(h) m,    R c = (gamma_c (c - mean c)) W_c - mean(c) m
        m = (C gamma_h W_h - E gamma_c W_c) / (E + C),   sigma^2 = (|h - mean h|^2 + |c - mean c|^2) / D + E C (mean h - mean c)^2 / D^2

    Args:
        block: the layer, built, for which `projects_linearly` is true.
        events: h (R, W, E).
        candidates: c (N, C).
    """

    def __init__(self, block: Any, events: Any, candidates: Any) -> None:
        attention, norm = block.attention, block.attention_norm
        kernels = [layer.kernel for layer in (attention.query, attention.key, attention.value)]
        self.sizes = [int(kernel.shape[-1]) for kernel in kernels]
        kernel = ops.concatenate(kernels, axis=-1)
        left, right = events.shape[-1], candidates.shape[-1]
        scaled = norm.gamma[:, None] * kernel
        of_means = (right * ops.sum(scaled[:left], axis=0) - left * ops.sum(scaled[left:], axis=0)) / (left + right)
        self.between, self.width, self.epsilon = left * right / (left + right) ** 2, left + right, norm.epsilon
        self.bias = ops.matmul(norm.beta[None, :], kernel)[0]
        self.mean, self.spread, self.part = _split(events, scaled[:left], of_means)
        self.other_mean, self.other_spread, self.other_part = _split(candidates, scaled[left:], -of_means)

    def of(self, owner: Any, candidate: Any, width: Any, rows: Any) -> list[Any]:
        """Queries, keys and values (N, W, ..) of the first `width` events of each `owner` (N,), with each `candidate` (N,)."""
        mean, spread, part = (take_in_rows(x[:, :width], owner, rows) for x in (self.mean, self.spread, self.part))
        other = [take_in_rows(x, candidate, rows)[:, None] for x in (self.other_mean, self.other_spread, self.other_part)]
        variance = (spread + other[1]) / self.width + self.between * ops.square(mean - other[0])
        whole = (part + other[2]) * ops.rsqrt(variance + self.epsilon) + self.bias
        return list(ops.split(whole, [self.sizes[0], self.sizes[0] + self.sizes[1]], axis=-1))


def _split(x: Any, kernel: Any, of_means: Any) -> tuple[Any, Any, Any]:
    """Mean, sum of squares around it, and projection of a part of a token, each (.., 1 or P)."""
    mean = ops.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    return mean, ops.sum(ops.square(centred), axis=-1, keepdims=True), ops.matmul(centred, kernel) + mean * of_means
