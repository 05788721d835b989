"""A server that fails, for the tests of retries."""

from __future__ import annotations

import time

import pytest

from keras_ranking.serving import Client
from tests.serving import standin

grpc = pytest.importorskip("grpc")


class Flaky:
    """A server whose calls end with the next of a list of errors, then with an empty reply (which has no metadata)."""

    def __init__(self, errors):
        from concurrent.futures import ThreadPoolExecutor

        self.errors, self.calls = list(errors), []
        self.server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self.reply)
        name = "tensorflow.serving.PredictionService"
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"GetModelMetadata": handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def reply(self, message, context):
        self.calls.append((time.monotonic(), context.time_remaining()))
        if self.errors:
            code, details, *trailer = self.errors.pop(0)
            if trailer:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", trailer[0]),))
            context.abort(getattr(grpc.StatusCode, code), details)
        return b""

    def client(self, **settings):
        return Client(f"127.0.0.1:{self.port}", standin.SCHEMA, model="ranker", **settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop(0)
