"""Sessions by the ids of the log: what a training tells, what a request carries, scores of rows, files of earlier versions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.serving import request_tensors
from keras_ranking.training.reporting import sessions_that_differ

pytestmark = pytest.mark.quickest
TINY: dict[str, Any] = {"mask": "session", "dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 4, "tower_hidden": (4,)}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=3, seed=3, feedback_delay=60)


@pytest.fixture(scope="module")
def model(log: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = kr.models.CADET(log.schema.fit(log.events), **TINY)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def test_events_on_which_ids_and_pauses_differ(log: Any) -> None:
    sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
    for gap in (60, 600, 1800):
        differ = later = 0
        for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
            for i in range(begin + 1, end):
                by_id = sequences.session[i] != sequences.session[i - 1]
                differ, later = differ + (by_id != (sequences.time[i] - sequences.time[i - 1] >= gap)), later + 1
        assert sessions_that_differ(sequences, gap) == (differ, later)
    assert sessions_that_differ(sequences, 60)[0] > sessions_that_differ(sequences, 1800)[0]


@pytest.mark.parametrize(("options", "told"), [({"session_gap": 60}, True), ({}, False), ({"session_by": "gap", "session_gap": 60}, False)])
def test_a_training_tells_a_disagreement(log: Any, options: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    kr.training.train(log, "cadet", epochs=1, options={**TINY, **options, "row_length": 256})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sessions: ")]
    assert len(lines) == told
    assert not told or ("column 'session_id' and pauses of 60 seconds disagree" in lines[0] and "%" in lines[0])


def test_files_of_earlier_versions_tell_sessions_by_pauses(model: Any) -> None:
    config = model.get_config()
    assert config["arguments"]["session_by"] == "column" and "request_session" in model.serving_model.input
    earlier = {**config, "arguments": {name: value for name, value in config["arguments"].items() if name != "session_by"}}
    before = type(model).from_config(earlier)
    assert before.arguments["session_by"] == "gap" and "request_session" not in before.serving_model.input
    assert "session_by" not in kr.models.CADET(model.schema, **{**TINY, "mask": "delay"}).arguments


def test_what_a_request_carries(model: Any, log: Any) -> None:
    member = log.events.groupby("member_id")["session_id"].nunique().idxmax()
    rows = log.events[log.events["member_id"] == member].sort_values("time", kind="stable")
    assert rows["session_id"].nunique() > 1
    history, shown, at = rows.iloc[:-1], rows.tail(1), int(rows["time"].iloc[-1])
    names = ["history_session", "request_session", "history_length"]
    found = request_tensors(model.schema, history, shown, at, names)
    assert found["history_session"].dtype == found["request_session"].dtype == np.int32 and found["request_session"].shape == ()
    codes, ids = pd.factorize(found["history_session"])[0], pd.factorize(history["session_id"])[0]
    np.testing.assert_array_equal(codes, ids)
    given = request_tensors(model.schema, history, shown.drop(columns="session_id"), at, names, session=history["session_id"].iloc[3])
    assert given["request_session"] == found["history_session"][3]
    assert request_tensors(model.schema, None, shown, at, names)["history_session"].shape == (0,)
    for frames, message in (
        ((history, shown.drop(columns="session_id")), "the model reads the session of a request: give `session`"),
        ((history.drop(columns="session_id"), shown), "column 'session_id' is missing in the history"),
        ((history, rows), r"the candidates must be of one session\. Received: [0-9]+ in column 'session_id'"),
    ):
        with pytest.raises(ValueError, match=message):
            request_tensors(model.schema, *frames, at, names)


def test_rows_are_scored_by_their_sessions(model: Any, log: Any) -> None:
    events = log.events.sort_values("time", kind="stable")
    past, rows = events.iloc[:-40], events.iloc[-40:]
    found = kr.training.predict(model, rows, history=past)
    sequences = kr.data.build_sequences(events, model.schema, target=np.arange(len(events)) >= len(events) - 40)
    joined = kr.training.predict_events(model, kr.data.pack(sequences, 2048))["click"]
    # Rows to score do not see each other: those before which no other row of their member is have the scores of the whole log.
    member = rows["member_id"].to_numpy()
    alone = [at for at in range(40) if rows["request_id"].iloc[at] == rows[rows["member_id"] == member[at]]["request_id"].iloc[0]]
    place = {int(row): event for event, row in enumerate(sequences.rows)}
    wanted = model.served(joined)[[place[len(events) - 40 + at] for at in alone]]
    np.testing.assert_allclose(found["click"].to_numpy()[alone], wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`rows` must have the column 'session_id'"):
        kr.training.predict(model, rows.drop(columns="session_id"), history=past)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session_by": "id"}, "`session_by` must be 'column', 'gap' or None. Received: session_by='id'"),
        ({"mask": "delay", "session_by": "gap"}, "`session_by` has no effect on a mask that reads no sessions"),
        ({"session_by": "column", "schema": None}, "must be 'gap' or None for a schema that names no session"),
    ],
)
def test_mistakes(model: Any, options: dict[str, Any], message: str) -> None:
    schema = model.schema.model_copy(update={"session": None}) if "schema" in options else model.schema
    with pytest.raises(ValueError, match=message):
        kr.models.CADET(schema, **{**TINY, **{name: value for name, value in options.items() if name != "schema"}})
