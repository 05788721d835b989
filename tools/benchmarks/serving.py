"""Latency of an exported model (d=256, 6 layers, 4 heads), joint and cached, in float32 and bfloat16.

    python tools/benchmarks/serving.py --json serving.jsonl
    python tools/benchmarks/serving.py --model feedsr --histories 1000 --candidates 512 --precisions float32

The reference model is a CADET with one token per event; `--model feedsr` is Feed-SR in its default form, two tokens per event.

Each line compares a pass with the same work without amortisation (every candidate in a separate pass: measured for one candidate,
times N) and with the arithmetic limit: the FLOPs of the pass at the rate of a 1024^3 matrix product, measured in the same
run and precision. `--models DIR` stores the exports for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

DIM, LAYERS, HEADS = 256, 6, 4
ARGUMENTS: dict[str, dict[str, Any]] = {
    "cadet": {"layout": "value", "token_hidden": 256, "action_hidden": 256},
    "feedsr": {},
}


def reference_model(kind: str) -> Any:
    import keras

    import keras_ranking as kr

    log = kr.data.simulate(members=30, days=3, seed=0)
    keras.utils.set_random_seed(0)
    build = {"cadet": kr.models.CADET, "feedsr": kr.models.FeedSR}[kind]
    return build(log.schema.fit(log.events), dim=DIM, num_layers=LAYERS, num_heads=HEADS, **ARGUMENTS[kind])


def exports(folder: Path, kind: str, precisions: list[str]) -> dict[str, Path]:
    """Precision -> version; existing versions are reused."""
    from keras_ranking.serving import export

    found = {precision: folder / f"{kind}_{precision}" / "1" for precision in precisions}
    if not all(path.exists() for path in found.values()):
        model = reference_model(kind)
        for precision, path in found.items():
            if not path.exists():
                export(model, path.parent, precision=precision)
    return found


def median_ms(call: Any, seconds: float = 1.5, least: int = 5) -> float:
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or (time.perf_counter() < end and len(taken) < 200):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken) * 1e3)


def gemm_gflops(precision: str, size: int = 1024) -> float:
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal((size, size)), precision) for _ in range(2))
    product = tf.function(lambda: tf.matmul(a, b))
    return 2 * size**3 / median_ms(lambda: product().numpy(), 2.0) / 1e6


def flops(kernels: dict[str, int], history: int, candidates: int, tokens: int) -> float:
    """Of a joint pass: every weight matrix, and the visible pairs of attention, with this number of tokens per event."""
    history *= tokens
    dense = 2.0 * (kernels["both"] * (history + candidates) + kernels["history"] * history + kernels["candidates"] * candidates)
    pairs = history * (history - 1) / 2 + history * candidates
    return dense + LAYERS * 4.0 * DIM * pairs


def kernels(model: Any) -> dict[str, int]:
    """Multiplications per token in the weight matrices for histories, candidates or both."""
    out = {"both": 0, "history": 0, "candidates": 0}
    for variable in model.weights:
        if len(variable.shape) < 2 or "embedding" in variable.path:
            continue
        late = ("towers", "head", "cross", "tower_")
        side = "history" if "action_token" in variable.path else "candidates" if any(part in variable.path for part in late) else "both"
        out[side] += int(np.prod(variable.shape))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write one JSON object per line")
    parser.add_argument("--model", choices=sorted(ARGUMENTS), default="cadet")
    parser.add_argument("--histories", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--candidates", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--models", metavar="DIR", help="store the exports here, and reuse existing ones")
    parser.add_argument("--only-export", action="store_true", help="write the exports into --models and stop")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of measurement per figure (default: 1.5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        versions = exports(Path(args.models or scratch), args.model, args.precisions)
        if not args.only_export:
            measure(versions, args)


def measure(versions: dict[str, Path], args: argparse.Namespace) -> None:
    from keras_ranking.serving.checking.sample_requests import random_requests
    from keras_ranking.serving.checking.saved_model import SavedModel

    reference = reference_model(args.model)
    weights, tokens = kernels(reference), 2 if reference.arguments.get("layout") == "interleaved" else 1
    lines = []
    for precision, version in versions.items():
        model, rate = SavedModel(version), gemm_gflops(precision)
        inputs = model.card.inputs if model.card else {}
        signatures = model.card.signatures if model.card else {}

        def call(name: str, batch: Any, model: Any = model, signatures: Any = signatures) -> Any:
            return model.run(name, {key: batch[key] for key in signatures[name]["inputs"]})

        for history in args.histories:
            single = random_requests(inputs, [history], [1], hostile=False)
            one = median_ms(lambda b=single: call("serving_default", b), args.seconds)
            for count in args.candidates:
                batch = random_requests(inputs, [history], [count], hostile=False)
                batch |= call("encode_history", batch)
                joint = median_ms(lambda b=batch: call("serving_default", b), args.seconds)
                cached = median_ms(lambda b=batch: call("score_candidates", b), args.seconds)
                limit = flops(weights, history, count, tokens) / rate / 1e6
                line = {
                    "model": args.model,
                    "precision": precision,
                    "L": history,
                    "N": count,
                    "joint_ms": round(joint, 2),
                    "cached_ms": round(cached, 2),
                    "unamortised_ms": round(one * count, 1),
                    "unamortised_ratio": round(one * count / joint, 1),
                    "gemm_gflops": round(rate, 1),
                    "limit_ms": round(limit, 2),
                    "limit_ratio": round(joint / limit, 2),
                }
                lines.append(json.dumps(line))
                print(lines[-1], flush=True)
        model.close()
    if args.json:
        Path(args.json).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
