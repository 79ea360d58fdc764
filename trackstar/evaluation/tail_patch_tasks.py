"""The parts that a tail-patch run is cut into: each small, by itself, and with a name that its input determines.

What a task finds is a file under that name, so a run that broke off is taken up by skipping the tasks whose file exists.
"""

import abc
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trackstar import storage
from trackstar.batching import Example
from trackstar.corpus import Record, WorkItem, read
from trackstar.device_memory import TooLongError
from trackstar.evaluation.tail_patch import TailPatch
from trackstar.tokenization import UnusableRecordError

Load = Callable[[], TailPatch]
"""Gives the process's `TailPatch`; tasks that need none do not call it."""
OnProgress = Callable[[int, int], None]
"""Told how many of a task's steps are done and how many pairs (or documents) came of them."""


class Task(Protocol):
    """A part of a run; a frozen dataclass, whose fields determine what it finds."""

    @property
    def size(self) -> int:
        """Steps, for progress."""

    def compute(self, load: Load, on_progress: OnProgress) -> Any:
        """What is to be found, as JSON can hold it; the same every time."""

    def parse(self, content: Any) -> Any:
        """The same as it is used."""


class Runner(Protocol):
    """Runs tasks, in whatever order and place, and gives what they found in the order of the tasks."""

    def __call__(self, tasks: Sequence[Task], label: str) -> list[Any]:
        """`label` says what is being done ("measuring")."""


def key(task: Task, identity: str) -> str:
    """Name of a task's file: 32 hexadecimal digits over the task and what else its numbers depend on."""
    return hashlib.sha256(f"{identity}\n{task!r}".encode("utf-8", "backslashreplace")).hexdigest()[:32]


def to_bytes(task: Task, load: Load, on_progress: OnProgress) -> bytes:
    """What a task finds, as its file holds it."""
    return json.dumps(task.compute(load, on_progress), allow_nan=False).encode()


def run_here(patch: TailPatch) -> Runner:
    """Runs tasks in this process, one after the other, with no files."""

    def run(tasks: Sequence[Task], label: str) -> list[Any]:
        return [task.parse(task.compute(lambda: patch, lambda steps, pairs: None)) for task in tasks]

    return run


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A query, as far as a measurement needs it."""

    prompt: str
    target: str


@dataclasses.dataclass(frozen=True)
class Group:
    """A document and the queries that are measured after a step on it; None: a step with a zero gradient."""

    document: Record | None
    queries: tuple[Prompted, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one (document, query) pair."""

    before: float | None = None
    """p(target | prompt) in the checkpoint; None where it is not to be had."""
    after: tuple[float | None, ...] = ()
    """The same after the step, for each learning rate; None where it is not finite."""
    slope: float | None = None
    """∂p/∂rate, of a `SlopeTask` alone."""
    reason: str = ""
    """Why there is nothing to measure; empty where there is."""
    cut: bool = False
    """Whether the document lost its end to the length limit."""


@dataclasses.dataclass(frozen=True)
class _OfPairs(abc.ABC):
    """Takes one step a group; finds a list a group, of one outcome a query."""

    groups: tuple[Group, ...]

    @property
    def size(self) -> int:
        return len(self.groups)

    def compute(self, load: Load, on_progress: OnProgress) -> Any:
        outcomes, pairs = [], 0
        for number, group in enumerate(self.groups, start=1):
            outcomes.append([dataclasses.asdict(outcome) for outcome in self._outcomes(load(), group)])
            pairs += len(group.queries)
            on_progress(number, pairs)
        return outcomes

    def parse(self, content: Any) -> list[list[Outcome]]:
        return [[Outcome(**{**fields, "after": tuple(fields["after"])}) for fields in group] for group in content]

    def _outcomes(self, patch: TailPatch, group: Group) -> list[Outcome]:
        document, cut = None, False
        if group.document is not None:
            try:
                document, cut = patch.document(group.document)
            except UnusableRecordError as error:
                return [Outcome(reason=f"proponent: {error}")] * len(group.queries)
        examples: dict[int, Example] = {}
        reasons: dict[int, str] = {}
        for i, query in enumerate(group.queries):
            try:
                examples[i] = patch.query(query.prompt, query.target)
            except UnusableRecordError as error:
                reasons[i] = f"query: {error}"
        try:
            found = self._measured(patch, document, list(examples.values()))
        except TooLongError as error:
            return [Outcome(reason=reasons.get(i, str(error))) for i in range(len(group.queries))]
        measured = dict(zip(examples, found, strict=True))
        return [
            dataclasses.replace(measured[i], cut=cut) if i in measured else Outcome(reason=reasons[i])
            for i in range(len(group.queries))
        ]

    @abc.abstractmethod
    def _measured(self, patch: TailPatch, document: Example | None, queries: list[Example]) -> list[Outcome]:
        """What the step on the document does to each query."""


@dataclasses.dataclass(frozen=True)
class MeasureTask(_OfPairs):
    """Probabilities before, and after a step at each of some learning rates."""

    rates: tuple[float, ...]

    def _measured(self, patch: TailPatch, document: Example | None, queries: list[Example]) -> list[Outcome]:
        if not queries:
            return []
        measured = patch.measure(document, queries, *self.rates)
        return [
            Outcome(_finite(before), tuple(_finite(after[i]) for after in measured.after))
            for i, before in enumerate(measured.before)
        ]


@dataclasses.dataclass(frozen=True)
class SlopeTask(_OfPairs):
    """Probabilities before, and their slopes along a step at rate 0."""

    def _measured(self, patch: TailPatch, document: Example | None, queries: list[Example]) -> list[Outcome]:
        found = [patch.slope(document, query) for query in queries]
        return [Outcome(_finite(before), slope=_finite(slope)) for before, slope in found]


@dataclasses.dataclass(frozen=True)
class Description:
    """What kind of step a run takes; see `training_step.StepRules`."""

    kind: str
    steps: int | None
    saved_rate: float | None
    first_rate: float | None
    has_drift: bool


@dataclasses.dataclass(frozen=True)
class DescribeTask:
    """Loads model and optimizer state, and finds a `Description`."""

    size: int = 0

    def compute(self, load: Load, on_progress: OnProgress) -> Any:
        rules = load().rules
        return dataclasses.asdict(
            Description(rules.kind, rules.steps, rules.saved_rate, rules.first_rate, rules.has_drift)
        )

    def parse(self, content: Any) -> Description:
        return Description(**content)


@dataclasses.dataclass(frozen=True)
class LookUpTask:
    """Looks through a part of the corpus for documents by their ids; finds a list of `Record`s, and needs no model.

    Args:
        item: The part.
        wanted_uri: A JSON list of ids, in a file whose name its content determines.
    """

    item: WorkItem
    wanted_uri: str

    @property
    def size(self) -> int:
        return self.item.num_bytes

    def compute(self, load: Load, on_progress: OnProgress) -> Any:
        wanted = set(json.loads(storage.read_bytes(self.wanted_uri)))
        records = (record for record in read(self.item) if isinstance(record, Record))
        found = [dataclasses.asdict(record) for record in records if record.example_id in wanted]
        on_progress(0, len(found))
        return found

    def parse(self, content: Any) -> list[Record]:
        return [
            Record(**{**fields, "input_ids": fields["input_ids"] and tuple(fields["input_ids"])}) for fields in content
        ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
