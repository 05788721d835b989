"""Config files of TensorFlow Serving: model config with labels, batching parameters, monitoring, and the flags to start it.

The server checks the labels of a model config before it loads any of its versions: a config that moves a label to a version which is
not available yet is refused as a whole, and the server reads it again at the next poll. So the policy is `all`: the running config
already loads each new version, and the config with the moved label is accepted once that version is available. A policy that names
versions would never load it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_ranking.serving.protocol.model_folder import read_card, version_folders

CONFIG_FOLDER = "tf_serving"
MODELS, BATCHING, MONITORING, FLAGS = "models.config", "batching.config", "monitoring.config", "server_flags.txt"
STABLE, CANARY = "stable", "canary"
GRPC_THREADS = 64
_LABEL = re.compile(r'key:\s*"([^"]+)"\s*,?\s*value:\s*(\d+)')
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_BEFORE = re.compile(r"^# before: (.+) (\d+)$", re.MULTILINE)
_POLICY = re.compile(r"model_version_policy\s*:?\s*\{(?:[^{}]|\{[^{}]*\})*\}")
_NAME = re.compile(r'\bname:\s*"([^"]+)"')
_MODEL = re.compile(r"\bconfig\s*:?\s*\{")


@dataclass(frozen=True)
class Labels:
    """The labels in a model config.

    Attributes:
        now: label -> version.
        before: label -> the version that it had before its last move, for a rollback.
    """

    now: dict[str, int]
    before: dict[str, int]

    def moved(self, label: str, version: int) -> Labels:
        """The labels with one of them at another version."""
        old = self.now.get(label, version)
        before = self.before if old == version else {**self.before, label: old}
        return Labels({**self.now, label: version}, before)


def texts(
    folder: Path, number: int, flags: Sequence[str], batch_sizes: Sequence[int], server_batching: str | None = None
) -> dict[str, str]:
    """Config files of a served model whose newest version is `number`.

    The label `canary` is the new version; other labels keep their version while that exists. `stable` is the new one otherwise.

    Args:
        folder: the served model, mounted as `/models/<its name>`.
        number: the new version.
        flags: server flags of the new version.
        batch_sizes: sizes to which batches are padded, ascending.
        server_batching: whether the flags turn on batching in the server: None, 'equal_lengths' or 'padded'.
    """
    name = folder.resolve().name
    present = {*version_folders(folder), number}
    old = read_labels(folder)
    kept = Labels({label: version for label, version in old.now.items() if version in present - {number}}, old.before)
    kept = kept if STABLE in kept.now else kept.moved(STABLE, number)
    needed = list(dict.fromkeys([*flags, *(flag for held in sorted(present - {number}) for flag in _flags_of(folder / str(held)))]))
    place = f"/models/{name}/{CONFIG_FOLDER}"
    batching = [] if server_batching is None else ["--enable_batching=true", f"--batching_parameters_file={place}/{BATCHING}"]
    return {
        MODELS: models_text(name, kept.moved(CANARY, number)),
        BATCHING: _batching_text(batch_sizes, padded=server_batching == "padded"),
        MONITORING: 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n',
        FLAGS: "\n".join(
            [
                f"--model_config_file={place}/{MODELS}",
                "--model_config_file_poll_wait_seconds=10",
                "--allow_version_labels_for_unavailable_models=true",
                f"--monitoring_config_file={place}/{MONITORING}",
                f"--grpc_max_threads={GRPC_THREADS}",
                *batching,
                *needed,
            ]
        )
        + "\n",
    }


def models_text(name: str, labels: Labels) -> str:
    """The model config: every version of the folder, and the labels."""
    order = sorted(labels.now, key=lambda label: (label != STABLE, label != CANARY, label))
    before = "".join(f"# before: {label} {version}\n" for label, version in sorted(labels.before.items()) if label in labels.now)
    return (
        f"{before}model_config_list {{\n  config {{\n"
        f'    name: "{name}"\n    base_path: "/models/{name}"\n    model_platform: "tensorflow"\n'
        "    model_version_policy { all {} }\n"
        + "".join(f'    version_labels {{ key: "{label}" value: {labels.now[label]} }}\n' for label in order)
        + "  }\n}\n"
    )


def _batching_text(batch_sizes: Sequence[int], padded: bool) -> str:
    lengths = (
        "# Calls of different lengths are padded. One call with an input of a wrong rank stops the server: only for trusted callers.\n"
        if padded
        else "# Only calls with equally long lists can share a batch: calls of different lengths that arrive together fail.\n"
    )
    return (
        lengths
        + f"max_batch_size {{ value: {max(batch_sizes)} }}\n"
        + "".join(f"allowed_batch_sizes: {size}\n" for size in batch_sizes)
        + "batch_timeout_micros { value: 1000 }\nmax_enqueued_batches { value: 64 }\nnum_batch_threads { value: 2 }\n"
        + f"pad_variable_length_inputs: {str(padded).lower()}\n"
    )


def read_labels(folder: Path) -> Labels:
    """The labels in the model config of a served model; none without a config.

    Raises:
        ValueError: labels in another form than `export` writes, which would be lost when the config is written again.
    """
    path = folder / CONFIG_FOLDER / MODELS
    if not path.is_file():
        return Labels({}, {})
    text = path.read_text(encoding="utf-8")
    found = _LABEL.findall(_COMMENT.sub("", text))
    if len(found) != (count := _COMMENT.sub("", text).count("version_labels")):
        raise ValueError(f'{path} must have its labels as `version_labels {{ key: "stable" value: 1 }}`. {count - len(found)} differ')
    return Labels({label: int(version) for label, version in found}, {label: int(version) for label, version in _BEFORE.findall(text)})


def write_models(folder: Path, labels: Labels) -> None:
    """Replace the model config atomically.

    Raises:
        FileNotFoundError: a folder that `export` did not write.
        ValueError: a config of several models, or with settings that `export` does not write: they would be lost.
    """
    path = folder / CONFIG_FOLDER / MODELS
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG_FOLDER}/{MODELS} in '{folder}': `keras-ranking export` writes it")
    old = path.read_text(encoding="utf-8")
    models = len(_MODEL.findall(old))
    if models != 1:
        raise ValueError(f"{path} must hold one model. Received: {models}; edit its labels by hand")
    name = _NAME.search(old)
    text = models_text(name.group(1) if name else folder.resolve().name, labels)  # the folder may be mounted under another name
    if _settings(old) != _settings(text):
        raise ValueError(f"{path} has other settings than `keras-ranking export` writes, which would be lost: edit its labels by hand")
    with tempfile.TemporaryDirectory(prefix=".labels-", dir=folder) as work:
        install(stage(Path(work), {MODELS: text}), folder)


def _settings(text: str) -> str:
    """A model config without labels, policy, comments and spaces."""
    for part in (_COMMENT, _LABEL, _POLICY):
        text = part.sub("", text)
    return re.sub(r"version_labels\s*:?\s*\{\s*\}|\s", "", text)


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
