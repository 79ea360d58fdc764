"""The view server's answers.

    GET  /, /main.js …                        the page
    GET  /api/v1/info                         {"live": false, "version": …}
    GET  /api/v1/results                      {"format": 1, "runs": [{"name", "source", "rows": […]}]}
    GET  /api/v1/results/{run}/{number}       one record
    POST /api/v1/results/{run}/lines          {"numbers": […]} → JSONL, the lines as they stand in the file
    POST /api/v1/results/{run}/search         {"words": […]} → {"found": [numbers of the records with the word in a passage, …]}

Errors are {"error": what is wrong}. Nothing is written, and nothing but the package's files and the given results is read.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import trackstar
from trackstar.errors import TrackStarError
from trackstar.viewer import assets
from trackstar.viewer.connections import ConnectionLimits
from trackstar.viewer.rows import Run, to_bytes

FORMAT = 1
_JSON = "application/json"
_LARGEST_REQUEST = 16_000_000  # Bytes: two million numbers.
_MOST_WORDS, _LONGEST_WORD = 50, 1000  # Of one search.


def view_app(runs: Sequence[Run], only_local: bool, limits: ConnectionLimits | None = None) -> Starlette:
    """The application that shows some runs.

    Args:
        runs: See `open_run`.
        only_local: Whether it listens on this machine alone; then it answers to no other name.
        limits: Those of its connections; the usual ones where none are given.
    """
    request_seconds = (limits or ConnectionLimits()).request_seconds
    middleware = [Middleware(assets.SecurityHeaders), Middleware(GZipMiddleware, minimum_size=1024, compresslevel=3)]
    if only_local:
        middleware.insert(0, Middleware(assets.LocalHosts))
    return Starlette(
        routes=[*assets.routes(), *api_routes(runs, request_seconds), Route("/api/v1/info", _info, methods=["GET"])],
        middleware=middleware,
        exception_handlers={TrackStarError: _failed, HTTPException: _refused, ClientDisconnect: _gone},
    )


def api_routes(runs: Sequence[Run], request_seconds: float) -> list[Route]:
    """The answers about runs; a request's body has to arrive within some seconds."""
    answers = _Answers(runs, request_seconds)
    return [
        Route("/api/v1/results", answers.index, methods=["GET"]),
        Route("/api/v1/results/{run:int}/{number:int}", answers.record, methods=["GET"]),
        Route("/api/v1/results/{run:int}/lines", answers.lines, methods=["POST"]),
        Route("/api/v1/results/{run:int}/search", answers.search, methods=["POST"]),
    ]


def index_of(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page asks for first: every run's rows."""
    return {"format": FORMAT, "runs": [{"name": run.name, "source": run.uri, "rows": run.rows} for run in runs]}


class _Answers:
    def __init__(self, runs: Sequence[Run], request_seconds: float):
        self._runs = runs
        self._request_seconds = request_seconds
        self._index = assets.Packed(to_bytes(index_of(runs)), _JSON)

    async def index(self, request: Request) -> Response:
        return self._index.response(request)

    def record(self, request: Request) -> Response:  # Not async: Starlette reads the file in a thread.
        run, number = self._run(request), request.path_params["number"]
        if number >= len(run.rows):
            raise HTTPException(404, f"{run.name} has {len(run.rows)} records, and no number {number}")
        return Response(to_bytes(run.record(number)), media_type=_JSON, headers={"Cache-Control": "no-store"})

    async def lines(self, request: Request) -> Response:
        run = self._run(request)
        numbers = _numbers(await self._body(request), len(run.rows))

        def stream() -> Iterator[bytes]:  # Not async: Starlette takes each piece in a thread.
            for number in numbers:
                yield run.line(number)

        return StreamingResponse(stream(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    async def search(self, request: Request) -> Response:
        run = self._run(request)
        words = _words(await self._body(request))
        texts = run.texts
        if texts is None:
            raise HTTPException(404, f"the passages of {run.name} were not made ready for a search")
        found = await asyncio.to_thread(lambda: [texts.records_with(word) for word in words])
        return Response(to_bytes({"found": found}), media_type=_JSON, headers={"Cache-Control": "no-store"})

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._request_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > _LARGEST_REQUEST:
                        raise HTTPException(413, "the request is too large")
        except TimeoutError as error:
            late = f"the request did not arrive in {self._request_seconds} s"
            raise HTTPException(408, late, {"Connection": "close"}) from error
        return bytes(body)

    def _run(self, request: Request) -> Run:
        place = request.path_params["run"]
        if place >= len(self._runs):
            raise HTTPException(404, f"there are {len(self._runs)} runs, and no run {place}")
        return self._runs[place]


def _numbers(body: bytes, count: int) -> list[int]:
    """The numbers of records that a request asks for, checked."""
    try:
        numbers = json.loads(body)["numbers"]
        sound = all(type(number) is int and 0 <= number < count for number in numbers)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(400, 'expected {"numbers": [numbers of records]}') from error
    if not sound:
        raise HTTPException(400, f"'numbers' must be whole numbers from 0 to {count - 1}")
    return numbers


def _words(body: bytes) -> list[str]:
    """The words that a search asks for, checked."""
    try:
        words = json.loads(body)["words"]
        sound = isinstance(words, list) and len(words) <= _MOST_WORDS
        sound = sound and all(type(word) is str and 0 < len(word) <= _LONGEST_WORD for word in words)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(400, 'expected {"words": [texts]}') from error
    if not sound:
        raise HTTPException(400, f"'words' must be {_MOST_WORDS} texts of 1 to {_LONGEST_WORD} characters at most")
    return words


async def _info(request: Request) -> Response:
    return JSONResponse({"live": False, "version": trackstar.__version__})


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=500)


async def _gone(request: Request, error: Exception) -> Response:
    """The client went away before its request was whole; nobody reads this."""
    return Response(status_code=400)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
