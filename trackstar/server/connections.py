"""The HTTP server: uvicorn, within the service's limits, and an orderly end."""

import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from trackstar.server.service import Service
from trackstar.viewer.connections import ConnectionLimits, config_of

_GRACE_SECONDS = 5


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

    limits = service.limits
    connections = ConnectionLimits(limits.max_connections, limits.request_seconds, limits.write_seconds)
    return Server(config_of(app, connections, _GRACE_SECONDS), service, on_start)


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
