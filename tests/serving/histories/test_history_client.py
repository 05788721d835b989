"""Scores after a history in a store: those of the whole request, with the history encoded once."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import numpy as np
import pytest

from keras_ranking.serving import Client, HistoryClient, MemoryHistories, ServingError, serve
from tests.serving.calling import until

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("histories") / "ranker"
    shutil.copytree(small.version, folder / "1")
    with serve(folder, rest_port=0, grpc_port=0, poll_seconds=0.05) as running:
        yield running, folder


@pytest.fixture
def client(served: Any, logged: Any) -> Any:
    with Client(f"127.0.0.1:{served[0].grpc_port}", logged.schema, model="ranker") as made:
        yield made


def requests_of(events: Any, count: int) -> list[Any]:
    """(member, candidates, time) of the last requests of a log."""
    found = [part for _, part in events.sort_values("time", kind="stable").groupby("request_id", sort=False)][-count:]
    return [(part["member_id"].iloc[0], part, int(part["time"].iloc[0])) for part in found]


def whole(client: Client, events: Any, member: Any, candidates: Any, at: int, count: int = 64) -> Any:
    history = events[(events["member_id"] == member) & (events["time"] < at)].sort_values("time", kind="stable").tail(count)
    return client.score(history if len(history) else None, candidates, at)


def test_scores_are_those_of_the_whole_request(client: Any, logged: Any) -> None:
    store = MemoryHistories(logged.schema)
    store.append(logged.events.sample(frac=1, random_state=0).sort_values("time", kind="stable"))
    scorer = HistoryClient(client, store, events=64)
    wanted = requests_of(logged.events, 6)
    for turn in range(2):
        for member, candidates, at in wanted:
            got = scorer.score(member, candidates, at)
            np.testing.assert_allclose(got, whole(client, store_order(store, logged, member), member, candidates, at), rtol=1e-5, atol=1e-6)
            assert got.index.equals(candidates.index)
        assert (scorer.encoded + scorer.extended, scorer.found) == (6, 6 * turn)
    # Control: another history gives other scores.
    member, candidates, at = wanted[0]
    assert np.abs(scorer.score(10**9, candidates, at) - scorer.score(member, candidates, at)).to_numpy().max() > 1e-5


def store_order(store: Any, logged: Any, member: Any) -> Any:
    """The member's events in the order in which the store has those of one time."""
    return store.latest(member, 1000).events


def test_an_event_later_and_an_unknown_member(client: Any, logged: Any) -> None:
    events = logged.events.sort_values("time", kind="stable")
    # A member with a past that the model sees at the request: events of the last minutes are hidden.
    seen = [(*call, events[(events["member_id"] == call[0]) & (events["time"] < call[2] - 3600)]) for call in requests_of(events, 100)]
    member, candidates, at, past = next(call for call in seen if len(call[3]) >= 20)
    own, old = events[events["member_id"] == member], past.tail(20)
    late = old.iloc[-3:-1]  # among the newest
    store = MemoryHistories(logged.schema)
    scorer = HistoryClient(client, store, events=64)
    nobody = scorer.score(member, candidates, at)
    np.testing.assert_allclose(nobody, client.score(None, candidates, at), rtol=1e-5, atol=1e-6)
    store.append(old.drop(late.index))
    first = scorer.score(member, candidates, at)
    store.append(late)
    second = scorer.score(member, candidates, at)
    assert np.abs(first - second).to_numpy().max() > 0
    np.testing.assert_allclose(second, whole(client, store_order(store, logged, member), member, candidates, at), rtol=1e-5, atol=1e-6)
    store.append(own[own["time"] >= at])  # events of this moment and after it are none of this request
    np.testing.assert_array_equal(scorer.score(member, candidates, at), second)
    assert (scorer.encoded + scorer.extended, scorer.found) == (3, 1)


def test_bounds_and_expiry(client: Any, logged: Any) -> None:
    now, store = [0.0], MemoryHistories(logged.schema)
    store.append(logged.events)
    scorer = HistoryClient(client, store, events=32, most_kept=2, keep_seconds=10, clock=lambda: now[0])
    calls = []
    for member, candidates, at in requests_of(logged.events, 40):
        if member not in [one[0] for one in calls]:
            calls.append((member, candidates, at))
    for call in calls[:3]:
        scorer.score(*call)
    assert len(scorer) == 2 and scorer.encoded == 3
    scorer.score(*calls[2])
    assert scorer.found == 1
    scorer.score(*calls[0])  # was dropped
    assert scorer.encoded == 4
    now[0] += 11
    scorer.score(*calls[0])
    assert scorer.encoded == 5
    scorer.forget()
    assert len(scorer) == 0
    for name in ("events", "most_kept"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
            HistoryClient(client, store, **{name: 0})


def test_two_threads_share_a_client(client: Any, logged: Any) -> None:
    store = MemoryHistories(logged.schema)
    store.append(logged.events)
    scorer, calls, failed = HistoryClient(client, store, events=32), requests_of(logged.events, 8), []
    wanted = [scorer.score(*call) for call in calls]

    def run() -> None:
        for call, want in zip(calls, wanted, strict=True):
            if np.abs(scorer.score(*call) - want).to_numpy().max() > 1e-6:
                failed.append(call[0])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and scorer.found >= 16


def test_a_new_version_is_encoded_anew(served: Any, client: Any, logged: Any, small: Any) -> None:
    store = MemoryHistories(logged.schema)
    store.append(logged.events)
    scorer, call = HistoryClient(client, store, events=32, poll_seconds=0.01), requests_of(logged.events, 1)[0]
    before = scorer.score(*call)
    _, folder = served
    shutil.copytree(small.version, folder / ".copy")
    (folder / ".copy").rename(folder / "2")
    until(lambda: client.versions().get(2, ("",))[0] == "AVAILABLE")
    until(lambda: client.versions().get(1, ("",))[0] != "AVAILABLE")
    np.testing.assert_allclose(scorer.score(*call), before, rtol=1e-6)  # the same weights
    assert scorer.encoded == 2 and scorer._pinned[1] == 2


def test_a_model_without_phases(server: Any, logged: Any) -> None:
    from tests.serving import standin
    from tests.serving.calling import connect, frames

    with connect(server, "grpc") as made:
        scorer = HistoryClient(made, MemoryHistories(standin.SCHEMA))
        if "encode_history" not in made.signatures():
            with pytest.raises(ServingError, match='signature "encode_history" not found'):
                scorer.score("m", frames(1, 2)[1], 1_790_000_000)


@pytest.mark.parametrize("growth", [0, 5])
def test_later_events_extend_what_is_kept(client: Any, logged: Any, growth: int) -> None:
    events = logged.events.sort_values("time", kind="stable")
    counts = events["member_id"].value_counts()
    own = events[events["member_id"] == counts.index[0]].tail(14)
    own = own.assign(time=own["time"].iloc[0] + 600 * np.arange(14))
    shown, at = own.tail(1), int(own["time"].iloc[-1]) + 10_000
    store = MemoryHistories(logged.schema)
    scorer = HistoryClient(client, store, events=8, growth=growth)
    full = []  # histories that are scored, oldest event first
    for number, begin in enumerate((0, 4, 6, 8, 10, 12)):
        end = begin + (4 if not begin else 2)
        store.append(own.iloc[begin:end])
        # With growth, a history begins where it was encoded, until it has 13 events; else it has the newest 8.
        first = max(0, end - 8) if not growth or end > 8 + growth else 0
        full.append(own.iloc[first:end])
        for _ in range(2):
            got = scorer.score(own["member_id"].iloc[0], shown, at)
        np.testing.assert_allclose(got, client.score(full[-1], shown, at), rtol=1e-5, atol=2e-6)
        assert scorer.found == number + 1
    assert (scorer.encoded, scorer.extended) == ((2, 4) if growth else (4, 2))
    # A late event, before those that are kept, has them encoded anew.
    before = scorer.encoded
    early = HistoryClient(client, MemoryHistories(logged.schema), events=8, growth=growth)
    early.store.append(own.iloc[1:4])
    early.score(own["member_id"].iloc[0], shown, at)
    early.store.append(own.iloc[:1])
    got = early.score(own["member_id"].iloc[0], shown, at)
    np.testing.assert_allclose(got, client.score(own.iloc[:4], shown, at), rtol=1e-5, atol=2e-6)
    assert (early.encoded, early.extended, before) == (2, 0, scorer.encoded)


def test_extending_by_hand(client: Any, logged: Any) -> None:
    events = logged.events.sort_values("time", kind="stable")
    own = events[events["member_id"] == events["member_id"].value_counts().index[0]].drop_duplicates("time").tail(9)
    at = int(own["time"].iloc[-1]) + 10_000
    cache = client.extend(client.extend(client.encode(own.head(5), at), own.iloc[5:6]), own.iloc[6:])
    np.testing.assert_allclose(client.score_cached(cache, own, at), client.score(own, own, at), rtol=1e-5, atol=2e-6)
    with pytest.raises(ValueError, match="must not be earlier than the events in the cache"):
        client.extend(cache, own.head(2))
    with pytest.raises(ValueError, match="at least one later event"):
        client.extend(cache, own.head(0))
