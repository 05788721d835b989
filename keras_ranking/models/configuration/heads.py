"""What turns a state into the score of a task: towers by position, offsets by position, task heads, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from keras_ranking.columns import Category, Number
from keras_ranking.models.configuration.sequence import OF_MODEL
from keras_ranking.schema import Schema

_TOWERS = ("separate", "position_feature")
_PASSIVE = frozenset({"click", "long_dwell", "skip"})


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Heads of `CADET`: a tower for each range of positions and each task, and which of them is the score.

    Attributes:
        tower_boundaries: highest position of each tower but the last; (1, 4) means 1, 2-4, 5+ (stated second-hand as an example).
            None: (1, 4) where the schema has a position, else one tower.
        tower_by: the column of the schema that tells an impression's tower, in the place of the position: one that is known='after', such
            as the slot of a device, the page or the carousel. A `Category` with a vocabulary has a tower for each of its words, in their
            order, and takes no boundaries; a `Number` of whole numbers from 1 on, such as a page, has those of `tower_boundaries`. None:
            the position. Keys other than the position are our choice (post-scoring context is stated second-hand, the position as its
            example).
        tower_hidden: widths of each tower's hidden layers. Choice.
        towers: 'separate': K MLPs (heads by range: stated second-hand; MLPs: inferred); 'position_feature': one MLP that is given the
            range as a feature, scored at `serving_tower`, for comparison, see `PositionTowers`.
        serving_tower: index of the tower whose probability is the score, whatever the towers go by. How the production system picks a
            tower is unknown; our choice is the first. All towers are returned next to the score, so an auction may read the one of the
            slot it fills.
        serving: 'tower': the score is that of `serving_tower`; 'mixture': sum_k tower_prior[k] p_k, the probability of a click where
            the position is drawn from `tower_prior`.
        tower_prior: with serving='mixture', K shares that sum to 1, such as those of the log.
        calibration: an isotonic map of each task's logits, with the position range as calibration feature, see `TowerCalibration`.
        calibration_options: arguments of `TowerCalibration`.

    Raises:
        ValueError: boundaries that do not increase, an unknown word, or, when the model is built, a tower that does not exist and shares
            that do not sum to 1, a `tower_by` that is no such column, or boundaries of a category.

    Example:
        >>> kr.models.Towers(tower_boundaries=(1, 3), tower_hidden=(128, 64)).towers
        'separate'
    """

    tower_boundaries: Sequence[int] | None = None
    tower_hidden: Sequence[int] = (64,)
    towers: str = "separate"
    serving_tower: int = 0
    serving: str = "tower"
    tower_prior: Sequence[float] | None = None
    calibration: bool = False
    calibration_options: Mapping[str, Any] | None = None
    tower_by: str | None = None

    NEWER: ClassVar[tuple[str, ...]] = ("tower_by",)

    def __post_init__(self) -> None:
        bounds = self._bounds()
        if any(bound < 1 for bound in bounds) or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(f"`tower_boundaries` must be increasing positions from 1 on. Received: tower_boundaries={bounds}")
        if self.towers not in _TOWERS:
            raise ValueError(f"`towers` must be one of {_TOWERS}. Received: towers={self.towers!r}")
        if self.calibration_options and not self.calibration:
            received = f"calibration_options={dict(self.calibration_options)}"
            raise ValueError(f"`calibration_options` go with `calibration=True`. Received: {received}")
        if self.serving not in ("tower", "mixture"):
            raise ValueError(f"`serving` must be 'tower' or 'mixture'. Received: serving={self.serving!r}")
        if (self.tower_prior is not None) != (self.serving == "mixture"):
            received = f"serving={self.serving!r}, tower_prior={self.tower_prior}"
            raise ValueError(f"`tower_prior` goes with serving='mixture', and with it alone. Received: {received}")

    def _bounds(self) -> tuple[int, ...]:
        return () if self.tower_boundaries is None else tuple(int(bound) for bound in self.tower_boundaries)

    @property
    def count(self) -> int:
        """K, the number of towers."""
        return len(self._bounds()) + 1

    def _bounds_of(self, schema: Schema, name: str) -> tuple[int, ...]:
        """Boundaries of the encoded values of a column."""
        column: Any = next((one for one in schema.features if one.name == name), None)
        words = column.vocabulary if isinstance(column, Category) else None
        number = isinstance(column, Number) and column.transform == "identity"
        if column is None or column.known != "after" or not (words or number):
            what = "no feature of the schema" if column is None else f"a {type(column).__name__} known='{column.known}'"
            raise ValueError(
                "`tower_by` must name a feature with known='after': a `Category` with a vocabulary, or a `Number` as it is. "
                f"Received: '{name}', {what}"
            )
        if words is None:
            if self.tower_boundaries is None:
                raise ValueError(
                    f"`tower_boundaries` must be given for towers by a number. Received: tower_by='{name}', tower_boundaries=None"
                )
            return self._bounds()
        bounds = tuple(range(1, len(words)))
        if self.tower_boundaries is not None and self._bounds() != bounds:  # a saved model has them written out
            raise ValueError(
                f"`tower_boundaries` are not for towers by a category, which has one for each word. Received: tower_by='{name}', "
                f"tower_boundaries={self._bounds()}"
            )
        return bounds

    def of(self, schema: Schema) -> Towers:
        """The same with the schema's default of boundaries, checked against it."""
        found = self if self.tower_boundaries is not None else replace(self, tower_boundaries=(1, 4) if schema.position is not None else ())
        if self.tower_by is not None:
            found = replace(self, tower_boundaries=self._bounds_of(schema, self.tower_by))
        boundaries = found._bounds()
        if boundaries and schema.position is None and self.tower_by is None:
            raise ValueError(f"`tower_boundaries` need a schema with a position. Received: tower_boundaries={boundaries}, position=None")
        if not 0 <= self.serving_tower <= len(boundaries):
            raise ValueError(f"`serving_tower` must be from 0 to {len(boundaries)}. Received: serving_tower={self.serving_tower}")
        shares = None
        if self.tower_prior is not None:
            shares = [float(share) for share in self.tower_prior]
            if len(shares) != found.count or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"`tower_prior` must be {found.count} shares that sum to 1. Received: tower_prior={shares}")
        return replace(
            found,
            tower_boundaries=list(boundaries),
            tower_hidden=[int(width) for width in self.tower_hidden],
            tower_prior=shares,
            calibration=bool(self.calibration),
            calibration_options=dict(self.calibration_options or {}),
        )


@dataclass(frozen=True, kw_only=True)
class PositionHead:
    """Head of `FeedSR`: one head for all tasks, and a learned offset of each logit by position.

    Attributes:
        head: kind of `RankingHead`: 'parallel_dcn' (stated, version 2), 'mmoe' (version 1), 'stacked_dcn', 'mlp', 'linear'.
        head_options: its sizes.
        groups: tasks with a body (with 'mmoe' a gate) of their own, such as {"passive": ["click"], "active": ["like"]}.
        position_offsets: P, top positions with a learned offset of each logit (stated: 60), see `PositionOffset`; 0: none. None: 60
            where the schema has a position.
        offset_scale: how many times faster offsets move than other weights (our choice), see `PositionOffset`.
        beyond: offset of positions below the top P: 'clip' (that of the last) or 'zero'.
        serving_position: position at which everything is scored (stated: 5). Position is no input: training compares the logit at
            the position shown.

    Raises:
        ValueError: when the model is built: a negative number of offsets, or a serving position without an offset.

    Example:
        >>> kr.models.PositionHead(head="mmoe", position_offsets=20).serving_position
        5
    """

    head: str = "parallel_dcn"
    head_options: Mapping[str, Any] | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    position_offsets: int | None = None
    offset_scale: float = 10.0
    beyond: str = "clip"
    serving_position: int = 5

    def of(self, schema: Schema) -> PositionHead:
        """The same with the schema's default of offsets, checked against it."""
        offsets = self.position_offsets
        if offsets is None:
            offsets = 60 if schema.position is not None else 0
        if offsets < 0 or (offsets and schema.position is None):
            received = f"position_offsets={offsets}, position={schema.position!r}"
            raise ValueError(f"`position_offsets` must not be negative, and need a schema with a position. Received: {received}")
        if offsets and not 1 <= self.serving_position <= offsets:
            raise ValueError(f"`serving_position` must be from 1 to {offsets}. Received: serving_position={self.serving_position}")
        return replace(
            self,
            head_options=dict(self.head_options or {}),
            position_offsets=int(offsets),
            serving_position=int(self.serving_position),
        )


@dataclass(frozen=True, kw_only=True)
class TaskHeads:
    """Heads of the models trained on requests, `LiRank`, `AmortizedDLRM` and `LiGR`: one logit for each task.

    Attributes:
        head: 'shared_bottom', 'grouped', 'mmoe', 'ple' or 'sparse_mmoe' on a shared trunk; None: the preset's, 'grouped' for `LiGR`.
        head_options: arguments of the head, see `MultiTaskHead`.
        groups: group name -> its tasks. None: preset 'feed' and `LiGR`: click, long_dwell and skip in the click tower, all others in
            the contribution tower; 'ads' and 'jobs': each task by itself (ads: three groups of similar chargeability are stated).

    Example:
        >>> kr.models.TaskHeads(head="mmoe", head_options={"num_experts": 4}).groups is None
        True
    """

    head: str | None = None
    head_options: Mapping[str, Any] | None = None
    groups: Mapping[str, Sequence[str]] | None = None

    def of(self, tasks: Sequence[str], *, head: str | None, one_click_tower: bool = True) -> TaskHeads:
        """The same with the preset's values where none were chosen, checked against the tasks."""
        options = dict(self.head_options or {})
        return replace(self, head=head, head_options=options, groups=self._groups(tasks, one_click_tower))

    def _groups(self, tasks: Sequence[str], one_click_tower: bool) -> dict[str, list[str]]:
        if self.groups is None:
            if not one_click_tower:
                return {task: [task] for task in tasks}
            passive = [task for task in tasks if task in _PASSIVE]
            named = {"click": passive, "contribution": [task for task in tasks if task not in _PASSIVE]}
            return {name: members for name, members in named.items() if members}
        chosen = {name: list(members) for name, members in self.groups.items()}
        held = [task for members in chosen.values() for task in members]
        if sorted(held) != sorted(tasks) or not all(chosen.values()):
            raise ValueError(f"`groups` must hold each of {list(tasks)} once, and no empty group. Received: groups={chosen}")
        return chosen


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Isotonic calibration of the logits of `LiRank` and `AmortizedDLRM`.

    Attributes:
        calibration: an `IsotonicCalibration` on each task's logit; None: the preset's. 'model': the preset's for `LiRank`, off for
            `AmortizedDLRM`.
        calibration_features: columns that it reads (device, channel, ids: stated).
        calibration_options: arguments of `IsotonicCalibration`, which a preset without calibration does not read.

    Example:
        >>> kr.models.Calibration(calibration=True, calibration_options={"step": 0.5}).calibration_features
        ()
    """

    calibration: bool | str | None = OF_MODEL
    calibration_features: Sequence[str] = ()
    calibration_options: Mapping[str, Any] | None = None

    def of(self, schema: Schema, calibration: bool, of_model: bool | None = None) -> Calibration:
        """The same with columns written out, and the preset's choice where none was made; `of_model` is the model's own choice."""
        own = calibration if of_model is None else of_model
        return replace(
            self,
            calibration=calibration if self.calibration is None else own if self.calibration == OF_MODEL else bool(self.calibration),
            calibration_features=[feature.name for feature in schema.inputs(self.calibration_features)],
            calibration_options=dict(self.calibration_options or {}),
        )
