"""Clients of the view server that are slow, many, or gone; the connections themselves: tests/server/test_connections.py."""

import concurrent.futures
import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.viewer import made
from tests.viewer.conftest import served
from trackstar.viewer.connections import ConnectionLimits
from trackstar.viewer.rows import open_run

HEAD = b"POST /api/v1/results/0/lines HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server that waits a second for its clients, and has room for ten."""
    run = open_run("run", made.write(tmp_path / "r.jsonl", made.lines(40)), searches_passages=True)
    with served([run], ConnectionLimits(count=10, request_seconds=1, write_seconds=1)) as address:
        yield address
    run.close()


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=20)


def said_until_closed(connection: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            said += piece
    return said


def asked(url: str, path: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=20) as answer:
        return answer.read()


def recovers(url: str) -> None:
    """The server answers again, as soon as it has noticed who has gone."""
    deadline = time.monotonic() + 15
    while True:
        try:
            assert json.loads(asked(url, "api/v1/info"))["live"] is False
            return
        except urllib.error.HTTPError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("head", [b"", b"GET / HT", HEAD[:-2]])
def test_half_a_head(url: str, head: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(head)
        started = time.monotonic()
        assert said_until_closed(connection) == b""
        assert 0.5 < time.monotonic() - started < 10
    assert json.loads(asked(url, "api/v1/info"))["live"] is False


def test_half_a_body(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(HEAD + b'{"numbers": [')
        said = said_until_closed(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"the request did not arrive in 1 s" in said


def test_clients_that_go_away(url: str) -> None:
    for _ in range(20):
        with connected(url) as connection:
            connection.sendall(HEAD + b'{"n')
    recovers(url)


def test_too_many_connections(url: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connected(url))
        time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            asked(url, "api/v1/info")
        recovers(url)  # those that say nothing are closed


def test_many_at_once(url: str) -> None:
    def use(number: int) -> tuple[bytes, bytes]:
        body = json.dumps({"words": [f"passage {number} "]}).encode()
        return asked(url, f"api/v1/results/0/{number}"), asked(url, "api/v1/results/0/search", body)

    alone = [use(number) for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(40))) == alone
