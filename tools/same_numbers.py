"""Show that a change alters no number: train every model for a few steps at a fixed seed on every backend, and compare to the bit.

    python tools/same_numbers.py write FOLDER            train on the three backends; weights, scores and model files go to FOLDER
    python tools/same_numbers.py compare BEFORE AFTER    equal to the bit? and do the model files of BEFORE load here with its scores?

`write` trains the code of the checkout that holds the script. For an older commit, run it in a worktree of that commit:

    git worktree add ../before COMMIT
    cp tools/same_numbers.py ../before/tools/
    (cd ../before && python tools/same_numbers.py write ../before_numbers)
    python tools/same_numbers.py write ../after_numbers
    python tools/same_numbers.py compare ../before_numbers ../after_numbers

Both sides have to run on the same machine with the same versions. `compare` ends with exit code 1 where any bit differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
STEPS = 4
SEED = 11
TRUNK = {"dim": 16, "num_layers": 2, "num_heads": 2, "id_dim": 4}
# Every fusion, layout, head and option that has layers of its own, in as few models as hold them.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cadet": ("CADET", {**TRUNK, "dropout": 0.1}),
    "cadet_value": ("CADET", {**TRUNK, "layout": "value", "calibration": True, "residual": "scalar", "rotate_by": "split"}),
    "feedsr": ("FeedSR", {**TRUNK, "max_history": 6}),
    "feedsr_fused": ("FeedSR", {**TRUNK, "layout": "fused", "mask": "session", "gates": "all", "head": "mmoe", "residual": "dense_gate"}),
    "lirank": ("LiRank", {"hidden": (16, 16), "rank": 4, "id_dim": 4, "max_history": 8}),
    "lirank_ads": ("LiRank", {"preset": "ads", "hidden": (16, 16), "rank": 4, "id_dim": 4, "max_history": 8, "dropout": 0.1}),
    "amortized": ("AmortizedDLRM", {"hidden": (16,), "rank": 4, "dim": 16, "id_dim": 4, "max_history": 8, "pool": True, "latest": 2}),
    "amortized_causal": ("AmortizedDLRM", {"hidden": (16,), "rank": 4, "dim": 16, "fusion": "append_falcon", "history_mask": "causal"}),
    "ligr": ("LiGR", {**TRUNK, "max_history": 8, "top_k": 4}),
}


def train(folder: Path) -> None:
    """Train the models on this process's backend, and write weights, scores, model files and, on TensorFlow, an export."""
    import keras
    import numpy as np

    import keras_ranking as kr

    log = kr.data.simulate(members=24, days=3, seed=3, feedback_delay=60)
    schema = log.schema.fit(log.events)
    sequences = kr.data.build_sequences(log.events, schema)
    served = kr.data.requests(sequences)
    which = np.arange(0, len(served.candidate_begin), 7)[:24]
    for name, (builder, arguments) in MODELS.items():
        keras.utils.set_random_seed(SEED)
        model = getattr(kr.models, builder)(schema, **arguments)
        if model.form == "rows":
            dataset: Any = kr.data.PackedDataset(
                kr.data.pack(sequences, 64), 4, inputs=model.input_columns, tasks=model.tasks, shuffle=True, seed=SEED
            )
        else:
            found = kr.training.model_requests(model, sequences)
            dataset = kr.data.PackedRequests(found, 64, 4, tasks=model.tasks, names=model.input_columns, shuffle=True, seed=SEED)
        model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss=model.losses_by_task(pairwise_weight=0.1, window=16))
        losses = [model.train_on_batch(*dataset[step]) for step in range(STEPS)]
        source = served if model.form == "rows" else kr.training.model_requests(model, sequences)
        asked = source.tensors(which, list(model.serving_model.input))
        scores = model.serving_model(asked)
        rows = model(dataset[0][0], training=False)
        arrays = {f"loss_{step}": np.asarray(loss) for step, loss in enumerate(losses)}
        arrays |= {f"weight_{variable.path}": keras.ops.convert_to_numpy(variable.value) for variable in model.variables}
        arrays |= {f"score_{output}": keras.ops.convert_to_numpy(value) for output, value in scores.items()}
        arrays |= {f"row_{task}": keras.ops.convert_to_numpy(value) for task, value in rows.items()}
        np.savez(folder / f"{name}.npz", **arrays)
        np.savez(folder / f"{name}.asked.npz", **asked)
        model.save(folder / f"{name}.keras")
        if keras.backend.backend() == "tensorflow" and name in ("cadet", "ligr"):
            kr.serving.export(model, folder / f"{name}_export")


def load(folder: Path, out: Path) -> None:
    """Load the model files and exports of `folder` in this checkout and write their scores to `out`."""
    import keras
    import numpy as np

    import keras_ranking as kr

    for name in MODELS:
        model = kr.models.load(folder / f"{name}.keras")
        asked = dict(np.load(folder / f"{name}.asked.npz"))
        scores = {f"score_{key}": keras.ops.convert_to_numpy(value) for key, value in model.serving_model(asked).items()}
        if (folder / f"{name}_export").is_dir():
            scores |= {f"served_{key}": value for key, value in _served(folder / f"{name}_export", model.schema, asked).items()}
        np.savez(out / f"{name}.npz", **scores)


def _served(export: Path, schema: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What the embedded server answers from an export."""
    import numpy as np

    from keras_ranking.serving import Client, serve

    with serve(export, rest_port=0, grpc_port=0) as server, Client(f"127.0.0.1:{server.grpc_port}", schema, model=export.name) as client:
        return {name: np.asarray(value) for name, value in client.predict(asked).items()}


def in_process(backend: str, *arguments: str) -> None:
    """Run this file again on another backend, with the package of the checkout it stands in."""
    root = str(Path(__file__).resolve().parents[1])
    # One thread: the order in which threads add up is not the same twice.
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": root}
    subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


def differences(before: Path, after: Path, only: str = "") -> list[str]:
    """Arrays of two folders that are not equal to the bit, or stand in one of them alone."""
    import numpy as np

    found = []
    for name in MODELS:
        first, second = (dict(np.load(folder / f"{name}.npz")) for folder in (before, after))
        names = [key for key in first if key.startswith(only)]
        found += [f"{name}: {key} is missing" for key in names if key not in second]
        found += [f"{name}: {key} is new" for key in second if key.startswith(only) and key not in first]
        for key in names:
            if key in second and (first[key].dtype != second[key].dtype or first[key].tobytes() != second[key].tobytes()):
                found.append(f"{name}: {key} differs")
    return found


def compare(before: Path, after: Path) -> int:
    failed = 0
    for backend in BACKENDS:
        found = differences(before / backend, after / backend)
        with tempfile.TemporaryDirectory() as scratch:
            in_process(backend, "load", str(before / backend), scratch)
            found += [f"{line} (loaded from the file of before)" for line in differences(before / backend, Path(scratch), only="score_")]
        print(json.dumps({"backend": backend, "models": len(MODELS), "differences": found}))
        failed |= bool(found)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "compare", "train", "load"), help="`train` and `load` are for the tool's own processes")
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    if given.what == "train":
        train(given.folders[0])
    elif given.what == "load":
        load(*given.folders)
    elif given.what == "compare":
        return compare(*given.folders)
    else:
        for backend in BACKENDS:
            folder = given.folders[0] / backend
            folder.mkdir(parents=True, exist_ok=True)
            in_process(backend, "train", str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
