#!/usr/bin/env python
"""The embedded server under load: mixed lengths, 16 and 64 clients, compared with a loop over the same SavedModel.

    KERAS_BACKEND=tensorflow python tools/benchmarks/load.py --json load.json
    KERAS_BACKEND=tensorflow python tools/benchmarks/load.py --clients 16 --swap 4 --json swap.json

The model is a small CADET (--dim, --layers) with random weights. --unique requests of 1 to --history events and 1 to --candidates
candidates, with random values beyond their lengths, are scored one by one by Keras; then

    loop      one process runs `tf.saved_model.load(...)` on one request after another: no server, no network
    server    `keras-ranking serve` in one process, and the clients in another: each client is a gRPC connection that sends its
              next request after the reply to the last one; all share one asyncio loop and send messages that are serialised before,
              so that the clients use as little as possible of the cores, which the server also needs

A reply is wrong if a score differs by more than 1e-5 from that of Keras. The only error that is allowed is declared back-pressure
(RESOURCE_EXHAUSTED with a time to wait), after which the request is sent again; the wait is part of its latency. With --swap SECONDS
a new version with other weights appears every SECONDS; a reply is compared with the scores of the version that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

TOLERANCE = 1e-5
TASK = "click"


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Two exports (weights of two seeds) and the workload: messages and the scores of both exports."""
    import keras
    import tensorflow as tf

    import keras_ranking as kr
    from keras_ranking.serving.checking.sample_requests import alone, random_requests
    from keras_ranking.serving.protocol import codec
    from keras_ranking.serving.protocol.model_folder import read_card

    schema = kr.Schema(
        member="member", time="time", request="request",
        features=[kr.Id("item", buckets=10_000), kr.Category("topic", buckets=32), kr.Number("age"), kr.Vector("text", size=16)],
        actions=["click"], tasks=[TASK],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(0, np.log(args.history), args.unique)).astype(int)
    counts = rng.integers(1, args.candidates + 1, args.unique)
    scores, batches = [], []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        model = kr.models.CADET(schema, dim=args.dim, num_layers=args.layers, num_heads=4, delay=600)
        version = kr.serving.export(model, folder / f"seed{seed}", verify=False)
        inputs = read_card(version).inputs
        if not batches:
            batches = [
                random_requests(inputs, [length], [count], seed=number)
                for number, (length, count) in enumerate(zip(lengths, counts, strict=True))
            ]
        wanted = {name: tf.TensorSpec(spec["shape"], spec["dtype"], name=name) for name, spec in inputs.items()}
        keras_scores = tf.function(functools.partial(model.serving_model, training=False), input_signature=[wanted])
        found = []
        for batch in batches:
            found.append(keras_scores(alone(batch, inputs, 0))[TASK].numpy()[0])
        scores.append(found)
    messages = [codec.predict_request("model", "", batch).SerializeToString() for batch in batches]
    work = {"messages": messages, "scores": scores, "batches": batches, "parameters": model.count_params()}
    (folder / "work.pickle").write_bytes(pickle.dumps(work))
    return work


def loop(folder: Path, seconds: float) -> dict[str, Any]:
    """Requests per second of the loop, with the function of `tf.saved_model.load` and with the session that the server uses."""
    import tensorflow as tf

    from keras_ranking.serving.checking.saved_model import SavedModel

    work = pickle.loads((folder / "work.pickle").read_bytes())
    version = folder / "seed1" / "1"
    function = tf.saved_model.load(str(version)).signatures["serving_default"]
    session = SavedModel(version)
    forms = {
        "loop (saved_model.load)": lambda batch: function(**{name: tf.constant(x) for name, x in batch.items()})[TASK].numpy(),
        "loop (session)": lambda batch: session.run("serving_default", batch)[TASK],
    }
    out = {}
    for name, run in forms.items():
        for batch in work["batches"][:50]:
            run(batch)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            number = len(times) % len(work["batches"])
            got = run(work["batches"][number])[0]
            times.append(time.perf_counter() - begin)
            want = work["scores"][0][number]
            if np.abs(got[: len(want)] - want).max() > TOLERANCE:
                raise SystemExit(f"{name}: request {number} differs from Keras")
        out[name] = {"requests": len(times), "per_second": len(times) / sum(times), **percentiles(times)}
    return out


async def clients(port: int, work: dict[str, Any], count: int, total: int) -> dict[str, Any]:
    """`count` clients until `total` replies."""
    import grpc

    from keras_ranking.serving.protocol import protos

    codes: collections.Counter[str] = collections.Counter()
    versions: collections.Counter[int] = collections.Counter()
    times: list[float] = []
    worst, sent = 0.0, 0

    async def client() -> None:
        nonlocal worst, sent
        # A separate connection: without this option gRPC channels of one process share one.
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(protos.PREDICT)
            while sent < total:
                number = sent % len(work["messages"])
                sent += 1
                begin = time.perf_counter()
                while True:
                    try:
                        reply = await call(work["messages"][number], timeout=30)
                        break
                    except grpc.aio.AioRpcError as error:
                        pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "-1")
                        pressed = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and int(pushback) >= 0
                        codes["back-pressure" if pressed else error.code().name] += 1
                        if not pressed:
                            reply = None
                            break
                        await asyncio.sleep(int(pushback) / 1000)
                if reply is None:
                    continue
                times.append(time.perf_counter() - begin)
                response = protos.PredictResponse.FromString(reply)
                version = response.model_spec.version.value
                want = work["scores"][(version - 1) % 2][number]
                got = np.frombuffer(response.outputs[TASK].tensor_content, np.float32)
                difference = float(np.abs(got[: len(want)] - want).max())
                worst = max(worst, difference)
                versions[version] += 1
                codes["OK" if difference <= TOLERANCE else "WRONG"] += 1

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(count)))
    seconds = time.perf_counter() - begin
    return {
        "requests": total, "replies": len(times), "per_second": len(times) / seconds, "seconds": seconds, "codes": dict(codes),
        "versions": dict(versions), "worst_difference": worst, **percentiles(times),
    }  # fmt: skip


def percentiles(times: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{q}_ms": float(np.percentile(times, q) * 1e3) for q in (50, 95, 99)} if times else {}


class Running:
    """`keras-ranking serve` as a process."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "keras_ranking.cli",
            "serve",
            str(folder),
            "--name",
            "model",
            "--rest-port",
            "0",
            "--grpc-port",
            "0",
        ]
        self.process = subprocess.Popen([*command, "--threads", str(threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        text = "".join(self.process.stdout.readline() for _ in range(3))  # type: ignore[union-attr]
        self.rest, self.grpc = (int(port) for port in re.findall(r"(?:127\.0\.0\.1):(\d+)", text))

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest}/monitoring/prometheus/metrics") as reply:
            return float(re.search(rf"^{name} (\S+)$", reply.read().decode(), re.M)[1])  # type: ignore[index]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def swapping(folder: Path, served: Path, seconds: float, stop: threading.Event) -> None:
    """New versions at a fixed interval, the two exports in turn; each appears atomically, as with `export`."""
    number = 1
    while not stop.wait(seconds):
        number += 1
        shutil.copytree(folder / f"seed{(number - 1) % 2 + 1}" / "1", served / ".next")
        (served / ".next").rename(served / str(number))


def measure(args: argparse.Namespace, folder: Path, work: dict[str, Any], count: int) -> dict[str, Any]:
    served = folder / "served"
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(folder / "seed1" / "1", served / "1")
    server = Running(served, args.threads)
    stop = threading.Event()
    try:
        asyncio.run(clients(server.grpc, work, count, 500))  # warm
        runs, rows = server.metric("keras_ranking_batch_rows_count"), server.metric("keras_ranking_batch_rows_sum")
        if args.swap:
            threading.Thread(target=swapping, args=(folder, served, args.swap, stop), daemon=True).start()
        result = asyncio.run(clients(server.grpc, work, count, args.requests))
        result["rows_a_run"] = (server.metric("keras_ranking_batch_rows_sum") - rows) / (
            server.metric("keras_ranking_batch_rows_count") - runs
        )
        result["server_rss_mb"] = server.metric("process_resident_memory_bytes") / 2**20
    finally:
        stop.set()
        server.stop()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--unique", type=int, default=500)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="TensorFlow threads of the server; 0 = one per core")
    parser.add_argument("--swap", type=float, default=0.0, metavar="SECONDS", help="seconds between new versions; 0 = no new versions")
    parser.add_argument("--loop-seconds", type=float, default=10.0)
    parser.add_argument("--folder", help="store exports and workload here, and reuse them")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--part", choices=["prepare", "loop"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "prepare":
        prepare(args, Path(args.folder))
        return 0
    if args.part == "loop":
        print(json.dumps(loop(Path(args.folder), args.loop_seconds)))
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def part(name: str) -> str:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--part", name]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        if not (folder / "work.pickle").exists():
            part("prepare")
        work = pickle.loads((folder / "work.pickle").read_bytes())
        results = json.loads(part("loop").splitlines()[-1]) if args.loop_seconds else {}
        for count in args.clients:
            results[f"server, {count} clients" + (f", a new version every {args.swap:g} s" if args.swap else "")] = measure(
                args, folder, work, count
            )
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "part", "folder")}
    if args.json:
        Path(args.json).write_text(
            json.dumps({"settings": settings, "parameters": work["parameters"], "results": results}, indent=2) + "\n"
        )
    header = f"{'':44}{'requests/s':>11}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'rows/run':>9}  replies"
    print(header, *(line(name, result) for name, result in results.items()), sep="\n")
    wrong = [
        name
        for name, result in results.items()
        if set(result.get("codes", ())) - {"OK", "back-pressure"}
        or (result.get("replies", 0) != result.get("requests") and "codes" in result)
    ]
    print(f"WRONG: {wrong}" if wrong else "every reply equals the Keras score to 1e-5; no error but declared back-pressure")
    return 1 if wrong else 0


def line(name: str, r: dict[str, Any]) -> str:
    rows = f"{r['rows_a_run']:.1f}" if "rows_a_run" in r else ""
    return (
        f"{name:44}{r['per_second']:11.0f}{r['p50_ms']:9.1f}{r['p95_ms']:9.1f}{r['p99_ms']:9.1f}{rows:>9}  {r.get('codes', r['requests'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
