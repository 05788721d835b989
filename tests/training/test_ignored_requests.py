"""Nothing that a caller asks for is ignored: it is done, or an error says why not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.training import train, warm_start
from keras_ranking.training.options import split_options
from keras_ranking.training.presets import PRESETS

pytestmark = pytest.mark.quickest  # checks before and around a training, of numpy and pandas
SMALL: dict[str, Any] = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "row_length": 32}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=12, days=2, seed=0)


def quick(log: Log, *more: Any, options: dict[str, Any] | None = None, **settings: Any) -> Any:
    return train(log, "lirank", *more, epochs=1, options={**SMALL, **(options or {})}, **{"verbose": False, **settings})


# -- presets ------------------------------------------------------------------------------------------------------------------


def test_a_preset_is_asked_for_and_does_not_follow_from_a_name() -> None:
    plain = split_options("cadet", {})
    assert split_options("cadet", {}, preset=None) == plain
    model, training = split_options("cadet", {}, preset="simulated")
    assert model["layout"] == "value" and training.epochs == 6 and plain[1].epochs == 3
    with pytest.raises(ValueError, match=r"`preset` of a log must be one of \['ebnerd', 'simulated'\] or None. Received: preset='mine'"):
        split_options("cadet", {}, preset="mine")


def test_the_readers_set_their_preset(log: Any, tmp_path: Any) -> None:
    assert log.preset == "simulated"
    assert {name for _, name in PRESETS} == {"simulated", "ebnerd"}
    mine = Log(log.events, log.schema, "simulated")
    assert mine.preset is None
    log.events.to_parquet(tmp_path / "simulated.parquet")
    assert kr.data.open_log(f"parquet:{tmp_path / 'simulated.parquet'}", schema=log.schema).preset is None


def test_the_options_of_a_preset_are_told(log: Any, capsys: Any) -> None:
    with pytest.raises(ValueError, match="`heads`|num_heads|must"):  # stops after the data, before the training
        train(log, "cadet", options={"num_heads": 0, "layout": "value"})
    told = capsys.readouterr().out
    assert "preset 'simulated' of the log: token_features=" in told and "layout" not in told


# -- the log ------------------------------------------------------------------------------------------------------------------


def test_unsorted_rows_are_sorted_and_counted(log: Any) -> None:
    events = log.events[log.events["split"] == "train"]
    turned = events.iloc[::-1]
    # A row is late if a row before it, of the same member, has a later time.
    late = sum(
        row.time < turned["time"].to_numpy()[:place][turned["member_id"].to_numpy()[:place] == row.member_id].max(initial=0)
        for place, row in enumerate(turned.itertuples())
    )
    _, history = quick(Log(turned, log.schema, "turned"))
    assert history["reordered"] == late > 0
    assert quick(Log(events, log.schema, "straight"))[1]["reordered"] == 0


def test_bad_rows_are_left_out_and_told(log: Any, capsys: Any) -> None:
    events = log.events.copy()
    events["age_hours"] = events["age_hours"].astype(object)
    bad = events.index[events["split"] == "train"][[3, 8]]
    events.loc[bad[0], "age_hours"] = "old"
    events.loc[bad[1], "age_hours"] = -5.0
    broken = Log(events, log.schema, "broken")
    with pytest.raises(ValueError, match=rf"(?s)the log has 2 problems.*'old' at row {bad[0]} .*on_error='drop' leaves such rows out"):
        quick(broken)
    with pytest.warns(
        UserWarning, match=rf"(?s)rows kept.*1 left out: column 'age_hours' must hold numbers \(first: 'old' at row {bad[0]}"
    ):
        model, history = quick(broken, on_error="drop")
    trained = int((events["split"] == "train").sum())
    assert history["train_events"] == trained - 2
    assert [entry["rows"] for entry in history["left_out"].values()] == [1, 1]
    # The weights are those of a log without the two rows.
    without, _ = quick(Log(log.events.drop(index=bad), log.schema, "without"))
    for weights, others in zip(model.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, others)
    quick(broken, on_error="drop", verbose=True)
    assert f"{len(log.events[log.events['split'] == 'train']) - 2} of" in (told := capsys.readouterr().out)
    assert told.count("1 left out: column 'age_hours'") == 2


def test_times_with_a_fraction_are_rounded_where_the_log_says_so(log: Any) -> None:
    events = log.events.copy()
    events[log.schema.time] = events[log.schema.time].astype("float64") + 0.25
    with pytest.raises(ValueError, match=r"without a fraction of a second.*`Log\(\.\.\., round='floor'\)` rounds down to whole seconds"):
        quick(Log(events, log.schema, "fractions"))
    rounded = Log(events, log.schema, "fractions", round="floor")
    model, _ = quick(rounded)
    whole, _ = quick(log)
    for weights, others in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, others)
    assert kr.training.evaluate(model, rounded) == kr.training.evaluate(whole, log)
    with pytest.raises(ValueError, match=r"`Log\(\.\.\., round='floor'\)`"):
        kr.training.evaluate(model, Log(events, log.schema, "fractions"))
    with pytest.raises(ValueError, match="`round` must be one of .* Received: round='up'"):
        Log(events, log.schema, "fractions", round="up")


def test_evaluation_and_requests_leave_rows_out_likewise(log: Any) -> None:
    model, _ = quick(log)
    events = log.events.copy()
    events["time"] = events["time"].astype(object)
    place = int(np.flatnonzero(events["split"] == "validation")[0])
    events.iloc[place, events.columns.get_loc("time")] = "noon"
    broken = Log(events, log.schema, "broken")
    with pytest.raises(ValueError, match=rf"'noon' at row {place} .*on_error='drop'"):
        kr.training.evaluate(model, broken)
    with pytest.warns(UserWarning, match="1 left out: column 'time'"):
        dropped = kr.training.evaluate(model, broken, on_error="drop")
    without = Log(log.events.drop(index=log.events.index[place]), log.schema, "without")
    assert dropped == kr.training.evaluate(model, without)
    with pytest.raises(ValueError, match="on_error='drop'"):
        kr.data.requests(events, model.schema)
    assert kr.data.requests(events, model.schema, on_error="drop").sequences.num_events == len(events) - 1


# -- warm starts --------------------------------------------------------------------------------------------------------------


def test_a_warm_start_wants_the_schema_of_the_model(log: Any, tmp_path: Any) -> None:
    quick(log, tmp_path)
    new = (log.events["split"] == "validation").to_numpy()
    schema = log.schema
    other = {
        "tasks": (kr.Task("click"),),
        "features": schema.features[:-1],
        "actions": schema.actions[:-1],
        "feedback_delay": 60,
        "position": None,
    }
    words = {
        "tasks": "task 'like' is in the model alone",
        "features": f"feature '{schema.features[-1].name}' is in the model alone",
        "actions": "action 'dwell_seconds' is in the model alone",
        "feedback_delay": "`feedback_delay` is 60 in the log and 600 in the model",
        "position": "`position` is None in the log and 'position' in the model",
    }
    for name, value in other.items():
        changed = Log(log.events, schema.model_copy(update={name: value}), "other")
        with pytest.raises(ValueError, match=rf"`log` must have the schema of the model in '.*': {words[name]}"):
            warm_start(changed, tmp_path, new, verbose=False)
    added = schema.model_copy(update={"tasks": (*schema.tasks, kr.Task("long", label="click"))})
    with pytest.raises(ValueError, match="task 'long' is in the log alone"):
        warm_start(Log(log.events, added, "other"), tmp_path, new, verbose=False)
    # Control: constants that are not fitted yet are no difference, and the fitted schema is none.
    for same in (schema, kr.Schema.load(tmp_path / "schema.json")):
        assert warm_start(Log(log.events, same, "same"), tmp_path, new, verbose=False)[1]["train_events"] == int(new.sum())


# -- callbacks and options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "callback",
    [
        lambda: keras.callbacks.EarlyStopping("val_loss"),
        lambda: keras.callbacks.EarlyStopping(),
        lambda: keras.callbacks.ModelCheckpoint("best.keras", save_best_only=True),
        lambda: keras.callbacks.ReduceLROnPlateau(),
    ],
)
def test_a_callback_that_would_never_act_is_an_error(callback: Any, log: Any) -> None:
    for callbacks in ([callback()], callback()):
        with pytest.raises(ValueError, match=r"`callbacks`: .* monitors 'val_loss', which is not computed.* Give monitor='loss'"):
            quick(log, callbacks=callbacks)


def test_control_callbacks_that_act(log: Any, tmp_path: Any) -> None:
    class Validation(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["val_auc"] = 0.5

    stop = keras.callbacks.EarlyStopping("val_auc", mode="max", patience=0)
    keep = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), monitor="loss", save_best_only=True)
    train(log, "lirank", epochs=4, options=SMALL, verbose=False, callbacks=[Validation(), stop, keep])
    assert stop.stopped_epoch == 1 and (tmp_path / "best.keras").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"options": {"checkpoint_every": 5}},
            "`checkpoint_every` needs `out`, the folder to write. Received: checkpoint_every=5, out=None",
        ),
        ({"options": {"epochs": 5}}, r"`epochs` must be given once. Received: epochs=1 and options\['epochs'\]=5"),
        ({"options": {"ipw_options": {"method": "ctr"}}}, r"`ipw_options` has no effect without `ipw` of \('all', 'positives'\)"),
        ({"options": {"ipw_clip": 5.0}}, "`ipw_clip` has no effect without `ipw`"),
        ({"options": {"table_learning_rate": 0.1}}, "`table_learning_rate` has no effect without `table_optimizer`"),
        ({"options": {"table_weight_decay": 0.1}}, r"`table_weight_decay` has no effect without `table_optimizer` of \('adamw',\)"),
        ({"options": {"context": 4}}, "`context` has no effect on 'lirank', which is trained on requests"),
        ({"options": {"dropuot": 4}}, "unknown option 'dropuot'; did you mean 'dropout'"),
    ],
)
def test_options_without_effect_are_errors(settings: Any, message: str, log: Any) -> None:
    with pytest.raises(ValueError, match=message):
        quick(log, **settings)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("cadet", {"num_layers": "two"}, "`num_layers` must be an integer. Received: num_layers='two'"),
        ("cadet", {"num_layers": 2.5}, "`num_layers` must be an integer"),
        ("cadet", {"dropout": "high"}, "`dropout` must be a number. Received: dropout='high'"),
        ("cadet", {"token_features": "topic"}, "`token_features` must be a list or None. Received: token_features='topic'"),
        ("cadet", {"shared_index": "yes"}, "`shared_index` must be True or False"),
        ("lirank", {"hidden": 8}, "`hidden` must be a list. Received: hidden=8"),
        ("lirank", {"learning_rate": "fast"}, "`learning_rate` must be a number. Received: learning_rate='fast'"),
        ("lirank", {"epochs": "3"}, "`epochs` must be an integer"),
        ("lirank", {"task_weights": [1, 2]}, "`task_weights` must be a mapping of names to values or None"),
    ],
)
def test_options_of_another_type_are_named(model: str, options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        split_options(model, options)


@pytest.mark.parametrize("settings", [{"learning_rate": "a"}, {"clip_norm": None}, {"context": "half"}, {"task_weights": [1.0]}])
def test_training_options_name_values_of_another_type(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"`{next(iter(settings))}` must be .* Received: {next(iter(settings))}="):
        kr.training.TrainingOptions(**settings)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.int32])
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    options = {
        "epochs": np.int64(2),
        "position_half_life": number(5),
        "age_half_life_days": number(60),
        "ipw_clip": number(3),
        "ipw": "all",
    }
    _, training = split_options("lirank", options)
    assert training.epochs == 2 and training.position_half_life == 5.0 and type(training.age_half_life_days) in (int, float)
    split_options("cadet", {"num_layers": np.int32(2), "dropout": np.float32(0.1), "tower_boundaries": np.array([1, 4])})
    for value in (np.float64("nan"), -1, 0, True, np.float32("inf"), "long"):
        with pytest.raises((ValueError, TypeError), match="`position_half_life` must be"):
            split_options("lirank", {"position_half_life": value})


def test_models_name_options_of_another_type(log: Any) -> None:
    with pytest.raises(TypeError, match="`num_layers` must be an integer. Received: a value of type str"):
        kr.models.CADET(log.schema.fit(log.events), num_layers="two")


def test_predictions_ask_for_their_data(log: Any) -> None:
    schema = log.schema.fit(log.events)
    model = kr.models.LiRank(schema, features=("age_hours",), history_features=(), hidden=(4,))
    for wrong in (log.events, log, pd.DataFrame(), [1]):
        with pytest.raises(TypeError, match=r"`data` must be Requests for the model 'lirank': `model_requests\(model, build_sequences"):
            kr.training.predict_events(model, wrong)
    with pytest.raises(TypeError, match=r"`sequences` must be Sequences. Received: DataFrame"):
        kr.training.model_requests(model, log.events)
    with pytest.raises(TypeError, match=r"`sequences` must be Sequences. Received: DataFrame"):
        kr.training.predict_served(model, log.events)


def test_rows_in_messages_are_those_of_the_log(log: Any) -> None:
    """Training reads a part of the rows: positions, sessions and delays are named by the row of the whole log."""
    events = pd.concat([log.events[log.events["split"] != "train"], log.events[log.events["split"] == "train"]])
    place = int(np.flatnonzero(events["split"] == "train")[7])
    for column, value, options in (
        ("position", np.nan, {}),
        ("session_id", 10**6, {"shuffle_sessions": "fixed"}),
        ("delay", -1.0, {"delay_column": "delay", "sampled_delay": True}),
    ):
        changed = events.assign(delay=60.0)
        changed[column] = changed[column].astype(np.float64)
        changed.iloc[place, changed.columns.get_loc(column)] = value
        small = {"dim": 8, "num_layers": 1, "num_heads": 2, **options}
        with pytest.raises(ValueError, match=rf"column '{column}' .* at row {place}\b"):
            train(Log(changed, log.schema, "mine"), "cadet", options=small, verbose=False)


def test_a_standard_deviation_is_finite_and_positive(log: Any) -> None:
    schema = kr.Schema(member="m", time="t", request="r", features=[kr.Number("x", transform="standardise")], tasks=["y"])
    with pytest.raises(ValueError, match="column 'x' must hold numbers within float32. Received: 1e\\+300"):
        schema.fit(pd.DataFrame({"x": [1e300, -1e300]}))
    fitted = schema.fit(pd.DataFrame({"x": [3e38, -3e38]}))
    assert fitted.features[0].std == pytest.approx(3e38) and kr.Schema.model_validate_json(fitted.model_dump_json()) == fitted
    assert schema.fit(pd.DataFrame({"x": [0.0, 1e-320]})).features[0].encode([0.0]).tolist() == [0.0]


def test_a_log_without_a_good_row_is_an_error(log: Any, tmp_path: Any) -> None:
    quick(log, tmp_path)
    bad = Log(log.events.assign(age_hours=-1.0), log.schema, "bad")
    new = (log.events["split"] == "validation").to_numpy()
    for what, enter in (
        ("training row", lambda: quick(bad, on_error="drop")),
        ("new row", lambda: warm_start(bad, tmp_path, new, verbose=False, on_error="drop")),
        ("row of split 'test'", lambda: kr.training.evaluate(tmp_path, bad, "test", on_error="drop")),
    ):
        with pytest.raises(ValueError, match=rf"(?s)no {what} passed the checks: 0 of .* left out: column 'age_hours' .*not be negative"):
            enter()
