"""Span attention against its peers, in one process and in turn.

    KERAS_BACKEND is set from --backend; every figure is a median of --rounds (at least 7) calls.

    | workload | what                                                                                              |
    |----------|---------------------------------------------------------------------------------------------------|
    | W1a, W1b | causal, dense: (8, 512, 8, 32) and (2, 2048, 8, 64)                                                 |
    | W2       | packed causal: B=1, T=8192, 4 heads of 64, segments lognormal, mean about 128, 8 to 1024 tokens     |
    | W3       | request: 1024 history tokens, then 512 candidates; B=1, 4 heads of 64                               |
    | W4       | delay mask on W2's rows                                                                             |
    | W5       | sets of 12 with all history before them, on W2's rows                                               |
    | W1-1024, W1-4096, W3-64 | for a GPU: (16, 1024, 8, 64), (4, 4096, 8, 64), and W3 with a batch of 64            |

A ratio above 1 means that ours is faster. `gemm_share` is ours on visible pairs alone (4 D H operations a pair forward, 14 in
training, recomputation counted once) over the rate of a 1024-cube matrix product in the same run.

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

Call = Callable[[], Any]
WORKLOADS = ("W1a", "W1b", "W2", "W3", "W4", "W5")
LARGER = ("W1-1024", "W1-4096", "W3-64")  # for a GPU


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "tensorflow", "jax"), default=os.environ.get("KERAS_BACKEND", "torch"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores the process may use")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--workloads", nargs="+", choices=(*WORKLOADS, *LARGER), default=list(WORKLOADS))
    parser.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward", "train"])
    parser.add_argument(
        "--forms", nargs="+", choices=("graph", "xla"), default=["graph", "xla"], help="tensorflow: plain graph, compiled by XLA"
    )
    parser.add_argument("--rounds", type=int, default=7, help="calls of each, in turn; at least 7")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine shared with others; 1 thread"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="length of the packed rows of W2, W4 and W5")
    parser.add_argument("--peers", nargs="+", default=None, help="only peers whose name contains one of these words")
    parser.add_argument("--flex", action="store_true", help="torch: also flex_attention (compiles; needs a C++ compiler)")
    parser.add_argument(
        "--fresh-plan", action="store_true", help="torch: make the plan anew in every call, as the first layer of a step does"
    )
    parser.add_argument("--json", type=Path, help="append one object a line")
    parser.add_argument("--plot", type=Path, help="instead: time against 1k to 64k packed tokens, as a picture")
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


# -- workloads ------------------------------------------------------------------------------------------------------------------


SHAPES = {
    "W1a": (8, 512, 8, 32),
    "W1b": (2, 2048, 8, 64),
    "W1-1024": (16, 1024, 8, 64),
    "W1-4096": (4, 4096, 8, 64),
    "W3": (1, 1536, 4, 64),
    "W3-64": (64, 1536, 4, 64),
}
LONGEST_DENSE = 16384  # beyond so many tokens a dense mask is not made


class Workload:
    """Shapes and ids of one workload, in numpy, with its spans and its dense mask when a peer asks."""

    def __init__(self, name: str, tokens: int, rng: np.random.Generator) -> None:
        self.name = name
        self.batch, self.tokens, self.heads, self.size = SHAPES.get(name, (1, tokens, 4, 64))
        self.packed = name in ("W2", "W4", "W5")
        self.bounds = [0, self.tokens]
        if self.packed:
            self.bounds = [0]
            while self.bounds[-1] < self.tokens:
                length = int(np.clip(rng.lognormal(np.log(95.0), 0.8), 8, 1024))
                self.bounds.append(min(self.tokens, self.bounds[-1] + length))
        lengths = np.diff(self.bounds)
        self.longest = int(lengths.max())
        row = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        self.segments = np.tile(row, (self.batch, 1)).astype("int32")
        # Sessions of about 12 events within seconds, hours between sessions.
        inside = np.arange(self.tokens) - np.repeat(self.bounds[:-1], lengths)
        self.sessions = np.tile(inside // 12, (self.batch, 1)).astype("int32")
        self.times = np.tile(inside // 12 * 7200 + inside % 12, (self.batch, 1)).astype("int32")

    def spans(self) -> Any:
        from keras_ranking.ops import Spans

        if self.name.startswith("W3"):
            return Spans.candidates(np.full(self.batch, 1024, "int32"), 1024, 512)
        if self.name == "W4":
            return Spans.delayed(self.times, 3600, self.segments)
        if self.name == "W5":
            return Spans.setwise(self.sessions, self.segments, history=True)
        return Spans.causal(self.segments)

    def mask(self) -> np.ndarray:
        """Boolean (B, T, T)."""
        from keras_ranking.ops.backends.reference import visible

        return visible(*numpy_parts(self.spans()), self.tokens)

    def pairs(self) -> int:
        start, end, own = (part.astype("int64") for part in numpy_parts(self.spans()))
        index = np.arange(self.tokens)[None]
        first, second = np.maximum(end - start, 0), index + 1 - own
        overlap = np.maximum(0, np.minimum(end, index + 1) - np.maximum(start, own))
        return int((first + second - overlap).sum())

    def pad(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """(1, T, ...) -> (segments, longest, ...): one segment a row."""
        out = np.full((len(self.bounds) - 1, self.longest, *values.shape[2:]), fill, values.dtype)
        for row, (low, high) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            out[row, : high - low] = values[0, low:high]
        return out

    def padded_mask(self) -> np.ndarray:
        """Boolean (segments, longest, longest)."""
        start, end, own = (part[0] for part in numpy_parts(self.spans()))
        out = np.zeros((len(self.bounds) - 1, self.longest, self.longest), bool)
        for row, (low, high) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            i, j = np.arange(low, high)[:, None], np.arange(low, high)[None]
            seen = ((j >= start[low:high, None]) & (j < end[low:high, None])) | ((j >= own[low:high, None]) & (j <= i))
            out[row, : high - low, : high - low] = seen
        return out


def numpy_parts(spans: Any) -> list[np.ndarray]:
    import keras

    return [keras.ops.convert_to_numpy(part) for part in spans]


# -- one backend each: operands, a forward and a training call ----------------------------------------------------------------------


class Torch:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        torch.set_num_threads(args.threads)
        self.torch, self.args = torch, args
        self.device = "cuda" if args.device == "gpu" else "cpu"
        self.dtype = getattr(torch, args.dtype)
        self.forms = ("torch",)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.torch.as_tensor(values, device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        def call(*tensors: Any) -> Any:
            with self.torch.no_grad():
                out = function(*tensors)
            return self.wait(out)

        return call

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        def call(*tensors: Any) -> Any:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            function(*leaves).backward(upstream)
            return self.wait(leaves[0].grad)

        return call

    def wait(self, out: Any) -> Any:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return out

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        """name -> (layout of its operands, function). Layouts: 'rows' as given, 'padded' one segment a row."""
        torch = self.torch
        attend = torch.nn.functional.scaled_dot_product_attention

        def turned(q: Any, k: Any, v: Any, **options: Any) -> Any:
            return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options).transpose(1, 2)

        found: dict[str, tuple[str, Callable[..., Any]]] = {}
        if load.name.startswith("W1"):
            found["SDPA causal"] = ("rows", lambda q, k, v: turned(q, k, v, is_causal=True))
            if self.device == "cuda":
                from torch.nn.attention import SDPBackend, sdpa_kernel

                def cudnn(q: Any, k: Any, v: Any) -> Any:
                    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                        return turned(q, k, v, is_causal=True)

                found["SDPA cuDNN"] = ("rows", cudnn)
        mask = self.tensor(load.mask())[:, None] if load.tokens <= LONGEST_DENSE else None
        if mask is not None:
            found["SDPA dense mask"] = ("rows", lambda q, k, v: turned(q, k, v, attn_mask=mask))
        if load.tokens <= 2048:  # as many float32 scores as T x T x heads would not fit at 8192
            import keras

            found["keras.ops dense mask"] = ("rows", lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=mask))
        if load.packed:
            if load.name == "W2":
                found["SDPA padded"] = ("padded", lambda q, k, v: turned(q, k, v, is_causal=True))
                edges = list(zip(load.bounds[:-1], load.bounds[1:], strict=True))

                def loop(q: Any, k: Any, v: Any) -> Any:
                    return torch.cat([turned(q[:, a:b], k[:, a:b], v[:, a:b], is_causal=True) for a, b in edges], dim=1)

                found["SDPA segment loop"] = ("rows", loop)
            else:
                closed = self.tensor(load.padded_mask())[:, None]
                closed[:, :, :, 0] |= ~closed.any(-1)  # padding rows must see something
                found["SDPA padded"] = ("padded", lambda q, k, v: turned(q, k, v, attn_mask=closed))
        if self.args.flex and (mode == "forward" or self.device == "cuda"):
            found["flex_attention"] = ("rows", self.flex(load))
        return found

    def flex(self, load: Workload) -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        start, end, own = (self.tensor(part) for part in numpy_parts(load.spans()))

        def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
            return ((j >= start[b, i]) & (j < end[b, i])) | ((j >= own[b, i]) & (j <= i))

        blocks = create_block_mask(visible, load.batch, None, load.tokens, load.tokens, device=self.device)
        compiled = self.torch.compile(flex_attention)
        return lambda q, k, v: compiled(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=blocks).transpose(1, 2)


class TensorFlow:
    def __init__(self, args: argparse.Namespace) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
        self.tf, self.dtype = tf, getattr(tf, args.dtype)
        self.forms = tuple(args.forms)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.tf.constant(values)
        return self.tf.cast(tensor, self.dtype) if tensor.dtype.is_floating else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        return self.tf.function(function, jit_compile=form == "xla", autograph=False)

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        tf = self.tf

        def step(*tensors: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                out = function(*tensors)
            # The output too, as a model needs it: what nobody asks for is taken out of a graph.
            return [*tape.gradient(out, tensors, output_gradients=upstream), out]

        return tf.function(step, jit_compile=form == "xla", autograph=False)

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        return keras_peers(self, load)


class Jax:
    def __init__(self, args: argparse.Namespace) -> None:
        import jax

        self.jax, self.dtype, self.args = jax, getattr(jax.numpy, args.dtype), args
        self.forms = ("jit",)

    def tensor(self, values: np.ndarray) -> Any:
        tensor = self.jax.numpy.asarray(values)
        return tensor.astype(self.dtype) if tensor.dtype.kind == "f" else tensor

    def forward(self, function: Callable[..., Any], form: str) -> Callable[..., Any]:
        compiled = self.jax.jit(function)
        return lambda *tensors: compiled(*tensors).block_until_ready()

    def train(self, function: Callable[..., Any], upstream: Any, form: str) -> Callable[..., Any]:
        step = self.jax.jit(lambda *tensors: self.jax.vjp(function, *tensors)[1](upstream))
        return lambda *tensors: self.jax.block_until_ready(step(*tensors))

    def peers(self, load: Workload, mode: str) -> dict[str, tuple[str, Callable[..., Any]]]:
        attend = self.jax.nn.dot_product_attention
        implementations = ("xla", "cudnn") if self.args.device == "gpu" else ("xla",)
        found: dict[str, tuple[str, Callable[..., Any]]] = {}
        for kind in implementations:
            if load.name.startswith("W1"):
                found[f"jax.nn causal ({kind})"] = ("rows", lambda q, k, v, kind=kind: attend(q, k, v, is_causal=True, implementation=kind))
            layout, mask = ("padded", load.padded_mask()) if load.packed else ("rows", load.mask())
            held = self.tensor(mask)[:, None]
            name = f"jax.nn {'padded' if load.packed else 'mask'} ({kind})"
            found[name] = (layout, lambda q, k, v, kind=kind, held=held: attend(q, k, v, mask=held, implementation=kind))
        return found


def keras_peers(machine: Any, load: Workload) -> dict[str, tuple[str, Callable[..., Any]]]:
    import keras

    layout, mask = ("padded", load.padded_mask()) if load.packed else ("rows", load.mask())
    held = machine.tensor(mask)[:, None]
    name = f"keras.ops {'padded' if load.packed else 'dense mask'}"
    return {name: (layout, lambda q, k, v: keras.ops.dot_product_attention(q, k, v, mask=held))}


# -- measuring -----------------------------------------------------------------------------------------------------------------


def milliseconds(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median of each, called in turn so that a change of the machine's pace meets all alike. The first calls compile."""
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


def torch_request(load: Workload, arrays: list[np.ndarray], args: argparse.Namespace) -> dict[str, Call]:
    """The request of W3 by torch's dense mask, beside TensorFlow: absent where torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(args.threads)
    q, k, v = (torch.as_tensor(part).to(getattr(torch, args.dtype)).transpose(1, 2) for part in arrays[:3])
    mask = torch.as_tensor(load.mask())[:, None]
    return {"torch SDPA dense mask": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)}


def plot(machine: Any, args: argparse.Namespace) -> None:
    """Time of packed causal rows from 1k to 64k tokens, with the line through the origin that the longest one sets."""
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
