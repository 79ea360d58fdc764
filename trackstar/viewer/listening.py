"""A server on a socket, until it is told to end."""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from trackstar.errors import TrackStarError

AUTO = "auto"
PREFERRED_PORT = 8642
"""Tried first where no port is asked for, so that links to a view hold after a restart."""

_PATIENCE = 3  # Seconds for open answers at the end.


def bind(host: str, port: int | str = AUTO) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address of the interface.
        port: The port; 0 for any that is free; "auto" for `PREFERRED_PORT`, or any where that is taken.

    Raises:
        TrackStarError: no such interface, or the port is taken or not allowed.
    """
    if port != AUTO:
        return _bound(host, int(port))
    try:
        return _bound(host, PREFERRED_PORT)
    except _PortTakenError:
        return _bound(host, 0)


class _PortTakenError(TrackStarError):
    pass


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (socket.gaierror, UnicodeError) as error:
        raise TrackStarError(f"--host {host}: no such host ({error})") from error
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":  # A port is free again as soon as its server has ended.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _PortTakenError(f"port {port} of {host} is in use; choose another with --port") from error
        raise TrackStarError(f"cannot listen on {host}, port {port} ({error.strerror})") from error
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """The address to open in a browser on this machine."""
    name = "localhost" if is_any(host) else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"


def is_loopback(host: str) -> bool:
    """Whether an interface is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_any(host: str) -> bool:
    """Whether it stands for all interfaces."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """Calls back when it answers."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()


def serve(app: ASGIApp, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Answers until the process is told to end: Ctrl-C and SIGTERM are passed on once the open answers are sent.

    Args:
        app: What answers.
        listener: See `bind`; closed at the end.
        on_start: Called once requests are answered.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_PATIENCE,
    )
    try:
        _Server(config, on_start).run(sockets=[listener])
    finally:
        listener.close()
