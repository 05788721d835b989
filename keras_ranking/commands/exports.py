"""Exported versions: `export`, `skew`, `serve`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import (
    client_of,
    finite,
    needs_server,
    plain_value,
    quiet_imports,
    read_rows,
    start_keras,
    step,
    table,
    token,
)


def export(args: argparse.Namespace) -> int:
    """Write a trained model as the next version of a served model."""
    events = _checked_events(args.events, args.model_dir) if args.events else None
    start_keras(args)
    from keras_ranking import models, serving

    model = models.load(args.model_dir)
    with step("exporting" + ("" if args.no_verify else " and checking the written graph in a fresh process")):
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
            server_batching=args.server_batching,
            events=events,
            run=args.model_dir,
            utility=args.utility,
        )
    print(f"version {version.name}: {version}")
    return 0


def _checked_events(path: str, run: str) -> Any:
    """Logged events from a file, with the counts that they lack, checked with the schema of a run before Keras is started."""
    from keras_ranking.data import check_events, saved_counts
    from keras_ranking.data.counted import counted_events
    from keras_ranking.schema import Schema

    events = read_rows(path)
    if (Path(run) / "schema.json").is_file():
        schema = Schema.load(Path(run) / "schema.json")
        events = counted_events(events, schema, saved_counts(run))
        check_events(events, schema, sort=True)
    return events


def skew(args: argparse.Namespace) -> int:
    """Replay logged requests through an exported version, the Keras model and the data pipeline; returns 1 if they differ."""
    if args.live:
        return _live_skew(args)
    needs_server(args)
    events = _checked_events(args.events, args.keras)
    with contextlib.ExitStack() as stack:
        version = args.model if not args.server else stack.enter_context(client_of(args, Path(args.keras) / "schema.json"))
        if args.server:
            version.signatures()  # a server that cannot be reached, before Keras is started
        start_keras(args)
        from keras_ranking import serving

        sample = args.sample or 64
        with step(f"replaying up to {sample} requests"):
            report = serving.check_skew(version, args.keras, events, sample=sample, bound=args.bound, seed=args.seed)
    return _reported(args, report)


def _live_skew(args: argparse.Namespace) -> int:
    """Compare the requests of an access log with the data pipeline and the Keras model; returns 1 if they differ."""
    if args.key_file is None:
        raise ValueError("--live needs --key-file, the key of the access log.")
    key = _key(args.key_file)
    events = _checked_events(args.events, args.keras)
    start_keras(args)
    from keras_ranking import serving

    options = {"version": args.version, "item": args.item, "sample": args.sample or 256, "max_share": args.max_share}
    bound = {} if args.bound is None else {"bound": args.bound}
    with step(f"replaying up to {options['sample']} requests of {args.live}"):
        report = serving.check_live_skew(args.live, args.keras, events, key, **options, **bound)
    return _reported(args, report)


def _key(path: str) -> bytes:
    return Path(path).read_bytes().strip()


def _reported(args: argparse.Namespace, report: Any) -> int:
    """Write and print a report of skew; 1 if it has any."""
    if args.json:
        Path(args.json).write_text(json.dumps(finite(report.to_json()), indent=2, default=plain_value) + "\n", encoding="utf-8")
    print(table(["what", "name", "compared", "differ", "largest", "mean", "worst"], report.rows()))
    print(("SKEW: " if report.found else "no skew: ") + report.summary())
    return int(report.found)


def serve(args: argparse.Namespace) -> int:
    """Serve an exported model until Ctrl-C or SIGTERM."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the server runs the exported graph; no Keras model is built
    _start_logging(args)
    with quiet_imports(args.debug):
        from keras_ranking.serving import AccessLog, Limits, Tls, serve
    if (args.tls_cert is None) != (args.tls_key is None) or (args.tls_client_ca is not None and args.tls_cert is None):
        raise ValueError("TLS needs --tls-cert and --tls-key; --tls-client-ca needs both.")
    known = {field.name for field in dataclasses.fields(Limits)}
    unknown = sorted({name for name, _ in args.limit} - known)
    if unknown:
        raise ValueError(f"`--limit` must name one of {sorted(known)}. Received: {unknown[0]}")
    kept: dict[str, Any] = {}
    if args.access_log is not None:
        if args.access_log_key_file is None:
            raise ValueError("--access-log needs --access-log-key-file, a file with a key of at least 16 bytes.")
        rules = {"share": args.access_log_share, "max_bytes": args.access_log_mb * 2**20, "hashed": tuple(args.access_log_hash)}
        kept = {"access_log": AccessLog(path=args.access_log, key=_key(args.access_log_key_file), **rules)}
    server = serve(
        args.folder,
        name=args.name,
        host=args.host,
        rest_port=args.rest_port,
        grpc_port=args.grpc_port,
        threads=args.threads,
        labels=dict(args.label),
        limits=Limits(**dict(args.limit)),
        token=token(args),
        tls=Tls(args.tls_cert, args.tls_key, args.tls_client_ca) if args.tls_cert is not None else None,
        insecure=args.insecure,
        notice_seconds=args.notice_seconds,
        drain_seconds=args.drain_seconds,
        **kept,
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
    from keras_ranking.serving.server.logs import CALL, JsonFormatter

    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if args.log_format == "json" else plain)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.INFO, handlers=[handler])
    logging.getLogger(CALL).setLevel(logging.INFO if args.log_calls else logging.WARNING)
