"""From a trained model to answered requests: `export`, `serve`, `Client`.

Names load on first use: importing this package imports neither TensorFlow nor Keras, and a client never does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_ranking.serving.async_client import AsyncClient
    from keras_ranking.serving.client import Client
    from keras_ranking.serving.errors import ServingError
    from keras_ranking.serving.exporting import export
    from keras_ranking.serving.limits import Limits
    from keras_ranking.serving.quantization import quantize_embeddings
    from keras_ranking.serving.requests import Request, pad_requests, request_tensors
    from keras_ranking.serving.retry import Retry
    from keras_ranking.serving.security import Tls
    from keras_ranking.serving.server import Server, serve
    from keras_ranking.serving.skew import check_skew
    from keras_ranking.serving.skew_report import SkewReport
    from keras_ranking.serving.transport import ClientTls
    from keras_ranking.serving.warmup import write_warmup

# No module carries the name of a public function: importing a module binds its name here and would hide the function.
_HOMES = {
    "export": "exporting",
    "serve": "server",
    "Server": "server",
    "AsyncClient": "async_client",
    "Client": "client",
    "ClientTls": "transport",
    "Retry": "retry",
    "Tls": "security",
    "Limits": "limits",
    "Request": "requests",
    "ServingError": "errors",
    "pad_requests": "requests",
    "quantize_embeddings": "quantization",
    "request_tensors": "requests",
    "check_skew": "skew",
    "SkewReport": "skew_report",
    "write_warmup": "warmup",
}
_EXTRA = frozenset({"tensorflow", "tensorflow_serving", "grpc", "grpc_health", "aiohttp", "orjson", "prometheus_client"})

__all__ = [
    "AsyncClient",
    "Client",
    "ClientTls",
    "Limits",
    "Request",
    "Retry",
    "Server",
    "ServingError",
    "SkewReport",
    "Tls",
    "check_skew",
    "export",
    "pad_requests",
    "quantize_embeddings",
    "request_tensors",
    "serve",
    "write_warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in _EXTRA:
            raise ModuleNotFoundError(missing_extra(f"keras_ranking.serving.{name}", error), name=error.name) from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)


def missing_extra(who: str, error: ModuleNotFoundError, extra: str = "serving") -> str:
    """The one line that says which install command brings the missing package."""
    return f"{who} needs the package '{error.name}', which is not installed: pip install keras-ranking[{extra}]"
