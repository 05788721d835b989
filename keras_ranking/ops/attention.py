"""Attention with spans, and of candidates to a cached history, computed by a kernel of the active backend."""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import KerasTensor

from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.spans import Spans

Tensor = Any

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_MAX_HEAD_DIM = 256


def _backend() -> Any:
    return importlib.import_module(f"keras_ranking.ops.backends.{keras.backend.backend()}")


def _shape(name: str, tensor: Any, rank: int, letters: str) -> tuple[int | None, ...]:
    shape = tuple(tensor.shape)
    if len(shape) != rank:
        raise ValueError(f"`{name}` must have shape {letters}. Received: {name}.shape={shape}")
    return shape


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _check_heads(query: Any, key: Any, value: Any, names: tuple[str, str, str] = ("query", "key", "value")) -> None:
    q = _shape(names[0], query, 4, "(B, T, H, D)")
    k = _shape(names[1], key, 4, "(B, S, Hkv, D)")
    v = _shape(names[2], value, 4, "(B, S, Hkv, D)")
    if any(_differ(a, b) for a, b in zip(k, v, strict=True)):
        raise ValueError(f"`{names[1]}` and `{names[2]}` must have the same shape. Received: {names[1]}.shape={k}, {names[2]}.shape={v}")
    if _differ(q[0], k[0]) or _differ(q[3], k[3]):
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must agree in batch and head size. Received: {names[0]}.shape={q}, {names[1]}.shape={k}"
        )
    if q[2] is None or k[2] is None or q[3] is None:
        raise ValueError(f"The number of heads and the head size must be known. Received: {names[0]}.shape={q}, {names[1]}.shape={k}")
    if k[2] == 0 or q[2] % k[2] != 0:
        raise ValueError(f"The heads of `{names[0]}` must be a multiple of the heads of `{names[1]}`. Received: {q[2]} and {k[2]} heads")
    if not 1 <= q[3] <= _MAX_HEAD_DIM:
        raise ValueError(f"The head size must be 1 to {_MAX_HEAD_DIM}. Received: {names[0]}.shape={q}")
    dtypes = [keras.backend.standardize_dtype(part.dtype) for part in (query, key, value)]
    if dtypes[0] not in _FLOATS or len(set(dtypes)) != 1:
        raise ValueError(f"`{'`, `'.join(names)}` must have one floating-point dtype. Received: {dtypes}")


def _check_integers(name: str, tensor: Any) -> None:
    if keras.backend.standardize_dtype(tensor.dtype) not in ("int32", "int64"):
        raise ValueError(f"`{name}` must be int32. Received: {name}.dtype={keras.backend.standardize_dtype(tensor.dtype)}")


def _check_scale(scale: float | None) -> float | None:
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise ValueError(f"`scale` must be a positive finite number or None. Received: scale={scale}")
    return float(scale)


def _as_tensors(*values: Any) -> list[Any]:
    return [value if value is None or isinstance(value, KerasTensor) else as_tensor(value) for value in values]


@keras.saving.register_keras_serializable(package="keras_ranking")
class SpanAttention(keras.Operation):
    """The operation behind `span_attention`; a node of functional models."""

    def __init__(self, scale: float | None = None, kernel: str = "auto", stride: int = 1, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.scale = _check_scale(scale)
        self.kernel = kernel
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"`stride` must be an integer of at least 1. Received: stride={stride}")
        self.stride = stride

    def get_config(self) -> dict[str, Any]:
        return {"scale": self.scale, "kernel": self.kernel, "stride": self.stride, "name": self.name}

    def _check(self, query: Any, key: Any, value: Any, spans: Any) -> None:
        _check_heads(query, key, value)
        if self.kernel not in ("auto", *_backend().KERNELS):
            raise ValueError(
                f"`kernel` must be 'auto' or one of {_backend().KERNELS} on the {keras.backend.backend()} backend. "
                f"Received: kernel={self.kernel!r}"
            )
        if self.stride > 1 and query.shape[1] is not None and _differ(self.stride * query.shape[1], key.shape[1]):
            raise ValueError(
                f"with `stride={self.stride}` there must be {self.stride} keys per query. "
                f"Received: query.shape={tuple(query.shape)}, key.shape={tuple(key.shape)}"
            )
        for name, part in zip(Spans._fields, spans, strict=True):
            shape = _shape(f"spans.{name}", part, 2, "(B, T)")
            _check_integers(f"spans.{name}", part)
            if _differ(shape[0], query.shape[0]) or _differ(shape[1], query.shape[1]):
                raise ValueError(f"`spans.{name}` must have shape (B, T) of `query`. Received: {shape}, query.shape={tuple(query.shape)}")

    def call(self, query: Any, key: Any, value: Any, spans: Any) -> Any:
        query, key, value = _as_tensors(query, key, value)
        spans = Spans(*_as_tensors(*spans))
        self._check(query, key, value, spans)
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        return _backend().span_attention(query, key, value, spans, scale, self.kernel, self.stride)

    def compute_output_spec(self, query: Any, key: Any, value: Any, spans: Any) -> KerasTensor:
        self._check(query, key, value, Spans(*spans))
        return KerasTensor(query.shape, dtype=query.dtype)


def span_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None = None, kernel: str = "auto", stride: int = 1
) -> Tensor:
    """Softmax attention in which query i sees the keys `start[i] <= j < end[i]` union `own[i] <= j <= stride i`.

        out_i = sum_j p_ij v_j,    p_ij = exp(scale q_i . k_j) / sum over visible j'

    Work is proportional to the visible pairs, and no T x T buffer is made, forward or backward. The softmax is computed in float32
    for inputs of any dtype. A query that sees nothing has a zero output and zero gradients; a key that no query of its row sees may
    have any value, including NaN and infinity.

    Args:
        query: (B, T, H, D), any float dtype, D from 1 to 256.
        key, value: (B, S, Hkv, D), H a multiple of Hkv: each key/value head serves H / Hkv neighbouring query heads. S may
            differ from T (cross form). In `own`, key i is the key of query i, so it has a meaning only if S = T; otherwise give
            `own = stride i + 1`, which is no key.
        spans: `Spans` of int32 (B, T).
        scale: factor on the logits. None: 1 / sqrt(D).
        stride: query i is key `stride i`, and S = stride T. For rows in which only every `stride`-th token is a query, such as the last
            block over interleaved items and actions, of which only the items are used for scores.
        kernel: 'auto', or one of the backend's kernels:

            | backend    | kernel    | what it is                                                     | chosen by 'auto' for     |
            |------------|-----------|----------------------------------------------------------------|--------------------------|
            | torch      | 'tiles'   | fused CPU flash calls on a plan of tiles made on the host      | CPU tensors              |
            | torch      | 'flex'    | flex_attention with a BlockMask; SDPA if it needs no mask      | CUDA tensors             |
            | torch      | 'blocked' | the plan's tiles in standard torch operations                  | other devices            |
            | tensorflow | 'loop'    | `tf.while_loop` over blocks; unknown B and T; exports          | outside XLA              |
            | tensorflow | 'xla'     | tiles with running softmax, compiled by XLA                    | inside `jit_compile`     |
            | jax        | 'tiles'   | tiles with running softmax in loops with bounds from the spans | CPU, float64             |
            | jax        | 'pallas'  | Pallas (Triton) kernels; on a CPU in Pallas's interpreter      | GPU                      |
            | jax        | 'library' | 'pallas', but cuDNN if all rows are causal without segments    | GPU, 16 bits, D <= 128   |

    Returns:
        (B, T, H, D) in the dtype of `query`.

    Raises:
        ValueError: shapes, dtypes, scale, stride or kernel that do not fit.

    Example:
        >>> q = k = v = keras.random.normal((1, 6, 2, 8))
        >>> out = kr.ops.span_attention(q, k, v, kr.ops.Spans.causal(np.array([[1, 1, 1, 2, 2, 0]], "int32")))
        >>> out.shape
        (1, 6, 2, 8)
    """
    return SpanAttention(scale=scale, kernel=kernel, stride=stride)(query, key, value, Spans(*spans))


@keras.saving.register_keras_serializable(package="keras_ranking")
class CandidateAttention(keras.Operation):
    """The operation behind `candidate_attention`; a node of functional models."""

    def __init__(self, scale: float | None = None, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.scale = _check_scale(scale)

    def get_config(self) -> dict[str, Any]:
        return {"scale": self.scale, "name": self.name}

    def _check(self, query: Any, key: Any, value: Any, lengths: Any, self_key: Any, self_value: Any) -> None:
        _check_heads(query, key, value)
        shape = _shape("lengths", lengths, 1, "(B,)")
        _check_integers("lengths", lengths)
        if _differ(shape[0], query.shape[0]):
            raise ValueError(f"`lengths` must have shape (B,) of `query`. Received: {shape}, query.shape={tuple(query.shape)}")
        if (self_key is None) != (self_value is None):
            raise ValueError("`self_key` and `self_value` must be given together or not at all.")
        if self_key is not None:
            _check_heads(query, self_key, self_value, ("query", "self_key", "self_value"))
            if _differ(self_key.shape[1], query.shape[1]) or _differ(self_key.shape[2], key.shape[2]):
                raise ValueError(
                    "`self_key` must have shape (B, N, Hkv, D). "
                    f"Received: self_key.shape={tuple(self_key.shape)}, query.shape={tuple(query.shape)}, key.shape={tuple(key.shape)}"
                )

    def call(self, query: Any, key: Any, value: Any, lengths: Any, self_key: Any = None, self_value: Any = None) -> Any:
        query, key, value, lengths, self_key, self_value = _as_tensors(query, key, value, lengths, self_key, self_value)
        self._check(query, key, value, lengths, self_key, self_value)
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        return _backend().candidate_attention(query, key, value, lengths, self_key, self_value, scale)

    def compute_output_spec(
        self, query: Any, key: Any, value: Any, lengths: Any, self_key: Any = None, self_value: Any = None
    ) -> KerasTensor:
        self._check(query, key, value, lengths, self_key, self_value)
        return KerasTensor(query.shape, dtype=query.dtype)


def candidate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    self_key: Tensor | None = None,
    self_value: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Each candidate attends to the first `lengths[b]` cached keys and, if given, to its own key, in one softmax.

        out_n = (sum_{j < lengths} e_nj v_j + e_n v'_n) / (sum_{j < lengths} e_nj + e_n)
        e_nj = exp(scale q_n . k_j),    e_n = exp(scale q_n . k'_n)

    No candidate sees another, and history and candidates are not concatenated. Equal to `span_attention` with
    `Spans.candidates` on the concatenated row. Keys and values beyond `lengths[b]` may have any value, including NaN.

    Args:
        query: (B, N, H, D).
        key, value: (B, L, Hkv, D), the cached keys and values of the history, left-aligned.
        lengths: int32 (B,), number of valid cached keys.
        self_key, self_value: (B, N, Hkv, D), each candidate's own key and value, or None for history only.
        scale: factor on the logits. None: 1 / sqrt(D).

    Returns:
        (B, N, H, D) in the dtype of `query`; zeros if the history is empty and there is no own key.

    Raises:
        ValueError: shapes, dtypes or scale that do not fit.

    Example:
        >>> q = keras.random.normal((2, 3, 4, 8))
        >>> k = v = keras.random.normal((2, 10, 4, 8))
        >>> kr.ops.candidate_attention(q, k, v, np.array([10, 0], "int32")).shape
        (2, 3, 4, 8)
    """
    if (self_key is None) != (self_value is None):
        raise ValueError("`self_key` and `self_value` must be given together or not at all.")
    own = () if self_key is None else (self_key, self_value)
    return CandidateAttention(scale=scale)(query, key, value, lengths, *own)
