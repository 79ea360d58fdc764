"""The HTTP server: uvicorn, with time limits for clients that are slow, on purpose or not, and an orderly end."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from trackstar.server.limits import Limits
from trackstar.server.service import Service

_KEEP_ALIVE_SECONDS = 15
_GRACE_SECONDS = 5
_HEADER_BYTES = 16 << 10


class _TimedProtocol(H11Protocol):
    """uvicorn's connection, which waits for ever for the rest of a request's head, and for a reader of its answer.

    The body's time limit is the application's (`trackstar.server.requests`), which can say so to the client.
    """

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock for the first request's head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stops the clock when a head is complete; starts it when another begins, or a body goes on that was answered already."""
        super().data_received(data)
        if self._has_request():
            self._forget_head()
        else:
            self._await_head()

    def on_response_complete(self) -> None:
        """Starts the clock where the next head has begun to come already."""
        super().on_response_complete()
        if not self._has_request() and self.conn.trailing_data[0]:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks."""
        super().connection_lost(exc)
        self._forget_head()
        self._forget_write()

    def pause_writing(self) -> None:
        """The client does not read: starts the clock."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self._abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._forget_write()

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.request_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._has_request():
            self._abort()

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _abort(self) -> None:
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server, which ends the service before it waits for the last answers.

    Args:
        config: uvicorn's.
        service: Ended when the server is told to end.
        on_start: Called once requests are answered.
    """

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]):
        super().__init__(config)
        self._service = service
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends traces and streams, then connections."""
        self._service.stop()
        await super().shutdown(sockets)


def make_server(app: ASGIApp, service: Service, on_start: Callable[[], None]) -> Server:
    """A server of `app` within the service's limits."""

    class Protocol(_TimedProtocol):
        """Connections with this server's limits."""

        limits = service.limits

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=service.limits.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return Server(config, service, on_start)


def serve(app: ASGIApp, service: Service, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Answers until Ctrl-C or SIGTERM, which then take their course; what runs is cancelled first.

    Args:
        app: What answers.
        service: What does the work; started and ended here.
        listener: See `trackstar.viewer.listening.bind`; closed at the end.
        on_start: Called once requests are answered.
    """
    service.start()
    try:
        make_server(app, service, on_start).run(sockets=[listener])
    finally:
        listener.close()
        service.stop()
        service.join(_GRACE_SECONDS)
