"""Several states in one: a log gets their columns, a request reads the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import data


def make() -> data.PointInTime:
    return data.PointInTime(
        [
            data.ChoiceStrengths("item_id", "request_id", delay=60),
            data.RunningCounts("item_id", [3600, None], delay=60, expected="item_id_click_share"),
            data.RunningPast(("member_id", "topic"), last=1, delay=30),
            data.RunningExpectation(["item_id", "member_id"], delay=60),
        ],
        request="request_id",
        relative=["item_id_click_strength"],
    )


@pytest.fixture(scope="module")
def log() -> data.Log:
    return data.simulate(members=40, days=3, seed=0)


def test_columns_are_those_of_the_parts(log: data.Log) -> None:
    got = make().update(log.events)
    strengths = data.ChoiceStrengths("item_id", "request_id", delay=60).update(log.events)
    np.testing.assert_array_equal(got[strengths.columns], strengths)
    counts = data.RunningCounts("item_id", [3600, None], delay=60, expected="item_id_click_share")
    frame = log.events.assign(**strengths)
    np.testing.assert_array_equal(got[list(counts.columns)], counts.update(frame))
    relative = data.list_relative(frame, ["item_id_click_strength"], "request_id")
    np.testing.assert_array_equal(got[relative.columns], relative)


def test_a_request_reads_what_a_row_would_after_a_save(log: data.Log, tmp_path: Path) -> None:
    events = log.events.sort_values("time", kind="stable")
    last = events["request_id"].iloc[-1]
    request = events["request_id"] == last
    moment = int(events.loc[request, "time"].iloc[0])
    whole = make().update(events[(events["time"] < moment) | request])
    states = make()
    states.update(events[events["time"] < moment])
    states.save(tmp_path / "states")
    got = data.PointInTime.load(tmp_path / "states").features(events.loc[request, ["item_id", "member_id", "topic"]], moment)
    names = [name for name in whole if not name.endswith("_residual")]
    np.testing.assert_allclose(got[names], whole.loc[request, names], rtol=1e-12, atol=1e-12)
    assert len(got) > 1


def test_a_log_with_the_columns_trains(log: data.Log) -> None:
    richer = make().added_to(log)
    new = [feature for feature in richer.schema.features if feature not in log.schema.features]
    assert {feature.known for feature in new} == {"context"} and "click_residual" in richer.events
    assert not any(feature.name.endswith("residual") for feature in new)
    names = tuple(feature.name for feature in new)
    options = {"features": names, "history_features": (), "hidden": (8,), "cross_layers": 1}
    _, history = kr.training.train(richer, "lirank", epochs=1, options=options, verbose=False)
    assert np.isfinite(history["epochs"]["loss"]).all()
    with pytest.raises(ValueError, match="columns of these names already"):
        make().added_to(richer)


def test_rows_of_the_past_are_in_no_list(log: data.Log) -> None:
    past = log.events["split"].eq("train") & (log.events["time"] < log.events["time"].min() + 86400)
    events = log.events.assign(split=log.events["split"].mask(past, "history"))
    richer = make().added_to(data.Log(events, log.schema, "log"))
    strength = richer.events["item_id_click_strength"]
    assert strength[past].isna().all() and strength[~past].notna().all()
    assert richer.events.loc[past, "member_id_topic_seconds_since"].notna().all()
    fitted = richer.schema.fit(richer.events[~past])
    assert np.isfinite(fitted.inputs(["item_id_click_strength"])[0].encode(strength)).all()


def test_errors() -> None:
    counts = data.RunningCounts("item_id")
    with pytest.raises(ValueError, match="no part"):
        data.PointInTime([])
    with pytest.raises(ValueError, match="twice"):
        data.PointInTime([counts, data.RunningCounts("item_id")])
    with pytest.raises(TypeError, match="Received: str"):
        data.PointInTime(["item_id"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="needs `request`"):
        data.PointInTime([counts], relative=True)
    with pytest.raises(ValueError, match="must name columns of the parts"):
        data.PointInTime([counts], request="list", relative=["x"])
    with pytest.raises(ValueError, match="one boolean per row"):
        data.PointInTime([counts]).update(pd.DataFrame({"time": [0], "item_id": [1], "click": [0]}), counted=[True, False])
