"""The REST door: an aiohttp application behind bounds on its connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from aiohttp import web

from keras_ranking.serving import rest
from keras_ranking.serving.service import Service

_USER_TIMEOUT = 18  # TCP_USER_TIMEOUT of Linux; Python names it from 3.6 on Linux only


class RestDoor:
    """Listens, and lets go of connections that ask for nothing, send half a head or do not take their reply.

    Args:
        service: what is behind the door.
        drain_seconds: how long `stop` waits for calls under way.
    """

    def __init__(self, service: Service, drain_seconds: float) -> None:
        self._limits = service.limits
        self._silent: dict[Any, asyncio.TimerHandle] = {}
        application = rest.application(service)
        application.middlewares.insert(0, self._heard())
        self._runner = web.AppRunner(
            application, access_log=None, keepalive_timeout=service.limits.idle_seconds, shutdown_timeout=drain_seconds
        )
        self._socket: asyncio.Server | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; the port that was taken.

        Raises:
            OSError: the port is in use.
        """
        await self._runner.setup()
        handshake = self._limits.read_seconds if tls is not None else None
        self._socket = await asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=tls, reuse_address=True, backlog=1024, ssl_handshake_timeout=handshake
        )
        for listening in self._socket.sockets:
            # Accepted sockets inherit it: one whose peer takes nothing for so long is closed by the kernel.
            with contextlib.suppress(OSError):
                listening.setsockopt(6, _USER_TIMEOUT, int(self._limits.read_seconds * 1000))
        return int(self._socket.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no new connections, answer what is under way."""
        if self._socket is not None:
            self._socket.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._limits.connections:
            return _Full(self._limits.connections)
        handler = server()
        self._silent[handler] = asyncio.get_running_loop().call_later(self._limits.read_seconds, self._let_go, handler)
        return handler

    def _let_go(self, handler: Any) -> None:
        self._silent.pop(handler, None)
        if handler.transport is not None:
            handler.transport.abort()

    def _heard(self) -> Any:
        """Marks a connection whose first head has arrived; later ones are bounded by aiohttp's keep-alive timeout."""

        @web.middleware
        async def mark(request: web.Request, handler: Any) -> Any:
            timer = self._silent.pop(request.protocol, None)
            if timer is not None:
                timer.cancel()
            return await handler(request)

        return mark


class _Full(asyncio.Protocol):
    """One connection too many: told so and closed."""

    def __init__(self, most: int) -> None:
        self._most = most

    def connection_made(self, transport: Any) -> None:
        body = f'{{"error":"{self._most} connections are open already, which is the limit; try again later"}}'
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        transport.close()
