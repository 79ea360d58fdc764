"""Connections of a server: uvicorn's, with limits for clients that are many, or slow, on purpose or not."""

import asyncio
import dataclasses
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_KEEP_ALIVE_SECONDS = 15
_HEADER_BYTES = 16 << 10


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """How many connections, and how long they may take.

    Args:
        count: At the same time; what comes beyond is answered 503.
        request_seconds: In which a request has to arrive whole.
        write_seconds: For which a client may read nothing of its answer.
    """

    count: int = 256
    request_seconds: int = 15
    write_seconds: int = 30


def config_of(app: ASGIApp, limits: ConnectionLimits, grace_seconds: int) -> uvicorn.Config:
    """uvicorn's settings for an application.

    Args:
        app: What answers.
        limits: Of its connections.
        grace_seconds: For open answers at the end.
    """

    class Protocol(_TimedProtocol):
        """Connections with these limits."""

    Protocol.limits = limits
    return uvicorn.Config(
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
        limit_concurrency=limits.count,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


class _TimedProtocol(H11Protocol):
    """uvicorn's connection, which waits for ever for the rest of a request's head, and for a reader of its answer.

    The body's time limit is the application's, which can say so to the client.
    """

    limits = ConnectionLimits()

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
