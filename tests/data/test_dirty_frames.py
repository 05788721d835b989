"""What `check_events` keeps, every encoder takes; and it leaves out the bad rows alone."""

from __future__ import annotations

import contextlib
from functools import partial

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.labels import long_dwell_labels
from keras_ranking.data.sequences import build_sequences
from tests.data.dirty_frames import BAD, SCHEMAS, clean_frame, dirty_frame, whole_columns
from tests.tiers import everything

FRAMES, PARTS = 2000, 10


def right_values(clean: pd.DataFrame) -> dict[str, np.ndarray]:
    """Encoded columns, from the clean numbers."""
    return {
        "age": np.log1p(clean["age"]).to_numpy(),
        "embedding": np.stack(list(clean["embedding"])).reshape(-1, 2),
        "click": clean["click"].to_numpy(),
        "score": clean["score"].to_numpy(),
        "price": ((clean["price"] - 2) / 0.5).to_numpy(),
        "dwell": np.log1p(clean["dwell"]).to_numpy(),
    }


@pytest.mark.filterwarnings("ignore:column '(item|author|topic|device)'")
@pytest.mark.parametrize("part", range(PARTS))
def test_what_the_check_keeps_every_encoder_takes(part: int) -> None:
    left_out = 0
    for seed in range(part, FRAMES, PARTS):
        schema, frame, clean, good = dirty_frame(seed)
        built = build_sequences(frame, schema, on_error="drop")  # the checks and every encoder
        assert sorted(built.rows.tolist()) == good, (seed, str(built.report))
        assert built.report.kept == len(good) and sum(built.report.dropped.values()) == len(frame) - len(good)
        values = clean.iloc[built.rows]
        np.testing.assert_array_equal(built.time + schema.epoch, values["time"], err_msg=str(seed))
        for name, right in right_values(values).items() if good else ():
            if name in built.columns:
                np.testing.assert_allclose(built.columns[name], right, rtol=1e-6, err_msg=f"{seed} {name}")
        if "tags" in built.columns:
            assert (built.columns["tags"] >= 0).sum(axis=1).tolist() == [len(ids) for ids in values["tags"]], seed
        if seed // PARTS % 8 == 0:  # the public check is the same one
            rows, report = check_events(frame, schema, on_error="drop")
            assert list(rows.index) == list(frame.index[good]) and report.dropped == built.report.dropped
        left_out += len(frame) - len(good)
    assert left_out > FRAMES / PARTS  # control: the frames have faults


@pytest.mark.parametrize(("schema", "column"), [(schema, column) for schema in SCHEMAS for column in schema.columns if column in BAD])
def test_every_bad_value_is_left_out_and_raises(schema, column) -> None:
    clean = clean_frame(np.random.default_rng(0))
    assert build_sequences(clean, schema).num_events == len(clean)  # control
    for value in BAD[column]:
        values = np.empty(len(clean), dtype=object)
        values[:] = clean[column].tolist()
        values[1] = value
        frame = clean.assign(**{column: pd.Series(values, index=clean.index, dtype=object)})
        assert sorted(build_sequences(frame, schema, on_error="drop").rows) == [0, *range(2, len(clean))]
        with pytest.raises(ValueError, match=rf"column '{column}' .* at row 1 \(index '{clean.index[1]}'\)"):
            check_events(frame, schema)


@pytest.mark.filterwarnings("ignore:column '")
@pytest.mark.parametrize(("schema", "column"), [(schema, column) for schema in SCHEMAS for column in schema.columns])
def test_columns_of_every_type_are_read_or_left_out(schema, column) -> None:
    """No type makes a check, an encoder or a count fail in the words of pandas: all rows are left out, or some, or none."""
    clean = clean_frame(np.random.default_rng(1)).head(6)
    for name, values in whole_columns(len(clean)).items():
        frame = clean.assign(**{column: values.set_axis(clean.index)})
        built = build_sequences(frame, schema, on_error="drop")
        assert built.num_events + sum(built.report.dropped.values()) == len(frame), name
        with contextlib.suppress(ValueError):
            check_events(frame, schema)


def mixed_rows(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A frame with bad values, and the same with faults between rows: out of order, repeated, requests and positions of two."""
    rng = np.random.default_rng(seed)
    _, frame, _, _ = dirty_frame(seed)
    rows = rng.permutation(np.concatenate([np.arange(len(frame)), rng.integers(0, len(frame), int(rng.integers(0, 3)))]))
    mixed = frame.iloc[rows]
    for name in rng.choice(["request", "member", "time", "position"], int(rng.integers(0, 3)), replace=False):
        values = mixed[name].astype(object).tolist()
        one, other = rng.integers(0, len(mixed), 2)
        values[one] = values[other]
        mixed = mixed.assign(**{name: pd.Series(values, index=mixed.index, dtype=object)})
    return frame, mixed


@pytest.mark.filterwarnings("ignore:column '")
def test_check_and_build_agree_on_rows_that_contradict_one_another() -> None:
    refused = between = 0
    frames = 400 if everything() else 60
    for seed in range(frames):
        schema = SCHEMAS[seed % 2]
        frame, mixed = mixed_rows(seed)
        rows, report = check_events(mixed.reset_index(drop=True), schema, on_error="drop", sort=True)
        built = build_sequences(mixed.reset_index(drop=True), schema, on_error="drop")
        assert sorted(rows.index) == sorted(built.rows), seed
        assert (report.dropped, report.examples, report.reordered) == (built.report.dropped, built.report.examples, built.report.reordered)
        messages = []
        for enter in (partial(check_events, sort=True), build_sequences):
            try:
                enter(mixed, schema)
                messages.append("")
            except ValueError as error:
                messages.append(str(error).replace("sort=True sorts them. ", ""))
        assert messages[0] == messages[1], seed
        refused += bool(messages[0])
        between += len(set(report.dropped) - set(check_events(frame, schema, on_error="drop", sort=True)[1].dropped)) > 0
        # Rows that were kept are good: kept again, all of them.
        again = build_sequences(mixed.reset_index(drop=True).iloc[np.sort(built.rows)], schema)
        assert again.num_events == built.num_events, seed
    assert refused > 0.75 * frames and between > frames / 4  # control: the frames have faults of both kinds


@pytest.mark.parametrize("column", ["item", "time", "dwell"])
def test_counts_and_labels_read_columns_of_every_type_or_name_them(column) -> None:
    clean = clean_frame(np.random.default_rng(1)).head(6)
    for name, values in whole_columns(len(clean)).items():
        frame = clean.assign(**{column: values.set_axis(clean.index)})
        for enter in (
            lambda frame=frame: point_in_time_counts(frame, "item", [None], ["dwell"], time="time", delay=60),
            lambda frame=frame: long_dwell_labels(frame, "dwell", "time", ["item"]),
        ):
            try:
                enter()
            except ValueError as error:
                assert f"column '{column}' " in str(error) and "must" in str(error), (name, str(error))
