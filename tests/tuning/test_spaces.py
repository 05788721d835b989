"""Spaces: from Python and JSON, their errors, and parameters of Optuna and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keras_ranking.training.options import MODELS, split_options
from keras_ranking.training.recipe import split_recipe
from keras_ranking.tuning import Choice, Float, Int, default_space
from keras_ranking.tuning.spaces import DEFAULT_SPACES, as_json, distributions, grid_of, options_of, params_of, read_space

pytestmark = pytest.mark.quickest


def test_a_space_is_the_same_from_python_and_from_json(tmp_path: Path) -> None:
    space = {"rate": Float(1e-4, 1e-2, log=True), "width": Int(16, 64, step=16), "hidden": Choice([(8,), [16, 8]]), "kind": ["a", "b"]}
    read = read_space(space)
    (tmp_path / "space.json").write_text(json.dumps(as_json(read)))
    assert json.dumps(as_json(read_space(tmp_path / "space.json"))) == json.dumps(as_json(read))
    assert read_space({"kind": ["a", "b"]})["kind"] == Choice(("a", "b"))


def test_parameters_go_to_options_and_back() -> None:
    space = read_space({"hidden": [[8], [16, 8]], "on": [True, False, None, 1, "1"], "width": Int(1, 3)})
    kinds = distributions(space)
    assert kinds["hidden"].choices == ("[8]", "[16, 8]") and len(set(kinds["on"].choices)) == 5
    for options in ({"hidden": [16, 8], "on": "1", "width": 2}, {"hidden": [8], "on": None, "width": 1}):
        assert options_of(space, params_of(space, options)) == options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`space` must be a mapping of options to ranges"),
        ([1], "`space` must be a mapping of options to ranges"),
        ({"a": {"low": 1, "high": 2}}, "option 'a': its type must be one of"),
        ({"a": {"type": "float", "low": 2, "high": 1}}, "`low` must be below `high`. Received: low=2, high=1"),
        ({"a": {"type": "float", "low": 0, "high": 1, "log": True}}, "`low` must be above 0 with log=True"),
        ({"a": {"type": "int", "low": 0.5, "high": 1}}, "`low` must be an integer. Received: low=0.5"),
        ({"a": {"type": "int", "low": 1, "high": 5, "by": 2}}, "a 'int' has ['low', 'high', 'log', 'step']"),
        ({"a": {"type": "int", "low": 1, "high": 5, "step": 9}}, "`step` must be above 0 and at most 4"),
        ({"a": ["x"]}, "at least two different values"),
        ({"a": ["x", "x"]}, "at least two different values"),
        ({"a": "x"}, "must be a Float, an Int, a Choice"),
    ],
)
def test_wrong_spaces_are_refused(given: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        read_space(given)
    assert message in str(raised.value)


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which `space` names"):
        read_space(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_space(str(tmp_path / "bad.json"))


def test_a_grid_has_all_values_and_needs_steps() -> None:
    assert grid_of(read_space({"a": Float(0, 1, step=0.5), "b": [1, 2]})) == {"a": [0.0, 0.5, 1.0], "b": ["1", "2"]}
    with pytest.raises(ValueError, match="sampler='grid' needs a list of values, or a `step`"):
        grid_of(read_space({"a": Float(0, 1)}))


@pytest.mark.parametrize("model", sorted(DEFAULT_SPACES))
def test_default_spaces_name_options_of_their_models(model: str) -> None:
    space = default_space(model)
    for last in (0, -1):
        ends = {name: one.values[last] if isinstance(one, Choice) else (one.low, one.high)[last] for name, one in space.items()}
        rest, _ = split_recipe(ends)
        options, _ = split_options(model, rest)
        assert options
    assert set(DEFAULT_SPACES) == set(MODELS)
    with pytest.raises(ValueError, match="`model` must be one of"):
        default_space("forest")
