"""Span attention compared with other implementations (peers), which run in turn in one process.

    --backend sets KERAS_BACKEND; every figure is a median of --rounds (at least 7) calls.

    | workload | operands                                                                                          |
    |----------|---------------------------------------------------------------------------------------------------|
    | W1a, W1b | causal, dense: (8, 512, 8, 32) and (2, 2048, 8, 64)                                                 |
    | W2       | packed causal: B=1, T=8192, 4 heads of 64, segments lognormal, mean about 128, 8 to 1024 tokens     |
    | W3       | request: 1024 history tokens, then 512 candidates; B=1, 4 heads of 64                               |
    | W4       | delay mask on W2's rows                                                                             |
    | W5       | sets of 12 with all history before them, on W2's rows                                               |
    | W1-1024, W1-4096, W3-64 | for a GPU: (16, 1024, 8, 64), (4, 4096, 8, 64), and W3 with a batch of 64            |

A ratio above 1 means that ours is faster. `gemm_share` is the rate of ours (4 D H operations per visible pair forward, 14 in training,
recomputation counted once) / the rate of a matrix product of 1024 x 1024 x 1024 in the same run.

Examples:
    python tools/benchmarks/attention.py --backend torch --threads 1
    python tools/benchmarks/attention.py --backend jax --workloads W2 W4 --modes forward --json attention.jsonl
    python tools/benchmarks/attention.py --backend torch --plot attention_linear.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attention_peers import Jax, TensorFlow, Torch, torch_request
from attention_workloads import LARGER, WORKLOADS, Workload, numpy_parts

Call = Callable[[], Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "tensorflow", "jax"), default=os.environ.get("KERAS_BACKEND", "torch"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores the process may use")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--workloads", nargs="+", choices=(*WORKLOADS, *LARGER), default=list(WORKLOADS))
    parser.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward", "train"])
    parser.add_argument(
        "--forms", nargs="+", choices=("graph", "xla"), default=["graph", "xla"], help="tensorflow: graph without XLA, compiled by XLA"
    )
    parser.add_argument("--rounds", type=int, default=7, help="calls of each implementation, in turn; at least 7")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine with other load; 1 thread"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="length of the packed rows of W2, W4 and W5")
    parser.add_argument("--peers", nargs="+", default=None, help="only peers whose name contains one of these words")
    parser.add_argument("--flex", action="store_true", help="torch: also flex_attention (compiles; needs a C++ compiler)")
    parser.add_argument("--fresh-plan", action="store_true", help="torch: make a new plan in every call, like the first layer of a step")
    parser.add_argument("--json", type=Path, help="append one JSON object per line to this file")
    parser.add_argument("--plot", type=Path, help="instead of the table: plot the time for 1k to 64k packed tokens")
    args = parser.parse_args()
    if args.rounds < 7:
        parser.error("--rounds must be at least 7")
    if args.clock == "cpu" and (args.threads != 1 or args.device != "cpu"):
        parser.error("--clock cpu needs --threads 1 and --device cpu")
    return args


def limit(args: argparse.Namespace) -> None:
    """Threads and device, before any backend is imported."""
    os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.threads]))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(args.threads)


def milliseconds(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median of each, called in turn so that changes of the machine's speed affect all equally. The first calls compile."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = clock()
            call()
            taken[name].append(1e3 * (clock() - begin))
    return {name: statistics.median(values) for name, values in taken.items()}


def operands(load: Workload, rng: np.random.Generator) -> list[np.ndarray]:
    shape = (load.batch, load.tokens, load.heads, load.size)
    return [rng.standard_normal(shape).astype("float32") for _ in range(4)]


def measure(machine: Any, load: Workload, mode: str, form: str, args: argparse.Namespace, rng: np.random.Generator) -> list[dict[str, Any]]:
    from keras_ranking.ops import Spans, span_attention

    arrays = operands(load, rng)
    spans = Spans(*(machine.tensor(part) for part in numpy_parts(load.spans())))

    def ours(q: Any, k: Any, v: Any) -> Any:
        held = Spans(*(part.clone() for part in spans)) if args.fresh_plan and args.backend == "torch" else spans
        return span_attention(q, k, v, held)

    functions = {"ours": ("rows", ours)} | machine.peers(load, mode)
    if args.peers:
        functions = {name: found for name, found in functions.items() if name == "ours" or any(word in name for word in args.peers)}
    laid_out: dict[str, list[Any]] = {}
    calls: dict[str, Call] = {}
    for name, (layout, function) in functions.items():
        if layout not in laid_out:
            laid_out[layout] = [machine.tensor(load.pad(part) if layout == "padded" else part) for part in arrays]
        *tensors, upstream = laid_out[layout]
        run = machine.forward(function, form) if mode == "forward" else machine.train(function, upstream, form)
        calls[name] = lambda run=run, tensors=tensors: run(*tensors)
    if args.backend == "tensorflow" and load.name == "W3" and mode == "forward":
        calls |= torch_request(load, arrays, args)
    square = machine.tensor(rng.standard_normal((1024, 1024)).astype("float32"))
    multiply = machine.forward(lambda x: x @ x, form)
    calls["gemm"] = lambda: multiply(square)
    taken = milliseconds(calls, args.rounds, time.process_time if args.clock == "cpu" else time.perf_counter)
    gemm = 2 * 1024**3 / taken.pop("gemm")
    mine = taken.pop("ours")
    operations = (4 if mode == "forward" else 14) * load.size * load.heads * load.pairs()
    share = operations / mine / gemm
    base = {"workload": load.name, "backend": args.backend, "form": form, "dtype": args.dtype, "mode": mode, "ours_ms": round(mine, 3)}
    if args.device == "gpu":
        base |= {"tflops": round(operations / mine / 1e9, 1), "tokens": load.batch * load.tokens}
    found = [
        base | {"peer": name, "peer_ms": round(value, 3), "ratio": round(value / mine, 3), "gemm_share": round(share, 3)}
        for name, value in taken.items()
    ]
    return found or [base | {"peer": None, "peer_ms": None, "ratio": None, "gemm_share": round(share, 3)}]


def plot(machine: Any, args: argparse.Namespace) -> None:
    """Time of packed causal rows from 1k to 64k tokens, with a line through the origin and the longest one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    args.peers = ["none"]
    lengths = [1024 * 2**power for power in range(7)]
    figure, axes = plt.subplots(figsize=(6, 4))
    for mode in args.modes:
        taken = []
        for tokens in lengths:
            rng = np.random.default_rng(0)
            taken.append(measure(machine, Workload("W2", tokens, rng), mode, machine.forms[0], args, rng)[0]["ours_ms"])
            print(f"{mode} {tokens} tokens: {taken[-1]:.2f} ms", flush=True)
        axes.loglog(lengths, taken, "o-", label=mode)
        axes.loglog(lengths, [taken[-1] * tokens / lengths[-1] for tokens in lengths], ":", color="grey")
    axes.set(xlabel="packed tokens", ylabel="milliseconds", title=f"span_attention, {args.backend}, {args.dtype} (dotted: linear)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.plot)


def main() -> None:
    args = arguments()
    limit(args)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import keras

    machine = {"torch": Torch, "tensorflow": TensorFlow, "jax": Jax}[args.backend](args)
    versions = f"Keras {keras.__version__}, {args.backend} {sys.modules[args.backend].__version__}, Python {platform.python_version()}"
    print(f"{versions}, {platform.machine()}, {args.threads} thread(s), {args.device}, {args.dtype}, {args.clock} clock")
    print(f"python {' '.join(sys.argv)}\n")
    if args.plot:
        plot(machine, args)
        return
    extra = ("tflops",) if args.device == "gpu" else ()
    print("| workload | form | mode | ours ms | peer | peer ms | ratio | GEMM share |" + "".join(f" {name} |" for name in extra))
    print("|---" * (8 + len(extra)) + "|")
    for name in args.workloads:
        for form in machine.forms:
            for mode in args.modes:
                rng = np.random.default_rng(0)
                for line in measure(machine, Workload(name, args.tokens, rng), mode, form, args, rng):
                    cells = ("workload", "form", "mode", "ours_ms", "peer", "peer_ms", "ratio", "gemm_share", *extra)
                    print("| " + " | ".join(str(line[cell]) for cell in cells) + " |", flush=True)
                    if args.json:
                        with args.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
