"""Training data from shards: sizes that all shards share, event weights by facts of the whole log, one dataset after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ranking import models
from keras_ranking.data import PackedDataset, PackedRequests, Sequences, ShardedLog
from keras_ranking.data.delays import LoggedDelays
from keras_ranking.data.packed_requests import RequestSizes
from keras_ranking.data.shards.dataset import ShardedDataset
from keras_ranking.data.shards.log import Chosen
from keras_ranking.losses import PairCounts
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.scoring.events import model_requests
from keras_ranking.training.scoring.pairs import pair_counts
from keras_ranking.training.setup import check_targets, training_data
from keras_ranking.training.streaming.propensities import Propensities
from keras_ranking.training.weighting.event_weights import event_weights
from keras_ranking.values import INT32_MAX

_SEEDS = 1_000_003  # apart, the seeds of shards


@dataclass(frozen=True)
class Facts:
    """What holds of all shards together.

    Attributes:
        events, members, targets: numbers of what is read.
        longest: impressions of the largest request.
        learned, read: first and last model time, of targets and of all that is read.
        per_request: mean number of candidates of a request with a target.
        widest: candidates of the largest of these.
        counts: targets of each shard.
    """

    events: int
    members: int
    targets: int
    longest: int
    learned: tuple[int, int]
    read: tuple[int, int]
    per_request: float
    widest: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, log: ShardedLog, chosen: Chosen, ranker: models.RankingModel | None = None) -> Facts:
        """Read the structure of all shards, and check targets against what a model needs.

        Raises:
            ValueError: targets without a position for a model that reads positions, and what else `train` finds wrong with a log.
        """
        found = [_facts(sequences, ranker) for sequences in log.all_sequences(chosen, columns=of_towers(ranker))]
        events, members, targets, longest, learned, read, candidates, requests, widest = zip(*found, strict=True)
        return cls(
            sum(events),
            sum(members),
            sum(targets),
            max(longest),
            (min(first for first, _ in learned), max(last for _, last in learned)),
            (min(first for first, _ in read), max(last for _, last in read)),
            sum(candidates) / max(sum(requests), 1),
            max(widest),
            tuple(targets),
        )


def _facts(sequences: Sequences, ranker: models.RankingModel | None) -> tuple[Any, ...]:
    if ranker is not None:
        check_targets(ranker, sequences)
    starts = sequences.request_starts
    sizes = np.diff(starts)
    wanted = np.add.reduceat(sequences.target, starts[:-1]) > 0 if len(sizes) else np.zeros(0, dtype=bool)
    numbers = (sequences.num_events, sequences.num_members, int(sequences.target.sum()))
    learned, read = _ends(sequences.time[sequences.target]), _ends(sequences.time)
    return (
        *numbers,
        int(sizes.max(initial=1)),
        learned,
        read,
        int(sizes[wanted].sum()),
        int(wanted.sum()),
        int(sizes[wanted].max(initial=1)),
    )


def _ends(times: np.ndarray) -> tuple[int, int]:
    return int(times.min(initial=INT32_MAX)), int(times.max(initial=0))


class Weigher:
    """Weights of the events of each shard by task, as `event_weights` gives them for a whole log.

    Args:
        log: the shards.
        chosen: what is read.
        training: the options.
        tasks: of the model.
        now: model time of the newest target.
    """

    def __init__(self, log: ShardedLog, chosen: Chosen, training: TrainingOptions, tasks: Sequence[str], now: int) -> None:
        self.training, self.tasks, self.now = training, list(tasks), now
        self.found = None if training.ipw is None else Propensities.of(log, chosen, training, self.tasks)
        self.report: dict[str, Any] = {} if self.found is None else self.found.report(training)

    @property
    def used(self) -> bool:
        """Whether some weight may be other than 1."""
        training = self.training
        return any(value is not None for value in (training.ipw, training.position_half_life, training.age_half_life_days))

    def __call__(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """Weights (E,) by task; none where all are 1."""
        training, found = self.training, self.found
        return event_weights(
            sequences,
            self.tasks,
            training.position_half_life,
            training.age_half_life_days,
            None if found is None else found.propensity,
            training.ipw or "all",
            training.ipw_clip,
            now=self.now,
            means=None if found is None else found.means(training),
        ).by_task


def logged_delays(log: ShardedLog, chosen: Chosen, column: str | None) -> LoggedDelays | None:
    """The values of a kept column in the rows that are trained on.

    Raises:
        ValueError: a column that was not kept, or a value that is no delay.
    """
    if column is None:
        return None
    parts = []
    for number, sequences in enumerate(log.all_sequences(chosen, columns=())):
        values, rows = log.kept(number, column)
        learned = values[np.isin(rows, sequences.rows[sequences.target])]
        bad = ~((learned >= 0) & (learned <= INT32_MAX))
        if bad.any():
            row = int(rows[np.isin(rows, sequences.rows[sequences.target])][bad][0])
            raise ValueError(f"column '{column}' must hold delays in seconds, 0 to {INT32_MAX}. Received: {learned[bad][0]} at row {row}")
        parts.append(learned)
    return LoggedDelays.merged(parts)


class StreamedData:
    """The data for `ranker.fit` from shards.

    Args:
        ranker: the model.
        log: the shards.
        chosen: what is read, and what the targets are.
        facts: of these.
        training: the options.
        seed: of shuffles and draws; a log of one shard has the batches that the same rows have in a frame.
        weigher: weights of events.
        delays: logged delays, or None.
        epoch: number of the first epoch.

    Attributes:
        dataset: batches of all shards.
        window: impressions of the largest request.
        rows, skipped: packed rows, and pieces without a target that are left out.
        efficiency: share of the slots that hold an event.

    Raises:
        ValueError: as `train`.
    """

    def __init__(
        self,
        ranker: models.RankingModel,
        log: ShardedLog,
        chosen: Chosen,
        facts: Facts,
        training: TrainingOptions,
        seed: int,
        weigher: Weigher,
        delays: LoggedDelays | None = None,
        epoch: int = 0,
    ) -> None:
        self.ranker, self.log, self.chosen, self.facts, self.training, self.seed = ranker, log, chosen, facts, training, seed
        self.weigher, self.delays = weigher, delays
        self.window = facts.widest if ranker.form == "requests" else facts.longest
        self.columns = columns_of(ranker)
        self.sizes = self._sizes() if ranker.form == "requests" else None
        self.rows = self.skipped = self.member_values = 0
        filled, batches = 0.0, []
        for number in range(log.shards):
            made = self._made(number, 0, planned=True)
            batches.append(0 if made is None else len(made))
            if made is None:
                continue
            rows = len(made.slots) if isinstance(made, PackedRequests) else len(made.rows.index)
            filled += rows * (made.efficiency if isinstance(made, PackedRequests) else made.rows.efficiency)
            self.rows += rows
            self.skipped += 0 if isinstance(made, PackedRequests) else made.rows.skipped
            if isinstance(made, PackedDataset):
                self.member_values = max(self.member_values, made.member_values)
            elif self.sizes is not None:
                self.sizes = self.sizes.widest(made.sizes)
        self.efficiency = filled / max(self.rows, 1)
        self.dataset = ShardedDataset(batches, self._opened, seed=seed, epoch=epoch)

    def _sizes(self) -> RequestSizes:
        """Sizes that the batches of all shards must share, so that a step is compiled once."""
        size, history = max(self.training.row_length, self.facts.widest), 1
        for sequences in self.log.all_sequences(self.chosen, columns=()):
            found = model_requests(self.ranker, sequences)
            history = max(history, int((found.history_end - found.history_begin).max(initial=1)))
        return RequestSizes(size, min(size, math.ceil(1.5 * size / self.facts.per_request)), history)

    def _opened(self, number: int, epoch: int) -> PackedDataset | PackedRequests:
        made = self._made(number, epoch, planned=False)
        if made is None:
            raise IndexError(f"shard {number} has no batch")
        if isinstance(made, PackedDataset):
            made.member_values = self.member_values
        return made

    def pairs(self) -> dict[str, PairCounts]:
        """Pairs of all shards that the pairwise loss compares, by task."""
        found: dict[str, PairCounts] = {}
        for sequences in self.log.all_sequences(self.chosen, columns=of_towers(self.ranker)):
            weights = self.weigher(sequences) if self.weigher.used else {}
            for task, counts in pair_counts(self.ranker, sequences, self.training, weights).items():
                found[task] = found.get(task, PairCounts()) + counts
        return found

    def _made(self, number: int, epoch: int, planned: bool) -> PackedDataset | PackedRequests | None:
        if not self.facts.counts[number]:
            return None
        sequences = self.log.sequences(number, self.chosen, () if planned else self.columns)
        weights = {} if planned or not self.weigher.used else self.weigher(sequences)
        seed = self.seed + _SEEDS * number
        made, _ = training_data(self.ranker, sequences, self.training, seed, weights, self.delays, epoch, self.sizes, checked=True)
        return made


def of_towers(ranker: models.RankingModel | None) -> list[str]:
    """The column that the towers of a model go by, if it is not the position."""
    return [] if ranker is None or ranker.tower_by is None else [ranker.tower_by]


def columns_of(ranker: models.RankingModel) -> list[str]:
    """Features and actions that a model reads."""
    names = {feature.name for feature in (*ranker.schema.features, *ranker.schema.actions)}
    read = {*ranker.input_columns, *(ranker.stream_columns or ()), *of_towers(ranker)}
    return [
        name for name in names if name in read or any(f"{side}_{name}" in read for side in ("candidate", "history", "stream", "member"))
    ]
