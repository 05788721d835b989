"""tools/benchmarks/peers.py: inputs of earlier seconds, sequences without the future, and runs that go on where they stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "tools" / "benchmarks"
pytestmark = [pytest.mark.quickest]


@pytest.fixture(scope="module")
def tools():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import peer_features
        import peer_networks
        import peers

        yield peer_features, peer_networks, peers


@pytest.fixture(scope="module")
def case(tools):
    return tools[0].open_case("simulated", None)


@pytest.mark.parametrize("chosen", [False, True])
def test_no_column_reads_an_outcome_of_its_second_or_later(tools, case, chosen):
    """Other outcomes from a moment on change no column of a row before it; a row after it, they do."""
    events = case.events
    moment = int(events["time"].quantile(0.7))
    later = (events["time"] >= moment).to_numpy()
    flipped = events.assign(click=events["click"].where(~later, 1 - events["click"]))
    changed = {"chosen": chosen, "amounts": ("age_hours",)}
    one, other = (replace(case, log=replace(case.log, events=rows), made={}, **changed) for rows in (events, flipped))
    for group in tools[0].GROUPS:
        first, second = one.group(group), other.group(group)
        early = (events["time"] <= moment).to_numpy()[case.shown]
        pd.testing.assert_frame_equal(first[early], second[early], check_exact=True)
        assert not first[~early].equals(second[~early]), group


def test_sets_have_each_group_and_their_relatives(tools, case):
    plain, relative, new = (case.columns(name) for name in ("plain", "relative", "new"))
    assert set(plain) < set(relative) < set(new) and not new.columns.duplicated().any()
    assert {"item_id_click_strength", "item_id_click_strength_rank", "similar_sum", "similar_sum_minus_max"} <= set(new)
    assert not any(name.startswith("category_") and name.endswith("_rank") for name in new)
    assert len(new) == case.shown.sum()


def test_similar_residuals_equal_the_sum_by_hand(tools, case):
    features = tools[0]
    events, done = case.events, np.ones(len(case.events), dtype=bool)
    expected = features.data.RunningExpectation(["item_id", "member_id"], "click", delay=600).update(events, case.shown)
    residual = expected["click_residual"].to_numpy()
    got = features.similar_residuals(case, events, done, blocks=2)
    edge = int(np.quantile(events["time"], 0.5))
    before = events["time"].to_numpy() < edge - 600
    members, items = np.unique(events["member_id"]), np.unique(events["item_id"])
    table, marks = np.zeros((2, len(members), len(items)))
    at = np.searchsorted(members, events["member_id"]), np.searchsorted(items, events["item_id"])
    np.add.at(table, (at[0][before], at[1][before]), residual[before])
    marks[at[0][before], at[1][before]] = 1
    squares = (table**2).T @ marks
    similar = table.T @ table / (np.sqrt(squares * squares.T) + 10)
    np.fill_diagonal(similar, 0)
    rows = np.flatnonzero(events["time"].to_numpy() > edge)
    for row in rows[:: len(rows) // 20]:
        past = np.flatnonzero((at[0] == at[0][row]) & (events["time"].to_numpy() <= events["time"].iloc[row] - 600))[-500:]
        assert got["similar_sum"].iloc[row] == pytest.approx(similar[at[1][row], at[1][past]] @ residual[past], rel=1e-3, abs=1e-5)
    assert (got["similar_sum"].to_numpy()[events["time"].to_numpy() < edge] == 0).all() and got["similar_sum"].abs().max() > 0


def test_windows_hold_what_was_known_and_each_row_once(tools, case):
    streams = tools[1].streams_of(case)
    which = np.flatnonzero(np.arange(case.shown.sum()) % 3 > 0)
    (items, outcomes, target, place), rows = tools[1].batches_of(streams, which, length=8, targets=5)
    assert sorted(rows[rows >= 0]) == sorted(which) and (place <= 8).all() and (items[:, 0] == 0).all()
    events = case.events
    code = np.unique(events["item_id"], return_inverse=True)[1] + 1
    shown = np.flatnonzero(case.shown)
    for piece, slot in zip(*np.nonzero(rows >= 0), strict=True):
        row = shown[rows[piece, slot]]
        mine, moment = events["member_id"] == events["member_id"].iloc[row], events["time"].iloc[row]
        past = np.flatnonzero(mine & (events["time"] <= moment - 600))
        at = place[piece, slot]
        assert target[piece, slot] == code[row] and (at > 0) == (len(past) > 0) and at >= min(len(past), 5)
        # Rows of one second have no order: compare items and outcomes of the window as sets of pairs by time.
        times = events["time"].to_numpy()[past][len(past) - at :]
        whole = past[np.isin(events["time"].to_numpy()[past], times[1:])] if at > 1 else past[:0]
        seen = list(zip(items[piece, 1 : at + 1], outcomes[piece, 1 : at + 1], strict=True))
        assert set(zip(code[whole], events["click"].to_numpy()[whole] + 1, strict=True)) >= set(seen[1:]) or at < 2


def test_a_quick_run_goes_on_where_it_stopped(tools, tmp_path, capsys):
    pytest.importorskip("lightgbm")
    pytest.importorskip("sklearn")
    file = tmp_path / "peers.jsonl"
    arguments = ["simulated", "--json", str(file), "--quick", "--features", "plain"]
    tools[2].main(arguments)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["model"] for line in lines if line["stage"] == "scored"} == set(tools[2].SETTINGS)
    for line in lines:
        if line["stage"] == "scored":
            assert set(line["figures"]) == {"validation", "new_members"} and line["figures"]["new_members"]["impression_auc"] > 0
        assert ("log_loss" in str(line["figures"])) == (line["model"] != "LightGBM LambdaRank")
    assert "| LightGBM binary | plain |" in capsys.readouterr().out
    file.write_text("\n".join(json.dumps(line) for line in lines[:-1]) + "\n")
    tools[2].main(arguments)
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(again) == len(lines) and again[-1]["figures"].keys() == lines[-1]["figures"].keys()
    assert again[:-1] == lines[:-1]


def test_settings_are_ten_or_more(tools):
    for model, settings in tools[2].SETTINGS.items():
        assert len({json.dumps(setting, sort_keys=True) for setting in settings}) >= 10, model


def test_our_rankers_run_on_the_same_rows_and_columns(tools, tmp_path, capsys):
    import rankers  # beside the others

    file = tmp_path / "rankers.jsonl"
    arguments = ["simulated", "--json", str(file), "--seeds", "0", "--models", str(tmp_path / "networks")]
    rankers.main(arguments)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["run"] for line in lines] == ["cadet new", "ligr new", "ligr new with forest"]
    for line in lines:
        assert all(0 < line["figures"][split]["log_loss"] < 1 for split in ("validation", "new_members"))
        assert line["parameters"] > 20_000  # with the columns of the set
    alone, pair = (line["figures"]["validation"]["log_loss"] for line in lines[1:])
    assert alone != pair and lines[1]["loss"] == lines[2]["loss"]  # one network, trained once
    assert "| cadet new |" in capsys.readouterr().out
    rankers.main(arguments)  # goes on: nothing is left to run
    assert len(file.read_text().splitlines()) == 3
    rankers.main([*arguments, "--runs", "ligr new", "--holdout-members", "0"])
    assert list(json.loads(file.read_text().splitlines()[-1])["figures"]) == ["validation"]
    assert "0% of the members held out, validation" in capsys.readouterr().out
    rankers.main([*arguments, "--runs", "ligr new", "--tuning", "--change", '{"epochs": 2}'])
    line = json.loads(file.read_text().splitlines()[-1])
    assert line["tuning"] and len(line["loss"]) == 2
    rankers.main([*arguments, "--runs", "ligr new with forest", "--tuning"])
    assert set(json.loads(file.read_text().splitlines()[-1])["stack"]) == {"network", "forest", "bias"}
    out = capsys.readouterr().out
    assert "25% of the members held out, the last training rows" in out and '| ligr new {"epochs": 2} |' in out


def test_tuning_reads_training_rows_alone(tools, case):
    import ranker_columns
    import rankers

    before, log = case.events["split"].to_numpy(), ranker_columns.earlier(case.log)
    after, time = log.events["split"].to_numpy(), log.events["time"].to_numpy()
    held = after == "validation"
    assert (before[held] == "train").all() and 0.1 < held.sum() / (before == "train").sum() < 0.15
    assert time[after == "train"].max() < time[held].min() and set(after[before == "validation"]) == {"test"}
    for log, runs in rankers.RUNS.items():
        for name, settings in runs.items():
            assert settings.get("features", "new") in tools[0].SETS, (log, name)
