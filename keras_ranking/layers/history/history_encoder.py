"""A member's recent events, read together with candidates: joined to each, or once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.attention.decoder_block import DecoderBlock
from keras_ranking.layers.attention.ligr_block import LiGRBlock
from keras_ranking.layers.history.history_windows import joined_tokens, latest_window
from keras_ranking.ops import Spans
from keras_ranking.ops.sequences import gather_rows, session_ids

FUSIONS = ("append_cross", "append_falcon", "append_self", "concat")
MASKS = ("bidirectional", "causal", "sessions")
_STEPS = ("joint", "prefill", "score", "extend", "packed")
_LOWEST = -3e4  # within float16 and bfloat16


@keras.saving.register_keras_serializable(package="keras_ranking")
class HistoryEncoder(keras.layers.Layer):
    """Encodes the latest events of a history and candidates, in one of four fusions.

    | `fusion`          | tokens                        | queries            | keys and values                 | history read        |
    |-------------------|-------------------------------|--------------------|---------------------------------|---------------------|
    | `'append_cross'`  | h_1 .. h_W, c_1 .. c_N        | all                | h, in every block               | once                |
    | `'append_falcon'` | the same                      | all                | h, and a candidate's own        | once                |
    | `'concat'`        | [h_j ; c_n], W for each c_n   | the W tokens       | the same W                      | N times             |
    | `'append_self'`   | h_1 .. h_W, c_1 .. c_N        | all                | all                             | once, and **wrong** |

    `append_cross` (2412.06924, stated second-hand: `Q = W_q [H, C], K = W_k H, V = W_v H`, in every layer) and `append_falcon`
    (the mask of HSTU's M-FALCON) amortise: no history state depends on a candidate, so `prefill` reads the history once and
    `score` takes any number of candidates against its keys and values, in chunks of any size, with the same result. `concat` is
    LiRank's "TransAct" (2402.06859). `append_self` is full self-attention over everything: a candidate's score depends on who else is
    scored. It is here as the control of that, and to be called with one candidate at a time.

        appended:  tokens -> Block^num_layers,   out_n = [LN(c_n)   ; with `pool`: max_j LN(h_j) ; with `latest`: LN(h_W) ..]
        concat:    out_n = [max_j LN(h_jn) ; LN(h_Wn) ; .. ; LN(h_(W-k+1)n)],   the k latest events, most recent first

    Stated for LiRank: 2 layers, a feed-forward layer half as wide as its input, max-pooling and the last five outputs. For 2412.06924
    sizes, order of the history, read-out and position or time are unknown; all are arguments here. Slots without an event take
    no part in attention and pooling. With an empty history an appended candidate is read alone, and pooled parts, and all
    of `concat`, are zero.

    Args:
        fusion: see the table.
        max_history: W, latest visible events that are read.
        num_layers, num_heads, head_dim: of the blocks; `head_dim=None`: the token's width over the heads, made even.
        ffn_multiple: width of the feed-forward layer over the token's.
        dim: D, width of appended tokens, to which events and candidates are mapped; None: the events' width. Not for `concat`.
        history_mask: who among the appended events sees whom: 'bidirectional'; 'causal', whose cache can be extended; 'sessions':
            itself and what ended `session_gap` seconds before its own session began (LiGR: no label of the same session).
        session_gap: seconds without an event that end a session.
        pool: whether the max-pooled history joins the output; None: for `concat` alone, where it must.
        latest: k, how many of the latest events' outputs join one by one; None: 5 for `concat`, else 0.
        projection: width to which the output is mapped by a linear layer; None: none.
        rotary: (shortest, longest) periods of rotation, or None for no order.
        rotate_by: 'time': seconds; a candidate stands at `request_time`. 'index': events from the oldest read; all candidates
            share the place after the last. Where candidates are tokens of their own, both shift nothing between them.
        block: 'decoder' (`DecoderBlock` without gates) or 'ligr' (`LiGRBlock`). block_options: further arguments of it.
        activation, dropout: of the blocks; a `LiGRBlock` has its own activation.

    Call arguments:
        inputs: dict of `history` h (B, L, E), oldest first; `candidates` c (B, N, C); `visible` int32 (B,), how many of the first
            events are visible; for a rotation by time or sessions `times` int32 (B, L); for a rotation by time of appended
            tokens `request_time` int32 (B,).
        cache, step: what `prefill`, `score`, `extend` and `packed` call with; 'joint' is `score` after `prefill`.

    Output:
        (B, N, projection); without a projection (B, N, (pool + k) (E + C)) or, appended, (B, N, (1 + pool + k) D).

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
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        choices = (("fusion", fusion, FUSIONS), ("history_mask", history_mask, MASKS), ("rotate_by", rotate_by, ("time", "index")))
        for name, value, known in (*choices, ("block", block, ("decoder", "ligr"))):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")
        sizes = {"max_history": max_history, "num_layers": num_layers, "num_heads": num_heads, "session_gap": session_gap}
        for name, size in {**sizes, "dim": 1 if dim is None else dim, "projection": 1 if projection is None else projection}.items():
            if size < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={size}")
        self.appended = fusion != "concat"
        self.pool = not self.appended if pool is None else bool(pool)
        self.latest = (0 if self.appended else 5) if latest is None else int(latest)
        if not 0 <= self.latest <= max_history:
            raise ValueError(f"`latest` must be from 0 to max_history={max_history}. Received: latest={latest}")
        if fusion == "append_self" and (self.pool or self.latest or history_mask != "bidirectional"):
            raise ValueError("fusion='append_self' is full self-attention, read at the candidate: without `pool`, `latest` or a mask.")
        if not self.appended and (not self.pool or dim is not None or history_mask != "bidirectional" or block != "decoder"):
            raise ValueError("fusion='concat' is pooled, both ways, of the inputs' own width: no `pool=False`, `dim`, mask or other block.")
        self.fusion, self.max_history, self.num_layers, self.num_heads = fusion, int(max_history), int(num_layers), int(num_heads)
        self.head_dim, self.ffn_multiple, self.dim, self.projection = head_dim, float(ffn_multiple), dim, projection
        self.history_mask, self.session_gap, self.rotate_by = history_mask, int(session_gap), rotate_by
        self.rotary = None if rotary is None else (float(rotary[0]), float(rotary[1]))
        self.block, self.block_options = block, dict(block_options or {})
        self.activation, self.dropout_rate = activation, float(dropout)
        self.see_self = fusion == "append_falcon"

    @property
    def amortises(self) -> bool:
        """Whether the history is read once for all candidates, so that there is a `packed` pass."""
        return self.fusion in ("append_cross", "append_falcon")

    @property
    def looks_ahead(self) -> bool:
        """Whether what is kept of an event depends on later ones, so that a cache is that of one set of visible events."""
        return self.history_mask == "bidirectional" or self.pool or self.latest > 0

    # -- weights ---------------------------------------------------------------------------------------------------------

    @property
    def _reads_times(self) -> bool:
        return (self.rotary is not None and self.rotate_by == "time") or self.history_mask == "sessions"

    def _needed(self, step: str) -> list[str]:
        history = ["history", "visible"] + (["times"] if self._reads_times else [])
        moment = ["request_time"] if self.appended and self.rotary is not None and self.rotate_by == "time" else []
        candidates = ["candidates", *moment]
        extended = ["history", "count"] + (["times"] if self._reads_times else [])
        return {"prefill": history, "score": candidates, "extend": extended, "packed": [*history, *candidates, "slot"]}.get(
            step, [*history, *candidates]
        )

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        if missing := [name for name in self._needed("joint") if name not in input_shape]:
            raise ValueError(f"`inputs` of the first call must be a dict of {self._needed('joint')}. Missing: {missing}")
        widths = [input_shape[name][-1] for name in ("history", "candidates")]
        if None in widths:
            raise ValueError(f"the last axes of history and candidates must be known. Received: {widths}")
        events, candidates = (int(size or 0) for size in widths)
        width = (self.dim or events) if self.appended else events + candidates
        self.width = width
        policy, shape = self.dtype_policy, (None, None, width)
        self.maps: dict[str, Any] = {}
        for name, size in (("history", events), ("candidate", candidates)) if self.appended else ():
            self.maps[name] = keras.layers.Dense(width, dtype=policy, name=f"{name}_map")
            self.maps[name].build((None, None, size))
        head_dim = self.head_dim or max(2, width // self.num_heads // 2 * 2)
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "head_dim": head_dim,
            "rotary": self.rotary,
            "ffn_multiple": self.ffn_multiple,
            "dropout": self.dropout_rate,
            "dtype": policy,
        }
        if self.block == "decoder":
            options |= {"gates": (), "activation": self.activation}
        kind = {"decoder": DecoderBlock, "ligr": LiGRBlock}[self.block]
        self.blocks = [kind(**{**options, **self.block_options}, name=f"block_{i}") for i in range(self.num_layers)]
        for block in self.blocks:
            block.build(shape)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.norm.build(shape)
        self.out = None if self.projection is None else keras.layers.Dense(self.projection, dtype=policy, name="projection")
        if self.out is not None:
            self.out.build((None, None, self._parts * width))
        self.built = True

    @property
    def _parts(self) -> int:
        return int(self.appended) + int(self.pool) + self.latest

    # -- the public steps ------------------------------------------------------------------------------------------------

    def prefill(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Read histories once.

        Args:
            inputs: `history`, `visible` and, where needed, `times`, as in a call. The layer must have been built.

        Returns:
            Dict of `length` int32 (B,), events that were read, and, appended, `key` and `value` (B, blocks, W, H, d_h), gated and
            rotated, `time` where read, and `summary` (B, (pool + k) D) where there is one; for `concat`, the events read.
        """
        return dict(self(inputs, step="prefill", training=training))

    def score(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None = None) -> Any:
        """Encode candidates against what `prefill` or `extend` returned.

        Args:
            inputs: `candidates` and, where needed, `request_time`.
            cache: of the same requests. Its `length` may be made smaller where the history is causal or by sessions: later
                events are then out of sight.
        """
        return self(inputs, cache=cache, step="score", training=training)

    def extend(self, inputs: Mapping[str, Any], cache: Mapping[str, Any]) -> dict[str, Any]:
        """Append later events to a cache: equal to `prefill` over all events, as long as those are at most `max_history`.

        Args:
            inputs: `history` (B, M, E), the new events; `count` int32 (B,), how many of them are real; where needed `times` (B, M).
            cache: from `prefill` or `extend`, with no event hidden. It holds W slots; the result holds W + M.

        Raises:
            ValueError: a history in which earlier events see later ones, or with a summary.
        """
        if not self.amortises or self.looks_ahead:
            raise ValueError(
                "a cache can be extended where no event sees later ones and none are pooled: history_mask='causal' or 'sessions', no "
                f"`pool`, latest=0. Received: fusion={self.fusion!r}, history_mask={self.history_mask!r}, pool={self.pool}, "
                f"latest={self.latest}"
            )
        return dict(self(inputs, cache=cache, step="extend"))

    def packed(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Several requests in a row of candidate slots, as `PackedRequests` makes them, in one pass over all tokens.

        Args:
            inputs: as in a call; `candidates` (B, S, C), `slot` int32 (B, S): request of each within its row, from 1 on, 0 = empty;
                `history` (B Q, L, E), `visible` (B Q,), `times` and `request_time`: the Q requests of each row, one after another.

        Returns:
            (B, S, ...): in each slot what a call gives this candidate with its own request's history.

        Raises:
            ValueError: 'append_self' or 'concat', which have no such pass.
        """
        if not self.amortises:
            raise ValueError(f"fusion={self.fusion!r} reads one candidate at a time: there is no packed pass.")
        return self(inputs, step="packed", training=training)

    def call(
        self, inputs: Mapping[str, Any], cache: Mapping[str, Any] | None = None, step: str = "joint", training: bool | None = None
    ) -> Any:
        if step not in _STEPS:
            raise ValueError(f"`step` must be one of {_STEPS}. Received: step={step!r}")
        if missing := [name for name in self._needed(step) if name not in inputs]:
            raise ValueError(f"`inputs` must be a dict of {self._needed(step)}. Missing: {missing}")
        if step == "joint" and self.fusion == "append_self":
            return self._self_attention(inputs, training)
        if step == "joint":
            return self._score(inputs, self._prefill(inputs, training), training)
        if self.fusion == "append_self":
            raise ValueError("fusion='append_self' has no cache: what it makes of the history depends on the candidates.")
        if step == "prefill":
            return self._prefill(inputs, training)
        if step == "packed":
            return self._packed(inputs, training)
        if cache is None:
            raise ValueError(f"`cache` must be given to '{step}': what `prefill` returned.")
        return self._score(inputs, cache, training) if step == "score" else self._extend(inputs, cache, training)

    # -- appended --------------------------------------------------------------------------------------------------------

    def _places(self, times: Any, like: Any, first: Any = 0) -> Any:
        """What tokens are rotated by: their times, or their index, from `first` on."""
        if self.rotary is None:
            return None
        if self.rotate_by == "time":
            return times
        return first + ops.arange(ops.shape(like)[1], dtype="int32")[None, :] + ops.zeros_like(like[:, :, 0], dtype="int32")

    def _history_spans(self, real: Any, times: Any) -> Spans:
        segments = ops.cast(real, "int32")
        if self.history_mask == "bidirectional":
            return Spans.bidirectional(segments)
        if self.history_mask == "causal":
            return Spans.causal(segments)
        return Spans.sessions(session_ids(times, self.session_gap), segments)

    def _events(self, inputs: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
        """Tokens (B, W, D) of the latest visible events, which are real, their times, and their number."""
        history, times, length = latest_window(inputs["history"], inputs.get("times"), inputs["visible"], self.max_history)
        real = ops.arange(ops.shape(history)[1], dtype="int32")[None, :] < length[:, None]
        history = ops.where(real[:, :, None], history, ops.zeros_like(history))
        return history, real, times, length

    def _prefill(self, inputs: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
        history, real, times, length = self._events(inputs)
        if not self.appended:
            cache = {"history": history, "length": length}
            return cache if times is None else {**cache, "time": times}
        x = self.maps["history"](history)
        spans, places = self._history_spans(real, times), self._places(times, x)
        keys, values = [], []
        for block in self.blocks:
            x, key, value = block(x, times=places, spans=tuple(spans), return_cache=True, training=training)
            keys.append(key)
            values.append(value)
        cache = {"key": ops.stack(keys, axis=1), "value": ops.stack(values, axis=1), "length": length}
        if times is not None:
            cache["time"] = times
        if self.pool or self.latest:
            cache["summary"] = self._summary(self.norm(x), real, length)
        return cache

    def _summary(self, x: Any, real: Any, length: Any) -> Any:
        """[max over real events ; the k latest, most recent first] of x (B, W, D) -> (B, (pool + k) D)."""
        parts = []
        if self.pool:
            highest = ops.max(ops.where(real[:, :, None], x, ops.full_like(x, _LOWEST)), axis=1)
            parts.append(ops.where(ops.any(real, axis=1)[:, None], highest, ops.zeros_like(highest)))
        for k in range(self.latest):
            at = length - 1 - k
            row = ops.take_along_axis(x, ops.maximum(at, 0)[:, None, None], axis=1)[:, 0]
            parts.append(ops.where(at[:, None] >= 0, row, ops.zeros_like(row)))
        return ops.concatenate(parts, axis=-1)

    def _score(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
        if not self.appended:
            return self._joined(inputs, cache, training)
        x = self.maps["candidate"](inputs["candidates"])
        moment = inputs["request_time"] if self.rotary is not None and self.rotate_by == "time" else cache["length"]
        places = None if self.rotary is None else moment[:, None] + ops.zeros_like(x[:, :, 0], dtype="int32")
        for i, block in enumerate(self.blocks):
            kept = (cache["key"][:, i], cache["value"][:, i], cache["length"])
            x = block(x, times=places, cache=kept, see_self=self.see_self, training=training)
        return self._read(x, cache.get("summary"))

    def _read(self, x: Any, summary: Any, owner: Any = None) -> Any:
        out = self.norm(x)
        if summary is not None:
            wide = summary[:, None] + ops.zeros_like(x[:, :, :1]) if owner is None else owner(summary)
            out = ops.concatenate([out, wide], axis=-1)
        return out if self.out is None else self.out(out)

    def _extend(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> dict[str, Any]:
        length, count = cache["length"], inputs["count"]
        x = self.maps["history"](inputs["history"])
        slots, added = ops.shape(cache["key"])[2], ops.shape(x)[1]
        index = ops.arange(slots + added, dtype="int32")[None, :]
        real = index < (length + count)[:, None]
        times = None
        if "time" in cache and "times" in inputs:
            # Cached times, then the new ones, each right after the last real one.
            times = gather_rows(ops.concatenate([cache["time"], inputs["times"]], axis=1), length, slots)
        spans = self._history_spans(real, times)
        places = self._places(inputs.get("times"), x, first=length[:, None])
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            kept = (cache["key"][:, i], cache["value"][:, i], length)
            x, key, value = block(x, times=places, spans=tuple(spans), cache=kept, return_cache=True, training=training)
            keys.append(key)
            values.append(value)
        longer = {"key": ops.stack(keys, axis=1), "value": ops.stack(values, axis=1), "length": length + count}
        return longer if times is None else {**longer, "time": times}

    def _packed(self, inputs: Mapping[str, Any], training: bool | None) -> Any:
        slot = inputs["slot"]
        history, real, times, length = self._events(inputs)
        batch, window = ops.shape(slot)[0], ops.shape(history)[1]
        requests = ops.shape(history)[0] // batch
        candidates = self.maps["candidate"](inputs["candidates"])
        slots = ops.shape(candidates)[1]
        before = requests * window

        def row(x: Any, *trailing: int) -> Any:
            return ops.reshape(x, (batch, before, *trailing))

        owner = ops.maximum(slot - 1, 0)
        first = row(ops.zeros_like(real, dtype="int32") + (ops.arange(batch * requests, dtype="int32") % requests * window)[:, None])
        inside = Spans(*(row(part) + first for part in self._history_spans(real, times)))
        start = owner * window
        seen = start + ops.take_along_axis(ops.reshape(length, (batch, requests)), owner, axis=1)
        index = before + ops.arange(slots, dtype="int32")[None, :] + ops.zeros_like(slot)
        empty = slot < 1
        seen = ops.where(empty, start, seen)
        alone = index + 1 if not self.see_self else ops.where(empty, index + 1, index)
        spans = tuple(ops.concatenate(pair, axis=1) for pair in zip(inside, (start, seen, alone), strict=True))
        places = None
        if self.rotary is not None:
            mine = ops.reshape(inputs["request_time"] if self.rotate_by == "time" else length, (batch, requests))
            places = ops.concatenate([row(self._places(times, history)), ops.take_along_axis(mine, owner, axis=1)], axis=1)
        x = ops.concatenate([row(self.maps["history"](history), self.width), candidates], axis=1)
        for block in self.blocks:
            x = block(x, times=places, spans=spans, training=training)
        if not (self.pool or self.latest):
            return self._read(x[:, before:], None)
        states = ops.reshape(self.norm(x[:, :before]), (-1, window, self.width))
        summary = ops.reshape(self._summary(states, real, length), (batch, requests, (self._parts - 1) * self.width))
        return self._read(x[:, before:], summary, owner=lambda rows: ops.take_along_axis(rows, owner[:, :, None], axis=1))

    def _self_attention(self, inputs: Mapping[str, Any], training: bool | None) -> Any:
        history, _, times, length = self._events(inputs)
        window, count = ops.shape(history)[1], ops.shape(inputs["candidates"])[1]
        x = ops.concatenate([self.maps["history"](history), self.maps["candidate"](inputs["candidates"])], axis=1)
        places = self._places(times, history)
        if places is not None:
            moment = inputs["request_time"] if self.rotate_by == "time" else length
            places = ops.concatenate([places, moment[:, None] + ops.zeros_like(inputs["candidates"][:, :, 0], dtype="int32")], axis=1)
        # Real events at the right end of the window, so that what is seen is one interval.
        shift = (window - length)[:, None]
        index = ops.arange(window + count, dtype="int32")[None, :] + ops.zeros_like(shift)
        order = ops.where(index < window, (index - shift) % window, index)
        x = ops.take_along_axis(x, order[:, :, None], axis=1)
        places = None if places is None else ops.take_along_axis(places, order, axis=1)
        last = ops.zeros_like(index) + window + count
        spans = (ops.where(index < shift, last, shift), last, index + 1)
        for block in self.blocks:
            x = block(x, times=places, spans=spans, training=training)
        return self._read(x[:, window:], None)

    # -- joined to every event -------------------------------------------------------------------------------------------

    def _joined(self, inputs: Mapping[str, Any], cache: Mapping[str, Any], training: bool | None) -> Any:
        tokens, real, lengths, times = joined_tokens(cache, inputs["candidates"])
        shape = ops.shape(inputs["candidates"])
        places = self._places(times, tokens)
        x, spans = tokens, tuple(Spans.bidirectional(ops.cast(real, "int32")))
        for block in self.blocks:
            x = block(x, times=places, spans=spans, training=training)
        out = self._summary(self.norm(x), real, lengths)
        out = ops.reshape(out, (shape[0], shape[1], self._parts * self.width))
        return out if self.out is None else self.out(out)

    # -- specification ---------------------------------------------------------------------------------------------------

    def compute_output_spec(self, inputs: Any, cache: Any = None, step: str = "joint", training: bool | None = None) -> Any:
        if step in ("prefill", "extend"):
            return self._cache_spec(inputs, cache)
        lead = tuple(inputs["candidates"].shape[:2])
        return keras.KerasTensor((*lead, self.projection or self._parts * self.width), dtype=self.compute_dtype)

    def _cache_spec(self, inputs: Any, cache: Any) -> dict[str, Any]:
        batch, slots = inputs["history"].shape[:2]
        if cache is not None:
            held = cache["key"].shape[2]
            slots = None if slots is None or held is None else slots + held
        elif slots is not None:
            slots = min(slots, self.max_history)
        found = {"length": keras.KerasTensor((batch,), dtype="int32")}
        if self.appended:
            heads = self.blocks[0].attention
            shape = (batch, self.num_layers, slots, heads.num_kv_heads, heads.head_dim)
            found |= {name: keras.KerasTensor(shape, dtype=self.compute_dtype) for name in ("key", "value")}
        else:
            found["history"] = keras.KerasTensor((batch, slots, inputs["history"].shape[-1]), dtype=self.compute_dtype)
        if "times" in inputs:
            found["time"] = keras.KerasTensor((batch, slots), dtype="int32")
        if self.appended and (self.pool or self.latest):
            found["summary"] = keras.KerasTensor((batch, (self._parts - 1) * self.width), dtype=self.compute_dtype)
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
            "pool": self.pool,
            "latest": self.latest,
            "projection": self.projection,
            "rotary": None if self.rotary is None else list(self.rotary),
            "rotate_by": self.rotate_by,
            "block": self.block,
            "block_options": self.block_options,
            "activation": self.activation,
            "dropout": self.dropout_rate,
        }
