"""Examples per second of a training step of all five models on a simulated log, histories on and off, each backend.

    python tools/benchmarks/models_cost.py [--rows 1000000] [--days 14] [--backends tensorflow,jax,torch] [--models lirank] [--ways]
        [--scoring] [--json FILE]

Every model has its defaults, as `keras-ranking train` uses them, and every step is one of `train_on_batch` with the default batch. An
example is an impression that is scored; padding is not counted. `history` is "on", "off" (LiRank, LiGR without `history_features`) or
"causal" (AmortizedDLRM with history_mask='causal'), or "append_cross": LiRank with history_options={'fusion': 'append_cross'}, whose
history is read once, beside the peer of LiRank "on". The peer, in the same process and on the same log, is the same model with a history
for each request: LiRank encodes the window of each slot by itself, LiGR and AmortizedDLRM a copy of the history for each request.
`ratio` is that of examples per second of CPU time. A step runs `--steps` times (3) after two to compile, and the fastest counts.

With `--ways`, lines of LiRank "on" with each of its two ways alone, beside the same peer: "shared projections" (what no candidate changes
is projected once a request; each slot reads the longest window) and "slots by length" (slots with short histories read short windows).

With `--scoring`, lines of `predict_events` in place of training steps: events of the log scored per second of CPU time, LiGR and
AmortizedDLRM, beside the same with a history for each request; the second of two passes.

`bound` is, for LiRank with a history, the largest ratio that arithmetic in float32 allows: products of the step at the rate of one large
product of this backend, without anything else, in place of the peer's whole step. A token of width D costs 10 D^2 multiplications
in two blocks, 7 D^2 where the first projections are shared, and attention 4 D for each event; its backward twice that.
Half of the token is the candidate, so that no other product is the same for two candidates.

One JSON object per line: backend, model, history, rows, examples_per_second, peer_per_second, ratio, cpu_ms, peer_cpu_ms, bound.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import print_lines

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("cadet", "on", {}),
    ("feedsr", "on", {}),
    ("lirank", "on", {}),
    ("lirank", "append_cross", {"history_options": {"fusion": "append_cross"}}),
    ("lirank", "append_cross causal", {"history_options": {"fusion": "append_cross", "history_mask": "causal"}}),
    ("lirank", "off", {"history_features": ()}),
    ("ligr", "on", {}),
    ("ligr", "off", {"history_features": ()}),
    ("amortized", "on", {}),
    ("amortized", "causal", {"history_mask": "causal"}),
]

WAYS = ("shared projections", "slots by length")


@contextlib.contextmanager
def of_form(model: Any, form: str) -> Iterator[None]:
    """LiRank with another training graph: 'peer' encodes the window of each slot by itself; see `--ways` for the others."""
    import keras

    from keras_ranking.layers.history import concatenated_rows

    wiring, shares = model._graphs.wiring, concatenated_rows._shares
    inputs = wiring.row_inputs()
    if form != "slots by length":
        inputs = {name: x for name, x in inputs.items() if not name.startswith("slots_")}
    if form == "peer":
        columns = {name: x for name, x in inputs.items() if name.startswith("candidate_")}
        logits = wiring._one_by_one(inputs, columns, inputs["request_slot"])[0]
        outputs = {task: keras.ops.expand_dims(value, -1) for task, value in logits.items()}
    else:
        outputs = wiring.row(inputs)
    graph, kind = keras.Model(inputs, outputs), type(model)
    names = {
        "call": lambda self, x, training=None, **_: graph(x, training=training),
        "__call__": lambda self, x, **given: graph(x, **given),
    }
    model.__class__ = type("Formed", (kind,), {**names, "input_columns": property(lambda self: list(inputs))})
    if form == "slots by length":
        concatenated_rows._shares = lambda encoder, window: False  # type: ignore[assignment]
    try:
        yield
    finally:
        concatenated_rows._shares = shares


def step_seconds(model: Any, dataset: Any, steps: int) -> tuple[float, float]:
    """CPU seconds of the fastest step, and examples of a step."""
    from keras import backend

    from keras_ranking.training.setup import build_for

    batches = [dataset[number % len(dataset)] for number in range(min(len(dataset), 3))]
    if backend.backend() == "tensorflow":
        build_for(model, batches[0])
    best, examples = float("inf"), 0.0
    for number in range(steps + 2):
        x, y, weights = batches[number % len(batches)]
        begin = time.process_time()
        model.train_on_batch(x, y, weights)
        if number >= 2:
            best = min(best, time.process_time() - begin)
    slots = [x["request_slot"] if "request_slot" in x else x["segment"] for x, _, _ in batches]
    examples = float(np.mean([(np.asarray(slot) > 0).sum() for slot in slots]))
    return best, examples


def product_rate() -> float:
    """Multiplications per second of CPU time in a product of (8192, 256) and (256, 256)."""
    import keras

    def product(x: Any, w: Any) -> Any:
        return keras.ops.matmul(x, w)

    x, w = (keras.ops.convert_to_tensor(np.ones(shape, "float32")) for shape in ((8192, 256), (256, 256)))
    times = []
    for _ in range(20):
        begin = time.process_time()
        np.asarray(keras.ops.convert_to_numpy(product(x, w))[0, 0])
        times.append(time.process_time() - begin)
    return float(8192 * 256 * 256 / min(times))


def concat_bound(model: Any, found: Any, peer_seconds: float, examples: float) -> float:
    """See `bound` above."""
    width = model._graphs.wiring.history.width
    length = (found.history_end - found.history_begin).astype(np.float64)
    shown = found.candidate_end - found.candidate_begin
    of_slot = (shown * (length * 7 * width**2 + 4 * width * length**2)).sum() / shown.sum()
    return peer_seconds / (3 * of_slot * examples / product_rate())


def measured(model: Any, form: str, sequences: Any, training: Any, steps: int) -> tuple[float, float, Any]:
    """CPU seconds of the fastest step, examples of a step, and the requests; of the form 'new', 'peer', or one of `WAYS`."""
    from keras_ranking.data import PackedRequests
    from keras_ranking.training.scoring.events import model_requests
    from keras_ranking.training.setup import compile_for, training_data

    lirank = type(model._graphs.wiring).__name__ == "LiRankWiring"
    with of_form(model, form) if lirank and form != "new" else contextlib.nullcontext():
        dataset, window = training_data(model, sequences, training, 0)
        if form != "new":
            dataset = PackedRequests(
                model_requests(model, sequences), dataset.row_length, training.batch_size, names=model.input_columns, tasks=model.tasks
            )
        compile_for(model, training, steps=100, window=window)
        return (*step_seconds(model, dataset, steps), getattr(dataset, "requests", None))


def scored_per_second(model: Any, sequences: Any, copies: bool) -> float:
    """Events per CPU second of a pass of `predict_events` over the log."""
    from keras_ranking.training import model_requests, predict_events

    if copies:
        model.__class__ = type("Copied", (type(model),), {"stream_columns": []})
    found = model_requests(model, sequences)
    for _ in range(2):
        begin = time.process_time()
        scores = predict_events(model, found)
        seconds = time.process_time() - begin
    return float(np.isfinite(next(iter(scores.values()))).sum() / seconds)


def measure(args: argparse.Namespace) -> None:
    """All cases of the active backend."""
    import keras

    import keras_ranking as kr
    from keras_ranking.training import keep_freed_memory
    from keras_ranking.training.options import MODELS, split_options

    keep_freed_memory()
    members = max(20, round(args.rows / (9.35 * args.days)))
    log = kr.data.simulate(members=members, days=args.days, seed=0)
    schema = log.schema.fit(log.events)
    sequences = kr.data.build_sequences(log.events, schema)
    peers: dict[str, float] = {}  # examples per second
    for name, history, options in CASES:
        if args.models and name not in args.models.split(","):
            continue
        own, training = split_options(name, options, None)

        def model() -> Any:
            keras.utils.set_random_seed(0)
            return MODELS[name](schema, **own)  # noqa: B023

        line: dict[str, Any] = {"backend": keras.backend.backend(), "model": name, "history": history, "rows": len(log.events)}
        if args.scoring:
            if history != "off" and name in ("ligr", "amortized"):
                rate, peer = (scored_per_second(model(), sequences, copies) for copies in (False, True))
                print(json.dumps({**line, "scored_per_second": rate, "peer_per_second": peer, "ratio": rate / peer}), flush=True)
            continue
        seconds, examples, _ = measured(model(), "new", sequences, training, args.steps)
        line |= {"examples_per_second": examples / seconds, "cpu_ms": 1e3 * seconds}
        if history != "off" and name not in ("cadet", "feedsr"):
            if not history.startswith("append_cross"):
                seconds, examples, found = measured(made := model(), "peer", sequences, training, args.steps)
                peers[name] = examples / seconds
                line["peer_cpu_ms"] = 1e3 * seconds
                if name == "lirank":
                    line["bound"] = concat_bound(made, found, seconds, examples)
            line |= {"peer_per_second": peers[name], "ratio": line["examples_per_second"] / peers[name]}
        print(json.dumps(line), flush=True)
        for way in WAYS if args.ways and (name, history) == ("lirank", "on") else ():
            seconds, examples, _ = measured(model(), way, sequences, training, args.steps)
            rate = examples / seconds
            print(json.dumps({**line, "history": way, "examples_per_second": rate, "cpu_ms": 1e3 * seconds, "ratio": rate / peers[name]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--models", help="of cadet, feedsr, lirank, ligr and amortized, separated by commas; default: all")
    parser.add_argument("--ways", action="store_true", help="LiRank's two ways apart")
    parser.add_argument("--scoring", action="store_true", help="predict_events in place of training steps")
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args)
        return
    for backend in args.backends.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--here"]
        print_lines(command, {**os.environ, "KERAS_BACKEND": backend}, args.json)


if __name__ == "__main__":
    main()
