"""Requests that a training could not follow: another schema than the model's, and callbacks that wait for what is not computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_ranking.schema import Schema

_FITTED = ("mean", "std")


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


def checked_callbacks(callbacks: Any) -> list[Any]:
    """A list of the callbacks, one or several.

    Raises:
        ValueError: a callback of Keras that acts on a validation metric, which a training does not have, unless a callback of another
            class comes before it, which may compute it.
    """
    listed = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)
    acting = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau, keras.callbacks.ModelCheckpoint)
    for number, callback in enumerate(listed):
        monitors = isinstance(callback, acting) and getattr(callback, "save_best_only", True)
        own = any(not type(other).__module__.startswith(("keras.", "keras_ranking.")) for other in listed[:number])
        if monitors and not own and callback.monitor.startswith("val_"):
            raise ValueError(
                f"`callbacks`: {type(callback).__name__} monitors {callback.monitor!r}, which is not computed: training reads no "
                "validation rows. Give monitor='loss', or before it a callback that writes the value into the `logs` of `on_epoch_end`."
            )
    return listed
