"""LiRank: large point-wise ranking models for feed, ads and jobs (LinkedIn, KDD 2024, 2402.06859)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.layers.dcn import CROSSES
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema

# What the three rankers of the paper have, where it says so; sizes that it does not give are arguments of `LiRank`.
_PRESETS: dict[str, dict[str, Any]] = {
    "feed": {"cross": "residual", "gate": "dense", "head": "grouped", "shared_trunk": True, "calibration": True, "history": True},
    "ads": {"cross": "low_rank", "gate": None, "head": None, "shared_trunk": False, "calibration": True, "history": True},
    "jobs": {"cross": "low_rank", "gate": None, "head": None, "shared_trunk": False, "calibration": False, "history": False},
}
_PASSIVE = frozenset({"click", "long_dwell", "skip"})


@builder
def LiRank(
    schema: Schema,
    preset: str = "feed",
    features: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    cross: str | None = None,
    rank: int | None = 32,
    cross_layers: int = 2,
    cross_options: Mapping[str, Any] | None = None,
    hidden: Sequence[int] = (100, 100, 100, 100),
    gate: str | None = "preset",
    gate_rank: int | str | None = "auto",
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
    shared_trunk: bool | None = None,
    calibration: bool | None = None,
    calibration_features: Sequence[str] = (),
    calibration_options: Mapping[str, Any] | None = None,
    history_features: Sequence[str] | None = None,
    max_history: int = 50,
    action_dim: int = 16,
    history_options: Mapping[str, Any] | None = None,
    delay: int | None = None,
    shared_tables: Mapping[str, Sequence[str]] | None = None,
    random_effects: Mapping[str, str] | None = None,
    explore: Sequence[str] = (),
    id_dim: int = 30,
    batch_norm: bool = True,
    batch_norm_momentum: float = 0.95,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "lirank",
) -> RankingModel:
    """A point-wise ranker: embeddings and normalised numbers into cross nets beside a gated MLP, task heads, calibration.

        x      = [BN(numbers) ; embeddings of ids ; HistoryEncoder(history, candidate)]
        h      = [cross net(x) ; gated MLP(x)]                                     one for all tasks, or one a group of tasks
        s_k    = isotonic_k( head_k(h) ) + random effect_k[id]                     logit of task k

    | preset | trunk | heads | calibration | history |
    |---|---|---|---|---|
    | `feed` | Residual DCN beside a gated MLP, shared | a click tower and a contribution tower (`GroupedTasks`) | isotonic | yes |
    | `ads`  | low-rank DCNv2 and an MLP for each group of tasks | linear | isotonic | yes |
    | `jobs` | two-layer low-rank DCNv2 and an MLP for each task | linear | none | no |

    Marks: the parts of each preset are *stated*; that cross net and MLP stand side by side, and the place of calibration after
    the logit, are our reading (figure 8 of the paper is not available). Defaults without a mark are ours.

    It is trained on requests (`PackedRequests`), histories and their shown lists, and scores every candidate alone.

    Args:
        schema: the log's columns. Inputs are named by it.
        preset: 'feed', 'ads' or 'jobs'; the arguments that are None (or 'preset') take its value.
        features: columns of the candidate; None: all with known='item' or 'context'.
        tasks: names of the tasks to predict; None: all.
        groups: group name -> its tasks. None: 'feed': click, long_dwell and skip in the click tower, all others in the contribution
            tower; 'ads' and 'jobs': each task by itself (ads: three groups of like chargeability are stated).
        cross: 'residual', 'low_rank' or 'attention', or 'none': the MLP alone; rank (None: full matrices), cross_layers (2: stated),
            cross_options: of it.
        hidden: widths of the MLP (4 x 100 before the large one, 4 x 3500 the largest: stated). gate ('dense' or None), gate_rank:
            of its dense gates.
        head: 'shared_bottom', 'grouped', 'mmoe', 'ple' or 'sparse_mmoe' on a shared trunk; head_options: of it.
        shared_trunk: one trunk for all tasks, or one a group with a linear logit a task.
        calibration: an `IsotonicCalibration` on each task's logit. calibration_features: columns it reads (device, channel, ids:
            stated); calibration_options: its arguments.
        history_features: columns of past events that are read, next to all actions of the schema; None: those known='item' where the
            preset has a history and the schema has actions; (): no history.
        max_history: events read (the paper's gains: 25, 50, 100). action_dim: width of what was done with an event. history_options:
            arguments of `HistoryEncoder`.
        delay: seconds after which an event is visible; None: the schema's `feedback_delay`, and no less.
        shared_tables: table name -> the id and category columns that share it (jobs: five tables, stated).
        random_effects: task -> id column whose popularity is added to its logit, 0 until
            `keras_ranking.training.fit_random_effects`.
        explore: tasks with a posterior of the last layer, for the `explore` signature; see
            `keras_ranking.training.fit_exploration`.
        id_dim: width of id embeddings (30 in feed: stated).
        batch_norm: batch normalisation of numbers, frozen at scoring (stated). batch_norm_momentum: of its running moments.
        dropout: rate in the MLP and the heads.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.

    Returns:
        A `RankingModel` of form 'requests'.

    Raises:
        ValueError: an unknown preset, task or column, an after-scoring column as an input, groups that do not hold each task once,
            a `delay` below the schema's.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), hidden=(16,), rank=4, max_history=8)
        >>> model.form
        'requests'
    """
    arguments = resolve(**locals())
    return RankingModel(_LiRankParts(schema, arguments), "LiRank", schema, arguments, name=name)


def resolve(schema: Schema, **given: Any) -> dict[str, Any]:
    """Arguments of `LiRank`, checked, with every default of preset and schema in its place.

    Raises:
        TypeError: an argument that `LiRank` does not have.
        ValueError: as `LiRank`.
    """
    bound = inspect.signature(LiRank).bind(schema, **given)
    bound.apply_defaults()
    g = SimpleNamespace(**bound.arguments)
    if g.preset not in _PRESETS:
        raise ValueError(f"`preset` must be of {tuple(_PRESETS)}. Received: preset={g.preset!r}")
    chosen = _PRESETS[g.preset]
    names = [schema.task(task).name for task in (g.tasks if g.tasks is not None else [task.name for task in schema.tasks])]
    shared_trunk = chosen["shared_trunk"] if g.shared_trunk is None else bool(g.shared_trunk)
    cross = chosen["cross"] if g.cross is None else g.cross
    if cross not in (*CROSSES, "none"):
        raise ValueError(f"`cross` must be of {(*CROSSES, 'none')}. Received: cross={cross!r}")
    head = (chosen["head"] or "grouped" if shared_trunk else None) if g.head is None else g.head
    if head is not None and not shared_trunk:
        raise ValueError(f"`head` needs shared_trunk=True: with a trunk a group, logits are linear. Received: head={head!r}")
    if g.delay is not None and g.delay < schema.feedback_delay:
        raise ValueError(f"`delay` must be at least the schema's feedback_delay, {schema.feedback_delay}. Received: delay={g.delay}")
    history_features = g.history_features
    if history_features is None:
        read = schema.features_known("item") if chosen["history"] and schema.actions else ()
        history_features = [feature.name for feature in read]
    elif history_features and not schema.actions:
        raise ValueError("`history_features` need at least one action in the schema. Received: actions=()")
    for feature in schema.inputs(history_features):
        if feature.known != "item":
            raise ValueError(f"`history_features` must be known='item'. Received: '{feature.name}', known='{feature.known}'")
    effects = dict(g.random_effects or {})
    for task, column in effects.items():
        feature = schema.inputs([column])[0]
        if task not in names or feature.dtype != "int32" or feature.rows is None:
            raise ValueError(f"`random_effects` must map tasks of {names} to id columns with buckets. Received: {task!r}: {column!r}")
    if unknown := [task for task in g.explore if task not in names]:
        raise ValueError(f"`explore` must be tasks of {names}. Received: {unknown}")
    return {
        "preset": g.preset,
        "features": [feature.name for feature in schema.inputs(g.features)],
        "tasks": names,
        "groups": _groups(names, g.preset, g.groups),
        "cross": cross,
        "rank": g.rank,
        "cross_layers": g.cross_layers,
        "cross_options": dict(g.cross_options or {}),
        "hidden": list(g.hidden),
        "gate": chosen["gate"] if g.gate == "preset" else g.gate,
        "gate_rank": g.gate_rank,
        "head": head,
        "head_options": dict(g.head_options or {}),
        "shared_trunk": shared_trunk,
        "calibration": chosen["calibration"] if g.calibration is None else bool(g.calibration),
        "calibration_features": [feature.name for feature in schema.inputs(g.calibration_features)],
        "calibration_options": dict(g.calibration_options or {}),
        "history_features": list(history_features),
        "max_history": int(g.max_history),
        "action_dim": int(g.action_dim),
        "history_options": dict(g.history_options or {}),
        "delay": schema.feedback_delay if g.delay is None else int(g.delay),
        "shared_tables": {table: list(columns) for table, columns in (g.shared_tables or {}).items()},
        "random_effects": effects,
        "explore": list(g.explore),
        "id_dim": int(g.id_dim),
        "batch_norm": bool(g.batch_norm),
        "batch_norm_momentum": float(g.batch_norm_momentum),
        "dropout": float(g.dropout),
        "dtype": g.dtype or keras.config.dtype_policy().name,
    }


def _groups(tasks: Sequence[str], preset: str, groups: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    if groups is None:
        if preset != "feed":
            return {task: [task] for task in tasks}
        passive = [task for task in tasks if task in _PASSIVE]
        named = {"click": passive, "contribution": [task for task in tasks if task not in _PASSIVE]}
        return {name: members for name, members in named.items() if members}
    chosen = {name: list(members) for name, members in groups.items()}
    held = [task for members in chosen.values() for task in members]
    if sorted(held) != sorted(tasks) or not all(chosen.values()):
        raise ValueError(f"`groups` must hold each of {list(tasks)} once, and no empty group. Received: groups={chosen}")
    return chosen


class _LiRankParts:
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
        return self.history(read)

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
        logits = self._logits(self.encode(history), clean, seed=seed)
        outputs = {task: self.keep(ops.sigmoid(logit), length=count) for task, logit in logits.items()}
        return keras.Model({**history, **candidates, "candidate_count": count, "seed": seed}, outputs, name=name)


def _distinct(features: Sequence[Any]) -> list[Any]:
    return list({feature.name: feature for feature in features}.values())
