"""Reading a request's body: bounded in bytes and in time, JSON and nothing else."""

import asyncio
import json
from typing import Any, NoReturn, TypeVar

from starlette.requests import Request

from trackstar.server import typed
from trackstar.server.errors import ApiError
from trackstar.server.limits import Limits

T = TypeVar("T")

_JSON = "application/json"


async def read_message(request: Request, kind: type[T], limits: Limits) -> T:
    """The dataclass that a request's body stands for.

    Raises:
        ApiError: 415, 413, 408 or 400 where the body is no JSON of bounded size that comes in time; 422 where it is not the
            object that is expected.
    """
    value = parse_json(await _read_body(request, limits))
    try:
        return typed.read(kind, value)
    except typed.InvalidError as error:
        raise ApiError.of_field(error) from error


def parse_json(body: bytes) -> Any:
    """A JSON document's value.

    Raises:
        ApiError: 400, with what is wrong with it.
    """
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _bad_json(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise _bad_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _bad_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits, NaN, Infinity
        raise _bad_json("it holds a number that JSON does not know, or that is too long") from error


async def _read_body(request: Request, limits: Limits) -> bytes:
    # A page of another site can send any other type without being asked first (a "simple request").
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise ApiError(415, "not_json", "the request's Content-Type is not application/json", f"Send it as {_JSON}.")
    if int(request.headers.get("content-length", "0")) > limits.max_body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.request_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError as error:
        raise ApiError(
            408,
            "too_slow",
            f"the request's body did not arrive in {limits.request_seconds} s",
            headers={"Connection": "close"},
        ) from error
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413,
        "too_large",
        f"the request's body is larger than {limits.max_body_bytes:,} bytes",
        "Prompt and target have to fit into the model's context anyway.",
    )


def _bad_json(reason: str) -> ApiError:
    return ApiError(400, "bad_json", f"the request's body is not JSON: {reason}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
