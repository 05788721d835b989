"""What the roles of a schema's columns must have in common: checks of the whole schema."""

from __future__ import annotations

from typing import Any

from keras_ranking.columns import Count, Ids, Vector
from keras_ranking.task import check_conditions


def check_roles(schema: Any) -> None:
    """Check that no column of a schema has two roles, and that no input of a score is known only after it.

    Raises:
        ValueError: naming the column.
    """
    if not schema.tasks:
        raise ValueError("`tasks` must name at least one task.")
    names = [task.name for task in schema.tasks]
    if len(set(names)) != len(names):
        raise ValueError(f"`tasks` must have distinct names. Received: {names}")
    if clash := [name for name in names if f"{name}_by_position" in names]:
        raise ValueError(f"task '{clash[0]}_by_position' has the name of an output of task '{clash[0]}'.")
    check_conditions(schema.tasks)
    roles = {name: getattr(schema, name) for name in ("member", "time", "request", "session", "position")}
    taken: dict[str, str] = {}
    for role, column in roles.items():
        if column is None:
            continue
        # A log without request ids may use the session or the time as the request.
        if column in taken and (role == "position" or "request" not in (role, taken[column])):
            raise ValueError(f"column '{column}' has two roles, {taken[column]} and {role}.")
        taken[column] = role
    after = {column: f"the label of task '{task.name}'" for task in schema.tasks for column in [task.label]}
    after |= {action.name: "an action" for action in schema.actions}
    if schema.position is not None:
        after[schema.position] = "the position shown"
    seen: set[str] = set()
    for feature in schema.features:
        if feature.name in seen:
            raise ValueError(f"`features` must have distinct names. Received '{feature.name}' twice.{_other_name(feature)}")
        seen.add(feature.name)
        if feature.known != "after" and feature.name in after:
            raise ValueError(
                f"column '{feature.name}' is {after[feature.name]}, which is known only after scoring; "
                f"it cannot be an input of a score (known='{feature.known}')."
            )
        if feature.name in (schema.time, schema.request, schema.position):
            raise ValueError(f"column '{feature.name}' is the {taken[feature.name]} and cannot be a feature as well.")
    acted: set[str] = set()
    for action in schema.actions:
        if action.name in seen:
            raise ValueError(f"column '{action.name}' is an action and cannot be a feature as well.")
        if action.name in acted:
            raise ValueError(f"`actions` must have distinct names. Received '{action.name}' twice.")
        if action.name in taken:
            raise ValueError(f"column '{action.name}' is the {taken[action.name]} and cannot be an action as well.")
        acted.add(action.name)
    _check_counts(schema, after)
    _check_inputs(schema)


def _check_inputs(schema: Any) -> None:
    """No two columns have an input of one name, where those of the member have the prefix `member_`."""
    for feature in schema.features_known("member"):
        name = f"member_{feature.name}"
        if feature.name == "slot" or any(other.name == name for other in (*schema.features, *schema.actions)):
            raise ValueError(
                f"column '{feature.name}' (known='member') has the input '{name}', which has another meaning: give it another name."
            )


def _check_counts(schema: Any, after: dict[str, str]) -> None:
    """Counts are of what the log holds, and their keys are known when a row is scored."""
    after |= {feature.name: "a feature" for feature in schema.features if feature.known == "after"}
    counted = {count.name for count in schema.counts}
    for count in schema.counts:
        for column in count.key_columns:
            if column in after:
                raise ValueError(f"`key` of count '{count.name}' must be known when a row is scored. Received: '{column}', {after[column]}")
            if kind := next((type(one).__name__ for one in schema.features if one.name == column and isinstance(one, (Ids, Vector))), None):
                raise ValueError(f"`key` of count '{count.name}' must hold single values. Received: '{column}', of kind {kind}")
            if column in (schema.time, schema.request):
                raise ValueError(f"`key` of count '{count.name}' must come again in later requests. Received: '{column}'")
        if count.name in (schema.member, schema.session, *count.sources):
            raise ValueError(f"count '{count.name}' has the name of a column of the log; give it another one: Count(..., name='...')")
        if inner := [column for column in count.sources if column in counted]:
            raise ValueError(f"count '{count.name}' must be of columns of the log. Received: '{inner[0]}', which is counted")


def _other_name(feature: Any) -> str:
    return " Give one of them another: Count(..., name='...')." if isinstance(feature, Count) else ""
