"""Work divided by rates: seconds of each part of a run, machine-hours and money.

A part is shared by all machines, or done by each of them, or once by one. The shared parts are cut into items, so with N machines
and I items the last round of items decides: shared · ⌈I/N⌉ / I; or the largest item, where it takes longer. Parts follow each
other; nothing is taken to overlap, since a worker reads, encodes and writes in turn.
"""

import dataclasses
from typing import Literal

from trackstar.cost.prices import Machine, Prices
from trackstar.cost.rates import Rates
from trackstar.cost.shapes import CorpusShape, EncodingShape, ScanShape, StepsShape, WhiteningShape

Share = Literal["shared", "each", "once"]
RESULT_BYTES = 1000
"""Of a winner in a results file, its text included, typically."""
DISK_GB = 50
"""Of a Dataflow worker."""
_HOUR = 3600.0
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that a run does."""

    name: str
    amount: float
    unit: str
    """Of `amount`: "FLOP", "B", "s", "pairs", …"""
    rate: float | None
    """`unit` a second; None where nothing is known of it, and then it counts nothing and is shown so."""
    share: Share = "shared"

    @property
    def seconds(self) -> float:
        """On one machine."""
        return self.amount / self.rate if self.rate else 0.0

    @property
    def is_unknown(self) -> bool:
        """Whether there is work whose rate is not known."""
        return self.rate is None and self.amount > 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pipeline run, or one step of the launcher: parts, and the items that the shared ones are cut into."""

    name: str
    items: int
    parts: tuple[Part, ...]
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    kept_bytes: float = 0.0
    """Of what is written: what is still there when the command is done."""
    shuffle_bytes: float = 0.0
    flops: float = 0.0
    object_reads: float = 0.0
    object_writes: float = 0.0
    largest_share: float = 0.0
    """Share of the shared work that the largest item has; 0 where all are about as large."""

    def of(self, share: Share) -> float:
        """Seconds of all parts of one kind."""
        return sum(part.seconds for part in self.parts if part.share == share)

    def wall_seconds(self, machines: int) -> float:
        """From begin to end with so many machines."""
        rounds = max(-(-self.items // machines) / self.items, self.largest_share) if self.items else 0.0
        return self.of("shared") * rounds + self.of("each") + self.of("once")

    def machine_seconds(self, machines: int) -> float:
        """Seconds that machines are held and paid: idle ones while others finish are not, since a runner gives them back."""
        return self.of("shared") + self.of("each") * min(machines, max(1, self.items)) + self.of("once")


@dataclasses.dataclass(frozen=True)
class Money:
    """What a run costs, in the table's currency; None where a price is not known."""

    on_demand: float | None
    spot: float | None
    dataflow: float | None
    """vCPU, memory, disk, accelerators and shuffle at Dataflow's prices, in place of the machines'."""
    operations: float
    """Requests to the object store."""
    storage_month: float
    """Keeping what was written, each month."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a command would do and take."""

    command: str
    stages: tuple[Stage, ...]
    facts: tuple[tuple[str, str], ...] = ()
    """Label and value, for people: what there is to do."""
    amounts: tuple[tuple[str, float], ...] = ()
    """The same as numbers, by name."""
    notes: tuple[str, ...] = ()

    def total(self, name: str) -> float:
        """Sum of a field over the stages."""
        return float(sum(getattr(stage, name) for stage in self.stages))

    def wall_seconds(self, machines: int) -> float:
        """From begin to end."""
        return sum(stage.wall_seconds(machines) for stage in self.stages)

    def machine_hours(self, machines: int) -> float:
        """Hours of all machines together."""
        return sum(stage.machine_seconds(machines) for stage in self.stages) / _HOUR

    def unknown(self) -> list[str]:
        """Parts whose rate is not known."""
        return [f"{stage.name}: {part.name}" for stage in self.stages for part in stage.parts if part.is_unknown]

    def money(self, machine: Machine | None, machines: int, prices: Prices) -> Money:
        """What it costs; without a machine, what the object store costs alone."""
        hours = self.machine_hours(machines)
        writes, reads = self.total("object_writes"), self.total("object_reads")
        operations = writes / 1000 * prices.storage.per_1000_writes + reads / 1000 * prices.storage.per_1000_reads
        stored = self.total("kept_bytes") / _GB * prices.storage.per_gb_month
        if machine is None:
            return Money(None, None, None, operations, stored)
        dataflow = prices.dataflow_per_hour(machine, DISK_GB)
        shuffle = self.total("shuffle_bytes") / _GB * prices.dataflow.per_shuffle_gb
        return Money(
            hours * machine.price_per_hour,
            None if machine.spot_per_hour is None else hours * machine.spot_per_hour,
            None if dataflow is None else hours * dataflow + shuffle,
            operations,
            stored,
        )


def _overhead(rates: Rates, loads_model: bool = True) -> tuple[Part, ...]:
    return (
        Part("model and preconditioner", rates.load_seconds if loads_model else 0.0, "s", 1.0, "each"),
        Part("Beam's own", rates.pipeline_seconds, "s", 1.0, "once"),
    )


def start_stage(rates: Rates, items: int, pipelines: int = 1) -> Stage:
    """Machines and processes come up, for each of so many pipelines; no more of them than there are items."""
    seconds = rates.start_seconds + (pipelines - 1) * rates.restart_seconds
    return Stage("start-up", max(1, items), (Part("processes", seconds, "s", 1.0, "each"),))


def encode_stage(shape: EncodingShape, corpus: CorpusShape, rates: Rates) -> Stage:
    """Work items → files of the index."""
    flops = shape.encode_flops(corpus.padded_tokens, corpus.examples)
    written = corpus.examples * shape.bytes_per_encoding
    parts = (
        Part("reading and tokenizing", corpus.text_bytes, "B", rates.tokenize_bytes),
        Part("gradients and projections", flops, "FLOP", rates.encode_flops),
        Part("writing encodings", written, "B", rates.write_bytes),
        *(_overhead(rates) if corpus.items else ()),
    )
    return Stage(
        "encoding",
        corpus.items,
        parts,
        read_bytes=corpus.text_bytes,
        written_bytes=written,
        kept_bytes=written,
        flops=flops,
        object_reads=3.0 * corpus.items,
        object_writes=1.0 * corpus.items,
    )


def commit_stage(files: int, rates: Rates) -> Stage:
    """The launcher reads every file's footer and writes the log."""
    part = Part("footers and log", files * rates.file_seconds, "s", 1.0, "once")
    return Stage("commit", 1, (part,), object_reads=3.0 * files, object_writes=2.0)


def squares_stage(shape: EncodingShape, sample: CorpusShape, tasks: int, rates: Rates) -> Stage:
    """Second moments are estimated on the sample."""
    flops = shape.squares_flops(sample.padded_tokens, sample.examples)
    sums = 4.0 * shape.attributed * (2 * tasks - 1)
    parts = (
        Part("reading and tokenizing", sample.text_bytes, "B", rates.tokenize_bytes),
        Part("gradients and their squares", flops, "FLOP", rates.encode_flops),
        Part("sums as files", 2.0 * sums, "B", rates.tensor_bytes),
        *_overhead(rates),
    )
    return Stage("second moments", tasks, parts, sample.text_bytes + sums, sums, sums / (2 * tasks - 1), flops=flops)


def covariance_stage(
    shape: EncodingShape, whitening: WhiteningShape, sample: CorpusShape, tasks: int, rates: Rates
) -> Stage:
    """Covariances are summed in passes over the sample, in files that are added up in a tree; they are gone afterwards."""
    floor = whitening.floor_flops(shape, sample.padded_tokens)
    summing = whitening.sum_flops(sample.padded_tokens, sample.examples)
    sums = float(whitening.sum_bytes * (2 * tasks - 1))
    read = sample.text_bytes * whitening.passes
    parts = (
        Part("reading and tokenizing", read, "B", rates.tokenize_bytes),
        Part("gradients", floor, "FLOP", rates.encode_flops),
        Part("sums of covariances", summing, "FLOP", rates.covariance_flops),
        Part("sums as files", 2.0 * sums, "B", rates.tensor_bytes),
        *(dataclasses.replace(part, amount=part.amount * whitening.passes) for part in _overhead(rates)),
    )
    return Stage("covariances", tasks, parts, read + sums, sums, flops=floor + summing)


def whitening_stage(shape: EncodingShape, whitening: WhiteningShape, rates: Rates) -> Stage:
    """Inverse roots of covariances, by the workers, each times the projections that it serves."""
    flops, written = whitening.root_flops(shape), float(shape.projection_bytes)
    parts = (
        Part("eigendecompositions", flops, "FLOP", rates.root_flops),
        Part("sums and projections as files", whitening.sum_bytes + written, "B", rates.tensor_bytes),
    )
    return Stage(
        "whitening",
        len(whitening.roots),
        parts,
        whitening.sum_bytes,
        2 * written,
        written,
        flops=flops,
        largest_share=whitening.largest_root(shape),
    )


def gram_stage(shape: EncodingShape, sample: CorpusShape, tasks: int, rates: Rates) -> Stage:
    """R_train is summed over the sample, in files that are added up in a tree."""
    flops = shape.encode_flops(sample.padded_tokens, sample.examples)
    gram = shape.gram_flops(sample.examples)
    sums = float(shape.gram_bytes * (2 * tasks - 1))
    parts = (
        Part("reading and tokenizing", sample.text_bytes, "B", rates.tokenize_bytes),
        Part("gradients and projections", flops, "FLOP", rates.encode_flops),
        Part("sums of R", gram, "FLOP", rates.gram_flops),
        Part("sums as files", 2.0 * sums, "B", rates.tensor_bytes),
        *_overhead(rates),
    )
    return Stage("sums of R", tasks, parts, sample.text_bytes + sums, sums, flops=flops + gram)


def roots_stage(
    shape: EncodingShape, rates: Rates, decompositions: int = 1, products: int = 1, queries: int = 0
) -> Stage:
    """Eigendecompositions and what is made of them, by the launcher; with queries: R_eval, the change of R and its files."""
    flops = shape.eigen_flops(decompositions, products)
    squares = float(shape.num_blocks * shape.block_dimension**2)
    # fit: eigenvectors in float64, the inverse root in float32. score: these are read, M and the queries are written.
    read = 12.0 * squares if queries else 0.0
    written = 4.0 * squares + 8.0 * queries * shape.dimension if queries else 12.0 * squares
    parts = (
        Part("R_eval", shape.gram_flops(queries), "FLOP", rates.gram_flops, "once"),
        Part("eigendecompositions", flops, "FLOP", rates.eigen_flops, "once"),
        Part("preconditioner and queries as files", read + written, "B", rates.tensor_bytes, "once"),
    )
    return Stage("roots of R", 1, parts, read, written, 0.0 if queries else written, flops=flops)


def query_stage(shape: EncodingShape, queries: CorpusShape, rates: Rates) -> Stage:
    """Queries → projected gradients."""
    flops = shape.encode_flops(queries.padded_tokens, queries.examples)
    parts = (Part("gradients and projections", flops, "FLOP", rates.encode_flops), *_overhead(rates))
    return Stage("encoding queries", queries.items, parts, flops=flops)


def scan_stage(shape: EncodingShape, scan: ScanShape, rates: Rates) -> Stage:
    """Files of the index → top-k arrays: the longer of reading and multiplying, then float64 for the few that matter."""
    product = scan.product_flops(shape.dimension)
    reading = Part("reading (longer than the product)", scan.index_bytes, "B", rates.scan_bytes)
    multiplying = [Part("product with all queries", product, "FLOP", rates.scan_flops)]
    if rates.unpack_numbers is not None and scan.unpacked_numbers(shape.dimension):
        multiplying += [Part("unpacking rows", scan.unpacked_numbers(shape.dimension), "numbers", rates.unpack_numbers)]
    rescored = scan.rescored_pairs()
    parts = [reading] if reading.seconds > sum(part.seconds for part in multiplying) else multiplying
    if scan.changed:
        parts += [
            Part("norms under the mixed R", scan.norm_flops(shape), "FLOP", rates.norm_flops),
            Part("the same in float64", scan.weighed_flops(shape), "FLOP", rates.weigh_flops),
        ]
    parts += [
        Part("first calls", rates.scan_start_seconds, "s", 1.0, "each"),
        Part("re-scoring in float64", rescored * shape.dimension, "numbers", rates.rescore_numbers),
        *_overhead(rates, loads_model=False),
    ]
    return Stage(
        "scan",
        scan.groups,
        tuple(parts),
        read_bytes=scan.index_bytes,
        shuffle_bytes=scan.shuffle_bytes(),
        flops=product + scan.norm_flops(shape) + scan.weighed_flops(shape),
        object_reads=3.0 * scan.files + scan.index_bytes / 64e6,
    )


def second_pass_stage(
    shape: EncodingShape, scan: ScanShape, rows: float, pairs: int, files: float, computes: bool, rates: Rates
) -> Stage:
    """Proposed rows → their float64 scores.

    Args:
        shape: Of the better form.
        scan: What is ranked.
        rows: Examples that are scored again.
        pairs: Pairs of them and a query.
        files: Files that they are in, of each index.
        computes: Whether they were encoded again; if not, they are found and read in the better index.
        rates: Rates.
    """
    norms = 2.0 * rows * shape.dimension * shape.block_dimension if scan.changed else 0.0
    opened = files if computes else 2.0 * files
    read = 0.0 if computes else rows * shape.bytes_per_encoding
    parts = [
        Part("finding rows", opened * rates.fetch_seconds, "s", 1.0),
        Part("re-scoring in float64", float(pairs) * shape.dimension, "numbers", rates.rescore_numbers),
    ]
    if norms:
        parts.append(Part("norms under the mixed R", norms, "FLOP", rates.weigh_flops))
    return Stage(
        "second pass",
        scan.groups,
        (*parts, *_overhead(rates, loads_model=False)),
        read_bytes=read,
        shuffle_bytes=scan.shuffle_bytes(),
        flops=norms,
        object_reads=3.0 * opened + (0.0 if computes else rows),
    )


def merge_stage(scan: ScanShape, rates: Rates) -> Stage:
    """Top-k arrays → one, and the winners' texts; workers merge and fetch, one writes the results."""
    entries = scan.merged_entries()
    winners = scan.queries * scan.ends * min(scan.top_k, scan.rows)
    files = min(float(scan.files), float(winners))
    parts = (
        Part("merging top-k arrays", entries, "entries", rates.merge_entries),
        Part("winners' texts", files * rates.fetch_seconds, "s", 1.0),
        Part("results", winners, "entries", rates.result_entries, "once"),
    )
    written = winners * RESULT_BYTES
    return Stage(
        "merge",
        max(1, scan.groups),
        parts,
        written_bytes=written,
        kept_bytes=written,
        object_reads=2.0 * files,
        object_writes=1.0,
    )


def text_stage(name: str, items: int, text_bytes: float, passes: int, scan: ScanShape, rates: Rates) -> Stage:
    """A baseline without a model: passes over the corpus's text."""
    parts = (
        Part("reading and scoring", text_bytes * passes, "B", rates.text_bytes),
        *_overhead(rates, loads_model=False),
    )
    return Stage(
        name,
        items,
        parts,
        read_bytes=text_bytes * passes,
        shuffle_bytes=scan.shuffle_bytes(),
        object_reads=3.0 * items * passes,
    )


def check_stage(groups: int, files: int, index_bytes: float, settings_bytes: float, rates: Rates) -> Stage:
    """Item files are read through and hashed by workers, what `fit` wrote by the launcher, which reads it once more to use it."""
    parts = (
        Part("reading and hashing", index_bytes, "B", rates.check_bytes),
        Part("what fit wrote", 2 * settings_bytes, "B", rates.check_bytes, "once"),
        *_overhead(rates, loads_model=False),
    )
    read = index_bytes + 2 * settings_bytes
    return Stage(
        "checking", max(1, groups), parts, read_bytes=read, object_reads=5.0 * files, object_writes=1.0 * groups
    )


def steps_stage(parameters: float, shape: StepsShape, rates: Rates) -> Stage:
    """Steps on single documents: forward and whole backward pass of each, two forward passes of its queries, the optimizer."""
    flops = (
        6.0 * parameters * shape.document_tokens
        + 2.0 * parameters * shape.query_tokens
        + 20.0 * parameters * shape.steps
    )
    parts = (Part("steps and queries", flops, "FLOP", rates.step_flops), *_overhead(rates))
    return Stage("steps", shape.tasks, parts, flops=flops)
