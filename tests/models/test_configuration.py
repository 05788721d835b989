"""Configuration classes of models: objects and single options build the same model; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.configuration import as_arguments, gather, option_names
from keras_ranking.models import configuration
from keras_ranking.training.options import MODELS, split_options
from tests.public_names import public_objects

pytestmark = pytest.mark.one_backend
SEQUENCE = [
    configuration.Tokens(layout="fused", action_masking=0.1, id_dim=4),
    configuration.Trunk(dim=8, num_layers=1, num_heads=2, residual="rezero"),
    configuration.Attention(gates="qk", rotate_by="index"),
    configuration.Visibility(mask="session", session_gap=900, max_history=7),
]
RANKER = [
    configuration.Features(features=("topic", "age_hours"), id_dim=4),
    configuration.Interaction(cross="attention", rank=4, hidden=(8,)),
    configuration.TaskHeads(head="mmoe"),
    configuration.Calibration(calibration=True, calibration_options={"step": 0.5}),
]
CASES = {
    "CADET": [*SEQUENCE, configuration.Towers(tower_boundaries=(2,), tower_hidden=(8,))],
    "FeedSR": [*SEQUENCE, configuration.PositionHead(head="mlp", position_offsets=5, serving_position=2)],
    "LiRank": [*RANKER, configuration.History(max_history=6)],
    "AmortizedDLRM": [*RANKER, configuration.HistoryBlocks(dim=8, max_history=6, latest=2)],
    "LiGR": [
        configuration.GatedBlocks(dim=8, num_layers=1, num_heads=2, max_history=6),
        configuration.Setwise(top_k=3, merge="add"),
        RANKER[0],
        RANKER[2],
    ],
}


@pytest.fixture(scope="module")
def schema() -> kr.Schema:
    log = kr.data.simulate(members=10, days=2, seed=0)
    return log.schema.fit(log.events)


def changed(value: Any) -> dict[str, Any]:
    """The fields of a configuration object that are not at their default."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if getattr(value, field.name) != field.default}


@pytest.mark.parametrize("name", CASES)
def test_objects_and_single_options_build_the_same_model(name: str, schema: kr.Schema) -> None:
    build = getattr(kr.models, name)
    of_objects = build(schema, *CASES[name])
    of_options = build(schema, **{key: value for part in CASES[name] for key, value in changed(part).items()})
    assert of_objects.arguments == of_options.arguments
    assert [weight.shape for weight in of_objects.weights] == [weight.shape for weight in of_options.weights]
    plain = build(schema)
    assert plain.arguments != of_objects.arguments, "control: the options do something"


@pytest.mark.parametrize("name", CASES)
def test_written_out_arguments_build_the_same_model_again(name: str, schema: kr.Schema) -> None:
    build = getattr(kr.models, name)
    first = build(schema, *CASES[name])
    assert build(schema, **first.arguments).arguments == first.arguments
    assert set(first.arguments) <= set(kr.models.model_options(name))


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_option_names_the_known_ones(name: str, schema: kr.Schema) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\) has no option 'task'. Did you mean `tasks`\? Its arguments are .*tasks.* by class: "):
        getattr(kr.models, name)(schema, task=["click"])


def test_an_option_is_given_once(schema: kr.Schema) -> None:
    with pytest.raises(TypeError, match="got `dim` twice: as an option, and in Trunk"):
        kr.models.CADET(schema, configuration.Trunk(num_layers=1), dim=8)
    with pytest.raises(TypeError, match="takes one Trunk. Received: two"):
        kr.models.CADET(schema, configuration.Trunk(dim=8), configuration.Trunk(dim=16))
    with pytest.raises(TypeError, match=r"objects of Tokens, Trunk, .* by name, such as `dim=16`. Received: an object of Setwise"):
        kr.models.CADET(schema, configuration.Setwise())
    with pytest.raises(TypeError, match="Received: an object of int"):
        kr.models.CADET(schema, 16)


def test_no_message_shows_a_secret() -> None:
    token = "a-very-long-secret-token"
    access, stopping = kr.serving.Access(token=token), kr.serving.Stopping()
    for given in ({"access": token}, {"access": stopping}, {"stopping": access}, {"access": access, "token": token}, {"tokn": token}):
        with pytest.raises(TypeError) as caught:
            kr.serving.serve("nowhere", **given)
        assert token not in str(caught.value) and token not in repr(access)


def test_none_is_the_presets_value_and_no_choice_is_the_models(schema: kr.Schema) -> None:
    def chosen(**options: Any) -> tuple[Any, Any]:
        arguments = kr.models.AmortizedDLRM(schema, **options).arguments
        return arguments["cross"], arguments["calibration"]

    assert chosen() == ("low_rank", False)
    assert chosen(cross=None, calibration=None) == ("residual", True)
    assert chosen(cross=None, calibration=None, preset="ads") == ("low_rank", True)
    assert kr.models.LiRank(schema).arguments["calibration"] is True


def test_ligr_writes_the_arguments_that_it_always_had(schema: kr.Schema) -> None:
    """A checkpoint of an earlier version goes on only where the arguments are the same."""
    assert not {"shared_tables", "batch_norm_momentum"} & kr.models.LiGR(schema).arguments.keys()
    assert kr.models.LiGR(schema, batch_norm_momentum=0.9).arguments["batch_norm_momentum"] == 0.9


def test_arrays_and_ranges_are_written_as_lists(schema: kr.Schema) -> None:
    model = kr.models.CADET(schema, dim=8, num_layers=1, num_heads=2, tower_boundaries=np.array([1, 3]), tower_hidden=range(3, 5))
    assert (model.arguments["tower_boundaries"], model.arguments["tower_hidden"]) == ([1, 3], [3, 4])
    arguments = kr.models.LiRank(schema, hidden=np.array([4, 8])).arguments
    assert arguments["hidden"] == [4, 8] and all(type(width) is int for width in arguments["hidden"])


def test_simulate_takes_objects_as_arguments() -> None:
    tastes = kr.data.SimulatedTastes(drift=0.5)
    first = kr.data.simulate(members=5, days=2, tastes=tastes).events
    second = kr.data.simulate(members=5, days=2, drift=0.5).events
    assert first.equals(second) and not first.equals(kr.data.simulate(members=5, days=2).events)
    with pytest.raises(TypeError, match=r"`items` of simulate\(\) must be a SimulatedItems. Received: an object of SimulatedTastes"):
        kr.data.simulate(items=tastes)


def test_configuration_objects_check_themselves_when_made() -> None:
    with pytest.raises(ValueError, match="`dim` must be a positive multiple of `num_heads`"):
        configuration.Trunk(dim=10, num_heads=4)
    with pytest.raises(ValueError, match="`gates` must be one of"):
        configuration.Attention(gates="sometimes")
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.Trunk().dim = 3  # type: ignore[misc]


def test_no_name_stands_in_two_classes_of_a_model() -> None:
    for name in CASES:
        options = kr.models.model_options(name)
        assert len(options) == len(set(options)), name


def test_fields_as_arguments_are_json() -> None:
    part = configuration.Towers(tower_boundaries=(1, 2), calibration=True, calibration_options={"step": (1, 2)})
    assert as_arguments(part)["tower_boundaries"] == [1, 2]
    assert as_arguments(part)["calibration_options"] == {"step": [1, 2]}


def test_gather_keeps_the_order_of_the_classes() -> None:
    kinds = (configuration.Tokens, configuration.Trunk)
    tokens, trunk = gather(kr.models.CADET, kinds, [configuration.Trunk(dim=8)], {"layout": "value"})
    assert (tokens.layout, trunk.dim) == ("value", 8)
    assert option_names(kinds)[0] == "layout"


@pytest.mark.parametrize("model", MODELS)
def test_options_of_training_and_of_the_model_are_told_apart(model: str) -> None:
    name = MODELS[model].__name__
    given = {key: value for part in CASES[name] for key, value in changed(part).items()}
    of_model, training = split_options(model, {**given, "epochs": 7}, None)
    assert of_model == given and training.epochs == 7


def test_no_public_function_takes_more_than_twelve_arguments() -> None:
    long = {
        name: len(inspect.signature(value).parameters)
        for name, value in public_objects()
        if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 12
    }
    assert long == {}
