"""Requests of people who mean harm, or err: each gets an answer that says what is wrong, and the server lives on."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.running import QUERY, Gated, Running, running
from trackstar.server.guard import Access
from trackstar.tracing import Tracer


@pytest.fixture(autouse=True)
def lives_on(server: Running) -> Iterator[None]:
    """Whatever was asked, the server answers afterwards."""
    yield
    assert server.get("/healthz") == {"status": "ok"}
    assert server.service._thread.is_alive()


def post(server: Running, raw: bytes, path: str = "/api/v1/traces", **headers: str) -> Any:
    return server.call("POST", path, raw=raw, headers=headers)


def query(**fields: object) -> bytes:
    return json.dumps({**QUERY, **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"nonsense", 400, "not JSON: Expecting value at line 1, column 1"),
        (b'{"prompt": "x", }', 400, "not JSON"),
        (b"\xff\xfe{}", 400, "not UTF-8 (invalid start byte at byte 0)"),
        ('{"prompt": "x"}'.encode("utf-16"), 400, "not UTF-8"),
        (b'{"prompt": "\xed\xa0\x80", "target": "x"}', 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400, "nested too deeply"),
        (query().replace(b"5", b"NaN"), 400, "a number that JSON does not know"),
        (query().replace(b"5", b"-Infinity"), 400, "a number that JSON does not know"),
        (query().replace(b"5", b"9" * 10_000), 400, "that is too long"),
        (b"[]", 422, "expected a JSON object, found a list"),
        (b"null", 422, "found null"),
        (b'"text"', 422, "found a string"),
        (b"{}", 422, "the field 'prompt' is missing"),
        (b'{"prompt": "x"}', 422, "the field 'target' is missing"),
        (query(target=None), 422, "target must be a string, not null"),
        (query(prompt=["x"]), 422, "prompt must be a string, not a list"),
        (query(prompt={"x": 1}), 422, "prompt must be a string, not an object"),
        (query(target=7), 422, "target must be a string, not a whole number"),
        (query(top_k="5"), 422, "top_k must be a whole number, not a string"),
        (query(top_k=5.0), 422, "top_k must be a whole number, not a number"),
        (query(top_k=True), 422, "top_k must be a whole number, not true or false"),
        (query(top_k=0), 422, "top_k is 0; it must be at least 1"),
        (query(top_k=-5), 422, "top_k is -5"),
        (query(top_k=1001), 422, "top_k is 1,001; this server allows 1,000"),
        (query(top_k=10**4000), 422, "top_k is"),
        (query(opponents=1), 422, "opponents must be true or false, not a whole number"),
        (query(topk=5), 422, "unknown field 'topk'; did you mean 'top_k'?"),
        (query(path="/etc/passwd"), 422, "unknown field 'path'"),
        (query(**{"\x1b[2J\r\nSet-Cookie: a=b": 1}), 422, r"unknown field '\x1b[2J\r\nSet-Cookie: a=b'"),
        (query(target=""), 422, "the target is empty"),
        (query(target=" \n\t"), 422, "the target is empty"),
        (b'{"prompt": "\\ud800", "target": "x"}', 422, "prompt holds half of a surrogate pair"),
        (b'{"prompt": "x", "target": "\\udfff\\ud83d"}', 422, "target holds half of a surrogate pair"),
        (b'{"\\ud800": 1, "prompt": "x", "target": "x"}', 422, r"unknown field '\ud800'"),
        (query(prompt="city " * 5000), 422, "tokens"),
        (query(prompt="", target="city " * 5000), 422, "tokens"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes | str) else value,
)
def test_bad_bodies(server: Running, raw: bytes, status: int, message: str) -> None:
    answer = post(server, raw)
    assert answer.status == status, answer.body
    assert message in answer.error["message"]


def test_too_many_tokens_says_how_many(server: Running, tracer: Tracer) -> None:
    error = post(server, query(prompt="city " * 5000)).error
    assert f"the index was fitted for {tracer.spec.max_length}" in error["message"]
    assert "Shorten them by" in error["hint"]


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("\x00", "\x00"),
        ("a\x00b", " c\x00"),
        ("\x1b[31m", " \u202eevil"),
        ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>"),
        ("\ufeff\u200b\u2028", "\u2029x"),
        ("🏳️‍🌈" * 5, "👩‍👩‍👧‍👦"),
        ("../../etc/passwd", "file:///etc/passwd"),
        ("'; DROP TABLE traces; --", "${jndi:ldap://x}"),
        ("", "The capital of France is Paris"),
        ("<bos><eos>", "<eos>"),
        ("é\u0301" * 8, "\U0010ffff"),
    ],
    ids=ascii,
)
def test_any_text_can_be_traced(server: Running, prompt: str, target: str) -> None:
    found = server.ended(server.ask(prompt=prompt, target=target, top_k=1))
    assert found["state"] == "done", found["error"]
    assert (found["result"]["inputs_plaintext"], found["result"]["targets_plaintext"]) == (prompt, target)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=20), st.one_of(st.integers(-2, 3), st.none(), st.text(max_size=3)))
def test_any_fields(server: Running, prompt: str, target: str, top_k: object) -> None:
    answer = post(server, json.dumps({"prompt": prompt, "target": target, "top_k": top_k}).encode())
    if answer.status == 202:
        assert server.ended(answer.json["id"])["state"] in ("done", "failed")
    else:
        assert answer.status == 422
        assert answer.error["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200), st.sampled_from(["/api/v1/traces", "/api/v1/completions", "/api/v1/traces/x/explanations"])
)
def test_any_bytes(server: Running, raw: bytes, path: str) -> None:
    answer = post(server, raw, path)
    assert answer.status in (400, 404, 422)
    assert answer.error["message"]


@pytest.mark.parametrize("path", ["/api/v1/traces", "/api/v1/completions", "/api/v1/traces/x/explanations"])
def test_large_bodies(server: Running, path: str) -> None:
    raw = json.dumps({"prompt": "x" * (1 << 20), "target": "x"}).encode()
    answer = post(server, raw, path)
    assert (answer.status, answer.error["code"]) == (413, "too_large")


def test_large_bodies_that_do_not_say_so(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    chunks = (b" " * 10_000 for _ in range(60))
    connection.request("POST", "/api/v1/traces", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "too_large"
    connection.close()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_types_are_refused(server: Running, kind: str) -> None:
    """A page of another site could send these without being asked first."""
    answer = post(server, query(), **{"Content-Type": kind})
    assert (answer.status, answer.error["code"]) == (415, "not_json")
    assert post(server, query(), **{"Content-Type": "Application/JSON; charset=utf-8"}).status == 202


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/..\\..\\etc\\passwd",
        "//etc/passwd",
        "/static/../main.js",
        "/main.js/../../../rows.py",
        "/rows.py",
        "/__init__.py",
        "/main.js%00.html",
        "/api/v1/traces/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/traces/%00",
        "/api/v1/traces/" + "x" * 5000,
        "/api/v1/../../etc/passwd",
        "/api/v1/traces/",
        "/api/v2/info",
        "/?file=/etc/passwd/../x",
        "http://127.0.0.1/etc/passwd",
    ],
)
def test_paths(server: Running, path: str) -> None:
    answer = server.call("GET", path)
    assert b"root:" not in answer.body
    if answer.status == 200:  # a query string is not asked for anything
        assert path.startswith("/?")
    else:
        assert answer.status == 404
        assert answer.error["code"] in ("no_such_path", "no_such_trace")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/traces", "GET, HEAD, POST"),
        ("PATCH", "/api/v1/traces/x", "DELETE, GET, HEAD"),
        ("GET", "/api/v1/completions", "POST"),
        ("DELETE", "/", "GET, HEAD"),
        ("TRACE", "/api/v1/info", "GET, HEAD"),
    ],
)
def test_methods(server: Running, method: str, path: str, allowed: str) -> None:
    answer = server.call(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.error["message"]


def raw_request(server: Running, head: bytes) -> bytes:
    """What the server says to bytes after which it closes the connection."""
    answer = b""
    with server.open() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head)
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8642", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8642", 200),
        ("evil.example", 403),
        ("evil.example:8642", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example#localhost", 403),
        ("evil.example/localhost", 403),
        ("10.0.0.1", 403),
        ("[::2]", 403),
        ("", 403),
        (":8642", 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/v1/info", "/api/v1/traces/x/events"])
def test_host(server: Running, host: str, status: int, path: str) -> None:
    answer = server.call("GET", path, headers={"Host": host})
    assert answer.status == (404 if status == 200 and path.endswith("events") else status)
    if status == 403:
        assert answer.error["code"] == "host_not_allowed"
        assert "--allowed_host" in answer.error["hint"]


def test_host_has_to_be_there_once(server: Running) -> None:
    assert b" 400 " in raw_request(server, b"GET / HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert b" 400 " in raw_request(server, b"GET / HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 400 " in raw_request(server, twice).split(b"\r\n")[0]


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 100, b"x" * 100_000])
def test_what_is_no_http(server: Running, head: bytes) -> None:
    answer = raw_request(server, head)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert b"Traceback" not in answer


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1", "null", "http://[bad", "file://"])
def test_pages_of_other_sites_may_do_nothing(server: Running, origin: str) -> None:
    for method, path in (("POST", "/api/v1/traces"), ("DELETE", "/api/v1/traces/x")):
        answer = server.call(method, path, QUERY if method == "POST" else None, {"Origin": origin})
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    answer = server.call("GET", "/api/v1/info", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers  # so the browser keeps the answer from them
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert server.call("OPTIONS", "/api/v1/traces", headers=preflight).status == 405


def test_its_own_page_may_ask(server: Running) -> None:
    assert server.call("POST", "/api/v1/traces", QUERY, {"Origin": f"http://127.0.0.1:{server.port}"}).status == 202


def test_hosts_and_origins_that_were_allowed(tracer: Tracer) -> None:
    access = Access.of("0.0.0.0", ["Traces.Example"], ["https://notebook.example/"])
    with running(tracer, access) as server:
        assert server.call("GET", "/api/v1/info", headers={"Host": "traces.example:443"}).status == 200
        assert server.call("GET", "/api/v1/info", headers={"Host": "0.0.0.0"}).status == 403
        origin = {"Origin": "https://notebook.example"}
        answer = server.call("POST", "/api/v1/traces", QUERY, origin)
        assert answer.status == 202
        assert answer.headers["access-control-allow-origin"] == "https://notebook.example"
        assert "Location" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]
        preflight = server.call(
            "OPTIONS",
            "/api/v1/traces",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert preflight.status == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "Content-Type"
        other = server.call("POST", "/api/v1/traces", QUERY, {"Origin": "https://evil.example"})
        assert other.status == 403
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/v1/info", "/nothing", "/api/v1/traces/x"])
def test_headers_of_every_answer(server: Running, path: str) -> None:
    for headers in ({}, {"Host": "evil.example"}):
        found = server.call("GET", path, headers=headers).headers
        policy = found["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert found["x-content-type-options"] == "nosniff"
        assert found["referrer-policy"] == "no-referrer"
        assert "server" not in found
        if path.startswith("/api") or headers:
            assert found["cache-control"] == "no-store"


def test_the_page(server: Running) -> None:
    answer = server.call("GET", "/")
    assert answer.headers["content-type"].startswith("text/html")
    assert b"main.js" in answer.body
    for name in ("main.js", "live.js"):
        script = server.call("GET", f"/{name}")
        assert (script.status, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")


def test_faults_are_not_told(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty:
        """A tracer in which something breaks that nobody foresaw."""

        def __getattr__(self, name: str) -> Any:
            return getattr(gated, name)

        def trace(self, *words: Any, **named: Any) -> Any:
            raise ZeroDivisionError("a secret of /root")

        def complete(self, *words: Any) -> Any:
            raise ZeroDivisionError("a secret of /root")

    with running(Faulty()) as server:
        found = server.ended(server.ask())
        assert (found["state"], found["error"]["code"]) == ("failed", "internal")
        answer = server.call("POST", "/api/v1/completions", {"prompt": "x"})
        assert (answer.status, answer.error["code"]) == (500, "internal")
        assert "nosniff" in answer.headers["x-content-type-options"]
        assert b"secret" not in answer.body + json.dumps(found).encode()
        assert server.ended(server.ask())["state"] == "failed"  # the thread that runs traces has outlived it
    assert "a secret of /root" in caplog.text  # the server's log tells it
