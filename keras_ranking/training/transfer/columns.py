"""The schema of a log with the constants of a trained model, and the model's arguments with the columns and tasks of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_ranking import models
from keras_ranking.columns import Category, Id, Ids, SemanticId
from keras_ranking.schema import Schema

_FITTED = ("mean", "std", "bins", "edges")
_BY_TASK = ("groups", "choose_by", "explore", "random_effects", "auxiliary_tasks", "choice")
_BY_COLUMN = (
    *("features", "token_features", "late_features", "history_features", "shared_tables", "random_effects", "calibration_features"),
    *("past_keys", "past_matches", "past_numbers", "number_columns"),
)


def schema_for(source: models.RankingModel, log: Schema, tasks: Sequence[str] | None, columns: Mapping[str, str]) -> Schema:
    """The schema of a log, in which each column that the source reads has the source's constants.

    Roles, tasks and the feedback delay are those of the log; the zero of time, and the constants of columns that the source reads, are
    the source's. Vocabularies are the source's with the words behind that the log's has in addition. Other columns stay as they are.

    Args:
        source: the trained model.
        log: the log's schema.
        tasks: of the log; None: all.
        columns: column of the log -> column of the source.

    Raises:
        ValueError: columns that the source reads and the log lacks, or that differ in more than constants and words.
    """
    chosen = tuple(log.task(task) for task in ([task.name for task in log.tasks] if tasks is None else tasks))
    if not chosen:
        raise ValueError("`tasks` must name at least one task. Received: none")
    to_log = {theirs: ours for ours, theirs in columns.items()}
    ours = {column.name: column for column in (*log.features, *log.actions)}
    theirs = {column.name for column in (*source.schema.features, *source.schema.actions)}
    if unknown := [name for name in columns if name not in ours]:
        raise ValueError(f"`columns` must name columns of the log, of {sorted(ours)}. Received: {unknown}")
    if unknown := [name for name in to_log if name not in theirs]:
        raise ValueError(f"`columns` must give columns of the source, of {sorted(theirs)}. Received: {unknown}")
    read = read_columns(source)
    features, faults = _merged([one for one in source.schema.features if one.name in read], log.features, to_log)
    actions: Any = log.actions
    if any(action.name in read for action in source.schema.actions):
        actions, more = _merged(source.schema.actions, log.actions, to_log)
        faults += more
    if faults:
        raise ValueError(f"`log` must have the columns that the model to transfer reads: {'; '.join(faults)}")
    known = {column.name for column in features}
    others = tuple(column for column in log.features if column.name not in known)
    made = {**log.model_dump(), "features": (*features, *others), "actions": tuple(actions), "tasks": chosen}
    return Schema(**{**made, "epoch": source.schema.epoch})


def read_columns(source: models.RankingModel) -> set[str]:
    """Names of the features and actions that a model reads."""
    begins = ("candidate_", "history_", "member_") if source.form == "requests" else ("", "member_")
    return {name.removeprefix(begin) for name in source.input_columns for begin in begins if name.startswith(begin)}


def _merged(theirs: Iterable[Any], ours: Iterable[Any], to_log: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    """Columns of the source under the names of the log, and what is wrong with them."""
    by_name = {column.name: column for column in ours}
    merged, faults = [], []
    for column in theirs:
        name = to_log.get(column.name, column.name)
        if name not in by_name:
            other = "" if name == column.name else f", which is to be '{column.name}',"
            faults.append(f"'{name}'{other} is not in its schema")
            continue
        grown, fault = grown_column(column, by_name[name])
        merged.append(grown.model_copy(update={"name": name}))
        faults += [f"'{name}' {fault}"] if fault else []
    return merged, faults


def grown_column(theirs: Any, ours: Any) -> tuple[Any, str]:
    """A column of the source with what the log's has in addition, and what is wrong with it; '': nothing."""
    if type(theirs) is not type(ours) or theirs.known != ours.known:
        what = f"{type(ours).__name__} known as '{ours.known}'"
        return theirs, f"is a {what} in the log, and a {type(theirs).__name__} known as '{theirs.known}' in the source"
    update: dict[str, Any] = {}
    if isinstance(theirs, (Category, Ids)) and theirs.vocabulary is not None and ours.vocabulary is not None:
        update["vocabulary"] = (*theirs.vocabulary, *(word for word in ours.vocabulary if word not in theirs.vocabulary))
    if isinstance(theirs, (Id, Category, Ids)) and ours.buckets != theirs.buckets and getattr(theirs, "vocabulary", None) is None:
        if theirs.buckets is None or ours.buckets is None or (ours.buckets - 1) % (theirs.buckets - 1):
            fits = "" if theirs.buckets is None else f"; it can grow to 1 + k * {theirs.buckets - 1:,}, such as {2 * theirs.buckets - 1:,}"
            return theirs, f"has buckets={ours.buckets} in the log and {theirs.buckets} in the source{fits}"
        update["buckets"] = ours.buckets
    if isinstance(theirs, SemanticId):
        grown, fault = _with_items(theirs, ours)
        if fault:
            return theirs, fault
        update |= {"items": grown.items, "codes": grown.codes}
    free = {"name", "table", *_FITTED, *update} | ({"buckets"} if "vocabulary" in update else set())
    for field in sorted(type(theirs).model_fields.keys() - free):
        if getattr(theirs, field) != getattr(ours, field):
            return theirs, f"has {field}={getattr(ours, field)!r} in the log and {getattr(theirs, field)!r} in the source"
    return theirs.model_copy(update=update), ""


def _with_items(theirs: SemanticId, ours: SemanticId) -> tuple[SemanticId, str]:
    """The source's semantic ids with the log's further items, which need codes of the same quantizer; and what is wrong."""
    if ours.items is None or ours.codes is None or ours.levels != theirs.levels:
        return theirs, ""
    try:
        return theirs.with_codes(list(ours.items), ours.codes), ""
    except ValueError as error:
        return theirs, f"has codes of another quantizer: {error}"


def old_rows(theirs: Any, ours: Any) -> list[int]:
    """For each row of the table of a grown column the row of the source's table; -1: none, a word that the source does not know."""
    if getattr(theirs, "vocabulary", None) is not None:
        return [*range(theirs.rows), *([-1] * (ours.rows - theirs.rows))]
    # Fingerprint mod k m, mod m, is fingerprint mod m: each id begins with the row that it had.
    return [0, *((row - 1) % (theirs.rows - 1) + 1 for row in range(1, ours.rows))]


def arguments_for(source: models.RankingModel, schema: Schema, columns: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the source's builder for the log.

    Options by task are left to the builder's defaults where they name tasks that the log does not have. The delay follows that of the log,
    if it followed that of the source.

    Args:
        source: the trained model.
        schema: from `schema_for`.
        columns: column of the log -> column of the source.
        given: options that are chosen.
    """
    to_log, tasks = {theirs: ours for ours, theirs in columns.items()}, [task.name for task in schema.tasks]
    made: dict[str, Any] = {}
    for name, value in source.arguments.items():
        of_tasks = _tasks_in(name, value) if name in _BY_TASK else set()
        if of_tasks <= set(tasks) and (name != "groups" or value is None or of_tasks == set(tasks)):
            made[name] = _renamed(value, to_log) if name in _BY_COLUMN else value
    if made.get("delay") == source.schema.feedback_delay:
        del made["delay"]
    return {**made, "tasks": tasks, **given}


def _tasks_in(name: str, value: Any) -> set[str]:
    """Tasks that an option names."""
    if name == "groups" and value is not None:
        return {task for held in value.values() for task in held}
    return {value} if isinstance(value, str) else set(value or ())


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(inner, names) for inner in value]
    return value
