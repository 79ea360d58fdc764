"""What holds in all tests: one thread a process, no network, time-outs."""

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

# Before anything imports torch or a Hugging Face library; worker processes inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_GCE_CHECK="true",  # Without it google-auth looks for a metadata server first, for seconds.
)

# A job in the background of a shell ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # A Unix socket.
    if address[0] in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Lets Python's own sockets connect to this machine only: a test that needs the network fails and says so."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if not _is_local(address):
                raise OSError(f"tests may not use the network: {address}")
            return original(self, address)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        yield
