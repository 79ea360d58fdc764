"""Measures how one training step on each proponent changes the probability of what the model said.

For every query of a results file and each of its first proponents: one step of the saved optimizer on the proponent alone,
p(target | prompt) after it less the same before it, and the model as it was again. Means are in percentage points.

The step's size decides. Without --learning_rate the largest rate is taken at which changes are still proportional to it, on a
sample of pairs; a stated rate is held against the same measurement. To compare methods, state one rate for all of them.
A run that broke off is taken up by starting it again.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from pipelines import cli, cost_flags, costs, flag_types, options, runner
from pipelines.cost_flags import add_cost_arguments
from pipelines.elements import OneByOne
from pipelines.model_flags import add_worker_arguments
from pipelines.progress import Progress, Reporter, say
from trackstar import corpus, storage
from trackstar.corpus import Record
from trackstar.cost.evaluation_commands import estimate_tail_patch
from trackstar.evaluation import tail_patch_run as runs
from trackstar.evaluation.tail_patch import TailPatch, TailPatchSettings, TailPatchSource
from trackstar.evaluation.tail_patch_plan import Plan, make_plan
from trackstar.evaluation.tail_patch_tasks import LookUpTask, Task, key, to_bytes
from trackstar.results import read_results

_ITEM_BYTES = 16 << 20
SETTINGS_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TailPatchSettings)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--results", required=True, metavar="FILE", help="results, JSONL, with the proponents' texts")
    parser.add_argument("--output", required=True, metavar="FILE", help="one line a (query, proponent) pair, JSONL")
    parser.add_argument("--top_k", type=flag_types.positive, default=10, metavar="N", help="proponents a query")
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="GLOB",
        help="shards to look up proponents by id, where the results hold no texts",
    )
    group = add_worker_arguments(
        parser, "checkpoint folder of the model, with its tokenizer; runs in float32", "a probability"
    )
    group.add_argument(
        "--optimizer_state", metavar="FILE", help="optimizer.pt or its folder (that of the model, if it has one)"
    )
    group = parser.add_argument_group("the step")
    group.add_argument(
        "--learning_rate",
        type=_rate,
        default="auto",
        metavar="auto|saved|X",
        help="auto: the largest in the linear range; saved: the one in the optimizer's state; or a number",
    )
    group.add_argument(
        "--linear_sample",
        type=flag_types.natural,
        default=64,
        metavar="N",
        help="pairs that learning rates are judged on; 0 takes a stated one as it is",
    )
    options.add_field_arguments(group, TailPatchSettings, SETTINGS_DEFAULTS)
    add_cost_arguments(parser)


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Measures every pair of the results file and writes one line each."""
    plan = make_plan(read_results(args.results), args.top_k)
    if not args.corpus:
        plan.check_texts()
    settings = TailPatchSettings(**{name: getattr(args, name) for name in SETTINGS_DEFAULTS})
    source = TailPatchSource(args.model, args.optimizer_state, settings, args.device, args.threads_per_worker)
    if cost_flags.wanted(args):
        return costs.dry_run(
            args,
            beam_args,
            lambda basis: estimate_tail_patch(plan, source, args.learning_rate, args.linear_sample, basis),
        )
    tasks = TaskRunner(source, storage.join(f"{args.output}.work"), beam_args)
    if args.corpus and plan.without_text:
        plan = look_up(plan, args.corpus, tasks)
    patches = runs.measure(plan, tasks, args.learning_rate, args.linear_sample, say)
    rejects = runs.write(args.output, patches)
    for line in patches.summary():
        say(line)
    say(f"{args.output}: {plan.num_pairs:,} pairs" + (f"; those not measured are in {rejects}" if rejects else ""))
    storage.delete(tasks.work)
    return cli.EXIT_DONE


def look_up(plan: Plan, patterns: Sequence[str], tasks: "TaskRunner") -> Plan:
    """The plan with the documents that its results do not quote, as far as the corpus has them."""
    wanted = sorted(set(plan.without_text))
    content = json.dumps(wanted).encode()
    uri = storage.join(tasks.work, f"wanted-{hashlib.sha256(content).hexdigest()[:32]}.json")
    storage.write_bytes(uri, content)
    items = corpus.plan(corpus.expand(patterns), _ITEM_BYTES)
    run = dataclasses.replace(tasks, unit="documents")
    found: dict[str, Record] = {}
    for records in run([LookUpTask(item, uri) for item in items], "looking up proponents"):
        for record in records:
            found.setdefault(record.example_id, record)
    say(f"{len(found):,} of {len(wanted):,} proponents without text are in the corpus")
    return plan.with_documents(found)


@dataclasses.dataclass(frozen=True)
class TaskRunner:
    """Runs tasks as a pipeline. What each finds is a file under `work`; those whose file exists are done.

    Args:
        source: The model and its optimizer.
        work: Folder of this run.
        beam_args: Beam's flags.
        unit: What tasks count.
    """

    source: TailPatchSource
    work: str
    beam_args: Sequence[str]
    unit: str = "pairs"

    def __call__(self, tasks: Sequence[Task], label: str) -> list[Any]:
        """What the tasks found, in their order."""
        identity = self.source.identity()
        uris = [storage.join(self.work, f"{key(task, identity)}.json") for task in tasks]
        present = {file.uri for file in storage.list(self.work)}
        missing = {uri: task for uri, task in zip(uris, tasks, strict=True) if storage.normalise(uri) not in present}
        if missing:
            if len(missing) < len(tasks):
                say(f"{label}: {len(tasks) - len(missing):,} of {len(tasks):,} tasks are done already")
            total = float(sum(task.size for task in missing.values()))
            enabled = runner.is_local(self.beam_args)
            with Progress(label, total, len(missing), self.unit, enabled=enabled) as progress:
                transform = RunTasks(list(missing.items()), self.source, progress.reporter)
                runner.run_pipeline(lambda pipeline: pipeline | "RunTasks" >> transform, self.beam_args)
        return [task.parse(json.loads(storage.read_bytes(uri))) for uri, task in zip(uris, tasks, strict=True)]


@dataclasses.dataclass
class RunTasks(beam.PTransform):
    """Tasks → files of what they find.

    Args:
        tasks: (file, task) pairs.
        source: The model and its optimizer.
        reporter: Where progress goes.
    """

    tasks: list[tuple[str, Task]]
    source: TailPatchSource
    reporter: Reporter

    def expand(self, root: Any) -> Any:
        return root | OneByOne(self.tasks) | "RunTask" >> beam.ParDo(RunTask(self.source, self.reporter))


class RunTask(beam.DoFn):
    """Runs one task; model and optimizer state are loaded once a process, by the first task that needs them."""

    def __init__(self, source: TailPatchSource, reporter: Reporter):
        self._source = source
        self._reporter = reporter
        self._shared = Shared()
        self._patch: TailPatch | None = None
        self._steps = Metrics.counter("trackstar", "num_tail_patch_steps")
        self._pairs = Metrics.counter("trackstar", "num_tail_patch_pairs")
        self._loading = Metrics.distribution("trackstar", "load_model_latency_milli_secs")

    def process(self, element: tuple[str, Any]) -> Iterator[str]:
        uri: str = element[0]
        task: Task = element[1]
        if not storage.exists(uri):
            done = (0, 0)

            def on_progress(steps: int, pairs: int) -> None:
                nonlocal done
                done = (steps, pairs)
                self._reporter.report(uri, steps, pairs)

            storage.write_bytes(uri, to_bytes(task, self._load, on_progress))
            self._steps.inc(done[0])
            self._pairs.inc(done[1])
            self._reporter.report(uri, task.size, done[1], finished=True)
        yield uri

    def _load(self) -> TailPatch:
        if self._patch is None:
            started = time.monotonic()
            self._patch = self._shared.acquire(self._source.load, tag=self._source)
            self._loading.update(round(1000 * (time.monotonic() - started)))
        return self._patch


def _rate(text: str) -> float | str:
    """ "auto", "saved" or a number above zero."""
    if text in ("auto", "saved"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor saved nor a number above zero")
    return value


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.tail_patch`."""
    return cli.run_command("tail-patch", argv)


if __name__ == "__main__":
    raise SystemExit(main())
