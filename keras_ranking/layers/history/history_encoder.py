"""HistoryEncoder: the latest events of a member and candidates, in one of five fusions. Each fusion is a module of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import ReadsKeyMask, WholeInputs, mask_of_all
from keras_ranking.layers.history import appended, concatenated, concatenated_rows, convolved, full_self_attention, streams
from keras_ranking.layers.history.encoder_weights import EncoderWeights
from keras_ranking.ops.masks import set_mask
from keras_ranking.ops.sequences import SLOTS_BY_LENGTH

FUSIONS = ("append_cross", "append_falcon", "append_self", "concat", "convolution")
MASKS = ("bidirectional", "causal", "sessions")
_STEPS = ("joint", "prefill", "score", "extend", "packed", "streams")


@keras.saving.register_keras_serializable(package="keras_ranking")
class HistoryEncoder(WholeInputs, ReadsKeyMask, EncoderWeights, keras.layers.Layer):
    """Encodes the latest events of a history and candidates, in one of five fusions.

    | `fusion`          | tokens                        | queries            | keys and values                 | history read        |
    |-------------------|-------------------------------|--------------------|---------------------------------|---------------------|
    | `'append_cross'`  | h_1 .. h_W, c_1 .. c_N        | all                | h, in every block               | once                |
    | `'append_falcon'` | the same                      | all                | h, and a candidate's own        | once                |
    | `'concat'`        | [h_j ; c_n], W for each c_n   | the W tokens       | the same W                      | N times             |
    | `'append_self'`   | h_1 .. h_W, c_1 .. c_N        | all                | all                             | once; a control     |
    | `'convolution'`   | h_1 .. h_W                    | c_n, once          | what filters over time find     | once                |

    `append_cross` (2412.06924, stated second-hand: `Q = W_q [H, C], K = W_k H, V = W_v H`, in every layer) and `append_falcon`
    (the mask of HSTU's M-FALCON) amortise the history: no history state depends on a candidate, so `prefill` reads the history once and
    `score` takes any number of candidates against its keys and values, in chunks of any size, with the same result. `concat` is
    LiRank's "TransAct" (2402.06859). `append_self` is full self-attention over all tokens: the score of a candidate depends on the
    other candidates. It serves as a control, and for calls with one candidate at a time.

        appended:  tokens -> Block^num_layers,   out_n = [LN(c_n) ; with `pool`: max_j LN(h_j) ; with `latest`: LN(h_W) ; ..]
        concat:    out_n = [max_j LN(h_jn) ; LN(h_Wn) ; .. ; LN(h_(W-k+1)n)],   the k latest events, most recent first
        convolution:  y_j = [act(b_w + sum_(i < w) F_wi h_(j-i)) for each width w],   D filters in all, 0 before the first event
                      out_n = [sum_j a_nj y_j ; with `pool`: max_j y_j],   a_n = softmax_j(c_n . y_j / sqrt(D)) with an empty slot of 0

    Stated for LiRank: 2 layers, a feed-forward layer half as wide as its input, max-pooling and the last five outputs. For 2412.06924
    sizes, order of the history, output, and encoding of position or time are unknown; all are arguments here. Slots without an event
    are excluded from attention and pooling. With an empty history an appended candidate sees only itself or nothing, and pooled
    parts, and the whole output of `concat` and `convolution`, are zero. `convolution` is our choice; its order is that of the events.

    Args:
        fusion: see the table.
        max_history: W, number of latest visible events that are read.
        num_layers, num_heads, head_dim: of the blocks, which `convolution` has not; `head_dim=None`: width of a token / num_heads,
            rounded down to an even number.
        ffn_multiple: width of the feed-forward layer / width of a token.
        dim: D, width of appended tokens, to which events and candidates are mapped; None: the events' width. Not for `concat`.
        history_mask: which appended events see which: 'bidirectional': all; 'causal': earlier ones and itself, the cache can be extended;
            'sessions': earlier sessions and itself (LiGR: no label of the same session).
        session_gap: seconds without an event after which a new session starts; without `session_ids`.
        widths: of the filters of `convolution`: how many events each reads, itself and those before.
        over_time: 'max' or 'mean': how `convolution` pools. All others take the maximum.
        session_ids: with history_mask='sessions', whether inputs have `sessions`, int32 like `times`, equal for one session.
        pool: whether the pooled history is part of the output; None: for `convolution`, and for `concat`, where it is required.
        latest: k, number of latest events whose states are parts of the output; None: 5 for `concat`, else 0.
        projection: width to which the output is mapped by a linear layer; None: none.
        rotary: (shortest, longest) periods of the rotation, or None: no encoding of order or time.
        rotate_by: 'time': seconds, for a candidate `request_time`. 'index': the index of an event from the oldest one read; all
            candidates have the index after the last event. So the rotation between candidates is always zero.
        block: 'decoder' (`DecoderBlock` without gates) or 'ligr' (`LiGRBlock`).
        block_options: further arguments of the block.
        activation, dropout: of the blocks; `activation` has no effect with 'ligr'.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of all maps and
            blocks.

    Call arguments:
        inputs: dict of `history` h (B, L, E), oldest first; `candidates` c (B, N, C); `visible` int32 (B,), how many of the first
            events are visible; for a rotation by time or sessions `times` int32 (B, L); for a rotation by time of appended
            tokens `request_time` int32 (B,). Masks: `history_real` boolean (B, L), next to the Keras mask of `history`: other events are
            read by none, wherever they are, and `visible` may be left out; `candidates_real` (B, N), next to that of `candidates`.
        cache, step: used by the methods `prefill`, `score`, `extend` and `packed`; step='joint' is `score` after `prefill`.

    Output:
        (B, N, projection); without a projection (B, N, (pool + k) (E + C)) or, appended, (B, N, (1 + pool + k) D). It has the mask of the
        candidates.

    Raises:
        ValueError: an unknown option, a size below 1, widths unknown, or an input missing.

    Example:
        >>> layer = kr.layers.HistoryEncoder(max_history=4, num_heads=1)
        >>> history, candidates = np.ones((2, 6, 4), "float32"), np.ones((2, 5, 3), "float32")
        >>> layer({"history": history, "candidates": candidates, "visible": np.array([6, 0], "int32")}).shape
        (2, 5, 4)
        >>> cache = layer.prefill({"history": history, "visible": np.array([6, 0], "int32")})
        >>> layer.score({"candidates": candidates[:, :2]}, cache).shape
        (2, 2, 4)
    """

    whole = (
        *("times", "time", "request_time", "visible", "slot", "count", "length", "stream", "begin", "end", "sessions", "session"),
        *SLOTS_BY_LENGTH,
    )

    def __init__(
        self,
        fusion: str = "append_cross",
        max_history: int = 50,
        num_layers: int = 2,
        num_heads: int = 2,
        head_dim: int | None = None,
        ffn_multiple: float = 0.5,
        dim: int | None = None,
        history_mask: str = "bidirectional",
        session_gap: int = 1800,
        pool: bool | None = None,
        latest: int | None = None,
        projection: int | None = None,
        rotary: tuple[float, float] | None = None,
        rotate_by: str = "time",
        block: str = "decoder",
        block_options: Mapping[str, Any] | None = None,
        activation: str = "silu",
        dropout: float = 0.0,
        session_ids: bool = False,
        widths: Sequence[int] = (1, 3, 7),
        over_time: str = "max",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        choices = (("fusion", fusion, FUSIONS), ("history_mask", history_mask, MASKS), ("rotate_by", rotate_by, ("time", "index")))
        for name, value, known in (*choices, ("block", block, ("decoder", "ligr")), ("over_time", over_time, ("max", "mean"))):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")
        sizes = {"max_history": max_history, "num_layers": num_layers, "num_heads": num_heads, "session_gap": session_gap}
        for name, size in {**sizes, "dim": 1 if dim is None else dim, "projection": 1 if projection is None else projection}.items():
            if size < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={size}")
        self.appended = fusion != "concat"  # events and candidates are apart
        self.pool = fusion in ("concat", "convolution") if pool is None else bool(pool)
        self.latest = (0 if self.appended else 5) if latest is None else int(latest)
        if not 0 <= self.latest <= max_history:
            raise ValueError(f"`latest` must be from 0 to max_history={max_history}. Received: latest={self.latest}")
        if fusion == "append_self" and (self.pool or self.latest or history_mask != "bidirectional"):
            raise ValueError("fusion='append_self' is full self-attention: it has no `pool`, `latest` or mask.")
        if not self.appended and (not self.pool or dim is not None or history_mask != "bidirectional" or block != "decoder"):
            raise ValueError(
                "fusion='concat' is pooled, bidirectional and as wide as its inputs: it has no `pool=False`, `dim`, mask or other block."
            )
        self.widths, self.over_time = tuple(int(width) for width in widths), over_time
        if fusion == "convolution" and (self.latest or history_mask != "bidirectional" or rotary is not None or block != "decoder"):
            raise ValueError("fusion='convolution' reads the order of the events: it has no `latest`, `rotary`, mask or other block.")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"`widths` must be positive integers, at least one. Received: widths={widths!r}")
        self.fusion, self.max_history, self.num_layers, self.num_heads = fusion, int(max_history), int(num_layers), int(num_heads)
        self.head_dim, self.ffn_multiple, self.dim, self.projection = head_dim, float(ffn_multiple), dim, projection
        self.history_mask, self.session_gap, self.rotate_by = history_mask, int(session_gap), rotate_by
        self.rotary = None if rotary is None else (float(rotary[0]), float(rotary[1]))
        self.block, self.block_options = block, dict(block_options or {})
        self.activation, self.dropout_rate = activation, float(dropout)
        self.see_self = fusion == "append_falcon"
        self.session_ids = bool(session_ids)
        if self.session_ids and history_mask != "sessions":
            raise ValueError(f"`session_ids` go with history_mask='sessions'. Received: history_mask={history_mask!r}")

    @property
    def amortises(self) -> bool:
        """Whether the history is read once for all candidates, so that there is a `packed` pass."""
        return self.fusion in ("append_cross", "append_falcon", "convolution")

    @property
    def looks_ahead(self) -> bool:
        """Whether cached values of an event depend on later events, so that a cache is valid for one set of visible events only."""
        return self.history_mask == "bidirectional" or self.pool or self.latest > 0

    @property
    def _way(self) -> Any:
        """The module with the steps of the fusion."""
        return convolved if self.fusion == "convolution" else appended if self.appended else concatenated

    @property
    def has_streams(self) -> bool:
        """Whether the tokens of a history may be read by several requests of a row."""
        return self.fusion in ("append_cross", "append_falcon") and not self.pool and not self.latest

    # -- weights ---------------------------------------------------------------------------------------------------------

    @property
    def _reads_times(self) -> bool:
        return (self.rotary is not None and self.rotate_by == "time") or (self.history_mask == "sessions" and not self.session_ids)

    def _needed(self, step: str) -> list[str]:
        read = ["times"] * self._reads_times + ["sessions"] * self.session_ids
        history = ["history", "visible", *read]
        moment = ["request_time"] if self.appended and self.rotary is not None and self.rotate_by == "time" else []
        candidates = ["candidates", *moment]
        extended = ["history", "count", *read]
        named = {"prefill": history, "score": candidates, "extend": extended, "packed": [*history, *candidates, "slot"]}
        named["streams"] = [name for name in named["packed"] if name != "visible"] + ["stream", "begin", "end"]
        return named.get(step, [*history, *candidates])

    def __call__(self, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._meet_candidates(inputs)
        outputs = super().__call__(inputs, *args, **kwargs)
        real = mask_of_all(inputs.get("candidates"), mask=inputs.get("candidates_real"))
        if real is not None and not isinstance(outputs, dict):
            set_mask(outputs, real)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Keras's hook: nothing, since it is a call that gives the outputs the mask of the candidates."""

    # -- the public steps ------------------------------------------------------------------------------------------------

    def prefill(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Read the histories once.

        Args:
            inputs: `history`, `visible` or a mask and, where needed, `times`, as in a call. The layer need not have seen candidates: what
                depends on their width is built with the first ones.

        Returns:
            Dict of `length` int32 (B,), number of events read; for appended fusions `key` and `value` (B, blocks, W, H, d_h), gated and
            rotated; for `convolution` `state` (B, W, D); for both `summary` (B, (pool + k) D) with `pool` or `latest`; for `concat`
            `history`, the events; `time` if times are used, `session` if ids of sessions are.
        """
        return dict(self(inputs, step="prefill", training=training))

    def score(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None = None) -> Any:
        """Encode candidates against what `prefill` or `extend` returned.

        Args:
            inputs: `candidates` and, where needed, `request_time`.
            cache: of the same requests. With history_mask 'causal' or 'sessions' its `length` may be reduced: later events are then
                hidden.

        Returns:
            As a call.
        """
        return self(inputs, cache=cache, step="score", training=training)

    def extend(self, inputs: Mapping[str, Any], cache: Mapping[str, Any]) -> dict[str, Any]:
        """Append later events to a cache: equal to `prefill` over all events if these are at most `max_history`.

        Args:
            inputs: `history` (B, M, E), the new events; `count` int32 (B,), how many of them are real; where needed `times` (B, M).
            cache: from `prefill` or `extend`, with no event hidden; of W slots.

        Returns:
            A cache of W + M slots.

        Raises:
            ValueError: earlier events see later ones, or the cache has a summary.
        """
        if not self.amortises or self.looks_ahead:
            raise ValueError(
                "a cache can be extended only if no event sees later ones and none are pooled: history_mask='causal' or 'sessions', no "
                f"`pool`, latest=0. Received: fusion={self.fusion!r}, history_mask={self.history_mask!r}, pool={self.pool}, "
                f"latest={self.latest}"
            )
        return dict(self(inputs, cache=cache, step="extend"))

    def packed(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Several requests per row of candidate slots, as made by `PackedRequests`, in one pass over all tokens.

        Args:
            inputs: as in a call; `candidates` (B, S, C), `slot` int32 (B, S): request of each within its row, from 1 on, 0 = empty;
                `history` (B Q, L, E), `visible` (B Q,), `times` and `request_time`: the Q requests of each row, one after another.
                Of `concat`, optionally all of `slots_whole`, `slots_half` and `slots_quarter`, int32 (B, any): the slots to read, from
                1 on, 0 = none, each in the narrowest that holds its events: L, L / 2 and L / 4, rounded up. Others have zeros.

        Returns:
            (B, S, ...): in each slot the output of a call for this candidate with the history of its request.

        Raises:
            ValueError: fusion 'append_self', which has no such pass.
        """
        if self.fusion == "append_self":
            raise ValueError(f"fusion={self.fusion!r} reads all tokens of a request at once: there is no packed pass.")
        return self(inputs, step="packed", training=training)

    def streams(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Several requests per row, which may read the same tokens of a row of histories: equal to `packed` with a copy for each.

        Args:
            inputs: `candidates` (B, S, C) and `slot` (B, S) as for `packed`; `history` (B, T, E); `stream` int32 (B, T), the history of
                which each token is, from 1 on, 0 = none; where needed `times` (B, T); `begin` and `end` int32 (B, Q), the tokens of the
                requests of each row, at most `max_history`; where needed `request_time` (B, Q). Each request begins at the first token of
                a history; with `looks_ahead`, it ends with the last.

        Returns:
            As `packed`.

        Raises:
            ValueError: an encoder without `has_streams`.
        """
        if not self.has_streams:
            received = f"fusion={self.fusion!r}, pool={self.pool}, latest={self.latest}"
            raise ValueError(f"streams are for an appended history of which no summary is kept. Received: {received}")
        return self(inputs, step="streams", training=training)

    def call(
        self, inputs: Mapping[str, Any], cache: Mapping[str, Any] | None = None, step: str = "joint", training: bool | None = None
    ) -> Any:
        if step not in _STEPS:
            raise ValueError(f"`step` must be one of {_STEPS}. Received: step={step!r}")
        real = {name: mask_of_all(inputs.get(name), mask=inputs.get(f"{name}_real")) for name in ("history", "candidates")}
        inputs = {**inputs, **{f"{name}_real": mask for name, mask in real.items() if mask is not None}}
        self._check_step(inputs, step)
        if step in ("packed", "streams") and real["candidates"] is not None:
            inputs["slot"] = ops.where(real["candidates"], inputs["slot"], ops.zeros_like(inputs["slot"]))
        if step == "joint" and self.fusion == "append_self":
            return full_self_attention.score(self, inputs, training)
        if step == "joint":
            return self._score(inputs, self._prefill(inputs, training), training)
        if self.fusion == "append_self":
            raise ValueError("fusion='append_self' has no cache: its states of the history depend on the candidates.")
        if step == "prefill":
            return self._prefill(inputs, training)
        if step == "packed":
            return (concatenated_rows if self.fusion == "concat" else self._way).packed(self, inputs, training)
        if step == "streams":
            return streams.score(self, inputs, training)
        if cache is None:
            raise ValueError(f"`cache`, as returned by `prefill`, must be given to '{step}'.")
        return self._score(inputs, cache, training) if step == "score" else appended.extend(self, inputs, cache, training)

    def _check_step(self, inputs: Mapping[str, Any], step: str) -> None:
        masked = ("visible", "count") if inputs.get("history_real") is not None else ()
        if missing := [name for name in self._needed(step) if name not in (*inputs, *masked)]:
            hint = " Without `visible`, give a history with a Keras mask, or the entry history_real." if missing == ["visible"] else ""
            raise ValueError(f"`inputs` must be a dict of {self._needed(step)}. Missing: {missing}.{hint}")
        if step == "streams" and masked:
            raise ValueError("`streams` reads `stream` in place of a mask of `history`: give 0 there for a token that is not real.")

    def _prefill(self, inputs: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
        return concatenated.prefill(self, inputs) if self.fusion == "concat" else dict(self._way.prefill(self, inputs, training))

    def _score(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
        return self._way.score(self, inputs, cache, training)

    # -- specification ---------------------------------------------------------------------------------------------------

    def compute_output_spec(self, inputs: Any, cache: Any = None, step: str = "joint", training: bool | None = None) -> Any:
        real = mask_of_all(inputs.get("history"), mask=inputs.get("history_real"))
        self._check_step({**inputs, "history_real": real}, step)
        if step in ("prefill", "extend"):
            return self._cache_spec(inputs, cache)
        lead = tuple(inputs["candidates"].shape[:2])
        return keras.KerasTensor((*lead, self.projection or self._output_parts * self.width), dtype=self.compute_dtype)

    def _cache_spec(self, inputs: Any, cache: Any) -> dict[str, Any]:
        batch, slots = inputs["history"].shape[:2]
        if cache is not None:
            held = cache["key"].shape[2]
            slots = None if slots is None or held is None else slots + held
        elif slots is not None:
            slots = min(slots, self.max_history)
        found = {"length": keras.KerasTensor((batch,), dtype="int32")}
        if self.fusion == "convolution":
            found["state"] = keras.KerasTensor((batch, slots, self.width), dtype=self.compute_dtype)
        elif self.appended:
            heads = self.blocks[0].attention
            shape = (batch, self.num_layers, slots, heads.num_kv_heads, heads.head_dim)
            found |= {name: keras.KerasTensor(shape, dtype=self.compute_dtype) for name in ("key", "value")}
        else:
            found["history"] = keras.KerasTensor((batch, slots, inputs["history"].shape[-1]), dtype=self.compute_dtype)
        if "times" in inputs:
            found["time"] = keras.KerasTensor((batch, slots), dtype="int32")
        if self.session_ids:
            found["session"] = keras.KerasTensor((batch, slots), dtype="int32")
        if self.appended and (self.pool or self.latest):
            found["summary"] = keras.KerasTensor((batch, (self._output_parts - 1) * self.width), dtype=self.compute_dtype)
        return found

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "fusion": self.fusion,
            "max_history": self.max_history,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "ffn_multiple": self.ffn_multiple,
            "dim": self.dim,
            "history_mask": self.history_mask,
            "session_gap": self.session_gap,
            "session_ids": self.session_ids,
            "pool": self.pool,
            "latest": self.latest,
            "projection": self.projection,
            "rotary": None if self.rotary is None else list(self.rotary),
            "rotate_by": self.rotate_by,
            "block": self.block,
            "block_options": self.block_options,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "widths": list(self.widths),
            "over_time": self.over_time,
        }
