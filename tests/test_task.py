"""Tasks of all kinds: labels in, what is served out, faults, files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, check_events

START = 1_600_000_000


def numbers(transform: str, values: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Transformed labels in float64."""
    found = np.log(1.0 + values) if transform.startswith("log1p") else values.astype(np.float64)
    return (found - mean) / std if transform.endswith("standardise") else found


@pytest.mark.parametrize("transform", ["identity", "log1p", "standardise", "log1p_standardise"])
def test_numbers_go_in_and_out(transform: str) -> None:
    values = np.array([0.0, 0.5, 7.0, 1234.5])
    task = kr.Task("dwell", kind="number", transform=transform).fit([*values, None])
    logged = numbers(transform.removesuffix("_standardise").replace("standardise", "identity"), values, 0, 1)
    mean, std = (logged.mean(), logged.std()) if transform.endswith("standardise") else (0.0, 1.0)
    np.testing.assert_allclose(task.encode(values), numbers(transform, values, mean, std), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(task.served(task.encode(values)), values, rtol=1e-5, atol=1e-5)
    if transform.startswith("log1p"):
        assert task.served(np.array([1e9])) == np.expm1(80.0)  # finite
        assert [reason for _, reason in task.faults([-1.0])] != []


def test_grades_are_shares() -> None:
    task = kr.Task("stars", kind="graded", levels=4, missing="unknown")
    np.testing.assert_array_equal(task.encode([0, 1, 4, None, 2.5]), np.array([0, 0.25, 1, np.nan, 0.625], dtype=np.float32))
    for bad in (-1, 5, "x"):
        assert any(rows.any() for rows, _ in task.faults([bad]))


def test_a_binary_task_keeps_its_file() -> None:
    assert kr.Task("click").model_dump() == {"name": "click", "label": "click", "missing": "error"}
    stated = kr.Task("dwell", kind="number", loss="huber", delta=2.0, given="click", weight="w")
    assert stated.model_dump() == {
        "name": "dwell", "label": "dwell", "missing": "error", "kind": "number", "loss": "huber", "delta": 2.0, "weight": "w",
        "given": "click",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "graded"}, "`levels`, the highest grade, is for kind='graded', which needs it"),
        ({"levels": 3}, "`levels`, the highest grade, is for kind='graded'"),
        ({"transform": "log1p"}, "`transform` is for kind='number'. Received: kind='binary', transform='log1p'"),
        ({"kind": "graded", "levels": 3, "loss": "huber"}, "`loss` is for kind='number'"),
        ({"kind": "number", "delta": 2.0}, "`delta` is for loss='huber'"),
        ({"kind": "stars"}, "`kind` must be"),
    ],
)
def test_options_without_effect_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.Task("a", **settings)


ROLES: dict[str, Any] = {"member": "m", "time": "t", "request": "r", "features": [kr.Id("item")]}
DWELL = kr.Task("dwell", kind="number", transform="log1p_standardise", given="click", weight="w")


def frame() -> pd.DataFrame:
    n = np.arange(6)
    dwell = [3.0, None, 8.0, "junk", 1.0, None]  # of rows without a click, anything
    return pd.DataFrame({"m": 1, "t": START + n, "r": n, "item": n, "click": [1, 0, 1, 0, 1, 0], "dwell": dwell, "w": 0.5 + n})


def test_a_condition_decides_which_labels_count() -> None:
    schema = kr.Schema(**ROLES, tasks=["click", DWELL])
    assert schema.columns == ("m", "t", "r", "item", "click", "dwell", "w")
    fitted = schema.fit(frame())
    logged = np.log1p([3.0, 8.0, 1.0])
    assert fitted.task("dwell").mean == pytest.approx(logged.mean()) and fitted.task("dwell").std == pytest.approx(logged.std())
    sequences = build_sequences(frame(), fitted)
    np.testing.assert_allclose(sequences.labels["dwell"][[0, 2, 4]], (logged - logged.mean()) / logged.std(), rtol=1e-5)
    assert np.isnan(sequences.labels["dwell"][[1, 3, 5]]).all()
    np.testing.assert_allclose(sequences.weights["dwell"], 0.5 + np.arange(6))
    assert kr.Schema.model_validate_json(fitted.model_dump_json()) == fitted
    bad = frame().assign(click=1)
    with pytest.raises(ValueError, match="column 'dwell' of task 'dwell' must hold numbers. Received: 'junk' at row 3"):
        build_sequences(bad, fitted)
    with pytest.raises(ValueError, match="column 'w' of task 'dwell' must hold weights, finite numbers >= 0. Received: -1.0 at row 2"):
        build_sequences(frame().assign(w=[1, 1, -1.0, 1, 1, 1]), fitted)
    kept, report = check_events(bad, fitted, on_error="drop")
    assert len(kept) == 3 and report.kept == 3  # 'junk', and two that are missing
    with pytest.raises(ValueError, match="task 'dwell' has transform='log1p_standardise' without `mean` and `std`"):
        build_sequences(frame(), schema)
    with pytest.raises(ValueError, match="task 'dwell' must have its `mean` and `std` where a log comes in parts"):
        kr.data.SchemaSums.of(schema, frame())


@pytest.mark.parametrize("given", ["dwell", "nothing", "stars", "deep"])
def test_a_condition_is_another_binary_task(given: str) -> None:
    others = ["click", kr.Task("stars", kind="graded", levels=4), kr.Task("deep", given="click")]
    tasks = [*others, kr.Task("dwell", kind="number", given=given)]
    with pytest.raises(ValueError, match="`given` of task 'dwell' must name another binary task"):
        kr.Schema(**ROLES, tasks=tasks)


def test_a_feature_may_have_a_column_of_another_name() -> None:
    price = kr.Number("price", column="price eur", missing=0.0)
    schema = kr.Schema(**{**ROLES, "features": ["item_id", price]}, tasks=["click"])
    rows = frame().rename(columns={"item": "item_id"}).assign(**{"price eur": [1.5, None, 2.0, 0.0, 1.0, 4.0]})
    sequences = build_sequences(rows, schema)
    np.testing.assert_allclose(sequences.columns["price"], [1.5, 0.0, 2.0, 0.0, 1.0, 4.0])
    assert schema.features[0] == kr.Id("item_id") and kr.Schema.model_validate_json(schema.model_dump_json()) == schema
    assert "column" not in kr.Number("price").model_dump()
    log = kr.data.Log(rows.assign(split="train"), schema)
    assert build_sequences(log.events, schema).num_events == 6  # again
    tensors = kr.serving.request_tensors(schema, None, rows[["item_id", "price eur"]], START, ["candidate_price"])
    np.testing.assert_allclose(tensors["candidate_price"], sequences.columns["price"])
    with pytest.raises(
        ValueError, match="column 'price' of the schema is not in the log, nor is column 'price eur', from which it is read"
    ):
        build_sequences(rows.drop(columns="price eur"), schema)
    with pytest.raises(ValueError, match="feature 'price' is read from column 'price eur', and the log has another column 'price'"):
        build_sequences(rows.assign(price=7), schema)
    with pytest.raises(ValueError, match="`features` must say what 'age' is, such as Number"):
        kr.Schema(**{**ROLES, "features": ["age"]}, tasks=["click"])
    with pytest.raises(ValueError, match=r"the column may have any name: name='price_eur', column='price eur'"):
        kr.Number("price eur")
