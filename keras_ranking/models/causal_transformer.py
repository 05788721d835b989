"""The trunk of `CADET` and `FeedSR`: a causal transformer over a member's events that scores candidates against cached keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.configuration import Attention, Choice, Numbers, Past, Tokens, Trunk, Visibility
from keras_ranking.models.member_columns import MemberColumns
from keras_ranking.models.past_reader import PastReader
from keras_ranking.models.task_logits import Choices, ListReader
from keras_ranking.models.wiring import Tensors, distinct, input_columns, without_prefix
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_least, at_most, int32
from keras_ranking.schema import Schema


class CausalTransformer:
    """The layers of a trunk, and how rows, histories and candidates flow through them; a subclass has the heads.

    Tokens of a row by layout, and what is cached of a history of L events:

    | layout        | tokens of a row                  | read out at | cached | a candidate sees                  |
    |---------------|----------------------------------|-------------|--------|-----------------------------------|
    | `interleaved` | item, action, item, action, ...  | items       | 2 L    | visible items and actions, itself |
    | `fused`       | T events, then T queries         | queries     | L      | visible events, itself            |
    | `value`       | T items, actions in their values | items       | L      | visible events                    |

    In every layout the token that is read out holds no action of its own event, and is computed as the token of a candidate is.

    Index: the index of an event is the number of events that it sees, and all its tokens share it; the index of a candidate is the
    number of events that it sees. So all candidates of a request share one index, and it depends neither on where an event stands in
    its request (which is the position shown), nor on hidden events, nor on padding: a row of training and a request agree by
    construction. Without a delay, and with one item a request, the index is the place in the sequence.

    Lists: candidates of a request meet at the heads alone (`list_context`, `list_pooling`, `choice`). In a row these are the events of
    one number in the input `request_slot`, in a request its candidates. No block reads them, so that an event of a history is the same
    whatever was shown next to it, and caches serve any list.

    `max_history`: of the events that it may see, an event or candidate sees the latest ones, so many in every block. The cache holds
    all; the part that a candidate reads is taken when it is scored.
    """

    form = "rows"

    def __init__(
        self,
        schema: Schema,
        tokens: Tokens,
        trunk: Trunk,
        attention: Attention,
        visibility: Visibility,
        past: Past,
        numbers: Numbers,
        choice: Choice,
        dtype: str,
    ) -> None:
        self.schema, self.visibility = schema, visibility
        self.policy: dict[str, Any] = {"dtype": dtype}
        self.layout, self.by_index, self.shared_index = tokens.layout, attention.by_index, attention.shared_index
        self._make_tokens(tokens, numbers, trunk.dim, attention.shared_index)
        self._make_blocks(trunk, attention)
        self.final_norm = keras.layers.LayerNormalization(epsilon=1e-6, name="final_norm", **self.policy)
        self.join = keras.layers.Concatenate(name="join", **self.policy)
        self.keep = layers.KeepFirst(name="keep_history")
        self.segments = layers.Segments(name="history_segments")
        self.request_times = layers.RequestTimes(name="request_times")
        self.append = layers.AppendEvents(name="append_events")
        self.held, self.append_keys = layers.HeldKeys(name="held_keys", **self.policy), layers.AppendKeys(name="append_keys")
        self.latest = None
        if visibility.max_history is not None:
            size = visibility.max_history * (2 if self.layout == "interleaved" else 1)
            self.latest = layers.LatestKeys(size, name="latest_keys", **self.policy)
        self.past = None
        if past.reads:
            self.past = PastReader(schema, past, self._vector, self.policy, visibility.max_history)
        self._make_lists(tokens, numbers, trunk.dropout, choice)

    def _make_lists(self, tokens: Tokens, numbers: Numbers, dropout: float, choice: Choice) -> None:
        """What candidates of a request read of each other."""
        read = distinct([*self.token_features, *self.late_features])
        # A column of the member is the same in the whole list.
        plain = numbers.plain([feature for feature in read if feature.dtype != "int32" and feature.known != "member"])
        if tokens.list_context:
            if not plain:
                kept = "; with `number_plain=True` a number with a vector is one" if numbers.embeds else ""
                raise ValueError(f"`list_context` needs a number among `token_features` and `late_features`{kept}. Received: none")
            self.list_numbers = layers.FeatureConcat(plain, name="list_numbers", **self.policy)
        self.lists, self.choices = ListReader(tokens.list_context, tokens.list_pooling, dropout, self.policy), Choices(choice)
        self.reads_list = bool(tokens.list_context or tokens.list_pooling or choice.choice)
        if self.reads_list:
            if any(column.name == "request_slot" for column in (*self.schema.features, *self.schema.actions)):
                raise ValueError("what reads the list gives rows an input 'request_slot', which is a column of the schema here: rename it.")
            self.one_list = layers.OneSet(name="one_list")

    def _vector(self, columns: Tensors, keys: Sequence[str]) -> Any:
        return self.item.concat(columns, only=keys)

    def _make_tokens(self, tokens: Tokens, numbers: Numbers, dim: int, shared_index: bool) -> None:
        """Layers from columns to tokens: item, action, late context; which tokens see which; times and places of tokens."""
        schema, seen, policy = self.schema, self.visibility, self.policy
        delay: Any = seen.delay
        self.token_features = schema.inputs(tokens.token_features)
        self.late_features = schema.inputs(tokens.late_features)
        self.members = MemberColumns(schema)
        self.by_column = seen.by_column
        sessions: dict[str, Any] = {"session_gap": seen.session_gap, "by_column": self.by_column}
        masked: dict[str, Any] = {"mask": seen.mask, "delay": delay, "own": self.layout != "value", **sessions}
        self.spans, self.later_spans = layers.EventSpans(**masked, name="event_spans"), layers.LaterSpans(**masked, name="later_spans")
        self.token_spans = layers.TokenSpans(self.layout, name="token_spans")
        of_item, of_action, of_late = map(numbers.concat_options, (self.token_features, schema.actions, self.late_features))
        of_ids: dict[str, Any] = {"id_dim": tokens.id_dim, "id_dropout": tokens.id_dropout}
        self.item = layers.EventEmbedding(
            self.token_features, dim, hidden=tokens.token_hidden, name="item_token", **policy, **of_ids, **of_item
        )
        self.action = None
        if schema.actions:
            self.action = layers.ActionEmbedding(
                schema.actions, dim, hidden=tokens.action_hidden, id_dim=tokens.id_dim, name="action_token", **policy, **of_action
            )
        elif self.layout != "value":
            raise ValueError(f"layout={self.layout!r} needs at least one action in the schema. Received: actions=()")
        self.late = None
        if self.late_features:
            self.late = layers.FeatureConcat(self.late_features, name="late_context", **policy, **of_ids, **of_late)
        self.visible = layers.VisibleLength(delay, seen.mask, **sessions, name="visible_length")
        if self.layout == "interleaved":
            self.interleave = layers.Interleave(name="interleave", **policy)
        if self.layout == "fused":
            self.fuse = layers.FuseActions(tokens.action_masking, name="fuse_actions", **policy)
            self.read_out = layers.ItemTokens(self.layout, name="item_tokens", **policy)
            self.behind = keras.layers.Concatenate(axis=1, name="events_then_queries", **policy)
        if self.layout != "value":
            self.token_times = layers.TokenTimes(self.layout, name="token_times")
            self.token_index = layers.TokenTimes(self.layout, distinct=not shared_index, name="token_index")

    def _make_blocks(self, trunk: Trunk, attention: Attention) -> None:
        """The transformer's blocks."""
        options: dict[str, Any] = {
            "gates": attention.gates,
            "gate_bias": attention.gate_bias,
            "rotary": attention.rotary,
            "rotate_by": attention.rotate_by,
            "rotary_base": attention.rotary_base,
            "ffn_multiple": trunk.ffn_multiple,
            "dropout": trunk.dropout,
            "residual": trunk.residual,
            "residual_initial": trunk.residual_initial,
        }
        self.blocks = [
            layers.DecoderBlock(trunk.num_heads, trunk.head_dim, trunk.num_kv_heads, **options, name=f"block_{i}", **self.policy)
            for i in range(trunk.num_layers)
        ]

    def heads(self, hidden: Any, read: list[Any], serving: bool) -> Tensors:
        """[final state ; late features ; read of the past] (B, T, C) -> logits (B, T, K) by task; in serving, of those that are scored."""
        raise NotImplementedError

    def plus_past(self, logits: Tensors, read: list[Any]) -> Tensors:
        """Logits with what the past adds to them."""
        return logits if self.past is None else self.past.plus(logits, read)

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def row_inputs(self) -> Tensors:
        names = ["time", "segment"] + ["delay"] * self.visibility.sampled_delay + ["request_slot"] * self.reads_list
        names += ["session"] * self.by_column
        names += ["member_slot"] * any(feature.known == "member" for feature in self.late_features)
        times = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
        return {**times, **self.members.row_inputs((*self.token_features, *self.schema.actions, *self.late_features), "")}

    def history_inputs(self) -> Tensors:
        return {
            "history_time": keras.Input((None,), dtype="int32", name="history_time"),
            "history_length": keras.Input((), dtype="int32", name="history_length"),
            **({"history_session": keras.Input((None,), dtype="int32", name="history_session")} if self.by_column else {}),
            **input_columns((*self.token_features, *self.schema.actions), "history_", None),
        }

    def candidate_inputs(self) -> Tensors:
        names = ["request_time"] + ["request_session"] * self.by_column + ["candidate_count"] * self.reads_list
        return {
            **{name: keras.Input((), dtype="int32", name=name) for name in names},
            **self.members.inputs((*self.token_features, *self.late_features)),
        }

    # -- the three graphs --------------------------------------------------------------------------------------------------

    @staticmethod
    def _of(features: Sequence[Any], columns: Mapping[str, Any]) -> Tensors:
        return {feature.name: columns[feature.name] for feature in features}

    def _trunk(self, inputs: Tensors, times: Any, segments: Any, caches: list[tuple[Any, Any]] | None) -> tuple[Any, Tensors, list[Any]]:
        """The blocks over a row of events: states, what later events read of these, and what these read of earlier ones.

        With `caches` the row is a history, and each block's keys and values are appended to it.
        """
        x, actions = self._tokens(inputs)
        sampled = caches is None and self.visibility.sampled_delay
        more = {"delays": inputs["delay"]} if sampled else {"sessions": inputs["session"]} if self.by_column else {}
        spans = self.spans(times, segments, **more)
        index = spans.end - spans.start if self.by_index else None
        spans = self._latest_of(spans)
        events: Tensors = {} if self.past is None else self.past.events(inputs, actions)
        read: list[Any] = []
        if self.past is not None and caches is None:
            read = self.past(inputs, events, start=spans.start, end=spans.end, times=times, key_times=times)
        queries = self.layout == "fused" and caches is None  # nothing is scored inside a history
        value_bias = actions if self.layout == "value" else None
        if self.layout == "interleaved":
            x = self.interleave(x, actions=actions)
        elif self.layout == "fused":
            fused = self.fuse(x, actions=actions)
            x = self.behind([fused, self.fuse(x)]) if queries else fused
        if self.layout == "interleaved" or queries:
            spans, times = self.token_spans(tuple(spans)), self.token_times(times)
            index = self.token_index(index) if self.by_index else None
        for block in self.blocks:
            # Every second interleaved token is read out: the last block computes these only.
            last = self.layout == "interleaved" and caches is None and block is self.blocks[-1]
            given = {"times": times, "index": index, "spans": tuple(spans), "value_bias": value_bias, "stride": 2 if last else 1}
            x, key, value = block(x, **given, return_cache=True)
            if caches is not None:
                caches.append((key, value))
        return self.read_out(x) if queries else x, events, read

    def _tokens(self, inputs: Tensors) -> tuple[Any, Any]:
        """Item and action of each event."""
        return self.item(self._of(self.token_features, inputs)), (
            None if self.action is None else self.action(self._of(self.schema.actions, inputs))
        )

    def _latest_of(self, spans: Spans) -> Spans:
        """The spans without what is older than the latest `max_history` visible events."""
        if self.latest is None:
            return spans
        return Spans(at_least(spans.start, spans.end - int32(self.visibility.max_history)), spans.end, spans.own)

    def _joined(self, parts: list[Any]) -> Any:
        return self.join(parts) if len(parts) > 1 else parts[0]

    def _logits(self, hidden: Any, columns: Tensors, read: list[Any], slot: Any, serving: bool) -> Tensors:
        parts = [self.final_norm(hidden)]
        if self.late is not None:
            parts.append(self.late(self._of(self.late_features, columns)))
        if self.lists.context is not None:
            parts.append(self.lists.context(self.list_numbers(self._of(self.list_numbers.features, columns)), slot=slot))
        states = self._joined(self.lists.pooled(self._joined([*parts, *read]), slot))
        return self.choices(self.heads(states, read, serving), slot)

    def row(self, inputs: Tensors) -> Tensors:
        inputs = self.members.at_slots(inputs, "member_slot", "")
        hidden, _, read = self._trunk(inputs, inputs["time"], inputs["segment"], None)
        return self._logits(hidden, inputs, read, inputs.get("request_slot"), serving=False)

    def encode(self, history: Tensors) -> Tensors:
        length = history["history_length"]
        clean = {name.removeprefix("history_"): self.keep(x, length=length) for name, x in history.items() if name != "history_length"}
        caches: list[tuple[Any, Any]] = []
        _, events, _ = self._trunk(clean, clean["time"], self.segments(clean["time"], length=length), caches)
        return {
            **events,
            "key": ops.stack([key for key, _ in caches], axis=1),
            "value": ops.stack([value for _, value in caches], axis=1),
            "time": clean["time"],
            **({"session": clean["session"]} if self.by_column else {}),
            "length": length,
        }

    def extend(self, cache: Tensors, history: Tensors) -> Tensors:
        """A cache with later events behind those that it has: every mask is causal, so that what is kept stays as it is."""
        count, held = history["history_length"], cache["length"]
        new = {name.removeprefix("history_"): self.keep(x, length=count) for name, x in history.items() if name != "history_length"}
        x, actions = self._tokens(new)
        longer = {} if self.past is None else self.past.events(new, actions)
        longer |= {name: new[name] for name in ("time", "session") if name in cache}
        longer = {name: self.append(cache[name], new=part, length=held) for name, part in longer.items()}
        sessions = {"sessions": longer["session"]} if self.by_column else {}
        spans = self.later_spans(longer["time"], new=new["time"], first=held, count=count, **sessions)
        index = spans.end - spans.start if self.by_index else None
        spans, times, keys = self._latest_of(spans), new["time"], held
        if self.layout == "interleaved":
            x, keys = self.interleave(x, actions=actions), held + held
            spans, times = self.token_spans(tuple(spans), first=held), self.token_times(times)
            index = self.token_index(index) if self.by_index else None
        elif self.layout == "fused":
            x = self.fuse(x, actions=actions)
        kept, known = self.held(cache["key"], values=cache["value"], spans=tuple(spans), length=keys), []
        for i, block in enumerate(self.blocks):
            given = {"times": times, "index": index, "value_bias": actions if self.layout == "value" else None}
            x, *made = block(x, **given, cache=tuple(kept.block(i)), return_cache=True)
            known.append(made)
        known = [ops.stack(of_blocks, axis=1) for of_blocks in zip(*known, strict=True)]
        key, value = self.append_keys(cache["key"], values=cache["value"], new=tuple(known), length=keys)
        return {**longer, "key": key, "value": value, "length": held + count}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        candidates = self.members.at_candidates(candidates)
        x, places, visible = self._candidates(cache, candidates)
        keys, values, visible = self._read(cache, visible)
        for i, block in enumerate(self.blocks):
            x = block(x, **places, cache=(keys[:, i], values[:, i], visible), see_self=self.layout != "value")
        columns = without_prefix(candidates, "candidate_")
        read = self._past(cache, candidates, columns)
        slot = self.one_list(x, count=candidates["candidate_count"]) if self.reads_list else None
        return self._logits(x, columns, read, slot, serving=True)

    def _past(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> list[Any]:
        """What candidates read of the cached events that they see."""
        if self.past is None:
            return []
        return self.past.of_cache(columns, cache, self._visible(cache, candidates), candidates["request_time"])

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
        return keys, values, at_most(visible, self.latest.size)

    def _visible(self, cache: Tensors, candidates: Tensors) -> Any:
        """How many cached events the candidates see, (B,)."""
        ids = {"history_session": cache["session"], "request_session": candidates["request_session"]} if self.by_column else {}
        return self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"], **ids)

    def _candidates(self, cache: Tensors, candidates: Tensors) -> tuple[Any, dict[str, Any], Any]:
        """Candidate tokens, their times and places, and how many cached keys they see."""
        x = self.item(self._of(self.token_features, without_prefix(candidates, "candidate_")))
        if self.layout == "fused":
            x = self.fuse(x)
        visible = self._visible(cache, candidates)
        keys = visible + visible if self.layout == "interleaved" else visible
        places = {"times": self.request_times(x, request_time=candidates["request_time"])}
        if self.by_index:
            # All candidates share one place, whatever their slot.
            places["index"] = self.request_times(x, request_time=visible if self.shared_index else keys)
        return x, places, keys


def _placed(weights: Any, visible: Any, slots: Any, size: int) -> Any:
    """Weights on the latest `size` visible keys, (B, H, N, W + 1), at the places of all that are cached, (B, H, N, slots + 1)."""
    window = weights.shape[-1] - 1
    place = ops.arange(slots, dtype="int32")[None, :] - at_least(visible - int32(size), 0)[:, None]
    read = ops.logical_and(place >= 0, place < window)[:, None, None, :]
    index = ops.clip(place, 0, window - 1)[:, None, None, :] + ops.zeros_like(weights[..., :1], dtype="int32")
    found = ops.where(read, ops.take_along_axis(weights[..., :-1], index, axis=-1), 0.0)
    return ops.concatenate([found, weights[..., -1:]], axis=-1)
