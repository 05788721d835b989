"""Studies: `tune`, and `train --from-study`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import finite, open_log_of, start_keras, table

_OF_NEW = ("model", "data", "schema", "release", "holdout_members", "holdout_seed", "on_error", "space")
_OF_SEARCH = ("sampler", "pruner", "seeds", "metric", "validation", "heartbeat", "checkpoint_every", "keep")
_LOOKS = ("list", "best", "report", "cancel")


def tune(args: argparse.Namespace) -> int:
    """Make a study, work on one, or look at one."""
    _check(args)
    if args.study:
        return _look(args)
    from keras_ranking.tuning.places import plan
    from keras_ranking.tuning.store import open_store

    if args.worker:
        return _worker(args)
    if args.out:
        store = _made(args)
    else:
        store = open_store(args.join, args.storage, args.name)
        if not store.settings.model:
            raise ValueError(f"the study in '{args.join}' is of a model of your own: it runs where `tune_model` was called")
        if store.settings.data is None:
            raise ValueError(
                f"the log of the study in '{args.join}' was given in Python and is not stored: `kr.tuning.Study(...).join(log)`"
            )
        if args.trials is not None:
            plan(store, args.trials)
    return _run(args, store)


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together."""
    if args.out and not args.data:
        raise ValueError("`--out` needs --data SOURCE.")
    if not args.out:
        for name in (*_OF_NEW, *_OF_SEARCH, "seed"):
            if getattr(args, name) is not None:
                raise ValueError(f"`--{name.replace('_', '-')}` is that of the study. Received: {getattr(args, name)}")
        if args.set:
            raise ValueError(f"`--set` is that of the study. Received: {args.set[0][0]}")
    chosen = [name for name in _LOOKS if getattr(args, name) is not None and getattr(args, name) is not False]  # trial 0 is one
    if not args.study and chosen:
        raise ValueError(f"`--{chosen[0]}` needs --study DIR.")
    if args.study and (args.confirm or args.trials or args.workers != 1):
        raise ValueError("`--trials`, `--workers` and `--confirm` need --out DIR or --join DIR, which run trials.")
    if args.study and not chosen and args.dashboard is None:
        raise ValueError("`--study` needs one of --list, --best, --report, --cancel TRIAL and --dashboard.")
    if args.json and not args.study:
        raise ValueError("`--json` needs --study DIR.")


def _made(args: argparse.Namespace) -> Any:
    """Check and make a study of the arguments."""
    from keras_ranking.tuning.store import import_optuna

    import_optuna()
    seed = args.seed or 0
    log = open_log_of(args, seed)
    start_keras(args)
    from keras_ranking.tuning.settings import Search
    from keras_ranking.tuning.studies import make

    search = Search(**{name: value for name in (*_OF_SEARCH, "on_error") if (value := getattr(args, name)) is not None})
    data: dict[str, Any] = {"source": _absolute(args.data)}
    if not args.data.startswith("shards:"):
        data |= {"schema": None if args.schema is None else str(Path(args.schema).resolve()), "seed": seed}
        data |= {"release": args.release, "holdout_members": args.holdout_members, "holdout_seed": args.holdout_seed or 0}
    names = [name for name, _ in args.set]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{twice[0]}` must be given once. Received: {args.set}")
    settings = {"search": search, "space": args.space, "trials": args.trials or 40, "seed": seed, "options": dict(args.set), "data": data}
    print("checking the space ...", file=sys.stderr, flush=True)
    store, _ = make(log, args.model or "cadet", args.out, settings, args.storage, args.name)
    return store


def _absolute(source: str) -> str:
    """A source that other workers find from their folders."""
    kind, colon, place = source.partition(":")
    return f"{kind}:{Path(place).expanduser().resolve()}" if colon else source


def _run(args: argparse.Namespace, store: Any) -> int:
    """Workers in processes of their own until all trials have ended, then the report."""
    from keras_ranking.tuning.choosing import ranked
    from keras_ranking.tuning.places import plan_fresh, slot_of
    from keras_ranking.tuning.reporting import report_of
    from keras_ranking.tuning.settings import fresh_seeds
    from keras_ranking.tuning.spaces import options_of
    from keras_ranking.tuning.store import ENVIRONMENT
    from keras_ranking.tuning.supervising import supervise

    environment = {**os.environ, ENVIRONMENT: store.url}  # not in the command line of the workers, which all users of a machine can read
    command = [sys.executable, "-m", "keras_ranking.cli", "tune", "--join", str(store.folder), "--name", store.name, "--worker"]
    command += [part for part in ("--backend", args.backend) if args.backend] + (["--debug"] if args.debug else [])
    board = _board(store, args.dashboard, serve=False)
    try:
        code = supervise(store, command, args.workers, environment)
        if code == 0 and args.confirm:
            best, seeds = args.confirm
            settings = [(slot_of(one), options_of(store.settings.space, one.params)) for one in ranked(store)[:best]]
            plan_fresh(store, settings, fresh_seeds(store.settings, seeds))
            code = supervise(store, command, args.workers, environment, store.confirmed)
    finally:
        if board is not None:
            board.close()
    if code:
        return code
    report = report_of(store)
    print(report.text())
    print("report: " + ", ".join(str(path) for path in report.save(store.folder)), file=sys.stderr)
    return 0 if report.single is not None else 1


def _worker(args: argparse.Namespace) -> int:
    """One worker, watched over by the command that started it."""
    from keras_ranking.tuning.store import open_store

    store = open_store(args.join, args.storage, args.name)
    start_keras(args)
    from keras_ranking import training
    from keras_ranking.tuning.running import work
    from keras_ranking.tuning.studies import objective_of

    training.keep_freed_memory()
    objective = objective_of(store)
    work(store, objective, hard=True)
    if store.has(store.confirmed):
        work(store, objective, store.confirmed, hard=True)
    return 0


def _look(args: argparse.Namespace) -> int:
    """List, best setting, report, cancel, dashboard: without Keras."""
    from keras_ranking.tuning.places import cancel, latest, told
    from keras_ranking.tuning.store import open_store

    store = open_store(args.study, args.storage, args.name)
    if args.cancel is not None:
        cancel(store, args.cancel)
        print(f"trial {args.cancel} cancelled")
    if args.list:
        study = store.study()
        trials = sorted(latest(study.get_trials(deepcopy=False)).items())
        rows = [{"trial": slot, "value": one.value, "told": told(study, one), "options": dict(one.params)} for slot, one in trials]
        if args.json:
            print(json.dumps(finite({"trials": rows})["trials"], indent=2))
        else:
            values = ["" if row["value"] is None else f"{row['value']:.5f}" for row in rows]
            cells = [[str(row["trial"]), value, _shown(row["options"]), row["told"]] for row, value in zip(rows, values, strict=True)]
            print(table(["trial", store.settings.search.metric, "options", "what became of it"], cells))
    if args.best:
        from keras_ranking.tuning.choosing import best

        found = best(store)
        shown = f"trial {found['trial']}, single run {found['value']:.5f}: {_shown(found['options'])}"
        print(json.dumps(found, indent=2) if args.json else shown)
    if args.report:
        from keras_ranking.tuning.reporting import report_of

        report = report_of(store)
        print(json.dumps(report.as_json(), indent=2) if args.json else report.text())
        print("report: " + ", ".join(str(path) for path in report.save(store.folder)), file=sys.stderr)
    if args.dashboard is not None:
        _board(store, args.dashboard, serve=True)
    return 0


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items())


def _board(store: Any, port: int | None, serve: bool) -> Any:
    """The dashboard in a thread, or until Ctrl-C."""
    if port is None:
        return None
    from keras_ranking.tuning.dashboard import Dashboard

    board = Dashboard(store, port)
    print(f"dashboard: {board.url}", file=sys.stderr, flush=True)
    if serve:
        board.serve()
    else:
        board.start()
    return board


def train_from_study(args: argparse.Namespace) -> int:
    """Train the chosen setting of a study on all training rows."""
    fixed = ("model", "preset", "epochs", "batch_size", "resume", "new_events", "validation", "early_stopping", "monitor", "init_from")
    for name in fixed:
        if getattr(args, name) is not None:
            raise ValueError(f"`--{name.replace('_', '-')}` is that of the study in --from-study. Received: {getattr(args, name)}")
    if args.set:
        raise ValueError(f"`--set` is that of the study in --from-study. Received: {args.set[0][0]}")
    from keras_ranking.commands.recipe_arguments import add_run, recipe_options, tracking_callbacks
    from keras_ranking.tuning.choosing import best
    from keras_ranking.tuning.settings import opened_log
    from keras_ranking.tuning.store import open_store

    store = open_store(args.from_study)
    settings = store.settings
    if not settings.model:
        raise ValueError(f"the study in '{args.from_study}' is of a model of your own, which `train` does not build")
    found = best(store)
    print(f"trial {found['trial']} of {args.from_study}: {_shown(found['options'])}", file=sys.stderr)
    if args.data:
        log = open_log_of(args, settings.seed)
    elif settings.data is None:
        raise ValueError(f"the study in '{args.from_study}' was made in Python, with a log that is not stored: give --data SOURCE")
    else:
        log = opened_log(settings.data)
    start_keras(args)
    from keras_ranking import training

    training.keep_freed_memory()
    seed = settings.seed if args.seed is None else args.seed
    callbacks = tracking_callbacks(args)
    common: dict[str, Any] = {"on_error": args.on_error or settings.search.on_error}
    common["callbacks"] = callbacks
    options = {**found["training"], **recipe_options(args)}
    _, history = training.train(log, settings.model, Path(args.out), seed, options=options, verbose=not args.quiet, **common)
    add_run(callbacks, args.out)
    print(f"{settings.model} trained in {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    return 0
