"""Members who are never trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from keras_ranking.cli import main
from keras_ranking.data.readers import Log, hold_out_members
from keras_ranking.data.simulation.simulate import simulate
from keras_ranking.data.sources import open_log
from keras_ranking.ops.hashing import fingerprint64


@pytest.fixture(scope="module")
def log() -> Log:
    return simulate(members=60, days=4, seed=0)


def _members(events: pd.DataFrame, *splits: str) -> set:
    return set(events.loc[events["split"].isin(splits), "member_id"])


def test_rows_of_held_out_members(log):
    held = hold_out_members(log, 0.25)
    before, after = log.events["split"].to_numpy(), held.events["split"].to_numpy()
    new = held.events["member_id"].isin(_members(held.events, "new_members", "history")).to_numpy()
    assert set(after[new & (before == "train")]) == {"history"} and set(after[new & (before != "train")]) == {"new_members"}
    np.testing.assert_array_equal(after[~new], before[~new])
    assert not _members(held.events, "train", "validation", "test") & _members(held.events, "new_members", "history")
    pd.testing.assert_frame_equal(held.events.drop(columns="split"), log.events.drop(columns="split"))  # counts too are unchanged
    assert "members are held out (share 0.25, seed 0)" in held.notes[-1] and held.preset == log.preset and held.schema == log.schema


def test_members_are_chosen_by_the_hash_of_their_text(log):
    texts = log.events["member_id"].astype(str).unique()
    chosen = {text for text in texts if int(fingerprint64([f"3:{text}"])[0]) < 0.25 * 2**64}
    held = {str(member) for member in _members(hold_out_members(log, 0.25, seed=3).events, "new_members", "history")}
    assert held == chosen and 5 < len(chosen) < 25
    shuffled = replace(log, events=log.events.sample(frac=1, random_state=0))
    part = replace(log, events=log.events[log.events["member_id"] % 2 == 0])
    text = replace(log, events=log.events.assign(member_id=log.events["member_id"].astype(str)))
    for other in (shuffled, part, text):
        found = {str(member) for member in _members(hold_out_members(other, 0.25, seed=3).events, "new_members", "history")}
        assert found == chosen & set(other.events["member_id"].astype(str))
    assert held != {str(member) for member in _members(hold_out_members(log, 0.25, seed=4).events, "new_members", "history")}
    larger = {str(member) for member in _members(hold_out_members(log, 0.5, seed=3).events, "new_members", "history")}
    assert held < larger


def test_history_rows_and_missing_members_stay(log):
    words = log.events["split"].where(log.events["time"] > log.events["time"].quantile(0.2), "history")
    held = hold_out_members(replace(log, events=log.events.assign(split=words)), 0.25)
    assert (held.events.loc[words == "history", "split"] == "history").all()
    members = log.events["member_id"].astype(object).where(np.arange(len(log.events)) % 50 > 0, None)
    held = hold_out_members(replace(log, events=log.events.assign(member_id=members)), 0.25)
    assert (held.events.loc[members.isna(), "split"] == log.events.loc[members.isna(), "split"]).all()


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, "0.2", None])
def test_another_share_is_an_error(log, share):
    with pytest.raises(ValueError, match=r"`share` of the members to hold out must lie strictly between 0 and 1. Received: share="):
        hold_out_members(log, share)


def test_faults(log):
    with pytest.raises(ValueError, match="has rows with split 'new_members' already"):
        hold_out_members(hold_out_members(log, 0.25), 0.25)
    with pytest.raises(ValueError, match="`share` must leave rows to train on. Received: share=0.999999 of 60 members"):
        hold_out_members(log, 0.999999)
    with pytest.raises(TypeError, match="`log` must be a keras_ranking.data.Log"):
        hold_out_members(log.events)
    with pytest.raises(ValueError, match="has no rows with split 'new_members'.*`hold_out_members`, or `--holdout-members`"):
        log.split("new_members")


def test_open_log_holds_members_out(log):
    opened = open_log("simulated", seed=0, members=60, days=4, holdout_members=0.25, holdout_seed=3)
    pd.testing.assert_frame_equal(opened.events, hold_out_members(log, 0.25, seed=3).events)


@pytest.mark.quickest
def test_no_row_of_a_held_out_member_is_trained_on(log):
    """Other outcomes of held-out members give the same weights to the bit; other outcomes of a trained member do not."""
    from keras_ranking import training

    held = hold_out_members(log, 0.25)
    options = {"features": ("age_hours",), "history_features": (), "hidden": (4,), "cross_layers": 1, "batch_size": 2}

    def weights(events: pd.DataFrame) -> list[np.ndarray]:
        model, history = training.train(replace(held, events=events), "lirank", epochs=1, options=options, verbose=False)
        assert history["train_events"] == len(held.split("train"))
        return model.get_weights()

    new = held.events["member_id"].isin(_members(held.events, "new_members", "history"))
    changed = held.events.assign(click=held.events["click"].where(~new, 1 - held.events["click"]), age_hours=held.events["age_hours"] + new)
    first = weights(held.events)
    for got, expected in zip(weights(changed), first, strict=True):
        np.testing.assert_array_equal(got, expected)
    one = held.events["member_id"] == held.split("train")["member_id"].iloc[0]
    control = weights(held.events.assign(click=held.events["click"].where(~one, 1 - held.events["click"])))
    assert any((got != expected).any() for got, expected in zip(control, first, strict=True))


@pytest.mark.quickest
def test_the_commands_hold_members_out(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    out = str(tmp_path / "log.parquet")
    assert main(["simulate", "--out", out, "--members", "40", "--days", "3"]) == 0
    data = ["--data", f"parquet:{out}", "--schema", str(tmp_path / "log.schema.json"), "--holdout-members", "0.3"]
    small = ["--set", "hidden=[4]", "--set", "cross_layers=1", "--set", 'features=["age_hours"]', "--set", "history_features=[]"]
    run = str(tmp_path / "run")
    assert main(["train", "--model", "lirank", *data, "--out", run, "--epochs", "1", "--quiet", *small]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, *data, "--split", "new_members", "--json", str(tmp_path / "new.json")]) == 0
    assert "members are held out (share 0.3, seed 0)" in capsys.readouterr().err
    assert 0 < json.loads((tmp_path / "new.json").read_text())["click"]["log_loss"] < 2
    assert main(["evaluate", run, *data[:4], "--split", "new_members"]) != 0
    assert "`--holdout-members` of the command line" in capsys.readouterr().err
    assert main(["evaluate", run, *data[:4], "--holdout-seed", "3"]) != 0
    assert "`--holdout-seed` needs `--holdout-members SHARE`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", *data[:4], "--out", run, "--holdout-members", "25"])
    assert "must be a share above 0 and below 1, such as 0.25. Received: '25'" in capsys.readouterr().err
