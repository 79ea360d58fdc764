"""Answers as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from trackstar.server import typed
from trackstar.server.errors import ApiError


def encode(value: Any) -> bytes:
    """JSON in UTF-8."""
    text = json.dumps(typed.to_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A text may hold half of a surrogate pair, which JSON can carry as an escape and UTF-8 cannot carry at all.
    return text.encode("utf-8", "backslashreplace")


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of a dataclass, or of what JSON knows."""
    return encoded_answer(encode(value), status, headers)


def encoded_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that is JSON already. Nothing that the API says is to be kept by browsers."""
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def error_answer(error: ApiError) -> Response:
    """An error as clients get it."""
    body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    return json_answer(body, error.status, error.headers)
