"""Arguments of `train` for the fields of `keras_ranking.training.Recipe`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from keras_ranking.commands.transfer import transfer_arguments

NAMES = (
    "validation",
    "early_stopping",
    "monitor",
    "best",
    "optimizer",
    "schedule",
    "metrics",
    "ema",
    "ema_every",
    "ensemble",
    "init_from",
    "utility",
    "checkpoint_every",
)


def _number_or_text(text: str) -> float | str:
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def _weights(text: str) -> dict[str, float]:
    """'click=1,like=4' -> weights by task."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            found[name.strip()] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be TASK=WEIGHT,TASK=WEIGHT with numbers as weights. Received: {text!r}") from None
    return found


def utility_argument(made: Any, default: str) -> None:
    """Add `--utility`."""
    text = f"rank by one number, the sum of what is served by task times its weight (default: {default})"
    made.add_argument("--utility", type=_weights, metavar="TASK=WEIGHT,...", help=text)


def recipe_arguments(made: argparse.ArgumentParser) -> None:
    """Add the arguments, in a group of their own, `--distribution`, and what `train` begins from."""
    transfer_arguments(made)
    text = "several devices: data, a part of each batch; tables (JAX), also parts of large tables; torch: see the example with torchrun"
    made.add_argument("--distribution", choices=("data", "tables"), help=text)
    group = made.add_argument_group("validation, early stopping, optimiser")
    rows = "rows to measure the model on after each epoch, not trained on: last_day, a share such as 0.1, or a split (default: none)"
    group.add_argument("--validation", type=_number_or_text, metavar="ROWS", help=rows)
    text = "with --validation: stop after N epochs without a better value, and save the best epoch"
    group.add_argument("--early-stopping", "--patience", type=int, metavar="N", help=text)
    text = "of --early-stopping: log_loss, normalized_entropy, auc, grouped_auc, or of one task: click_auc (default: log_loss)"
    group.add_argument("--monitor", metavar="NAME", help=text)
    text = "with --validation: save the best epoch, or with --no-best the last (default: the best where training stops early)"
    group.add_argument("--best", action=argparse.BooleanOptionalAction, help=text)
    group.add_argument("--optimizer", metavar="NAME", help="optimiser of Keras, such as adam (default: adamw)")
    group.add_argument("--schedule", metavar="NAME", help="of the learning rate: cosine, onecycle or constant (default: cosine)")
    text = "metric on the rows of training, such as NormalizedEntropy; may be given more than once"
    group.add_argument("--metric", dest="metrics", action="append", metavar="NAME", help=text)
    text = "rate of a moving average of the weights, which is what is validated and saved, such as 0.998 (default: none)"
    group.add_argument("--ema", type=float, metavar="RATE", help=text)
    group.add_argument("--ema-every", type=int, metavar="N", help="with --ema: steps between moves of the average (default: 1)")
    text = "train N models of seeds that differ by one, whose mean probability is the score of one model (default: 1)"
    group.add_argument("--ensemble", type=int, metavar="N", help=text)
    group.add_argument("--init-from", metavar="DIR", help="start from the weights of a saved model with the same options")
    utility_argument(made, "none; it may also be chosen at the export")


def tracking_arguments(made: argparse.ArgumentParser) -> None:
    """Add the arguments of `tracking_callbacks`."""
    group = made.add_argument_group("curves")
    text = "write losses and metrics of each epoch for `tensorboard --logdir DIR`; TensorFlow is not needed"
    group.add_argument("--tensorboard", metavar="DIR", help=text)
    text = "log the training as a run of MLflow: http://HOST:PORT or sqlite:///FILE (the extra mlflow)"
    group.add_argument("--mlflow", metavar="URI", help=text)


def tracking_callbacks(args: argparse.Namespace) -> list[Any]:
    """Callbacks of `--tensorboard` and `--mlflow`."""
    from keras_ranking.training import MLflowLog, TensorBoardLog

    board = [TensorBoardLog(args.tensorboard)] if args.tensorboard else []
    return [*board, *([MLflowLog(args.mlflow)] if args.mlflow else [])]


def add_run(callbacks: list[Any], folder: str) -> None:
    """Add what a training has written to its run of MLflow."""
    for callback in callbacks:
        if hasattr(callback, "add_folder"):
            callback.add_folder(folder)


def recipe_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name in NAMES if (value := getattr(args, name)) is not None}
