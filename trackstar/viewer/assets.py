"""The page's files as a server sends them, and what holds for every answer: its headers, and who may ask."""

import dataclasses
import gzip
import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files and nothing else."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file of the page.

    Args:
        name: Its name.
        text: What it holds.
        media_type: Its type for browsers.
    """

    name: str
    text: str
    media_type: str


def files() -> dict[str, Asset]:
    """The page's files by name."""
    found = {}
    for entry in sorted(resources.files("trackstar.viewer").joinpath("static").iterdir(), key=lambda entry: entry.name):
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _TYPES:
            found[entry.name] = Asset(entry.name, entry.read_text(encoding="utf-8"), _TYPES[suffix])
    return found


def routes() -> list[Route]:
    """`/` and every file of the page, from memory."""
    found = files()
    paths = {"/": found["index.html"], **{f"/{name}": asset for name, asset in found.items()}}
    return [Route(path, _sender(asset), methods=["GET"]) for path, asset in paths.items()]


class Packed:
    """Bytes that are sent often: compressed once, with a tag by which a browser knows that it has them.

    Args:
        body: The bytes.
        media_type: Their type.
    """

    def __init__(self, body: bytes, media_type: str):
        self._plain = body
        self._zipped = gzip.compress(body, compresslevel=6, mtime=0)
        self._media_type = media_type
        self._tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def response(self, request: Request) -> Response:
        """The answer to a request: 304 where the browser has the bytes, compressed where it takes that."""
        headers = {"ETag": self._tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = self._plain
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = self._zipped, "gzip"
        return Response(body, media_type=self._media_type, headers=headers)


def _sender(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    packed = Packed(asset.text.encode(), asset.media_type)

    async def send(request: Request) -> Response:
        return packed.response(request)

    return send


class SecurityHeaders:
    """Middleware that puts the policy on every answer.

    Args:
        app: What answers.
        headers: Further headers, or others in place of these.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None):
        self._app = app
        self._headers = {**_HEADERS, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class LocalHosts:
    """Middleware for a server on this machine alone: refuses requests that name another host.

    Without it a web page elsewhere could point its own name at 127.0.0.1 and read everything (DNS rebinding).

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or refuses."""
        if scope["type"] in ("http", "websocket") and not is_local(Headers(scope=scope).get("host", "")):
            refusal = PlainTextResponse("this server answers to localhost alone", status_code=421)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost, or a loopback address; with any port."""
    name = host.strip().lower()
    name = name[1:].split("]")[0] if name.startswith("[") else name.rsplit(":", 1)[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
