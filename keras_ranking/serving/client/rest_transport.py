"""The REST transport of the clients. Needs numpy and the standard library."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from keras_ranking.serving.client.grpc_transport import ClientTls, Target, Tensors, retried
from keras_ranking.serving.client.retry import Budget
from keras_ranking.serving.protocol.dtypes import signatures_of_json
from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.forks import renew_after_fork
from keras_ranking.serving.protocol.logged_requests import ID_HEADER
from keras_ranking.serving.protocol.signature import Signature

_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED"}
_CODES |= {413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"}
_CODES |= {504: "DEADLINE_EXCEEDED"}


class RestTransport:
    """Column form of the HTTP API, over one open connection per thread. A forked process opens its own."""

    def __init__(self, target: Target) -> None:
        address = target.address
        split = urlsplit(address if "://" in address else f"{'http' if target.tls is None else 'https'}://{address}")
        if split.scheme not in ("http", "https") or not split.hostname or split.path.strip("/"):
            raise ValueError(f"`address` must be HOST:PORT or http(s)://HOST:PORT. Received: address={address!r}")
        self._context = (target.tls or ClientTls()).context() if split.scheme == "https" else None
        self._host, self._port = split.hostname, split.port
        which = "" if target.version is None else f"/versions/{target.version}"
        which = which if target.label is None else f"/labels/{quote(target.label, safe='')}"
        self._model = f"/v1/models/{quote(target.model, safe='')}"
        self._path = f"{self._model}{which}"
        self._headers = {"Content-Type": "application/json"}
        if target.token is not None:
            self._headers["Authorization"] = f"Bearer {target.token}"
        self._target, self._budget = target, Budget(target.retry)
        self._all: list[http.client.HTTPConnection] = []
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Connections and a lock of this process: on a shared connection a process could read the reply to another one's request."""
        inherited, self._all = self._all, []
        for connection in inherited:
            # The descriptor of this process alone. `close` may wait for a lock of a thread that reads in the parent.
            with contextlib.suppress(OSError):
                if connection.sock is not None:
                    os.close(connection.sock.detach())
        self._local = threading.local()
        self._lock = threading.Lock()

    def signatures(self) -> dict[str, Signature]:
        return signatures_of_json(self._call("GET", f"{self._path}/metadata", None, self._target.timeout))

    def predict(self, signature: Signature, inputs: Mapping[str, np.ndarray], timeout: float, ids: str = "") -> Tensors:
        columns = {name: _json_values(values) for name, values in inputs.items()}
        body = json.dumps({"signature_name": signature.name, "inputs": columns}, separators=(",", ":"))
        outputs = self._call("POST", f"{self._path}:predict", body.encode(), timeout, ids)["outputs"]
        # A single output comes without a name; the metadata has the name.
        named = outputs if isinstance(outputs, dict) else {next(iter(signature.outputs), ""): outputs}
        return {name: _array(values, signature, name) for name, values in named.items()}

    def versions(self) -> dict[int, tuple[str, str]]:
        reply = self._call("GET", self._model, None, self._target.timeout)
        return {
            int(entry["version"]): (entry["state"], (entry.get("status") or {}).get("error_message", ""))
            for entry in reply.get("model_version_status", [])
        }

    def version_of(self, label: str) -> int:
        reply = self._call("GET", f"{self._model}/labels/{quote(label, safe='')}/metadata", None, self._target.timeout)
        return int(reply["model_spec"]["version"])

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()

    def _call(self, method: str, path: str, body: bytes | None, timeout: float, ids: str = "") -> Any:
        return retried(self._budget, lambda left: self._send(method, path, body, left, ids), timeout)

    def _send(self, method: str, path: str, body: bytes | None, left: float, ids: str) -> Any:
        where = f"(REST {self._target.address})"
        try:
            status, headers, content = self._exchange(method, path, body, left, ids)
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
            # The header has whole seconds; the first wait may be shorter.
            retry_after = float(after) if after.isdigit() and after != "1" else None
            raise ServingError(_CODES.get(status, "UNKNOWN"), f"{message} {where}", status, retry_after)
        return reply

    def _exchange(self, method: str, path: str, body: bytes | None, left: float, ids: str) -> tuple[int, Any, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._once(connection, method, path, body, left, ids)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()  # the server closed an idle connection; scoring has no side effects, so the call is repeated
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=left)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=left, context=self._context)
        with self._lock:
            self._all.append(connection)
        self._local.connection = connection
        return self._once(connection, method, path, body, left, ids)

    def _once(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, left: float, ids: str
    ) -> tuple[int, Any, bytes]:
        try:
            connection.timeout = left
            if connection.sock is not None:
                connection.sock.settimeout(left)
            named = {ID_HEADER: ids} if ids else {}
            connection.request(method, path, body, {**self._headers, **named, "X-Request-Timeout": f"{max(left, 0.001):.3f}"})
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
        self._local.connection = None
        with self._lock:
            if connection in self._all:
                self._all.remove(connection)


def _json_values(values: np.ndarray) -> Any:
    if values.dtype.kind not in "OSU":
        return values.tolist()
    texts = np.empty(values.size, dtype=object)
    texts[:] = [_json_text(value) for value in values.reshape(-1)]
    return texts.reshape(values.shape).tolist()


def _json_text(value: Any) -> Any:
    """Text as a string; bytes that are not UTF-8 in the base-64 form of TensorFlow Serving."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _array(values: Any, signature: Signature, name: str) -> np.ndarray:
    spec = signature.outputs.get(name)
    return np.asarray(values, dtype=spec.dtype if spec is not None else np.float32)
