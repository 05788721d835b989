"""How a client talks to a server: gRPC or REST. Each keeps its connections; neither imports TensorFlow."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np

from keras_ranking.serving import missing_extra
from keras_ranking.serving.dtypes import signatures_of_json
from keras_ranking.serving.errors import ServingError
from keras_ranking.serving.retry import Budget, Retry
from keras_ranking.serving.signature import Signature

Tensors = dict[str, np.ndarray]
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED"}
_CODES |= {413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"}
_CODES |= {504: "DEADLINE_EXCEEDED"}


@dataclass(frozen=True)
class ClientTls:
    """What a client needs for TLS.

    Args:
        ca: PEM file of the authority that signed the server's certificate; None: those this machine knows.
        certificate, key: PEM files, where the server asks for a client certificate.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTPS."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def credentials(self, grpc: Any) -> Any:
        """For gRPC."""
        files = [Path(path).read_bytes() if path is not None else None for path in (self.ca, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*files)


@dataclass(frozen=True)
class Target:
    """Where a client's calls go, and how.

    Args:
        address: HOST:PORT, for REST also http(s)://HOST:PORT.
        model: name on the server.
        version, label: which of its versions, at most one of them; None: what the server serves by default.
        timeout: seconds a call may take, all its attempts together.
        token: sent as `Authorization: Bearer TOKEN`.
        tls: None: in the clear.
        retry: when to ask again.
    """

    address: str
    model: str
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    token: str | None = None
    tls: ClientTls | None = None
    retry: Retry = field(default_factory=Retry)


class Transport(Protocol):
    """What a client needs of a protocol."""

    def signatures(self) -> dict[str, Signature]:
        """The signatures of the model, from the server's metadata."""

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float) -> Tensors:
        """Outputs of a signature."""

    def close(self) -> None:
        """Give the connections back."""


def retried(budget: Budget, once: Callable[[float], Any], timeout: float) -> Any:
    """Call `once(seconds left)` until it succeeds, its error stands or the time is up."""
    deadline = time.monotonic() + timeout
    budget.earn()
    attempt = 1
    while True:
        try:
            return once(deadline - time.monotonic())
        except ServingError as error:
            wait = budget.wait(error, attempt, deadline)
            if wait is None:
                raise
        time.sleep(wait)
        attempt += 1


class GrpcParts:
    """What the blocking and the async transport share: the package, the channel's arguments, messages and errors."""

    def __init__(self, target: Target) -> None:
        try:
            import grpc

            from keras_ranking.serving import codec, protos
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_extra("a client with protocol='grpc'", error, "client"), name=error.name) from error
        self.grpc, self.codec, self.protos, self.target = grpc, codec, protos, target
        self.metadata = (("authorization", f"Bearer {target.token}"),) if target.token is not None else None
        self.closed = False

    def channel(self, package: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        options = [
            # Replies are bounded by the request that asked for them, not by gRPC's 4 MB.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # A server that comes back is found while a call is still being sent again, not after two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        if self.target.tls is None:
            return package.insecure_channel(self.target.address, options=options)
        return package.secure_channel(self.target.address, self.target.tls.credentials(self.grpc), options=options)

    def calls(self, channel: Any) -> tuple[Any, Any]:
        """Predict and GetModelMetadata of a channel."""
        serializer = self.protos.PredictRequest.SerializeToString
        predict = channel.unary_unary(self.protos.PREDICT, serializer, self.protos.PredictResponse.FromString)
        serializer = self.protos.GetModelMetadataRequest.SerializeToString
        return predict, channel.unary_unary(self.protos.METADATA, serializer, self.protos.GetModelMetadataResponse.FromString)

    def predict_request(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> Any:
        target = self.target
        return self.codec.predict_request(target.model, signature.name, inputs, target.version, target.label)

    def metadata_request(self) -> Any:
        return self.codec.metadata_request(self.target.model, self.target.version, self.target.label)

    def error(self, error: Any) -> ServingError:
        """A `grpc.RpcError` as ours."""
        code, details = error.code().name, error.details() or ""
        if code == "CANCELLED" and not self.closed:
            code = "UNAVAILABLE"  # not by us: a call that reaches a server as it stops
        status = retry_after = None
        if code == "RESOURCE_EXHAUSTED":
            trailer = error.trailing_metadata() or ()
            pushback = next((int(value) for key, value in trailer if key == "grpc-retry-pushback-ms"), None)
            if (pushback is not None and pushback < 0) or "larger than max" in details:
                status = 413
            elif pushback is not None:
                retry_after = pushback / 1000
        return ServingError(code, f"{details} (gRPC {self.target.address})", status, retry_after)


class GrpcTransport:
    """PredictionService over one channel, for any number of threads."""

    def __init__(self, target: Target) -> None:
        self._parts = GrpcParts(target)
        self._budget = Budget(target.retry)
        self._channel = self._parts.channel(self._parts.grpc)
        self._predict, self._metadata = self._parts.calls(self._channel)

    def signatures(self) -> dict[str, Signature]:
        response = self._call(self._metadata, self._parts.metadata_request(), self._parts.target.timeout)
        found: dict[str, Signature] = self._parts.codec.signatures(response)
        return found

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float) -> Tensors:
        response = self._call(self._predict, self._parts.predict_request(signature, inputs), timeout)
        outputs: Tensors = self._parts.codec.read_tensors(response.outputs)
        return outputs

    def close(self) -> None:
        self._parts.closed = True
        self._channel.close()

    def _call(self, method: Any, request: Any, timeout: float) -> Any:
        def once(left: float) -> Any:
            try:
                return method(request, timeout=left, metadata=self._parts.metadata)
            except self._parts.grpc.RpcError as error:
                raise self._parts.error(error) from error

        return retried(self._budget, once, timeout)


class RestTransport:
    """The HTTP API, column form, over one kept connection per thread."""

    def __init__(self, target: Target) -> None:
        address = target.address
        split = urlsplit(address if "://" in address else f"{'http' if target.tls is None else 'https'}://{address}")
        if split.scheme not in ("http", "https") or not split.hostname or split.path.strip("/"):
            raise ValueError(f"`address` must be HOST:PORT or http(s)://HOST:PORT. Received: address={address!r}")
        self._context = (target.tls or ClientTls()).context() if split.scheme == "https" else None
        self._host, self._port = split.hostname, split.port
        which = "" if target.version is None else f"/versions/{target.version}"
        which = which if target.label is None else f"/labels/{quote(target.label, safe='')}"
        self._path = f"/v1/models/{quote(target.model, safe='')}{which}"
        self._headers = {"Content-Type": "application/json"}
        if target.token is not None:
            self._headers["Authorization"] = f"Bearer {target.token}"
        self._target, self._budget = target, Budget(target.retry)
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[http.client.HTTPConnection] = []

    def signatures(self) -> dict[str, Signature]:
        return signatures_of_json(self._call("GET", f"{self._path}/metadata", None, self._target.timeout))

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float) -> Tensors:
        columns = {name: _json_values(values) for name, values in inputs.items()}
        body = json.dumps({"signature_name": signature.name, "inputs": columns}, separators=(",", ":"), allow_nan=False)
        outputs = self._call("POST", f"{self._path}:predict", body.encode(), timeout)["outputs"]
        # A single output comes back bare; its name stands in the metadata.
        named = outputs if isinstance(outputs, dict) else {next(iter(signature.outputs), ""): outputs}
        return {name: _array(values, signature, name) for name, values in named.items()}

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()

    def _call(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        return retried(self._budget, lambda left: self._ask(method, path, body, left), timeout)

    def _ask(self, method: str, path: str, body: bytes | None, left: float) -> Any:
        where = f"(REST {self._target.address})"
        try:
            status, headers, content = self._exchange(method, path, body, left)
        except TimeoutError as error:
            raise ServingError("DEADLINE_EXCEEDED", f"no reply within {left:.3g} s {where}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError("UNAVAILABLE", f"{error or type(error).__name__} {where}") from error
        try:
            reply = json.loads(content)
        except ValueError as error:
            raise ServingError("UNKNOWN", f"HTTP {status} with a body that is not JSON {where}") from error
        if status != 200:
            message = reply.get("error", "no message") if isinstance(reply, dict) else "no message"
            after = headers.get("Retry-After", "")
            # Whole seconds are all that the header can say; a first wait may be shorter.
            retry_after = float(after) if after.isdigit() and after != "1" else None
            raise ServingError(_CODES.get(status, "UNKNOWN"), f"{message} {where}", status, retry_after)
        return reply

    def _exchange(self, method: str, path: str, body: bytes | None, left: float) -> tuple[int, Any, bytes]:
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            try:
                return self._once(connection, method, path, body, left)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()  # the server let an idle connection go; scoring changes nothing, so ask again
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=left)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=left, context=self._context)
        with self._lock:
            self._all.append(connection)
        self._mine.connection = connection
        return self._once(connection, method, path, body, left)

    def _once(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, left: float
    ) -> tuple[int, Any, bytes]:
        try:
            connection.timeout = left
            if connection.sock is not None:
                connection.sock.settimeout(left)
            connection.request(method, path, body, {**self._headers, "X-Request-Timeout": f"{max(left, 0.001):.3f}"})
            response = connection.getresponse()
            content = response.read()
            if response.will_close:
                self._forget(connection)
            return response.status, response.headers, content
        except BaseException:
            self._forget(connection)
            raise

    def _forget(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._mine.connection = None
        with self._lock:
            if connection in self._all:
                self._all.remove(connection)


def _json_values(values: np.ndarray) -> Any:
    if values.dtype.kind != "O":
        return values.tolist()
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values.reshape(-1)]
    return np.array(texts, dtype=object).reshape(values.shape).tolist()


def _array(values: Any, signature: Signature, name: str) -> np.ndarray:
    spec = signature.outputs.get(name)
    return np.asarray(values, dtype=spec.dtype if spec is not None else np.float32)
