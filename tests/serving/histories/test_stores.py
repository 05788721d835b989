"""Both stores against the log: the newest events before a time, in its order; bounds, expiry, threads, and bad events."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.serving import HistoryStore, MemoryHistories, RedisHistories

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A redis-server of this test alone."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("the program redis-server is not installed (Debian: apt-get install redis-server)")
    redis = pytest.importorskip("redis", reason="the package redis is not installed: pip install keras-ranking[redis]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        client, end = redis.Redis(port=port), time.monotonic() + 30
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < end and process.poll() is None, "redis-server did not start"
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Any:
    """A function that makes an empty store of this kind."""
    if request.param == "memory":
        return MemoryHistories
    url = request.getfixturevalue("redis_url")
    import redis

    redis.Redis.from_url(url).flushdb()
    return lambda *args, **settings: RedisHistories(url, *args, **settings)


@pytest.fixture(scope="module")
def log() -> Any:
    found = kr.data.simulate(members=12, days=2, seed=4)
    return SimpleNamespace(events=found.events, schema=found.schema.fit(found.events))


COLUMNS = ["item_id", "topic", "age_hours", "click", "dwell_seconds", "time"]


def by_hand(events: pd.DataFrame, member: Any, count: int, before: int | None) -> pd.DataFrame:
    own = events[events["member_id"] == member]
    own = own if before is None else own[own["time"] < before]
    return own.sort_values("time", kind="stable").tail(count).reset_index(drop=True)


def test_the_newest_events_before_a_time(make: Any, log: Any) -> None:
    """In the log's order among equal times; also where parts of the log come late."""
    events = log.events.reset_index(drop=True)
    assert (events.groupby("member_id")["time"].diff() == 0).any(), "the log has ties"
    store = make(log.schema, most=300)
    assert isinstance(store, HistoryStore)
    halves = events.iloc[len(events) // 2 :], events.iloc[: len(events) // 2]
    for part in halves:
        for at in range(0, len(part), 397):
            assert store.append(part.iloc[at : at + 397]) == len(part.iloc[at : at + 397])
    checked = 0
    for member in events["member_id"].unique()[:6]:
        times = events.loc[events["member_id"] == member, "time"]
        for count, before in ((5, None), (300, None), (20, int(times.median())), (300, int(times.min())), (7, int(times.max()))):
            wanted, found = by_hand(events, member, count, before), store.latest(member, count, before=before).events
            assert len(wanted) == len(found)
            checked += len(found)
            for name in COLUMNS:
                np.testing.assert_array_equal(found[name].to_numpy(), wanted[name].to_numpy())
    assert checked > 200


def test_control_ties_by_chance_would_be_seen(log: Any) -> None:
    """Rows of one time in another order are other histories."""
    events = log.events.reset_index(drop=True)
    store, other = MemoryHistories(log.schema, most=300), MemoryHistories(log.schema, most=300)
    store.append(events)
    other.append(events.iloc[::-1])
    member = events["member_id"].iloc[0]
    assert store.latest(member, 300).mark != other.latest(member, 300).mark


def test_marks_follow_the_events(make: Any, log: Any) -> None:
    events = log.events[log.events["member_id"] == log.events["member_id"].iloc[0]]
    events = events.drop_duplicates("time").sort_values("time").head(30)
    member, store = events["member_id"].iloc[0], make(log.schema)
    store.append(events.iloc[3:])
    before = store.latest(member, 50)
    assert store.latest(member, 50).mark == before.mark
    store.append(events.iloc[:3])  # late: the last event is the same
    late = store.latest(member, 50)
    assert late.mark != before.mark and late.events["time"].iloc[-1] == before.events["time"].iloc[-1]
    assert store.latest(member, len(events) - 3).mark == before.mark


def test_bounds_and_unknown_members(make: Any, log: Any) -> None:
    store, member = make(log.schema, most=4), log.events["member_id"].iloc[0]
    store.append(log.events)
    wanted = by_hand(log.events, member, 4, None)
    np.testing.assert_array_equal(store.latest(member, 4).events["item_id"], wanted["item_id"])
    nobody = store.latest(10**6, 4)
    assert len(nobody.events) == 0 and nobody.mark == store.latest("nobody", 4).mark
    assert len(store.latest(str(member), 4).events) == 0  # 7 and "7" are two members
    with pytest.raises(ValueError, match="`count` must be from 1 to `most`, 4. Received: count=5"):
        store.latest(member, 5)
    with pytest.raises(ValueError, match="a member must be an integer or a text. Received: 1.5"):
        store.latest(1.5, 4)


def test_bad_events_are_refused_whole(make: Any, log: Any) -> None:
    store, events = make(log.schema), log.events.head(6)
    for wrong, message in (
        (events.drop(columns="item_id"), "column 'item_id' is missing in the events"),
        (events.assign(age_hours=[1.0, np.inf, 1.0, 1.0, 1.0, 1.0]), "age_hours"),
        (events.assign(member_id=1.5), "a member must be an integer or a text"),
    ):
        with pytest.raises(ValueError, match=message):
            store.append(wrong)
    with pytest.raises(TypeError, match="`events` must be a DataFrame. Received: list"):
        store.append([1])
    assert len(store.latest(events["member_id"].iloc[0], 9).events) == 0
    assert store.append(events.head(0)) == 0
    with pytest.raises(ValueError, match="`keep_seconds` must be positive"):
        make(log.schema, keep_seconds=0)


def test_two_threads(make: Any, log: Any) -> None:
    """Nothing is lost, and each reading is of whole events in order of time."""
    events, store = log.events.sort_values("time").reset_index(drop=True), make(log.schema, most=1000)
    member, failed = events["member_id"].mode()[0], []

    def write(part: pd.DataFrame) -> None:
        for at in range(0, len(part), 5):
            store.append(part.iloc[at : at + 5])

    def read() -> None:
        while not done.is_set():
            if (np.diff(store.latest(member, 1000).events["time"].to_numpy(dtype=np.int64)) < 0).any():
                failed.append("not in order")

    done = threading.Event()
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(events.iloc[number::2].head(50),)) for number in range(2)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert failed == []
    for one in events["member_id"].unique():
        wanted = (events.head(100)["member_id"] == one).sum()
        assert len(store.latest(one, 1000).events) == wanted


def test_members_are_forgotten(log: Any) -> None:
    now = [0.0]
    store = MemoryHistories(log.schema, keep_seconds=10, most_members=2, clock=lambda: now[0])
    parts = [part for _, part in log.events.groupby("member_id")][:3]
    ids = [part["member_id"].iloc[0] for part in parts]
    for part in parts:
        store.append(part)
        now[0] += 4
    assert len(store) == 2 and len(store.latest(ids[0], 9).events) == 0  # most_members
    assert len(store.latest(ids[1], 9).events) == 9
    now[0] += 3  # 11 s after the second, 7 s after the third
    assert len(store.latest(ids[1], 9).events) == 0 and len(store.latest(ids[2], 9).events) == 9


def test_redis_forgets(redis_url: str, log: Any) -> None:
    store = RedisHistories(redis_url, log.schema, keep_seconds=0.2, prefix="short:")
    store.append(log.events.head(20))
    member = log.events["member_id"].iloc[0]
    assert len(store.latest(member, 9).events)
    end = time.monotonic() + 20
    while len(store.latest(member, 9).events):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_missing_values_and_texts(make: Any) -> None:
    """Large integers next to a missing one keep all their digits; lists, texts and datetimes come back as the schema reads them."""
    schema = kr.Schema(
        member="m",
        time="t",
        request="r",
        features=[kr.Id("item"), kr.Vector("text", size=2)],
        actions=[kr.Number("dwell")],
        tasks=["click"],
    )
    big = 2**60 + 1
    events = pd.DataFrame(
        {"m": ["ж"] * 3, "t": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"], utc=True), "item": [big, None, "ж"]}
        | {"text": [[1.0, 2.0], np.array([3.0, 4.5]), (0.0, 1.0)], "dwell": [1.5, 2, 0]}
    ).astype({"item": object})
    store = make(schema)
    store.append(events)
    found = store.latest("ж", 3).events
    for column in (*schema.inputs(), *schema.actions):
        np.testing.assert_array_equal(column.encode(found[column.name]), column.encode(events[column.name]))
    np.testing.assert_array_equal(schema.encode_time(found["t"]), schema.encode_time(events["t"]))
    assert found["item"].tolist() == [big, None, "ж"]
