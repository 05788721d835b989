"""Serving of a trained model: `export`, `serve`, `Client`.

Names are imported on first use: importing this package imports neither TensorFlow nor Keras, and a client never does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_ranking.serving.protocol.missing_extra import missing_extra

if TYPE_CHECKING:
    from keras_ranking.models.quantization import quantize_embeddings
    from keras_ranking.serving.checking.live_skew import LiveSkewReport, check_live_skew
    from keras_ranking.serving.checking.skew import check_skew
    from keras_ranking.serving.checking.skew_report import SkewReport
    from keras_ranking.serving.client.async_client import AsyncClient
    from keras_ranking.serving.client.client import Client
    from keras_ranking.serving.client.grpc_transport import ClientTls
    from keras_ranking.serving.client.retry import Retry
    from keras_ranking.serving.exporting.export import export
    from keras_ranking.serving.exporting.options import GraphOptions, Verification
    from keras_ranking.serving.exporting.warmup import write_warmup
    from keras_ranking.serving.histories.history_client import HistoryClient
    from keras_ranking.serving.histories.redis_store import RedisHistories
    from keras_ranking.serving.histories.store import History, HistoryStore, MemoryHistories
    from keras_ranking.serving.protocol.errors import ServingError
    from keras_ranking.serving.protocol.requests import Request, pad_requests, request_tensors
    from keras_ranking.serving.server.access_log import AccessLog
    from keras_ranking.serving.server.limits import Limits, Stopping
    from keras_ranking.serving.server.security import Access, Tls
    from keras_ranking.serving.server.server import Server, serve

_MODULES = {
    "export": "keras_ranking.serving.exporting.export",
    "serve": "keras_ranking.serving.server.server",
    "Server": "keras_ranking.serving.server.server",
    "AsyncClient": "keras_ranking.serving.client.async_client",
    "Client": "keras_ranking.serving.client.client",
    "ClientTls": "keras_ranking.serving.client.grpc_transport",
    "Retry": "keras_ranking.serving.client.retry",
    "Tls": "keras_ranking.serving.server.security",
    "Access": "keras_ranking.serving.server.security",
    "Stopping": "keras_ranking.serving.server.limits",
    "GraphOptions": "keras_ranking.serving.exporting.options",
    "Verification": "keras_ranking.serving.exporting.options",
    "History": "keras_ranking.serving.histories.store",
    "HistoryClient": "keras_ranking.serving.histories.history_client",
    "HistoryStore": "keras_ranking.serving.histories.store",
    "Limits": "keras_ranking.serving.server.limits",
    "MemoryHistories": "keras_ranking.serving.histories.store",
    "RedisHistories": "keras_ranking.serving.histories.redis_store",
    "Request": "keras_ranking.serving.protocol.requests",
    "ServingError": "keras_ranking.serving.protocol.errors",
    "pad_requests": "keras_ranking.serving.protocol.requests",
    "quantize_embeddings": "keras_ranking.models.quantization",
    "request_tensors": "keras_ranking.serving.protocol.requests",
    "check_skew": "keras_ranking.serving.checking.skew",
    "check_live_skew": "keras_ranking.serving.checking.live_skew",
    "LiveSkewReport": "keras_ranking.serving.checking.live_skew",
    "AccessLog": "keras_ranking.serving.server.access_log",
    "SkewReport": "keras_ranking.serving.checking.skew_report",
    "write_warmup": "keras_ranking.serving.exporting.warmup",
}
_PACKAGES_OF_EXTRAS = frozenset({"tensorflow", "tensorflow_serving", "grpc", "grpc_health", "aiohttp", "orjson", "prometheus_client"})

__all__ = [
    "Access",
    "AccessLog",
    "AsyncClient",
    "Client",
    "ClientTls",
    "GraphOptions",
    "History",
    "HistoryClient",
    "HistoryStore",
    "Limits",
    "LiveSkewReport",
    "MemoryHistories",
    "RedisHistories",
    "Request",
    "Retry",
    "Server",
    "ServingError",
    "SkewReport",
    "Stopping",
    "Tls",
    "Verification",
    "check_live_skew",
    "check_skew",
    "export",
    "pad_requests",
    "quantize_embeddings",
    "request_tensors",
    "serve",
    "write_warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in _PACKAGES_OF_EXTRAS:
            raise ModuleNotFoundError(missing_extra(f"keras_ranking.serving.{name}", error), name=error.name) from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
