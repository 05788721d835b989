"""CADET: a context-conditioned decoder-only transformer for click prediction (LinkedIn, 2602.11410)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from keras_ranking import layers
from keras_ranking.models._sequence import SequenceParts, of_trunk, sequence_arguments
from keras_ranking.models.ranking_model import RankingModel, Tensors, builder
from keras_ranking.schema import Schema

_TOWERS = ("separate", "position_feature")


@builder
def CADET(
    schema: Schema,
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    ffn_multiple: float = 4.0,
    layout: str = "interleaved",
    gates: str | Sequence[str] = ("representation", "query", "key"),
    gate_bias: float = 2.0,
    rotary: Sequence[float] | None = (8.0, 15_552_000.0),
    delay: int | None = None,
    tower_boundaries: Sequence[int] | None = None,
    tower_hidden: Sequence[int] = (64,),
    serving_tower: int = 0,
    token_features: Sequence[str] | None = None,
    late_features: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    id_dim: int = 16,
    token_hidden: int | None = None,
    action_hidden: int | None = 64,
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "cadet",
    action_masking: float = 0.0,
    mask: str = "delay",
    session_gap: int = 1800,
    max_history: int | None = None,
    residual: str = "plain",
    residual_initial: float | None = None,
    rotate_by: str | None = "time",
    rotary_base: float = 10_000.0,
    shared_index: bool = True,
    towers: str = "separate",
    serving: str = "tower",
    tower_prior: Sequence[float] | None = None,
    calibration: bool = False,
    calibration_options: Mapping[str, Any] | None = None,
    auxiliary_tasks: Mapping[str, float] | None = None,
    sampled_delay: bool = False,
) -> RankingModel:
    """A causal transformer over a member's events, scoring every item before its action and for every range of positions.

        token_i   = item token of event i, followed by its action token          (layout 'interleaved')
        h         = LN(DecoderBlock^num_layers(tokens; gates, timestamp rotation, delayed spans))   read at item tokens
        s_ik      = tower_k([h_i ; late context features_i]),   p_ik = sigmoid(s_ik)
        score_i   = p_ik at `serving_tower`, or sum_k prior_k p_ik;   all p_ik are returned as well

    Marks: *stated* = in the paper's abstract or a public summary of it; *choice* = the paper's value is not known.

    Args:
        schema: the log's columns. Inputs are named by it.
        dim: D, width of the trunk. Choice.
        num_layers, num_heads, num_kv_heads, ffn_multiple: size of the trunk. Choice (sibling code: 12 layers, 4 heads, 4).
        layout: 'interleaved': an item token and an action token an event (Feed-SR; default by choice). 'fused': one token an
            event, and a query without its action where it is scored. 'value': one token an event, actions added to the
            attention's values only, strictly older events visible (sibling code); half as long. See `TokenSpans`.
        gates: of 'representation', 'query', 'key' (stated second-hand, all three) and 'output' (for comparison); or one word, 'none',
            'representation', 'qk', 'all' or 'output'.
        gate_bias: initial bias of the gates. Choice.
        rotary: (shortest, longest) seconds of timestamp RoPE ("seconds to months": stated; the values: choice). None: no
            rotation, and events are a set without order.
        delay: seconds after which an event is visible to later ones, in training (stated second-hand; size: choice) and in serving
            (choice). None: the schema's `feedback_delay`; less than that is refused, since it would show actions before they are known.
        tower_boundaries: highest position of each tower but the last; (1, 4) means 1, 2-4, 5+ (stated second-hand as an
            example). None: (1, 4) where the schema has a position, else one tower.
        tower_hidden: widths of each tower's hidden layers. Choice.
        serving_tower: index of the tower whose probability is the score; all towers are returned next to it. Choice: the first.
            How the production system picks a tower is unknown: all are returned, so that an auction may read the one of the slot it
            fills; or one is fixed, here; or `serving='mixture'`.
        token_features: columns in the tokens of events and candidates; None: all with known='item'. Context columns may be
            named too (early fusion).
        late_features: columns that join at the towers; None: all with known='context'.
        tasks: names of the tasks to predict; None: all.
        id_dim: width of id embeddings. token_hidden, action_hidden: hidden widths of the token MLPs. Choice.
        dropout: rate in blocks and towers, in training.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.
        action_masking: with layout='fused', see `FuseActions`.
        mask: 'delay' (stated), 'session' or 'causal' (for comparison), see `EventSpans`. session_gap: seconds that end a session.
        max_history: latest visible events that an event or candidate sees in each block; None: all. 0: the model without a past. No
            limit for what a request may hold: the latest events may not be visible yet, and a second block reaches further back.
        residual, residual_initial: see `RescaleAndAdd`. Choice: plain sums.
        rotate_by: 'time' (stated second-hand), 'index', 'split' (TO-RoPE's split heads) or None, for comparison. rotary_base, shared_index:
            of the rotation by index, see `FeedSR`.
        towers: 'separate': K MLPs (heads by range: stated second-hand; MLPs: inferred); 'position_feature': one MLP that is given the
            range as a feature, scored at `serving_tower`, for comparison, see `PositionTowers`.
        serving: 'tower': the score is that of `serving_tower`; 'mixture': sum_k tower_prior[k] p_k, the chance of a click where the
            position is drawn from `tower_prior`, K shares that sum to 1, such as those of the log.
        calibration: an isotonic map of each task's logits, with the position range as calibration feature, see `TowerCalibration`.
            calibration_options: its arguments.
        auxiliary_tasks: task -> weight of its loss: trained next to `tasks` (stated; which ones: unknown) but not scored. The default
            of `tasks` is then all others.
        sampled_delay: rows have an input `delay` (B, T): each event sees what is older than its own delay, as training draws it from the
            log's (`TrainingOptions.delay_column`; our choice). Serving, and figures offline, go by `delay`.

    Returns:
        A `RankingModel`.

    Raises:
        ValueError: an unknown task or column, an after-scoring column as an input, impossible sizes, `sampled_delay` with another
            mask or a column named delay.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.CADET(log.schema.fit(log.events), dim=16, num_layers=1, num_heads=2)
        >>> model.compile(optimizer="adam", loss=model.losses_by_task(pairwise_weight=0.1))
    """
    if tower_boundaries is None:
        tower_boundaries = (1, 4) if schema.position is not None else ()
    boundaries = tuple(int(bound) for bound in tower_boundaries)
    if any(bound < 1 for bound in boundaries) or any(a >= b for a, b in itertools.pairwise(boundaries)):
        raise ValueError(f"`tower_boundaries` must be increasing positions from 1 on. Received: tower_boundaries={boundaries}")
    if boundaries and schema.position is None:
        raise ValueError(f"`tower_boundaries` need a schema with a position. Received: tower_boundaries={boundaries}, position=None")
    if not 0 <= serving_tower <= len(boundaries):
        raise ValueError(f"`serving_tower` must be from 0 to {len(boundaries)}. Received: serving_tower={serving_tower}")
    if towers not in _TOWERS:
        raise ValueError(f"`towers` must be one of {_TOWERS}. Received: towers={towers!r}")
    if calibration_options and not calibration:
        raise ValueError(f"`calibration_options` go with `calibration=True`. Received: calibration_options={dict(calibration_options)}")
    auxiliary = {schema.task(task).name: float(weight) for task, weight in (auxiliary_tasks or {}).items()}
    if tasks is None:
        tasks = [task.name for task in schema.tasks if task.name not in auxiliary]
    if any(task in auxiliary for task in tasks) or not tasks or any(not 0 < weight < float("inf") for weight in auxiliary.values()):
        received = f"tasks={list(tasks)}, auxiliary_tasks={auxiliary}"
        raise ValueError(
            f"`auxiliary_tasks` must have positive weights, and no task of `tasks`, of which one is left. Received: {received}"
        )
    arguments: dict[str, Any] = {
        **sequence_arguments(schema, **of_trunk(locals())),
        "tower_boundaries": list(boundaries),
        "tower_hidden": list(tower_hidden),
        "towers": towers,
        "serving_tower": serving_tower,
        "serving": serving,
        "tower_prior": _prior(serving, tower_prior, len(boundaries) + 1),
        "calibration": bool(calibration),
        "calibration_options": dict(calibration_options or {}),
        "auxiliary_tasks": auxiliary,
    }
    return RankingModel(_CadetParts(schema, arguments), "CADET", schema, arguments, name=name)


def _prior(serving: str, prior: Sequence[float] | None, count: int) -> list[float] | None:
    if serving not in ("tower", "mixture"):
        raise ValueError(f"`serving` must be 'tower' or 'mixture'. Received: serving={serving!r}")
    if (prior is not None) != (serving == "mixture"):
        raise ValueError(
            f"`tower_prior` goes with serving='mixture', and with it alone. Received: serving={serving!r}, tower_prior={prior}"
        )
    if prior is None:
        return None
    shares = [float(share) for share in prior]
    if len(shares) != count or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"`tower_prior` must be {count} shares that sum to 1. Received: tower_prior={shares}")
    return shares


class _CadetParts(SequenceParts):
    """The trunk, and towers by position for every task."""

    def __init__(self, schema: Schema, arguments: dict[str, Any]) -> None:
        super().__init__(schema, arguments)
        a = arguments
        count = len(a["tower_boundaries"]) + 1
        options = {"hidden": a["tower_hidden"], "dropout": a["dropout"], "shared": a["towers"] == "position_feature", **self.policy}
        trained = [*a["tasks"], *a["auxiliary_tasks"]]
        self.towers = {task: layers.PositionTowers(count, name=f"towers_{task}", **options) for task in trained}
        self.calibrate = {}
        if a["calibration"]:
            made = {**a["calibration_options"], **self.policy}
            self.calibrate = {task: layers.TowerCalibration(name=f"isotonic_{task}", **made) for task in trained}

    def heads(self, hidden: Any, serving: bool) -> Tensors:
        wanted = self.arguments["tasks"] if serving else self.towers
        logits = {task: self.towers[task](hidden) for task in wanted}
        return {task: self.calibrate[task](logit) if self.calibrate else logit for task, logit in logits.items()}
