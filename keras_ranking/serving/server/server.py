"""`serve`: the embedded server, with the REST and gRPC protocol of TensorFlow Serving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from keras_ranking.configuration import gather_named
from keras_ranking.serving.protocol.forks import renew_after_fork
from keras_ranking.serving.server.grpc_api import GrpcListener
from keras_ranking.serving.server.limits import Limits, Stopping
from keras_ranking.serving.server.rest_listener import RestListener
from keras_ranking.serving.server.security import Access, Tls
from keras_ranking.serving.server.service import Service
from keras_ranking.serving.server.versions import Versions

log = logging.getLogger("keras_ranking.serving")


class Server:
    """A running server, made by `serve`. As a context manager it stops at the end of the block.

    It runs in the process that made it. In a forked process `stop` and `wait` do nothing, and the REST port is closed.

    Attributes:
        name: of the model, as in the paths.
        host: address of the server.
        rest_port, grpc_port: the ports in use, also if 0 was given.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> with kr.serving.serve("saved_models/feed", rest_port=0, grpc_port=0) as server:
        ...     server.name, server.version
        ('feed', 1)
    """

    def __init__(
        self, service: Service, host: str, rest_port: int, grpc_port: int, drain_seconds: float, notice_seconds: float = 0.0
    ) -> None:
        self.name = service.name
        self.host = host
        self.rest_port = rest_port
        self.grpc_port = grpc_port
        self._service = service
        self._drain_seconds, self._notice_seconds = drain_seconds, notice_seconds
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._stopped = threading.Event()
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="keras_ranking-server", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._thread.join()
            service.close()
            raise

    @property
    def version(self) -> int:
        """The version that scores calls without a version."""
        return self._service.versions.latest

    def stop(self) -> None:
        """Report not ready for `notice_seconds`, then accept no new calls, finish calls in progress (for at most `drain_seconds`) and
        unload the model. Safe to call twice.
        """
        if os.getpid() != self._process:
            return
        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed in the meantime
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if not self._stopped.is_set():
            self._stopped.set()
            self._service.close()

    def wait(self) -> None:
        """Block until the server is stopped, or until SIGINT or SIGTERM (only in the main thread), and stop it."""
        if os.getpid() != self._process:
            return
        signalled = threading.Event()
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, lambda *_: signalled.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not signalled.wait(0.2) and self._thread.is_alive():
                pass
            self.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.name} version {self.version} rest {self.host}:{self.rest_port} grpc {self.host}:{self.grpc_port}>"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                log.exception("the server stopped")
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        tls = self._service.access.tls
        rest, grpc = RestListener(self._service, self._drain_seconds), GrpcListener(self._service)
        try:
            context = tls.context() if tls is not None else None
            self.rest_port = await _bound(lambda: rest.start(self.host, self.rest_port, context), "REST", self.host, self.rest_port)
            self.grpc_port = await _bound(lambda: _grpc_port(grpc, tls, self.host, self.grpc_port), "gRPC", self.host, self.grpc_port)
            await grpc.start()
            log.info("serving %s: REST %s:%d, gRPC %s:%d", self.name, self.host, self.rest_port, self.host, self.grpc_port)
            renew_after_fork(rest)
            self._started.set_result(None)
            await self._stopping.wait()
            self._service.draining = True
            log.info("stopping %s", self.name)
            await grpc.notice()
            await asyncio.sleep(self._notice_seconds)
        finally:
            await asyncio.gather(grpc.stop(self._drain_seconds), rest.stop())


async def _bound(bind: Callable[[], Any], protocol: str, host: str, port: int) -> Any:
    try:
        return await bind()
    except (OSError, RuntimeError) as error:
        raise OSError(f"the {protocol} server cannot listen on {host}:{port}; is the port taken? ({error})") from error


async def _grpc_port(listener: GrpcListener, tls: Tls | None, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host.strip("[]") else f"{host}:{port}"
    taken = int(listener.server.add_insecure_port(address) if tls is None else listener.server.add_secure_port(address, tls.credentials()))
    if taken == 0:
        raise OSError("the address was refused")
    return taken


def serve(
    folder: str | Path,
    name: str | None = None,
    host: str = "127.0.0.1",
    rest_port: int = 8501,
    grpc_port: int = 8500,
    *,
    labels: Mapping[str, int] | None = None,
    poll_seconds: float = 1.0,
    threads: int = 0,
    limits: Limits | None = None,
    access: Access | None = None,
    stopping: Stopping | None = None,
    **options: Any,
) -> Server:
    """Serve the highest version under `folder`, and each new version when it appears.

    The server runs the graph on disk, not a Python model. A new version is loaded and tested while the old one serves, and then
    replaces it between two calls. If it is broken, the old one continues, and the error is in the log and in the model's status.
    Calls that arrive while the model runs are concatenated into one batch, also if their lengths differ.

    In addition to TensorFlow Serving's paths there are `/healthz` (the process runs), `/readyz` (it accepts calls), the gRPC service
    `grpc.health.v1.Health`, and `/monitoring/prometheus/metrics`, which is always on. A call may have a deadline: that of gRPC, or
    the header `X-Request-Timeout` in REST. A call after its deadline is dropped before the model runs it.

    Log lines go to the logger `keras_ranking.serving`; `keras_ranking.serving.calls` gets one INFO line per call.

    Args:
        folder: a served model with integer-named versions, as `export` writes it.
        name: of the model in paths and messages; None: the folder's name.
        host: address to listen on; the default is this machine only.
        rest_port, grpc_port: 0 = any free port; see `Server.rest_port`.
        labels: label -> version, kept loaded in addition to the highest, for `/labels/NAME:predict`.
        poll_seconds: seconds between two looks for new versions.
        threads: TensorFlow threads; 0 = one per core.
        limits: limits of requests and load; see `Limits`.
        access: token, TLS, the rule for addresses that other machines can reach, and the log of requests; see `Access`.
        stopping: how `stop` treats calls in progress; see `Stopping`.
        options: fields of `Access` and `Stopping` one by one: `token=...` is `access=Access(token=...)`.

    Returns:
        The running `Server`; stop it by `stop()`, or use it in a `with` block.

    Raises:
        FileNotFoundError: no folder, or no version in it.
        RuntimeError: no version that can be served.
        ValueError: a label for a missing version; a setting out of range; an address that other machines can reach, without a token,
            client certificates or `insecure`.
        TypeError: an unknown option, or one that is given twice.
        OSError: a port that is in use.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> with kr.serving.serve("saved_models/feed", rest_port=0, grpc_port=0) as server:
        ...     with kr.serving.Client(f"127.0.0.1:{server.rest_port}", schema, model="feed", protocol="rest") as client:
        ...         scores = client.score_frame(log.events.head(30))
        >>> scores.shape
        (30, 2)
    """
    folder = Path(folder)
    limits = limits or Limits()
    access, stopping = gather_named(serve, {"access": (Access, access), "stopping": (Stopping, stopping)}, options)
    if not poll_seconds > 0:
        raise ValueError(f"`poll_seconds` must be positive. Received: poll_seconds={poll_seconds}")
    if threads < 0:
        raise ValueError(f"`threads` must be 0 or a number of threads. Received: threads={threads}")
    model = name if name is not None else folder.resolve().name
    if not model or set(model) & set("/:"):
        raise ValueError(f"`name` must be usable in a path, without '/' and ':'. Received: name={model!r}")

    access.check_host(host)

    def open_versions(on_batch: Callable[[int], None]) -> Versions:
        return Versions(folder, limits, labels, poll_seconds, threads, on_batch)

    service = Service(model, limits, access, open_versions)
    return Server(service, host, rest_port, grpc_port, stopping.drain_seconds, stopping.notice_seconds)
