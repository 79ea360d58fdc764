"""Runs a pipeline where the flags say: on this machine, or on Dataflow or another of Beam's runners."""

import re
import traceback
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState, create_runner

from pipelines import local_runner, logs, options
from pipelines.errors import PipelineError
from trackstar.errors import BusyError, TrackStarError

# All of Beam's names for a run on this machine mean `LocalRunner`.
_LOCAL_RUNNERS = ("directrunner", "direct", "switchingdirectrunner", "bundlebaseddirectrunner", "fnapirunner", "fnapi")


def is_local(beam_args: Sequence[str]) -> bool:
    """Whether these flags make the pipeline run on this machine."""
    name = options.pipeline_options(beam_args).view_as(StandardOptions).runner
    return _is_local_name(name)


def num_local_workers(beam_args: Sequence[str]) -> int:
    """Worker processes that a run on this machine has with these flags; 1 is this process itself."""
    return local_runner.num_workers(options.pipeline_options(beam_args))


def _is_local_name(name: str | None) -> bool:
    return name is None or name.rsplit(".", 1)[-1].lower() in _LOCAL_RUNNERS


def run_pipeline(build: Callable[[beam.Pipeline], None], beam_args: Sequence[str] = ()) -> PipelineResult:
    """Builds a pipeline, runs it and waits for its end (not with Beam's --no_wait_until_finish).

    Args:
        build: Adds the transforms to the pipeline that it gets.
        beam_args: Beam's flags. Without --runner the pipeline runs on this machine: `--direct_num_workers=N` gives it
            N worker processes; with one it runs in this process.

    Returns:
        Beam's result, in state DONE.

    Raises:
        TrackStarError: a runner that cannot be used, or --template_location.
        BusyError: a job of this name is running on Dataflow.
        PipelineError: the pipeline failed, with the message of the exception that a worker raised.
        KeyboardInterrupt: also where Beam has wrapped it in something else.
    """
    pipeline_options = options.pipeline_options(beam_args)
    if pipeline_options.view_as(GoogleCloudOptions).template_location:
        raise TrackStarError(
            "--template_location only writes a pipeline's graph, and this command has work to do once the pipeline has run: "
            "leave the flag out, or launch the command's Flex Template (docs/operations.md)"
        )
    pipeline = _build_pipeline(build, pipeline_options)
    try:
        result = pipeline.run()
        if pipeline_options.view_as(StandardOptions).no_wait_until_finish:
            return result
        state = result.wait_until_finish()
    except local_runner.WorkerDiedError as error:
        raise PipelineError(str(error), details=str(error.__cause__)) from error
    except Exception as error:
        raise _explain(error) from error
    if state in (PipelineState.FAILED, PipelineState.CANCELLED):
        raise PipelineError(f"the pipeline ended in state {state}")
    return result


def write_template(build: Callable[[beam.Pipeline], None], beam_args: Sequence[str]) -> None:
    """Writes the graph of a Dataflow job to --template_location and runs nothing.

    Raises:
        TrackStarError: a flag that is missing or wrong.
    """
    pipeline_options = options.pipeline_options(beam_args)
    if not pipeline_options.view_as(GoogleCloudOptions).template_location:
        raise TrackStarError("a template needs --template_location=gs://…, where its graph goes")
    _build_pipeline(build, pipeline_options).run()


def _build_pipeline(build: Callable[[beam.Pipeline], None], pipeline_options: PipelineOptions) -> beam.Pipeline:
    runner = _create_runner(pipeline_options)
    try:
        pipeline = beam.Pipeline(runner=runner, options=pipeline_options)
    except ValueError as error:  # Beam's own validation: a flag that this runner needs or refuses.
        raise TrackStarError(str(error)) from error
    build(pipeline)
    return pipeline


def counters(result: PipelineResult) -> dict[str, int]:
    """The pipeline's own counters by name, summed over steps and namespaces; empty where none can be had."""
    totals: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        value = counter.committed if counter.committed is not None else counter.attempted
        totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + (value or 0)
    return totals


def _create_runner(pipeline_options: PipelineOptions) -> PipelineRunner:
    name = pipeline_options.view_as(StandardOptions).runner
    if _is_local_name(name):
        direct = pipeline_options.view_as(DirectOptions)
        if direct.direct_num_workers < 0:
            raise TrackStarError(f"--direct_num_workers is {direct.direct_num_workers}; 0 means one a core")
        if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
        return local_runner.LocalRunner(pipeline_options)
    if "dask" in name.lower():
        raise TrackStarError(
            "DaskRunner loses data (a pipeline that writes Parquet ends as DONE with no rows written): "
            "use --runner=DirectRunner with --direct_num_workers on one machine, or --runner=DataflowRunner"
        )
    try:
        return create_runner(name)
    except (ValueError, ImportError) as error:
        raise TrackStarError(f"--runner={name}: {error}") from error


_TRACEBACK = "Traceback (most recent call last):"
_STEP = re.compile(r" \[while running '([^']*)'\]")
_TYPE = re.compile(r"^([A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit)|[A-Za-z_]\w*(?:\.\w+)+)(?:: |$)", re.MULTILINE)


def _explain(error: Exception) -> BaseException:
    """What a step raised, as one message without Beam's frames.

    A worker process sends its traceback as text inside a RuntimeError; in this process the exception itself comes,
    or a RuntimeError with its type and message where Beam could not rebuild it with the step's name.
    """
    if type(error).__name__ == "DataflowJobAlreadyExistsError":
        return BusyError(f"{error} The one that runs keeps its work; wait for its end, or cancel it first.")
    details = str(error)
    if _TRACEBACK not in details:
        details = "".join(traceback.format_exception(error))
    text = _last_exception(details)
    step = _STEP.search(text)
    text = _STEP.sub("", text).strip()
    while text.startswith("RuntimeError: ") and _TYPE.match(inner := text.removeprefix("RuntimeError: ")):
        text = inner
    if text.startswith("KeyboardInterrupt"):
        return KeyboardInterrupt()
    kind = _TYPE.match(text)
    if kind and kind.group(1).startswith(tuple(f"{package}." for package in logs.OWN_PACKAGES)):
        return PipelineError(text[kind.end() :], details)
    where = f" (in step {step.group(1)})" if step else ""
    return PipelineError(f"{text}{where}", details)


def _last_exception(details: str) -> str:
    """The lines after the last traceback's frames: "ValueError: message", perhaps over several lines."""
    lines = details.rsplit(f"{_TRACEBACK}\n", 1)[-1].split("\n")
    while len(lines) > 1 and lines[0].startswith("  "):
        lines.pop(0)
    return "\n".join(lines).strip()
