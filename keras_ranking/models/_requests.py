"""The layers of a ranker that is trained on requests, which `LiRank` and `AmortizedDLRM` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.ranking_model import Tensors
from keras_ranking.schema import Schema


class LiRankParts:
    """The layers of one LiRank and how candidates and histories flow through them."""

    form = "requests"

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        self.schema = schema
        self.arguments = a = arguments
        policy: dict[str, Any] = {"dtype": a["dtype"]}
        tables = {column: table for table, columns in a["shared_tables"].items() for column in columns}

        def shared(feature: Any) -> Any:
            return feature.model_copy(update={"table": tables[feature.name]}) if feature.name in tables else feature

        for column in tables:
            if schema.inputs([column])[0].dtype != "int32":
                raise ValueError(f"`shared_tables` must name id or category columns. Received: '{column}'")
        past = schema.inputs(a["history_features"])
        features = list(schema.inputs(a["features"]))
        ids = [feature for feature in _distinct([*features, *past]) if feature.dtype == "int32"]
        numbers = [feature for feature in features if feature.dtype != "int32"]
        if not features:
            raise ValueError("`features` must name at least one column of the candidate. Received: none")
        # One layer embeds an id wherever it stands, in the candidate and in past events.
        self.ids: Any = self._concat([shared(feature) for feature in ids], "ids") if ids else None
        self.candidate_ids = [feature.name for feature in features if feature.dtype == "int32"]
        self.numbers: Any = self._concat(numbers, "numbers") if numbers else None
        self.norm: Any = None
        if numbers and a["batch_norm"]:
            self.norm = layers.MaskedBatchNormalization(momentum=a["batch_norm_momentum"], name="number_norm", **policy)
        self.past = past
        self.history: Any = None
        if past:
            self.past_ids = [feature.name for feature in past if feature.dtype == "int32"]
            # Beside the batch normalisation, whose moments are of the candidates: the schema has standardised these numbers.
            past_numbers = [feature for feature in past if feature.dtype != "int32"]
            self.past_numbers = self._concat(past_numbers, "history_numbers") if past_numbers else None
            self.action = layers.ActionEmbedding(schema.actions, a["action_dim"], id_dim=a["action_dim"], name="actions", **policy)
            options = {"fusion": "concat", "max_history": a["max_history"], "dropout": a["dropout"], **a["history_options"]}
            self.history = layers.HistoryEncoder(**options, name="history", **policy)
            self.visible = layers.VisibleLength(a["delay"], name="visible_length")
        self.candidate_columns = _distinct([*features, *past, *schema.inputs(list(a["random_effects"].values()))])
        self.join = keras.layers.Concatenate(name="join", **policy)
        groups = {"trunk": a["tasks"]} if a["shared_trunk"] else a["groups"]
        self.trunks = {name: self._trunk(f"trunk_{name}") for name in groups}
        self.head: Any = None
        if a["head"] is not None:
            options = {"dropout": a["dropout"], **({"groups": a["groups"]} if a["head"] == "grouped" else {}), **a["head_options"]}
            self.head = layers.MultiTaskHead(a["head"], a["tasks"], name="head", **policy, **options)
        plain = [] if self.head else [task for task in a["tasks"] if task not in a["explore"]]
        self.logits = {task: keras.layers.Dense(1, dtype="float32", name=f"logit_{task}") for task in plain}
        # The last layer of an explored task keeps a posterior of its own weights.
        self.posteriors = {task: layers.BayesianLinear(name=f"posterior_{task}") for task in a["explore"]}
        rows = {task: schema.inputs([column])[0].rows for task, column in a["random_effects"].items()}
        self.effects = {task: layers.RandomEffect(count, trainable=False, name=f"effect_{task}") for task, count in rows.items()}
        self.calibrate: dict[str, Any] = {}
        self.calibration_features: Any = None
        if a["calibration"]:
            self.calibrate = {task: layers.IsotonicCalibration(name=f"isotonic_{task}", **a["calibration_options"]) for task in a["tasks"]}
            if a["calibration_features"]:
                read = schema.inputs(a["calibration_features"])
                self.calibration_features = layers.FeatureConcat(read, id_dim=8, name="calibration_features", **policy)
                self.candidate_columns = _distinct([*self.candidate_columns, *read])
        self.keep = layers.KeepFirst(name="keep")
        self.flat, self.unflat = layers.FlattenRows(name="flat"), layers.UnflattenRows(name="unflat")
        self.owners = layers.SlotOwners(name="owners")

    def _trunk(self, name: str) -> Any:
        a = self.arguments
        mlp = {"gate": a["gate"], "gate_rank": a["gate_rank"], "dropout": a["dropout"], "dtype": a["dtype"], "name": name}
        if a["cross"] == "none":
            return layers.GatedMLP(a["hidden"], **mlp)
        return layers.ParallelDCN(
            a["rank"], a["cross_layers"], hidden=a["hidden"], cross=a["cross"], cross_options=a["cross_options"], **mlp
        )

    def _concat(self, features: Sequence[Any], name: str) -> Any:
        return layers.FeatureConcat(features, id_dim=self.arguments["id_dim"], name=name, dtype=self.arguments["dtype"])

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def _columns(self, features: Sequence[Any], prefix: str, *lead: int | None) -> Tensors:
        return {
            prefix + feature.name: keras.Input((*lead, *feature.shape), dtype=feature.dtype, name=prefix + feature.name)
            for feature in features
        }

    def row_inputs(self) -> Tensors:
        slots = {"request_slot": keras.Input((None,), dtype="int32", name="request_slot")}
        columns = {**slots, **self._columns(self.candidate_columns, "candidate_", None)}
        if self.history is None:
            return columns
        times = {"history_time": (None, None), "history_length": (None,), "request_time": (None,)}
        return {
            **columns,
            **{name: keras.Input(shape, dtype="int32", name=name) for name, shape in times.items()},
            **self._columns((*self.past, *self.schema.actions), "history_", None, None),
        }

    def history_inputs(self) -> Tensors:
        if self.history is None:
            return {}
        return {
            "history_time": keras.Input((None,), dtype="int32", name="history_time"),
            "history_length": keras.Input((), dtype="int32", name="history_length"),
            **self._columns((*self.past, *self.schema.actions), "history_", None),
        }

    def candidate_inputs(self) -> Tensors:
        moment = {} if self.history is None else {"request_time": keras.Input((), dtype="int32", name="request_time")}
        return {**moment, **self._columns(self.candidate_columns, "candidate_", None)}

    # -- the three ways --------------------------------------------------------------------------------------------------

    def row(self, inputs: Tensors) -> Tensors:
        return {task: ops.expand_dims(value, -1) for task, value in self._row(inputs)[0].items()}

    def last_inputs(self, inputs: Tensors) -> Tensors:
        """What the last linear map of each task reads in the training graph, (B, S, H)."""
        return self._row(inputs)[1]

    def _row(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        """Candidates of many requests in a row."""
        slot = inputs["request_slot"]
        columns = {name: x for name, x in inputs.items() if name.startswith("candidate_")}
        if self.history is None:
            return self._scored({}, columns, slot)
        if self.history.amortises:
            return self._scored({}, columns, slot, read=self._read_packed(inputs))
        return self._one_by_one(inputs, columns, slot)

    def _one_by_one(self, inputs: Tensors, columns: Tensors, slot: Any) -> tuple[Tensors, Tensors]:
        """Every slot as a request of one candidate, with the history of the request it belongs to."""
        history = {name: self.flat(x) for name, x in inputs.items() if name.startswith("history_")}
        owner = self.owners(slot, requests=inputs["history_length"])
        cache = {name: ops.take(x, owner, axis=0) for name, x in self.encode(history).items()}
        single = {name: ops.expand_dims(self.flat(x), 1) for name, x in columns.items()}
        single["request_time"] = ops.take(self.flat(inputs["request_time"]), owner, axis=0)
        logits, hidden = self._scored(cache, single, ops.expand_dims(self.flat(slot), 1))
        pick = {task: ops.squeeze(value, 1) for task, value in logits.items()}
        states = {task: ops.squeeze(value, 1) for task, value in hidden.items()}
        rows = [{task: self.unflat(value, like=slot) for task, value in named.items()} for named in (pick, states)]
        return rows[0], rows[1]

    encodes_at_moment = False  # whether `encode` takes a `request_time`, to read what is visible then

    def encode(self, history: Tensors) -> Tensors:
        if self.history is None:
            return {}
        length = history["history_length"]
        return {"events": self._events(history), "time": self.keep(history["history_time"], length=length), "length": length}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        logits = self._logits(cache, candidates)
        return {task: ops.expand_dims(value, -1) for task, value in logits.items()}

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        raise ValueError("LiRank has no attention of candidates over cached events: its encoder reads each candidate with the events.")

    def _read(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> Any:
        """What the history encoder makes of each candidate, (B, N, ...)."""
        visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
        read = {"history": cache["events"], "candidates": self._candidate_token(columns), "visible": visible, "times": cache["time"]}
        return self.history({**read, "request_time": candidates["request_time"]})

    def _read_packed(self, inputs: Tensors) -> Any:
        """The same for rows of slots, (B, S, ...)."""
        history = {name: self.flat(x) for name, x in inputs.items() if name.startswith("history_")}
        moment = self.flat(inputs["request_time"])
        columns = {name.removeprefix("candidate_"): x for name, x in inputs.items() if name.startswith("candidate_")}
        visible = self.visible(history["history_time"], history_length=history["history_length"], request_time=moment)
        read = {
            "history": self._events(history),
            "candidates": self._candidate_token(columns, inputs["request_slot"]),
            "visible": visible,
            "times": history["history_time"],
            "request_time": moment,
            "slot": inputs["request_slot"],
        }
        return self.history(read, step="packed")

    def _events(self, history: Tensors) -> Any:
        """Item and action of each event, (B, L, ...)."""
        length = history["history_length"]
        clean = {name.removeprefix("history_"): self.keep(x, length=length) for name, x in history.items() if name != "history_length"}
        action = self.action({action.name: clean[action.name] for action in self.schema.actions})
        return self._joined([*self._item(clean), action])

    def _joined(self, parts: list[Any]) -> Any:
        return self.join(parts) if len(parts) > 1 else parts[0]

    def _item(self, columns: Tensors) -> list[Any]:
        """What the history encoder reads of an item, in a past event and in a candidate alike."""
        parts = []
        if self.past_ids:
            parts.append(self.ids({name: columns[name] for name in self.past_ids}, only=self.past_ids))
        if self.past_numbers is not None:
            parts.append(self.past_numbers({feature.name: columns[feature.name] for feature in self.past_numbers.features}))
        return parts

    def _features(self, columns: Tensors, real: Any = None) -> list[Any]:
        """Numbers and embeddings of ids of the candidates."""
        parts = []
        if self.numbers is not None:
            numbers = self.numbers({feature.name: columns[feature.name] for feature in self.numbers.features})
            parts.append(numbers if self.norm is None else self.norm(numbers, real=real))
        if self.candidate_ids:
            parts.append(self.ids({name: columns[name] for name in self.candidate_ids}, only=self.candidate_ids))
        return parts

    def _candidate_token(self, columns: Tensors, real: Any = None) -> Any:
        """What the history encoder reads of a candidate."""
        return self._joined(self._item(columns))

    def _logits(self, cache: Tensors, candidates: Tensors, real: Any = None, seed: Any = None) -> Tensors:
        return self._scored(cache, candidates, real, seed)[0]

    def _scored(self, cache: Tensors, candidates: Tensors, real: Any = None, seed: Any = None, read: Any = None) -> tuple[Tensors, Tensors]:
        """Logits (B, N) by task, and what the last linear map of each reads, (B, N, H).

        `read` (B, N, ...) is what the history encoder made of each candidate, where that is known already. `real` (B, N) marks
        the slots whose numbers count in batch normalisation; None: all, as at scoring, where none does.
        With `seed` (B,), the last weights of explored tasks are drawn from their posterior.
        """
        columns = {name.removeprefix("candidate_"): x for name, x in candidates.items()}
        parts = self._features(columns, real)
        if self.history is not None:
            parts.append(self._read(cache, candidates, columns) if read is None else read)
        x = self._joined(parts)
        trunks = {name: trunk(x) for name, trunk in self.trunks.items()}
        if self.head is not None:
            logits, hidden = self.head(trunks["trunk"], return_hidden=True)
        else:
            owner = {
                task: "trunk" if self.arguments["shared_trunk"] else name
                for name, held in self.arguments["groups"].items()
                for task in held
            }
            hidden = {task: trunks[owner[task]] for task in self.arguments["tasks"]}
            logits = {task: ops.squeeze(self.logits[task](hidden[task]), -1) for task in self.logits}
        for task, posterior in self.posteriors.items():
            logits[task] = posterior(hidden[task]) if seed is None else posterior(hidden[task], seed=seed)
        return {task: self._finished(task, logits[task], columns) for task in self.arguments["tasks"]}, hidden

    def _finished(self, task: str, logit: Any, columns: Tensors) -> Any:
        """Calibration and the random effect on top of a logit (B, N)."""
        if task in self.calibrate and self.calibration_features is None:
            logit = self.calibrate[task](logit)
        elif task in self.calibrate:
            read = {feature.name: columns[feature.name] for feature in self.calibration_features.features}
            logit = self.calibrate[task](logit, features=self.calibration_features(read))
        if task in self.effects:
            logit = self.effects[task](logit, ids=columns[self.arguments["random_effects"][task]])
        return logit

    def explore(self, name: str) -> keras.Model:
        """Serving tensors and `seed` -> probabilities of the `explore` tasks under weights drawn from their posterior."""
        history = self.history_inputs()
        candidates = {**self.candidate_inputs(), **{key: x for key, x in history.items() if not key.startswith("history_")}}
        count = keras.Input((), dtype="int32", name="candidate_count")
        seed = keras.Input((), dtype="int32", name="seed")
        clean = {key: x if key == "request_time" else self.keep(x, length=count) for key, x in candidates.items()}
        read = {**history, "request_time": clean["request_time"]} if self.encodes_at_moment else history
        logits = self._logits(self.encode(read), clean, seed=seed)
        outputs = {task: self.keep(ops.sigmoid(logit), length=count) for task, logit in logits.items()}
        return keras.Model({**history, **candidates, "candidate_count": count, "seed": seed}, outputs, name=name)


def _distinct(features: Sequence[Any]) -> list[Any]:
    return list({feature.name: feature for feature in features}.values())
