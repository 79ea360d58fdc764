"""Who may ask: what stands before every request.

Whoever makes a browser resolve a name of theirs to this machine (DNS rebinding) still sends that name as Host, and a page of
another site sends its Origin: both are refused unless they were allowed on the command line.
"""

import dataclasses
import urllib.parse
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trackstar.server.answers import error_answer
from trackstar.server.errors import ApiError
from trackstar.viewer.assets import is_local
from trackstar.viewer.listening import is_any

ANY_ORIGIN = "*"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Max-Age": "600",
}


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        hosts: Names and addresses, without port, that a request's Host may have, beside those of this machine's loopback.
        origins: Origins of other sites (`https://example.org`) whose pages may ask; "*" for all.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str, more_hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> "Access":
        """For a server bound to `host`: the host itself, where it is one, and `more_hosts`."""
        own = [] if is_any(host) else [host]
        return cls(
            frozenset(_bare(name) for name in [*own, *more_hosts]),
            frozenset(origin.rstrip("/").lower() for origin in origins),
        )

    def check(self, headers: Headers, method: str) -> None:
        """Raises ApiError where the Host is not one of ours, or a page of another site wants something done."""
        values = headers.getlist("host")
        if len(values) != 1:
            raise ApiError(400, "bad_host", f"the request has {len(values)} Host headers; it must have one")
        name = _name_of(values[0])
        if not name or not (name in self.hosts or is_local(values[0])):
            raise ApiError(
                403,
                "host_not_allowed",
                "this server does not answer to the name in the request's Host header",
                "Start it with --allowed_host NAME if it should.",
            )
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin is not None and not self._may_ask(origin, values[0]):
            raise ApiError(
                403,
                "origin_not_allowed",
                "pages of other sites may not ask this server for anything",
                "Start it with --allow_origin ORIGIN if one should.",
            )

    def allows(self, origin: str) -> bool:
        """Whether pages of that other site may ask."""
        return ANY_ORIGIN in self.origins or origin.lower() in self.origins

    def _may_ask(self, origin: str, host: str) -> bool:
        try:
            is_own = urllib.parse.urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            is_own = False
        return is_own or self.allows(origin)


class Guard:
    """ASGI middleware: checks access, answers preflight requests, and tells browsers which other sites may ask.

    Args:
        app: What is guarded.
        access: Who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access):
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        granted = origin if origin is not None and self._access.allows(origin) else None

        async def send_with_grant(message: Message) -> None:
            if message["type"] == "http.response.start" and self._access.origins:
                answered = MutableHeaders(scope=message)
                answered.add_vary_header("Origin")
                if granted is not None:
                    answered["Access-Control-Allow-Origin"] = granted
                    answered["Access-Control-Expose-Headers"] = "Location, Retry-After"
            await send(message)

        answer: ASGIApp = self._app
        try:
            self._access.check(headers, scope["method"])
        except ApiError as error:
            answer = error_answer(error)
        else:
            if scope["method"] == "OPTIONS" and granted is not None and "access-control-request-method" in headers:
                answer = Response(status_code=204, headers=_PREFLIGHT_HEADERS)
        await answer(scope, receive, send_with_grant)


def _bare(name: str) -> str:
    return name.strip().strip("[]").rstrip(".").lower()


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets; empty where it is none."""
    try:
        parts = urllib.parse.urlsplit(f"//{host}")
        is_name = parts.netloc == host and parts.username is None and (parts.port or 0) >= 0
    except ValueError:
        return ""
    return _bare(parts.hostname or "") if is_name else ""
