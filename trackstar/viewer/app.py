"""The view server's answers.

    GET  /, /main.js …                        the page
    GET  /api/v1/info                         {"live": false, "version": …}
    GET  /api/v1/results                      {"format": 1, "runs": [{"name", "source", "rows": […]}]}
    GET  /api/v1/results/{run}/{number}       one record
    POST /api/v1/results/{run}/lines          {"numbers": […]} → JSONL, the lines as they stand in the file

Errors are {"error": what is wrong}. Nothing is written, and nothing but the package's files and the given results is read.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import trackstar
from trackstar.errors import TrackStarError
from trackstar.viewer import assets
from trackstar.viewer.rows import Run, to_bytes

FORMAT = 1
_JSON = "application/json"
_LARGEST_REQUEST = 16_000_000  # Bytes: two million numbers.


def view_app(runs: Sequence[Run], only_local: bool) -> Starlette:
    """The application that shows some runs.

    Args:
        runs: See `open_run`.
        only_local: Whether it listens on this machine alone; then it answers to no other name.
    """
    middleware = [Middleware(assets.SecurityHeaders), Middleware(GZipMiddleware, minimum_size=1024, compresslevel=3)]
    if only_local:
        middleware.insert(0, Middleware(assets.LocalHosts))
    return Starlette(
        routes=[*assets.routes(), *api_routes(runs), Route("/api/v1/info", _info, methods=["GET"])],
        middleware=middleware,
        exception_handlers={TrackStarError: _failed, HTTPException: _refused},
    )


def api_routes(runs: Sequence[Run]) -> list[Route]:
    """The answers about runs."""
    answers = _Answers(runs)
    return [
        Route("/api/v1/results", answers.index, methods=["GET"]),
        Route("/api/v1/results/{run:int}/{number:int}", answers.record, methods=["GET"]),
        Route("/api/v1/results/{run:int}/lines", answers.lines, methods=["POST"]),
    ]


def index_of(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page asks for first: every run's rows."""
    return {"format": FORMAT, "runs": [{"name": run.name, "source": run.uri, "rows": run.rows} for run in runs]}


class _Answers:
    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
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
        numbers = await _numbers(request, len(run.rows))

        def stream() -> Iterator[bytes]:  # Not async: Starlette takes each piece in a thread.
            for number in numbers:
                yield run.line(number)

        return StreamingResponse(stream(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    def _run(self, request: Request) -> Run:
        place = request.path_params["run"]
        if place >= len(self._runs):
            raise HTTPException(404, f"there are {len(self._runs)} runs, and no run {place}")
        return self._runs[place]


async def _numbers(request: Request, count: int) -> list[int]:
    """The numbers of records that a request asks for, checked."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_REQUEST:
            raise HTTPException(413, "the request is too large")
    try:
        numbers = json.loads(body)["numbers"]
        sound = all(type(number) is int and 0 <= number < count for number in numbers)
    except (ValueError, KeyError, TypeError) as error:
        raise HTTPException(400, 'expected {"numbers": [numbers of records]}') from error
    if not sound:
        raise HTTPException(400, f"'numbers' must be whole numbers from 0 to {count - 1}")
    return numbers


async def _info(request: Request) -> Response:
    return JSONResponse({"live": False, "version": trackstar.__version__})


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=500)


async def _refused(request: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    return JSONResponse({"error": detail}, status_code=status)
