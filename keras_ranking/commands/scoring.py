"""Scores of one request, from a server or from a model in this process: `score`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import client_of, needs_server, plain_value, read_rows, start_keras, table
from keras_ranking.schema import Schema
from keras_ranking.utility import SCORE as UTILITY


def score(args: argparse.Namespace) -> int:
    """Print the candidates of one request, ranked."""
    needs_server(args)
    history, candidates, moment, member = _read_request(args)
    if args.server:
        if not args.schema:
            raise ValueError("`--server` needs --schema FILE: the schema.json that training wrote.")
        with client_of(args, args.schema, signature=args.signature) as client:
            schema = client.schema
            candidates = _counted(Path(args.schema), schema, history, candidates, moment, member)
            scores = client.score(history, candidates, moment)
    else:
        if args.task and args.task != UTILITY and (Path(args.model) / "schema.json").is_file():
            Schema.load(Path(args.model) / "schema.json").task(args.task)  # an unknown one, before Keras is started
        start_keras(args)
        from keras_ranking import models

        model = models.load(args.model)
        schema = model.schema
        candidates = _counted(Path(args.model), schema, history, candidates, moment, member)
        scores = score_here(model, history, candidates, moment)
    task = str(scores.columns[0])
    if args.task or UTILITY in scores:
        task = UTILITY if args.task in (None, UTILITY) else schema.task(args.task).name
    if task not in scores:
        raise ValueError(f"`--task` must be one that the model scores, {list(scores.columns)}. Received: {task}")
    order = scores[task].to_numpy().argsort(kind="stable")[::-1][: args.top]
    named = [feature.name for feature in schema.features_known("item") if feature.kind == "id" and feature.name in candidates][:1]
    ranked = [
        {"rank": rank, "candidate": int(row)}
        | {name: candidates[name].iloc[row] for name in named}
        | {name: float(scores[name].iloc[row]) for name in scores}
        for rank, row in enumerate(order, start=1)
    ]
    if args.json:
        print(json.dumps(ranked, default=plain_value, indent=2))
    else:
        cells = [[f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in ranked]
        print(table(list(ranked[0]), cells))
    return 0


def _read_request(args: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """(history, candidates, time, member or None) of the request in the arguments."""
    import pandas as pd

    if args.request:
        if args.history or args.candidates or args.time is not None:
            raise ValueError("give a REQUEST file, or --history, --candidates and --time; not both.")
        text = sys.stdin.read() if args.request == "-" else Path(args.request).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{args.request} is not JSON: {error}") from error
        if not isinstance(content, dict) or not {"time", "candidates"} <= set(content) <= {"time", "history", "candidates", "member"}:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"a request must have the keys time, candidates and, optionally, history and member. Received: {found}")
        return pd.DataFrame(content.get("history", [])), pd.DataFrame(content["candidates"]), content["time"], content.get("member")
    if not args.candidates or args.time is None:
        raise ValueError("give a REQUEST file, or --candidates FILE and --time SECONDS (and optionally --history FILE).")
    history = read_rows(args.history) if args.history else pd.DataFrame()
    return history, read_rows(args.candidates), args.time, None


def _counted(run: Path, schema: Schema, history: Any, candidates: Any, moment: Any, member: Any) -> Any:
    """The candidates with the columns that they lack, from the states that the run has saved, if it has."""
    from keras_ranking.data import saved_counts

    inputs = {feature.name for feature in schema.inputs()}
    states = None if inputs <= set(candidates) else saved_counts(run)
    if states is None or not [name for name in states.columns if name in inputs and name not in candidates]:
        return candidates
    # Keys that the candidates share, such as the member, may be those of the history.
    shared = {name: history[name].iloc[0] for name in states.keys if name in history and history[name].nunique(dropna=False) == 1}
    shared |= {} if member is None else {schema.member: member}
    if schema.member in states.keys and schema.member not in {*candidates, *shared}:
        raise ValueError(
            f"counts of '{schema.member}' need the key member of the request, or this column in the history or the candidates."
        )
    shared = {name: value for name, value in shared.items() if name in states.keys and name not in candidates}
    return states.with_features(candidates, moment, **shared)


def score_here(model: Any, history: Any, candidates: Any, moment: Any) -> Any:
    """Scores of one request by a Keras model in this process, one column per task."""
    import keras
    import pandas as pd

    from keras_ranking.serving import pad_requests, request_tensors

    graph = model.serving_model
    tensors = pad_requests([request_tensors(model.schema, history, candidates, moment, list(graph.input))])
    outputs = graph(tensors)
    tasks = [task.name for task in model.schema.tasks if task.name in outputs] + ([UTILITY] if model.utility else [])
    return pd.DataFrame({task: keras.ops.convert_to_numpy(outputs[task])[0, : len(candidates)] for task in tasks})
