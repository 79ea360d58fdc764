"""Runs a command of `trackstar` inside a Dataflow job: what the Flex Templates launch.

The launcher of a Flex Template writes the graph of one pipeline and is gone before that pipeline runs. The commands of this
package plan before their pipelines, run several of them, and commit after the last. So the graph of every template is one
step on one small worker, the driver, which runs the command as a process of its own; the command starts its own Dataflow
jobs, waits for them and commits.

What the launcher passes, `--name=value` each, are the flags of this module, the command's and Beam's. Beam's that say where
a job runs (project, network, image …) hold for the driver and for the command's jobs; all others (machine type, accelerator,
number of workers …) are for the command's jobs alone.
"""

import argparse
import collections
import dataclasses
import inspect
import json
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence

import apache_beam as beam

from pipelines import cli, logs, options, runner
from pipelines.errors import PipelineError
from trackstar import storage
from trackstar.errors import TrackStarError

_LOGGER = logging.getLogger(__name__)

DONE_MESSAGE = "trackstar {command}: the driver is done"
"""Logged when a command has ended well; the alert for a missed night counts these lines."""

LABEL = "trackstar-command"
WORK_SUFFIX = "-work"

# Beam's flags that hold for the driver as well.
_SHARED = (
    "runner",
    "project",
    "region",
    "temp_location",
    "staging_location",
    "network",
    "subnetwork",
    "use_public_ips",
    "no_use_public_ips",
    "sdk_container_image",
    "dataflow_kms_key",
    "labels",
)
# Beam's flags that are the driver's, and that the command's jobs get other values of, or none.
_DRIVERS = ("job_name", "service_account_email", "template_location")

_BUSY_SECONDS = 60.0
_TAIL_LINES = 30
_STOP_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The driver's own flags."""
    parser.add_argument("--command", required=True, choices=commands(), help="the command to run")
    parser.add_argument(
        "--worker_service_account",
        metavar="EMAIL",
        help="service account of the command's workers; the driver's own where left out",
    )
    parser.add_argument(
        "--driver_machine_type",
        default="e2-standard-4",
        metavar="TYPE",
        help="machine that the command's main process runs on, beside its workers; no GPU is needed",
    )
    parser.add_argument(
        "--driver_disk_size_gb",
        type=int,
        default=100,
        metavar="N",
        help="disk of that machine, in GB: the image, and for fit the model",
    )


def commands() -> list[str]:
    """The commands that a driver can run."""
    return [name for name, command in cli.COMMANDS.items() if command.runs_pipelines and name != "demo"]


@dataclasses.dataclass(frozen=True)
class Launch:
    """What the parameters of a template ask for.

    Args:
        command: The command's name.
        words: Its command line, Beam's flags of its own jobs included.
        driver_args: Beam's flags of the driver's job.
        state_uri: File that holds what became of the command, for a driver that is started again.
    """

    command: str
    words: list[str]
    driver_args: list[str]
    state_uri: str

    @classmethod
    def parse(cls, argv: Sequence[str]) -> "Launch":
        """Sorts the words that a template's launcher passes.

        Raises:
            UsageError: a word that neither the driver nor the command nor Beam understands.
        """
        own = options.Parser(prog="driver", description=inspect.cleandoc(__doc__ or ""))
        add_arguments(own)
        args, rest = own.parse_known_args(list(argv))
        parser = cli.parser(args.command)
        command_args, beam_args = options.split(parser, options.from_parameters(parser, rest))
        where = options.named(beam_args, (*_SHARED, *_DRIVERS))
        job = options.value_of(beam_args, "job_name") or f"trackstar-{args.command}"
        temp = options.value_of(beam_args, "temp_location")
        if temp is None:
            raise options.UsageError("--temp_location is needed: a folder for what the driver notes down (gs://…)")
        label = f"--labels={LABEL}={args.command}"
        labels = options.named(beam_args, ["labels"])
        not_works = {*options.named(beam_args, _DRIVERS), *labels}
        work = [word for word in beam_args if word not in not_works] + _own_labels(labels)
        account = args.worker_service_account or options.value_of(beam_args, "service_account_email")
        words = [*command_args, *work, f"--job_name={job}{WORK_SUFFIX}", label]
        words += [f"--service_account_email={account}"] if account else []
        options.parse(parser, words)
        machine = [
            f"--machine_type={args.driver_machine_type}",
            f"--disk_size_gb={args.driver_disk_size_gb}",
            "--num_workers=1",
            "--max_num_workers=1",
            "--autoscaling_algorithm=NONE",
            "--number_of_worker_harness_threads=1",
            "--experiments=no_use_multiple_sdk_containers",
        ]
        if options.value_of(beam_args, "job_name") is None:
            where = [*where, f"--job_name={job}"]
        state_uri = storage.join(temp, "driver", f"{job}-{uuid.uuid4().hex}.json")
        return cls(args.command, words, [*where, label, *machine], state_uri)


def _own_labels(words: Sequence[str]) -> list[str]:
    """--labels without those that Dataflow gives a job of a template, and takes from nobody else: all in one JSON object."""
    labels: dict[str, str] = {}
    for word in words:
        value = word.partition("=")[2]
        labels |= json.loads(value) if value.startswith("{") else dict([value.split("=", maxsplit=1)])
    return [f"--labels={name}={value}" for name, value in labels.items() if not name.startswith("goog-")]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the driver's graph where --template_location says, as a template's launcher wants; else runs it."""
    logs.configure()
    try:
        launch = Launch.parse(sys.argv[1:] if argv is None else argv)
        print(f"driver: trackstar {launch.command} {' '.join(launch.words)}", file=sys.stderr)
        if options.value_of(launch.driver_args, "template_location"):
            runner.write_template(lambda pipeline: build(pipeline, launch), launch.driver_args)
        else:
            runner.run_pipeline(lambda pipeline: build(pipeline, launch), launch.driver_args)
    except TrackStarError as error:
        print(f"driver: error: {error}", file=sys.stderr)
        return cli.EXIT_FAILED if isinstance(error, PipelineError) else cli.EXIT_USAGE
    return cli.EXIT_DONE


def build(pipeline: beam.Pipeline, launch: Launch) -> None:
    """The driver's graph."""
    run = RunCommand(launch.command, launch.words, launch.state_uri)
    _ = pipeline | "Once" >> beam.Create([launch.command], reshuffle=False) | "RunCommand" >> beam.ParDo(run)


@dataclasses.dataclass
class State:
    """What is known of a command that a driver runs; it outlives the driver's worker.

    Args:
        attempts: How often the command was started.
        done: It has ended well.
        failure: Why it has ended badly.
    """

    attempts: int = 0
    done: bool = False
    failure: str = ""

    @classmethod
    def load(cls, uri: str) -> "State":
        """The state in the file; a fresh one without a file."""
        return cls(**json.loads(storage.read_bytes(uri))) if storage.exists(uri) else cls()

    def save(self, uri: str) -> None:
        """Writes the file."""
        storage.write_bytes(uri, json.dumps(dataclasses.asdict(self)).encode())


class RunCommand(beam.DoFn):
    """Runs the command once, though Dataflow runs a failed step four times.

    A command that failed has said why, and would say it again, perhaps after hours of work: later attempts repeat its
    message and start nothing. Where the driver's machine was lost, no message was left: the next attempt starts the
    command again, which takes up its own work, and waits for what the lost one has left running.

    Args:
        command: Its name.
        words: Its command line.
        state_uri: File of the `State`.
        busy_seconds: How long to wait between looks at work that a lost driver has left running.
    """

    def __init__(self, command: str, words: list[str], state_uri: str, busy_seconds: float = _BUSY_SECONDS):
        self._command, self._words, self._state_uri = command, words, state_uri
        self._busy_seconds = busy_seconds

    def process(self, _: str) -> Iterator[str]:
        state = State.load(self._state_uri)
        if state.failure:
            raise PipelineError(state.failure)
        if not state.done:
            state.attempts += 1
            state.save(self._state_uri)
            code, tail = run_command(self._command, self._words)
            while code == cli.EXIT_BUSY and state.attempts > 1:
                _LOGGER.info("%s: waiting for what an earlier driver has left running", self._command)
                time.sleep(self._busy_seconds)
                code, tail = run_command(self._command, self._words)
            if code != cli.EXIT_DONE:
                state.failure = f"trackstar {self._command} ended with exit code {code}:\n{tail}"
                state.save(self._state_uri)
                raise PipelineError(state.failure)
            state.done = True
            state.save(self._state_uri)
            _LOGGER.info("%s", DONE_MESSAGE.format(command=self._command))
        yield self._command


def run_command(command: str, words: Sequence[str]) -> tuple[int, str]:
    """Runs a command as a process and logs what it says, line by line.

    Returns:
        Exit code, and the last lines.
    """
    line = [sys.executable, "-u", "-m", "pipelines", command, *words]
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    process = subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            for text in process.stdout:
                if text.strip():
                    tail.append(text.rstrip())
                    _LOGGER.info("%s: %s", command, text.rstrip())
        return process.wait(), "\n".join(tail)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
