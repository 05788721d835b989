"""The FeedSR builder: the whole model in numpy, arguments, what it is trained on and what it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, requests
from keras_ranking.training import evaluate, predict_events
from tests.layers.common import layer_norm, masked_attention, sigmoid, silu

pytestmark = pytest.mark.usefixtures("quick_calls")

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 2, "id_dim": 4, "head_options": {"hidden": (6,)}, "position_offsets": 4}


def array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=10, days=2, seed=1)


@pytest.fixture(scope="module")
def schema(log: Any) -> kr.Schema:
    return log.schema.fit(log.events)


@pytest.fixture(scope="module")
def sequences(log: Any, schema: kr.Schema) -> Any:
    return build_sequences(log.events, schema)


def small(schema: kr.Schema, **arguments: Any) -> Any:
    serving = {"serving_position": min(5, arguments.get("position_offsets", 4)) or 5}
    model = kr.models.FeedSR(schema, **{**SMALL, **serving, **arguments})
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def forward(model: Any, inputs: dict[str, np.ndarray], delay: int) -> np.ndarray:
    """Logits of 'click' at positions 1 .. P + 1, (B, T, P + 1), float64, for the defaults: interleaved, RoPE by index, scalar residuals."""
    w = {path.split("/", 1)[-1] if path.startswith(model.name + "/") else path: array(v) for path, v in _weights(model)}
    w = {path: value.astype("float64") for path, value in w.items()}
    schema, heads, width = model.schema, 2, 8

    def columns(features: Any, tables: str) -> np.ndarray:
        parts = []
        for feature in features:
            x = inputs[feature.name]
            parts.append(w[f"{tables}/table_{feature.name}/embeddings"][x] if x.dtype == np.int32 else x[..., None].astype("float64"))
        return np.concatenate(parts, axis=-1)

    item = (
        columns(schema.inputs(known=("item",)), "item_token/concat") @ w["item_token/projection/kernel"] + w["item_token/projection/bias"]
    )
    action = columns(schema.actions, "action_token/concat")
    action = silu(action @ w["action_token/inner/kernel"] + w["action_token/inner/bias"])
    action = action @ w["action_token/projection/kernel"] + w["action_token/projection/bias"]
    time, segment = inputs["time"].astype("int64"), inputs["segment"]
    batch, count = time.shape
    older = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] > 0) & (time[:, None, :] <= time[:, :, None] - delay)
    place = np.repeat(older.sum(-1), 2, axis=1)  # how many events each sees
    mask = np.repeat(np.repeat(older, 2, axis=1), 2, axis=2)
    for i in range(count):
        real = segment[:, i] > 0
        mask[:, 2 * i, 2 * i] |= real
        mask[:, 2 * i + 1, 2 * i] |= real
        mask[:, 2 * i + 1, 2 * i + 1] |= real
    x = np.stack([item, action], axis=2).reshape(batch, 2 * count, width)
    half = width // heads // 2
    turn = np.exp(1j * place[..., None] * 10_000.0 ** (-np.arange(half) / half))[:, :, None, :]

    def rotated(name: str, block: str, x: np.ndarray) -> np.ndarray:
        y = (x @ w[f"{block}/attention/{name}/kernel"]).reshape(batch, 2 * count, heads, -1)
        y = (y[..., :half] + 1j * y[..., half:]) * turn
        return np.concatenate([y.real, y.imag], axis=-1)

    for i in range(2):
        block = f"block_{i}"
        normed = layer_norm(x, w[f"{block}/attention_norm/gamma"], w[f"{block}/attention_norm/beta"])
        value = (normed @ w[f"{block}/attention/value/kernel"]).reshape(batch, 2 * count, heads, -1)
        attended = masked_attention(rotated("query", block, normed), rotated("key", block, normed), value, mask)
        attended = attended.reshape(batch, 2 * count, width) @ w[f"{block}/attention/output_map/kernel"]
        x = x + w[f"{block}/attention_add/alpha"] * attended
        normed = layer_norm(x, w[f"{block}/ffn_norm/gamma"], w[f"{block}/ffn_norm/beta"])
        fed = silu(normed @ w[f"{block}/ffn_in/kernel"] + w[f"{block}/ffn_in/bias"])
        x = x + w[f"{block}/ffn_add/alpha"] * (fed @ w[f"{block}/ffn_out/kernel"] + w[f"{block}/ffn_out/bias"])
    state = layer_norm(x[:, ::2], w["final_norm/gamma"], w["final_norm/beta"])
    state = np.concatenate([state, columns(schema.inputs(known=("context",)), "late_context")], axis=-1)
    crossed = state
    for i in range(2):
        crossed = state * (crossed @ w[f"head/body_all/cross_net/up_{i}"] + w[f"head/body_all/cross_net/bias_{i}"]) + crossed
    deep = silu(state @ w["head/body_all/mlp/dense_0/kernel"] + w["head/body_all/mlp/dense_0/bias"])
    logit = np.concatenate([crossed, deep], axis=-1) @ w["head/logit_click/kernel"] + w["head/logit_click/bias"]
    offsets = 10.0 * w["offset_click/offsets"]
    return logit + np.append(offsets, offsets[-1])


def _weights(model: Any) -> list[tuple[str, Any]]:
    return [(weight.path, weight.value) for weight in model.weights]


@pytest.mark.release("jax")
def test_the_whole_model_in_numpy(schema: kr.Schema, sequences: Any) -> None:
    model = small(schema, dropout=0.3)
    rows = pack(sequences, 96)
    x, _, _ = PackedDataset(rows, 2, inputs=model.input_columns, shuffle=False)[0]
    x = {name: value[:, :80] for name, value in x.items()}
    assert (x["segment"] > 1).any() and (x["segment"] > 0).mean() > 0.5
    want = forward(model, x, schema.feedback_delay)
    real = x["segment"] > 0
    got = array(model(x)["click"])
    scale = np.abs(want[real]).max()
    np.testing.assert_allclose(got[real], want[real], rtol=1e-4, atol=1e-5 * scale)
    # Control: another delay is another model.
    assert np.abs(got[real] - forward(model, x, schema.feedback_delay + 7200)[real]).max() > 1e-2 * scale


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "`dim` must be a positive multiple"),
        ({"delay": 599}, "`delay` must be at least the schema's feedback_delay, 600"),
        ({"mask": "causal", "delay": 900}, "`delay` has no meaning with mask='causal'"),
        ({"mask": "session", "session_by": "gap", "session_gap": 300}, "`session_gap` must be at least `delay`"),
        ({"mask": "window"}, "`mask` must be one of"),
        ({"layout": "stacked"}, "`layout` must be one of"),
        ({"action_masking": 0.2}, "`action_masking` is for layout='fused'"),
        ({"gates": "both"}, "`gates` must be one of"),
        ({"rotate_by": "split", "rotary": None}, "rotate_by='split' rotates half of the heads by time, and needs `rotary`"),
        ({"rotate_by": "place"}, "`rotate_by` must be one of"),
        ({"shared_index": False, "layout": "fused"}, "`shared_index=False` is for layout='interleaved'"),
        ({"residual": "highway"}, "`kind` must be one of"),
        ({"head": "tower"}, "`kind` must be one of"),
        ({"groups": {"passive": ["click"]}}, "`groups` must hold each of"),
        ({"position_offsets": 3}, "`serving_position` must be from 1 to 3"),
        ({"position_offsets": -1}, "`position_offsets` must not be negative"),
        ({"beyond": "wrap"}, "`beyond` must be one of"),
        ({"tasks": ["purchase"]}, "unknown task 'purchase'"),
        ({"token_features": ["click"]}, "known only after scoring"),
    ],
)
def test_bad_arguments_are_named(schema: kr.Schema, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.models.FeedSR(schema, **{**SMALL, "position_offsets": 60, **arguments})


@pytest.mark.quickest
def test_offsets_need_a_position(schema: kr.Schema) -> None:
    without = schema.model_copy(update={"position": None})
    assert kr.models.FeedSR(without, **{**SMALL, "position_offsets": None}).boundaries == ()
    assert kr.models.FeedSR(schema, **{**SMALL, "position_offsets": None}).boundaries == tuple(range(1, 61))
    with pytest.raises(ValueError, match="need a schema with a position"):
        kr.models.FeedSR(without, **SMALL)


@pytest.mark.quickest
def test_the_served_score_is_the_one_at_the_serving_position(schema: kr.Schema, sequences: Any) -> None:
    model = small(schema, serving_position=3)
    found = requests(sequences)
    tensors = found.tensors([10, 20], list(model.serving_model.input))
    logits = array(model.score(model.encode(tensors), tensors)["click"])
    served = model.serving_model(tensors)
    assert set(served) == {"click", "like"}
    real = np.arange(logits.shape[1])[None, :] < tensors["candidate_count"][:, None]
    np.testing.assert_allclose(array(served["click"])[real], sigmoid(logits[..., 2])[real], atol=1e-6)
    assert np.abs(array(served["click"])[real] - sigmoid(logits[..., 0])[real]).max() > 1e-3  # control: positions differ
    assert "position" not in model.input_columns


@pytest.mark.quickest
def test_evaluation_ranks_by_the_served_score_and_judges_probabilities_at_the_position_shown(log: Any, schema: kr.Schema) -> None:
    model = small(schema)
    report = evaluate(model, log, split="validation")["click"]
    wanted = (log.events["split"] == "validation").to_numpy()
    times = schema.encode_time(log.events[schema.time])
    past = times <= times[wanted].max()
    sequences = build_sequences(log.events[past], schema, target=wanted[past])
    towers = predict_events(model, pack(sequences, 256))["click"][sequences.target]
    label, position = sequences.labels["click"][sequences.target], sequences.position[sequences.target]
    shown = towers[np.arange(len(label)), np.minimum(position, 5) - 1]
    loss = -np.mean(label * np.log(shown) + (1 - label) * np.log(1 - shown))
    np.testing.assert_allclose(report["log_loss"], loss, rtol=1e-5)
    clicked, other = towers[label == 1, 3], towers[label == 0, 3]
    auc = np.mean((clicked[:, None] > other[None, :]) + 0.5 * (clicked[:, None] == other[None, :]))
    np.testing.assert_allclose(report["auc"], auc, rtol=1e-6)


@pytest.mark.release("jax", "tensorflow")
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"layout": "fused", "action_masking": 0.2, "head": "mmoe", "residual": "dense_gate", "rotate_by": "split"},
        pytest.param(
            {
                "layout": "value",
                "head": "stacked_dcn",
                "dtype": "mixed_bfloat16",
                "mask": "session",
                "position_offsets": 0,
                "residual": "rezero",
            },
            marks=pytest.mark.quickest,
        ),
        pytest.param(
            {"shared_index": False, "residual": "layer_scale", "head": "linear", "gates": "all", "beyond": "zero"},
            marks=pytest.mark.quickest,
        ),
    ],
)
def test_it_trains_and_saved_models_are_the_same(schema: kr.Schema, sequences: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    options = {"head_options": {}} if arguments["head"] == "linear" else {}
    model = small(schema, num_layers=1, tasks=["click"], **options, **arguments)
    dataset = PackedDataset(pack(sequences, 128), 4, inputs=model.input_columns, tasks=model.tasks, seed=0)
    model.compile(keras.optimizers.Adam(1e-2), loss=model.losses_by_task(), jit_compile=False)
    losses = model.fit(dataset, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = kr.models.load(tmp_path)
    assert loaded.arguments == model.arguments and loaded.boundaries == model.boundaries
    inputs = dataset[0][0]
    for task, logits in model(inputs).items():
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        np.testing.assert_array_equal(array(logits), array(loaded(inputs)[task]))


@pytest.mark.quickest
def test_vectors_join_early_or_late() -> None:
    features = [kr.Id("item_id", buckets=50), kr.Vector("content", size=3), kr.Vector("profile", size=5, known="context")]
    schema = kr.Schema(
        member="member_id", time="time", request="request_id", features=features, actions=["click"], tasks=[kr.Task("click")]
    )
    model = kr.models.FeedSR(schema, dim=8, num_heads=2, num_layers=1, id_dim=4)
    shapes = {name: tuple(x.shape) for name, x in model.serving_model.input.items()}
    assert shapes["candidate_profile"] == (None, None, 5) and shapes["history_content"] == (None, None, 3)
    assert "history_profile" not in shapes
    early = kr.models.FeedSR(
        schema, dim=8, num_heads=2, num_layers=1, id_dim=4, token_features=["item_id", "profile"], late_features=["content"]
    )
    shapes = {name: tuple(x.shape) for name, x in early.serving_model.input.items()}
    assert shapes["history_profile"] == (None, None, 5) and "history_content" not in shapes
