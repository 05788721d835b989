"""Config files of TensorFlow Serving: batching parameters, model config with labels, monitoring, and the flags to start it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from keras_ranking.serving.protocol.model_folder import read_card, version_folders

CONFIG_FOLDER = "tf_serving"
MODELS, BATCHING, MONITORING, FLAGS = "models.config", "batching.config", "monitoring.config", "server_flags.txt"
_LABEL = re.compile(r'key:\s*"(\w+)"\s*value:\s*(\d+)')


def texts(folder: Path, number: int, flags: Sequence[str], batch_sizes: Sequence[int]) -> dict[str, str]:
    """Config files of a served model whose newest version is `number`.

    The label `canary` is the new version; `stable` keeps its version while that exists, and is the new one otherwise.

    Args:
        folder: the served model, mounted as `/models/<its name>`.
        number: the new version.
        flags: server flags of the new version.
        batch_sizes: sizes to which batches are padded, ascending.
    """
    name = folder.resolve().name
    present = [version for version in version_folders(folder) if version != number]
    stable = labels(folder).get("stable", number)
    stable = stable if stable in present else number
    versions = sorted({stable, number})
    needed = list(dict.fromkeys([*flags, *(flag for held in present for flag in _flags_of(folder / str(held)))]))
    place = f"/models/{name}/{CONFIG_FOLDER}"
    return {
        MODELS: "model_config_list {\n  config {\n"
        f'    name: "{name}"\n    base_path: "/models/{name}"\n    model_platform: "tensorflow"\n'
        f"    model_version_policy {{ specific {{ {' '.join(f'versions: {version}' for version in versions)} }} }}\n"
        f'    version_labels {{ key: "stable" value: {stable} }}\n'
        f'    version_labels {{ key: "canary" value: {number} }}\n'
        "  }\n}\n",
        BATCHING: "# Calls of different lengths are padded with an arbitrary element: models read nothing beyond the stated lengths.\n"
        f"max_batch_size {{ value: {max(batch_sizes)} }}\n"
        + "".join(f"allowed_batch_sizes: {size}\n" for size in batch_sizes)
        + "batch_timeout_micros { value: 1000 }\nmax_enqueued_batches { value: 64 }\nnum_batch_threads { value: 2 }\n"
        "pad_variable_length_inputs: true\n",
        MONITORING: 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n',
        FLAGS: "\n".join(
            [
                f"--model_config_file={place}/{MODELS}",
                "--model_config_file_poll_wait_seconds=10",
                "--allow_version_labels_for_unavailable_models=true",
                f"--monitoring_config_file={place}/{MONITORING}",
                "--enable_batching=true",
                f"--batching_parameters_file={place}/{BATCHING}",
                *needed,
            ]
        )
        + "\n",
    }


def labels(folder: Path) -> dict[str, int]:
    """Label -> version, from the model config of a served model; empty without a config."""
    path = folder / CONFIG_FOLDER / MODELS
    if not path.is_file():
        return {}
    return {label: int(version) for label, version in _LABEL.findall(path.read_text(encoding="utf-8"))}


def stage(work: Path, files: dict[str, str]) -> Path:
    """Write the files into a folder on the same disk, from which they can be moved."""
    place = work / CONFIG_FOLDER
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        with open(place / name, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    return place


def install(staged: Path, folder: Path) -> None:
    """Move each file atomically to its place."""
    place = folder / CONFIG_FOLDER
    place.mkdir(exist_ok=True)
    for path in sorted(staged.iterdir()):
        os.replace(path, place / path.name)


def _flags_of(version: Path) -> list[str]:
    try:
        card = read_card(version)
    except ValueError:
        return []
    return card.server_flags if card else []
