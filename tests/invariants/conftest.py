"""One small log and randomly weighted models of every family and layout: on which the invariants are tested."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, Requests, Sequences, build_sequences, pack, requests
from keras_ranking.ops import Spans
from keras_ranking.training.scoring.events import model_requests
from tests.member_columns import log_of


def before_a_release(*values: Any) -> Any:
    """A case that only `tools/test --all` runs."""
    return pytest.param(*values, marks=pytest.mark.release)


# Numbers of items, of contexts and of actions have bins.
NUMBERS = {"bins": ("age_hours", "item_views_24h", "dwell_seconds"), "number_embedding": "piecewise_linear", "number_width": 3}
PAST = {"past_heads": 2, "past_linear": 1, "past_matches": ("topic",), "past_dim": 4, "past_logit": True}
# Each item has tags, ids among which there may be none; the request has items bought before, in the table of the items.
SETS = {"sets": True}
# The member has columns of each kind, which a request has once.
MEMBERS = {"members": True}
LIGR = {"builder": "LiGR", "setwise_layers": 0, "dim": 16, "num_heads": 2, "id_dim": 4, "max_history": 8, "delay": 120, "tasks": ("click",)}
MODELS: dict[str, dict[str, Any]] = {
    "cadet": {**MEMBERS},
    "cadet_grouped_heads": {
        **SETS,
        **MEMBERS,
        "num_kv_heads": 1,
        "gates": ("representation", "query", "key", "output"),
        "delay": 900,
        "tower_boundaries": (),
    },
    "lirank": {
        **SETS,
        **MEMBERS,
        "builder": "LiRank",
        "hidden": (12, 12),
        "rank": 4,
        "id_dim": 4,
        "max_history": 8,
        "history_options": {"rotary": (8.0, 15_552_000.0), "latest": 2},
        "delay": 120,
        "tasks": ("click",),
        "calibration_features": ("topic",),
        "calibration_options": {"step": 0.5},
        "shared_tables": {"topics": ("topic",)},
    },
    "amortized": {
        **MEMBERS,
        "builder": "AmortizedDLRM",
        "hidden": (12, 12),
        "rank": 4,
        "dim": 16,
        "id_dim": 4,
        "max_history": 8,
        "pool": True,
        "latest": 2,
        "delay": 120,
        "tasks": ("click",),
    },
    "amortized_falcon": {
        "builder": "AmortizedDLRM",
        "fusion": "append_falcon",
        "history_mask": "causal",
        "hidden": (12,),
        "rank": 4,
        "dim": 16,
        "id_dim": 4,
        "max_history": 1000,
        "delay": 120,
        "tasks": ("click",),
    },
    "amortized_convolution": {
        "builder": "AmortizedDLRM",
        "fusion": "convolution",
        "pool": True,
        "hidden": (12,),
        "rank": 4,
        "dim": 8,
        "id_dim": 4,
        "max_history": 8,
        "delay": 120,
        "tasks": ("click",),
    },
    "ligr": {**LIGR, **MEMBERS, "max_history": 1000},
    "feedsr": {**MEMBERS, "builder": "FeedSR", "position_offsets": 3, "serving_position": 2, "head_options": {"hidden": (8,)}},
    "feedsr_fused_session": {
        "builder": "FeedSR",
        "layout": "fused",
        "mask": "session",
        "head": "mmoe",
        "head_options": {"hidden": (8,), "num_experts": 2, "gate_dropout": 0.0},
        "groups": {"passive": ["click"], "active": ["like"]},
        "residual": "dense_gate",
        "position_offsets": 0,
    },
    "cadet_numbers": {**NUMBERS, "number_plain": True},
    "ligr_numbers": {**LIGR, **NUMBERS, **SETS, "number_activation": "relu"},
    "feedsr_past": {"builder": "FeedSR", "position_offsets": 0, "head_options": {"hidden": (8,)}, "max_history": 5, **PAST},
    "lirank_past": {
        **PAST,
        **SETS,
        "builder": "LiRank",
        "hidden": (12,),
        "rank": 4,
        "id_dim": 4,
        "max_history": 8,
        "history_options": {"latest": 2},
        "delay": 120,
        "tasks": ("click",),
    },
    "ligr_past": {**LIGR, **PAST},
    "cadet_value": {"layout": "value", "token_features": ("item_id", "age_hours", "item_views_24h"), "rotary": None},
}


# All models run on torch. What most of them add is wiring, which is the same on every backend: on TensorFlow one of each family and
# layout of tokens, on JAX, which compiles each length anew, one that reads rows and one that reads requests. Of these a plain run takes
# some: test_setwise.py has requests, and test_layouts.py other layouts, on each backend.
FAMILIES = {
    "torch": tuple(MODELS),
    "tensorflow": ("cadet_grouped_heads", "lirank", *map(before_a_release, ("feedsr_fused_session", "ligr", "amortized_convolution"))),
    "jax": ("cadet_grouped_heads", *map(before_a_release, ("ligr", "amortized_convolution"))),
}[keras.backend.backend()]


def to_numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), dtype=np.float64)


@dataclass(frozen=True)
class Case:
    """A model, and one log in the three forms that must agree."""

    model: Any
    sequences: Sequences
    requests: Requests
    task: str = "click"
    passes: dict[bytes, np.ndarray] = field(default_factory=dict)

    @property
    def segment(self) -> str:
        """Name of the input with the segment or request of each slot of a packed row, 0 = empty."""
        return "segment" if self.model.form == "rows" else "request_slot"

    def slotwise(self, name: str) -> bool:
        """Whether an input of the training graph has one value per slot."""
        if self.model.form == "rows":
            return name == "member_slot" or not name.startswith("member_")
        return name == self.segment or name.startswith("candidate_")

    def rows(self, row_length: int = 256, sequences: Sequences | None = None, **changes: Any) -> dict[str, np.ndarray]:
        """All events as one batch of packed inputs, and the rows themselves under ''."""
        if self.model.form == "requests":
            found = model_requests(self.model, sequences or self.sequences)
            whole = PackedRequests(found, row_length, 1, names=self.model.input_columns, shuffle=False)
            dataset = PackedRequests(found, row_length, len(whole.slots), names=self.model.input_columns, shuffle=False)
            return {**dataset[0][0], **changes, "": dataset}
        rows = pack(sequences or self.sequences, row_length)
        dataset = PackedDataset(rows, len(rows.index), inputs=self.model.input_columns, shuffle=False)
        return {**dataset[0][0], **changes, "": rows}

    def logits(self, inputs: dict[str, Any], training: bool = False) -> np.ndarray:
        """(B, T, K) logits of packed inputs."""
        given = {name: x for name, x in inputs.items() if name}
        return self._once(given, f"row {training}", lambda: self.model(given, training=training)[self.task])

    def _once(self, given: dict[str, np.ndarray], what: str, compute: Callable[[], Any]) -> np.ndarray:
        """What a pass gives, as numpy; the tests of a model ask for the same few passes, with the same weights, again and again."""
        seen = hashlib.blake2b(what.encode())
        for name, x in [*sorted(given.items()), *((w.path, keras.ops.convert_to_numpy(w)) for w in self.model.weights)]:
            seen.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
        if seen.digest() not in self.passes:
            self.passes[seen.digest()] = to_numpy(compute())
        return self.passes[seen.digest()].copy()

    def by_event(self, sequences: Sequences | None = None, row_length: int = 256, training: bool = False) -> np.ndarray:
        """(E, K) logits of every event from one packed pass."""
        inputs = self.rows(row_length, sequences)
        return inputs[""].scatter(self.logits(inputs, training))

    def tensors(self, which: Any, **sizes: int) -> dict[str, np.ndarray]:
        return self.requests.tensors(which, list(self.model.serving_model.input), **sizes)

    def serve(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """(B, N, K) probabilities of the serving graph."""
        name = f"{self.task}_by_position"
        if name not in self.model.serving_model.output:
            return self._once(tensors, self.task, lambda: self.model.serving_model(tensors)[self.task])[..., None]
        return self._once(tensors, name, lambda: self.model.serving_model(tensors)[name])

    def served(self, logits: np.ndarray) -> np.ndarray:
        """(..., K) logits of a row -> the probabilities as from `serve`: by tower, or one score if no towers are returned."""
        towers = sigmoid(logits)
        returned = f"{self.task}_by_position" in self.model.serving_model.output
        return towers if returned else np.asarray(self.model.served(towers))[..., None]

    def with_columns(self, **columns: np.ndarray) -> Sequences:
        return replace(self.sequences, columns={**self.sequences.columns, **columns})


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def randomise(model: Any, seed: int = 0, scale: float = 0.25) -> None:
    """Weights far from their initial values: a zero could hide a leak."""
    rng = np.random.default_rng(seed)
    model.set_weights([w + rng.normal(0, scale, w.shape).astype(w.dtype) for w in model.get_weights()])


@pytest.fixture(scope="module", autouse=True)
def quick(quick_calls: None) -> None:
    """All calls of whole models."""


@pytest.fixture(scope="session")
def log() -> Any:
    return kr.data.simulate(members=14, days=3, seed=3, feedback_delay=60)


def with_sets(log: Any) -> Any:
    """The log with two columns of sets of ids."""
    rng, events = np.random.default_rng(0), log.events
    tags = {item: rng.integers(0, 20, rng.integers(0, 4)).tolist() for item in sorted(events["item_id"].unique())}
    bought = {request: rng.choice(events["item_id"], rng.integers(0, 5)).tolist() for request in sorted(events["request_id"].unique())}
    rows = next(feature.rows for feature in log.schema.features if feature.name == "item_id")
    sets = (kr.Ids("tags", buckets=30, size=3), kr.Ids("bought", buckets=rows, size=5, pooling="max", table="item_id", known="context"))
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *sets)})
    return kr.data.Log(events.assign(tags=events["item_id"].map(tags), bought=events["request_id"].map(bought)), schema, "with sets")


def make_case(log: Any, **arguments: Any) -> Case:
    keras.utils.set_random_seed(0)
    log = with_sets(log) if arguments.pop("sets", False) else log
    log = log_of(log) if arguments.pop("members", False) else log
    schema = log.schema.binned(4, arguments.pop("bins", ())).fit(log.events)
    plain = {"dim": 16, "num_heads": 2, "num_layers": 2, "id_dim": 4, "delay": None if arguments.get("mask") == "causal" else 120}
    builder = arguments.pop("builder", "CADET")
    model = getattr(kr.models, builder)(schema, **({**plain, **arguments} if builder in ("CADET", "FeedSR") else arguments))
    # Products of cross layers grow: with weights at the scale of an attention model, their logits are in the hundreds.
    randomise(model, scale=0.25 if builder == "CADET" else 0.1)
    sequences = build_sequences(log.events, schema)
    return Case(model, sequences, requests(sequences))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: Any, log: Any) -> Case:
    return make_case(log, **dict(MODELS[request.param]))


@pytest.fixture
def leaky(log: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Control: the same model with a plain causal mask over the row, as if actions were never delayed."""
    monkeypatch.setattr(
        Spans, "delayed", classmethod(lambda cls, times, delay, segments, events=None, own=True: Spans.causal(segments, own=own))
    )
    return make_case(log)
