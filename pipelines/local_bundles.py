"""Gives worker processes their elements a few at a time, as they become free.

Beam's local runner deals a stage's elements out to its workers before the stage starts, so the run lasts as long as
the unluckiest worker. Here they are dealt into several bundles a worker, and each worker takes the next bundle when
it is done with one: work items of very different size keep all workers busy.
"""

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from apache_beam.metrics import monitoring_infos
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import execution, fn_runner, worker_handlers
from apache_beam.utils import thread_pool_executor

# More make the load more even, and more partial results: a combiner gives one out a bundle.
BUNDLES_PER_WORKER = 8

# Encoded elements of one bundle, by the input that they are for.
Part = dict[str, Any]


class SharingBundleManager(fn_runner.ParallelBundleManager):
    """Runs one stage's elements as bundles that the workers share."""

    def process_bundle(
        self,
        inputs: Mapping[str, execution.PartitionableBuffer],
        expected_outputs: dict[str, bytes],
        fired_timers: Mapping[Any, execution.PartitionableBuffer],
        expected_output_timers: MutableMapping[Any, Any],
        dry_run: bool = False,
    ) -> tuple[beam_fn_api_pb2.InstructionResponse, list[Any]]:
        """Returns the response that sums the bundles' up, and the splits that workers made."""
        if fired_timers or expected_output_timers:  # Timers have to stay with one worker.
            return super().process_bundle(inputs, expected_outputs, fired_timers, expected_output_timers, dry_run)
        workers = self.bundle_context_manager.worker_handlers
        parts = _Shared(_partition(inputs, BUNDLES_PER_WORKER * len(workers)))

        def work(worker: worker_handlers.WorkerHandler) -> list[Any]:
            context: Any = _OneWorker(self.bundle_context_manager, worker)
            manager = fn_runner.BundleManager(
                context,
                self._progress_frequency,
                cache_token_generator=self._cache_token_generator,
            )
            return [manager.process_bundle(part, expected_outputs, {}, {}, dry_run) for part in parts]

        # Beam's own pool: its threads do not keep an interrupted process from ending.
        executor = thread_pool_executor.shared_unbounded_instance()
        done = [result for results in executor.map(work, workers) for result in results]
        return _merged([response for response, _ in done]), [split for _, splits in done for split in splits]


class _Shared:
    """An iterator that threads may share."""

    def __init__(self, parts: list[Part]):
        self._parts = iter(parts)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        with self._lock:
            return next(self._parts)


class _OneWorker:
    """A stage's context in which there is only one worker."""

    def __init__(self, context: execution.BundleContextManager, worker: worker_handlers.WorkerHandler):
        self._context = context
        self.worker_handlers = [worker]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _partition(inputs: Mapping[str, execution.PartitionableBuffer], count: int) -> list[Part]:
    """At most `count` parts, none of them empty, unless there is nothing at all: then one."""
    parts: list[Part] = [{} for _ in range(count)]
    for name, buffer in inputs.items():
        for part, elements in zip(parts, buffer.partition(count), strict=True):
            part[name] = elements
    return [part for part in parts if any(any(elements) for elements in part.values())] or parts[:1]


def _merged(responses: list[beam_fn_api_pb2.InstructionResponse]) -> beam_fn_api_pb2.InstructionResponse:
    infos = [info for response in responses for info in response.process_bundle.monitoring_infos]
    residuals = [root for response in responses for root in response.process_bundle.residual_roots]
    return beam_fn_api_pb2.InstructionResponse(
        process_bundle=beam_fn_api_pb2.ProcessBundleResponse(
            monitoring_infos=monitoring_infos.consolidate(infos), residual_roots=residuals
        )
    )
