"""predict: rows without labels, from the history of the same frame or of another, in their own order."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training import predict, predict_events, predict_served

SMALL: dict[str, dict[str, Any]] = {
    "CADET": {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4},
    "LiRank": {"hidden": (8,), "cross_layers": 1, "id_dim": 4, "max_history": 7},
}
UNKNOWN = ["click", "like", "dwell_seconds", "position", "split"]


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=15, days=3, seed=0)


@pytest.fixture(scope="module", params=sorted(SMALL))
def model(log: Any, request: pytest.FixtureRequest) -> Any:
    keras.utils.set_random_seed(1)
    made = getattr(kr.models, request.param)(log.schema.fit(log.events), **SMALL[request.param])
    for variable in made.trainable_variables:  # a history that says something
        variable.assign(variable + 0.1 * np.random.default_rng(0).normal(size=variable.shape))
    return made


@pytest.fixture(scope="module")
def parts(log: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Past events, and later rows in any order with an index of their own."""
    late = log.events["time"] >= log.events["time"].quantile(0.8)
    rows = log.events[late].sample(frac=1.0, random_state=0)
    return log.events[~late], rows.set_index(pd.Index([f"row {n}" for n in range(len(rows))]))


def one_list_after_the_past(model: Any, past: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Each list alone after all past events, by the graph of training: no list sees another."""
    found = []
    for _, candidates in rows.groupby("request_id"):
        both = pd.concat([past, candidates])
        sequences = kr.data.build_sequences(both, model.schema, target=np.arange(len(both)) >= len(past))
        data = kr.training.model_requests(model, sequences) if model.form == "requests" else kr.data.pack(sequences, 2048)
        chance = model.served(predict_events(model, data)["click"])
        values = np.full(len(both), np.nan)
        values[sequences.rows] = chance
        found.append(pd.Series(values[len(past) :], index=candidates.index))
    return pd.concat(found)


def test_scores_are_those_of_each_list_alone_after_the_past(model: Any, parts: Any) -> None:
    past, rows = parts
    some = rows[rows["request_id"].isin(rows["request_id"].unique()[:6])]
    scores = predict(model, some.drop(columns=UNKNOWN), history=past)
    assert list(scores.columns) == ["click", "like"] and scores.index.equals(some.index) and not scores.isna().any(axis=None)
    expected = one_list_after_the_past(model, past, some)[some.index]
    np.testing.assert_allclose(scores["click"], expected, rtol=0, atol=1e-5)
    without = predict(model, some.drop(columns=UNKNOWN))
    assert np.abs(without["click"] - expected).max() > 1e-3  # control: the history matters


def test_one_frame_gives_the_scores_of_two(model: Any, parts: Any) -> None:
    past, rows = parts
    apart = predict(model, rows.drop(columns=UNKNOWN), history=past)
    open_rows = rows.drop(columns=UNKNOWN).assign(click=None, like=None, dwell_seconds=np.nan)
    both = pd.concat([open_rows, past.drop(columns=["position", "split"])])
    np.testing.assert_allclose(predict(model, both).loc[rows.index], apart, rtol=0, atol=1e-6)  # batches of other shapes
    # Control: with their actions, earlier rows are history of later ones.
    whole = predict(model, pd.concat([rows, past]))
    assert np.abs(whole.loc[rows.index] - apart)["click"].max() > 1e-4


@pytest.mark.quickest
def test_rows_with_actions_are_scored_as_serving_would_have(model: Any, log: Any) -> None:
    sequences = kr.data.build_sequences(log.events, model.schema)
    served = np.full(len(log.events), np.nan)
    limit = model.arguments.get("max_history")
    served[sequences.rows] = predict_served(model, sequences, whole_session=False, max_history=limit)["click"]
    found = predict(model, log)["click"]
    if model.form == "rows":
        np.testing.assert_allclose(found, served, atol=1e-6)
    else:  # of the visible events the newest are read: `predict_served` takes the newest and the graph hides the youngest
        visible = kr.training.model_requests(model, sequences)
        alike = visible.history_end - visible.history_begin == 0
        first = sequences.rows[visible.candidate_begin[alike]]
        np.testing.assert_allclose(found.iloc[first], served[first], atol=1e-6)


@pytest.mark.one_backend
def test_rows_of_one_member_at_one_time_are_a_request(log: Any, parts: Any) -> None:
    past, rows = parts
    model = kr.models.LiGR(log.schema.fit(log.events), dim=8, num_heads=2, num_layers=1, setwise_layers=1)  # reads the list
    scores = predict(model, rows.drop(columns=[*UNKNOWN, "request_id", "session_id"]), history=past)
    pd.testing.assert_frame_equal(scores, predict(model, rows.drop(columns=UNKNOWN), history=past))
    alone = rows.drop(columns=UNKNOWN).assign(request_id=np.arange(len(rows)))
    assert np.abs(predict(model, alone, history=past) - scores)["click"].max() > 1e-6  # control: a list each


@pytest.mark.one_backend
def test_bad_rows_are_named_or_have_no_score(log: Any, parts: Any) -> None:
    past, rows = parts
    model = kr.models.LiRank(log.schema.fit(log.events), **SMALL["LiRank"])
    bad = rows.drop(columns=UNKNOWN).astype({"age_hours": object})
    bad.iloc[3, bad.columns.get_loc("age_hours")] = "old"
    bad.iloc[5, bad.columns.get_loc("time")] = -4
    with pytest.raises(ValueError, match=r"`rows`: the log has 2 problems:") as raised:
        predict(model, bad, history=past)
    assert "column 'age_hours' must hold numbers. Received: 'old' at row 3 (index 'row 3')" in str(raised.value)
    assert "on_error='drop' leaves such rows out" in str(raised.value)
    with pytest.warns(UserWarning, match=r"2 left out|1 left out"):
        scores = predict(model, bad, history=past, on_error="drop")
    lists = bad["request_id"].eq(bad["request_id"].iloc[5]).to_numpy()
    assert scores["click"].isna().to_numpy()[[3, 5]].all() and scores["click"].notna().to_numpy()[~lists & (np.arange(len(bad)) != 3)].all()
    with pytest.raises(ValueError, match=r"`history`: column 'click' must hold numbers. Received: 'no' at row 0"):
        predict(model, rows, history=past.astype({"click": object}).assign(click=["no", *past["click"].iloc[1:]]))
    with pytest.raises(ValueError, match="`rows`: column 'age_hours' of the schema is not in the log"):
        predict(model, rows.drop(columns="age_hours"), history=past)
    with pytest.warns(UserWarning, match="no member of `rows` is in `history`"):
        predict(model, rows, history=past.assign(member_id=past["member_id"].astype(str)))
    with pytest.raises(TypeError, match="`history` must be a pandas DataFrame. Received: dict"):
        predict(model, rows, history={})  # type: ignore[arg-type]
    assert predict(model, rows.iloc[:0]).shape == (0, 2)
    repeated = pd.concat([rows, rows.iloc[:1]])
    assert predict(model, repeated, history=past)["click"].notna().all()


@pytest.mark.one_backend
def test_counts_come_from_the_states_of_the_run(tmp_path: Any, log: Any) -> None:
    clicks = kr.Count("author_id", action="click", window=None)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, clicks)})
    mine = kr.data.Log(log.events, schema, "mine")
    options = {**SMALL["LiRank"], "features": ("age_hours", clicks.name), "history_features": ()}
    model, _ = kr.training.train(mine, "lirank", tmp_path, epochs=1, options=options, verbose=False)
    later = log.events.tail(6).drop(columns=UNKNOWN)
    later = later.assign(time=int(log.events["time"].max()) + 3600, request_id=10**6, member_id=log.events["member_id"].iloc[0])
    states = kr.data.saved_counts(tmp_path)
    assert states is not None
    counted = states.with_features(later, int(later["time"].iloc[0]))
    pd.testing.assert_frame_equal(predict(tmp_path, later), predict(tmp_path, counted))
    pd.testing.assert_frame_equal(predict(model, later, history=log.events), predict(tmp_path, later))  # from the events themselves
    zero = predict(tmp_path, counted.assign(**{clicks.name: 0.0}))
    assert np.abs(zero - predict(tmp_path, later))["click"].max() > 0  # control: the counts are read
    with pytest.raises(ValueError, match="`rows` must have the counts"):
        predict(model, later)
    with pytest.raises(ValueError, match="`rows` must not be older than the newest event that is counted"):
        predict(tmp_path, later.assign(time=int(log.events["time"].min())))
