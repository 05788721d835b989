"""What the commands of `keras-ranking` do; the command line itself is in `cli.py`. Heavy imports stand inside the functions."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    """Says on stderr what is being done, and how long it took."""
    begin = time.perf_counter()
    print(f"{what} ...", file=sys.stderr, flush=True)
    yield
    print(f"{what}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_imports(debug: bool = False) -> Iterator[None]:
    """Holds back what TensorFlow's C++ code writes to stderr while it is imported; shown after all where the import fails.

    TensorFlow writes these lines before it reads TF_CPP_MIN_LOG_LEVEL, so the file descriptor is the only handle on them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if debug:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held.seek(0)
            text = held.read()
            if not isinstance(error, ModuleNotFoundError):
                os.write(kept, text)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _start_keras(args: argparse.Namespace) -> None:
    """Choose the backend and import Keras with it."""
    if args.backend:
        os.environ["KERAS_BACKEND"] = args.backend
    if "keras" not in sys.modules:
        print("starting keras ...", file=sys.stderr, flush=True)
    with quiet_imports(args.debug):
        import keras
    if args.backend and keras.backend.backend() != args.backend:
        raise ValueError(f"`--backend` cannot change once keras is imported. Received: {args.backend}; running: {keras.backend.backend()}")


def _open_log(args: argparse.Namespace, seed: int) -> Any:
    from keras_ranking.data import open_log

    with _step(f"reading {args.data}"):
        log = open_log(args.data, schema=args.schema, seed=seed)
    counts = log.events["split"].value_counts(sort=False)
    print(f"log {log.name}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + " rows", file=sys.stderr)
    for note in getattr(log, "notes", ()):
        print(f"  {note}", file=sys.stderr)
    return log


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN: a figure that the rows do not define is null."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def simulate(args: argparse.Namespace) -> int:
    """Write a simulated log and its schema."""
    from keras_ranking import data

    out = Path(args.out)
    write = {".parquet": "to_parquet", ".csv": "to_csv", ".gz": "to_csv"}.get(out.suffix)
    if write is None:
        raise ValueError(f"`--out` must end in .parquet, .csv or .csv.gz. Received: {args.out}")
    with _step("simulating"):
        log = data.simulate(members=args.members, days=args.days, seed=args.seed, **dict(args.set))
    schema = Path(args.schema) if args.schema else out.with_name(f"{out.name.split('.')[0]}.schema.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _step(f"writing {out}"):
        try:
            getattr(log.events, write)(out, index=False)
        except ImportError as error:
            raise ModuleNotFoundError("parquet needs pyarrow: pip install 'keras-ranking[data]'", name="pyarrow") from error
        log.schema.save(schema)
    counts = log.events["split"].value_counts(sort=False)
    shares = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"{len(log.events):,} impressions of {args.members:,} members ({shares})")
    print(f"log: {out}\nschema: {schema}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train a ranker on the `train` rows of a log, or go on with a training."""
    if args.resume:
        return _resume(args)
    if args.new_events:
        raise ValueError("`--new-events` needs `--resume DIR`, the training to go on with.")
    _start_keras(args)
    from keras_ranking import training

    training.keep_freed_memory()
    seed = args.seed or 0
    log = _open_log(args, seed)
    model = args.model or "cadet"
    _, history = training.train(
        log,
        model=model,
        out=Path(args.out),
        seed=seed,
        epochs=args.epochs,
        batch_size=args.batch_size,
        options={**({"preset": args.preset} if args.preset else {}), **dict(args.set)},
        verbose=not args.quiet,
        checkpoint_every=args.checkpoint_every,
    )
    print(f"{model} trained in {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    return 0


def _resume(args: argparse.Namespace) -> int:
    """Go on with a stopped training, or take the daily step of a finished one."""
    fixed = ("model", "preset", "batch_size", "checkpoint_every", *(() if args.new_events else ("seed", "epochs", "out")))
    for name in fixed:
        if getattr(args, name) is not None:
            raise ValueError(f"`--{name.replace('_', '-')}` is that of the training in --resume. Received: {getattr(args, name)}")
    if args.set:
        raise ValueError(f"`--set` is that of the training in --resume. Received: {args.set[0][0]}")
    if args.new_events and not args.out:
        raise ValueError("`--new-events` needs `--out`: the folder to write.")
    _start_keras(args)
    from keras_ranking import training

    training.keep_freed_memory()
    about = training.read_checkpoint(args.resume).about
    seed = about["seed"]
    if not args.new_events:
        if about["finished"]:
            raise ValueError(f"the training in '{args.resume}' is finished. To learn from newer events, give --new-events and --out.")
        log = _open_log(args, seed)
        settings = {name: about[name] for name in ("model", "seed", "epochs", "batch_size", "options", "checkpoint_every")}
        _, history = training.train(log, out=args.resume, resume=True, verbose=not args.quiet, **settings)
        print(f"{about['model']} trained in {history['seconds']:.0f} s: {Path(args.resume) / 'model.keras'}")
        return 0
    log, new = _with_new_events(args, seed)
    print(f"{int(new.sum()):,} new events", file=sys.stderr)
    settings = {"epochs": args.epochs or 1, "seed": args.seed, "verbose": not args.quiet}
    _, history = training.warm_start(log, args.resume, new, args.out, **settings)
    print(f"{about['model']} went on for {history['seconds']:.0f} s: {Path(args.out) / 'model.keras'}")
    return 0


def _with_new_events(args: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """The log, and which of its rows are new: those from a day on that are to be learned from, or those of another source."""
    import dataclasses
    from datetime import datetime

    import numpy as np
    import pandas as pd

    from keras_ranking.data import open_log

    log = _open_log(args, seed)
    events = log.events
    if args.new_events[:1].isdigit():
        try:
            day = pd.Timestamp(datetime.fromisoformat(args.new_events))  # pandas alone would take "1st of May" for a day of this year
        except ValueError as error:
            raise ValueError(f"`--new-events` must be a day, YYYY-MM-DD, or a SOURCE. Received: {args.new_events!r}") from error
        begin = int((day.tz_convert("UTC") if day.tzinfo else day.tz_localize("UTC")).timestamp()) - log.schema.epoch
        new = (log.schema.encode_time(events[log.schema.time]) >= begin) & (events["split"] == "train").to_numpy()
        return log, np.asarray(new)
    with _step(f"reading {args.new_events}"):
        # Of a file of new rows none is kept back to judge on, unless its own `split` says so.
        other = open_log(args.new_events, schema=log.schema, seed=seed, train_share=1.0)
    both = pd.concat([events, other.events], ignore_index=True)
    new = (other.events["split"] == "train").to_numpy()
    return dataclasses.replace(log, events=both), np.concatenate([np.zeros(len(events), dtype=bool), new])


def evaluate(args: argparse.Namespace) -> int:
    """Print, and write as JSON, the figures of a trained model on one split."""
    _start_keras(args)
    from keras_ranking import models, training

    model = models.load(args.model_dir)
    seed = args.seed
    if seed is None:
        try:
            seed = int(json.loads((Path(args.model_dir) / "history.json").read_text(encoding="utf-8"))["seed"])
        except (OSError, ValueError, KeyError):
            seed = 0
    log = _open_log(args, seed)
    with _step(f"scoring the {args.split} rows"):
        results = training.evaluate(model, log, split=args.split)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(_finite(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    names = list(next(iter(results.values())))
    print(table([f"{log.name} {args.split}", *results], [[name, *(f"{results[task][name]:.4f}" for task in results)] for name in names]))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a trained model as the next version of a served model."""
    _start_keras(args)
    from keras_ranking import models, serving

    model = models.load(args.model_dir)
    with _step("exporting" + ("" if args.no_verify else " and checking the written graph in a fresh process")):
        version = serving.export(
            model,
            args.out,
            verify=not args.no_verify,
            quantize=args.quantize,
            precision=args.precision,
            xla=args.xla,
            through=args.through,
            history_buckets=args.history_buckets,
            candidate_buckets=args.candidate_buckets,
            events=_read_rows(args.events) if args.events else None,
            run=args.model_dir,
        )
    print(f"version {version.name}: {version}")
    return 0


def skew(args: argparse.Namespace) -> int:
    """Replay logged requests through an exported version, the Keras model and the data pipeline; 1 where they differ."""
    _start_keras(args)
    from keras_ranking import serving

    events = _read_rows(args.events)
    with _step(f"replaying up to {args.sample} requests"):
        report = serving.check_skew(args.model, args.keras, events, sample=args.sample, bound=args.bound, seed=args.seed)
    if args.json:
        Path(args.json).write_text(json.dumps(_finite(report.to_json()), indent=2, default=_plain) + "\n", encoding="utf-8")
    print(table(["what", "name", "compared", "differ", "largest", "mean", "worst"], report.rows()))
    print(("SKEW: " if report.found else "no skew: ") + report.summary())
    return int(report.found)


def serve(args: argparse.Namespace) -> int:
    """Serve an exported model until Ctrl-C or SIGTERM."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the server runs the exported graph; no Keras model is built
    _start_logging(args)
    with quiet_imports(args.debug):
        from keras_ranking.serving import Limits, Tls, serve
    if (args.tls_cert is None) != (args.tls_key is None) or (args.tls_client_ca is not None and args.tls_cert is None):
        raise ValueError("TLS needs --tls-cert and --tls-key; --tls-client-ca goes with them.")
    known = {field.name for field in dataclasses.fields(Limits)}
    unknown = sorted({name for name, _ in args.limit} - known)
    if unknown:
        raise ValueError(f"`--limit` must name one of {sorted(known)}. Received: {unknown[0]}")
    server = serve(
        args.folder,
        name=args.name,
        host=args.host,
        rest_port=args.rest_port,
        grpc_port=args.grpc_port,
        threads=args.threads,
        labels=dict(args.label),
        limits=Limits(**dict(args.limit)),
        token=_token(args),
        tls=Tls(args.tls_cert, args.tls_key, args.tls_client_ca) if args.tls_cert is not None else None,
        insecure=args.insecure,
        notice_seconds=args.notice_seconds,
        drain_seconds=args.drain_seconds,
    )
    print(
        f"serving {server.name} version {server.version}, until Ctrl-C\n"
        f"  REST http://{server.host}:{server.rest_port}/v1/models/{server.name}:predict\n"
        f"  gRPC {server.host}:{server.grpc_port}",
        flush=True,
    )
    server.wait()
    return 0


def _start_logging(args: argparse.Namespace) -> None:
    """Log lines on stderr, as text or as JSON."""
    import logging

    from keras_ranking.serving.logs import CALL, JsonFormatter

    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if args.log_format == "json" else plain)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.INFO, handlers=[handler])
    logging.getLogger(CALL).setLevel(logging.INFO if args.log_calls else logging.WARNING)


def _token(args: argparse.Namespace) -> str | None:
    """From a file or the environment: what stands on a command line can be read by every user of the machine."""
    if args.token_file is None:
        return os.environ.get("KERAS_RANKING_TOKEN") or None
    return Path(args.token_file).read_text(encoding="utf-8").strip()


def _read_rows(path: str) -> Any:
    """Rows of a parquet, CSV or JSON file as a DataFrame."""
    import pandas as pd

    readers: dict[str, Callable[..., Any]] = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".gz": pd.read_csv, ".json": pd.read_json}
    reader = readers.get(Path(path).suffix)
    if reader is None:
        raise ValueError(f"rows must come from a .parquet, .csv, .csv.gz or .json file. Received: {path}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return reader(path)
    except ImportError as error:
        raise ModuleNotFoundError("parquet needs pyarrow: pip install 'keras-ranking[data]'", name="pyarrow") from error


def _read_request(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(history, candidates, time) of the request that the arguments name."""
    import pandas as pd

    if args.request:
        if args.history or args.candidates or args.time is not None:
            raise ValueError("give a REQUEST file, or --history, --candidates and --time; not both.")
        text = sys.stdin.read() if args.request == "-" else Path(args.request).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{args.request} is not JSON: {error}") from error
        if not isinstance(content, dict) or not {"time", "candidates"} <= set(content) <= {"time", "history", "candidates"}:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"a request must have the keys time, candidates and, if there is one, history. Received: {found}")
        return pd.DataFrame(content.get("history", [])), pd.DataFrame(content["candidates"]), content["time"]
    if not args.candidates or args.time is None:
        raise ValueError("give a REQUEST file, or --candidates FILE and --time SECONDS (and --history FILE, if there is a history).")
    history = _read_rows(args.history) if args.history else pd.DataFrame()
    return history, _read_rows(args.candidates), args.time


def score(args: argparse.Namespace) -> int:
    """Print the candidates of one request, ranked."""
    history, candidates, moment = _read_request(args)
    if args.server:
        from keras_ranking.schema import Schema
        from keras_ranking.serving import Client, ClientTls

        if not args.schema:
            raise ValueError("`--server` needs --schema FILE: the schema.json that training wrote.")
        schema = Schema.load(args.schema)
        protocol = "rest" if args.server.startswith("http") else "grpc"
        tls = ClientTls(args.tls_ca) if args.tls_ca is not None else False
        with Client(args.server, schema, args.name, protocol, signature=args.signature, token=_token(args), tls=tls) as client:
            scores = client.score(history, candidates, moment)
    else:
        _start_keras(args)
        from keras_ranking import models

        model = models.load(args.model)
        schema = model.schema
        scores = score_here(model, history, candidates, moment)
    task = args.task or schema.tasks[0].name
    order = scores[schema.task(task).name].to_numpy().argsort(kind="stable")[::-1][: args.top]
    named = [feature.name for feature in schema.features_known("item") if feature.kind == "id"][:1]
    ranked = [
        {"rank": rank, "candidate": int(row)}
        | {name: candidates[name].iloc[row] for name in named}
        | {name: float(scores[name].iloc[row]) for name in scores}
        for rank, row in enumerate(order, start=1)
    ]
    if args.json:
        print(json.dumps(ranked, default=_plain, indent=2))
    else:
        cells = [[f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in ranked]
        print(table(list(ranked[0]), cells))
    return 0


def score_here(model: Any, history: Any, candidates: Any, moment: Any) -> Any:
    """Scores of one request by a Keras model in this process, one column per task."""
    import keras
    import pandas as pd

    from keras_ranking.serving import pad_requests, request_tensors

    graph = model.serving_model
    tensors = pad_requests([request_tensors(model.schema, history, candidates, moment, list(graph.input))])
    outputs = graph(tensors)
    tasks = [task.name for task in model.schema.tasks if task.name in outputs]
    return pd.DataFrame({task: keras.ops.convert_to_numpy(outputs[task])[0, : len(candidates)] for task in tasks})


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python number that JSON knows."""
    return value.item() if hasattr(value, "item") else str(value)
