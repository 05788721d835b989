"""The folder of a served model: integer-named versions, and the further files of this package.

folder/3/saved_model.pb, variables/          the graph, as TensorFlow Serving reads it
folder/3/assets.extra/schema.json            the Schema the model was trained with
folder/3/assets.extra/keras_ranking.json     `Card`: description of this version
folder/3/assets.extra/model_card.json, .md   for people: data, metrics, sizes, versions of software
folder/3/assets.extra/tf_serving_warmup_requests   requests that a server runs before the version takes traffic
folder/tf_serving/                           model, batching and monitoring config and flags for TensorFlow Serving
folder/.export-*                             staging directory of a running or killed export
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EXTRA = "assets.extra"
SCHEMA_FILE = "schema.json"
CARD_FILE = "keras_ranking.json"
FORMAT = 1
SIGNATURE = "serving_default"
EXPLORE = "explore"
RAW = "raw"
FEATURES = "raw_features"
ENCODE = "encode_history"
SCORE = "score_candidates"
EXTEND = "extend_history"
WEIGHTED = {SIGNATURE: "weighted", RAW: "raw_weighted", SCORE: "score_candidates_weighted"}
"""Signatures with weights of the request for `score`, by the one without: in a version with a utility."""
RAW_VALUES = (RAW, WEIGHTED[RAW])
"""Signatures on values of the log that give scores."""
CACHE = "cache_"
"""Prefix of the outputs of `encode_history` and `extend_history`, which are inputs of `score_candidates` and `extend_history`."""
CACHE_LENGTH, CACHE_TIME = "cache_length", "cache_time"
INVALID_SCORE = -1.0
"""Every score of a request that the graph cannot score: no probability has this value."""
INVALID_CACHE = -3.4028234663852886e38
"""Every float of the cache of a history that the graph cannot read: the lowest float32."""
WARMUP_FILE = "tf_serving_warmup_requests"
HISTORY_LENGTH = "history_length"
CANDIDATE_COUNT = "candidate_count"
SESSIONS = ("history_session", "request_session")
"""Inputs with ids of sessions: their values tell which events are of one session, and nothing else."""
MEMBER = "member_"
"""Prefix of inputs with columns of the member (known='member'): one value a request."""
AXES = {"history": HISTORY_LENGTH, "candidate": CANDIDATE_COUNT}
"""Axes of variable length of the serving tensors, and the input with the counted length."""


@dataclass(frozen=True)
class Card:
    """Description of an exported version.

    Args:
        model: class or name of the Keras model.
        schema_digest: `Schema.digest`.
        tasks: names of the tasks it scores, in schema order.
        boundaries: upper bounds of the position towers; () = one tower.
        compute_dtype: data type of the trunk; outputs are always float32.
        inputs, outputs: of `serving_default`: name -> {"dtype", "shape" (None = free), "axis" ('history' or 'candidate': meaning of
            axis 1), "rows" (of ids and categories: values must be in 0 .. rows-1)}; an input with sets of ids has "sets": true, and -1 in
            places without an id.
        packages: package -> version, of the process that wrote the graph.
        verified: result of the verification: largest absolute difference to the Keras scores, its bound, and the number of requests.
        created: UTC time of the export, ISO 8601.
        quantized: whether embedding tables are in int8.
        signatures: signature -> {"inputs", "outputs"} of every signature, in the same form; an input of `raw` that takes NaN for a
            missing number has "missing": true, and places without an id of one with "sets" hold an empty text.
        through: 'tensorflow', or 'jax' for a graph that holds a program compiled by JAX.
        xla: whether the graph needs a server with XLA.
        precision: data type of matrix products.
        history_buckets, candidate_buckets: lengths of the compiled parts; empty for a plain graph.
        server_flags: flags without which TensorFlow Serving does not run this version.
        utility: weights of the output `score`, by task; empty: there is none.
        format: version of this layout.
    """

    model: str
    schema_digest: str
    tasks: list[str]
    boundaries: list[int]
    compute_dtype: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    packages: dict[str, str]
    verified: dict[str, Any] | None = None
    created: str = ""
    quantized: bool = False
    signatures: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    through: str = "tensorflow"
    xla: bool = False
    precision: str = "float32"
    history_buckets: list[int] = field(default_factory=list)
    candidate_buckets: list[int] = field(default_factory=list)
    server_flags: list[str] = field(default_factory=list)
    utility: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, version: Path) -> None:
        """Write the card into `version/assets.extra/`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (version / EXTRA / CARD_FILE).write_text(text, encoding="utf-8")


def read_card(version: Path) -> Card | None:
    """The card of a version, or None for a SavedModel of another program.

    Raises:
        ValueError: a card that cannot be read or has another format.
    """
    path = version / EXTRA / CARD_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(f"its format must be {FORMAT}")
        return Card(**content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def axis_of(name: str, shape: tuple[int | None, ...]) -> str | None:
    """Meaning of axis 1 of an input: 'history', 'candidate', or None for one value per request."""
    if len(shape) < 2 or name in AXES.values():
        return None
    for axis in AXES:
        if name.startswith(f"{axis}_"):
            return axis
    return None


def column_name(name: str, axis: str | None) -> str:
    """The column of an input: 'item_id' of 'candidate_item_id', 'country' of 'member_country'."""
    return name.removeprefix(f"{axis}_") if axis else name.removeprefix(MEMBER)


def version_folders(folder: Path) -> dict[int, Path]:
    """Version number -> directory, ascending: folders whose name is an integer, as in TensorFlow Serving."""
    if not folder.is_dir():
        return {}
    entries = [entry for entry in folder.iterdir() if entry.name.isascii() and entry.name.isdigit() and entry.is_dir()]
    return {int(entry.name): entry for entry in sorted(entries, key=lambda entry: int(entry.name))}
