"""A very small object store that keeps generations as Google's does, preconditions included, which the emulator ignores.

It knows what `trackstar.object_store` asks for: listings, metadata, media, upload in one request, deletion.
"""

import contextlib
import email
import email.policy
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^?]+)")


class StrictStore:
    """The objects, by (bucket, name): content and generation; and the queries of all uploads and deletions."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.writes: list[dict[str, str]] = []
        self.lost_answers = 0
        """So many uploads are carried out and answered with an error of the store, as when an answer is lost."""
        self._lock = threading.Lock()
        self._generation = 1000

    def write(self, place: tuple[str, str], data: bytes, query: dict[str, str]) -> dict[str, Any] | int:
        """The object's metadata, or the status of the failure."""
        with self._lock:
            self.writes.append(query)
            if not self._permitted(place, query):
                return 412
            self._generation += 1
            self.objects[place] = (data, self._generation)
            if self.lost_answers:
                self.lost_answers -= 1
                return 503
            return self.metadata(place) or 500

    def delete(self, place: tuple[str, str], query: dict[str, str]) -> int:
        """Status."""
        with self._lock:
            self.writes.append(query)
            if place not in self.objects:
                return 404
            if not self._permitted(place, query):
                return 412
            del self.objects[place]
            return 204

    def metadata(self, place: tuple[str, str]) -> dict[str, Any] | None:
        """As the store's JSON interface gives it."""
        if place not in self.objects:
            return None
        data, generation = self.objects[place]
        return {
            "kind": "storage#object",
            "bucket": place[0],
            "name": place[1],
            "size": str(len(data)),
            "generation": str(generation),
            "md5Hash": "",
            "crc32c": "",
            "updated": "2026-01-02T03:04:05.678Z",
        }

    def _permitted(self, place: tuple[str, str], query: dict[str, str]) -> bool:
        present = self.objects[place][1] if place in self.objects else 0
        return "ifGenerationMatch" not in query or int(query["ifGenerationMatch"]) == present


@contextlib.contextmanager
def strict_store() -> Iterator[tuple[StrictStore, str]]:
    """Runs the store in a thread; yields it and its address."""
    store = StrictStore()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if urllib.parse.urlsplit(self.path).path.endswith("/o"):
                bucket = self.path.split("/b/")[1].split("/")[0]
                names = [name for place, name in sorted(store.objects) if place == bucket]
                below = [name for name in names if name.startswith(self._query().get("prefix", ""))]
                listed = {"kind": "storage#objects", "items": [store.metadata((bucket, name)) for name in below]}
                self._answer(200, json.dumps(listed).encode())
                return
            found = self._object()
            metadata = store.metadata(found) if found else None
            if metadata is None or found is None:
                self._answer(404, b"{}")
            elif self._query().get("alt") == "media":
                self._answer(200, store.objects[found][0], "application/octet-stream")
            else:
                self._answer(200, json.dumps(metadata).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, media = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()  # type: ignore[attr-defined]
            bucket = self.path.split("/b/")[1].split("/")[0]
            content = media.get_payload(decode=True)
            answer = store.write((bucket, json.loads(about.get_content())["name"]), content, self._query())
            if isinstance(answer, int):
                self._answer(answer, b"{}")
            else:
                self._answer(200, json.dumps(answer).encode())

        def do_DELETE(self) -> None:
            found = self._object()
            self._answer(store.delete(found, self._query()) if found else 404, b"")

        def _object(self) -> tuple[str, str] | None:
            match = _OBJECT.match(self.path)
            return (match[1], urllib.parse.unquote(match[2])) if match else None

        def _query(self) -> dict[str, str]:
            return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))

        def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
