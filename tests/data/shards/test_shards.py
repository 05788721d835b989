"""Shards hold what `build_sequences` makes, in whole files; the checks of the whole log are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data.checks import Report, merged_reports
from keras_ranking.data.sequences import checked_sequences
from keras_ranking.data.shards import prepare as prepare_module
from keras_ranking.data.shards.container import read_arrays, write_arrays
from keras_ranking.data.shards.ids import ids_as_arrays, ids_of_arrays, shard_of
from keras_ranking.data.shards.log import TRAINING, Chosen
from tests.data.shards.logs import mixed_log, shuffled, with_two_members

ARRAYS = ("members", "offsets", "time", "position", "target", "rows")


def differences(ours: kr.data.Sequences, theirs: kr.data.Sequences) -> list[str]:
    """What two streams do not have in common."""
    found = [name for name in ARRAYS if not np.array_equal(getattr(ours, name), getattr(theirs, name))]
    found += [name for name in theirs.columns if not np.array_equal(ours.columns[name], theirs.columns[name])]
    found += [name for name in theirs.labels if not np.array_equal(ours.labels[name], theirs.labels[name], equal_nan=True)]
    return found + ([] if np.array_equal(ours.request_starts, theirs.request_starts) else ["requests"])


@pytest.mark.parametrize("order", ["by time", "mixed"])
def test_one_shard_is_what_build_sequences_makes(tmp_path: Path, order: str) -> None:
    log = mixed_log() if order == "by time" else shuffled(mixed_log())
    shards = kr.data.prepare(log, tmp_path / "shards", shards=1)
    learned = (log.events["split"] == "train").to_numpy()
    fitted = checked_sequences(log.events, log.schema, learned, fit=True).schema  # of the rows in the order of time
    assert shards.schema == fitted
    assert differences(shards.sequences(0), kr.data.build_sequences(log.events, fitted)) == []
    kept = log.events["split"].isin(["train", "history"])
    frame = kr.data.build_sequences(log.events[kept], fitted, log.events["split"][kept] == "train")
    ours = shards.sequences(0, TRAINING)
    assert set(differences(ours, frame)) <= {"rows"}  # of the whole log
    assert np.array_equal(ours.rows, np.flatnonzero(kept)[frame.rows])


def test_each_member_is_whole_in_one_of_several_shards(tmp_path: Path) -> None:
    log = mixed_log()
    shards = kr.data.prepare(log, tmp_path / "shards", shards=4)
    rows = [shards.sequences(number).rows for number in range(4)]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(log.events)))
    for number, own in enumerate(rows):
        place = log.events["member"].isin(log.events["member"].iloc[own]).to_numpy()
        frame = kr.data.build_sequences(log.events[place], shards.schema)
        assert differences(shards.sequences(number), frame) == ["rows"]
    assert (shards.events, shards.members) == (len(log.events), log.events["member"].nunique())
    assert shards.splits == {name: int((log.events["split"] == name).sum()) for name in ("train", "validation", "test", "history")}
    assert shards.longest_request == log.events.groupby("request").size().max()


def test_sums_of_parts_are_those_of_all_rows() -> None:
    log = mixed_log(3000)
    train = log.split("train")
    parts = [kr.data.SchemaSums.of(log.schema, train.iloc[at : at + 211]) for at in range(0, len(train), 211)]
    merged = kr.data.SchemaSums.merged([*parts, kr.data.SchemaSums.of(log.schema, train.iloc[:0])]).fitted(log.schema)
    for ours, theirs in zip(merged.features, log.schema.fit(train).features, strict=True):
        if isinstance(ours, kr.Number):
            assert ours.mean == pytest.approx(theirs.mean, rel=1e-12)
            assert ours.std == pytest.approx(theirs.std, rel=1e-12)
    assert kr.data.SchemaSums.of(log.schema, train).fitted(log.schema) == log.schema.fit(train)
    constant = train.assign(price=0.1)
    halves = [kr.data.SchemaSums.of(log.schema, constant.iloc[:7]), kr.data.SchemaSums.of(log.schema, constant.iloc[7:])]
    assert kr.data.SchemaSums.merged(halves).fitted(log.schema).features[3] == log.schema.fit(constant).features[3]


def test_control_means_of_means_are_not_the_mean() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    assert abs(np.mean([values[:10].mean(), values[10:].mean()]) - values.mean()) > 1e-3


def test_bins_are_those_of_all_training_rows(tmp_path: Path) -> None:
    log = mixed_log()
    log = kr.data.Log(log.events, log.schema.binned(5), log.name)
    shards = kr.data.prepare(log, tmp_path / "shards", shards=3)
    exact = kr.data.SchemaSums.of(log.schema, log.split("train")).fitted(log.schema).fit(log.split("train"))
    for ours, theirs in zip(shards.schema.features, exact.features, strict=True):
        if isinstance(ours, kr.Number):
            assert ours.edges == pytest.approx(theirs.edges, abs=1e-6)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_request_of_two_members_is_the_same_error(tmp_path: Path, shards: int) -> None:
    log = with_two_members(mixed_log())
    with pytest.raises(ValueError, match="must hold one member for all rows of a request") as whole:
        kr.data.check_events(log.events, log.schema, sort=True)
    with pytest.raises(ValueError, match="must hold one member") as parts:
        kr.data.prepare(log, tmp_path / "shards", shards=shards)
    assert str(parts.value).partition(" on_error")[0] == str(whole.value).partition(" on_error")[0]
    assert not (tmp_path / "shards").exists()


def test_bad_rows_are_left_out_as_from_a_frame(tmp_path: Path) -> None:
    log = with_two_members(mixed_log())
    events = log.events.astype({"age": object})
    events.loc[[3, 77], "age"] = "old"
    log = kr.data.Log(events, log.schema, log.name)
    _, report = kr.data.check_events(events, log.schema, on_error="drop", sort=True)
    for count in (1, 3):
        shards = kr.data.prepare(log, tmp_path / f"shards{count}", shards=count, on_error="drop")
        assert shards.report.dropped == report.dropped
        assert shards.report.examples == report.examples
        assert (shards.report.rows, shards.events) == (report.rows, report.kept)


def test_a_log_of_several_faults_is_one_error(tmp_path: Path) -> None:
    log = mixed_log()
    events = log.events.astype({"age": object, "click": object})
    events.loc[[3, 77, 200, 201], "age"] = "old"
    events.loc[[5, 90], "click"] = 7
    with pytest.raises(ValueError, match="2 problems") as whole:
        kr.data.check_events(events, log.schema, sort=True)
    with pytest.raises(ValueError, match="2 problems") as parts:
        kr.data.prepare(kr.data.Log(events, log.schema, log.name), tmp_path / "shards", shards=3)
    assert str(parts.value).splitlines()[:-1] == str(whole.value).splitlines()[:-1]


def test_a_preparation_that_is_interrupted_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, calls = mixed_log(), []
    whole = kr.data.prepare(log, tmp_path / "whole", shards=4)
    write_part = prepare_module.write_part

    def stopping(number: int, *rest: Any) -> Any:
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_part(number, *rest)

    monkeypatch.setattr(prepare_module, "write_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        kr.data.prepare(log, tmp_path / "shards", shards=4)
    assert not (tmp_path / "shards").exists()
    shards = kr.data.prepare(log, tmp_path / "shards", shards=4)
    assert calls == [0, 1, 2, 2, 3]
    assert shards.manifest == whole.manifest
    for about in whole.manifest["files"]:
        assert (shards.folder / about["file"]).read_bytes() == (whole.folder / about["file"]).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "whole"]


def test_another_log_does_not_go_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_part", stopping)
        with pytest.raises(KeyboardInterrupt):
            kr.data.prepare(mixed_log(), tmp_path / "shards", shards=2)
    other = kr.data.prepare(mixed_log(seed=1), tmp_path / "shards", shards=2)
    assert other.digest == kr.data.prepare(mixed_log(seed=1), tmp_path / "anew", shards=2).digest


def test_what_is_not_whole_or_of_another_version_is_refused(tmp_path: Path) -> None:
    shards = kr.data.prepare(mixed_log(), tmp_path / "shards", shards=2)
    shards.verify()
    file = shards.folder / shards.manifest["files"][1]["file"]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not what was written"):
        shards.verify()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="must have .* bytes"):
        kr.data.ShardedLog(shards.folder)
    with pytest.raises(ValueError, match="is not whole"):
        read_arrays(file)
    file.write_bytes(content)
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    (shards.folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match="version 99, and this version of the package reads version 1"):
        kr.data.ShardedLog(shards.folder)
    with pytest.raises(FileNotFoundError, match="must hold a sharded log"):
        kr.data.ShardedLog(tmp_path)


def test_wrong_uses_are_named(tmp_path: Path) -> None:
    log = mixed_log()
    kr.data.prepare(log, tmp_path / "shards")
    with pytest.raises(FileExistsError, match="`out` must be a folder that does not exist"):
        kr.data.prepare(log, tmp_path / "shards")
    with pytest.raises(ValueError, match="`shards` must be a positive integer"):
        kr.data.prepare(log, tmp_path / "other", shards=0)
    with pytest.raises(ValueError, match="column 'delay' is not in the log"):
        kr.data.prepare(log, tmp_path / "other", keep=["delay"])
    with pytest.raises(ValueError, match="is kept and must hold numbers"):
        kr.data.prepare(log, tmp_path / "other", keep=["unused"])
    with pytest.raises(ValueError, match="counts of the schema must be in the log"):
        counted = log.schema.model_copy(update={"features": (*log.schema.features, kr.Count("item", action="click"))})
        kr.data.prepare(kr.data.Log(log.events, counted, "mixed"), tmp_path / "other")


@pytest.mark.parametrize("values", [[3, 2**62, -1], ["a", "", "é"], np.array([1, 2], dtype="datetime64[us]")])
def test_ids_come_back(values: Any) -> None:
    import pandas as pd

    series = pd.Series(values, name="id")
    assert np.array_equal(ids_of_arrays(ids_as_arrays(series, "member_id"), "member_id"), series.to_numpy())


def test_ids_that_cannot_be_kept_are_named() -> None:
    import pandas as pd

    with pytest.raises(ValueError, match="must hold integers, texts or times"):
        ids_as_arrays(pd.Series([b"x", "y"], dtype=object, name="id"), "member_id")


def test_members_are_spread_evenly_whatever_their_type() -> None:
    numbers = np.arange(20_000)
    for members in (numbers, numbers.astype(np.float64), numbers.astype(str)):
        counts = np.bincount(shard_of(members, 8), minlength=8)
        assert counts.min() > 2300
    assert np.array_equal(shard_of(numbers, 8), shard_of(numbers.astype(np.float64), 8))


def test_arrays_of_any_shape_are_mapped(tmp_path: Path) -> None:
    arrays = {"empty": np.zeros((0, 3), np.float32), "one": np.ones(1, bool), "many": np.arange(6, dtype=np.int64).reshape(2, 3)}
    first = write_arrays(tmp_path / "a", arrays, {"x": 1})
    assert first == write_arrays(tmp_path / "b", dict(reversed(arrays.items())), {"x": 1})
    about, found = read_arrays(tmp_path / "a")
    assert about == {"x": 1}
    assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items())


def test_events_that_are_not_read_change_no_order(tmp_path: Path) -> None:
    """Two requests of one member and second: the one whose first row is not read may come second among those that are."""
    log = mixed_log()
    events = log.events.copy()
    events[["member", "at"]] = "m01é", 1_700_000_000
    rng = np.random.default_rng(1)
    events["split"] = rng.choice(["train", "validation"], size=len(events))
    order = rng.permutation(len(events))
    log = kr.data.Log(events.iloc[order].reset_index(drop=True), log.schema, log.name)
    shards = kr.data.prepare(log, tmp_path / "shards", shards=1)
    kept = log.events["split"] == "train"
    frame = kr.data.build_sequences(log.events[kept], shards.schema)
    assert np.array_equal(shards.sequences(0, Chosen(read=("train",))).rows, np.flatnonzero(kept)[frame.rows])


def test_reports_are_merged_in_the_order_of_the_checks() -> None:
    places = {name: np.array([number]) for number, name in enumerate("abc")}
    first = Report(3, {"a": 1, "c": 1}, {"a": "0", "c": "2"}, {name: places[name] for name in "ac"})
    second = Report(
        3, {"a": 1, "b": 1, "c": 2}, {"a": "9", "b": "1", "c": "9"}, {"a": np.array([9]), "b": places["b"], "c": np.array([9, 10])}
    )
    merged = merged_reports([first, second])
    assert merged.dropped == {"a": 2, "b": 1, "c": 3}
    assert list(merged.dropped) == ["a", "b", "c"]
    assert merged.examples == {"a": "0", "b": "1", "c": "2"}
