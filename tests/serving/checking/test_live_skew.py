"""Skew on real traffic: requests that a server kept, none in sound ones, and each planted difference found and named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from keras_ranking import cli, data, models
from keras_ranking.serving import AccessLog, Client, check_live_skew, serve

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # the fixture is an export with all its checks

KEY = "a-long-secret-key"


@pytest.fixture(scope="module")
def kept(small, logged, tmp_path_factory):
    """An access log of six requests, half of them as values of the log, with one further candidate each."""
    path = tmp_path_factory.mktemp("access") / "requests.jsonl"
    schema = small.model.schema
    found = data.requests(data.build_sequences(logged.events, schema))
    lengths = found.history_end - found.history_begin
    chosen = [int(q) for q in lengths.argsort()[-6:]]
    ids = []
    with serve(small.version.parent, rest_port=0, grpc_port=0, access_log=AccessLog(path=path, key=KEY, share=1.0)) as server:
        for number, q in enumerate(chosen):
            rows = logged.events.iloc[found.sequences.rows[found.candidate_begin[q] : found.candidate_end[q]]]
            history = logged.events.iloc[found.sequences.rows[found.history_begin[q] : found.history_end[q]]]
            more = rows.iloc[::-1].pipe(lambda own: pd.concat([own, own.iloc[:1].assign(item_id=10**6)]))
            protocol, signature = ("grpc", "raw") if number % 2 else ("rest", "serving_default")
            with Client(f"127.0.0.1:{getattr(server, f'{protocol}_port')}", schema, "ranker", protocol, signature=signature) as client:
                ids.append(rows[schema.request].iloc[0])
                client.score(history, more, rows[schema.time].iloc[0], request_id=ids[-1])
                client.score(history, rows, rows[schema.time].iloc[0])  # without an id: not kept
    return SimpleNamespace(path=path, ids=ids)


def differing(report):
    return {name for name, entry in report.features.items() if entry.differ}


def test_none_in_sound_requests(kept, small, logged):
    report = check_live_skew(kept.path, small.run, logged.events, KEY)
    assert not report.found and report.summary() == "6 of 6 requests: no difference", report.summary()
    assert {"candidate item_id", "history item_id", "history time", "request_time", "candidate age_hours"} <= set(report.features)
    assert all(entry.compared > 10 for name, entry in report.features.items() if name.startswith("candidate "))
    assert report.scores["click"].compared == report.features["candidates"].compared > 20 and report.versions == {1: 6}


def test_planted_in_the_log(kept, small, logged):
    schema, events = small.model.schema, logged.events
    mine = events[schema.request] == kept.ids[0]
    later = events.assign(age_hours=events["age_hours"].where(~mine, events["age_hours"] + 1.0))
    report = check_live_skew(kept.path, small.model, later, KEY)
    assert "candidate age_hours" in differing(report) and report.found and report.scores["click"].differ
    worst = report.features["candidate age_hours"].worst
    assert worst["request"] == kept.ids[0] and worst["row"] in events.index[mine]
    assert not check_live_skew(kept.path, small.model, later, KEY, max_share=0.9, bound=1.0).found
    words = events.assign(topic=events["topic"].where(~mine, events["topic"].iloc[0] + "x"))
    assert "candidate topic" in differing(check_live_skew(kept.path, small.model, words, KEY))
    member = events.loc[mine, schema.member].iloc[0]
    first = events.index[events[schema.member] == member][0]
    assert "events of the history" in differing(check_live_skew(kept.path, small.model, events.drop(index=first), KEY))


def test_planted_in_the_weights(kept, small, logged):
    other = models.CADET(small.model.schema, **small.model.arguments)
    report = check_live_skew(kept.path, other, logged.events, KEY, sample=2)
    assert report.found and not differing(report) and report.replayed == 2


def test_command(kept, small, logged, tmp_path, capsys):
    logged.events.to_parquet(tmp_path / "log.parquet")
    (tmp_path / "key").write_text(KEY + "\n")
    ask = ["skew", "--live", str(kept.path), "--keras", str(small.run), "--events", str(tmp_path / "log.parquet")]
    assert cli.main([*ask, "--key-file", str(tmp_path / "key"), "--json", str(tmp_path / "skew.json")]) == 0
    assert "no skew: 6 of 6 requests: no difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "skew.json").read_text())["replayed"] == 6
    assert cli.main(ask) == 2 and "--live needs --key-file" in capsys.readouterr().err
    (tmp_path / "key").write_text("another-long-secret-key")
    assert cli.main([*ask, "--key-file", str(tmp_path / "key")]) == 2
    assert "none of which is among" in capsys.readouterr().err
