"""Beam's FnApiRunner with worker processes that are watched.

Beam's own subprocess workers have three gaps, each closed here and tested in tests/pipelines/test_runner.py:

- A worker that is killed (out of memory, SIGKILL) hangs the pipeline for ever: nobody answers its instructions. Here a
  thread waits for the process and, when it ends unasked, answers them with an error.
- An error in one worker shows only when the workers before it in the list are done, perhaps hours later. Here the
  first error answers the instructions of all workers.
- A launcher that is killed leaves its workers running. See `pipelines.worker`.

This relies on internals of apache-beam 2.77: the project pins Beam to one minor version.
"""

import collections
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_provision_api_pb2, beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import execution, fn_runner, worker_handlers
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.worker import data_plane
from google.protobuf import json_format, text_format

from pipelines import logs
from pipelines.local_bundles import SharingBundleManager

_LOGGER = logging.getLogger(__name__)

# Stands for Beam's subprocess environment in the pipelines that `LocalRunner` runs.
WORKER_URN = "trackstar:env:watched_process:v1"

# A worker that was told to finish runs its DoFns' teardown; after this many seconds it is killed.
SHUTDOWN_SECONDS = 30.0

_TAIL_LINES = 20


class WorkerDiedError(RuntimeError):
    """A worker process ended while it still had work."""


class WorkerGroup:
    """The worker processes of one run, and the first thing that went wrong in any of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_failed = threading.Event()
        self._workers: list[WatchedWorker] = []
        self.error: str | None = None
        self.death: str | None = None

    def settle(self, seconds: float = 2.0) -> None:
        """Waits a moment for the cause of a failure: a broken stream is noticed before the death that broke it."""
        if self._workers:
            self._has_failed.wait(seconds)

    def add(self, worker: "WatchedWorker") -> None:
        with self._lock:
            self._workers.append(worker)

    def fail(self, error: str, death: bool = False) -> None:
        """Answers every instruction of every worker with `error`; only the first call counts."""
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            self.death = error if death else None
            self._has_failed.set()
            workers = list(self._workers)
        for worker in workers:
            worker.connection.answer_all(error)


class _Connection(worker_handlers.ControlConnection):
    """The instructions to one worker; as Beam's, but an error in any worker of the group ends the waiting."""

    def __init__(self, group: WorkerGroup) -> None:
        super().__init__()
        self._group = group
        self._read_thread.daemon = True

    @property
    def is_started(self) -> bool:
        return self._state == worker_handlers.BeamFnControlServicer.STARTED_STATE

    @property
    def is_waiting(self) -> bool:
        return bool(self._futures_by_id)

    def _read(self) -> None:
        try:
            for response in self._input or ():
                future = self._futures_by_id.pop(response.instruction_id, None)
                if future is not None:
                    future.set(response)
                if response.error:
                    self._group.fail(response.error)
        except Exception as error:  # gRPC raises its own kind when the worker's side is gone; the watcher says why.
            _LOGGER.debug("the control stream of a worker ended: %s", error)

    def push(self, req: Any) -> Any:
        future = super().push(req)
        if self._group.error is not None:
            self.answer_all(self._group.error)
        return future

    def answer_all(self, error: str) -> None:
        """Answers all instructions that wait for this worker with `error`."""
        while True:
            try:
                instruction_id, future = self._futures_by_id.popitem()
            except KeyError:
                return
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=instruction_id, error=error))


class _DataChannel(data_plane._GrpcDataChannel):
    """The data to and from one worker; as Beam's, but without a traceback on the terminal when the worker is gone."""

    def _read_inputs(self, elements_iterator: Any) -> None:
        try:
            super()._read_inputs(elements_iterator)
        except grpc.RpcError as error:
            _LOGGER.debug("the data stream of a worker ended: %r", error)


class ProvisionInfo(fn_runner.ExtendedProvisionInfo):
    """What workers are told when they start: the pipeline's options; and here, the group that they belong to."""

    def __init__(self, options: PipelineOptions, workers: WorkerGroup, variables: dict[str, str]):
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        super().__init__(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
        self.workers = workers
        self.variables = variables

    def for_environment(self, environment: beam_runner_api_pb2.Environment) -> "ProvisionInfo":
        return self


@worker_handlers.WorkerHandler.register_environment(WORKER_URN, bytes)
class WatchedWorker(worker_handlers.GrpcWorkerHandler):
    """One worker process, running `pipelines.worker`.

    Its standard output and error come through a pipe: log records are shown as the launcher's own, other lines only
    with --debug, and the last of them in the message when the process dies.
    """

    def __init__(
        self,
        payload: bytes,
        state: worker_handlers.StateServicer,
        provision_info: ProvisionInfo,
        grpc_server: worker_handlers.GrpcServer,
    ):
        super().__init__(state, provision_info, grpc_server)
        self._group = provision_info.workers
        self._variables = provision_info.variables
        self.connection = _Connection(self._group)
        self.control_conn = self.connection
        grpc_server.control_handler._connections_by_worker_id[self.worker_id] = self.connection
        self.data_conn = _DataChannel(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)
        grpc_server.data_plane_handler._connections_by_worker_id[(self.worker_id, "")] = self.data_conn
        self._process: subprocess.Popen[str] | None = None
        self._is_closing = False
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._threads: list[threading.Thread] = []
        self._group.add(self)

    def start_worker(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                **os.environ,
                **self._variables,
                "WORKER_ID": self.worker_id,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
                "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            },
        )
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._show, args=(self._process.stdout,), daemon=True, name="worker-output")
        watcher = threading.Thread(target=self._watch, args=(self._process, reader), daemon=True, name="worker-watch")
        self._threads = [reader, watcher]
        for thread in self._threads:
            thread.start()

    def _show(self, output: IO[str]) -> None:
        for line in _lines(output):
            record = logs.parse_record(line)
            if record is not None:
                logging.getLogger(record.name).handle(record)
            else:
                self._last_lines.append(line)
                _LOGGER.debug("%s: %s", self.worker_id, line)

    def _watch(self, process: "subprocess.Popen[str]", reader: threading.Thread) -> None:
        code = process.wait()
        if self._is_closing:
            return
        reader.join(timeout=1.0)
        self._group.fail(_describe_end(process.pid, code, self._last_lines), death=True)

    def close(self) -> None:
        self._is_closing = True
        if self.connection.is_waiting or self._group.error is not None or not self.connection.is_started:
            self._group.fail("the run was stopped")  # It is over before the work is done: nobody waits for the rest.
            self._kill()
        super().close()

    def stop_worker(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(timeout=SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            _LOGGER.warning("worker process %d did not finish in %g s: killed", self._process.pid, SHUTDOWN_SECONDS)
            self._kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _lines(output: IO[str]) -> Iterator[str]:
    with output:
        for line in output:
            yield line.rstrip("\n")


def _describe_end(pid: int, code: int, last_lines: "collections.deque[str]") -> str:
    if code == -signal.SIGKILL:
        how = (
            "was killed (SIGKILL), as the system does when memory runs out: "
            "use fewer workers (--direct_num_workers) or smaller batches (--batch_tokens)"
        )
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"exited with code {code} before its work was done"
    tail = "".join(f"\n  {line}" for line in last_lines)
    return f"worker process {pid} {how}" + (f"\nits last lines:{tail}" if tail else "")


class LocalRunner(fn_runner.FnApiRunner):
    """FnApiRunner, in this process or with `--direct_num_workers` watched worker processes.

    Never Prism, which Beam's DirectRunner tries first (it downloads a program), and with explicit provision info,
    without which subprocess workers would get no options.
    """

    def __init__(self, options: PipelineOptions):
        self._workers = WorkerGroup()
        variables = _thread_limits(num_workers(options))
        super().__init__(provision_info=ProvisionInfo(options, self._workers, variables))

    def _get_bundle_manager(self, bundle_context_manager: execution.BundleContextManager) -> fn_runner.BundleManager:
        manager = super()._get_bundle_manager(bundle_context_manager)
        if not isinstance(manager, fn_runner.ParallelBundleManager):
            return manager
        return SharingBundleManager(
            bundle_context_manager,
            self._progress_frequency,
            cache_token_generator=self.get_cache_token_generator(static=False),
        )

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> fn_runner.RunnerResult:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn = WORKER_URN
        try:
            return super().run_via_runner_api(pipeline_proto, options)
        except Exception as error:
            self._workers.settle()
            if self._workers.death is not None:
                raise WorkerDiedError(self._workers.death) from error
            raise


def num_workers(options: PipelineOptions) -> int:
    """Workers of a local run: --direct_num_workers, where 0 means one a core."""
    return options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1


def _thread_limits(workers: int) -> dict[str, str]:
    """Environment of a worker process: the cores are shared out, unless the person has set a number of threads."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    defaults = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    return {name: value for name, value in defaults.items() if name not in os.environ}
