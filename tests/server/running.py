"""A real server on a loopback port, in a thread; a client that sends what it is told to; a tracer that waits for the test."""

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from trackstar.server import connections
from trackstar.server.app import make_app
from trackstar.server.guard import Access
from trackstar.server.limits import Limits
from trackstar.server.service import Service
from trackstar.trace import TraceProgress
from trackstar.viewer import listening

SECONDS = 30.0
QUERY = {"prompt": "The capital of France is", "target": " Paris", "top_k": 5}
ENDED = ("done", "failed", "cancelled")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", (self.status, self.body[:200])
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        """The error, which has to be one as clients are promised it."""
        (found,) = [self.json["error"]]
        assert set(self.json) == {"error"}
        assert set(found) == {"code", "message", "hint"}
        assert found["code"]
        assert found["message"]
        assert "Traceback" not in self.body.decode()
        return found


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that runs."""

    port: int
    service: Service
    server: uvicorn.Server
    thread: threading.Thread

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> Answer:
        """One request on a connection of its own; `body` as JSON, or `raw` bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        given = json.dumps(body).encode() if body is not None else raw
        sent = {"Content-Type": "application/json"} if given is not None else {}
        with contextlib.closing(connection):
            connection.request(method, path, given, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str) -> Any:
        answer = self.call("GET", "/api/v1" + path)
        assert answer.status == 200, answer.body
        return answer.json

    def ask(self, **fields: Any) -> str:
        """Asks for a trace; its id."""
        answer = self.call("POST", "/api/v1/traces", {**QUERY, **fields})
        assert answer.status == 202, answer.body
        assert answer.headers["location"] == f"/api/v1/traces/{answer.json['id']}"
        return str(answer.json["id"])

    def ended(self, trace_id: str) -> dict[str, Any]:
        """The trace, as soon as it has ended."""
        return wait_for(lambda: self.get(f"/traces/{trace_id}"), lambda trace: trace["state"] in ENDED)

    def state(self, trace_id: str, *states: str) -> dict[str, Any]:
        """The trace, as soon as it is in one of these states."""
        return wait_for(lambda: self.get(f"/traces/{trace_id}"), lambda trace: trace["state"] in states)

    def open(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    @contextlib.contextmanager
    def events(self, trace_id: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """The trace's events as (name, data), as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", f"/api/v1/traces/{trace_id}/events")
            response = connection.getresponse()
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            with response:  # it holds the socket, too
                yield _events(response)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


def wait_for(read: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """What `read` gives, as soon as it is what the test waits for."""
    deadline = time.monotonic() + SECONDS
    while not holds(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def running(tracer: Any, access: Access | None = None, follow: bool = True, **limits: int) -> Iterator[Running]:
    """A server until the block ends; that it ends in time is part of every test."""
    listener = listening.bind("127.0.0.1", 0)
    service = Service(tracer, "the model", Limits(**limits), follow)
    started = threading.Event()
    server = connections.make_server(make_app(service, access or Access.of("127.0.0.1")), service, started.set)
    service.start()
    thread = threading.Thread(target=server.run, args=([listener],), name="server")
    thread.start()
    assert started.wait(SECONDS)
    try:
        yield Running(listener.getsockname()[1], service, server, thread)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        service.join(SECONDS)
        listener.close()
    assert not thread.is_alive()
    assert not any(thread.is_alive() for thread in (service._thread, service._model_thread._thread))


class Gated:
    """A real tracer whose scans wait for the test after each step; the gate is shut at first.

    Args:
        tracer: The tracer.
    """

    def __init__(self, tracer: Any):
        self._tracer = tracer
        self._steps = threading.Semaphore(0)
        self._open = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)

    def step(self, count: int = 1) -> None:
        """Lets the scan take further steps."""
        self._steps.release(count)

    def open(self) -> None:
        """Lets everything through from now on."""
        self._open.set()

    def trace(self, *words: Any, on_progress: Any, cancel: Any, **named: Any) -> Any:
        """The tracer's own, with a gate at each report."""

        def report(progress: TraceProgress) -> None:
            on_progress(progress)
            while progress.stage == "scanning" and not self._open.is_set() and not cancel():
                if self._steps.acquire(timeout=0.01):
                    break

        return self._tracer.trace(*words, on_progress=report, cancel=cancel, **named)
