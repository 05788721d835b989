"""`sampled_delay` of CADET and FeedSR: each event sees what is older than the delay drawn for it; serving goes by the model's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, requests
from keras_ranking.training.setup import training_data
from tests.models.test_max_history import SMALL, array, randomise

KINDS = [("CADET", {}), ("CADET", {"layout": "value"}), ("FeedSR", {}), ("FeedSR", {"layout": "fused"})]


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=6, days=6, seed=1, feedback_delay=60)


def pair(log: Any, kind: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """A model of drawn delays, and one of a fixed delay with its weights."""
    keras.utils.set_random_seed(0)
    build, schema = getattr(kr.models, kind), log.schema.fit(log.events)
    drawn = build(schema, **SMALL, **arguments, delay=600, sampled_delay=True)
    randomise(drawn)
    fixed = build(schema, **SMALL, **arguments, delay=600)
    fixed.set_weights(drawn.get_weights())
    return drawn, fixed


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
@pytest.mark.quickest
def test_an_event_sees_what_is_older_than_its_own_delay(log: Any, kind: str, arguments: dict[str, Any]) -> None:
    drawn, fixed = pair(log, kind, arguments)
    assert "delay" in drawn.input_columns and "delay" not in fixed.input_columns
    schema = drawn.schema
    sequences = build_sequences(log.events, schema)
    rows = pack(sequences, 1024)
    x, _, _ = PackedDataset(rows, len(rows.index), inputs=drawn.input_columns, shuffle=False, delays=[700.0, 90_000.0])[0]
    of_fixed = {name: x[name] for name in fixed.input_columns}
    # One delay for all is the model of that delay.
    same = array(drawn({**x, "delay": np.full_like(x["delay"], 600)})["click"])
    np.testing.assert_array_equal(same, array(fixed(of_fixed)["click"]))
    # Drawn ones: what an event must not see moves nothing, to the bit; what it sees does.
    row, at = 0, int((rows.segment[0] == 1).sum()) - 1
    times, member = x["time"][row], rows.segment[row] == 1
    x["delay"][row, at] = delay = int(np.median(times[at] - times[member][times[member] < times[at] - 600]))
    seen = member & (times <= times[at] - delay)
    hidden = member & ~seen & (np.arange(len(member)) < at)
    assert seen.sum() > 5 and (hidden & (times <= times[at] - 600)).sum() > 5
    before = array(drawn(x)["click"])[row, at]
    for which, moves in ((hidden, False), (seen, True)):
        # One block: nothing comes around through events in between.
        changed = np.where(which, 1 - x["click"][row], x["click"][row])
        moved = {**x, "click": np.concatenate([changed[None].astype(x["click"].dtype), x["click"][1:]])}
        after = array(drawn(moved)["click"])[row, at]
        assert (np.abs(after - before).max() > 1e-6) == moves


@pytest.mark.parametrize(("kind", "arguments"), KINDS[:1] + KINDS[2:3])
@pytest.mark.quickest
def test_figures_and_serving_go_by_the_models_delay(log: Any, kind: str, arguments: dict[str, Any], tmp_path: Any) -> None:
    drawn, fixed = pair(log, kind, arguments)
    rows = pack(build_sequences(log.events, drawn.schema), 1024)
    for one, other in zip(kr.training.predict_events(drawn, rows).values(), kr.training.predict_events(fixed, rows).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    found = requests(build_sequences(log.events, drawn.schema))
    tensors = found.tensors([3, 20], list(drawn.serving_model.input))
    assert "delay" not in tensors
    np.testing.assert_array_equal(array(drawn.serving_model(tensors)["click"]), array(fixed.serving_model(tensors)["click"]))
    drawn.save(tmp_path / "model.keras")
    again = kr.models.load(tmp_path / "model.keras")
    assert again.arguments["sampled_delay"] and again.input_columns == drawn.input_columns


@pytest.mark.quickest
def test_training_draws_from_the_column(log: Any) -> None:
    drawn, fixed = pair(log, "CADET", {})
    sequences = build_sequences(log.events, drawn.schema)
    options = kr.training.TrainingOptions(delay_column="feedback_seconds", row_length=128)
    delays = kr.training.setup.delays_for(log.events, options)
    dataset, _ = training_data(drawn, sequences, options, delays=delays)
    x = dataset[0][0]
    met = set(x["delay"][x["segment"] > 0])
    assert len(met) > 5 and met <= set(np.maximum(np.ceil(log.events["feedback_seconds"]), 1))
    plain, _ = training_data(drawn, sequences, kr.training.TrainingOptions(row_length=128))
    padding = plain[0][0]["segment"] == 0
    assert set(plain[0][0]["delay"][~padding]) == {600}
    with pytest.raises(ValueError, match="`delay_column` is for a model that is trained on drawn delays"):
        training_data(fixed, sequences, options, delays=delays)
    options_of_train = {**SMALL, "row_length": 64, "epochs": 1, "delay_column": "feedback_seconds"}
    with pytest.raises(ValueError, match="`delay_column` is for a model"):
        kr.training.train(log, options=options_of_train, verbose=False)
    _, history = kr.training.train(log, options={**options_of_train, "sampled_delay": True}, verbose=False)
    assert np.isfinite(history["epochs"]["loss"][0])


@pytest.mark.quickest
def test_what_it_does_not_go_with(log: Any) -> None:
    with pytest.raises(ValueError, match="`sampled_delay` goes with mask='delay'. Received: mask='session'"):
        kr.models.FeedSR(log.schema, **SMALL, mask="session", sampled_delay=True)
    schema = log.schema.model_copy(update={"actions": (*log.schema.actions, kr.Number("delay"))})
    with pytest.raises(ValueError, match="an input `delay`, which is a column of the schema here"):
        kr.models.CADET(schema, **SMALL, sampled_delay=True)
    with pytest.raises(ValueError, match="`delays` go with mask='delay'"):
        kr.layers.EventSpans("causal")(np.zeros((1, 3), "int32"), segments=np.ones((1, 3), "int32"), delays=np.ones((1, 3), "int32"))
