"""Events per second of a training step: packed rows compared with padded batches, on the lengths of EB-NeRD, on each backend.

    python tools/benchmarks/training.py FOLDER [--model cadet] [--backends tensorflow,jax,torch] [--json FILE]
    python tools/benchmarks/training.py FOLDER --set dim=256 --set num_heads=4 [--set jit_compile=True]        # the width in serving.py
    python tools/benchmarks/training.py FOLDER --packing 256 512 1024 2496       # share of slots that packing fills, by row length

The streams are those of EB-NeRD's `train` split: impressions and the 21 days of clicks before them, complete (mean 309 events, median
165, longest 2,496), or the latest `--max-events` of each member. The model is the preset for this log (`dim=64`); `--set` changes it.
Members, model, weights, optimiser and losses are the same in all ways:

* packed: rows as long as the longest stream, several members per row (`data.pack`); a step has about as many events as a padded step;
* padded, the usual way in Keras: `--batch` (32) random members per step, padded to the longest of the batch (rounded up to a multiple
  of 64, so that few lengths are compiled). It has the same attention, which skips padding;
* fixed (`--fixed`): the same members, all padded to the longest stream of the log, as by `keras.utils.pad_sequences`: one shape,
  compiled once;
* dense (`--dense`): the padded batches again, attention by `keras.ops.dot_product_attention` with a mask, as available in Keras
  (on TensorFlow the same with separate operations, because Keras's needs lengths that are known when a graph is traced). It has
  T x T buffers: `--max-events 1000 --batch 8` fits a laptop;
* rest (`--rest`): packed and padded steps with the mean of query, key and value instead of attention: `attention_share` of a packed
  step, and `ratio_rest`, the ratio if attention took no time. `ratio_bound` is the ratio if attention consisted only of its seven
  products and two exponentials of the visible pairs, at the rates of a large product (`product_gflops`) and of the exponential
  (`exponentials_per_ns`) of this backend, with the threads of the process: run it with one.

Padding costs time only in the dense layers. With d the share of a packed step that is not attention, the ratio is about
1 + d (slots - 1); `slots` is the number of slots of padded batches / that of packed rows, 4.1 here. The ratio approaches `slots` for wider
models, because attention to n keys costs n / (6 dim) of the other products of a plain block.

Freed memory is kept, as in `keras-ranking train` (`training.keep_freed_memory`; `--allocator default` does not change the allocator).
`fit` runs the same batches several times; the first pass compiles and warms up, and the fastest of the others is reported. Only real
events are counted, not padding. Each backend compiles by its default (`jit_compile="auto"`). `input_share` is the time to make the
packed batches / the time of the pass (`input_share_padded` the same for the padded ones). One JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np


def streams_of(folder: str, max_events: int | None) -> Any:
    """EB-NeRD's training streams, complete or only the latest events of each member."""
    import keras_ranking as kr

    log = kr.data.read_ebnerd(folder)
    events = log.events[log.events["split"].isin(["train", "history"])]
    learned = (events["split"] == "train").to_numpy()
    schema = log.schema.fit(events[learned])
    recent = np.ones(len(events), dtype=bool)
    if max_events is not None:
        recent = events.groupby(schema.member).cumcount(ascending=False).to_numpy() < max_events  # events are in order of time
    return kr.data.build_sequences(events[recent], schema, target=learned[recent])


def dense_attention(self: Any, query: Any, key: Any, value: Any, spans: Any) -> Any:
    """Replaces `SpanAttention.call`."""
    import keras

    from keras_ranking.ops import Spans

    ops = keras.ops
    mask = ops.expand_dims(Spans(*spans).dense(ops.shape(key)[1], self.stride), 1)
    scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
    if keras.backend.backend() != "tensorflow":
        return ops.dot_product_attention(query, key, value, mask=mask, scale=scale)
    # The same with separate operations: Keras's needs lengths that are known when a graph is traced.
    logits = ops.where(mask, scale * ops.einsum("bthd,bshd->bhts", query, key), -1e9)
    return ops.einsum("bhts,bshd->bthd", ops.softmax(logits), value)


def no_attention(self: Any, query: Any, key: Any, value: Any, spans: Any) -> Any:
    """Replaces `SpanAttention.call`; it uses all three operands, so that all layers before them are computed."""
    import keras

    group = query.shape[2] // key.shape[2]
    key, value = (part[:, :: self.stride] for part in (key, value))
    key, value = (keras.ops.repeat(part, group, axis=2) if group > 1 else part for part in (key, value))
    return (query + key + value) / 3


def visible_pairs(spans: Any, stride: int) -> int:
    """Number of visible pairs of query and key, each counted once."""
    start, end, own = (np.maximum(np.asarray(part, dtype=np.int64), 0) for part in spans)
    after = stride * np.arange(start.shape[1])[None] + 1
    first, second = np.maximum(end - start, 0), np.maximum(after - own, 0)
    both = np.maximum(np.minimum(end, after) - np.maximum(start, own), 0) * (first > 0) * (second > 0)
    return int((first + second - both).sum())


def best_seconds(call: Any, rounds: int = 7, times: int = 32) -> float:
    """Seconds per call: the best mean of `times` consecutive calls; only the last result is waited for."""
    import keras

    keras.ops.convert_to_numpy(call())
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(times - 1):
            call()
        keras.ops.convert_to_numpy(call())
        found.append((time.perf_counter() - begin) / times)
    return min(found)


def least_attention(model: Any, batches: list[Any]) -> dict[str, float]:
    """Seconds per step of the products and exponentials of attention at the best rates of the backend, and these rates."""
    import keras

    from keras_ranking.ops.attention import SpanAttention

    work: list[int] = []  # pairs x heads
    sizes: list[int] = []  # pairs x heads x head size
    attention = SpanAttention.call

    def counted(self: Any, query: Any, key: Any, value: Any, spans: Any) -> Any:
        pairs = visible_pairs([keras.ops.convert_to_numpy(part) for part in spans], self.stride) * query.shape[2]
        work.append(pairs)
        sizes.append(pairs * query.shape[3])
        return query

    SpanAttention.call = counted
    try:
        for batch in batches:
            model({name: keras.ops.convert_to_tensor(value) for name, value in batch.items()})
    finally:
        SpanAttention.call = attention
    rng = np.random.default_rng(0)
    square, row = (keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in ((1024, 1024), (2**18,)))
    product = 2 * 1024**3 / best_seconds(lambda: keras.ops.matmul(square, square))
    exponential = 2**18 / best_seconds(lambda: keras.ops.exp(row))
    seconds = (7 * 2 * sum(sizes) / product + 2 * sum(work) / exponential) / len(batches)
    return {
        "attention_gflop": 14e-9 * sum(sizes) / len(batches),
        "product_gflops": product * 1e-9,
        "exponentials_per_ns": exponential * 1e-9,
        "attention_least_s": seconds,
    }


def measure(model: Any, dataset: Any, steps: int, passes: int) -> dict[str, float]:
    """Fastest pass over the first batches of a dataset, after one that compiles."""
    import keras

    class Some(keras.utils.PyDataset):
        spent = 0.0

        def __len__(self) -> int:
            return steps

        def __getitem__(self, batch: int) -> Any:
            begin = time.perf_counter()
            dataset._in_epoch = True  # every batch with its own length
            found = dataset[batch]
            Some.spent += time.perf_counter() - begin
            return found

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.begin: float | None = None
            self.passes: list[tuple[float, float]] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin, Some.spent = None, 0.0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            # Not from the start of the epoch: on TensorFlow `fit` may wait for seconds before the first step of an epoch.
            self.begin = self.begin or time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.passes.append((time.perf_counter() - (self.begin or 0.0), Some.spent))

    dataset._in_epoch = True
    segments = [dataset[batch][0]["segment"] for batch in range(steps)]
    real, slots = sum(int((segment > 0).sum()) for segment in segments), sum(segment.size for segment in segments)
    clock = Clock()
    keras.utils.set_random_seed(0)
    widths = Widths(Some(), segments)
    model.fit(widths, epochs=1 + passes, shuffle=False, verbose=0, callbacks=[clock])
    seconds, spent = min(clock.passes[1:])
    return {"events_per_s": real / seconds, "fill": real / slots, "input_share": spent / seconds, "seconds_a_step": seconds / steps}


def Widths(dataset: Any, segments: list[np.ndarray]) -> Any:
    """TensorFlow infers from the first two batches which sizes vary: the batch with another length comes second."""
    import keras

    lengths = [segment.shape[1] for segment in segments]
    other = next((batch for batch, length in enumerate(lengths) if length != lengths[0]), None)
    order = list(range(len(lengths)))
    if other is not None:
        order.remove(other)
        order.insert(1, other)

    class Ordered(keras.utils.PyDataset):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, batch: int) -> Any:
            return dataset[order[batch]]

    return Ordered()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All figures for the backend of this process."""
    import keras

    import keras_ranking as kr
    from keras_ranking.training import keep_freed_memory
    from keras_ranking.training.options import MODELS, split_options
    from keras_ranking.training.setup import compile_for, training_data

    kept = args.allocator == "keeps" and keep_freed_memory()
    streams = streams_of(args.folder, args.max_events)
    lengths = np.diff(streams.offsets)
    longest = -(-int(lengths.max()) // 64) * 64
    model_options, training = split_options(args.model, dict(args.set), "ebnerd")
    model = MODELS[args.model](streams.schema, **model_options)
    weights = model.get_weights()
    results = {}
    sizes = {"packed": max(1, round(args.batch * lengths.mean() / longest)), "padded": args.batch}
    sizes |= {name: args.batch for name in ("fixed", "dense") if getattr(args, name)}
    if args.rest:
        sizes |= {"rest_packed": sizes["packed"], "rest_padded": args.batch}
    replaced = {"dense": dense_attention, "rest_packed": no_attention, "rest_padded": no_attention}
    attention = kr.ops.attention.SpanAttention.call
    for name, size in sizes.items():
        batching = "packed" if name.endswith("packed") else "padded"
        kr.ops.attention.SpanAttention.call = replaced.get(name, attention)
        wanted = replace(training, batching=batching, batch_size=size, row_length=longest)
        dataset, window = training_data(model, streams, wanted, seed=0)
        if name == "fixed":
            dataset.length = "row"
        model = MODELS[args.model](streams.schema, **model_options)
        model.set_weights(weights)
        compile_for(model, wanted, steps=100, window=window)
        results[name] = measure(model, dataset, args.steps, args.passes)
    packed, padded = results["packed"], results["padded"]
    rates = {name: result["events_per_s"] for name, result in results.items()}
    others: dict[str, float] = {}
    if args.rest:
        dataset, _ = training_data(model, streams, replace(training, batch_size=sizes["packed"], row_length=longest), seed=0)
        dataset._in_epoch = True
        others |= least_attention(model, [dataset[batch][0] for batch in range(args.steps)])
        least = others["attention_least_s"] / (packed["events_per_s"] * packed["seconds_a_step"])  # per event
        others["ratio_bound"] = (least + 1 / rates["rest_padded"]) / (least + 1 / rates["rest_packed"])
        others["ratio_rest"] = rates["rest_packed"] / rates["rest_padded"]
        others["attention_share"] = 1 - results["rest_packed"]["seconds_a_step"] / packed["seconds_a_step"]
    for name in rates.keys() & {"fixed", "dense"}:
        others |= {f"{name}_events_per_s": rates[name], f"ratio_{name}": rates["packed"] / rates[name]}
        others[f"{name}_fill"] = results[name]["fill"]
    return {
        "backend": keras.backend.backend(),
        "packed_events_per_s": packed["events_per_s"],
        "padded_events_per_s": padded["events_per_s"],
        "ratio": packed["events_per_s"] / padded["events_per_s"],
        **others,
        "input_share": packed["input_share"],
        "input_share_padded": padded["input_share"],
        "packed_fill": packed["fill"],
        "padded_fill": padded["fill"],
        "seconds_a_step": {name: result["seconds_a_step"] for name, result in results.items()},
        "rows_a_step": sizes,
        "row_length": longest,
        "model": args.model,
        "arguments": model_options,
        "parameters": model.count_params(),
        "compiled": bool(model.jit_compile),
        "freed_memory_kept": kept,
        "keras": keras.__version__,
        "keras_ranking": kr.__version__,
    }


def main() -> None:
    from keras_ranking.cli import _setting

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="folder with EB-NeRD")
    parser.add_argument("--json", type=Path, help="write one JSON object per line to this file")
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--model", default="cadet")
    parser.add_argument("--max-events", type=int, help="latest events per member; default: all")
    parser.add_argument("--batch", type=int, default=32, help="members per padded step")
    parser.add_argument("--fixed", action="store_true", help="compare with members padded to the longest stream of the log, too")
    parser.add_argument("--dense", action="store_true", help="compare with Keras's attention on padded batches, too")
    parser.add_argument("--rest", action="store_true", help="measure both ways without attention, too")
    parser.add_argument("--allocator", choices=("keeps", "default"), default="keeps", help="whether freed memory is kept")
    parser.add_argument("--steps", type=int, default=8, help="batches per pass")
    parser.add_argument("--passes", type=int, default=2, help="passes that count")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="option of the model")
    parser.add_argument("--here", action="store_true", help="run in this process, with the backend of KERAS_BACKEND")
    parser.add_argument(
        "--packing", type=int, nargs="+", metavar="ROW_LENGTH", help="only print the share of filled slots for these row lengths"
    )
    args = parser.parse_args()
    if args.packing:
        from keras_ranking.data import pack

        streams = streams_of(args.folder, args.max_events)
        for length in args.packing:
            print(f"{length}: {pack(streams, length).efficiency:.1%} of the slots hold an event")
        return
    if args.here:
        print(json.dumps(run(args)))
        return
    lines = []
    for backend in args.backends.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--here"]
        done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, stdout=subprocess.PIPE, text=True, check=True)
        lines.append(done.stdout.strip().splitlines()[-1])
        found = json.loads(lines[-1])
        print(
            f"{backend}: packed {found['packed_events_per_s']:,.0f} events/s, padded {found['padded_events_per_s']:,.0f}, "
            f"ratio {found['ratio']:.2f}; filled {found['packed_fill']:.1%} and {found['padded_fill']:.1%}; "
            + (f"{found['ratio_fixed']:.2f} where all are padded to the longest stream; " if args.fixed else "")
            + (f"{found['ratio_dense']:.2f} to dense attention; " if args.dense else "")
            + (f"attention {found['attention_share']:.0%} of the step, {found['ratio_rest']:.2f} without it, " if args.rest else "")
            + (f"{found['ratio_bound']:.2f} with its products and exponentials at their best rates; " if args.rest else "")
            + f"input {found['input_share']:.2%} of the packed pass",
            flush=True,
        )
        if args.json:
            args.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
