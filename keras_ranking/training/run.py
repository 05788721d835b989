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
from keras_ranking.data import Log, PackedDataset, PackedRequests, PackedRows, Requests, Sequences, build_sequences, pack, requests
from keras_ranking.data.readers.ebnerd import ebnerd_schema

_BUILDERS: dict[str, Any] = {
    **{"cadet": models.CADET, "feedsr": models.FeedSR},
    **{"lirank": models.LiRank, "amortized": models.AmortizedDLRM, "ligr": models.LiGR},
}
HISTORY_SPLIT = "history"


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained. None of these is stated for CADET; what LiRank states is marked.

    Attributes:
        epochs: passes over the packed rows.
        batch_size: rows a step.
        row_length: events a row; candidates a row, of a model trained on requests.
        context: events of context before a later piece of a long member; None: half a row.
        learning_rate: highest rate, reached after the warm-up, then decayed by half a cosine.
        warmup: share of the steps in which the rate rises from 0 (LiRank states 5 to 50 %: it keeps DCNv2 from diverging).
        weight_decay: of AdamW.
        clip_norm: of the global gradient norm; of tables and of all else by themselves with a `table_optimizer` (clipping: stated).
        table_optimizer: 'same' as all else, which is AdamW, or 'adagrad' for embedding tables (LiRank states a large effect with many
            sparse features).
        table_learning_rate: of 'adagrad', with the same warm-up and decay.
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
    table_optimizer: str = "same"
    table_learning_rate: float = 0.02
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
        if self.table_optimizer not in ("same", "adagrad"):
            raise ValueError(f"`table_optimizer` must be 'same' or 'adagrad'. Received: table_optimizer={self.table_optimizer!r}")


_EBNERD_REQUESTS: dict[str, Any] = {
    "features": tuple(feature.name for feature in ebnerd_schema().features if feature.kind != "id"),
    "pairwise_weight": 0.0,
    "listwise_weight": 0.1,
    "row_length": 256,
    "batch_size": 16,
}

# What suits each log, chosen on its training days alone: the last of them held out.
_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    # Tastes are about topics: with item and author ids in the tokens a log of this size is learned by heart. Actions in the
    # values let one block compare a candidate with the events it looks at and read what was done with them.
    ("cadet", "simulated"): {
        "layout": "value",
        "token_features": ("topic", "age_hours", "editor_score"),
        "row_length": 256,
        "batch_size": 4,
        "epochs": 6,
        "learning_rate": 5e-3,
        "pairwise_weight": 0.02,
    },
    # News articles live for a day: 82 to 90 % of the scored pairs carry an article never trained on, so tokens have no article id.
    ("cadet", "ebnerd"): {
        "token_features": ("article_age", "views_6h", "ctr_6h", "ctr_24h_rank", "seen"),
        "num_heads": 2,
        "tower_hidden": (128, 64),
        "row_length": 256,
        "batch_size": 16,
    },
    # The same for LiRank: no article id, and no history, which added nothing here beside the counts of the member's past.
    ("lirank", "ebnerd"): {**_EBNERD_REQUESTS, "history_features": (), "calibration_options": {"step": 0.5}, "epochs": 8},
    # LiGR: whole lists see each other. Lists are 5 to 100 long and hold one click, which one item cannot know alone.
    ("ligr", "ebnerd"): {**_EBNERD_REQUESTS, "top_k": None, "history_features": (), "epochs": 5},
    ("amortized", "ebnerd"): {
        **_EBNERD_REQUESTS,
        "history_features": ("article_age",),
        "max_history": 30,
        "dim": 32,
        "num_heads": 2,
        "cross": "residual",
        "gate": "dense",
        "epochs": 5,
    },
}


def split_options(model: str, options: Mapping[str, Any], log_name: str = "") -> tuple[dict[str, Any], TrainingOptions]:
    """Options of the model's builder and options of training, told apart by name; the log's preset fills what is not given.

    Raises:
        ValueError: an unknown model, or a name that neither takes.
    """
    if model not in _BUILDERS:
        raise ValueError(f"unknown model '{model}'. There is: {sorted(_BUILDERS)}")
    given = {**_PRESETS.get((model, log_name), {}), **options}
    training_names = {field.name for field in fields(TrainingOptions)}
    model_names = set(inspect.signature(_BUILDERS[model]).parameters) - {"schema"}
    if "ranker" in model_names:  # further arguments, those of LiRank
        model_names = (model_names | set(inspect.signature(models.LiRank).parameters)) - {"schema", "ranker", "history_options"}
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
        model: 'cadet', 'feedsr', 'lirank', 'amortized' or 'ligr'.
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
    sequences = build_sequences(events, schema, target=learned)
    ranker = _BUILDERS[model](schema, **model_options)
    dataset, window = training_data(ranker, sequences, training, seed)
    if verbose:
        print(_describe(ranker, sequences, dataset), flush=True)
    compile_for(ranker, training, steps=len(dataset) * training.epochs, window=window)
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
        "packing_efficiency": _filled(dataset),
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


def training_data(
    ranker: models.RankingModel, sequences: Sequences, training: TrainingOptions, seed: int = 0
) -> tuple[PackedDataset | PackedRequests, int]:
    """What `ranker.fit` reads of streams: packed rows or requests, as the model's form is; and the longest request.

    Raises:
        ValueError: as the datasets, and targets without a position for a model with several towers.
    """
    _check_positions(ranker, sequences)
    if ranker.form == "requests":
        found = model_requests(ranker, sequences)
        longest = int((found.candidate_end - found.candidate_begin).max(initial=1))
        size = max(training.row_length, longest)
        return PackedRequests(found, size, training.batch_size, names=ranker.input_columns, tasks=ranker.tasks, seed=seed), longest
    rows = pack(sequences, training.row_length, context=training.context)
    return PackedDataset(rows, training.batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, seed=seed), rows.max_request


def model_requests(ranker: models.RankingModel, sequences: Sequences) -> Requests:
    """Requests with as much visible history as a model of form 'requests' reads."""
    arguments = ranker.arguments
    reads = "history_time" in ranker.input_columns
    return requests(sequences, max_history=arguments["max_history"] if reads else 0, delay=arguments["delay"])


def _check_positions(ranker: models.RankingModel, sequences: Sequences) -> None:
    """A row without a position would train the first tower: refuse it where there are several."""
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
    optimizer: Any = keras.optimizers.AdamW(schedule, weight_decay=training.weight_decay, global_clipnorm=training.clip_norm)
    if training.table_optimizer == "adagrad" and any(variable.path.endswith("/embeddings") for variable in ranker.trainable_variables):
        rate = keras.optimizers.schedules.CosineDecay(**{**schedule.get_config(), "warmup_target": training.table_learning_rate})
        tables = keras.optimizers.Adagrad(rate, global_clipnorm=training.clip_norm)
        optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer, {".*/embeddings": tables}))
    losses = ranker.losses_by_task(
        pairwise_weight=training.pairwise_weight, listwise_weight=training.listwise_weight, window=max(2, window)
    )
    ranker.compile(optimizer=optimizer, loss=losses, jit_compile=training.jit_compile)


def predict_events(
    ranker: models.RankingModel, data: PackedRows | Requests, batch_size: int = 8, row_length: int = 512
) -> dict[str, np.ndarray]:
    """Probabilities of every target event by task and tower, (E, K), NaN for events that are not targets.

    One pass over packed rows, or over requests packed into rows of `row_length`, `batch_size` rows a step: each event is scored from
    the events it may see, which is what serving computes for it.
    """
    if isinstance(data, Requests):
        return _predict_requests(ranker, data, batch_size, row_length)
    rows = data
    dataset = PackedDataset(rows, batch_size, inputs=ranker.input_columns, tasks=ranker.tasks, shuffle=False)
    return {task: rows.scatter(_sigmoid(values)) for task, values in _logits(ranker, dataset, len(rows.index)).items()}


def _predict_requests(ranker: models.RankingModel, found: Requests, batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    size = max(row_length, int((found.candidate_end - found.candidate_begin).max(initial=1)))
    dataset = PackedRequests(found, size, batch_size, names=ranker.input_columns, tasks=ranker.tasks, shuffle=False)
    logits = _logits(ranker, dataset, len(dataset.slots))
    target = found.sequences.target[:, None]
    return {task: np.where(target, dataset.scatter(_sigmoid(values)), np.nan) for task, values in logits.items()}


def _logits(ranker: models.RankingModel, dataset: PackedDataset | PackedRequests, rows: int) -> dict[str, np.ndarray]:
    """Logits (rows, T, K) by task, without the empty rows that fill the last batch."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in range(len(dataset)):
        found = ranker.predict_on_batch(dataset[batch][0])
        for task in ranker.tasks:
            parts.setdefault(task, []).append(np.asarray(found[task], dtype=np.float64))
    return {task: np.concatenate(values)[:rows] for task, values in parts.items()}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


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
    if ranker.form == "requests":
        data: PackedRows | Requests = model_requests(ranker, sequences)
    else:
        data = pack(sequences, max(row_length, int(np.diff(sequences.request_starts).max(initial=1)) * 2))
    results = {}
    bucket = np.searchsorted(np.asarray(ranker.boundaries, dtype=np.int64), sequences.position, side="left")
    for task, towers in predict_events(ranker, data).items():
        label = sequences.labels[task]
        judged = sequences.target & ~np.isnan(label)
        score = ranker.served(towers[judged])
        shown = np.take_along_axis(towers[judged], bucket[judged][:, None], axis=1)[:, 0]
        ranking = metrics.summary(label[judged], score, sequences.request[judged])
        probability = metrics.summary(label[judged], shown, sequences.request[judged])
        ranked = ("auc", "impression_auc", "ndcg_at_10", "mrr")
        results[task] = {name: float((ranking if name in ranked else probability)[name]) for name in probability}
    return results


def _filled(dataset: PackedDataset | PackedRequests) -> float:
    return dataset.efficiency if isinstance(dataset, PackedRequests) else dataset.rows.efficiency


def _describe(ranker: models.RankingModel, sequences: Sequences, dataset: PackedDataset | PackedRequests) -> str:
    if isinstance(dataset, PackedRequests):
        rows, skipped = len(dataset.slots), 0
        how = f"{len(dataset.requests):,} requests in {rows:,} rows of {dataset.row_length}, {dataset.efficiency:.1%} filled"
    else:
        packed = dataset.rows
        how, skipped = f"{len(packed.index):,} rows of {packed.index.shape[1]}, {packed.efficiency:.1%} filled", packed.skipped
    return (
        f"{ranker.name}: {ranker.count_params():,} parameters; {sequences.num_events:,} events of {sequences.num_members:,} members, "
        f"{int(sequences.target.sum()):,} to learn from; {how}" + (f"; {skipped} pieces without a target left out" if skipped else "")
    )
