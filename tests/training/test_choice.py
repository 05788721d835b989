"""Choices in a planted log: the learned logit of no choice, and calibration by size of the list."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr

pytestmark = pytest.mark.quickest
CONSTANT, SLOPE, TASTE = 0.8, 0.5, 1.3


def planted(requests: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A log in which one of 1 to 12 items is chosen by a multinomial, or none; and the true probability of each row."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 13, requests)
    request = np.repeat(np.arange(requests), size)
    x = rng.normal(size=len(request))
    mass = np.exp(TASTE * x)
    none = np.exp(CONSTANT + SLOPE * np.log(size))
    share = mass / (np.bincount(request, mass) + none)[request]
    click = np.zeros(len(request), dtype=int)
    ends = np.cumsum(size)
    for first, last in zip(ends - size, ends, strict=True):
        drawn = rng.choice(last - first + 1, p=np.append(share[first:last], 1 - share[first:last].sum()))
        if drawn < last - first:
            click[first + drawn] = 1
    events = pd.DataFrame({"member": request % 50, "time": 1_700_000_000 + 60 * request, "request": request, "x": x, "click": click})
    return events, share


def test_choices_are_calibrated_for_every_size_of_list() -> None:
    events, share = planted(2500, seed=0)
    schema = kr.Schema(member="member", time="time", request="request", features=[kr.Number("x")], tasks=["click"])
    split = np.where(events["request"] < 2000, "train", "validation")
    log = kr.data.Log(events.assign(split=split), schema, "planted")
    test = split == "validation"
    options: dict[str, Any] = {"history_features": (), "hidden": (8,), "cross": "none", "gate": None, "row_length": 128, "batch_size": 4}
    options |= {"calibration": False, "learning_rate": 0.05, "pairwise_weight": 0.0}
    found, errors = {}, {}
    for name, choice in (("choice", {"choice": ("click",)}), ("binary", {})):
        model, _ = kr.training.train(log, "lirank", epochs=3, options={**options, **choice}, verbose=False)
        found[name] = kr.training.evaluate(model, log, "validation")["click"]
        sequences = kr.data.build_sequences(events, model.schema)
        scores = np.empty(len(events))
        scores[sequences.rows] = kr.training.predict_served(model, sequences)["click"]
        size = np.bincount(events["request"])[events["request"]]
        gaps = [abs(scores[test & (size == n)].mean() - share[test & (size == n)].mean()) for n in range(1, 13)]
        errors[name] = float(np.mean(gaps))
        if choice:
            none = 1 - np.bincount(events["request"], scores)[2000:].mean()
            assert none == pytest.approx(1 - events["click"][test].sum() / 500, abs=0.04)
            assert np.abs(scores - share)[test].mean() < 0.01
    assert errors["choice"] < 0.01 < 0.04 < errors["binary"], errors
    assert found["choice"]["calibration_error"] < found["binary"]["calibration_error"], found
    assert found["choice"]["log_loss"] < found["binary"]["log_loss"] - 0.008, found
