"""build_sequences: a log as member streams, encoded once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences

START = 1_700_000_000
SCHEMA = kr.Schema(
    member="member",
    time="time",
    request="request",
    session="session",
    position="rank",
    features=[
        kr.Id("item", buckets=1000),
        kr.Number("age"),
        kr.Vector("text", size=2),
        kr.Category("device", vocabulary=("a", "b"), known="context"),
        kr.Number("page_dwell", known="after"),
    ],
    actions=["click"],
    tasks=[kr.Task("click"), kr.Task("like", missing="unknown")],
)


def make_log(seed: int = 0, members: int = 6, requests: int = 40, ties: bool = True) -> pd.DataFrame:
    """Requests of 1 to 4 impressions in order of time; some members have two requests in one second."""
    rng = np.random.default_rng(seed)
    rows = []
    clock = START
    for request in range(requests):
        clock += int(rng.integers(0 if ties else 1, 3))
        member = f"m{rng.integers(members)}"
        for rank in range(1, int(rng.integers(2, 6))):
            rows.append((member, clock, f"r{request * 7919 % 1000}", f"s{(clock - START) // 10}", rank))
    log = pd.DataFrame(rows, columns=["member", "time", "request", "session", "rank"])
    log["item"] = [f"item {i}" for i in range(len(log))]
    log["age"] = np.arange(len(log), dtype=float)
    log["text"] = [[float(i), float(-i)] for i in range(len(log))]
    log["device"] = rng.choice(["a", "b", "c"], len(log))
    log["page_dwell"] = rng.random(len(log))
    log["click"] = rng.integers(0, 2, len(log))
    log["like"] = rng.choice([0.0, 1.0, np.nan], len(log))
    return log


def expected_order(log: pd.DataFrame) -> dict[str, list[int]]:
    """Rows of each member by time, then request by its first row, then row: with plain Python sorting."""
    first: dict[str, int] = {}
    for row, request in enumerate(log["request"]):
        first.setdefault(request, row)
    out: dict[str, list[int]] = {}
    for row, member in enumerate(log["member"]):
        out.setdefault(member, []).append(row)
    for rows in out.values():
        rows.sort(key=lambda row: (log["time"][row], first[log["request"][row]], row))
    return out


def streams(sequences: kr.data.Sequences) -> dict[str, list[int]]:
    return {m: sequences.rows[a:b].tolist() for m, a, b in zip(sequences.members, sequences.offsets, sequences.offsets[1:], strict=False)}


@pytest.mark.parametrize("seed", range(5))
def test_order_and_columns(seed: int) -> None:
    log = make_log(seed)
    built = build_sequences(log, SCHEMA)
    assert streams(built) == expected_order(log)
    assert built.num_events == len(log) == built.offsets[-1]
    assert built.num_members == log["member"].nunique()
    assert built.offsets[0] == 0
    rows = built.rows
    np.testing.assert_array_equal(built.member, np.repeat(np.arange(built.num_members), np.diff(built.offsets)))
    np.testing.assert_array_equal(built.members[built.member], log["member"].to_numpy()[rows])
    np.testing.assert_array_equal(built.time, log["time"].to_numpy()[rows] - SCHEMA.epoch)
    np.testing.assert_array_equal(built.position, log["rank"].to_numpy()[rows])
    np.testing.assert_array_equal(built.columns["age"], rows.astype("float32"))
    np.testing.assert_array_equal(built.columns["text"], np.stack([rows, -rows], axis=1).astype("float32"))
    np.testing.assert_array_equal(built.columns["device"], log["device"].map({"a": 1, "b": 2, "c": 0}).to_numpy()[rows])
    np.testing.assert_array_equal(built.columns["item"], kr.Id("item", buckets=1000).encode(log["item"])[rows])
    np.testing.assert_array_equal(built.columns["click"], log["click"].to_numpy()[rows])
    np.testing.assert_array_equal(built.labels["like"], log["like"].to_numpy()[rows].astype("float32"))
    types = {name: str(column.dtype) for name, column in built.columns.items()}
    assert types == dict.fromkeys(("age", "text", "page_dwell", "click"), "float32") | dict.fromkeys(("item", "device"), "int32")
    assert built.time.dtype == built.position.dtype == built.session.dtype == np.int32
    assert built.offsets.dtype == built.request.dtype == built.rows.dtype == np.int64
    assert built.target.all()


def test_codes_are_equal_exactly_where_ids_are() -> None:
    log = make_log(1)
    built = build_sequences(log, SCHEMA)
    for codes, ids in ((built.request, log["request"]), (built.session, log["member"] + log["session"])):
        names = ids.to_numpy()[built.rows]
        np.testing.assert_array_equal(codes[:, None] == codes[None], names[:, None] == names[None])
    # Control: one session name is used by several members, whose sessions are not one.
    assert log.groupby("session")["member"].nunique().max() > 1


def test_requests_stand_together_when_times_tie() -> None:
    """Two requests of one member in one second, their rows mixed in the log."""
    log = make_log(2, members=1, requests=2)
    log["time"] = START
    mixed = log.sample(frac=1.0, random_state=3).reset_index(drop=True)
    built = build_sequences(mixed, SCHEMA)
    assert (np.diff(mixed["request"].factorize()[0]) != 0).sum() > 1  # control: they do not in the log
    assert (np.diff(built.request) != 0).sum() == 1
    assert len(built.request_starts) == 3
    for a, b in zip(built.request_starts, built.request_starts[1:], strict=False):
        assert len(set(built.request[a:b])) == 1
        assert (np.diff(built.rows[a:b]) > 0).all()  # inside a request, as in the log


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_rows_gives_the_same_streams(seed: int) -> None:
    log = make_log(seed, ties=False)
    sorted_streams = build_sequences(log, SCHEMA)
    shuffled = log.sample(frac=1.0, random_state=seed)
    # Impressions of one request keep their order: it is the one thing that only the order of rows says.
    shuffled = shuffled.sort_values("rank", kind="stable") if seed % 2 else shuffled
    built = build_sequences(shuffled.reset_index(drop=True), SCHEMA)
    assert built.report.reordered > 0
    back = shuffled.index.to_numpy()

    def content(sequences: kr.data.Sequences, names: np.ndarray, by_rank: bool) -> dict[str, list[tuple[str, int, str]]]:
        out = {}
        for member, a, b in zip(sequences.members, sequences.offsets, sequences.offsets[1:], strict=False):
            rows = [(int(sequences.time[i]), log["request"][names[sequences.rows[i]]], int(sequences.position[i])) for i in range(a, b)]
            out[member] = sorted(rows) if by_rank else rows
        return out

    loose = seed % 2 == 0
    want, got = content(sorted_streams, np.arange(len(log)), loose), content(built, back, loose)
    assert got == want
    np.testing.assert_array_equal(np.sort(built.rows), np.arange(len(log)))


def test_sorted_by_member_is_sorted_as_well() -> None:
    log = make_log(3)
    by_member = log.sort_values(["member", "time"], kind="stable").reset_index(drop=True)
    built = build_sequences(by_member, SCHEMA)
    assert built.report.reordered == 0
    assert streams(built) == expected_order(by_member)


def test_rows_are_places_whatever_the_index_is() -> None:
    log = make_log(4)
    strange = log.set_index(pd.Index(["x"] * len(log)))
    np.testing.assert_array_equal(build_sequences(strange, SCHEMA).rows, build_sequences(log, SCHEMA).rows)
    assert list(strange.index) == ["x"] * len(log)  # the caller's frame is as it was


@pytest.mark.parametrize("kind", [np.asarray, pd.Series, list, lambda mask: pd.Series(mask, index=np.arange(len(mask)) + 500)])
def test_target(kind: object) -> None:
    log = make_log(5)
    mask = np.random.default_rng(0).random(len(log)) < 0.5
    built = build_sequences(log, SCHEMA, target=kind(mask))  # type: ignore[operator]
    np.testing.assert_array_equal(built.target, mask[built.rows])
    assert not np.array_equal(built.target, mask)  # control: the order of the log is not that of the streams
    other = built.with_target(kind(~mask))  # type: ignore[operator]
    np.testing.assert_array_equal(other.target, ~mask[built.rows])
    np.testing.assert_array_equal(built.target, mask[built.rows])


@pytest.mark.parametrize(
    "target",
    [[True, False], np.arange(5), np.full(5, np.nan), pd.Series([True, None, True, False, True], dtype="boolean"), np.ones(6, bool)],
    ids=["short", "numbers", "nan", "missing", "long"],
)
def test_target_errors(target: object) -> None:
    log = make_log(0).head(5)
    for use in (lambda: build_sequences(log, SCHEMA, target=target), lambda: build_sequences(log, SCHEMA).with_target(target)):
        with pytest.raises(ValueError, match="`target` must have one bool for each row of the log. Received: .* for 5 rows"):
            use()


def test_bad_rows_raise_or_are_dropped_and_counted() -> None:
    log = make_log(6)
    mask = np.arange(len(log)) % 2 == 0
    log.loc[3, "age"] = np.nan
    log.loc[8, "click"] = 7
    with pytest.raises(ValueError, match="column 'age' must not be missing.*row 3"):
        build_sequences(log, SCHEMA)
    built = build_sequences(log, SCHEMA, target=mask, on_error="drop")
    assert built.num_events == len(log) - 2
    assert built.report.rows == len(log)
    assert sum(built.report.dropped.values()) == 2
    assert not np.isin([3, 8], built.rows).any()
    np.testing.assert_array_equal(built.columns["age"], built.rows.astype("float32"))
    np.testing.assert_array_equal(built.target, mask[built.rows])
    np.testing.assert_array_equal(built.with_target(~mask).target, ~mask[built.rows])


def test_errors() -> None:
    log = make_log(0)
    with pytest.raises(ValueError, match="column 'item' of the schema is not in the log"):
        build_sequences(log.drop(columns="item"), SCHEMA)
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'drop'. Received: on_error='ignore'"):
        build_sequences(log, SCHEMA, on_error="ignore")
    with pytest.raises(TypeError, match="`events` must be a pandas DataFrame. Received: dict"):
        build_sequences({"member": [1]}, SCHEMA)  # type: ignore[arg-type]
    request = log["request"].value_counts().idxmax()
    moved = log.copy()
    moved.loc[int((log["request"] == request).to_numpy().argmax()), "member"] = "other"
    with pytest.raises(ValueError, match="column 'member' must hold one member for all rows of a request"):
        build_sequences(moved, SCHEMA)


def test_positions() -> None:
    log = make_log(0)
    log["rank"] = log["rank"].astype("Int64")
    log.loc[0, "rank"] = pd.NA
    built = build_sequences(log, SCHEMA)
    assert built.position[built.rows == 0] == 0
    np.testing.assert_array_equal(built.position[built.rows != 0], log["rank"].to_numpy()[built.rows[built.rows != 0]])
    log["rank"] = [None, *map(str, log["rank"][1:])]
    np.testing.assert_array_equal(build_sequences(log, SCHEMA).position, built.position)
    plain = SCHEMA.model_copy(update={"position": None, "session": None})
    built = build_sequences(log, plain)
    assert not built.position.any()
    assert built.session is None


def test_empty_log() -> None:
    built = build_sequences(make_log(0).head(0), SCHEMA)
    assert built.num_events == built.num_members == 0
    assert built.offsets.tolist() == [0]
    assert built.request_starts.tolist() == [0]
    assert built.columns["text"].shape == (0, 2)
    assert built.member.shape == (0,)


def test_times_as_datetimes() -> None:
    log = make_log(0)
    stamped = log.assign(time=pd.to_datetime(log["time"], unit="s", utc=True))
    np.testing.assert_array_equal(build_sequences(stamped, SCHEMA).time, build_sequences(log, SCHEMA).time)
