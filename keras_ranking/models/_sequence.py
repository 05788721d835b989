"""What CADET and FeedSR share: a causal transformer over a member's events that scores candidates against cached keys."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.ranking_model import Tensors
from keras_ranking.ops import Spans
from keras_ranking.schema import Schema

GATES: dict[str, tuple[str, ...]] = {
    "none": (),
    "representation": ("representation",),
    "qk": ("query", "key"),
    "all": ("representation", "query", "key"),
    "output": ("output",),
}
ROTATIONS = ("time", "index", "split", None)


def sequence_arguments(
    schema: Schema,
    *,
    dim: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None,
    ffn_multiple: float,
    layout: str,
    action_masking: float,
    mask: str,
    delay: int | None,
    session_gap: int,
    max_history: int | None,
    gates: str | Sequence[str],
    gate_bias: float,
    residual: str,
    residual_initial: float | None,
    rotate_by: str | None,
    rotary: Sequence[float] | None,
    rotary_base: float,
    shared_index: bool,
    token_features: Sequence[str] | None,
    late_features: Sequence[str] | None,
    tasks: Sequence[str] | None,
    id_dim: int,
    token_hidden: int | None,
    action_hidden: int | None,
    dropout: float,
    dtype: str | None,
    sampled_delay: bool,
) -> dict[str, Any]:
    """The arguments of the trunk, checked against the schema and written out, as a model's file holds them.

    Raises:
        ValueError: as the models say.
    """
    if dim < 1 or num_layers < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"`dim` must be a positive multiple of `num_heads`, and `num_layers` positive. "
            f"Received: dim={dim}, num_heads={num_heads}, num_layers={num_layers}"
        )
    if isinstance(gates, str) and gates not in GATES:
        raise ValueError(f"`gates` must be one of {tuple(GATES)}, or a list of gates. Received: gates={gates!r}")
    if rotate_by not in ROTATIONS:
        raise ValueError(f"`rotate_by` must be one of {ROTATIONS}. Received: rotate_by={rotate_by!r}")
    if rotate_by == "split" and rotary is None:
        raise ValueError("rotate_by='split' rotates half of the heads by time, and needs `rotary`. Received: rotary=None")
    if action_masking and layout != "fused":
        raise ValueError(f"`action_masking` is for layout='fused'. Received: action_masking={action_masking}, layout={layout!r}")
    if not shared_index and (layout != "interleaved" or rotate_by not in ("index", "split")):
        received = f"layout={layout!r}, rotate_by={rotate_by!r}"
        raise ValueError(f"`shared_index=False` is for layout='interleaved' with a rotation by index. Received: {received}")
    if max_history is not None and (isinstance(max_history, bool) or int(max_history) != max_history or max_history < 0):
        raise ValueError(f"`max_history` must be a number of events, or None for all. Received: max_history={max_history}")
    if sampled_delay and mask != "delay":
        raise ValueError(f"`sampled_delay` goes with mask='delay'. Received: mask={mask!r}")
    if sampled_delay and any(column.name == "delay" for column in (*schema.features, *schema.actions)):
        raise ValueError("`sampled_delay` gives rows an input `delay`, which is a column of the schema here: rename the column.")
    by_time = rotate_by in ("time", "split") and rotary is not None
    return {
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "ffn_multiple": ffn_multiple,
        "layout": layout,
        "action_masking": float(action_masking),
        "mask": mask,
        "delay": _delay(schema, mask, delay),
        "session_gap": int(session_gap),
        "max_history": None if max_history is None else int(max_history),
        "gates": list(GATES[gates] if isinstance(gates, str) else gates),
        "gate_bias": gate_bias,
        "residual": residual,
        "residual_initial": residual_initial,
        "rotate_by": rotate_by if by_time or rotate_by == "index" else None,
        "rotary": [float(end) for end in rotary or ()] if by_time else None,
        "rotary_base": float(rotary_base),
        "shared_index": bool(shared_index),
        "token_features": [feature.name for feature in schema.inputs(token_features, known=("item",))],
        "late_features": [feature.name for feature in schema.inputs(late_features, known=("context",))],
        "tasks": [schema.task(task).name for task in (tasks if tasks is not None else [task.name for task in schema.tasks])],
        "id_dim": id_dim,
        "token_hidden": token_hidden,
        "action_hidden": action_hidden,
        "dropout": dropout,
        "dtype": dtype or keras.config.dtype_policy().name,
        "sampled_delay": bool(sampled_delay),
    }


def of_trunk(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of all arguments of a model's builder, its `locals()`, those that `sequence_arguments` takes."""
    return {
        name: arguments[name]
        for name, taken in inspect.signature(sequence_arguments).parameters.items()
        if taken.kind is taken.KEYWORD_ONLY
    }


def _delay(schema: Schema, mask: str, delay: int | None) -> int:
    if mask == "causal":
        if delay not in (None, 1):
            raise ValueError(f"`delay` has no meaning with mask='causal', which shows all older events. Received: delay={delay}")
        return 1
    delay = schema.feedback_delay if delay is None else int(delay)
    if 1 <= delay < schema.feedback_delay:
        raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={delay}")
    return delay


class SequenceParts:
    """The layers of a trunk, and how rows, histories and candidates flow through them; a subclass has the heads.

    Tokens of a row by layout, and what is cached of a history of L events:

    | layout        | tokens of a row                  | read out at | cached | a candidate sees                  |
    |---------------|----------------------------------|-------------|--------|-----------------------------------|
    | `interleaved` | item, action, item, action, ...  | items       | 2 L    | visible items and actions, itself |
    | `fused`       | T events, then T queries         | queries     | L      | visible events, itself            |
    | `value`       | T items, actions in their values | items       | L      | visible events                    |

    The token that is read out holds no action of its own event in any of them, and is the very token that a candidate is.

    Places: the index of an event is the number of events that it sees, and all its tokens share it; that of a candidate is the number
    of events that it sees. So all candidates of a request share one, it does not depend on where an event stands in its request
    (which is the position shown), nor on events that are hidden, nor on padding, and a row of training and a request agree by
    construction. Without a delay, and with one item a request, it is the place in the sequence.

    `max_history`: of the events that it may see, an event or candidate sees the latest so many, in every block. The cache holds all; what
    a candidate reads of it is cut out when it is scored.
    """

    form = "rows"

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        self.schema = schema
        self.arguments = a = arguments
        self.token_features = schema.inputs(a["token_features"])
        self.late_features = schema.inputs(a["late_features"])
        self.layout = a["layout"]
        self.policy: dict[str, Any] = {"dtype": a["dtype"]}
        policy = self.policy
        self.spans = layers.EventSpans(a["mask"], a["delay"], a["session_gap"], own=self.layout != "value", name="event_spans")
        self.token_spans = layers.TokenSpans(self.layout, name="token_spans")
        self.item = layers.EventEmbedding(
            self.token_features, a["dim"], hidden=a["token_hidden"], id_dim=a["id_dim"], name="item_token", **policy
        )
        self.action = None
        if schema.actions:
            self.action = layers.ActionEmbedding(
                schema.actions, a["dim"], hidden=a["action_hidden"], id_dim=a["id_dim"], name="action_token", **policy
            )
        elif self.layout != "value":
            raise ValueError(f"layout={self.layout!r} needs at least one action in the schema. Received: actions=()")
        self.late = None
        if self.late_features:
            self.late = layers.FeatureConcat(self.late_features, id_dim=a["id_dim"], name="late_context", **policy)
        self.visible = layers.VisibleLength(a["delay"], a["mask"], a["session_gap"], name="visible_length")
        if self.layout == "interleaved":
            self.interleave = layers.Interleave(name="interleave", **policy)
        if self.layout == "fused":
            self.fuse = layers.FuseActions(a["action_masking"], name="fuse_actions", **policy)
            self.read_out = layers.ItemTokens(self.layout, name="item_tokens", **policy)
            self.behind = keras.layers.Concatenate(axis=1, name="events_then_queries", **policy)
        if self.layout != "value":
            self.token_times = layers.TokenTimes(self.layout, name="token_times")
            self.token_index = layers.TokenTimes(self.layout, distinct=not a["shared_index"], name="token_index")
        names = ("gates", "gate_bias", "rotary", "rotate_by", "rotary_base", "ffn_multiple", "dropout", "residual", "residual_initial")
        self.blocks = [
            layers.DecoderBlock(
                a["num_heads"],
                a["dim"] // a["num_heads"],
                a["num_kv_heads"],
                **{name: a[name] for name in names},
                name=f"block_{i}",
                **policy,
            )
            for i in range(a["num_layers"])
        ]
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="final_norm", **policy)
        self.join = keras.layers.Concatenate(name="join", **policy)
        self.keep = layers.KeepFirst(name="keep_history")
        self.segments = layers.Segments(name="history_segments")
        self.request_times = layers.RequestTimes(name="request_times")
        self.by_index = a["rotate_by"] in ("index", "split")
        self.latest = None
        if a["max_history"] is not None:
            tokens = a["max_history"] * (2 if self.layout == "interleaved" else 1)
            self.latest = layers.LatestKeys(tokens, name="latest_keys", **policy)

    def heads(self, hidden: Any, serving: bool) -> Tensors:
        """[final state ; late features] (B, T, C) -> logits (B, T, K) by task; in serving, of the tasks that are scored."""
        raise NotImplementedError

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def _columns(self, features: Sequence[Any], prefix: str = "") -> Tensors:
        columns = {feature.name: feature for feature in features}
        return {
            prefix + name: keras.Input((None, *feature.shape), dtype=feature.dtype, name=prefix + name) for name, feature in columns.items()
        }

    def row_inputs(self) -> Tensors:
        names = ("time", "segment", "delay") if self.arguments["sampled_delay"] else ("time", "segment")
        times = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
        return {**times, **self._columns((*self.token_features, *self.schema.actions, *self.late_features))}

    def history_inputs(self) -> Tensors:
        return {
            "history_time": keras.Input((None,), dtype="int32", name="history_time"),
            "history_length": keras.Input((), dtype="int32", name="history_length"),
            **self._columns((*self.token_features, *self.schema.actions), "history_"),
        }

    def candidate_inputs(self) -> Tensors:
        return {
            "request_time": keras.Input((), dtype="int32", name="request_time"),
            **self._columns((*self.token_features, *self.late_features), "candidate_"),
        }

    # -- the three ways ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _of(features: Sequence[Any], columns: Mapping[str, Any]) -> Tensors:
        return {feature.name: columns[feature.name] for feature in features}

    def _trunk(self, inputs: Tensors, times: Any, segments: Any, caches: list[tuple[Any, Any]] | None) -> Any:
        """Blocks over a row of events; of a history, where `caches` is given, every block's keys and values are appended to it."""
        x = self.item(self._of(self.token_features, inputs))
        actions = None if self.action is None else self.action(self._of(self.schema.actions, inputs))
        sampled = caches is None and self.arguments["sampled_delay"]
        spans = self.spans(times, segments, delays=inputs["delay"]) if sampled else self.spans(times, segments)
        index = spans.end - spans.start if self.by_index else None
        if self.latest is not None:
            spans = Spans(ops.maximum(spans.start, spans.end - self.arguments["max_history"]), spans.end, spans.own)
        queries = self.layout == "fused" and caches is None  # a history asks nothing: its queries would only be thrown away
        value_bias = actions if self.layout == "value" else None
        if self.layout == "interleaved":
            x = self.interleave(x, actions=actions)
        elif self.layout == "fused":
            events = self.fuse(x, actions=actions)
            x = self.behind([events, self.fuse(x)]) if queries else events
        if self.layout == "interleaved" or queries:
            spans, times = self.token_spans(tuple(spans)), self.token_times(times)
            index = self.token_index(index) if self.by_index else None
        for block in self.blocks:
            # Of interleaved tokens the last block computes those alone that are read out, of which each second is one.
            last = self.layout == "interleaved" and caches is None and block is self.blocks[-1]
            given = {"times": times, "index": index, "spans": tuple(spans), "value_bias": value_bias, "stride": 2 if last else 1}
            x, key, value = block(x, **given, return_cache=True)
            if caches is not None:
                caches.append((key, value))
        return self.read_out(x) if queries else x

    def _states(self, hidden: Any, columns: Tensors) -> Any:
        hidden = self.final_norm(hidden)
        return hidden if self.late is None else self.join([hidden, self.late(self._of(self.late_features, columns))])

    def row(self, inputs: Tensors) -> Tensors:
        return self.heads(self._states(self._trunk(inputs, inputs["time"], inputs["segment"], None), inputs), serving=False)

    def encode(self, history: Tensors) -> Tensors:
        length = history["history_length"]
        clean = {name.removeprefix("history_"): self.keep(x, length=length) for name, x in history.items() if name != "history_length"}
        caches: list[tuple[Any, Any]] = []
        self._trunk(clean, clean["time"], self.segments(clean["time"], length=length), caches)
        return {
            "key": ops.stack([key for key, _ in caches], axis=1),
            "value": ops.stack([value for _, value in caches], axis=1),
            "time": clean["time"],
            "length": length,
        }

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        x, places, visible = self._candidates(cache, candidates)
        keys, values, visible = self._read(cache, visible)
        for i, block in enumerate(self.blocks):
            x = block(x, **places, cache=(keys[:, i], values[:, i], visible), see_self=self.layout != "value")
        return self.heads(self._states(x, self._bare(candidates)), serving=True)

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        """Weights of each block, (B, H, N, keys + 1): see `SelfGatedAttention.candidate_weights`."""
        x, places, visible = self._candidates(cache, candidates)
        see_self = self.layout != "value"
        weights = []
        keys, values, counted = self._read(cache, visible)
        for i, block in enumerate(self.blocks):
            held = (keys[:, i], values[:, i], counted)
            found = block.attention.candidate_weights(block.attention_norm(x), **places, cache=held, see_self=see_self)
            weights.append(found if self.latest is None else _placed(found, visible, ops.shape(cache["key"])[2], self.latest.size))
            x = block(x, **places, cache=held, see_self=see_self)
        return weights

    def _read(self, cache: Tensors, visible: Any) -> tuple[Any, Any, Any]:
        """The cached keys and values that candidates read, (B, blocks, S, H, D), and how many of them count, (B,)."""
        if self.latest is None:
            return cache["key"], cache["value"], visible
        keys, values = (self.latest(cache[name], length=visible) for name in ("key", "value"))
        return keys, values, ops.minimum(visible, self.latest.size)

    @staticmethod
    def _bare(candidates: Tensors) -> Tensors:
        return {name.removeprefix("candidate_"): x for name, x in candidates.items()}

    def _candidates(self, cache: Tensors, candidates: Tensors) -> tuple[Any, dict[str, Any], Any]:
        """Candidate tokens, their times and places, and how many cached keys they see."""
        x = self.item(self._of(self.token_features, self._bare(candidates)))
        if self.layout == "fused":
            x = self.fuse(x)
        visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
        keys = visible + visible if self.layout == "interleaved" else visible
        places = {"times": self.request_times(x, request_time=candidates["request_time"])}
        if self.by_index:
            # All candidates share one place, whatever their slot.
            places["index"] = self.request_times(x, request_time=visible if self.arguments["shared_index"] else keys)
        return x, places, keys


def _placed(weights: Any, visible: Any, slots: Any, size: int) -> Any:
    """Weights on the latest `size` visible keys, (B, H, N, W + 1), at the places of all that are cached, (B, H, N, slots + 1)."""
    window = weights.shape[-1] - 1
    place = ops.arange(slots, dtype="int32")[None, :] - ops.maximum(visible - size, 0)[:, None]
    read = ops.logical_and(place >= 0, place < window)[:, None, None, :]
    index = ops.clip(place, 0, window - 1)[:, None, None, :] + ops.zeros_like(weights[..., :1], dtype="int32")
    found = ops.where(read, ops.take_along_axis(weights[..., :-1], index, axis=-1), 0.0)
    return ops.concatenate([found, weights[..., -1:]], axis=-1)
