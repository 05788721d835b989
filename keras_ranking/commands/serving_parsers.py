"""The arguments and help texts of `skew` and `serve`."""

from __future__ import annotations

from typing import Any

from keras_ranking.commands import exports
from keras_ranking.commands.parsers import command, port, positive, seed, server_arguments, setting


def skew_parser(subparsers: Any) -> None:
    """Arguments of `skew`."""
    made = command(
        subparsers,
        "skew",
        exports.skew,
        "check an exported model for training-serving skew on logged requests",
        """\
replays requests of a log through the exported model (encoded and raw), the Keras model and the data pipeline, and prints the
differences by feature and by score with request and row of the largest one. Exit code 1 if there are any. Needs the extra `serving`.
With --server the exported model is the one of a running server.
With --live the requests are those of the access log of `keras-ranking serve --access-log`, found in the log by their ids: what was served
is compared with what the data pipeline makes of the log's rows, and the scores with those of the Keras model.

examples:
  keras-ranking skew --model saved_models/cadet --keras runs/cadet --events log.parquet
  keras-ranking skew --server 127.0.0.1:8500 --name cadet --label canary --keras runs/cadet --events log.parquet
  keras-ranking skew --live requests.jsonl --key-file key.txt --keras runs/cadet --events log.parquet --max-share 0.01
""",
        keras=True,
    )
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="FOLDER", help="the served model, or one version of it")
    where.add_argument("--server", metavar="ADDRESS", help="HOST:PORT of a gRPC server, or http://HOST:PORT of a REST server")
    where.add_argument("--live", metavar="FILE", help="the access log of a server")
    server_arguments(made)
    made.add_argument("--keras", required=True, metavar="DIR", help="folder that `train` wrote")
    made.add_argument("--events", required=True, metavar="FILE", help="log rows: .parquet, .csv, .csv.gz or .json")
    made.add_argument("--sample", type=positive, metavar="N", help="requests to replay (default: 64; with --live the latest 256)")
    made.add_argument("--bound", type=float, metavar="X", help="largest difference of a score (default: that of the export; --live: 1e-5)")
    made.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the sample (default: 0)")
    made.add_argument("--json", metavar="FILE", help="also write the report to FILE")
    made.add_argument("--key-file", metavar="FILE", help="with --live: the key of the access log")
    made.add_argument("--item", metavar="COLUMN", help="with --live: pair candidates by this column (default: their first id)")
    made.add_argument("--max-share", type=float, default=0.0, metavar="X", help="with --live: share of values that may differ (default: 0)")


def serve_parser(subparsers: Any) -> None:
    """Arguments of `serve`."""
    made = command(
        subparsers,
        "serve",
        exports.serve,
        "serve an exported model by REST and gRPC, with the protocol of TensorFlow Serving",
        """\
runs until Ctrl-C or SIGTERM; loads new versions when they appear in FOLDER. By default only this machine can connect. A --host that
other machines can reach needs a token, client certificates or --insecure. The token is the content of --token-file, or the
environment variable KERAS_RANKING_TOKEN. Needs the extra `serving`.

examples:
  keras-ranking serve saved_models/cadet --rest-port 8501 --grpc-port 8500
  keras-ranking serve saved_models/cadet --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem --token-file token.txt --log-format json
""",
    )
    made.add_argument("folder", metavar="FOLDER", help="the served model, as `export` writes it")
    made.add_argument("--name", metavar="NAME", help="name of the model in paths and messages (default: the folder's name)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    made.add_argument("--rest-port", type=port, default=8501, metavar="PORT", help="default: 8501; 0 = any free port")
    made.add_argument("--grpc-port", type=port, default=8500, metavar="PORT", help="default: 8500; 0 = any free port")
    made.add_argument("--threads", type=int, default=0, metavar="N", help="TensorFlow threads (default: 0 = one per core)")
    made.add_argument(
        "--label", action="append", type=setting, default=[], metavar="NAME=VERSION", help="keep VERSION loaded under the label NAME"
    )
    text = "limit of requests, such as queue=512; see keras_ranking.serving.Limits"
    made.add_argument("--limit", action="append", type=setting, default=[], metavar="NAME=VALUE", help=text)
    made.add_argument("--token-file", metavar="FILE", help="token that calls must have (default: KERAS_RANKING_TOKEN, or none)")
    made.add_argument("--tls-cert", metavar="FILE", help="certificate chain of both ports, PEM; with --tls-key")
    made.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    made.add_argument("--tls-client-ca", metavar="FILE", help="authority of the certificates that clients must present")
    made.add_argument("--insecure", action="store_true", help="allow other machines to call without token and certificate")
    made.add_argument(
        "--notice-seconds", type=float, default=0.0, metavar="S", help="report not ready for S seconds before stopping (default: 0)"
    )
    made.add_argument(
        "--drain-seconds", type=float, default=10.0, metavar="S", help="wait for calls in progress when stopping (default: 10)"
    )
    made.add_argument("--log-format", choices=["text", "json"], default="text", help="format of the log lines on stderr (default: text)")
    made.add_argument("--log-calls", action="store_true", help="log one line per call")
    made.add_argument("--access-log", metavar="FILE", help="write a sample of the requests to FILE, for `skew --live` (default: none)")
    made.add_argument("--access-log-key-file", metavar="FILE", help="with --access-log: key by which ids and texts are hashed")
    made.add_argument("--access-log-share", type=float, default=0.01, metavar="X", help="share of requests (default: 0.01)")
    made.add_argument("--access-log-mb", type=positive, default=256, metavar="N", help="most MiB on disk, older ones go (default: 256)")
    made.add_argument("--access-log-hash", action="append", default=[], metavar="COLUMN", help="also hash the values of this column")


SERVING_PARSERS = (skew_parser, serve_parser)
