"""Simulated logs, training and metrics: `simulate`, `train`, `evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import finite, open_log_of, open_source, start_keras, start_processes, step, table
from keras_ranking.commands.daily import check_daily, daily, wants_daily
from keras_ranking.commands.recipe_arguments import NAMES, add_run, recipe_options, tracking_callbacks
from keras_ranking.commands.transfer import check_transfer, resume_transfer, train_from_model


def simulate(args: argparse.Namespace) -> int:
    """Write a simulated log and its schema."""
    from keras_ranking import data

    out = Path(args.out)
    write = {".parquet": "to_parquet", ".csv": "to_csv", ".gz": "to_csv"}.get(out.suffix)
    if write is None:
        raise ValueError(f"`--out` must end in .parquet, .csv or .csv.gz. Received: {args.out}")
    with step("simulating"):
        log = data.simulate(members=args.members, days=args.days, seed=args.seed, **dict(args.set))
    schema = Path(args.schema) if args.schema else out.with_name(f"{out.name.split('.')[0]}.schema.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with step(f"writing {out}"):
        try:
            getattr(log.events, write)(out, index=False)
        except ImportError as error:
            raise ModuleNotFoundError("parquet needs pyarrow: pip install 'keras-ranking[data]'", name="pyarrow") from error
        log.schema.save(schema)
    counts = log.events["split"].value_counts(sort=False)
    shares = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"{len(log.events):,} impressions of {args.members:,} members ({shares})")
    print(f"log: {out}\nschema: {schema}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train a ranker on the `train` rows of a log, or resume a training."""
    check_transfer(args)
    check_daily(args)
    if args.source:
        return train_from_model(args, _options(args), tracking_callbacks, add_run)
    if args.from_study:
        from keras_ranking.commands.tuning import train_from_study

        return train_from_study(args)
    if args.resume:
        return _resume(args)
    if args.new_events:
        raise ValueError("`--new-events` needs `--resume DIR`, the training to continue.")
    seed = args.seed or 0
    log = open_log_of(args, seed)  # before Keras starts, which takes longer than to find that a file or a column is missing
    start_keras(args)
    tells = start_processes(args.distribution)
    from keras_ranking import training

    training.keep_freed_memory()
    model, callbacks = args.model or "cadet", tracking_callbacks(args) if tells else []
    _, history = training.train(
        log,
        model=model,
        out=Path(args.out),
        seed=seed,
        epochs=args.epochs,
        options=_options(args),
        verbose=not args.quiet,
        callbacks=callbacks,
        on_error=args.on_error or "raise",
        distribution=args.distribution,
    )
    add_run(callbacks, args.out)
    if tells:
        print(f"{model} trained in {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `--set`, `--preset`, `--batch-size` and the recipe, each given once."""
    given = {name: getattr(args, name) for name in ("preset", "batch_size")}
    own = {**{name: value for name, value in given.items() if value is not None}, **recipe_options(args)}
    names = [name for name, _ in args.set] + list(own)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`{name}` must be given once. Received: {', '.join(f'{known}={value}' for known, value in args.set)}")
    return {**own, **dict(args.set)}


def _resume(args: argparse.Namespace) -> int:
    """Resume an interrupted training, or take the daily step of a finished one."""
    fixed = ("model", "preset", "batch_size", *NAMES, *(() if args.new_events else ("seed", "epochs", "out")))
    for name in fixed:
        if getattr(args, name) is not None:
            flag = {"metrics": "metric"}.get(name, name).replace("_", "-")
            raise ValueError(f"`--{flag}` is that of the training in --resume. Received: {getattr(args, name)}")
    if args.set:
        raise ValueError(f"`--set` is that of the training in --resume. Received: {args.set[0][0]}")
    if args.new_events and not args.out:
        raise ValueError("`--new-events` needs `--out`: the folder to write.")
    if args.on_error and not args.new_events:
        raise ValueError(f"`--on-error` is that of the training in --resume. Received: {args.on_error}")
    if args.schema:
        from keras_ranking.schema import Schema

        Schema.load(args.schema)  # before Keras starts
    start_keras(args)
    tells = start_processes(args.distribution)
    from keras_ranking import training
    from keras_ranking.training.members import ensemble_about, member_folders
    from keras_ranking.training.transfer.run import about_of

    training.keep_freed_memory()
    about = ensemble_about(args.resume) if member_folders(args.resume) else about_of(args.resume)
    callbacks = tracking_callbacks(args) if tells else []
    seed = about.get("log_seed", about["seed"])  # a daily step has another seed; a simulated log keeps its seed
    if not args.new_events:
        if about["finished"]:
            raise ValueError(f"the training in '{args.resume}' is finished. To train it on newer events, give --new-events and --out.")
        log = open_log_of(args, seed, folder=args.resume)
        if "transfer" in about:
            history = resume_transfer(args, log, about, callbacks)
            add_run(callbacks, args.resume)
            print(f"{about['model']} trained in {history['seconds']:.0f} s: {Path(args.resume) / 'model.keras'}")
            return 0
        settings = {name: about[name] for name in ("model", "seed", "epochs")}
        settings["options"] = {**about["options"], "checkpoint_every": about["checkpoint_every"]}
        settings |= {"on_error": about.get("on_error", "raise"), "distribution": args.distribution, "callbacks": callbacks}
        _, history = training.train(log, out=args.resume, resume=True, verbose=not args.quiet, **settings)
        add_run(callbacks, args.resume)
        if tells:
            print(f"{about['model']} trained in {history['seconds']:.0f} s: {Path(args.resume) / 'model.keras'}")
        return 0
    if args.data.startswith("shards:"):
        log, new = _new_in_shards(args, seed)
    else:
        log, new = _with_new_events(args, seed)
        print(f"{int(new.sum()):,} new events", file=sys.stderr)
    if wants_daily(args):
        return daily(args, log, new, callbacks)
    settings = {
        "epochs": 1 if args.epochs is None else args.epochs,
        "seed": args.seed,
        "verbose": not args.quiet,
        "on_error": args.on_error or "raise",
        "learning_rate": args.learning_rate,
    }
    settings |= {"distribution": args.distribution, "callbacks": callbacks}
    _, history = training.warm_start(log, args.resume, new, args.out, **settings)
    add_run(callbacks, args.out)
    if tells:
        print(f"{about['model']} trained further in {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    return 0


def _new_in_shards(args: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """The shards, and the Unix time or the split of the new events."""
    log = open_log_of(args, seed)
    if not args.new_events[:1].isdigit():
        log.require_split(args.new_events)
        return log, args.new_events
    return log, _unix_time(args.new_events)


def _unix_time(text: str) -> int:
    from datetime import datetime

    import pandas as pd

    try:
        day = pd.Timestamp(datetime.fromisoformat(text))  # pandas would parse "1st of May" as a day of this year
    except ValueError as error:
        raise ValueError(f"`--new-events` must be a day, YYYY-MM-DD, or a SOURCE. Received: {text!r}") from error
    return int((day.tz_convert("UTC") if day.tzinfo else day.tz_localize("UTC")).timestamp())


def _with_new_events(args: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """The log, and which of its rows are new targets: those from a day on, or those of another source."""
    import dataclasses

    import numpy as np
    import pandas as pd

    # In a log without splits no rows are validation: all rows before the new ones are history.
    log = open_log_of(args, seed, train_share=1.0, folder=getattr(args, "resume", None))
    events = log.events
    if args.new_events[:1].isdigit():
        begin = _unix_time(args.new_events) - log.schema.epoch
        times, _ = log.schema.model_seconds(events[log.schema.time], round="floor")  # 0 for a bad time, which the checks of the log find
        return log, np.asarray((times >= begin) & (events["split"] == "train").to_numpy())
    with step(f"reading {args.new_events}"):
        other = open_source(args, args.new_events, log.schema, seed, 1.0)
    both = pd.concat([events, other.events], ignore_index=True)
    new = (other.events["split"] == "train").to_numpy()
    return dataclasses.replace(log, events=both), np.concatenate([np.zeros(len(events), dtype=bool), new])


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics of a trained model on one split, and write them as JSON."""
    file = Path(args.model_dir)
    if not (file / "model.keras" if file.is_dir() else file).is_file():
        raise FileNotFoundError(f"no model at '{args.model_dir}': `keras-ranking train` writes such a folder")
    seed = args.seed
    if seed is None:
        try:
            history = json.loads((Path(args.model_dir) / "history.json").read_text(encoding="utf-8"))
            seed = int(history.get("log_seed", history["seed"]))
        except (OSError, ValueError, KeyError):
            seed = 0
    log = open_log_of(args, seed, folder=args.model_dir)
    if hasattr(log, "require_split"):
        log.require_split(args.split)
    else:
        log.is_split(args.split)
    start_keras(args)
    from keras_ranking import training

    with step(f"scoring the {args.split} rows"):
        results = training.evaluate(args.model_dir, log, split=args.split, on_error=args.on_error or "raise")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(finite(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    names = dict.fromkeys(name for values in results.values() for name in values)
    rows = [[name, *(f"{values[name]:.4f}" if name in values else "" for values in results.values())] for name in names]
    print(table([f"{log.name} {args.split}", *results], rows))
    return 0
