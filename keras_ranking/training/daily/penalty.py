"""The Fisher penalty of daily steps: its settings, and the snapshots that a run keeps beside its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.configuration import is_integer
from keras_ranking.data import PackedRequests, Sequences
from keras_ranking.training.incremental.fisher import COLD, PREVIOUS, SNAPSHOTS, FisherSnapshot, trainable_weights
from keras_ranking.training.incremental.penalty import IncrementalPenalty
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.scoring.events import model_requests
from keras_ranking.training.setup import training_data

_LENGTH, _ROWS = 512, 8
_SAMPLES = {"requests": 4096, "rows": 64}


@dataclass(frozen=True)
class FisherPenalty:
    """How `warm_start(penalty=...)` holds each weight to its earlier value by its Fisher information.

    LiRank (2402.06859): Eq. 2 and 3, see `IncrementalPenalty`. The paper gives none of these numbers; the defaults are our choice, made on
    the simulator and the first days of EB-NeRD.

    Args:
        forgetting: lambda_f >= 0, the weight of the penalty.
        cold_weight: alpha in [0, 1], the share of the cold start's weights in the penalty and in the start of a step.
        samples: target events on which the Fisher information is measured. None: 4,096 of a model of requests, 64 of a model of packed
            rows, of which each event costs a whole row.
        decay: F_t = F(new events) + decay * F_{t-1}, from 0 to 1.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> kr.training.FisherPenalty(forgetting=10.0).decay
        0.9
    """

    forgetting: float = 30.0
    cold_weight: float = 0.0
    samples: int | None = None
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.forgetting) and self.forgetting >= 0):
            raise ValueError(f"`forgetting` must be a finite number, at least 0. Received: forgetting={self.forgetting}")
        for name in ("cold_weight", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1. Received: {name}={getattr(self, name)}")
        if self.samples is not None and not (is_integer(self.samples) and self.samples > 0):
            raise ValueError(f"`samples` must be a positive integer or None. Received: samples={self.samples!r}")


def penalty_of(given: FisherPenalty | str | None) -> FisherPenalty | None:
    """The settings that were given; 'fisher' has the defaults.

    Raises:
        ValueError: another word.
        TypeError: something else.
    """
    if given is None or isinstance(given, FisherPenalty):
        return given
    if given == "fisher":
        return FisherPenalty()
    if isinstance(given, str):
        raise ValueError(f"`penalty` must be 'fisher', a FisherPenalty or None. Received: penalty={given!r}")
    raise TypeError(f"`penalty` must be 'fisher', a FisherPenalty or None. Received: {type(given).__name__}")


class HeldWeights:
    """The penalty of one daily step, and what it leaves for the next.

    Args:
        penalty: its settings.
        model: compiled, with the weights of the run in `folder`.
        folder: of the run. Without snapshots of an earlier step they are measured now, and are also those of the cold start.
        earlier: measures it on the target events of the earlier training; None: the log has none.

    Raises:
        ValueError: a snapshot of other weights than the model's, or nothing to measure one on.
    """

    def __init__(
        self,
        penalty: FisherPenalty,
        model: models.RankingModel,
        folder: str | Path,
        earlier: Callable[[], FisherSnapshot] | None,
    ) -> None:
        self._penalty, self._model = penalty, model
        place = Path(folder)
        self.measured = not (place / PREVIOUS).is_file()
        if self.measured:
            if earlier is None:
                raise ValueError(
                    f"`penalty` needs the Fisher information of the training in '{place}', which its first daily step measures on rows "
                    "that were trained on: the log has none beside the new ones"
                )
            self._previous = earlier()
            self._cold = self._previous
        else:
            self._previous = FisherSnapshot.load(place / PREVIOUS)
            self._cold = FisherSnapshot.load(place / COLD) if (place / COLD).is_file() else self._previous
            now = trainable_weights(model)
            other = [path for path, array in self._previous.weights.items() if path not in now or not np.array_equal(array, now[path])]
            if other:
                raise ValueError(
                    f"'{place / PREVIOUS}' is of other weights than the model in '{place}' ({other[0]}): the model was changed after the "
                    "daily step. Remove the file, and the next step measures it anew."
                )

    def attached(self) -> AbstractContextManager[Any]:
        """The penalty on the model, at the start that it states."""
        penalty = self._penalty
        made = IncrementalPenalty(self._previous, self._cold, penalty.forgetting, penalty.cold_weight)
        made.initialise(self._model)
        return made.attach(self._model)

    def files(self, new: FisherSnapshot) -> dict[str, Callable[[Path], Any]]:
        """What to write beside the model after the step: the snapshot on the new events with the earlier ones, and the cold start's."""
        snapshot = new.accumulate(self._previous, self._penalty.decay)
        self.samples = snapshot.samples
        return {PREVIOUS: snapshot.save, COLD: self._cold.save}

    def about(self) -> dict[str, Any]:
        """For `history.json`."""
        return {**asdict(self._penalty), "samples": self.samples, "measured_first": self.measured}


def kept_files(folder: str | Path) -> dict[str, Callable[[Path], Any]]:
    """The snapshots of a run, to be written again with a model of the same weights."""
    found = {name: (Path(folder) / name).read_bytes() for name in SNAPSHOTS if (Path(folder) / name).is_file()}

    def writer(content: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(content)

    return {name: writer(content) for name, content in found.items()}


def measured_on(
    model: models.RankingModel, sequences: Sequences, training: TrainingOptions, samples: int | None, seed: int
) -> FisherSnapshot:
    """The Fisher information of a compiled model, of single target events that are drawn without repetition.

    Args:
        model: compiled.
        sequences: their target events are drawn from.
        training: options of the rows.
        samples: see `FisherPenalty`.
        seed: of the draw.
    """
    samples = _SAMPLES[model.form] if samples is None else samples
    if model.form != "requests":
        return FisherSnapshot.measure(model, single_events(model, sequences, training, samples, seed))
    requests, events = model_requests(model, sequences), int(sequences.target.sum())
    dataset = PackedRequests(requests, 1, min(events, _LENGTH), model.input_columns, tasks=model.tasks, single=True, seed=seed)
    return FisherSnapshot.measure(model, dataset, samples=samples, seed=seed)


def single_events(model: models.RankingModel, sequences: Sequences, training: TrainingOptions, samples: int, seed: int) -> Iterator[Any]:
    """Packed rows in each of which one target event has a weight."""
    dataset, _ = training_data(model, sequences, training, seed)
    batches = [dataset[number] for number in range(len(dataset))]
    found = [np.argwhere(np.any([weight > 0 for weight in weights.values()], axis=0)) for _, _, weights in batches]
    chosen = np.sort(np.random.default_rng(seed).permutation(sum(map(len, found)))[:samples])
    begin = 0
    for batch, places in zip(batches, found, strict=True):
        own = places[chosen[(chosen >= begin) & (chosen < begin + len(places))] - begin]
        begin += len(places)
        for at in range(0, len(own), _ROWS):
            yield _of_events(batch, own[at : at + _ROWS])


def _of_events(batch: Any, places: np.ndarray) -> Any:
    """The rows of these (row, slot), each with the weight of that slot alone."""
    x, y, weights = batch
    rows, slots = places.T[:2]

    def taken(array: Any) -> np.ndarray:
        found: np.ndarray = np.asarray(array)[rows]
        return found

    alone = {}
    for name, weight in weights.items():
        alone[name] = np.zeros_like(taken(weight))
        alone[name][np.arange(len(rows)), slots] = np.asarray(weight)[rows, slots]
    return (*keras.tree.map_structure(taken, (x, y)), alone)
