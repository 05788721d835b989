"""Requests that a training could not follow: another schema than the model's, and callbacks that wait for what is not computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import keras

from keras_ranking.schema import Schema

_FITTED = ("mean", "std", "bins", "edges")


def check_schema(given: Schema, of_model: Schema, folder: str | Path) -> None:
    """Check that a log has the schema of a trained model; constants that are not fitted in the log's schema may differ.

    Raises:
        ValueError: with every difference.
    """
    differ = [*_roles(given, of_model), *_columns("task", given.tasks, of_model.tasks)]
    for what, ours, theirs in (("feature", given.features, of_model.features), ("action", given.actions, of_model.actions)):
        differ += _columns(what, ours, theirs)
    if differ:
        raise ValueError(
            f"`log` must have the schema of the model in '{folder}': {'; '.join(differ)}. Train a new model for another schema, or give "
            f"`Log(events, Schema.load('{Path(folder) / 'schema.json'}'), name)` to go on with the old one."
        )


def _roles(given: Schema, of_model: Schema) -> list[str]:
    names = ("member", "time", "request", "session", "position", "epoch", "feedback_delay")
    pairs = [(name, getattr(given, name), getattr(of_model, name)) for name in names]
    return [f"`{name}` is {ours!r} in the log and {theirs!r} in the model" for name, ours, theirs in pairs if ours != theirs]


def _columns(what: str, given: Iterable[Any], of_model: Iterable[Any]) -> list[str]:
    ours, theirs = ({column.name: column.model_dump() for column in columns} for columns in (given, of_model))
    found = [f"{what} '{name}' is in the log alone" for name in ours if name not in theirs]
    found += [f"{what} '{name}' is in the model alone" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        for field in sorted(ours[name].keys() | theirs[name].keys()):
            value, other = ours[name].get(field), theirs[name].get(field)
            if value != other and not (field in _FITTED and value is None):
                found.append(f"`{field}` of {what} '{name}' is {value!r} in the log and {other!r} in the model")
    if not found and list(ours) != list(theirs):
        found.append(f"{what}s are {list(ours)} in the log and {list(theirs)} in the model")
    return found


def checked_callbacks(callbacks: Any, schedule: Any = "constant", computed: Collection[str] = ()) -> list[Any]:
    """A list of the callbacks, one or several.

    Args:
        callbacks: as given.
        schedule: of the learning rate.
        computed: names in the logs that a validation computes.

    Raises:
        ValueError: a callback of Keras that sets the learning rate, which a schedule sets already; or one that acts on a validation metric
            that is not computed, unless a callback of another class comes before it, which may compute it.
    """
    listed = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)
    acting = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau, keras.callbacks.ModelCheckpoint)
    for number, callback in enumerate(listed):
        monitors = isinstance(callback, acting) and getattr(callback, "save_best_only", True)
        own = any(not type(other).__module__.startswith(("keras.", "keras_ranking.")) for other in listed[:number])
        if monitors and not own and callback.monitor.startswith("val_") and callback.monitor not in computed:
            why = f"the validation computes {sorted(computed)}" if computed else "without `validation`, training reads no validation rows"
            raise ValueError(
                f"`callbacks`: {type(callback).__name__} monitors {callback.monitor!r}, which is not computed: {why}. Give monitor='loss', "
                "or before it a callback that writes the value into the `logs` of `on_epoch_end`."
            )
        if isinstance(callback, (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)) and schedule != "constant":
            kind = f"schedule={schedule!r}" if isinstance(schedule, str) else type(schedule).__name__
            raise ValueError(
                f"`callbacks`: {type(callback).__name__} sets the learning rate, which {kind} sets at each step. Give schedule='constant' "
                "(on the command line `--schedule constant`)."
            )
    return listed


def check_built_alike(ranker: Any, source: Any, path: str | Path) -> None:
    """Check that a model can have the weights of another one.

    Raises:
        ValueError: another builder or other arguments, naming each.
    """
    names = sorted(ranker.arguments.keys() | source.arguments.keys())
    ours, theirs = ranker.arguments, source.arguments
    differ = [f"`{name}` is {ours.get(name)!r} here and {theirs.get(name)!r} there" for name in names if ours.get(name) != theirs.get(name)]
    if ranker.get_config()["builder"] != source.get_config()["builder"]:
        differ = [f"it is a {source.get_config()['builder']}, and this a {ranker.get_config()['builder']}"]
    if differ:
        raise ValueError(f"`init_from` must be a model with the same arguments. Received: '{path}'; {'; '.join(differ)}")
