"""What a caller reads about a bad log: all problems at once, rows of their own frame, and no argument that they cannot give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import keras_ranking as kr
from keras_ranking.data import Log, build_sequences, check_events, open_log, point_in_time_counts, requests, split_by_time
from keras_ranking.data.labels import contribution_labels, long_dwell_labels

START = 1_600_000_000
SCHEMA = kr.Schema(
    member="m", time="t", request="r", features=[kr.Id("item"), kr.Number("age", transform="log1p"), kr.Number("price")], tasks=["click"]
)


def make_log(rows: int = 6) -> pd.DataFrame:
    n = np.arange(rows)
    frame = pd.DataFrame({"m": 1, "t": START + n, "r": n, "item": n, "age": 1.0 + n, "price": 1.0, "click": n % 2, "split": "train"})
    return frame.set_axis([f"r{row}" for row in n], axis=0)


def test_all_problems_are_in_one_error() -> None:
    log = make_log()
    log.loc["r1", "age"] = -1.0
    log.loc[["r2", "r4"], "price"] = np.inf
    log.loc["r5", "click"] = 7
    with pytest.raises(ValueError) as caught:
        check_events(log, SCHEMA)
    lines = str(caught.value).splitlines()
    assert lines == [
        "the log has 3 problems:",
        "  (1) column 'age' has transform='log1p' and must not be negative. Received: -1.0 at row 1 (index 'r1').",
        "  (2) column 'price' must hold finite numbers. Received: inf at row 2 (index 'r2'); 2 such rows.",
        "  (3) column 'click' of task 'click' must hold 0 or 1. Received: 7 at row 5 (index 'r5').",
        "on_error='drop' leaves such rows out and counts them.",
    ]


def test_more_than_ten_problems_are_counted() -> None:
    names = [f"x{number}" for number in range(13)]
    schema = SCHEMA.model_copy(update={"features": tuple(kr.Number(name) for name in names)})
    log = make_log(14).assign(**{name: np.where(np.arange(14) == number, np.inf, 0.0) for number, name in enumerate(names)})
    with pytest.raises(ValueError, match=r"(?s)the log has 13 problems:.*\(10\) column 'x9'.*and 3 more") as caught:
        check_events(log, schema)
    assert "'x10'" not in str(caught.value)


@pytest.mark.parametrize("label", [np.int64(7), np.str_("a"), pd.Timestamp("2020-01-01"), ("a", 1)])
def test_values_and_labels_are_shown_as_their_owner_writes_them(label) -> None:
    log = make_log(2).set_axis(pd.Index([label, "b"], dtype=object, tupleize_cols=False), axis=0)
    log["age"] = pd.Series([np.float64(-2), np.float64(1)], index=log.index, dtype=object)
    with pytest.raises(ValueError) as caught:
        check_events(log, SCHEMA)
    assert "Received: -2.0 at row 0" in str(caught.value) and "np." not in str(caught.value)


def test_rows_are_those_of_the_whole_log() -> None:
    """Training reads a part of the rows; its messages count in the log."""
    log = make_log(8).assign(split=["test"] * 3 + ["train"] * 5)
    log.loc["r5", "age"] = -1.0
    with pytest.raises(ValueError, match=r"Received: -1.0 at row 5 \(index 'r5'\)"):
        kr.training.train(Log(log, SCHEMA, "mine"), "lirank", verbose=False)


CONVERTIBLE = [
    (lambda log: pa.Table.from_pandas(log), "Table; convert it: `events.to_pandas\\(\\)`"),
    (lambda log: log.to_dict("list"), "dict; convert it: `pd.DataFrame\\(events\\)`"),
    (lambda log: log.to_dict("records"), "list; convert it: `pd.DataFrame\\(events\\)`"),
    (lambda log: Log(log, SCHEMA, "mine"), "Log; its rows are in `events.events`"),
    (lambda log: log.to_numpy(), "ndarray"),
]


@pytest.mark.parametrize(("convert", "received"), CONVERTIBLE)
def test_other_frames_are_named_with_their_conversion(convert, received) -> None:
    log = convert(make_log())
    for enter in (
        lambda: check_events(log, SCHEMA),
        lambda: build_sequences(log, SCHEMA),
        lambda: requests(log, SCHEMA),
        lambda: Log(log, SCHEMA, "mine"),
        lambda: split_by_time(log, SCHEMA),
        lambda: SCHEMA.fit(log),
        lambda: point_in_time_counts(log, "item", [None], time="t"),
        lambda: long_dwell_labels(log, "age", "t", []),
        lambda: contribution_labels(log, ["click"]),
        lambda: kr.training.position_propensities(log, SCHEMA.model_copy(update={"position": "item"})),
    ):
        with pytest.raises(TypeError, match=f"`events` must be a pandas DataFrame. Received: {received}"):
            enter()


@pytest.mark.parametrize("wrong", [make_log(), {"m": [1]}, pa.table({"m": [1]}), "parquet:log.parquet"])
def test_a_training_takes_a_log(wrong) -> None:
    later = (lambda log: kr.training.warm_start(log, "nowhere", []), lambda log: kr.training.evaluate("nowhere", log))
    for enter in (kr.training.train, *(() if isinstance(wrong, pd.DataFrame) else later)):  # a model has the schema of a frame
        with pytest.raises(
            TypeError, match=r"`log` must be a keras_ranking.data.Log. Received: .*; `keras_ranking.data.Log\(events, schema\)`"
        ):
            enter(wrong)


@pytest.mark.parametrize("wrong", [make_log(), {"m": [1]}])
def test_streams_are_asked_for_with_the_way_to_make_them(wrong) -> None:
    training = kr.training
    for enter in (
        lambda: kr.data.pack(wrong, 8),
        lambda: kr.data.pad(wrong, 8),
        lambda: kr.data.shuffle_sessions(wrong),
        lambda: training.event_weights(wrong),
        lambda: training.place_weights(wrong),
        lambda: training.age_weights(wrong),
    ):
        with pytest.raises(TypeError, match="`sequences` must be Sequences. Received: .*; `keras_ranking.data.build_sequences"):
            enter()
    with pytest.raises(TypeError, match="`rows` must be PackedRows. Received: .*; `keras_ranking.data.pack"):
        kr.data.PackedDataset(wrong, 8)
    for enter in (lambda: kr.data.RequestDataset(wrong, 8, ["t"]), lambda: kr.data.PackedRequests(wrong, 8, 8, ["t"])):
        with pytest.raises(TypeError, match="`requests` must be Requests. Received: .*; `keras_ranking.data.requests"):
            enter()


@pytest.mark.parametrize("wrong", [{"member": "m"}, "schema.json", None])
def test_a_schema_is_asked_for(wrong) -> None:
    for enter in (lambda: check_events(make_log(), wrong), lambda: build_sequences(make_log(), wrong)):
        with pytest.raises(TypeError, match="`schema` must be Schema. Received: .*; `Schema.load"):
            enter()


def test_sizes_of_another_type_are_named() -> None:
    streams = build_sequences(make_log(), SCHEMA)
    for size in ("64", 8.0, 0, True):
        with pytest.raises(ValueError, match="`row_length` must be a positive integer. Received: row_length="):
            kr.data.pack(streams, size)
    with pytest.raises(ValueError, match="`max_history` must be an integer of at least 0, or None. Received: max_history='3'"):
        requests(streams, max_history="3")
    with pytest.raises(ValueError, match="`delay` must be at least 1 second. Received: delay='60'"):
        requests(streams, delay="60")
    with pytest.raises(ValueError, match=r"`windows` must be a list of seconds, such as \[3600, None\]. Received: windows=60"):
        point_in_time_counts(make_log(), "item", 60, time="t")
    assert kr.data.pack(streams, np.int64(8)).index.shape == (1, 8)


def test_a_log_needs_a_split_with_known_words() -> None:
    with pytest.warns(UserWarning, match="the log 'mine' has no column 'split': requests before .* are 'train', the rest 'validation'"):
        cut = Log(make_log().drop(columns="split"), SCHEMA, "mine")
    pd.testing.assert_frame_equal(cut.events, kr.data.split_by_time(make_log().drop(columns="split"), SCHEMA))
    assert cut.notes[0].startswith("no column 'split': requests before")
    words = make_log().assign(split=["train", "Train", "val", "val", "other", None])
    with pytest.raises(ValueError) as caught:
        Log(words, SCHEMA, "mine")
    assert str(caught.value) == (
        "column 'split' must hold 'train', 'validation', 'test', 'history' or 'new_members'. Received: 'Train' in 1 rows, 'val' in 2 "
        "rows, 'other' in 1 rows, None in 1 rows; rename them: `events['split'].replace({'Train': 'train', 'val': 'validation'})`"
    ) or "nan in 1 rows" in str(caught.value)
    with pytest.raises(TypeError, match=r"`schema` must be a Schema. Received: str; read a file with `Schema.load\('s.json'\)`"):
        Log(make_log(), "s.json", "mine")
    log = Log(make_log(), SCHEMA, "mine")
    with pytest.raises(ValueError, match=r"the log 'mine' has no rows with split 'test'. It has: \['train'\]"):
        log.split("test")
    assert log.preset is None and len(log.split("train")) == 6


def test_split_by_time_keeps_requests_whole() -> None:
    log = make_log(10).drop(columns="split")
    log["r"] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    log["t"] = START + log["r"]
    split = split_by_time(log.sample(frac=1, random_state=0), SCHEMA, train_share=0.6)["split"]
    assert split.loc[log.index].tolist() == ["train"] * 6 + ["validation"] * 4
    stamps = log.assign(t=pd.to_datetime(log["t"], unit="s"))
    assert split_by_time(stamps, SCHEMA, train_share=0.6)["split"].tolist() == ["train"] * 6 + ["validation"] * 4
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="`train_share` must lie strictly between 0 and 1"):
            split_by_time(log, SCHEMA, train_share=share)


def test_a_parquet_log_with_bad_times_is_opened_and_then_checked(tmp_path) -> None:
    log = make_log(6).drop(columns="split")
    log["t"] = log["t"] * 1000
    log.to_parquet(tmp_path / "log.parquet")
    opened = open_log(f"parquet:{tmp_path / 'log.parquet'}", schema=SCHEMA)
    with pytest.raises(ValueError, match="column 't' must hold seconds and holds milliseconds: divide by 1,000"):
        build_sequences(opened.events, SCHEMA)


def test_a_missing_column_names_the_nearest_and_files_without_a_header() -> None:
    with pytest.raises(ValueError, match=r"column 'price' of the schema is not in the log. It has: .*; did you mean 'prices'\?"):
        check_events(make_log().rename(columns={"price": "prices"}), SCHEMA)
    headerless = make_log().set_axis(["1", str(START), "0", "0.0", "1.0", "1.0.1", "0.1", "train"], axis=1)
    with pytest.raises(ValueError, match="these look like values: a file of rows must begin with a line of column names"):
        check_events(headerless, SCHEMA)


def test_names_that_cannot_be_inputs_say_how_to_name_them() -> None:
    for name, usable in (("age hours", "age_hours"), ("age-hours", "age_hours"), ("1st", "_1st"), ("time", "time_value"), ("ä b", "__b")):
        with pytest.raises(ValueError, match=f"the column may have any name: name='{usable}', column='{name}'"):
            kr.Number(name)
        assert kr.Number(name=usable, column=name).column == name
    with pytest.raises(ValueError, match=r"the column may have any name: Task\('long_dwell', label='long dwell'\)"):
        kr.Task("long dwell")


def test_the_reader_says_which_file_is_missing(tmp_path) -> None:
    columns = ["user_id", "video_id", "date", "time_ms", "play_time_ms", "duration_ms", "is_click", "long_view"]
    rows = [(7, 1, 20220422, 1650600000000, 9000, 20000, 1, 0), (7, 2, 20220423, 1650690000000, 500, 8000, 0, 0)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "log_standard_4_22_to_5_08.csv", index=False)
    log = kr.data.read_kuairand(tmp_path)
    with pytest.raises(ValueError, match=r"no rows with split 'train'.*log_standard_4_08_to_4_21\*.csv of the release; the folder has"):
        log.split("train")


def test_a_report_has_the_places_of_all_rows_left_out() -> None:
    log = make_log()
    log.loc[["r2", "r4"], "price"] = np.inf
    log.loc["r1", "age"] = -1.0
    report = build_sequences(log, SCHEMA, on_error="drop").report
    assert {reason.split("'")[1]: places.tolist() for reason, places in report.places.items()} == {"age": [1], "price": [2, 4]}
    assert "2 left out: column 'price' must hold finite numbers (first: inf at row 2 (index 'r2'); rows 2, 4)" in str(report)
