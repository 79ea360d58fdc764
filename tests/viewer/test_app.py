"""The view server's answers, over HTTP."""

import contextlib
import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.viewer import made
from tests.viewer.conftest import served
from trackstar.errors import TrackStarError
from trackstar.viewer import listening
from trackstar.viewer.assets import is_local
from trackstar.viewer.rows import open_run


class _Asker:
    def __init__(self, url: str):
        self.port = urlsplit(url).port

    def __call__(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


LINES = [*made.lines(30), made.minimal(note="half \ud800")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.write(tmp_path_factory.mktemp("app") / "r.jsonl", LINES)


@pytest.fixture(scope="module")
def ask(results: str) -> Iterator[_Asker]:
    run = open_run("first", results)
    with served([run, run]) as url:
        yield _Asker(url)


def test_the_index_is_sent_packed_and_once(ask: _Asker, results: str) -> None:
    status, headers, body = ask("/api/v1/results", Accept_Encoding="gzip")
    assert (status, headers["content-encoding"], headers["content-type"]) == (200, "gzip", "application/json")
    data = json.loads(gzip.decompress(body))
    assert [(run["name"], run["source"]) for run in data["runs"]] == [("first", results)] * 2
    assert data["runs"][0]["rows"] == list(open_run("first", results).rows)
    assert json.loads(ask("/api/v1/results")[2]) == data
    assert ask("/api/v1/results", If_None_Match=headers["etag"])[0::2] == (304, b"")


def test_records_and_lines(ask: _Asker, results: str) -> None:
    for number in (0, 29, 30):
        status, headers, body = ask(f"/api/v1/results/1/{number}")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert {**json.loads(body), **LINES[number]} == json.loads(body)
    body = json.dumps({"numbers": [29, 0, 30]}).encode()
    lines = Path(results).read_bytes().splitlines(keepends=True)
    assert ask("/api/v1/results/0/lines", "POST", body)[2] == lines[29] + lines[0] + lines[30]
    assert ask("/api/v1/results/0/lines", "POST", b'{"numbers": []}')[0::2] == (200, b"")


def test_what_is_not_there_or_not_understood(ask: _Asker) -> None:
    for path, status, error in [
        ("/api/v1/results/2/0", 404, "there are 2 runs, and no run 2"),
        ("/api/v1/results/0/31", 404, "first has 31 records, and no number 31"),
        ("/api/v1/nothing", 404, "Not Found"),
        ("/../../pyproject.toml", 404, "Not Found"),
        ("/static/main.js", 404, "Not Found"),
        ("/rows.py", 404, "Not Found"),
    ]:
        found, _, body = ask(path)
        assert (found, json.loads(body)) == (status, {"error": error}), path
    for sent in (
        b"",
        b"[]",
        b'{"numbers": 3}',
        b'{"numbers": [31]}',
        b'{"numbers": [-1]}',
        b'{"numbers": [true]}',
        b"\xff",
    ):
        found, _, body = ask("/api/v1/results/0/lines", "POST", sent)
        assert found == 400, sent
        assert "numbers" in json.loads(body)["error"]
    assert ask("/api/v1/results", "DELETE")[0] == 405


def test_every_answer_has_the_policy(ask: _Asker) -> None:
    for path in ("/", "/main.js", "/style.css", "/api/v1/info", "/api/v1/results/0/0", "/nothing"):
        _, headers, _ = ask(path)
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'"), path
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_page_and_its_types(ask: _Asker) -> None:
    types = {"/": "text/html", "/main.js": "text/javascript", "/style.css": "text/css"}
    for path, media_type in types.items():
        status, headers, body = ask(path)
        assert (status, headers["content-type"]) == (200, f"{media_type}; charset=utf-8")
        assert len(body) > 1000
    assert json.loads(ask("/api/v1/info")[2])["live"] is False


def test_other_hosts_are_refused(ask: _Asker) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"):
        assert ask("/api/v1/results", Host=host)[0] == 421, host
    for host in ("localhost", "localhost:1234", "127.0.0.1:9", "[::1]:9", "127.8.8.8"):
        assert ask("/api/v1/info", Host=host)[0] == 200, host


def test_names_of_this_machine() -> None:
    assert is_local("LocalHost:80")
    assert is_local("app.localhost:80")
    assert not is_local("localhost.com:80")
    assert not is_local("[::2]:80")


def test_ports() -> None:
    first = listening.bind("127.0.0.1", 0)
    with contextlib.closing(first):
        port = first.getsockname()[1]
        assert listening.url_of(first, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        assert listening.url_of(first, "0.0.0.0") == f"http://localhost:{port}/"
        with pytest.raises(TrackStarError, match=f"port {port} of 127.0.0.1 is in use; choose another with --port"):
            listening.bind("127.0.0.1", port)
    with pytest.raises(TrackStarError, match=r"--host a\.\.b: no such host"):
        listening.bind("a..b", 0)
    with pytest.raises(TrackStarError, match=r"cannot listen on 192\.0\.2\.1"):
        listening.bind("192.0.2.1", 0)


def test_auto_takes_another_port_where_its_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(listening, "PREFERRED_PORT", taken.getsockname()[1])
        with contextlib.closing(listening.bind("127.0.0.1")) as other:
            assert other.getsockname()[1] != taken.getsockname()[1]
