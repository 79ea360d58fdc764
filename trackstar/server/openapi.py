"""The API, operation by operation, and the OpenAPI document that is made from it and from the messages."""

import dataclasses
import re
from typing import Any

import trackstar
from trackstar.server import messages, typed

ROOT = "/api/v1"
EVENTS = "text/event-stream"

_JSON = "application/json"
_ANYWHERE = {
    400: "the Host header is missing or double",
    403: "the Host or the Origin is not allowed",
    500: "a fault of the server; its log tells more",
    503: "too many connections at the same time (as plain text)",
}
_BODY = {
    400: "the body is not JSON, or the Host header is missing or double",
    408: "the body does not arrive in time",
    413: "the body is too large",
    415: "the body's type is not application/json",
    422: "a field is missing, of another type, too long or out of bounds",
}
_NO_TRACE = {404: "there is no trace of that id, or none any more"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One thing that clients may ask for.

    Args:
        name: Its operationId, and the name of the method that serves it.
        method: Of HTTP.
        path: Beneath `ROOT`, parameters in braces.
        summary: One line.
        answer: The dataclass of a good answer, or the type of an answer that is none.
        description: More lines.
        request: The dataclass of the request's body, if it has one.
        status: Of a good answer.
        errors: Status → when, beyond what any operation may answer.
    """

    name: str
    method: str
    path: str
    summary: str
    answer: type | str
    description: str = ""
    request: type | None = None
    status: int = 200
    errors: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def full_path(self) -> str:
        """The path from the server's root."""
        return ROOT + self.path


OPERATIONS = (
    Operation("info", "GET", "/info", "What is served: index, model, limits", messages.Info),
    Operation(
        "create_trace",
        "POST",
        "/traces",
        "Ask for a query's proponents in the whole index",
        messages.TraceSummary,
        "The answer comes at once; the scan takes its time. Its state is at the address in the header Location, and comes by "
        "itself from that address + /events.",
        messages.TraceRequest,
        202,
        {**_BODY, 503: "too many traces wait already, or the server is ending: see the header Retry-After"},
    ),
    Operation(
        "list_traces",
        "GET",
        "/traces",
        "The traces that the server remembers, the newest first, without their results",
        messages.TraceList,
    ),
    Operation(
        "get_trace", "GET", "/traces/{id}", "How a trace stands, and its result", messages.Trace, errors=_NO_TRACE
    ),
    Operation(
        "cancel_trace",
        "DELETE",
        "/traces/{id}",
        "Cancel a trace",
        messages.TraceSummary,
        "One that waits ends at once, one that runs within a second or so. One that has ended stays as it is, and so does its "
        "result.",
        errors=_NO_TRACE,
    ),
    Operation(
        "trace_events",
        "GET",
        "/traces/{id}/events",
        "How a trace stands, as server-sent events",
        EVENTS,
        "Events are named progress, at most four a second, and at last end; the data of each is a TraceState. Lines that begin "
        "with a colon say no more than that the connection lives.",
        errors={**_NO_TRACE, 503: "too many clients follow traces already: see the header Retry-After"},
    ),
    Operation(
        "explain_trace",
        "POST",
        "/traces/{id}/explanations",
        "What of each example's text and of the model the scores come from",
        messages.ExplanationList,
        "For each rank the contributions of the example's tokens and of the model's blocks to the score.",
        messages.ExplanationRequest,
        errors={
            **_BODY,
            **_NO_TRACE,
            409: "the trace is not done",
            503: "too much waits for the model already: see the header Retry-After",
            504: "it took too long",
        },
    ),
    Operation(
        "complete",
        "POST",
        "/completions",
        "What the model says to a prompt",
        messages.Completion,
        "Greedy: the most likely token each time, so equal prompts get equal answers.",
        messages.CompletionRequest,
        errors={
            **_BODY,
            503: "too much waits for the model already: see the header Retry-After",
            504: "it took too long",
        },
    ),
    Operation("openapi", "GET", "/openapi.json", "This document", _JSON),
    Operation("health", "GET", "/healthz", "Whether the server is up", messages.Health),
)


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the API."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.full_path, {})[operation.method.lower()] = _describe(operation)
    requests = [operation.request for operation in OPERATIONS if operation.request]
    answers = [operation.answer for operation in OPERATIONS if isinstance(operation.answer, type)]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TrackStar",
            "version": trackstar.__version__,
            "summary": "Training documents behind what a language model says",
            "description": "Finds, for a prompt and a target, the training examples whose gradients agree most with the "
            "query's, by scanning the whole index. Fields may be added to answers; requests take no other fields than these.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": typed.schemas([*requests, *answers, messages.TraceState, messages.ErrorAnswer], closed=requests)
        },
    }


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    names = re.findall(r"{(\w+)}", operation.path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.request:
        described["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": typed.reference(operation.request)}},
        }
    described["responses"] = {
        str(operation.status): _good_answer(operation),
        **{
            str(status): {
                "description": when,
                "content": {_JSON: {"schema": typed.reference(messages.ErrorAnswer)}},
            }
            for status, when in sorted({**_ANYWHERE, **operation.errors}.items())
        },
    }
    return described


def _good_answer(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        schema: dict[str, Any] = {"type": "object"} if operation.answer == _JSON else {"type": "string"}
        return {"description": operation.summary, "content": {operation.answer: {"schema": schema}}}
    answer: dict[str, Any] = {
        "description": " ".join((operation.answer.__doc__ or "").split()),
        "content": {_JSON: {"schema": typed.reference(operation.answer)}},
    }
    if operation.status == 202:
        where = {"description": "where the trace stands", "schema": {"type": "string"}}
        answer["headers"] = {"Location": where}
    return answer
