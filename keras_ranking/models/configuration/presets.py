"""The three rankers of the LiRank paper, and how their choices fill what a caller leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keras_ranking.models.configuration.choice import Choice
from keras_ranking.models.configuration.heads import Calibration, TaskHeads
from keras_ranking.models.configuration.requests import Features, Interaction
from keras_ranking.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a ranker of the paper has, where the paper says so; sizes that it does not give are arguments of the models.

    Two are choices: a trunk that both towers of 'feed' share (the paper states fully connected layers of their own, `shared_trunk=False`),
    and the low-rank cross net of 'jobs' (stated: a two-layer DCNv2 for each task).
    """

    cross: str
    gate: str | None
    head: str | None
    shared_trunk: bool
    calibration: bool
    history: bool
    one_click_tower: bool = False


PRESETS = {
    "feed": Preset(cross="residual", gate="dense", head="grouped", shared_trunk=True, calibration=True, history=True, one_click_tower=True),
    "ads": Preset(cross="low_rank", gate=None, head=None, shared_trunk=False, calibration=True, history=True),
    "jobs": Preset(cross="low_rank", gate=None, head=None, shared_trunk=False, calibration=False, history=False),
}


@dataclass(frozen=True, kw_only=True)
class RankerChoices:
    """Configuration of a ranker with every choice made: the caller's, else the preset's."""

    features: Features
    interaction: Interaction
    heads: TaskHeads
    calibration: Calibration
    random_effects: dict[str, str]
    explore: list[str]
    choice: Choice


def choose(
    schema: Schema,
    preset: str,
    tasks: Sequence[str],
    features: Features,
    interaction: Interaction,
    heads: TaskHeads,
    calibration: Calibration,
    random_effects: Mapping[str, str] | None,
    explore: Sequence[str],
    choice: Choice,
    cross: str | None = None,
    calibrated: bool | None = None,
) -> RankerChoices:
    """Fill what the caller left open: from the preset, but for a model's own `cross` and `calibrated`.

    Raises:
        ValueError: an unknown preset, a head without a shared trunk, effects, exploration or choices of tasks that there are not.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be of {tuple(PRESETS)}. Received: preset={preset!r}")
    of_preset = PRESETS[preset]
    interaction = interaction.of(cross=of_preset.cross, gate=of_preset.gate, shared_trunk=of_preset.shared_trunk, of_model=cross)
    head = heads.head if heads.head is not None else (of_preset.head or "grouped") if interaction.shared_trunk else None
    if head is not None and not interaction.shared_trunk:
        raise ValueError(f"`head` needs shared_trunk=True: with a trunk a group, logits are linear. Received: head={head!r}")
    features = features.of(schema, reads_history=of_preset.history, id_dim=30)
    effects = dict(random_effects or {})
    for task, column in effects.items():
        feature = schema.inputs([column])[0]
        if task not in tasks or feature.dtype != "int32" or feature.shape or feature.rows is None:
            wanted = f"tasks of {list(tasks)} to columns of one id with buckets, or categories"
            raise ValueError(f"`random_effects` must map {wanted}. Received: {task!r}: {column!r}")
    if unknown := [task for task in explore if task not in tasks]:
        raise ValueError(f"`explore` must be tasks of {list(tasks)}. Received: {unknown}")
    return RankerChoices(
        features=features,
        interaction=interaction,
        heads=heads.of(tasks, head=head, one_click_tower=of_preset.one_click_tower),
        calibration=calibration.of(schema, of_preset.calibration, calibrated),
        random_effects=effects,
        explore=list(explore),
        choice=choice.of(tasks, {*effects, *explore}, "`random_effects` or `explore`, which are fitted to a logit of each item alone"),
    )
