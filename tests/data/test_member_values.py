"""Columns of the member in a log: one value a request, held once a run, in rows, requests and shards alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, build_sequences, check_events, pack, requests
from keras_ranking.data.member_values import HeldOnce, MemberSlots, one_after_another, runs_of
from keras_ranking.data.sequences import Sequences
from tests.member_columns import OF_MEMBER, log_of

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def log() -> Any:
    return log_of(kr.data.simulate(members=14, days=4, seed=3, feedback_delay=60))


@pytest.fixture(scope="module")
def sequences(log: Any) -> Sequences:
    return build_sequences(log.events, log.schema)


def plain(log: Any, sequences: Sequences, name: str) -> np.ndarray:
    """A column of the streams, encoded row by row."""
    feature = next(feature for feature in log.schema.features if feature.name == name)
    return feature.encode(log.events[name].iloc[sequences.rows])


def test_values_are_held_once(log: Any, sequences: Sequences) -> None:
    held: Any = sequences.columns["profile"]
    assert isinstance(held, HeldOnce) and len(held) == sequences.num_events
    assert sequences.num_members < len(held.values) < len(sequences.request_starts) / 2, "once a member, and again where it changes"
    for name in OF_MEMBER:
        column, whole = sequences.columns[name], plain(log, sequences, name)
        np.testing.assert_array_equal(np.asarray(column), whole)
        index = np.array([5, 0, 300, 5])
        np.testing.assert_array_equal(column[index], whole[index])
    of_arrays = {name: plain(log, sequences, name) for name in OF_MEMBER}
    np.testing.assert_array_equal(runs_of(of_arrays, sequences.member), held.run)
    moved = held.of_events(np.array([7, 3, 400]))
    np.testing.assert_array_equal(np.asarray(moved), plain(log, sequences, "profile")[[7, 3, 400]])
    both = one_after_another([np.zeros((1, 6), "float32"), held], [2, len(held)])
    np.testing.assert_array_equal(np.asarray(both)[2:], np.asarray(held))
    assert len(both.values) == len(held.values) + 1


def test_requests_have_one_value(log: Any, sequences: Sequences) -> None:
    found = requests(sequences)
    tensors = found.tensors([4, -1, 9], [f"member_{name}" for name in OF_MEMBER])
    assert {name: values.shape for name, values in tensors.items()} == {
        "member_profile": (3, 6),
        "member_country": (3,),
        "member_home": (3,),
        "member_tenure": (3,),
        "member_interests": (3, 3),
    }
    for name in OF_MEMBER:
        whole, values = plain(log, sequences, name), tensors[f"member_{name}"]
        np.testing.assert_array_equal(values[[0, 2]], whole[found.candidate_begin[[4, 9]]])
        assert not values[1].any(), "an empty request is zeros"
    for name in ("candidate_country", "history_country"):
        with pytest.raises(ValueError, match=f"Received: '{name}'"):
            found.tensors([0], [name])


@pytest.mark.parametrize("shuffle_sessions", [None, "epoch"])
def test_rows_hold_each_value_once(log: Any, sequences: Sequences, shuffle_sessions: str | None) -> None:
    rows = pack(sequences, 96)
    inputs = ["segment", "item_id", "member_slot", *(f"member_{name}" for name in OF_MEMBER)]
    dataset = PackedDataset(rows, 3, inputs=inputs, shuffle_sessions=shuffle_sessions)
    context = kr.Schema.model_validate(
        {
            **log.schema.model_dump(),
            "features": [{**f.model_dump(), "known": "context"} if f.name in OF_MEMBER else f for f in log.schema.features],
        }
    )
    same = PackedDataset(
        pack(build_sequences(log.events, context), 96), 3, inputs=["item_id", *OF_MEMBER], shuffle_sessions=shuffle_sessions
    )
    widths = set()
    for _ in range(2):
        for batch in range(len(dataset)):
            x, wide = dataset[batch][0], same[batch][0]
            np.testing.assert_array_equal(x["item_id"], wide["item_id"])
            np.testing.assert_array_equal(x["member_slot"] == 0, x["segment"] == 0)
            widths.add(x["member_profile"].shape[1])
            for name in OF_MEMBER:
                held = np.take_along_axis(
                    x[f"member_{name}"], np.maximum(x["member_slot"] - 1, 0).reshape(3, 96, *[1] * (x[f"member_{name}"].ndim - 2)), axis=1
                )
                held[x["member_slot"] == 0] = 0
                np.testing.assert_array_equal(held, wide[name])
        dataset.next_epoch()
        same.next_epoch()
    assert widths == {dataset.member_values} and dataset.member_values < 48
    with pytest.raises(ValueError, match="`inputs` with columns known='member' need 'member_slot'"):
        PackedDataset(rows, 3, inputs=["item_id", "member_country"])


def test_places_hold_every_order_of_a_session() -> None:
    """A value that changes inside a session, of which a row has a part: any event of it may come into the row."""
    run, session = np.array([0, 0, 1, 2, 2, 3]), np.array([0, 0, 0, 0, 1, 1])
    columns = {"age": HeldOnce(np.arange(4.0), run)}
    index = np.array([[0, 1, -1], [4, 5, -1]])
    assert MemberSlots(columns, np.zeros(6, int), index).most == 2
    slots = MemberSlots(columns, np.zeros(6, int), index, session)
    assert slots.most >= 3, "control: without sessions there are two places"
    made = slots.tensors(np.array([[3, 0, -1], [2, 5, 4]]))
    assert made["member_slot"].tolist() == [[2, 1, 0], [1, 3, 2]]
    assert made["member_age"][:, :3].tolist() == [[0.0, 2.0, 0.0], [1.0, 2.0, 3.0]]


def test_packed_requests_have_one_value_a_request(log: Any, sequences: Sequences) -> None:
    found = requests(sequences)
    dataset = PackedRequests(found, 64, 2, names=["request_slot", "candidate_item_id", "member_profile", "member_home"], shuffle=False)
    x = dataset[0][0]
    assert x["member_profile"].shape == (2, dataset.row_requests, 6) and x["member_home"].shape == (2, dataset.row_requests)
    event = dataset.slots[:2]
    there = event >= 0
    owner = x["member_profile"][np.nonzero(there)[0], x["request_slot"][there] - 1]
    np.testing.assert_array_equal(owner, plain(log, sequences, "profile")[event[there]])


def test_several_values_in_a_request_are_refused(log: Any) -> None:
    events = log.events.reset_index(drop=True)
    rows = events.index[events["request_id"] == events["request_id"].iloc[0]][[2, 5]]
    other = events["country"].iloc[0]
    bad = events.copy()
    bad.loc[rows, "country"] = "SE" if other != "SE" else "DK"
    message = rf"column 'country' must be the same in all rows of a request \(known='member'\). Received: '(SE|DK)' at row {rows[0]}"
    with pytest.raises(ValueError, match=f"{message}.*the first of rows {rows[0]}, {rows[1]}, and '{other}' at row 0 of the same request"):
        build_sequences(bad, log.schema)
    kept, report = check_events(bad, log.schema, on_error="drop", sort=True)
    assert set(events["request_id"]) - set(kept["request_id"]) == {events["request_id"].iloc[0]}
    assert report.dropped == {
        "column 'country' must be the same in all rows of a request (known='member')": int(
            (events["request_id"] == events["request_id"].iloc[0]).sum()
        )
    }
    vector = events.copy()
    vector.at[rows[0], "profile"] = [9.0] * 6
    with pytest.raises(ValueError, match="column 'profile' must be the same in all rows"):
        build_sequences(vector, log.schema)
    later = events.copy()  # between requests a value may change
    last = later["request_id"] == later["request_id"].iloc[-1]
    later.loc[last, "country"] = "NO"
    assert build_sequences(later, log.schema).num_events == len(events)


@pytest.mark.parametrize("name", ["slot", "home"])
def test_names_of_inputs_do_not_meet(name: str) -> None:
    columns = [kr.Number(name, known="member"), kr.Number("member_home"), kr.Number("age")]
    with pytest.raises(ValueError, match=rf"column '{name}' \(known='member'\) has the input 'member_{name}', which has another meaning"):
        kr.Schema(member="m", time="t", request="r", features=columns, tasks=["click"])


def test_shards_hold_the_same(log: Any, sequences: Sequences, tmp_path: Any) -> None:
    shards = kr.data.prepare(log, tmp_path / "shards", shards=2)
    values = sum(shards.arrays(number)["column/profile"].nbytes for number in range(2))
    whole: Any = sequences.columns["profile"]
    assert values == whole.values.nbytes < np.asarray(whole).nbytes / 5
    for part in shards.all_sequences():
        for name in OF_MEMBER:
            np.testing.assert_array_equal(np.asarray(part.columns[name]), plain(log, part, name))
    unread = shards.sequences(0, columns=["home"])
    held: Any = unread.columns["profile"]
    assert not np.asarray(held).any() and np.array_equal(held.run, unread.columns["home"].run)  # type: ignore[attr-defined]


def test_the_schema_reads_back(log: Any, tmp_path: Any) -> None:
    log.schema.save(tmp_path / "schema.json")
    assert kr.Schema.load(tmp_path / "schema.json") == log.schema
    assert log.schema.of_member == OF_MEMBER
    text = (tmp_path / "schema.json").read_text().replace('"known": "member"', '"known": "person"')
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ValueError, match=r"`known`.*'item', 'context', 'member' or 'after'"):
        kr.Schema.load(tmp_path / "wrong.json")


def test_a_frame_is_read_as_it_is() -> None:
    events = pd.DataFrame(
        {"m": [1, 1, 2], "t": [1_600_000_000] * 2 + [1_600_000_100], "r": [1, 1, 2], "item": [5, 6, 7], "click": [0, 1, 0]}
    )
    events["age"] = [None, None, 30.0]
    schema = kr.Schema(
        member="m", time="t", request="r", features=[kr.Id("item"), kr.Number("age", missing=0.0, known="member")], tasks=["click"]
    )
    np.testing.assert_array_equal(np.asarray(build_sequences(events, schema).columns["age"]), [0.0, 0.0, 30.0])
