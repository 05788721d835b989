"""Counts of the schema from the log to a served request: the state fills the candidates, and the scores are those of the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from keras_ranking import Count, data, models, training
from keras_ranking.data import Log, build_sequences, with_counts
from keras_ranking.serving import Client, check_skew, export, request_tensors, serve

COUNTS = (Count("item_id", action="click"), Count(("member_id", "topic"), of="views", window=86_400))
NAMES = [count.name for count in COUNTS]


@pytest.fixture(scope="module")
def log() -> Log:
    made = data.simulate(members=20, days=3, seed=0)
    schema = made.schema.model_copy(update={"features": (*made.schema.features, *COUNTS)})
    return Log(made.events.sort_values("time", kind="stable"), schema, "mine")


def test_a_served_request_has_the_numbers_and_the_scores_of_the_row(log: Log, tmp_path_factory: pytest.TempPathFactory) -> None:
    events = log.events
    last = events["request_id"].iloc[-1]
    moment = int(events.loc[events["request_id"] == last, "time"].iloc[0])
    state = with_counts(replace(log, events=events[events["time"] < moment])).counts
    whole = with_counts(log)
    rows = whole.events[whole.events["request_id"] == last]
    bare = rows.drop(columns=NAMES)
    served = state.with_features(bare.drop(columns="member_id"), moment, member_id=rows["member_id"].iloc[0])
    np.testing.assert_array_equal(served[NAMES], rows[NAMES])
    assert (rows[NAMES] > 0).to_numpy().any(axis=0).all()

    schema = log.schema.fit(whole.events)
    model = models.LiRank(schema, features=(*NAMES, "age_hours"), history_features=(), hidden=(8,), cross_layers=1)
    ours, theirs = (request_tensors(schema, None, frame, moment, list(model.serving_model.input)) for frame in (served, rows))
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)

    folder = tmp_path_factory.mktemp("served") / "counted"
    version = export(model, folder, verify=False)
    found = training.predict_events(model, training.model_requests(model, build_sequences(whole.events, schema)))["click"]
    sequences = build_sequences(whole.events, schema)
    places = np.argsort(sequences.rows)[(whole.events["request_id"] == last).to_numpy()]
    with serve(folder, rest_port=0, grpc_port=0) as server, Client(f"127.0.0.1:{server.grpc_port}", schema, "counted") as client:
        scores = client.score(None, served, moment)["click"]
        np.testing.assert_allclose(scores, model.served(found[places]), rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="column 'item_id_click_rate_all' is missing in the candidates"):
            client.score(None, bare, moment)
        raw = Client(f"127.0.0.1:{server.grpc_port}", schema, "counted", signature="raw")
        np.testing.assert_allclose(raw.score(None, served, moment)["click"], scores, rtol=0, atol=1e-6)
        raw.close()
    assert not check_skew(version, model, whole.events, sample=8).found
