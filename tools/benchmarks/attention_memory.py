#!/usr/bin/env python
"""Peak extra memory of span attention on packed rows (W2 of `attention.py`), in units of q + k + v + output.

What is counted, in addition to the operands that exist before the call:

    torch        the largest running sum of all allocations and releases of the call, as recorded by the profiler
    jax          temporary and output buffers of the compiled program, as assigned by the compiler
    tensorflow   increase of the peak resident memory of a new process by the call: twice the increase by the second half of the tokens,
                 so that tracing and compiling are excluded (Linux only)

`--dense` counts the attention of the backend with a dense mask instead, which stores T x T numbers.

Examples:
    python tools/benchmarks/attention_memory.py --backend torch
    python tools/benchmarks/attention_memory.py --backend jax --tokens 4096 8192 16384
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HEADS, SIZE = 4, 64
UNIT = 4 * HEADS * SIZE * 4  # bytes of q, k, v and output per token, float32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "tensorflow", "jax"), default="torch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward", "train"])
    parser.add_argument("--form", choices=("graph", "xla"), default="graph", help="tensorflow: graph without XLA, or compiled by XLA")
    parser.add_argument("--dense", action="store_true", help="keras.ops.dot_product_attention with a dense mask instead of ours")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of the table")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def packed(tokens: int) -> tuple[list[np.ndarray], Any]:
    """q, k, v and the gradient of the output, (1, T, 4, 64), and the spans of W2."""
    from keras_ranking.ops import Spans

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(95.0), 0.8, tokens), 8, 1024).astype(int)
    segments = np.repeat(np.arange(1, tokens + 1), lengths)[None, :tokens].astype("int32")
    return [rng.standard_normal((1, tokens, HEADS, SIZE)).astype("float32") for _ in range(4)], Spans.causal(segments)


def attention(spans: Any, tokens: int, dense: bool) -> Callable[..., Any]:
    import keras

    from keras_ranking.ops import span_attention
    from keras_ranking.ops.backends.reference import visible

    if not dense:
        return lambda q, k, v: span_attention(q, k, v, spans)
    mask = keras.ops.convert_to_tensor(visible(*(keras.ops.convert_to_numpy(part) for part in spans), tokens)[:, None])
    return lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=mask)


def torch_bytes(function: Callable[..., Any], arrays: list[np.ndarray], mode: str) -> int:
    import torch
    from torch.profiler import ProfilerActivity, profile

    *inputs, upstream = (torch.as_tensor(part) for part in arrays)

    def call() -> Any:
        if mode == "forward":
            with torch.no_grad():
                return function(*inputs)
        leaves = [part.detach().requires_grad_() for part in inputs]
        function(*leaves).backward(upstream)
        return [leaf.grad for leaf in leaves]

    call()  # the plan of the spans is made once and stored
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    if not events:
        raise RuntimeError("the profiler recorded no allocation")
    running = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(running.max())


def jax_bytes(function: Callable[..., Any], arrays: list[np.ndarray], mode: str) -> int:
    import jax

    *inputs, upstream = (jax.numpy.asarray(part) for part in arrays)

    def step(grad: Any, *parts: Any) -> Any:
        return jax.vjp(function, *parts)[1](grad)

    lowered = jax.jit(function).lower(*inputs) if mode == "forward" else jax.jit(step).lower(upstream, *inputs)
    sizes = lowered.compile().memory_analysis()
    return int(sizes.temp_size_in_bytes + sizes.output_size_in_bytes)


def tensorflow_bytes(tokens: int, mode: str, args: argparse.Namespace) -> int:
    """Increase of the peak resident memory of a new process by the first call: twice the increase by the second half of the tokens.

    This excludes tracing and compiling, and does not underestimate memory that grows faster than the number of tokens.
    """
    peaks = []
    for length in (tokens // 2, tokens):
        command = [sys.executable, __file__, "--child", "--tokens", str(length), "--modes", mode, "--form", args.form]
        command += ["--dense"] if args.dense else []
        peaks.append(
            int(subprocess.run([*command, "--backend", "tensorflow"], check=True, capture_output=True, text=True).stdout.split()[-1])
        )
    return 2 * (peaks[1] - peaks[0])


def tensorflow_peak(function: Callable[..., Any], arrays: list[np.ndarray], mode: str, form: str) -> int:
    """Peak resident memory of this process in the first call minus its resident memory before, in bytes."""
    import tensorflow as tf

    def step(*tensors: Any) -> Any:
        *parts, upstream = tensors
        if mode == "forward":
            return function(*parts)
        with tf.GradientTape() as tape:
            tape.watch(parts)
            out = function(*parts)
        return tape.gradient(out, parts, output_gradients=upstream)

    tensors = [tf.constant(part) for part in arrays]
    before = resident("VmRSS")
    tf.function(step, jit_compile=form == "xla", autograph=False)(*tensors)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: resident memory is measured on Linux only")


def main() -> None:
    args = arguments()
    os.environ["KERAS_BACKEND"] = args.backend
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if not args.json and not args.child:
        print(f"python {' '.join(sys.argv)}\n\n| tokens | mode | MB beyond the operands | times q + k + v + output |\n|---|---|---|---|")
    for tokens in args.tokens:
        for mode in args.modes:
            if args.backend == "tensorflow" and not args.child:
                taken = tensorflow_bytes(tokens, mode, args)
            else:
                arrays, spans = packed(tokens)
                function = attention(spans, tokens, args.dense)
                if args.child:
                    print(tensorflow_peak(function, arrays, mode, args.form))
                    continue
                taken = {"torch": torch_bytes, "jax": jax_bytes}[args.backend](function, arrays, mode)
            ratio = taken / (UNIT * tokens)
            if args.json:
                print(json.dumps({"backend": args.backend, "tokens": tokens, "mode": mode, "bytes": taken, "ratio": round(ratio, 3)}))
            else:
                print(f"| {tokens} | {mode} | {taken / 1e6:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
