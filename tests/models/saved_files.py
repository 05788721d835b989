"""A `.keras` file from its description: the text of its config, the places of its weights, and numbers drawn from those places.

The descriptions in `saved/` were written at commit 8f3bd04, before files moved into rooms and options into classes:

    python -m tests.models.saved_files write FOLDER     (with this file copied into a checkout of that commit)

A file that is made from a description is the file of that commit, byte for byte in its config and equal in its weights.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SMALL = {"dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cadet": ("CADET", {**SMALL, "tower_hidden": (4,), "action_hidden": 8}),
    "feedsr": ("FeedSR", {**SMALL, "layout": "fused", "action_hidden": 8, "position_offsets": 3, "serving_position": 2, "head": "mlp"}),
    "lirank": ("LiRank", {"hidden": (8,), "rank": 2, "id_dim": 4, "max_history": 6, "calibration": False}),
    "amortized": ("AmortizedDLRM", {"hidden": (8,), "rank": 2, "id_dim": 4, "dim": 8, "num_layers": 1, "max_history": 4, "latest": 1}),
    "ligr": ("LiGR", {**SMALL, "max_history": 4, "top_k": 2}),
}


def drawn(place: str, shape: list[int], scale: float = 0.3) -> np.ndarray:
    """Float32 numbers that depend on the place of a weight alone; vectors are positive, since some of them are variances."""
    values = np.random.default_rng(zlib.crc32(place.encode())).uniform(-scale, scale, shape)
    return (values if len(shape) > 1 else np.abs(values) + 0.2).astype("float32")


def make_file(description: Mapping[str, Any], path: Path) -> None:
    """Write the `.keras` file of a description."""
    weights = path.with_suffix(".h5")
    with h5py.File(weights, "w") as file:
        for place, (shape, dtype) in description["weights"].items():
            file[place] = drawn(place, shape).astype(dtype) if dtype.startswith("float") else np.zeros(shape, dtype)
        for place, attributes in description["attributes"].items():
            for name, value in attributes.items():
                file.require_group(place).attrs[name] = value
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", description["config"])
        archive.writestr("metadata.json", description["metadata"])
        archive.write(weights, "model.weights.h5")


def request(inputs: Mapping[str, tuple[list[int | None], str]]) -> dict[str, np.ndarray]:
    """Two requests for a serving graph: one with a history, one without."""
    sizes = {"history": 5, "candidate": 3}
    fixed = {
        "history_length": np.array([5, 0], "int32"),
        "candidate_count": np.array([3, 2], "int32"),
        "request_time": np.array([900_000, 900_000], "int32"),
        "history_time": np.tile(np.array([10, 4_000, 90_000, 180_000, 400_000], "int32"), (2, 1)),
    }
    found = {}
    for name, (shape, dtype) in inputs.items():
        whole = [2, *(sizes[name.split("_")[0]] if size is None else size for size in shape[1:])]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.integers(0, 3, whole) if dtype == "int32" else rng.uniform(-1, 1, whole)
        found[name] = fixed[name] if name in fixed else values.astype(dtype)
    return found


def scores(path: Path, inputs: Mapping[str, tuple[list[int | None], str]]) -> dict[str, list[Any]]:
    """What the model in a file answers to `request`."""
    import keras

    import keras_ranking as kr

    model = kr.models.load(path)
    out = model.serving_model(request(inputs))
    return {name: np.asarray(keras.ops.convert_to_numpy(value), "float64").round(7).tolist() for name, value in out.items()}


def describe(name: str, folder: Path) -> dict[str, Any]:
    """The description of a model as this checkout saves it."""
    import keras

    import keras_ranking as kr

    log = kr.data.simulate(members=10, days=2, seed=0)
    builder, arguments = MODELS[name]
    model = getattr(kr.models, builder)(log.schema.fit(log.events), **arguments)
    path = folder / f"{name}.keras"
    model.save(path)
    weights: dict[str, Any] = {}
    attributes: dict[str, Any] = {}

    def note(place: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            weights[place] = [list(item.shape), str(item.dtype)]
        elif item.attrs:
            attributes[place] = {key: str(value) for key, value in item.attrs.items()}

    with zipfile.ZipFile(path) as archive:
        config, metadata = (archive.read(part).decode() for part in ("config.json", "metadata.json"))
        archive.extract("model.weights.h5", folder)
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(note)
    inputs = {key: [list(x.shape), keras.backend.standardize_dtype(x.dtype)] for key, x in model.serving_model.input.items()}
    made = {"config": config, "metadata": metadata, "weights": weights, "attributes": attributes, "inputs": inputs}
    make_file(made, path)
    return {**made, "scores": scores(path, inputs)}


if __name__ == "__main__":
    target = Path(sys.argv[2])
    for model_name in MODELS:
        (target / f"{model_name}.json").write_text(json.dumps(describe(model_name, target)) + "\n")
