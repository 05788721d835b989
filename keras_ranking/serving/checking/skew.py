"""Training-serving skew: differences by feature and by score between an exported model, the Keras model and the data pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.serving.checking.skew_report import Difference, SkewReport
from keras_ranking.serving.protocol.model_folder import (
    AXES,
    CANDIDATE_COUNT,
    EXTRA,
    FEATURES,
    RAW,
    SCHEMA_FILE,
    SESSIONS,
    SIGNATURE,
    Card,
    axis_of,
    column_name,
    read_card,
    version_folders,
)
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.requests import pad_requests

Batch = dict[str, np.ndarray]
_BATCH = 8  # requests a run


def check_skew(
    version: Any, model: Any, events: pd.DataFrame, *, sample: int = 64, bound: float | None = None, seed: int = 0
) -> SkewReport:
    """Replay logged requests through an exported version, the Keras model and the data pipeline.

    Each request is scored in four ways: its encoded tensors by `serving_default`, its values as logged by `raw`, the tensors by the
    Keras model, and its member's stream by the training graph (packed rows, or packed requests). Scores are compared with those of
    the Keras model, and the encoding of each value by `raw` with that of the data pipeline.

    Args:
        version: folder of a version, or of a served model, whose newest version is used; or a `Client`: the version that it calls on
            its server. A server does not tell the bound of the export, nor whether its tables are in int8: pass `bound` then.
        model: the Keras `RankingModel`, or the path of a saved one.
        events: a log with the schema's columns, histories of the sampled members included.
        sample: requests to replay, drawn at random; all if there are fewer.
        bound: largest difference of a score. None: the bound of the export's verification, else 1e-5.
        seed: of the sample.

    Returns:
        `SkewReport`: differences by feature and by score, with request and row of the largest one.

    Raises:
        ValueError: a version without the signature `raw`, or a model with other inputs; values of the log that violate the schema.
        ServingError: an error of the server.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> report = kr.serving.check_skew(version, model, log.events, sample=4)
        >>> report.found, report.summary()
        (False, '4 requests: no difference')
    """
    from keras_ranking import models

    model = models.load(model) if isinstance(model, (str, Path)) else model
    served = _Exported(Path(version)) if isinstance(version, (str, Path)) else _OnServer(version)
    card = served.card
    if card is not None and card.quantized and not model.quantized:
        from keras_ranking.models.quantization import quantize_embeddings

        model = quantize_embeddings(model)
    names = list(model.serving_model.input)
    try:
        return _replayed(served, model, events, names, sample, bound, seed)
    finally:
        served.close()


def _replayed(
    served: _Exported | _OnServer, model: Any, events: pd.DataFrame, names: list[str], sample: int, bound: float | None, seed: int
) -> SkewReport:
    inputs = served.signature(SIGNATURE).inputs
    if sorted(names) != sorted(inputs):
        raise ValueError(f"the Keras model has other inputs than the version: {sorted(set(names) ^ set(inputs))}")
    card, schema = served.card, served.schema
    bound = bound if bound is not None else float(((card.verified if card else None) or {}).get("bound", 1e-5))
    found, chosen, kept, left_out = _sampled(model, events, sample, seed, card)
    report = SkewReport(len(chosen), left_out, bound, schema.digest == model.schema.digest, {}, {})
    trained = _trained(model, found, chosen)
    signature = served.signature(RAW)
    tasks = [task.name for task in schema.tasks if task.name in signature.outputs]
    for begin in range(0, len(chosen), _BATCH):
        which = chosen[begin : begin + _BATCH]
        encoded = found.tensors(which, names)
        raw = pad_requests([_raw_request(schema, found, kept, q, signature) for q in which])
        scores = {SIGNATURE: served.run(SIGNATURE, encoded), RAW: served.run(RAW, raw), "training": trained(which)}
        graph = model.serving_model(encoded, training=False)
        keras_scores = {task: _numpy(graph[task]) for task in tasks}
        _compare_features(report, model.schema, served.run(FEATURES, raw), encoded, found, kept, which)
        for way, outputs in scores.items():
            for task, wanted in keras_scores.items():
                _compare_scores(report, f"{way} {task}", outputs[task], wanted, encoded[CANDIDATE_COUNT], found, kept, which)
    return report


class _Exported:
    """A version on disk."""

    def __init__(self, path: Path) -> None:
        from keras_ranking.serving.checking.saved_model import SavedModel

        folder = _version(path)
        self.card = read_card(folder)
        if self.card is None or RAW not in self.card.signatures or FEATURES not in self.card.signatures:
            raise ValueError(f"'{folder}' has no signature '{RAW}': export it with this version of the package.")
        self.schema = Schema.load(folder / EXTRA / SCHEMA_FILE)
        model = SavedModel(folder)
        self.signature, self.run, self.close = model.signature, model.run, model.close


class _OnServer:
    """The version that a client calls; the client stays open."""

    card = None

    def __init__(self, client: Any) -> None:
        self._client = client
        self.schema = client.schema
        signatures = client.signatures()
        if RAW not in signatures or FEATURES not in signatures:
            raise ValueError(f"the model on the server has no signature '{RAW}': export it with this version of the package.")
        self.signature = signatures.__getitem__

    def run(self, signature: str, inputs: Batch) -> Batch:
        return dict(self._client.predict(inputs, signature))

    def close(self) -> None:
        pass


def _version(path: Path) -> Path:
    if (path / "saved_model.pb").exists():
        return path
    versions = version_folders(path)
    if not versions:
        raise FileNotFoundError(f"no exported version at '{path}'")
    return versions[max(versions)]


def _sampled(model: Any, events: pd.DataFrame, sample: int, seed: int, card: Card | None) -> tuple[Any, np.ndarray, pd.DataFrame, int]:
    """Requests of the sampled members' streams, which of them to replay, those members' rows of the log, and how many are too long."""
    from keras_ranking.data import build_sequences, requests

    if sample < 1:
        raise ValueError(f"`sample` must be a positive integer. Received: sample={sample}")
    schema = model.schema
    settings: dict[str, Any] = {}
    if model.form == "requests":
        reads = any(name.startswith("history_") for name in model.serving_model.input)
        settings = {"max_history": model.arguments["max_history"] if reads else 0, "delay": model.arguments["delay"]}
    ids = events[schema.request].drop_duplicates().sample(frac=1.0, random_state=seed).iloc[:sample]
    wanted = events[schema.request].isin(ids)
    kept = events[events[schema.member].isin(events.loc[wanted, schema.member].unique())].reset_index(drop=False, names="__row")
    target = kept[schema.request].isin(ids).to_numpy()
    found = requests(build_sequences(kept, schema, target=target), **settings)
    lengths = found.history_end - found.history_begin, found.candidate_end - found.candidate_begin
    fits = np.ones(len(found), dtype=bool)
    if card is not None and card.through == "jax":  # longer lists are not scored there
        for length, sizes in zip(lengths, (card.history_buckets, card.candidate_buckets), strict=True):
            fits &= length <= max(sizes)
    chosen = np.flatnonzero(fits)[:sample]
    if not len(chosen):
        raise ValueError("`events` must hold at least one request with candidates that the version takes.")
    return found, chosen, kept, int((~fits).sum())


def _raw_request(schema: Schema, found: Any, kept: pd.DataFrame, q: int, signature: Any) -> Batch:
    """Raw tensors of a request, from the values of the log."""
    rows = found.sequences.rows
    history = kept.iloc[rows[found.history_begin[q] : found.history_end[q]]]
    candidates = kept.iloc[rows[found.candidate_begin[q] : found.candidate_end[q]]]
    return raw_request_tensors(schema, history, candidates, candidates[schema.time].iloc[0], signature)


def _trained(model: Any, found: Any, chosen: np.ndarray) -> Any:
    """Scores of requests from the training graph: requests -> task -> (B, N)."""
    from keras_ranking.data import PackedDataset, PackedRequests, pack

    sequences = found.sequences
    if model.form == "requests":
        size = int((found.candidate_end - found.candidate_begin).max(initial=1))
        dataset: Any = PackedRequests(found, max(256, size), 4, names=model.input_columns, tasks=model.tasks, shuffle=False)
        count, scatter = len(dataset.slots), dataset.scatter
    else:
        # A row as long as the longest member, so that no history is cut, as in serving.
        rows = pack(sequences, int(np.diff(sequences.offsets).max(initial=2)) + 1)
        dataset = PackedDataset(rows, 4, inputs=model.input_columns, tasks=model.tasks, shuffle=False, delays=model.arguments["delay"])
        count, scatter = len(rows.index), rows.scatter
    logits: dict[str, list[np.ndarray]] = {}
    for number in range(len(dataset)):
        outputs = model(dataset[number][0], training=False)
        for task in model.tasks:
            logits.setdefault(task, []).append(_numpy(outputs[task]))
    towers = {task: scatter(1.0 / (1.0 + np.exp(-np.concatenate(parts)[:count].astype(np.float64)))) for task, parts in logits.items()}

    def scores(which: np.ndarray) -> Batch:
        index = found.candidate_index(which)
        return {task: np.asarray(model.served(values[index])) for task, values in towers.items()}

    return scores


def _numpy(values: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))


def _places(found: Any, kept: pd.DataFrame, q: int, begin: int, end: int) -> list[dict[str, Any]]:
    schema = found.sequences.schema
    request = kept[schema.request].iloc[int(found.sequences.rows[found.candidate_begin[q]])]
    rows = kept["__row"].to_numpy()[found.sequences.rows[begin:end]]
    return [{"request": _plain(request), "row": _plain(row)} for row in rows]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _slices(found: Any, which: np.ndarray, axis: str) -> Iterator[tuple[int, int, int, int]]:
    begins, ends = (found.history_begin, found.history_end) if axis == "history" else (found.candidate_begin, found.candidate_end)
    for row, q in enumerate(which):
        yield row, int(q), int(begins[q]), int(ends[q])


def _compare_features(
    report: SkewReport, schema: Schema, got: Batch, wanted: Batch, found: Any, kept: pd.DataFrame, which: np.ndarray
) -> None:
    for name in wanted:
        if name in AXES.values():
            continue
        axis = axis_of(name, (None, None)) if name != "request_time" else None
        column = schema.time if name in ("request_time", "history_time") else column_name(name, axis)
        if name == SESSIONS[1]:
            continue
        if name == SESSIONS[0]:
            _compare_sessions(report, str(schema.session), got, wanted, found, kept, which)
            continue
        entry = report.features.setdefault(column, Difference())
        for row, q, begin, end in _slices(found, which, axis or "candidate"):
            if axis is None:
                end = begin + 1
                a, b = got[name][row : row + 1], wanted[name][row : row + 1]
            else:
                a, b = got[name][row, : end - begin], wanted[name][row, : end - begin]
            if len(a):
                entry.add(a, b, a.view(np.int32) != b.view(np.int32), _places(found, kept, q, begin, end))


def _compare_sessions(report: SkewReport, name: str, got: Batch, wanted: Batch, found: Any, kept: pd.DataFrame, which: np.ndarray) -> None:
    """Compare which events are of one session, and which of that of the request: the ids themselves differ."""
    events, request = SESSIONS
    entry = report.features.setdefault(name, Difference())
    for row, q, begin, end in _slices(found, which, "history"):
        a, b = (_partition(x[events][row, : end - begin], x[request][row] if request in x else None) for x in (got, wanted))
        if end > begin:
            entry.add(a, b, a != b, _places(found, kept, q, begin, end))


def _partition(events: np.ndarray, request: Any) -> np.ndarray:
    """The same numbers for the same sessions: those of the events by their order, 0 for that of the request."""
    codes, _ = pd.factorize(np.append(np.int64(-1) if request is None else np.int64(request), events.astype(np.int64)))
    return codes[1:].astype(np.int32)


def _compare_scores(
    report: SkewReport,
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    counts: np.ndarray,
    found: Any,
    kept: pd.DataFrame,
    which: np.ndarray,
) -> None:
    entry = report.scores.setdefault(name, Difference())
    for row, q, begin, end in _slices(found, which, "candidate"):
        a, b = got[row, : counts[row]], wanted[row, : counts[row]]
        entry.add(a, b, ~(np.abs(a - b) <= report.bound * np.maximum(1.0, np.abs(b))), _places(found, kept, q, begin, end))
