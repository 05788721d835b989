"""Verification of an export in a separate process: scores of the SavedModel on disk are compared with those of Keras.

    python -m keras_ranking.serving.checking.verification_worker VERSION_FOLDER CASES_FOLDER

Runs the graph in a V1 session, as TensorFlow Serving does: a SavedModel with untracked variables loads in Python and fails only
there. Writes CASES_FOLDER/result.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.serving.protocol.model_folder import EXTEND

Batch = dict[str, np.ndarray]
LATER = "later_"  # prefix of the events by which a case extends its history


def check(version: Path, cases: Path) -> dict[str, Any]:
    """Largest absolute difference per output, over all `in-*.npz` with their `out-*.npz`."""
    from keras_ranking.serving.checking.saved_model import SavedModel
    from keras_ranking.serving.protocol.model_folder import FEATURES, SIGNATURE

    model = SavedModel(version)
    worst: dict[str, float] = {}
    problems = []
    for path in sorted(cases.glob("in-*.npz")):
        inputs = _load(path)
        expected = _load(path.with_name(path.name.replace("in-", "out-")))
        signature = path.stem.split("-")[1]
        got = _run(model, signature, inputs)
        where = "" if signature == SIGNATURE else f"{signature} "
        if sorted(got) != sorted(expected):
            problems.append(f"outputs are {sorted(got)}, expected {sorted(expected)}")
            continue
        for name, values in expected.items():
            if got[name].shape != values.shape or got[name].dtype != values.dtype:
                received = f"{got[name].dtype}{got[name].shape}, expected {values.dtype}{values.shape}"
                problems.append(f"output '{where}{name}' is {received}")
            elif not np.isfinite(got[name]).all():
                problems.append(f"output '{where}{name}' is not finite")
            elif signature == FEATURES:
                differ = got[name].view(np.int32) != values.view(np.int32)
                if differ.any():
                    problems.append(f"'{name}' is not encoded as the schema does: {int(differ.sum())} of {differ.size} values differ")
            else:
                key = f"{where}{name}"
                worst[key] = max(
                    worst.get(key, 0.0), float((np.abs(got[name] - values) / np.maximum(1.0, np.abs(values))).max(initial=0.0))
                )
    return {"worst": worst, "problems": problems}


def _load(path: Path) -> Batch:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {name: values.astype(object) if values.dtype.kind == "S" else values for name, values in arrays.items()}


def _run(model: Any, signature: str, inputs: Batch) -> Batch:
    """Run a signature; of two separated by '+', the second on the outputs of the first."""
    result: Batch = {}
    for name in signature.split("+"):
        later = {key: inputs[LATER + key] for key in model.signature(name).inputs if name == EXTEND and LATER + key in inputs}
        given = {**inputs, **later, **result}
        result = dict(model.run(name, {key: given[key] for key in model.signature(name).inputs}))
        if bad := [key for key, values in result.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]:
            raise ValueError(f"output '{bad[0]}' of '{name}' is not finite")
    return result


def main(arguments: list[str]) -> int:
    """Entry point. Returns 0; differences and errors are in result.json."""
    version, cases = map(Path, arguments)
    try:
        result = check(version, cases)
    except Exception as error:
        result = {"worst": {}, "problems": [f"the graph does not run: {' '.join(str(error).split())[:600]}"]}
    (cases / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
