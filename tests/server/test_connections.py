"""Connections that are slow, broken or too many; the end of the server; memory."""

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from pathlib import Path

import pytest

from tests.end_to_end.world import World
from tests.server.running import QUERY, Gated, Running, running, wait_for
from trackstar.tracing import Tracer

HEAD = (
    b"POST /api/v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
)


def closed_after(connection: socket.socket) -> tuple[float, bytes]:
    """Seconds until the server has closed a connection, and what it said before."""
    started, said = time.monotonic(), b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return time.monotonic() - started, said


def num_connections(server: Running) -> int:
    return len(server.server.server_state.connections)


def test_half_a_body(tracer: Tracer) -> None:
    with running(tracer, request_seconds=1) as server, server.open() as connection:
        connection.sendall(HEAD + b'{"prompt": "x')
        seconds, said = closed_after(connection)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"too_slow"' in said
        assert 0.5 < seconds < 5
        assert server.get("/healthz")


def test_a_body_in_drops(tracer: Tracer) -> None:
    with running(tracer, request_seconds=1) as server, server.open() as connection:
        connection.sendall(HEAD)
        with contextlib.suppress(OSError):
            for _ in range(30):
                connection.sendall(b" ")
                time.sleep(0.1)
        assert closed_after(connection)[0] < 5
        wait_for(lambda: num_connections(server), lambda count: count == 0)


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "])
def test_half_a_head(tracer: Tracer, head: bytes) -> None:
    with running(tracer, request_seconds=1) as server, server.open() as connection:
        connection.sendall(head)
        seconds, said = closed_after(connection)
        assert said == b""
        assert 0.5 < seconds < 5
        with server.open() as second:  # one whole request does not buy time for half of another
            second.sendall(b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + (head or b"G"))
            seconds, said = closed_after(second)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert seconds < 5


def test_clients_that_go_away(tracer: Tracer) -> None:
    with running(tracer) as server:
        for length in (5, len(HEAD), len(HEAD) + 3):
            for _ in range(5):
                with server.open() as connection:
                    connection.sendall((HEAD + b'{"p')[:length])
        with server.open() as connection:  # with a reset, and not a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.sendall(HEAD)
        wait_for(lambda: num_connections(server), lambda count: count == 0)
        assert server.get("/traces")["traces"] == []


def test_too_many_connections(tracer: Tracer) -> None:
    with running(tracer, max_connections=5, request_seconds=2) as server, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(server.open())
        wait_for(lambda: num_connections(server), lambda count: count >= 8)
        assert server.call("GET", "/api/v1/healthz").status == 503
        wait_for(lambda: num_connections(server), lambda count: count == 0)  # those that say nothing are closed
        assert server.get("/healthz")


def test_a_client_that_does_not_read(tracer: Tracer) -> None:
    with running(tracer, write_seconds=1) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        request = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        wait_for(lambda: num_connections(server), lambda count: count == 1)
        connection.setblocking(False)
        deadline = time.monotonic() + 20
        while num_connections(server):
            assert time.monotonic() < deadline
            if select.select([], [connection], [], 0.05)[1]:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    connection.send(request * 100)
            time.sleep(0.01)
        assert server.get("/healthz")


def test_followers_that_go_away_make_room(gated: Gated) -> None:
    with running(gated, max_streams=2) as server:
        trace_id = server.ask()
        with server.events(trace_id) as first, server.events(trace_id) as second:
            assert next(first)[0] == next(second)[0] == "progress"
            refused = server.call("GET", f"/api/v1/traces/{trace_id}/events")
            assert (refused.status, refused.error["code"]) == (503, "busy")
            assert int(refused.headers["retry-after"]) >= 1

        def follow() -> str:
            answer = server.open()
            with answer:
                answer.sendall(f"GET /api/v1/traces/{trace_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                return answer.recv(65536).split(b"\r\n")[0].decode()

        wait_for(follow, lambda line: " 200 " in line)


def test_the_end_cancels_what_runs(gated: Gated) -> None:
    with running(gated) as server:
        ids = [server.ask(), server.ask()]
        server.state(ids[0], "running")
        with server.events(ids[0]) as events:
            assert next(events)[0] == "progress"
            started = time.monotonic()
            server.server.should_exit = True
            last = list(events)[-1]
            assert last[0] in ("progress", "end")
            server.thread.join(20)
        assert not server.thread.is_alive()
        assert time.monotonic() - started < 8
        server.service.join(5)
        assert [server.service.jobs.get(trace_id).state for trace_id in ids] == ["cancelled", "cancelled"]


def test_memory_is_bounded(tracer: Tracer) -> None:
    """Two hundred requests take no more memory than forty."""
    with running(tracer, max_history=10) as server:

        def use(count: int) -> int:
            for number in range(count):
                trace_id = server.ask(target=f" Paris {number}", top_k=50, opponents=True)
                if number % 10 == 0:
                    with server.events(trace_id) as events:
                        assert list(events)[-1][1]["state"] == "done"
                assert server.ended(trace_id)["state"] == "done"
                for _ in range(2):
                    assert server.call("POST", "/api/v1/traces", raw=b"nonsense").status == 400
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = use(10)
            after = use(50)
        finally:
            tracemalloc.stop()
        assert after - before < 500_000
        assert len(server.get("/traces")["traces"]) == 10


def ask_process(url: str) -> str:
    body = b'{"prompt": "The capital of France is", "target": " Paris", "top_k": 5}'
    assert QUERY["prompt"].encode() in body
    request = urllib.request.Request(f"{url}api/v1/traces", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 202
        return str(answer.headers["Location"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_serves_until_a_signal(world: World, built: Path, number: int, code: int) -> None:
    words = ["serve", "--index", str(built), "--model", str(world.model), "--port", "0", "--threads", "1"]
    program = [sys.executable, "-m", "pipelines", *words]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert url.startswith("http://127.0.0.1:"), process.communicate(timeout=30)
        where = ask_process(url)
        with urllib.request.urlopen(url.rstrip("/") + where + "/events", timeout=30) as events:
            assert b'"state":"done"' in events.read()
        started = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        assert time.monotonic() - started < 10
        assert "Traceback" not in errors
        assert "Ctrl-C ends the server" in errors
    finally:
        process.kill()
        process.wait()
