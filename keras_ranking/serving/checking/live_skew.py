"""Skew on real traffic: requests of a server's access log against the data pipeline and the Keras model, once the log has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Id
from keras_ranking.schema import Schema
from keras_ranking.serving.checking.skew_report import Difference
from keras_ranking.serving.protocol.logged_requests import (
    LoggedRequest,
    cell_hashes,
    cells_of,
    checked_key,
    read_requests,
    request_hash,
)
from keras_ranking.serving.protocol.model_folder import MEMBER, RAW, column_name
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.signature import Signature, Tensor

_HISTORY, _CANDIDATES = "events of the history", "candidates"


@dataclass
class LiveSkewReport:
    """Result of `check_live_skew`.

    Attributes:
        logged: requests in the access log, of the version where one was chosen.
        replayed: those that were compared.
        not_in_log: those whose ids the log does not have (yet).
        broken: lines that are not whole.
        versions: version -> replayed requests.
        bound: largest difference of a score that is not counted.
        max_share: share of the values of a feature or score that may differ.
        features: "<history | candidate | member> <column>" -> what was served compared with the data pipeline; 'events of the history' and
            'candidates' count those that only one of both has.
        scores: task -> served scores compared with those of the Keras model on the pipeline's values.

    Example:
        >>> kr.serving.LiveSkewReport(logged=9, replayed=8, not_in_log=1, broken=0).summary()
        '8 of 9 requests: no difference'
    """

    logged: int
    replayed: int
    not_in_log: int
    broken: int
    versions: dict[int, int] = field(default_factory=dict)
    bound: float = 1e-5
    max_share: float = 0.0
    features: dict[str, Difference] = field(default_factory=dict)
    scores: dict[str, Difference] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether more than `max_share` of the values of any feature or score differ."""
        return any(entry.differ > self.max_share * entry.compared for entry in (*self.features.values(), *self.scores.values()))

    def summary(self) -> str:
        """One line with all names that differ, features first."""
        names = [f"{kind} '{name}' ({e.differ} of {e.compared})" for kind, name, e in self._entries() if e.differ]
        return f"{self.replayed} of {self.logged} requests: " + ("; ".join(names) if names else "no difference")

    def rows(self) -> list[list[str]]:
        """For a table: kind, name, compared, differ, largest, mean, worst."""
        return [
            [kind, name, str(e.compared), str(e.differ), f"{e.largest:.3g}", f"{e.mean:.3g}", _place(e.worst)]
            for kind, name, e in self._entries()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything above as plain JSON values."""
        plain = {name: getattr(self, name) for name in ("logged", "replayed", "not_in_log", "broken", "bound", "max_share")}
        entries = {kind: {name: e.to_json() for name, e in found.items()} for kind, found in self._kinds().items()}
        return {"found": self.found, **plain, "versions": {str(k): n for k, n in self.versions.items()}, **entries}

    def _kinds(self) -> dict[str, dict[str, Difference]]:
        return {"features": self.features, "scores": self.scores}

    def _entries(self) -> list[tuple[str, str, Difference]]:
        return [(kind[:-1], name, e) for kind, found in self._kinds().items() for name, e in found.items()]


def check_live_skew(
    access_log: str | Path,
    model: Any,
    events: pd.DataFrame,
    key: bytes | str,
    *,
    version: int | None = None,
    item: str | None = None,
    sample: int = 256,
    bound: float = 1e-5,
    tolerance: float = 1e-6,
    max_share: float = 0.0,
) -> LiveSkewReport:
    """Compare what a server was sent, and what it answered, with what the data pipeline makes of the log's rows.

    A request of the access log (see `AccessLog`) is found in the log by its id. Its history and candidates are built again by the
    pipeline; values are compared with those that were served, and served scores with those of the Keras model on the pipeline's values.
    Candidates are paired by `item`: a log has those that were shown, and a request also others, which are not compared. Events are
    paired by their times, where the model reads them, else from the latest one back. What is hashed is compared by its hash.

    Args:
        access_log: file that the server wrote; the one before it, PATH.1, is read too.
        model: the Keras `RankingModel` of the served version, or the path of a saved one.
        events: the log, with the requests and with the histories of their members.
        key: of the access log.
        version: only requests that this version scored; None: all, which is right where all have the weights of `model`.
        item: column by which candidates are paired; None: the first id among the model's columns of candidates.
        sample: most requests, the latest of those that the log has.
        bound: largest difference of a score, relative to scores above 1.
        tolerance: largest relative difference of a number.
        max_share: share of the values of a feature or score that may differ before `found` is true.

    Returns:
        `LiveSkewReport`.

    Raises:
        FileNotFoundError: no access log.
        ValueError: a log of another format or with another key, no request that the log has, options out of range, values of the log that
            violate the schema.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), history_features=())
        >>> kr.serving.check_live_skew("requests.jsonl", model, log.events, key="a-long-secret-key")
        Traceback (most recent call last):
        FileNotFoundError: no access log at 'requests.jsonl'
    """
    from keras_ranking import models

    secret = checked_key(key)
    if sample < 1 or bound < 0 or tolerance < 0 or not 0 <= max_share < 1:
        received = f"sample={sample}, bound={bound}, tolerance={tolerance}, max_share={max_share}"
        raise ValueError(f"`sample` must be positive, `max_share` from 0 to below 1, and the others not negative. Received: {received}")
    lines = list(read_requests(access_log))
    logged = [line for line in lines if line is not None and version in (None, line.version)]
    model = models.load(model) if isinstance(model, (str, Path)) else model
    known = {request_hash(secret, one): one for one in events[model.schema.request].drop_duplicates().tolist()}
    matched = [line for line in logged if line.request in known]
    if not matched:
        raise ValueError(
            f"`events` must have requests of the access log. Received: {len(logged)} logged requests, none of which is among "
            f"{len(known)} of the log: is the key that of the server, and does the log have these requests by now?"
        )
    chosen = {line.request: line for line in sorted(matched, key=lambda line: line.at)[-sample:]}
    report = LiveSkewReport(len(logged), 0, len(logged) - len(matched), len(lines) - sum(line is not None for line in lines))
    report.bound, report.max_share = bound, max_share
    replay = _Replay(model, events, secret, item, tolerance, report)
    replay.all({known[request]: line for request, line in chosen.items()})
    return report


class _Replay:
    """Compares logged requests with the pipeline's."""

    def __init__(self, model: Any, events: pd.DataFrame, key: bytes, item: str | None, tolerance: float, report: LiveSkewReport) -> None:
        self.model, self.events, self.key, self.tolerance, self.report = model, events, key, tolerance, report
        self.schema: Schema = model.schema
        self.names = list(model.serving_model.input)
        candidates = [name.removeprefix("candidate_") for name in self.names if name.startswith("candidate_")]
        ids = [feature.name for feature in self.schema.features if isinstance(feature, Id) and feature.name in candidates]
        self.item = item or (ids[0] if ids else None)
        if self.item not in candidates:
            raise ValueError(f"`item` must be a column of the model's candidates, of {candidates}. Received: item={self.item!r}")
        # Scores of such a model depend on all candidates of a request, of which the log has a part.
        self.whole_lists = "candidate_count" in model.scorer.input

    def all(self, lines: Mapping[Any, LoggedRequest]) -> None:
        from keras_ranking.data import build_sequences, requests

        schema, model = self.schema, self.model
        settings: dict[str, Any] = {}
        if model.form == "requests":
            reads = any(name.startswith("history_") for name in self.names)
            settings = {"max_history": model.arguments["max_history"] if reads else 0, "delay": model.arguments["delay"]}
        wanted = self.events[schema.request].isin(list(lines))
        members = self.events.loc[wanted, schema.member].unique()
        kept = self.events[self.events[schema.member].isin(members)].reset_index(drop=False, names="__row")
        found = requests(build_sequences(kept, schema, target=kept[schema.request].isin(list(lines)).to_numpy()), **settings)
        for q in range(len(found)):
            rows = kept.iloc[found.sequences.rows[found.candidate_begin[q] : found.candidate_end[q]]]
            line = lines.get(rows[schema.request].iloc[0])
            if line is not None:
                history = kept.iloc[found.sequences.rows[found.history_begin[q] : found.history_end[q]]]
                self._one(line, found.tensors([q], self.names), history, rows)

    def _one(self, line: LoggedRequest, tensors: dict[str, np.ndarray], history: pd.DataFrame, rows: pd.DataFrame) -> None:
        self.report.replayed += 1
        self.report.versions[line.version] = self.report.versions.get(line.version, 0) + 1
        sizes = {"history": len(history), "candidate": len(rows)}
        expected = {}
        if line.signature == RAW:
            inputs = {name: _tensor(entry) for name, entry in line.inputs.items()}
            raw = raw_request_tensors(self.schema, history, rows, rows[self.schema.time].iloc[0], Signature(RAW, inputs, {}))
            expected = {name: values if line.inputs[name]["axis"] else values[None] for name, values in raw.items()}
        else:
            for name, entry in line.inputs.items():
                if name not in tensors:
                    raise ValueError(f"the access log has input '{name}', which the model does not have: is it that of the served version?")
                values = tensors[name]
                expected[name] = values[0, : sizes[entry["axis"]]] if entry["axis"] else values[:1]
        pairs = {None: (np.zeros(1, int), np.zeros(1, int)), **self._pairs(line, expected, sizes)}
        places = {"history": history["__row"].tolist(), "candidate": rows["__row"].tolist(), None: rows["__row"].tolist()[:1]}
        request = _plain(rows[self.schema.request].iloc[0])
        for name, entry in line.inputs.items():
            served, own = pairs[entry["axis"]]
            at = [{"request": request, "row": _plain(places[entry["axis"]][place])} for place in own]
            kind = f"{entry['axis']} " if entry["axis"] else MEMBER.replace("_", " ") * name.startswith(MEMBER)
            self._values(f"{kind}{column_name(name, entry['axis'])}", entry, served, expected[name], own, at)
        served, own = pairs["candidate"]
        whole = len(served) == len(rows) == _length(line, "candidate")
        if whole or not self.whole_lists:
            graph = self.model.serving_model(tensors, training=False)
            for task, scores in line.outputs.items():
                if task not in graph:
                    continue
                a, b = np.asarray(scores, dtype=np.float64)[served], _numpy(graph[task])[0][own].astype(np.float64)
                at = [{"request": request, "row": _plain(places["candidate"][place])} for place in own]
                wrong = ~(np.abs(a - b) <= self.report.bound * np.maximum(1.0, np.abs(b)))
                _added(self.report.scores, task, a, b, wrong, at)

    def _pairs(self, line: LoggedRequest, expected: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[Any, Any]:
        """Places of the served and of the pipeline's cells that are the same event or candidate, by axis; the others are counted."""
        found: dict[Any, Any] = {"history": (np.zeros(0, int), np.zeros(0, int))}
        name = f"candidate_{self.item}"
        if name not in line.inputs:
            raise ValueError(f"the access log has no input '{name}', by which candidates are paired.")
        entry = line.inputs[name]
        own = cell_hashes(self.key, str(self.item), expected[name]) if "hashed" in entry else _cells(expected[name])
        theirs = entry["hashed"] if "hashed" in entry else _cells(np.asarray(entry["values"]))
        found["candidate"] = _paired(theirs, own)
        self._counted(_CANDIDATES, sizes["candidate"], sizes["candidate"] - len(found["candidate"][1]))
        if any(entry["axis"] == "history" for entry in line.inputs.values()):
            length = _length(line, "history")
            if "history_time" in line.inputs:
                found["history"] = _paired(line.inputs["history_time"]["values"], expected["history_time"].tolist())
            else:
                common = min(length, sizes["history"])
                found["history"] = (np.arange(length - common, length), np.arange(sizes["history"] - common, sizes["history"]))
            alone = length + sizes["history"] - 2 * len(found["history"][0])
            self._counted(_HISTORY, max(length, sizes["history"]), alone)
        return found

    def _counted(self, name: str, compared: int, differ: int) -> None:
        entry = self.report.features.setdefault(name, Difference())
        entry.compared, entry.differ = entry.compared + compared, entry.differ + min(differ, compared)

    def _values(
        self, name: str, entry: Mapping[str, Any], served: np.ndarray, expected: np.ndarray, own: np.ndarray, at: list[dict[str, Any]]
    ) -> None:
        if not len(own):
            return
        wanted = expected[own]
        if "hashed" in entry:
            hashes = cell_hashes(self.key, name.split(" ")[-1], wanted)
            wrong = np.array([entry["hashed"][place] != one for place, one in zip(served, hashes, strict=True)])
            _added(self.report.features, name, wrong.astype(float), np.zeros(len(wrong)), wrong, at)
        elif wanted.dtype.kind == "O":
            texts = [[bytes(part).decode("utf-8", "replace") for part in np.atleast_1d(cell)] for cell in wanted]
            sent = [[str(part) for part in np.atleast_1d(np.asarray(entry["values"][place], dtype=object))] for place in served]
            wrong = np.array([a != b for a, b in zip(sent, texts, strict=True)])
            _added(self.report.features, name, wrong.astype(float), np.zeros(len(wrong)), wrong, at)
        else:
            given = np.asarray(entry["values"], dtype=np.float64)[served].reshape(len(served), -1)
            numbers = wanted.astype(np.float64).reshape(len(own), -1)
            both = np.isnan(given) & np.isnan(numbers)
            near = np.abs(given - numbers) <= self.tolerance * np.maximum(1.0, np.abs(numbers))
            given = np.where(both, 0.0, given)
            _added(self.report.features, name, given, np.where(both, 0.0, numbers), ~(near | both), at)


def _added(
    entries: dict[str, Difference], name: str, got: np.ndarray, wanted: np.ndarray, differ: np.ndarray, at: list[dict[str, Any]]
) -> None:
    entries.setdefault(name, Difference()).add(got, wanted, differ, at)


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    dtype = np.dtype("O" if entry["dtype"] == "text" else entry["dtype"])
    return Tensor(dtype, (None, *([None] if entry["axis"] else []), *entry["cell"]), entry["axis"])


def _length(line: LoggedRequest, axis: str) -> int:
    """Cells of an axis of a logged request."""
    return max((cells_of(entry) for entry in line.inputs.values() if entry["axis"] == axis), default=0)


def _cells(values: np.ndarray) -> list[Any]:
    cells = values.reshape(len(values), -1).tolist()
    return [tuple(part.decode() if isinstance(part, bytes) else part for part in row) for row in cells]


def _paired(served: list[Any], own: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Places of equal values, the k-th of equals with the k-th."""
    left: dict[Any, list[int]] = {}
    for place, value in enumerate(served):
        left.setdefault(value, []).append(place)
    pairs = [(left[value].pop(0), place) for place, value in enumerate(own) if left.get(value)]
    return np.array([a for a, _ in pairs], dtype=int), np.array([b for _, b in pairs], dtype=int)


def _place(worst: Mapping[str, Any]) -> str:
    return f"request {worst['request']}, row {worst['row']}: {worst['exported']} for {worst['expected']}" if worst else ""


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _numpy(values: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
