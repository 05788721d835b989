"""What a model loses where the values of a group of columns are exchanged between candidates, or between events of histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.data import Requests
from keras_ranking.metrics import MetricInterval, summary_differences
from keras_ranking.training.scoring.events import model_requests
from keras_ranking.training.scoring.served import served_requests

_BATCH = 64


@dataclass(frozen=True)
class Sample:
    """Requests of a split, as tensors of serving.

    Attributes:
        requests: the requests.
        which: (S,) those of the sample, by number of candidates.
        tensors: name -> (S, ...), histories cut to the newest events.
        index: (S, N) event of each candidate, -1 beyond.
    """

    requests: Requests
    which: np.ndarray
    tensors: Mapping[str, np.ndarray]
    index: np.ndarray

    @property
    def ages(self) -> np.ndarray:
        """(S, L) seconds from each event of the history to the request."""
        ages: np.ndarray = self.tensors["request_time"][:, None].astype(np.int64) - self.tensors["history_time"]
        return ages


def sample_of(ranker: models.RankingModel, rows: Any, count: int, max_history: int, seed: int) -> Sample:
    """Draw requests that have both labels of a task, which is what ranking metrics are made of.

    Args:
        ranker: the model.
        rows: what was scored.
        count: number of requests, if there are as many.
        max_history: newest events of each history.
        seed: of the draw.
    """
    sequences = rows.sequences
    limit = min(max_history, int(ranker.arguments.get("max_history") or max_history))
    if ranker.form == "requests":
        found = model_requests(ranker, sequences)
    else:
        found = served_requests(sequences, max_history=limit)
    found = Requests(
        sequences,
        np.maximum(found.history_begin, found.history_end - limit),
        found.history_end,
        found.candidate_begin,
        found.candidate_end,
        found.time,
    )
    useful = np.zeros(len(found), dtype=bool)
    for task in ranker.tasks:
        label = np.nan_to_num(sequences.labels[task])
        ones = np.concatenate([[0], np.cumsum(label)])
        sums = ones[found.candidate_end] - ones[found.candidate_begin]
        useful |= (sums > 0) & (sums < found.candidate_end - found.candidate_begin)
    order = np.flatnonzero(useful) if useful.any() else np.arange(len(found))
    which = np.random.default_rng(seed).permutation(order)[:count]
    size = found.candidate_end[which] - found.candidate_begin[which]
    which = which[np.argsort(size, kind="stable")]  # requests of about one size in a batch
    names = list(ranker.serving_model.input)
    if any(name.startswith("history_") for name in names):
        names = list(dict.fromkeys([*names, "history_time", "history_length", "request_time"]))
    return Sample(found, which, found.tensors(which, names), found.candidate_index(which))


def groups_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Columns by group: those whose names begin with the same word are one, since such columns often say the same."""
    heads: dict[str, list[str]] = {}
    for name in names:
        heads.setdefault(name.split("_")[0], []).append(name)
    return {columns[0] if len(columns) == 1 else f"{head}_…": tuple(columns) for head, columns in heads.items()}


def importances(
    ranker: models.RankingModel, sample: Sample, groups: Mapping[str, Sequence[str]] | None, samples: int, seed: int
) -> list[dict[str, Any]]:
    """What the ranking metrics and the log loss become without what a group of columns says.

    The values of all columns of a group are exchanged together, between the candidates of all requests of the sample, between the
    requests (columns known='member'), or between the events of all histories; 'history: all' takes the histories away. The model is not
    trained again: a group whose content another group has too seems unimportant.

    Args:
        ranker, sample: the model and the requests.
        groups: name -> columns of the schema; None: by the first word of their names.
        samples: of the bootstrap by members.
        seed: of the exchange and of the draws.

    Returns:
        One mapping for each task and group: `impression_auc` and `log_loss`, the changes with their intervals.

    Raises:
        ValueError: a column that the model does not read.
    """
    reads = [name for name in ranker.serving_model.input if name.partition("_")[0] in ("history", "candidate", "member")]
    reads = [name for name in reads if name != "history_session"]  # which says what is seen
    columns = list(dict.fromkeys(name.partition("_")[2] for name in reads if not name.endswith(("_time", "_length", "_count"))))
    chosen = groups_of(columns) if groups is None else {name: tuple(of) for name, of in groups.items()}
    if unknown := [column for of in chosen.values() for column in of if column not in columns]:
        raise ValueError(f"`groups` must hold columns that the model reads, {columns}. Received: {unknown}")
    random = np.random.default_rng(seed)
    scorer = _Scorer(ranker, sample)
    base, cache = scorer.whole(sample.tensors)
    found = []
    for side in ("candidate", "member", "history"):
        for name, of in chosen.items():
            inputs = [f"{side}_{column}" for column in of if f"{side}_{column}" in reads]
            if not inputs:
                continue
            changed = {**sample.tensors, **_exchanged(sample, side, inputs, random)}
            scores = scorer.whole(changed)[0] if side == "history" else scorer.scored(changed, cache)
            found += scorer.differences(f"{side}: {name}", base, scores, samples, seed)
    if "history_length" in sample.tensors and "history_length" in ranker.serving_model.input:
        nothing = {**sample.tensors, "history_length": np.zeros_like(sample.tensors["history_length"])}
        found += scorer.differences("history: all", base, scorer.whole(nothing)[0], samples, seed)
    return found


def _exchanged(sample: Sample, side: str, names: Sequence[str], random: np.random.Generator) -> dict[str, np.ndarray]:
    """The tensors with one permutation of the real slots of all requests."""
    if side == "member":
        real = np.ones(len(sample.which), dtype=bool)
    elif side == "candidate":
        real = sample.index >= 0
    else:
        real = np.arange(sample.tensors["history_time"].shape[1])[None, :] < sample.tensors["history_length"][:, None]
    order = random.permutation(int(real.sum()))
    made = {}
    for name in names:
        made[name] = sample.tensors[name].copy()
        made[name][real] = sample.tensors[name][real][order]
    return made


class _Scorer:
    """Encodes histories and scores candidates in batches of one size, so that compiled graphs are made once."""

    def __init__(self, ranker: models.RankingModel, sample: Sample) -> None:
        self.ranker, self.sample = ranker, sample
        self.reads_history = any(name.startswith("history_") for name in ranker.serving_model.input)
        sequences, index = sample.requests.sequences, sample.index
        self.real = index >= 0
        self.events = index[self.real]
        self.labels = {task: sequences.labels[task][self.events] for task in ranker.tasks}
        self.groups, self.clusters = sequences.request[self.events], sequences.member[self.events]

    def whole(self, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
        """Probabilities of all real candidates by task, and the cache of each batch."""
        cache = []
        for batch in self._batches(tensors):
            cache.append(_numpy(self.ranker.encoder.predict_on_batch(_named(self.ranker.encoder, batch))) if self.reads_history else {})
        return self.scored(tensors, cache), cache

    def scored(self, tensors: Mapping[str, np.ndarray], cache: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Probabilities of all real candidates by task, from encoded histories."""
        parts: dict[str, list[np.ndarray]] = {}
        for number, (batch, kept) in enumerate(zip(self._batches(tensors), cache, strict=True)):
            given = {**batch, **{f"cache_{name}": values for name, values in kept.items()}}
            real = self.real[number * _BATCH : (number + 1) * _BATCH]
            for task, logits in _numpy(self.ranker.scorer.predict_on_batch(_named(self.ranker.scorer, given))).items():
                chance = np.asarray(self.ranker.served(1 / (1 + np.exp(-logits[: len(real)].astype(np.float64)))))
                parts.setdefault(task, []).append(chance[real[:, : chance.shape[1]]])
        return {task: np.concatenate(values) for task, values in parts.items()}

    def differences(
        self, name: str, base: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray], samples: int, seed: int
    ) -> list[dict[str, Any]]:
        """Changes of the metrics by task."""
        found = []
        for task, label in self.labels.items():
            known = ~np.isnan(label)
            if task not in base or not known.any() or not np.isin(label[known], (0, 1)).all():
                continue
            given = (label[known], base[task][known], changed[task][known], self.groups[known], self.clusters[known])
            apart: dict[str, MetricInterval] = summary_differences(*given, samples=samples, seed=seed)
            found.append({"task": task, "group": name, **{metric: list(apart[metric]) for metric in ("impression_auc", "log_loss")}})
        return found

    def _batches(self, tensors: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Slices of `_BATCH` requests, cut to the longest history and the longest list, rounded up to a power of two: few shapes."""
        count, made = len(self.sample.which), []
        for begin in range(0, count, _BATCH):
            rows = slice(begin, begin + _BATCH)
            sizes = {"candidate": _power(int(self.real[rows].sum(axis=1).max()))}
            if self.reads_history:
                sizes["history"] = _power(int(self.sample.tensors["history_length"][rows].max()))
            part = {}
            for name, values in tensors.items():
                size = sizes.get(name.partition("_")[0]) if values.ndim > 1 else None
                part[name] = values[rows] if size is None else values[rows, :size]
            missing = _BATCH - len(next(iter(part.values())))
            made.append({name: np.concatenate([values, np.repeat(values[:1], missing, axis=0)]) for name, values in part.items()})
        return made


def _power(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _named(graph: keras.Model, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensors[name] for name in graph.input}


def _numpy(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(keras.ops.convert_to_numpy(values)) for name, values in tensors.items()}


def attention_of(ranker: models.RankingModel, sample: Sample, count: int) -> dict[str, Any] | str:
    """Weights of the history, mean over blocks and candidates, with the ages of its events; or why the model has none.

    Args:
        ranker, sample: the model and the requests.
        count: number of requests with the longest histories.
    """
    if "history_time" not in sample.tensors:
        return "the model reads no history"
    order = np.sort(np.argsort(-sample.tensors["history_length"], kind="stable")[:count])
    weights = []
    for begin in range(0, len(order), _BATCH):
        part = {name: values[order[begin : begin + _BATCH]] for name, values in sample.tensors.items()}
        if not part["history_length"].any():
            return "no request of the sample has a history"
        try:
            found = ranker.attention(ranker.encode(part), part)
        except ValueError as error:
            return str(error)
        real = sample.index[order[begin : begin + _BATCH]] >= 0
        mean = (found.mean(axis=0) * real[..., None]).sum(axis=1) / np.maximum(real.sum(axis=1), 1)[:, None]
        weights.append(mean)
    return {"weights": np.concatenate(weights), "ages": sample.ages[order], "lengths": sample.tensors["history_length"][order]}
