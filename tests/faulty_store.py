"""An object store that fails on purpose: a proxy on loopback before the emulator, and stricter than it.

Faults follow a plan that a seed determines, request by request, whatever the order in which threads ask. Beyond the emulator, and
like the real store, the proxy serves a generation that was asked for or answers 404, holds writes and deletions to
`ifGenerationMatch` (412), and takes a piece of an upload that was sent before as sent.
"""

import collections
import contextlib
import dataclasses
import http.client
import http.server
import json
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator

ANSWERS = (408, 429, 500, 502, 503, 504)
"""Statuses that mean "later"; the request is not carried out."""
BROKEN = ("reset", "torn", "lost", "cut", "short", "slow")
"""Connections that fail: closed before the request is carried out; in the middle of its body; after it was carried out; in the
middle of the answer, by a reset or in good order; or silent in the middle of the answer."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What goes wrong.

    Args:
        kinds: Statuses and names of broken connections.
        rate: Share of the requests that fail.
        seed: Another seed, other requests.
        in_a_row: A request is carried out after so many failures of it; None: it never need be.
        only: Regular expression; "METHOD path" of the requests that may fail.
        silence: Seconds that "slow" is silent.
    """

    kinds: tuple[int | str, ...] = ()
    rate: float = 1.0
    seed: int = 0
    in_a_row: int | None = 2
    only: str = ""
    silence: float = 1.0

    def fault(self, request: str, attempt: int) -> int | str | None:
        """What happens to the n-th attempt at a request, counted from 0."""
        if not self.kinds or not re.search(self.only, request):
            return None
        if self.in_a_row is not None and attempt % (self.in_a_row + 1) == self.in_a_row:
            return None
        chance = random.Random(f"{self.seed}/{request}/{attempt}")
        return chance.choice(self.kinds) if chance.random() < self.rate else None


class FaultyStore:
    """The proxy: `address` is the store's, `plan` may be changed at any time, `seen` lists (request, fault)."""

    def __init__(self, behind: str):
        self.behind = urllib.parse.urlparse(behind).netloc
        self._plan = Plan()
        self.seen: list[tuple[str, int | str | None]] = []
        self._attempts: collections.Counter[str] = collections.Counter()
        self._sent: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        store = self

        class Handler(_Handler):
            faulty = store

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def plan(self) -> Plan:
        """What goes wrong; a new plan counts attempts anew."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._lock:
            self._plan = plan
            self._attempts.clear()

    def faults(self) -> list[int | str]:
        """Those that have happened."""
        return [fault for _, fault in self.seen if fault is not None]

    def decide(self, request: str) -> int | str | None:
        """What happens to this request."""
        with self._lock:
            attempt = self._attempts[request]
            self._attempts[request] += 1
            fault = self.plan.fault(request, attempt)
            self.seen.append((request, fault))
            return fault

    def carried_out(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """The emulator's answer, or the stricter one."""
        query = urllib.parse.parse_qs(urllib.parse.urlparse(path).query)
        piece = f"{query['upload_id'][0]} {headers.get('content-range', '')}" if "upload_id" in query else ""
        if piece in self._sent:
            return self._sent[piece]
        if method == "GET" and "generation" in query and self._generation(path) != query["generation"][0]:
            return 404, [], b"no such generation"
        with self._one_at_a_time if method != "GET" else contextlib.nullcontext():
            if "ifGenerationMatch" in query and self._generation(path, headers, body) != query["ifGenerationMatch"][0]:
                return 412, [], b"another generation"
            answer = self._ask(method, path, headers, body)
        if piece:
            self._sent[piece] = answer
        return answer

    def _generation(self, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> str:
        """The generation that the request's object has now; "0" where there is none."""
        parsed = urllib.parse.urlparse(path)
        found = re.search(r"/b/([^/]+)/o(?:/([^/?]+))?$", parsed.path)
        assert found
        name = found[2] or urllib.parse.quote(_name_in(parsed.query, headers or {}, body), safe="")
        status, _, answer = self._ask("GET", f"/storage/v1/b/{found[1]}/o/{name}", {}, b"")
        return str(json.loads(answer)["generation"]) if status == 200 else "0"

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.behind, timeout=60)
        try:
            connection.request(method, path, body=body or None, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _name_in(query: str, headers: dict[str, str], body: bytes) -> str:
    """The object's name in a request that writes one."""
    given = urllib.parse.parse_qs(query).get("name")
    if given:
        return given[0]
    found = re.search(rb'"name": ?"([^"]+)"', body)
    assert found, (headers, body[:200])
    return found[1].decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyStore

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        path = re.sub(r"[?&]upload_id=[^&]*", "", self.path)  # holds the time of day
        part = self.headers.get("Range") or self.headers.get("Content-Range") or ""
        fault = self.faulty.decide(f"{self.command} {path} {part}".strip())
        length = int(self.headers.get("Content-Length", 0))
        if fault == "torn":
            self.rfile.read(length // 2)
        body = b"" if fault == "torn" else self.rfile.read(length)
        if fault in ("torn", "reset"):
            self._reset()
            return
        if isinstance(fault, int):
            self._answer(fault, [], b"")
            return
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "content-length"}
        status, answered, content = self.faulty.carried_out(self.command, self.path, headers, body)
        if fault == "lost":
            self._reset()
        else:
            self._answer(status, answered, content, fault)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: int | str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has given up
            if fault in ("cut", "short", "slow"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if fault == "slow":
                    time.sleep(self.faulty.plan.silence)
                if fault == "cut":
                    self._reset()
                self.close_connection = True
                return
            self.wfile.write(content)

    def _reset(self) -> None:
        """Closes with a reset, as a load balancer that restarts does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what is asked for."""


@contextlib.contextmanager
def faulty_store(behind: str) -> Iterator[FaultyStore]:
    """Runs the proxy before the store at `behind`; without a plan nothing fails."""
    store = FaultyStore(behind)
    thread = threading.Thread(target=store.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        thread.join()
