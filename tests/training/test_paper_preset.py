"""`preset='paper'`: options that the papers state, in place of those of the log's preset."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import keras_ranking as kr

LOG = kr.data.simulate(members=6, days=2, seed=2)
SMALL: dict[str, dict[str, Any]] = {
    "cadet": {"dim": 8, "num_layers": 1, "num_heads": 2, "tower_hidden": (4,)},
    "feedsr": {"dim": 8, "num_layers": 1, "num_heads": 2, "head_options": {"hidden": (4,)}},
    "lirank": {"hidden": (4,), "cross_layers": 1, "rank": 2, "id_dim": 2},
    "ligr": {"dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 2, "max_history": 4},
    "amortized": {"dim": 8, "num_layers": 1, "num_heads": 2, "hidden": (4,), "cross_layers": 1, "rank": 2, "id_dim": 2},
}
# One fact of each that the log's preset, or the default, has otherwise.
STATED: dict[str, dict[str, Any]] = {
    "cadet": {"layout": "interleaved", "gates": ["representation", "query", "key"]},
    "feedsr": {"layout": "interleaved", "rotate_by": "index", "mask": "causal"},
    "lirank": {"shared_trunk": False},
    "ligr": {"history_mask": "sessions", "top_k": 10},
    "amortized": {"fusion": "append_cross", "cross": "low_rank"},
}
OF_TRAINING = {
    "feedsr": {
        "ipw": "all",
        "shuffle_sessions": "epoch",
        "position_half_life": "length",
        "age_half_life_days": 60.0,
        "pairwise_weight": 0.0,
    },
    "lirank": {"table_optimizer": "adagrad"},
}


@pytest.mark.quickest
@pytest.mark.parametrize("name", list(STATED))
def test_the_options_that_a_paper_states_count(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, history = kr.training.train(LOG, name, epochs=1, options={"preset": "paper", **SMALL[name]})
    for option, value in STATED[name].items():
        found = model.arguments[option]
        assert (list(found) if isinstance(found, tuple | list) else found) == value
    for option, value in OF_TRAINING.get(name, {}).items():
        assert history["training"][option] == value
    assert history["preset"] == "paper" and "preset 'paper': " in capsys.readouterr().out
    # A given option counts before that of the preset.
    other = {"table_optimizer": "same"} if name == "lirank" else {"learning_rate": 1e-4}
    _, history = kr.training.train(LOG, name, epochs=1, options={"preset": "paper", **SMALL[name], **other}, verbose=False)
    assert {option: history["training"][option] for option in other} == other


@pytest.mark.quickest
def test_without_positions_nothing_is_weighed_by_them() -> None:
    schema = LOG.schema.model_copy(update={"position": None})
    log = replace(LOG, events=LOG.events.drop(columns=[LOG.schema.position]), schema=schema)
    _, history = kr.training.train(log, "feedsr", epochs=1, options={"preset": "paper", **SMALL["feedsr"]}, verbose=False)
    assert history["training"]["ipw"] is None and history["training"]["shuffle_sessions"] == "epoch"
    _, same = kr.training.train(replace(log, preset="paper"), "feedsr", epochs=1, options=SMALL["feedsr"], verbose=False)
    assert (same["training"], same["preset"]) == (history["training"], "paper")


@pytest.mark.quickest
def test_other_words_are_those_of_the_model() -> None:
    with pytest.raises(ValueError, match="`preset` must be of"):
        kr.training.train(LOG, "lirank", options={"preset": "ad"}, verbose=False)
    with pytest.raises(ValueError, match="unknown option 'preset'"):
        kr.training.train(LOG, "cadet", options={"preset": "feed"}, verbose=False)


@pytest.mark.quickest
def test_without_sessions_nothing_is_shuffled_inside_them() -> None:
    log = replace(LOG, schema=LOG.schema.model_copy(update={"session": None}))
    options = {"preset": "paper", **SMALL["feedsr"]}
    _, history = kr.training.train(log, "feedsr", epochs=1, options=options, verbose=False)
    assert history["training"]["shuffle_sessions"] is None and history["training"]["ipw"] == "all"
    with pytest.raises(ValueError, match="needs a schema with a session"):  # control: a given option counts
        kr.training.train(log, "feedsr", epochs=1, options={**options, "shuffle_sessions": "epoch"}, verbose=False)
