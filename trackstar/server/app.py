"""The application: what each request gets for an answer. Everything that takes long happens in the service's threads."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from trackstar.server import messages, openapi
from trackstar.server.answers import encode, encoded_answer, error_answer, json_answer
from trackstar.server.errors import ApiError
from trackstar.server.guard import Access, Guard
from trackstar.server.jobs import Job
from trackstar.server.requests import read_message
from trackstar.server.service import Service
from trackstar.viewer import assets
from trackstar.viewer.app import api_routes

_POLL_SECONDS = 0.25
_BEAT_SECONDS = 15.0

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """One method an operation of `openapi.OPERATIONS`, of the same name.

    Args:
        service: What does the work.
    """

    def __init__(self, service: Service):
        self._service = service
        self._jobs = service.jobs
        self._streams = 0
        self._document = encode(openapi.document())

    async def info(self, request: Request) -> Response:
        """What is served."""
        return json_answer(self._service.info())

    async def health(self, request: Request) -> Response:
        """That the server is up."""
        return json_answer(messages.Health("ok"))

    async def openapi(self, request: Request) -> Response:
        """The document of the API."""
        return encoded_answer(self._document)

    async def create_trace(self, request: Request) -> Response:
        """Takes a trace into the queue."""
        asked = await read_message(request, messages.TraceRequest, self._service.limits)
        await asyncio.to_thread(self._service.check_query, asked)
        job = self._jobs.add(asked)
        where = f"{openapi.ROOT}/traces/{job.id}"
        return json_answer(self._jobs.summary(job), 202, {"Location": where})

    async def list_traces(self, request: Request) -> Response:
        """The history."""
        return encoded_answer(await asyncio.to_thread(encode, messages.TraceList(self._jobs.summaries())))

    async def get_trace(self, request: Request) -> Response:
        """How a trace stands, and its result."""
        view = self._jobs.view(self._job(request))
        return encoded_answer(await asyncio.to_thread(encode, view))

    async def cancel_trace(self, request: Request) -> Response:
        """Ends a trace."""
        job = self._job(request)
        self._jobs.cancel(job)
        return json_answer(self._jobs.summary(job))

    async def trace_events(self, request: Request) -> Response:
        """How a trace stands, until it has ended."""
        job = self._job(request)
        if self._streams >= self._service.limits.max_streams:
            raise ApiError.busy(f"{self._streams} clients follow traces already", 5)
        return StreamingResponse(self._events(job), headers={"Cache-Control": "no-store"}, media_type=openapi.EVENTS)

    async def explain_trace(self, request: Request) -> Response:
        """Where scores come from."""
        asked = await read_message(request, messages.ExplanationRequest, self._service.limits)
        found = await self._service.explain(self._job(request), asked)
        return encoded_answer(await asyncio.to_thread(encode, found))

    async def complete(self, request: Request) -> Response:
        """What the model says."""
        asked = await read_message(request, messages.CompletionRequest, self._service.limits)
        return json_answer(await self._service.complete(asked))

    def _job(self, request: Request) -> Job:
        return self._jobs.get(request.path_params["id"])

    async def _events(self, job: Job) -> AsyncIterator[bytes]:
        """Asks for news four times a second: slow clients miss states and nothing is kept for them."""
        self._streams += 1
        try:
            told: messages.TraceState | None = None
            told_at = time.monotonic()
            while True:
                state = self._jobs.state(job)
                if state.state in messages.ENDED:
                    yield _event("end", state)
                    return
                if state != told:
                    yield _event("progress", state)
                    told, told_at = state, time.monotonic()
                elif time.monotonic() - told_at > _BEAT_SECONDS:
                    yield b": alive\n\n"
                    told_at = time.monotonic()
                if self._jobs.closed:
                    return
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._streams -= 1


def routes(service: Service) -> list[Route]:
    """The API's routes, one an operation."""
    api = Api(service)
    return [
        Route(operation.full_path, _endpoint(getattr(api, operation.name)), methods=[operation.method])
        for operation in openapi.OPERATIONS
    ]


def make_app(service: Service, access: Access) -> ASGIApp:
    """The application: the API, and the page at /.

    Args:
        service: What does the work.
        access: Who may ask.
    """
    app = Starlette(
        routes=[*assets.routes(), *api_routes([]), *routes(service)],  # the page asks for results files; here are none
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_fault,
        },
    )
    app.router.redirect_slashes = False
    return assets.SecurityHeaders(Guard(app, access))  # around everything, answers to faults included


def _endpoint(handler: Handler) -> Handler:
    """A function of its own, as Starlette wants one."""

    async def endpoint(request: Request) -> Response:
        return await handler(request)

    return endpoint


def _event(name: str, state: messages.TraceState) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode(state) + b"\n\n"


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_answer(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, or no such method there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = _methods_at(request)
        return error_answer(ApiError(405, "no_such_method", f"this path takes {allowed}", headers={"Allow": allowed}))
    hint = f"GET {openapi.ROOT}/openapi.json describes the paths there are."
    return error_answer(ApiError(error.status_code, "no_such_path", "there is nothing at this path", hint))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The client went away before its request was whole; nobody reads this."""
    return Response(status_code=400)


async def _on_fault(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this, and uvicorn logs it."""
    return error_answer(ApiError(500, "internal", "a fault of the server; its log tells more"))


def _methods_at(request: Request) -> str:
    routes: list[Route] = [route for route in request.app.routes if isinstance(route, Route)]
    here = (route.methods or set() for route in routes if route.matches(request.scope)[0] != Match.NONE)
    return ", ".join(sorted(set().union(*here)))
