"""Warm-up requests of a version, run before it takes traffic, as in TensorFlow Serving."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.protocol import codec, protos
from keras_ranking.serving.protocol.model_folder import EXTRA

WARMUP = "tf_serving_warmup_requests"
MOST = 1000


def run_warmup(model: SavedModel, version: Path) -> int:
    """Run the records of `assets.extra/tf_serving_warmup_requests`, if a version has it; returns their number.

    Only Predict records are run. As in TensorFlow Serving, one failing record fails the version.

    Raises:
        ValueError: more than 1,000 records, or one that fails.
    """
    path = version / EXTRA / WARMUP
    if not path.is_file():
        return 0
    count = 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        count += 1
        if count > MOST:
            raise ValueError(f"its warm-up file has more than {MOST} records")
        entry = protos.PredictionLog.FromString(record)
        if not entry.HasField("predict_log"):
            continue
        request = entry.predict_log.request
        try:
            signature = model.signature(request.model_spec.signature_name)
            inputs = codec.read_tensors(request.inputs)
            signature.check(inputs)
            model.run(signature.name, inputs)
        except Exception as error:
            raise ValueError(f"its warm-up request {count} fails: {error}") from error
    return count
