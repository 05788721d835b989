"""The gate of `export`, in a process of its own: does the SavedModel on disk give the Keras scores?

    python -m keras_ranking.serving._check_worker VERSION_FOLDER CASES_FOLDER

Runs the graph through a V1 session, as TensorFlow Serving does; a SavedModel whose variables belong to nobody loads in
Python all the same and fails only there. Writes CASES_FOLDER/result.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def check(version: Path, cases: Path) -> dict[str, Any]:
    """Largest absolute difference per output, over all `in-*.npz` with their `out-*.npz`."""
    from keras_ranking.serving.layout import SIGNATURE
    from keras_ranking.serving.saved_model import SavedModel

    model = SavedModel(version)
    worst: dict[str, float] = {}
    problems = []
    for path in sorted(cases.glob("in-*.npz")):
        with np.load(path) as file:
            inputs = {name: file[name] for name in file.files}
        with np.load(path.with_name(path.name.replace("in-", "out-"))) as file:
            expected = {name: file[name] for name in file.files}
        signature = path.stem.split("-")[1]
        got = model.run(signature, inputs)
        if sorted(got) != sorted(expected):
            problems.append(f"outputs are {sorted(got)}, expected {sorted(expected)}")
            continue
        for name, values in expected.items():
            if got[name].shape != values.shape or got[name].dtype != values.dtype:
                problems.append(f"output '{name}' is {got[name].dtype}{got[name].shape}, expected {values.dtype}{values.shape}")
            elif not np.isfinite(got[name]).all():
                problems.append(f"output '{name}' is not finite")
            else:
                key = name if signature == SIGNATURE else f"{signature} {name}"
                worst[key] = max(worst.get(key, 0.0), float(np.abs(got[name] - values).max(initial=0.0)))
    return {"worst": worst, "problems": problems}


def main(arguments: list[str]) -> int:
    """Entry point; 0 when the graph could be run, whatever the differences."""
    version, cases = map(Path, arguments)
    try:
        result = check(version, cases)
    except Exception as error:
        result = {"worst": {}, "problems": [f"the graph does not run: {' '.join(str(error).split())[:600]}"]}
    (cases / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
