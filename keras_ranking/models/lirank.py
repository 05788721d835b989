"""LiRank: large point-wise ranking models for feed, ads and jobs (LinkedIn, KDD 2024, 2402.06859)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from keras_ranking.layers.interaction.dcn import CROSSES
from keras_ranking.models._requests import LiRankParts
from keras_ranking.models.ranking_model import RankingModel, builder
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

    Marks: the parts of each preset are *stated*, the low rank of jobs' DCNv2 apart;
    that cross net and MLP stand side by side, and the place of calibration after
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
            stated); calibration_options: its arguments,
            which a preset without calibration does not read.
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
        batch_norm: batch normalisation of numbers (stated), frozen at scoring. batch_norm_momentum: of its running moments.
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
    return RankingModel(LiRankParts(schema, arguments), "LiRank", schema, arguments, name=name)


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
