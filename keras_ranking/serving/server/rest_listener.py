"""The REST listener: an aiohttp application with limits on connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from typing import Any

from aiohttp import web

from keras_ranking.serving.server import rest_api
from keras_ranking.serving.server.service import Service

_USER_TIMEOUT = 18  # TCP_USER_TIMEOUT of Linux; Python names it from 3.6 on Linux only


class RestListener:
    """Listens, and closes connections that send nothing or half a head, or do not read their reply.

    Args:
        service: the served model.
        drain_seconds: longest time that `stop` waits for calls in progress.
    """

    def __init__(self, service: Service, drain_seconds: float) -> None:
        self._service, self._limits, self._drain_seconds = service, service.limits, drain_seconds
        self._busy = 0
        self._silent: dict[Any, asyncio.TimerHandle] = {}
        application = rest_api.application(service)
        application.middlewares.insert(0, self._track_calls())
        self._runner = web.AppRunner(
            application, access_log=None, keepalive_timeout=service.limits.idle_seconds, shutdown_timeout=drain_seconds
        )
        self._socket: asyncio.Server | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is in use.
        """
        await self._runner.setup()
        handshake = self._limits.read_seconds if tls is not None else None
        self._socket = await asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=tls, reuse_address=True, backlog=1024, ssl_handshake_timeout=handshake
        )
        for listening in self._socket.sockets:
            # Accepted sockets inherit the option: the kernel closes a connection whose client reads nothing for this time.
            with contextlib.suppress(OSError):
                listening.setsockopt(6, _USER_TIMEOUT, int(self._limits.read_seconds * 1000))
        return int(self._socket.sockets[0].getsockname()[1])

    def after_fork(self) -> None:
        """Close the port and the connections in this process: they would stay open when the server has stopped."""
        server = self._runner.server
        transports = [handler.transport for handler in server.connections] if server is not None else []
        found = [transport.get_extra_info("socket") for transport in transports if transport is not None]
        nothing = os.open(os.devnull, os.O_RDWR)
        for inherited in [*(self._socket.sockets if self._socket is not None else ()), *found]:
            if inherited is not None and inherited.fileno() >= 0:
                os.dup2(nothing, inherited.fileno(), inheritable=False)  # not `close`: the number would be used again
        os.close(nothing)

    async def stop(self) -> None:
        """Accept no new connections, finish calls in progress."""
        self._service.closing = True
        if self._socket is not None:
            self._socket.close()
            await asyncio.sleep(0.02)  # connections accepted just now are made in the next iterations of the loop
        end = asyncio.get_running_loop().time() + self._drain_seconds
        while self._busy and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        # After this, aiohttp discards all further bytes, also the rest of a body: no call may be in progress.
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or self._service.closing:
            return _Refusal("the server is shutting down")
        if len(server.connections) >= self._limits.connections:
            return _Refusal(f"{self._limits.connections} connections are open, which is the limit; try again later")
        handler = server()
        self._silent[handler] = asyncio.get_running_loop().call_later(self._limits.read_seconds, self._close_silent, handler)
        return handler

    def _close_silent(self, handler: Any) -> None:
        self._silent.pop(handler, None)
        if handler.transport is not None:
            handler.transport.abort()

    def _track_calls(self) -> Any:
        """Middleware that counts calls in progress, and stops the timer of a connection whose first head has arrived. aiohttp's
        keep-alive timeout bounds later heads.
        """

        @web.middleware
        async def track(request: web.Request, handler: Any) -> Any:
            timer = self._silent.pop(request.protocol, None)
            if timer is not None:
                timer.cancel()
            self._busy += 1
            try:
                response = await handler(request)
            finally:
                self._busy -= 1
            if self._service.closing:
                response.force_close()
            return response

        return track


class _Refusal(asyncio.Protocol):
    """A connection that gets a 503 reply and is closed."""

    def __init__(self, message: str) -> None:
        self._message = message

    def connection_made(self, transport: Any) -> None:
        body = f'{{"error":"{self._message}"}}'
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        transport.close()
