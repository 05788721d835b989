"""How a client talks to a server: gRPC or REST. Each keeps its connection; the REST one needs no TensorFlow."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np

from keras_ranking.serving import missing_extra
from keras_ranking.serving.errors import ServingError

Tensors = dict[str, np.ndarray]
_CODES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED", 413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED"}
_CODES |= {412: "FAILED_PRECONDITION", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_SCORES = np.dtype(np.float32)


class Transport(Protocol):
    """What a client needs of a protocol."""

    def input_names(self) -> list[str]:
        """Names of the signature's inputs, from the server's metadata."""

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """Outputs of the signature."""

    def close(self) -> None:
        """Give the connection back."""


class GrpcTransport:
    """PredictionService over one channel, for any number of threads."""

    def __init__(self, address: str, model: str, signature: str, timeout: float) -> None:
        try:
            import grpc

            from keras_ranking.serving import codec
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_extra("a client with protocol='grpc'", error), name=error.name) from error

        self._grpc, self._codec = grpc, codec
        self._model, self._signature, self._timeout, self._address = model, signature, timeout, address
        # Replies are bounded by the request that asked for them, not by gRPC's 4 MB.
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        self._predict, self._metadata = codec.stub_calls(self._channel)
        self._closed = False

    def input_names(self) -> list[str]:
        return self._codec.input_names(self._call(self._metadata, self._codec.metadata_request(self._model)), self._signature)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        response = self._call(self._predict, self._codec.predict_request(self._model, self._signature, inputs))
        return self._codec.read_tensors(response.outputs)

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code = error.code().name
            if code == "CANCELLED" and not self._closed:
                code = "UNAVAILABLE"  # not by us: a call that reaches a server as it stops
            raise ServingError(code, f"{error.details()} (gRPC {self._address})") from error


class RestTransport:
    """The HTTP API, column form, over one kept connection per thread."""

    def __init__(self, address: str, model: str, signature: str, timeout: float) -> None:
        split = urlsplit(address if "://" in address else f"http://{address}")
        if split.scheme not in ("http", "https") or not split.hostname or split.path.strip("/"):
            raise ValueError(f"`address` must be HOST:PORT or http(s)://HOST:PORT. Received: address={address!r}")
        self._kind = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = split.hostname, split.port
        self._path = f"/v1/models/{quote(model, safe='')}"
        self._signature, self._timeout, self._address = signature, timeout, address
        self._outputs: list[str] = []
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[http.client.HTTPConnection] = []

    def input_names(self) -> list[str]:
        content = self._call("GET", f"{self._path}/metadata", None)
        signatures = content["metadata"]["signature_def"]["signature_def"]
        if self._signature not in signatures:
            raise ServingError("NOT_FOUND", f'signature "{self._signature}" not found. The model has: {sorted(signatures)}')
        self._outputs = sorted(signatures[self._signature]["outputs"])
        return sorted(signatures[self._signature]["inputs"])

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        columns = {name: values.tolist() for name, values in inputs.items()}
        body = json.dumps({"signature_name": self._signature, "inputs": columns}, separators=(",", ":"), allow_nan=False)
        outputs = self._call("POST", f"{self._path}:predict", body.encode())["outputs"]
        # A single output comes back bare; its name stands in the metadata.
        named = outputs if isinstance(outputs, dict) else {(self._outputs or [""])[0]: outputs}
        return {name: np.asarray(values, dtype=_SCORES) for name, values in named.items()}

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            status, content = self._exchange(method, path, body)
        except TimeoutError as error:
            raise ServingError("DEADLINE_EXCEEDED", f"no reply within {self._timeout:g} s (REST {self._address})") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError("UNAVAILABLE", f"{error or type(error).__name__} (REST {self._address})") from error
        try:
            reply = json.loads(content)
        except ValueError as error:
            raise ServingError("UNKNOWN", f"HTTP {status} with a body that is not JSON (REST {self._address})") from error
        if status != 200:
            message = reply.get("error", "no message") if isinstance(reply, dict) else "no message"
            raise ServingError(_CODES.get(status, "UNKNOWN"), f"{message} (REST {self._address})", status)
        return reply

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            try:
                return self._once(connection, method, path, body)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()  # the server let an idle connection go; scoring changes nothing, so ask again
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        with self._lock:
            self._all.append(connection)
        self._mine.connection = connection
        return self._once(connection, method, path, body)

    def _once(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except BaseException:
            connection.close()
            self._mine.connection = None
            with self._lock:
                if connection in self._all:
                    self._all.remove(connection)
            raise
