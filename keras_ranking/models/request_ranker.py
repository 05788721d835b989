"""The wiring of the models trained on requests, `LiRank`, `AmortizedDLRM` and `LiGR`: features, histories, the three graphs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.configuration import Choice, Features, Numbers, Past
from keras_ranking.models.graph import Graph
from keras_ranking.models.member_columns import MemberColumns
from keras_ranking.models.past_reader import RequestPast
from keras_ranking.models.served_values import served_value
from keras_ranking.models.task_logits import Choices, ListReader, TaskLogits
from keras_ranking.models.wiring import Tensors, distinct, input_columns, without_prefix
from keras_ranking.ops.rows import take_in_rows
from keras_ranking.ops.sequences import SLOTS_BY_LENGTH, STREAMS
from keras_ranking.schema import Schema


class RequestRanker:
    """Features of a candidate, its reading of the history, and `TaskLogits` on both.

        x      = [BN(numbers) ; vectors of numbers ; embeddings of ids ; HistoryEncoder(history, candidate) ; Past(history, candidate)]
        logits = TaskLogits(x)

    Args:
        schema: the log's columns.
        features, numbers: with columns written out.
        encoder: arguments of `HistoryEncoder`.
        delay: seconds after which an event is visible.
        effect_columns: id columns of random effects.
        past: with columns written out.
        choice: with tasks of the model.
        dtype: dtype policy.
    """

    form = "requests"
    encodes_at_moment = False  # whether `encode` takes a `request_time`, to read what is visible then
    logits: TaskLogits  # made by the subclass

    def __init__(
        self,
        schema: Schema,
        features: Features,
        numbers: Numbers,
        encoder: Mapping[str, Any],
        delay: int,
        effect_columns: Sequence[str],
        past: Past,
        choice: Choice,
        dtype: str,
    ) -> None:
        self.schema, self.dtype, self.members = schema, dtype, MemberColumns(schema)
        self.id_dim: Any = features.id_dim
        self.id_dropout = features.id_dropout
        policy: dict[str, Any] = {"dtype": dtype}
        tables = {column: table for table, columns in (features.shared_tables or {}).items() for column in columns}

        def shared(feature: Any) -> Any:
            return feature.model_copy(update={"table": tables[feature.name]}) if feature.name in tables else feature

        for column in tables:
            if schema.inputs([column])[0].dtype != "int32":
                raise ValueError(f"`shared_tables` must name id or category columns. Received: '{column}'")
        history = schema.inputs(features.history_features)
        candidate = list(schema.inputs(features.features))
        ids = [feature for feature in distinct([*candidate, *history]) if feature.dtype == "int32"]
        plain = numbers.plain([feature for feature in candidate if feature.dtype != "int32"])
        embedded = numbers.embedded(distinct([*candidate, *history]))
        if all(feature.known == "member" for feature in candidate):
            raise ValueError(f"`features` must name at least one column of the candidate. Received: {features.features or 'none'}")
        # One layer embeds an id, in the candidate and in past events.
        self.ids: Any = self._concat([shared(feature) for feature in ids], "ids") if ids else None
        self.candidate_ids = [feature.name for feature in candidate if feature.dtype == "int32"]
        # Those of the member, which are the same in the whole list, are the last of the numbers.
        plain.sort(key=lambda feature: feature.known == "member")
        self.of_list = sum(math.prod(feature.shape) for feature in plain if feature.known != "member")
        self.numbers: Any = self._concat(plain, "numbers") if plain else None
        self.vectors: Any = None
        if embedded:  # one layer for candidates and past events
            self.vectors = self._concat(embedded, "number_vectors", **numbers.concat_options(embedded, plain=False))
        self.candidate_vectors = [feature.name for feature in numbers.embedded(candidate)]
        self.norm: Any = None
        if plain and features.batch_norm:
            self.norm = layers.MaskedBatchNormalization(momentum=features.batch_norm_momentum, name="number_norm", **policy)
        self.choices = Choices(choice)
        options = {"list_context": features.list_context, "list_pooling": features.list_pooling, "choice": choice.choice}
        for option, chosen in options.items():
            if chosen and encoder.get("fusion") == "append_self":
                raise ValueError(f"`{option}` does not go with fusion='append_self', which reads each candidate as a request of its own.")
        if features.list_context and not self.of_list:
            kept = "; with `number_plain=True` a number with a vector is one" if embedded else ""
            raise ValueError(f"`list_context` needs at least one number among `features`{kept}. Received: none")
        self.lists = ListReader(features.list_context, features.list_pooling, encoder.get("dropout", 0.0), policy)
        self.reads_list = any(options.values())
        if self.reads_list:
            self.one_list = layers.OneSet(name="one_list")
        self.past = history
        self.history: Any = None
        self.reader: RequestPast | None = None
        if history:
            self.past_ids = [feature.name for feature in history if feature.dtype == "int32"]
            # Not batch-normalised, since its moments are of the candidates: the schema has standardised these numbers.
            past_numbers = numbers.plain([feature for feature in history if feature.dtype != "int32"])
            self.past_numbers: Any = self._concat(past_numbers, "history_numbers") if past_numbers else None
            self.past_vectors = [feature.name for feature in numbers.embedded(history)]
            of_action = {"id_dim": features.action_dim, **numbers.concat_options(schema.actions)}
            self.action = layers.ActionEmbedding(schema.actions, features.action_dim, name="actions", **policy, **of_action)
            self.history = layers.HistoryEncoder(**encoder, name="history", **policy)
            self.visible = layers.VisibleLength(delay, name="visible_length")
            if past.reads:
                self.reader = RequestPast(schema, past, self._vector, policy, self.history.max_history)
        self.candidate_columns = distinct([*candidate, *history, *schema.inputs(list(effect_columns))])
        self.join = keras.layers.Concatenate(name="join", **policy)
        self.keep = layers.KeepFirst(name="keep")
        self.flat, self.unflat = layers.FlattenRows(name="flat"), layers.UnflattenRows(name="unflat")
        self.owners = layers.SlotOwners(name="owners")

    def _concat(self, features: Sequence[Any], name: str, **options: Any) -> Any:
        return layers.FeatureConcat(features, id_dim=self.id_dim, name=name, dtype=self.dtype, id_dropout=self.id_dropout, **options)

    @property
    def posteriors(self) -> dict[str, Any]:
        """Layers with a posterior of their weights, by task."""
        return self.logits.posteriors

    @property
    def effects(self) -> dict[str, Any]:
        """Random effects by task."""
        return self.logits.effects

    @property
    def cannot_extend(self) -> str:
        """Why a cache cannot grow."""
        if self.history is None:
            return "it reads no history"
        if self.history.fusion == "convolution":
            return "fusion='convolution' keeps what its filters found, and not the events that a later one would be read with"
        if not self.history.amortises:
            return f"fusion={self.history.fusion!r} encodes the events again with each candidate"
        return (
            "what is kept of an event depends on later ones. Make it with history_mask='causal' or 'sessions', pool=False and latest=0. "
            f"Received: history_mask={self.history.history_mask!r}, pool={self.history.pool}, latest={self.history.latest}"
        )

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def row_inputs(self) -> Tensors:
        slots = {"request_slot": keras.Input((None,), dtype="int32", name="request_slot")}
        columns = {**slots, **self.members.row_inputs(self.candidate_columns, "candidate_")}
        if self.history is None:
            return columns
        times = {"history_time": (None, None), "history_length": (None,), "request_time": (None,)}
        times |= {"history_session": (None, None)} if self.history.session_ids else {}
        times |= dict.fromkeys(SLOTS_BY_LENGTH if self.history.fusion == "concat" else (), (None,))
        return {
            **columns,
            **{name: keras.Input(shape, dtype="int32", name=name) for name, shape in times.items()},
            **input_columns((*self.past, *self.schema.actions), "history_", None, None),
        }

    def stream_inputs(self) -> Tensors:
        """Symbolic inputs of the training graph in which requests share events; none for a model without it."""
        if self.history is None or not self.history.has_streams:
            return {}
        slots = {"request_slot": keras.Input((None,), dtype="int32", name="request_slot")}
        kind = next(name for name, prefixes in STREAMS.items() if prefixes != self.history.looks_ahead)
        whole = ("stream_time", kind, "stream_begin", "stream_end", "request_time", *["stream_session"] * self.history.session_ids)
        return {
            **slots,
            **self.members.row_inputs(self.candidate_columns, "candidate_"),
            **{name: keras.Input((None,), dtype="int32", name=name) for name in whole},
            **input_columns((*self.past, *self.schema.actions), "stream_", None),
        }

    def history_inputs(self) -> Tensors:
        if self.history is None:
            return {}
        return {
            "history_time": keras.Input((None,), dtype="int32", name="history_time"),
            "history_length": keras.Input((), dtype="int32", name="history_length"),
            **({"history_session": keras.Input((None,), dtype="int32", name="history_session")} if self.history.session_ids else {}),
            **input_columns((*self.past, *self.schema.actions), "history_", None),
        }

    def candidate_inputs(self) -> Tensors:
        moment = {} if self.history is None else {"request_time": keras.Input((), dtype="int32", name="request_time")}
        count = {} if not self.reads_list else {"candidate_count": keras.Input((), dtype="int32", name="candidate_count")}
        return {**moment, **count, **self.members.inputs(self.candidate_columns)}

    # -- parts of a candidate ----------------------------------------------------------------------------------------------

    def _joined(self, parts: list[Any]) -> Any:
        return self.join(parts) if len(parts) > 1 else parts[0]

    @staticmethod
    def _of(concat: Any, columns: Tensors, names: Sequence[str]) -> Any:
        return concat({name: columns[name] for name in names}, only=names)

    def _item(self, columns: Tensors) -> list[Any]:
        """What the history encoder reads of an item, in a past event and in a candidate alike."""
        parts = []
        if self.past_ids:
            parts.append(self._of(self.ids, columns, self.past_ids))
        if self.past_numbers is not None:
            parts.append(self.past_numbers({feature.name: columns[feature.name] for feature in self.past_numbers.features}))
        if self.past_vectors:
            parts.append(self._of(self.vectors, columns, self.past_vectors))
        return parts

    def _vector(self, columns: Tensors, keys: Sequence[str]) -> Any:
        """An item's vector of some columns of past events, by their tables and as the history encoder reads them."""
        plain = [] if self.past_numbers is None else [feature.name for feature in self.past_numbers.features]
        held = ((self.ids, self.past_ids), (self.past_numbers, plain), (self.vectors, self.past_vectors))
        chosen = [(layer, [name for name in names if name in keys]) for layer, names in held]
        return self._joined([self._of(layer, columns, names) for layer, names in chosen if names])

    def _features(self, columns: Tensors, real: Any = None) -> list[Any]:
        """Numbers and embeddings of ids of the candidates; `real` (B, N) marks those whose numbers count in batch normalisation."""
        parts = []
        if self.numbers is not None:
            numbers = self.numbers({feature.name: columns[feature.name] for feature in self.numbers.features})
            numbers = numbers if self.norm is None else self.norm(numbers, real=real)
            if self.lists.context is not None:
                of_list = self.lists.context(numbers[..., : self.of_list], slot=self._slot(numbers, columns, real))
                alike = numbers[..., self.of_list :]
                numbers = of_list if not alike.shape[-1] else self._joined([of_list, alike])
            parts.append(numbers)
        if self.candidate_vectors:
            parts.append(self._of(self.vectors, columns, self.candidate_vectors))
        if self.candidate_ids:
            parts.append(self._of(self.ids, columns, self.candidate_ids))
        return parts

    def _slot(self, x: Any, columns: Tensors, real: Any) -> Any:
        """The request of each slot: in a row `real`; served, a row is one request."""
        return self.one_list(x, count=columns["count"]) if real is None else real

    def _candidate_token(self, columns: Tensors, real: Any = None) -> Any:
        """What the history encoder reads of a candidate."""
        return self._joined(self._item(columns))

    def _clean(self, history: Tensors) -> Tensors:
        """Columns of the events, zero beyond the length."""
        length = history["history_length"]
        return {name.removeprefix("history_"): self.keep(x, length=length) for name, x in history.items() if name != "history_length"}

    def _events(self, columns: Tensors) -> tuple[Any, Tensors]:
        """Item and action of each event, (B, L, ...), and what the reader of the past reads of it."""
        action = self.action({action.name: columns[action.name] for action in self.schema.actions})
        token = self._joined([*self._item(columns), action])
        return token, {} if self.reader is None else self.reader.events(columns, action)

    # -- training ----------------------------------------------------------------------------------------------------------

    def row(self, inputs: Tensors) -> Tensors:
        return {task: ops.expand_dims(value, -1) for task, value in self._row(inputs)[0].items()}

    def last_inputs(self, inputs: Tensors) -> Tensors:
        """What the last linear map of each task reads in the training graph, (B, S, H)."""
        return self._row(inputs)[1]

    def _row(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        """Candidates of many requests in a row."""
        inputs = self._at_slots(inputs)
        slot = inputs["request_slot"]
        columns = {name: x for name, x in inputs.items() if name.startswith("candidate_")}
        if self.history is None:
            return self._scored({}, columns, slot)
        if self.history.fusion != "append_self":
            return self._scored({}, columns, slot, read=self._read_packed(inputs))
        return self._one_by_one(inputs, columns, slot)

    def _at_slots(self, inputs: Tensors) -> Tensors:
        return self.members.at_slots(inputs, "request_slot", "candidate_")

    def _one_by_one(self, inputs: Tensors, columns: Tensors, slot: Any) -> tuple[Tensors, Tensors]:
        """Every slot as a request of one candidate, with the history of the request it belongs to."""
        history = {name: self.flat(x) for name, x in inputs.items() if name.startswith("history_")}
        rows, owner = ops.shape(slot)[0], self.owners(slot, requests=inputs["history_length"])
        cache = {name: take_in_rows(x, owner, rows) for name, x in self.encode(history).items()}
        single = {name: ops.expand_dims(self.flat(x), 1) for name, x in columns.items()}
        single["request_time"] = take_in_rows(self.flat(inputs["request_time"]), owner, rows)
        logits, hidden = self._scored(cache, single, ops.expand_dims(self.flat(slot), 1))
        pick = {task: ops.squeeze(value, 1) for task, value in logits.items()}
        states = {task: ops.squeeze(value, 1) for task, value in hidden.items()}
        rows = [{task: self.unflat(value, like=slot) for task, value in named.items()} for named in (pick, states)]
        return rows[0], rows[1]

    def _read_packed(self, inputs: Tensors) -> tuple[Any, list[Any]]:
        """What the history encoder makes of each candidate of rows of slots, (B, S, ...), and what the candidate reads of the past."""
        if "stream_time" in inputs:
            return self._read_streams(inputs)
        history = {name: self.flat(x) for name, x in inputs.items() if name.startswith("history_")}
        moment = self.flat(inputs["request_time"])
        visible = self.visible(history["history_time"], history_length=history["history_length"], request_time=moment)
        columns = without_prefix(inputs, "candidate_")
        token, events = self._events(self._clean(history))
        read = {
            "history": token,
            "candidates": self._candidate_token(columns, inputs["request_slot"]),
            "visible": visible,
            "times": history["history_time"],
            **({"sessions": history["history_session"]} if self.history.session_ids else {}),
            "request_time": moment,
            "slot": inputs["request_slot"],
            **{name: inputs[name] for name in SLOTS_BY_LENGTH if name in inputs},
        }
        past = [] if self.reader is None else self.reader.of_rows(columns, events, visible, history["history_time"], inputs)
        return self.history(read, step="packed"), past

    def _read_streams(self, inputs: Tensors) -> tuple[Any, list[Any]]:
        stream, columns = without_prefix(inputs, "stream_"), without_prefix(inputs, "candidate_")
        token, events = self._events(stream)
        read = {
            "history": token,
            "candidates": self._candidate_token(columns, inputs["request_slot"]),
            "stream": next(inputs[name] for name in STREAMS if name in inputs),
            "times": stream["time"],
            **({"sessions": stream["session"]} if self.history.session_ids else {}),
            "request_time": inputs["request_time"],
            "slot": inputs["request_slot"],
        }
        past = [] if self.reader is None else self.reader.of_streams(columns, events, inputs)
        return self.history({**read, "begin": stream["begin"], "end": stream["end"]}, step="streams"), past

    # -- serving -----------------------------------------------------------------------------------------------------------

    def encode(self, history: Tensors) -> Tensors:
        if self.history is None:
            return {}
        clean = self._clean(history)
        token, past = self._events(clean)
        return {"events": token, "time": clean["time"], "length": history["history_length"], **past}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        candidates = self.members.at_candidates(candidates)
        return {task: ops.expand_dims(value, -1) for task, value in self._scored(cache, candidates)[0].items()}

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        raise ValueError("LiRank has no attention of candidates over cached events: its encoder reads each candidate with the events.")

    def _read(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> tuple[Any, list[Any]]:
        """What the history encoder makes of each candidate, (B, N, ...), and what the candidate reads of the past."""
        visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
        read = {"history": cache["events"], "candidates": self._candidate_token(columns), "visible": visible, "times": cache["time"]}
        past = [] if self.reader is None else self.reader.of_cache(columns, cache, visible, candidates["request_time"])
        return self.history({**read, "request_time": candidates["request_time"]}), past

    def _scored(
        self, cache: Tensors, candidates: Tensors, real: Any = None, seed: Any = None, read: tuple[Any, list[Any]] | None = None
    ) -> tuple[Tensors, Tensors]:
        """Logits (B, N) by task, and what the last linear map of each reads, (B, N, H).

        `read` is what `_read_packed` made of each candidate, where that is known already. `real` (B, N) marks
        the slots whose numbers count in batch normalisation; None: all, as at scoring, where none does.
        """
        columns = {name.removeprefix("candidate_"): x for name, x in candidates.items()}
        parts = self._features(columns, real)
        past: list[Any] = []
        if self.history is not None:
            state, past = self._read(cache, candidates, columns) if read is None else read
            parts += [state, *past]
        x = self._joined(parts)
        slot = self._slot(x, columns, real) if self.reads_list else None
        x = self._joined(self.lists.pooled(x, slot))
        plus = None if self.reader is None else functools.partial(self.reader.plus, read=past)
        logits, hidden = self.logits(x, columns, seed, plus=plus)
        return self.choices(logits, slot), hidden

    def explore(self, name: str) -> keras.Model:
        """Serving tensors and `seed` -> probabilities of the `explore` tasks under weights drawn from their posterior."""
        history = self.history_inputs()
        candidates = {**self.candidate_inputs(), **{key: x for key, x in history.items() if not key.startswith("history_")}}
        count = keras.Input((), dtype="int32", name="candidate_count")
        seed = keras.Input((), dtype="int32", name="seed")
        whole = {key: x for key, x in candidates.items() if not key.startswith("candidate_") or key == "candidate_count"}
        count = whole.get("candidate_count", count)
        clean = {**{key: self.keep(x, length=count) for key, x in candidates.items() if key not in whole}, **whole}
        clean = self.members.at_candidates(clean)
        read = {**history, "request_time": clean["request_time"]} if self.encodes_at_moment else history
        logits = self._scored(self.encode(read), clean, seed=seed)[0]
        outputs = {task: self.keep(served_value(self.schema.task(task), logit), length=count) for task, logit in logits.items()}
        return Graph({**history, **candidates, "candidate_count": count, "seed": seed}, outputs, name=name)
