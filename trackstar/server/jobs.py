"""Traces that were asked for: what is known of each, how many are kept, and for how long."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from trackstar.server import messages
from trackstar.server.errors import ApiError
from trackstar.server.limits import Limits
from trackstar.server.messages import ENDED, State


@dataclasses.dataclass(eq=False)
class Job:
    """One trace. Changed under the lock of its `Jobs` only.

    Args:
        request: What was asked for.
    """

    request: messages.TraceRequest
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    created: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))
    state: State = "queued"
    started: float | None = None
    """By the monotonic clock; so is `ended`."""
    ended: float | None = None
    progress: messages.Progress = dataclasses.field(default_factory=messages.Progress)
    error: messages.ErrorBody | None = None
    snapshot: int | None = None
    traced: Any = None
    """What the tracer gave back, for explanations."""
    result: messages.Record | None = None
    result_bytes: int = 0
    """Of the result, as JSON, and of what `traced` holds."""
    cancel: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.request.prompt) + len(self.request.target) + self.result_bytes

    @property
    def seconds(self) -> float | None:
        """How long it took, or takes so far; None while it waits."""
        if self.started is None:
            return None
        return round((time.monotonic() if self.ended is None else self.ended) - self.started, 3)


class Jobs:
    """All traces of a server: those that wait, in order, the one that runs, and the last that ended. Safe for threads.

    Args:
        limits: How many, and how much.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._jobs: dict[str, Job] = {}  # oldest first
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 10.0  # that a trace has taken of late

    def add(self, request: messages.TraceRequest) -> Job:
        """A new trace, to be run after those that wait already.

        Raises:
            ApiError: too many wait, or the server is ending.
        """
        with self._changed:
            self._check_open()
            waiting = len(self._waiting())
            if waiting >= self._limits.max_queued:
                raise ApiError.busy(f"{waiting} traces are waiting already", self._seconds)
            job = Job(request)
            self._jobs[job.id] = job
            self._changed.notify_all()
            return job

    def get(self, job_id: str) -> Job:
        """The trace of that id.

        Raises:
            ApiError: there is none, or none any more.
        """
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            kept = f"The last {self._limits.max_history:,} traces are kept; GET /api/v1/traces lists them."
            raise ApiError(404, "no_such_trace", "there is no trace of that id", kept)
        return job

    def next(self) -> Job | None:
        """Waits for the next trace to run, which counts as running from now on; None when the server is ending."""
        with self._changed:
            while not (self._closed or self._waiting()):
                self._changed.wait()
            if self._closed:
                return None
            job = self._waiting()[0]
            job.state, job.started = "running", time.monotonic()
            return job

    def report(self, job: Job, progress: messages.Progress) -> None:
        """Notes how far a running trace is."""
        with self._changed:
            job.progress = progress

    def end(self, job: Job, state: State, **fields: Any) -> None:
        """Notes how a trace ended, and forgets the oldest where there are too many now."""
        with self._changed:
            for name, value in fields.items():
                setattr(job, name, value)
            job.state, job.ended = state, time.monotonic()
            if state == "done" and job.started is not None:
                self._seconds += 0.3 * (job.ended - job.started - self._seconds)
            self._forget_oldest()

    def cancel(self, job: Job) -> None:
        """Ends a trace that waits at once, and one that runs soon; one that has ended stays as it is."""
        with self._changed:
            job.cancel.set()
            if job.state == "queued":
                job.state, job.ended = "cancelled", time.monotonic()
                self._forget_oldest()

    def close(self) -> None:
        """Cancels everything; nothing can be added any more, and `next` ends."""
        with self._changed:
            self._closed = True
            for job in list(self._jobs.values()):
                self.cancel(job)
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the server is ending."""
        return self._closed

    def state(self, job: Job) -> messages.TraceState:
        """How a trace stands."""
        with self._changed:
            return messages.TraceState(**self._state(job))

    def view(self, job: Job) -> messages.Trace:
        """All that a client gets to know of a trace, of one moment."""
        with self._changed:
            return messages.Trace(**self._state(job), **_asked(job), result=job.result)

    def summaries(self) -> list[messages.TraceSummary]:
        """Every trace without its result, the newest first."""
        with self._changed:
            jobs = reversed(self._jobs.values())
            return [messages.TraceSummary(**self._state(job), **_asked(job)) for job in jobs]

    def summary(self, job: Job) -> messages.TraceSummary:
        """A trace without its result."""
        with self._changed:
            return messages.TraceSummary(**self._state(job), **_asked(job))

    def _state(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "state": job.state,
            "before": self._waiting().index(job) if job.state == "queued" else 0,
            "seconds": job.seconds,
            "progress": job.progress,
            "cancelling": job.cancel.is_set() and not job.has_ended,
            "error": job.error,
        }

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "queued"]

    def _ended(self) -> Iterator[Job]:
        return (job for job in self._jobs.values() if job.has_ended)

    def _forget_oldest(self) -> None:
        """Keeps the last results within bounds, and the very last whatever its size."""
        ended = list(self._ended())
        num_bytes = sum(job.num_bytes for job in ended)
        count = len(ended)
        for job in ended[:-1]:
            if count <= self._limits.max_history and num_bytes <= self._limits.max_history_bytes:
                break
            del self._jobs[job.id]
            count, num_bytes = count - 1, num_bytes - job.num_bytes

    def _check_open(self) -> None:
        if self._closed:
            raise ApiError.busy("the server is ending", 5)


def _asked(job: Job) -> dict[str, Any]:
    request = job.request
    return {
        "prompt": request.prompt,
        "target": request.target,
        "top_k": request.top_k,
        "opponents": request.opponents,
        "created": job.created.isoformat(timespec="milliseconds"),
        "snapshot": job.snapshot,
    }
