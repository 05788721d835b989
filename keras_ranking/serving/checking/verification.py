"""Verification of an export: every signature, run in a fresh process, against the Keras model and the schema's encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.models.served_values import weighted_sum
from keras_ranking.schema import Schema
from keras_ranking.serving.checking.sample_requests import alone, random_raw, random_requests, spoilt
from keras_ranking.serving.checking.verification_worker import LATER
from keras_ranking.serving.checking.worker_process import ExportError, run_worker
from keras_ranking.serving.protocol.model_folder import (
    ENCODE,
    EXPLORE,
    EXTEND,
    FEATURES,
    HISTORY_LENGTH,
    INVALID_SCORE,
    RAW,
    SCORE,
    SIGNATURE,
    WEIGHTED,
)
from keras_ranking.serving.protocol.raw_values import encode_raw
from keras_ranking.utility import SCORE as SCORED, WEIGHT

Batch = dict[str, np.ndarray]
COMPOSED = f"{ENCODE}+{SCORE}"
_LENGTHS = (
    # (history lengths, candidate counts) of one batch each; L and N of the tensors follow from them.
    ((0, 1, 7, 20), (1, 5, 2, 9)),
    ((3,), (1,)),
    ((0, 0), (4, 1)),
    ((65, 64, 2), (33, 1, 32)),
)
_SPOILT = ((2, 2), (2, 1))  # lengths of a batch whose second request is invalid
_BEYOND = 2  # cells with invalid values after the longest request


def verify(
    model: Any,
    schema: Schema,
    signatures: Mapping[str, Mapping[str, Any]],
    target: Path,
    work: Path,
    bound: float,
    buckets: tuple[Sequence[int], Sequence[int]] = ((), ()),
    inside: bool = False,
) -> dict[str, Any]:
    """Compare the written graphs with the Keras model on every request alone.

    Args:
        signatures: name -> {"inputs", "outputs"}, as in `Card`.
        target, work: folder of the written version, and a folder for the cases.
        bound: largest difference of a score: absolute, and relative where the score is above 1, as that of a number may be.
        buckets: history and candidate lengths of a compiled graph; each pair is run once.
        inside: whether longer lists are an error.

    Raises:
        ExportError: a graph that does not run or differs, naming signature and output.
    """
    cases = work / "cases"
    cases.mkdir(exist_ok=True)
    lengths = _lengths(*buckets, inside)
    graphs = {SIGNATURE: model.serving_model}
    if EXPLORE in signatures:
        graphs[EXPLORE] = model.explore_model
    for signature, graph in graphs.items():
        inputs = signatures[signature]["inputs"]
        for number, (history, candidates) in enumerate(lengths):
            batch = random_requests(inputs, history, candidates, seed=number)
            expected = keras_scores(graph, batch, inputs)
            _save(cases, signature, number, batch, expected)
            if signature == SIGNATURE and ENCODE in signatures and number in (0, len(lengths) - 1):
                _save(cases, COMPOSED, number, batch, expected)
        batch = random_requests(inputs, *_SPOILT, seed=3, hostile=False)
        expected = _with_mark(keras_scores(graph, {name: values[:1] for name, values in batch.items()}, inputs))
        for number, invalid in enumerate(spoilt(batch, inputs), start=len(lengths)):
            for name in (signature, COMPOSED) if signature == SIGNATURE and ENCODE in signatures else (signature,):
                _save(cases, name, number, invalid, expected)
    if RAW in signatures:
        raw, serving = signatures[RAW]["inputs"], signatures[SIGNATURE]["inputs"]
        batch = random_raw(schema, raw, *lengths[0], seed=1, wild=False)
        _save(cases, RAW, 0, batch, keras_scores(model.serving_model, encode_raw(schema, raw, batch), serving))
        batch = random_raw(schema, raw, *_SPOILT, seed=3, wild=False)
        good = encode_raw(schema, raw, {name: values[:1] for name, values in batch.items()})
        expected = _with_mark(keras_scores(model.serving_model, good, serving))
        for number, invalid in enumerate(spoilt(batch, raw), start=1):
            _save(cases, RAW, number, invalid, expected)
        batch = random_raw(schema, raw, (0, 1, 40), (50, 1, 3), seed=2)
        _save(cases, FEATURES, 0, batch, encode_raw(schema, raw, batch))
    if EXTEND in signatures:
        _save_extended(model, signatures[SIGNATURE]["inputs"], cases)
    if WEIGHTED[SIGNATURE] in signatures:
        _save_weighted(model, schema, signatures, cases, lengths)
    run_worker("keras_ranking.serving.checking.verification_worker", [str(target), str(cases)], work)
    result = json.loads((cases / "result.json").read_text(encoding="utf-8"))
    if result["problems"]:
        raise ExportError(f"the written graph fails in a fresh process: {result['problems'][0]}")
    worst = max(result["worst"].values())
    if not worst <= bound:
        name = max(result["worst"], key=lambda output: float(result["worst"][output]))
        raise ExportError(f"the written graph's '{name}' differs from the Keras scores by {worst:.3g}, more than {bound:g}")
    return {"largest_difference": worst, "bound": bound, "requests": sum(len(history) for history, _ in lengths)}


def _save_extended(model: Any, inputs: Mapping[str, Any], cases: Path) -> None:
    """A case whose history is encoded in two parts."""
    # An encoder of requests keeps the latest `max_history` of the events that it is given at once.
    most = model.arguments["max_history"] if model.form == "requests" else 20
    whole, begun = (np.minimum(lengths, most) for lengths in ((0, 1, 7, 20, 9), (0, 0, 4, 13, 9)))
    candidates = (1, 5, 2, 9, 3)
    batch = random_requests(inputs, whole.tolist(), candidates, seed=5)
    first, later = {**batch, HISTORY_LENGTH: begun.astype(np.int32)}, {LATER + HISTORY_LENGTH: (whole - begun).astype(np.int32)}
    for name, spec in inputs.items():
        if spec["axis"] == "history":
            index = np.minimum(begun[:, None] + np.arange(int((whole - begun).max()) + 1), batch[name].shape[1] - 1)
            later[LATER + name] = batch[name][np.arange(len(whole))[:, None], index]
    _save(cases, f"{ENCODE}+{EXTEND}+{SCORE}", 0, {**first, **later}, keras_scores(model.serving_model, batch, inputs))


def _save_weighted(model: Any, schema: Schema, signatures: Mapping[str, Any], cases: Path, lengths: list[Any]) -> None:
    """Cases of the signatures with weights of the request."""
    serving = signatures[SIGNATURE]["inputs"]
    weights = {name: spec for name, spec in signatures[WEIGHTED[SIGNATURE]]["inputs"].items() if name not in serving}

    def expected(encoded: Batch, drawn: Batch) -> Batch:
        scores = keras_scores(model.serving_model, encoded, serving)
        return {**scores, SCORED: weighted_sum(scores, {name.removeprefix(WEIGHT): x[:, None] for name, x in drawn.items()})}

    for number in (0, len(lengths) - 1):
        history, candidates = lengths[number]
        batch, drawn = (random_requests(each, history, candidates, seed=number + at) for at, each in ((0, serving), (50, weights)))
        for name in [WEIGHTED[SIGNATURE]] + ([f"{ENCODE}+{WEIGHTED[SCORE]}"] if ENCODE in signatures else []):
            _save(cases, name, number, {**batch, **drawn}, expected(batch, drawn))
    history, candidates = _SPOILT
    batch = random_requests(serving, history, candidates, seed=3, hostile=False)
    drawn = random_requests(weights, history, candidates, seed=4)
    first = [{name: values[:1] for name, values in each.items()} for each in (batch, drawn)]
    drawn[next(iter(drawn))][-1] = np.nan
    _save(cases, WEIGHTED[SIGNATURE], len(lengths), {**batch, **drawn}, _with_mark(expected(first[0], first[1])))
    (history, candidates), raw = lengths[0], signatures[RAW]["inputs"]
    batch = random_raw(schema, raw, history, candidates, seed=1, wild=False)
    drawn = random_requests(weights, history, candidates, seed=51)
    _save(cases, WEIGHTED[RAW], 0, {**batch, **drawn}, expected(encode_raw(schema, raw, batch), drawn))


def _lengths(history: Sequence[int], candidates: Sequence[int], inside: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Lengths of the cases. Plain graph: fixed ones. Compiled graph: one batch per pair of buckets, and one beyond them."""
    if not candidates:
        return list(_LENGTHS)
    pairs = [(max(0, L - _BEYOND), max(1, N - _BEYOND)) for L in (history or (_BEYOND,)) for N in candidates]
    cases: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((L, min(L, 1)), (1, N)) for L, N in pairs]
    return cases if inside else [*cases, ((max(history or (0,)) + 1, 0), (max(candidates) + 1, 1))]


def keras_scores(graph: Any, batch: Batch, inputs: Mapping[str, Mapping[str, Any]]) -> Batch:
    """Scores of each request alone at its own lengths, padded with 0 to the width of the batch."""
    import keras

    width = max(values.shape[1] for name, values in batch.items() if inputs[name]["axis"] == "candidate")
    rows = []
    for row in range(len(next(iter(batch.values())))):
        scores = graph(alone(batch, inputs, row), training=False)
        arrays = {name: keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for name, value in scores.items()}
        rows.append(
            {
                name: np.pad(value, [(0, 0), (0, width - value.shape[1])] + [(0, 0)] * (value.ndim - 2)) if value.ndim > 1 else value
                for name, value in arrays.items()
            }
        )
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _with_mark(scores: Batch) -> Batch:
    """The scores, and a second request that is marked as invalid."""
    return {name: np.concatenate([values, np.full_like(values, INVALID_SCORE)]) for name, values in scores.items()}


def _save(cases: Path, signature: str, number: int, batch: Batch, expected: Batch) -> None:
    plain = {name: values.astype(np.bytes_) if values.dtype == object else values for name, values in batch.items()}
    np.savez(cases / f"in-{signature}-{number}.npz", **plain)  # type: ignore[arg-type, unused-ignore]
    np.savez(cases / f"out-{signature}-{number}.npz", **expected)  # type: ignore[arg-type, unused-ignore]
