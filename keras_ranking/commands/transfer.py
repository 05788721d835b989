"""`train --from`: a trained model on another surface."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import open_log_of, start_keras

_WAYS = ("heads", "all", "heads-then-all")
_NOT_HERE = ("model", "preset", "from_study", "resume", "new_events", "distribution", "ensemble", "init_from")


def transfer_arguments(made: argparse.ArgumentParser) -> None:
    """Add the arguments, in a group of their own."""
    group = made.add_argument_group("a trained model on another surface")
    group.add_argument("--from", dest="source", metavar="DIR", help="keep the trunk of the model in DIR, and make new heads (see below)")
    group.add_argument("--tasks", nargs="+", metavar="NAME", help="with --from: tasks of the log (default: all)")
    text = "with --from: what is trained; all: the trunk at a tenth of the rate (default: heads)"
    group.add_argument("--train", dest="trained", choices=_WAYS, help=text)
    text = "with --from: rows on which the result is compared with the source as it is, a model from scratch and the other way; written to "
    group.add_argument("--compare", metavar="SPLIT", help=f"{text}transfer.json")


def check_transfer(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together.

    Raises:
        ValueError: such arguments.
    """
    if args.source is None:
        for name, flag in (("tasks", "--tasks"), ("trained", "--train"), ("compare", "--compare")):
            if getattr(args, name) is not None:
                raise ValueError(f"`{flag}` needs `--from DIR`, the trained model. Received: {getattr(args, name)}")
        return
    for name in _NOT_HERE:
        if getattr(args, name) is not None:
            raise ValueError(f"`--{name.replace('_', '-')}` does not go with `--from`. Received: {getattr(args, name)}")
    if not (Path(args.source) / "model.keras" if Path(args.source).is_dir() else Path(args.source)).is_file():
        raise FileNotFoundError(f"no model at '{args.source}': `keras-ranking train` writes such a folder")


def train_from_model(
    args: argparse.Namespace, options: dict[str, Any], track: Callable[..., list[Any]], add_run: Callable[..., None]
) -> int:
    """Train the model of `--from` on the log, and compare ways; `track` and `add_run` are those of `recipe_arguments`."""
    seed, way = args.seed or 0, args.trained or "heads"
    log = open_log_of(args, seed, folder=args.source)
    if args.compare:
        log.is_split(args.compare)
    start_keras(args)
    from keras_ranking import training

    training.keep_freed_memory()
    callbacks = track(args)
    options = {**options, **({} if args.epochs is None else {"epochs": args.epochs})}
    model, history = training.transfer(
        log,
        args.source,
        Path(args.out),
        tasks=args.tasks,
        train=way,
        seed=seed,
        options=options,
        verbose=not args.quiet,
        callbacks=callbacks,
        on_error=args.on_error or "raise",
    )
    add_run(callbacks, args.out)
    print(f"{model.name} of {args.source} trained in {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    if args.compare:
        compared = {name: value for name, value in options.items() if name != "checkpoint_every"}  # no folder is written
        ways = ["source", "scratch", *dict.fromkeys(["heads", "all", way])]
        report = training.compare_transfer(
            log, args.source, model.tasks, args.compare, (seed,), ways, compared, {way: model}, verbose=not args.quiet
        )
        report.save(Path(args.out) / "transfer.json")
        print(report.table())
    return 0


def resume_transfer(args: argparse.Namespace, log: Any, about: dict[str, Any], callbacks: list[Any]) -> dict[str, Any]:
    """Go on with the transfer in `--resume`; its history.

    Raises:
        ValueError: a transfer of a model that was in memory.
    """
    from keras_ranking import training

    call = about["transfer"]
    if call["source"] is None:
        raise ValueError(
            f"the model that '{args.resume}' began from was in memory: resume it with `kr.training.transfer(..., resume=True)`."
        )
    settings = {name: about[name] for name in ("seed", "on_error")}
    settings["options"] = {**about["options"], "checkpoint_every": about["checkpoint_every"]}
    settings |= {"tasks": call["tasks"], "train": call["train"], "resume": True, "verbose": not args.quiet, "callbacks": callbacks}
    history: dict[str, Any] = training.transfer(log, call["source"], args.resume, **settings)[1]
    return history
