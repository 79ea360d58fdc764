"""What the server does for its clients, apart from HTTP: runs traces in a thread, one at a time, and asks the model."""

import dataclasses
import logging
import threading
import time
from typing import Any

import trackstar
from trackstar.errors import TrackStarError
from trackstar.server import answers, messages, views
from trackstar.server.errors import ApiError
from trackstar.server.jobs import Job, Jobs
from trackstar.server.limits import Limits
from trackstar.server.model_thread import Cancel, ModelThread
from trackstar.tokenization import UnusableRecordError
from trackstar.trace import TraceProgress
from trackstar.tracing import TraceCancelledError, Tracer

_LOGGER = logging.getLogger(__name__)

_JSON_TO_MEMORY = 2
"""Memory that a result takes, by its size as JSON: the record's lists, and the trace that explanations need."""


class Service:
    """Traces, completions and explanations for many clients.

    Args:
        tracer: The open index, with its model.
        model: What the model is called.
        limits: Bounds.
        follow: Whether each trace takes the index's last snapshot; without, the tracer's.
    """

    def __init__(self, tracer: Tracer, model: str, limits: Limits, follow: bool = True):
        self.limits = limits
        self.jobs = Jobs(limits)
        self._tracer = tracer
        self._model = model
        self._follow = follow
        self._model_thread = ModelThread(limits)
        self._thread = threading.Thread(target=self._work, daemon=True, name="traces")

    def start(self) -> None:
        """Starts the threads."""
        self._thread.start()
        self._model_thread.start()

    def stop(self) -> None:
        """Cancels everything and takes nothing new; to be called in the event loop, and returns at once."""
        self.jobs.close()
        self._model_thread.stop()

    def join(self, seconds: float) -> None:
        """Waits for the threads to end."""
        deadline = time.monotonic() + seconds
        self._thread.join(seconds)
        self._model_thread.join(max(0.0, deadline - time.monotonic()))

    def info(self) -> messages.Info:
        """What is served."""
        tracer = self._tracer
        return messages.Info(
            version=trackstar.__version__,
            live=True,
            index=tracer.uri,
            spec=dataclasses.asdict(tracer.spec),
            spec_hash=tracer.spec.hash,
            snapshot=tracer.version,
            rows=tracer.num_examples,
            model=self._model,
            limits={**dataclasses.asdict(self.limits), "max_tokens": tracer.spec.max_length},
        )

    def check_query(self, request: messages.TraceRequest) -> None:
        """Raises ApiError where a query cannot be traced, before it waits for its turn; takes milliseconds.

        Raises:
            ApiError: 422, top_k above the limit, no tokens to differentiate, or too many tokens.
        """
        if request.top_k > self.limits.max_top_k:
            raise ApiError.invalid(f"top_k is {request.top_k:,}; this server allows {self.limits.max_top_k:,}")
        most = self._tracer.spec.max_length
        unlimited = dataclasses.replace(self._tracer.encoder.tokenization, max_length=1 << 40)
        try:
            example = unlimited.query("", request.prompt, request.target)
        except (UnusableRecordError, TrackStarError) as error:
            raise ApiError.invalid(f"this query cannot be traced: {error}") from error
        count = len(example.input_ids)
        if count > most:
            raise ApiError.invalid(
                f"prompt and target have {count:,} tokens, {example.num_targets:,} of them the target's; the index was "
                f"fitted for {most:,}",
                f"Shorten them by {count - most:,} tokens or more.",
            )

    async def complete(self, request: messages.CompletionRequest) -> messages.Completion:
        """What the model says after a prompt.

        Raises:
            ApiError: 422, a prompt that cannot be completed, or more tokens than the server allows; 503, 504.
        """
        most = self.limits.max_new_tokens
        if request.max_new_tokens > most:
            raise ApiError.invalid(f"max_new_tokens is {request.max_new_tokens:,}; this server allows {most:,}")

        def run(cancel: Cancel) -> str:
            return self._tracer.complete(request.prompt, request.max_new_tokens, cancel)

        try:
            return messages.Completion(request.prompt, await self._model_thread.call(run))
        except TraceCancelledError as error:
            raise ApiError.busy("the server is ending", 5) from error
        except TrackStarError as error:
            raise ApiError.invalid(str(error)) from error

    async def explain(self, job: Job, request: messages.ExplanationRequest) -> messages.ExplanationList:
        """Where the scores of a trace's rows come from.

        Raises:
            ApiError: 409, the trace is not done; 422, ranks that it does not have, or more than the server allows; 503, 504.
        """
        traced = job.traced
        if traced is None:
            raise ApiError(409, "not_done", f"the trace is {job.state}; only one that is done can be explained")
        if len(request.ranks) > self.limits.max_ranks:
            raise ApiError.invalid(
                f"{len(request.ranks):,} ranks; this server allows {self.limits.max_ranks:,} at a time"
            )

        def run(cancel: Cancel) -> list[messages.Explanation]:
            explained = self._tracer.explain(traced, request.ranks, request.end, cancel=cancel)
            return [views.explanation_of(explanation) for explanation in explained]

        try:
            found = await self._model_thread.call(run)
        except TraceCancelledError as error:
            raise ApiError.busy("the server is ending", 5) from error
        except TrackStarError as error:
            raise ApiError.invalid(str(error)) from error
        return messages.ExplanationList(job.id, request.end, found)

    def _work(self) -> None:
        while (job := self.jobs.next()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        deadline = time.monotonic() + self.limits.trace_seconds
        try:
            ended = self._trace(job, lambda: job.cancel.is_set() or time.monotonic() > deadline)
        except TraceCancelledError:
            if job.cancel.is_set():
                self.jobs.end(job, "cancelled")
            else:
                self._fail(job, "timeout", f"the trace took longer than {self.limits.trace_seconds:,} s")
        except TrackStarError as error:
            _LOGGER.warning("trace %s failed: %s", job.id, error)
            self._fail(job, "failed", str(error))
        except BaseException:  # a tokenizer's panic is no Exception, and this thread has to outlive it
            _LOGGER.exception("trace %s failed", job.id)
            self._fail(job, "internal", "a fault of the server; its log tells more")
        else:
            self.jobs.end(job, "done", **ended)

    def _trace(self, job: Job, cancel: Cancel) -> dict[str, Any]:
        if self._follow:
            self._tracer.refresh()
        request = job.request
        traced = self._tracer.trace(
            request.prompt,
            request.target,
            request.top_k,
            request.opponents,
            example_id=job.id,
            on_progress=_Meter(self.jobs, job),
            cancel=cancel,
        )
        record = views.record_of(traced)
        size = _JSON_TO_MEMORY * len(answers.encode(record))
        progress = dataclasses.replace(job.progress, fraction=1.0, seconds_left=0.0)
        return {
            "traced": traced,
            "result": record,
            "result_bytes": size,
            "snapshot": traced.version,
            "progress": progress,
        }

    def _fail(self, job: Job, code: str, message: str) -> None:
        self.jobs.end(job, "failed", error=messages.ErrorBody(code, message, ""))


class _Meter:
    """Turns what a tracer tells into what clients are told: share, rate and time left.

    Args:
        jobs: Told each time.
        job: The trace.
    """

    def __init__(self, jobs: Jobs, job: Job):
        self._jobs = jobs
        self._job = job
        self._began: float | None = None

    def __call__(self, told: TraceProgress) -> None:
        now = time.monotonic()
        if told.stage == "scanning" and self._began is None:
            self._began = now
        seconds = 0.0 if self._began is None else now - self._began
        share = told.done_bytes / told.total_bytes if told.total_bytes else 0.0
        known = seconds > 0 and share > 0
        progress = messages.Progress(
            stage=told.stage,
            fraction=round(share, 4),
            rows=told.num_examples,
            rows_per_second=round(told.num_examples / seconds, 1) if known else None,
            seconds_left=round(seconds * (1 - share) / share, 1) if known else None,
        )
        self._jobs.report(self._job, progress)
