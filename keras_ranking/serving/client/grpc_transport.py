"""The gRPC transport of the clients, and what both transports share. Connections are kept open; TensorFlow is not imported."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_ranking.serving.client.retry import Budget, Retry
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.logged_requests import ID_HEADER
from keras_ranking.serving.protocol.missing_extra import missing_extra
from keras_ranking.serving.protocol.signature import Signature

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class ClientTls:
    """TLS settings of a client.

    Args:
        ca: PEM file of the authority that signed the server's certificate; None: the authorities of the system.
        certificate, key: PEM files, if the server requires a client certificate.

    Example:
        >>> tls = kr.serving.ClientTls(ca="authority.pem", certificate="client.pem", key="client.key")
        >>> tls.ca
        'authority.pem'
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """The SSL context for HTTPS."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def credentials(self, grpc: Any) -> Any:
        """The channel credentials for gRPC."""
        files = [Path(path).read_bytes() if path is not None else None for path in (self.ca, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*files)


@dataclass(frozen=True)
class Target:
    """The server of a client and the settings of its calls.

    Args:
        address: HOST:PORT, for REST also http(s)://HOST:PORT.
        model: name on the server.
        version, label: version of the model, at most one of them; None: the server's default.
        timeout: seconds of a call with all its attempts.
        token: sent as `Authorization: Bearer TOKEN`.
        tls: None: without TLS.
        retry: rules for repeating a call.
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
    """Interface of a transport."""

    def signatures(self) -> dict[str, Signature]:
        """The signatures of the model, from the server's metadata."""

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float, ids: str = "") -> Tensors:
        """Outputs of a signature; `ids` of the requests are sent along."""

    def versions(self) -> dict[int, tuple[str, str]]:
        """Version -> state and message."""

    def version_of(self, label: str) -> int:
        """The version of a label."""

    def close(self) -> None:
        """Close the connections."""


def retried(budget: Budget, once: Callable[[float], Any], timeout: float) -> Any:
    """Call `once(seconds left)` until it succeeds, the error is final or the time is over."""
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
    """Shared by the blocking and the async transport: the package, the channel's arguments, messages and errors."""

    def __init__(self, target: Target) -> None:
        try:
            import grpc

            from keras_ranking.serving.protocol import codec, protos
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_extra("a client with protocol='grpc'", error, "client"), name=error.name) from error
        self.grpc, self.codec, self.protos, self.target = grpc, codec, protos, target
        self.metadata = (("authorization", f"Bearer {target.token}"),) if target.token is not None else None
        self.closed = False

    def channel(self, package: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        options = [
            # The size of replies follows from the request; gRPC's bound of 4 MB is switched off.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Reconnect to a restarted server within the retries of a call, not after two minutes.
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

    def status(self, channel: Any) -> Any:
        """GetModelStatus of a channel."""
        serializer = self.protos.GetModelStatusRequest.SerializeToString
        return channel.unary_unary(self.protos.STATUS, serializer, self.protos.GetModelStatusResponse.FromString)

    def predict_request(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> Any:
        target = self.target
        return self.codec.predict_request(target.model, signature.name, inputs, target.version, target.label)

    def with_ids(self, ids: str) -> Any:
        """Metadata of a call, with the ids of its requests."""
        return (*(self.metadata or ()), (ID_HEADER.lower(), ids)) if ids else self.metadata

    def metadata_request(self) -> Any:
        return self.codec.metadata_request(self.target.model, self.target.version, self.target.label)

    def status_request(self) -> Any:
        request = self.protos.GetModelStatusRequest()
        request.model_spec.name = self.target.model
        return request

    def error(self, error: Any) -> ServingError:
        """A `grpc.RpcError` as `ServingError`."""
        code, details = error.code().name, error.details() or ""
        if code == "CANCELLED" and not self.closed:
            code = "UNAVAILABLE"  # not cancelled by this client: the server was stopping
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

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float, ids: str = "") -> Tensors:
        response = self._call(self._predict, self._parts.predict_request(signature, inputs), timeout, self._parts.with_ids(ids))
        outputs: Tensors = self._parts.codec.read_tensors(response.outputs)
        return outputs

    def versions(self) -> dict[int, tuple[str, str]]:
        response = self._call(self._parts.status(self._channel), self._parts.status_request(), self._parts.target.timeout)
        names = {number: name for name, number in self._parts.protos.STATES.items()}
        return {entry.version: (names.get(entry.state, "UNKNOWN"), entry.status.error_message) for entry in response.model_version_status}

    def version_of(self, label: str) -> int:
        target = self._parts.target
        response = self._call(self._metadata, self._parts.codec.metadata_request(target.model, label=label), target.timeout)
        return int(response.model_spec.version.value)

    def close(self) -> None:
        self._parts.closed = True
        self._channel.close()

    def _call(self, method: Any, request: Any, timeout: float, metadata: Any = None) -> Any:
        def once(left: float) -> Any:
            try:
                return method(request, timeout=left, metadata=metadata or self._parts.metadata)
            except self._parts.grpc.RpcError as error:
                raise self._parts.error(error) from error

        return retried(self._budget, once, timeout)
