"""Warm-up requests, which a server runs before a version takes traffic: no member waits for the first run or a compilation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.schema import Schema
from keras_ranking.serving.checking.sample_requests import random_raw, random_requests
from keras_ranking.serving.protocol.model_folder import (
    CACHE,
    ENCODE,
    EXTEND,
    EXTRA,
    FEATURES,
    RAW_VALUES,
    SCHEMA_FILE,
    SCORE,
    SIGNATURE,
    WARMUP_FILE,
    WEIGHTED,
    Card,
    read_card,
)

MOST = 1000  # TensorFlow Serving does not load a version with more
Batch = dict[str, np.ndarray]
Requests = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
_LENGTHS = (20, 10)  # history and candidates of a record where the graph has no fixed lengths


def write_warmup(version: str | Path, requests: Requests | None = None, name: str | None = None) -> Path:
    """Write the warm-up file of an exported version, with one record for each signature and pair of bucket lengths.

    `export` does this; call it again to warm up with other requests.

    Args:
        version: folder of the version.
        requests: signature -> batches of its inputs, such as `pad_requests` makes. None: random ones for every signature; for a
            compiled export one for each pair of lengths.
        name: of the served model; None: the name of the folder of the version. Servers do not check it.

    Returns:
        Path of the file.

    Raises:
        ValueError: a version that this package did not write, an unknown signature, a missing input, no record or more than 1,000. A
            server does not load a version if one record fails.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> names = list(model.serving_model.input)
        >>> batch = kr.data.requests(log.events, schema, max_history=0).tensors([0, 1], names)
        >>> kr.serving.write_warmup(version, {"serving_default": [batch]}).name
        'tf_serving_warmup_requests'
    """
    import tensorflow as tf
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    version = Path(version)
    card = read_card(version)
    if card is None or not card.signatures:
        raise ValueError(f"'{version}' was not written by `export`: it has no card.")
    chosen = requests if requests is not None else random_batches(version, card, lambda histories: _caches(version, histories))
    records = [(signature, batch) for signature, batches in chosen.items() for batch in batches]
    if not 0 < len(records) <= MOST:
        raise ValueError(f"`requests` must hold 1 to {MOST} batches. Received: {len(records)}")
    for signature, batch in records:
        if signature not in card.signatures:
            raise ValueError(f"unknown signature '{signature}'. The version has: {sorted(card.signatures)}")
        wanted = card.signatures[signature]["inputs"]
        if sorted(batch) != sorted(wanted):
            raise ValueError(f"inputs of '{signature}' must be {sorted(wanted)}. Received: {sorted(batch)}")
    path = version / EXTRA / WARMUP_FILE
    model = model_pb2.ModelSpec(name=name or version.resolve().parent.name)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, batch in records:
            request = predict_pb2.PredictRequest(model_spec=model)
            request.model_spec.signature_name = signature
            for key, values in batch.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(values, dtype=card.signatures[signature]["inputs"][key]["dtype"]))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return path


def random_batches(version: Path, card: Card, encode: Callable[[list[Batch]], list[Batch]]) -> dict[str, list[Batch]]:
    """Random batches of inputs by signature; `encode` computes the caches of histories, as `encode_history` of the version does."""
    schema = Schema.load(version / EXTRA / SCHEMA_FILE)
    pairs = list(itertools.product(card.history_buckets or _LENGTHS[:1], card.candidate_buckets or _LENGTHS[1:]))
    out: dict[str, list[Batch]] = {}
    for signature, tensors in card.signatures.items():
        inputs = {name: spec for name, spec in tensors["inputs"].items() if not name.startswith(CACHE)}
        batches = []
        raw = signature in (FEATURES, *RAW_VALUES)
        for history, candidates in pairs[:1] if raw else pairs:
            if raw:
                batch = random_raw(schema, inputs, [history], [candidates], wild=False)
            else:
                batch = random_requests(inputs, [history], [candidates], hostile=False)
            batches.append(_exact(batch, inputs, {"history": history, "candidate": candidates}))
        out[signature] = batches
    if ENCODE in out and SCORE in out:
        # `score_candidates` needs a cache, which comes from the batches of `encode_history`.
        caches = encode(out[ENCODE])
        for name in (SCORE, WEIGHTED[SCORE], EXTEND):
            if name in out:
                out[name] = [{**batch, **cache} for batch, cache in zip(out[name], caches, strict=True)]
        out[ENCODE] = out[ENCODE][:: len(card.candidate_buckets) or 1]
    return {name: out[name] for name in sorted(out, key=lambda key: key != SIGNATURE)}


def _exact(batch: Batch, inputs: Mapping[str, Mapping[str, Any]], lengths: Mapping[str, int]) -> Batch:
    """The batch without padding: lists as long as their bucket."""
    return {
        name: values if inputs[name]["axis"] is None else values[:, : lengths[str(inputs[name]["axis"])]] for name, values in batch.items()
    }


def _caches(version: Path, histories: list[Batch]) -> list[Batch]:
    from keras_ranking.serving.checking.saved_model import SavedModel

    model = SavedModel(version)
    try:
        return [model.run(ENCODE, batch) for batch in histories]
    finally:
        model.close()
