"""From a log to a trained folder, and from a trained folder to figures: what `keras-ranking train` and `evaluate` do."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import metrics, models
from keras_ranking.data import Log, PackedDataset, PackedRows, build_sequences, pack

_BUILDERS = {"cadet": models.CADET}
HISTORY_SPLIT = "history"


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained. None of these is stated for CADET; all are our choice.

    Attributes:
        epochs: passes over the packed rows.
        batch_size: rows a step.
        row_length: events a row.
        context: events of context before a later piece of a long member; None: half a row.
        learning_rate: highest rate, reached after the warm-up, then decayed by half a cosine.
        warmup: share of the steps in which the rate rises from 0 (LiRank: 5 to 50 %).
        weight_decay: of AdamW.
        clip_norm: of the global gradient norm.
        pairwise_weight: weight of the in-request pairwise loss next to BCE.
        listwise_weight: weight of the in-request softmax loss next to BCE.
        jit_compile: 'auto' lets Keras decide.
    """

    epochs: int = 3
    batch_size: int = 8
    row_length: int = 512
    context: int | None = None
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    pairwise_weight: float = 0.1
    listwise_weight: float = 0.0
    jit_compile: bool | str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "row_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            received = f"learning_rate={self.learning_rate}, warmup={self.warmup}"
            raise ValueError(f"`learning_rate` must be positive and `warmup` from 0 to 1. Received: {received}")


# What suits each log, chosen on its training days alone: the last of them held out.
_PRESETS: dict[str, dict[str, Any]] = {
    # Tastes are about topics: with item and author ids in the tokens a log of this size is learned by heart. Actions in the
    # values let one block compare a candidate with the events it looks at and read what was done with them.
    "simulated": {
        "layout": "value",
        "token_features": ("topic", "age_hours", "editor_score"),
        "row_length": 256,
        "batch_size": 4,
        "epochs": 6,
        "learning_rate": 5e-3,
        "pairwise_weight": 0.02,
    },
    # News articles live for a day: 82 to 90 % of the scored pairs carry an article never trained on, so tokens have no article id.
    "ebnerd": {
        "token_features": ("article_age", "views_6h", "ctr_6h", "ctr_24h_rank", "seen"),
        "num_heads": 2,
        "tower_hidden": (128, 64),
        "row_length": 256,
        "batch_size": 16,
    },
}


def split_options(model: str, options: Mapping[str, Any], log_name: str = "") -> tuple[dict[str, Any], TrainingOptions]:
    """Options of the model's builder and options of training, told apart by name; the log's preset fills what is not given.

    Raises:
        ValueError: an unknown model, or a name that neither takes.
    """
    if model not in _BUILDERS:
        raise ValueError(f"unknown model '{model}'. There is: {sorted(_BUILDERS)}")
    given = {**_PRESETS.get(log_name, {}), **options}
    training_names = {field.name for field in fields(TrainingOptions)}
    model_names = set(inspect.signature(_BUILDERS[model]).parameters) - {"schema"}
    for name in given:
        if name not in training_names | model_names:
            raise ValueError(f"unknown option '{name}'. Of training: {sorted(training_names)}; of the model: {sorted(model_names)}")
    training = TrainingOptions(**{name: value for name, value in given.items() if name in training_names})
    return {name: value for name, value in given.items() if name in model_names}, training


def train(
    log: Log,
    model: str = "cadet",
    out: str | Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> tuple[models.RankingModel, dict[str, Any]]:
    """Train a ranker on the `train` rows of a log; `history` rows are read but not learned from, others not touched.

    Args:
        log: from `keras_ranking.data.open_log` or a reader.
        model: 'cadet'.
        out: folder for `model.keras`, `schema.json` and `history.json`; None: nothing is written.
        seed: of weights, shuffling and dropout.
        epochs, batch_size: over those of `options`.
        options: arguments of the builder and fields of `TrainingOptions`.
        verbose: print progress.

    Returns:
        The model, and what `history.json` holds: losses by epoch, seconds, counts, options.

    Raises:
        ValueError: no training rows, a bad option, or a bad value in the log.
    """
    model_options, training = split_options(model, options or {}, log.name)
    training = replace(
        training,
        epochs=training.epochs if epochs is None else epochs,
        batch_size=training.batch_size if batch_size is None else batch_size,
    )
    events = log.events[log.events["split"].isin(["train", HISTORY_SPLIT])]
    learned = (events["split"] == "train").to_numpy()
    if not learned.any():
        raise ValueError(f"the log '{log.name}' has no rows with split 'train'. It has: {sorted(log.events['split'].unique())}")
    keras.utils.set_random_seed(seed)
    schema = log.schema.fit(events[learned])
    rows = pack(build_sequences(events, schema, target=learned), training.row_length, context=training.context)
    ranker = _BUILDERS[model](schema, **model_options)
    _check_positions(ranker, rows)
    dataset = PackedDataset(rows, training.batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, seed=seed)
    if verbose:
        print(_describe(ranker, rows), flush=True)
    compile_for(ranker, training, steps=len(dataset) * training.epochs, window=rows.max_request)
    start = time.perf_counter()
    fitted = ranker.fit(dataset, epochs=training.epochs, shuffle=False, verbose=1 if verbose else 0)
    history = {
        "model": model,
        "log": log.name,
        "seed": seed,
        "backend": keras.backend.backend(),
        "epochs": {name: [float(value) for value in values] for name, values in fitted.history.items()},
        "seconds": time.perf_counter() - start,
        "train_events": int(learned.sum()),
        "parameters": int(ranker.count_params()),
        "packing_efficiency": rows.efficiency,
        "training": asdict(training),
        "arguments": ranker.arguments,
    }
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        ranker.save(folder / "model.keras")
        schema.save(folder / "schema.json")
        (folder / "history.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    return ranker, history


def _check_positions(ranker: models.RankingModel, rows: PackedRows) -> None:
    """A row without a position would train the first tower: refuse it where there are several."""
    sequences = rows.sequences
    unknown = sequences.target & (sequences.position == 0)
    if ranker.boundaries and unknown.any():
        raise ValueError(
            f"column '{sequences.schema.position}' has no position at row {int(sequences.rows[unknown.argmax()])} ({int(unknown.sum())} "
            "training rows); towers by position need one. Use tower_boundaries=() or leave such rows out."
        )


def compile_for(ranker: models.RankingModel, training: TrainingOptions, steps: int, window: int) -> None:
    """Compile with AdamW, warm-up and cosine decay over `steps`, and the losses of the options."""
    warmup = max(1, round(training.warmup * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - warmup),
        alpha=0.01,
        warmup_target=training.learning_rate,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=training.weight_decay, global_clipnorm=training.clip_norm)
    losses = ranker.losses_by_task(
        pairwise_weight=training.pairwise_weight, listwise_weight=training.listwise_weight, window=max(2, window)
    )
    ranker.compile(optimizer=optimizer, loss=losses, jit_compile=training.jit_compile)


def predict_events(ranker: models.RankingModel, rows: PackedRows, batch_size: int = 8) -> dict[str, np.ndarray]:
    """Probabilities of every target event by task and tower, (E, K), NaN for events that are not targets.

    One pass over packed rows: each event is scored from the events it may see, which is what serving computes for it.
    """
    dataset = PackedDataset(rows, batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, shuffle=False)
    logits: dict[str, list[np.ndarray]] = {}
    for batch in range(len(dataset)):
        for task, value in ranker.predict_on_batch(dataset[batch][0]).items():
            logits.setdefault(task, []).append(np.asarray(value, dtype=np.float64))
    count = len(rows.index)
    return {task: rows.scatter(1.0 / (1.0 + np.exp(-np.concatenate(parts)[:count]))) for task, parts in logits.items()}


def evaluate(
    model: str | Path | models.RankingModel, log: Log, split: str = "validation", row_length: int = 2048
) -> dict[str, dict[str, float]]:
    """Figures of a trained model on one split, by task.

    Ranking figures (`auc`, `impression_auc`, `ndcg_at_10`, `mrr`) judge the score that serving returns, which does not know
    the position; figures of probabilities (`log_loss`, `normalized_entropy`, `calibration_error`, `observed_over_expected`)
    judge the tower of the position shown. With one tower they are the same numbers.

    Rows of later splits are not read; rows of earlier ones are history.

    Raises:
        ValueError: no such split, or no rows in it.
    """
    ranker = model if isinstance(model, models.RankingModel) else models.load(model)
    wanted = (log.events["split"] == split).to_numpy()
    if not wanted.any():
        raise ValueError(f"the log '{log.name}' has no rows with split '{split}'. It has: {sorted(log.events['split'].unique())}")
    times = ranker.schema.encode_time(log.events[ranker.schema.time])
    past = times <= times[wanted].max()
    sequences = build_sequences(log.events[past], ranker.schema, target=wanted[past])
    rows = pack(sequences, max(row_length, int(np.diff(sequences.request_starts).max(initial=1)) * 2))
    results = {}
    bucket = np.searchsorted(np.asarray(ranker.boundaries, dtype=np.int64), sequences.position, side="left")
    for task, towers in predict_events(ranker, rows).items():
        label = sequences.labels[task]
        judged = sequences.target & ~np.isnan(label)
        score = towers[judged, ranker.serving_tower]
        shown = np.take_along_axis(towers[judged], bucket[judged][:, None], axis=1)[:, 0]
        ranking = metrics.summary(label[judged], score, sequences.request[judged])
        probability = metrics.summary(label[judged], shown, sequences.request[judged])
        ranked = ("auc", "impression_auc", "ndcg_at_10", "mrr")
        results[task] = {name: float((ranking if name in ranked else probability)[name]) for name in probability}
    return results


def _describe(ranker: models.RankingModel, rows: PackedRows) -> str:
    sequences = rows.sequences
    return (
        f"{ranker.name}: {ranker.count_params():,} parameters; {sequences.num_events:,} events of {sequences.num_members:,} members, "
        f"{int(sequences.target.sum()):,} to learn from; {len(rows.index):,} rows of {rows.index.shape[1]}, {rows.efficiency:.1%} filled"
        + (f"; {rows.skipped} pieces without a target left out" if rows.skipped else "")
    )
