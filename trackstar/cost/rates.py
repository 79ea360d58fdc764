"""How fast a machine does the work: from its line in the table, or as measured by a calibration."""

import dataclasses
import json
import math
from typing import Any

from trackstar import storage
from trackstar.cost.prices import Machine
from trackstar.errors import TrackStarError

FORMAT = 1
HOST_FLOAT64 = 1.5e10
"""FLOP/s of a host's vCPU in float64 products, which no accelerator does here; 3.6e10 a core were measured."""
HOST_UNPACK = 1.5e10
"""Numbers that a vCPU unpacks to bfloat16 a second, from bits or bytes; as measured on one core (docs/benchmarks.md)."""
ACCELERATOR_UNPACK = 2.0e11
"""The same of one accelerator: an assumption, from about ten bytes of its memory that are read or written for each."""
ACCELERATOR_EIGEN = 1.0e12
"""FLOP/s of one accelerator in float64 eigendecompositions of thousands of rows: an assumption. To make n rows tridiagonal reads
8·n³/3 bytes of its memory, which alone bounds 9·n³ FLOP by 6.8e12 a second at 2 TB/s."""
LAUNCHER_EIGEN = 3.5e10
"""FLOP/s of the launcher's eigendecompositions, whatever the workers' machines; as measured on one core."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one machine does in a second, and what it needs besides; None where nothing is known.

    With `machine` "here" the machine is one worker process of this one, and more of them are taken to be as fast side by side.
    """

    machine: str
    encode_flops: float | None = None
    """FLOP/s in forward and backward passes with projections."""
    tokenize_bytes: float | None = None
    """Bytes of shards that are read, decoded and tokenized, as they lie on disk."""
    write_bytes: float | None = None
    """Bytes of item files."""
    tensor_bytes: float | None = None
    """Bytes of files of tensors that are written or read: sums, preconditioner, queries."""
    scan_flops: float | None = None
    """FLOP/s of the product of rows and queries, with all that a scan does to each pair."""
    scan_bytes: float | None = None
    """Bytes of the index that can be read; None where they come from memory and `scan_flops` has them in it."""
    unpack_numbers: float | None = None
    """Stored numbers of a bit or a byte that are unpacked; None where `scan_flops` has that in it."""
    norm_flops: float | None = None
    """FLOP/s of the norms under a changed preconditioner."""
    weigh_flops: float | None = None
    """FLOP/s of the same norms in float64, for rows that may win."""
    rescore_numbers: float | None = None
    """Pairs × d that are scored in float64."""
    merge_entries: float | None = None
    """Entries of top-k arrays that one process merges."""
    result_entries: float | None = None
    """Entries of a results file that are written."""
    gram_flops: float | None = None
    """FLOP/s of the sums of R."""
    eigen_flops: float | None = None
    """FLOP/s in the launcher's float64 eigendecompositions, by `shapes.EIGEN_FLOPS`."""
    covariance_flops: float | None = None
    """FLOP/s of the sums behind whitened projections, which are float32 whatever the model's type."""
    root_flops: float | None = None
    """FLOP/s of the workers' float64 eigendecompositions of these, by `shapes.EIGEN_FLOPS`."""
    text_bytes: float | None = None
    """Bytes of shards that a baseline without a model reads and scores in one pass."""
    step_flops: float | None = None
    """FLOP/s of a tail-patch's steps."""
    check_bytes: float | None = None
    """Bytes of the index that are read through and hashed."""
    start_seconds: float = 0.0
    """Until a process has imported what it needs, or a machine is there."""
    restart_seconds: float = 0.0
    """Until machines are there for each pipeline after a command's first; none are ordered where pipelines run here."""
    load_seconds: float = 0.0
    """Until a worker has loaded model and preconditioner, and is as fast as it gets: first calls are slow."""
    scan_start_seconds: float = 0.0
    """The same for a worker that scans."""
    pipeline_seconds: float = 0.3
    """Beam's own, each time a pipeline runs; measured with the local runner."""
    file_seconds: float = 0.0
    """What the launcher does for each item file: reading its footer, its line in the log."""
    fetch_seconds: float = 0.0
    """Reading the winners' texts from one file."""

    def to_json(self) -> str:
        """As --save_calibration writes it."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def with_measured(self, **measured: float | None) -> "Rates":
        """These rates with others in their place, but for those that could not be measured (None)."""
        known: dict[str, Any] = {name: value for name, value in measured.items() if value is not None}
        return dataclasses.replace(self, **known)

    def over(self, other: "Rates") -> "Rates":
        """These rates where they are known, the other's elsewhere."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if self.scan_flops is not None:  # what is not known beside it is in it
            known["unpack_numbers"] = self.unpack_numbers
        return dataclasses.replace(other, **known)


def read_rates(uri: str) -> Rates:
    """Reads what `Rates.to_json` gave.

    Raises:
        TrackStarError: no such file, another format, or a rate that is not a number above zero.
    """
    try:
        fields = json.loads(storage.read_bytes(uri))
        version = fields.pop("format")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise TrackStarError(f"{uri}: not a calibration; make one with --save_calibration") from error
    known = {field.name: field for field in dataclasses.fields(Rates)}
    if version != FORMAT or set(fields) - set(known) or "machine" not in fields:
        raise TrackStarError(f"{uri}: a calibration of another version; make it again with --save_calibration")
    for name, value in fields.items():
        may_be_zero = name.endswith("_seconds")
        good = isinstance(value, str) if name == "machine" else value is None or _is_rate(value, may_be_zero)
        if not good:
            allowed = "zero or more" if may_be_zero else "a number above zero"
            raise TrackStarError(f"{uri}: {name} is {value!r}; it must be {allowed}")
    return Rates(**fields)


def of_machine(machine: Machine, model_bytes: float, dtype: str) -> Rates:
    """Rates by the table: peaks times the shares that are taken to be reached.

    Args:
        machine: The machine.
        model_bytes: What a worker loads before it can encode: model and preconditioner.
        dtype: Type the model runs in, "bfloat16" or "float32".
    """
    peak = machine.peak_bfloat16 if dtype == "bfloat16" else machine.peak_float32
    other32 = machine.peak_float32 * machine.achieved_other
    store = machine.store_bytes_per_second
    return Rates(
        machine=machine.name,
        encode_flops=peak * machine.achieved_encode,
        tokenize_bytes=machine.tokenize_bytes_per_second,
        write_bytes=store,
        tensor_bytes=store,
        scan_flops=machine.peak_bfloat16 * machine.achieved_scan,
        scan_bytes=store,
        unpack_numbers=machine.accelerators * ACCELERATOR_UNPACK or machine.vcpus * HOST_UNPACK,
        norm_flops=other32,
        weigh_flops=machine.vcpus * HOST_FLOAT64 * machine.achieved_other,
        rescore_numbers=machine.rescore_numbers_per_second,
        merge_entries=1.0e6,
        result_entries=3.0e5,
        gram_flops=other32,
        eigen_flops=LAUNCHER_EIGEN,
        covariance_flops=other32,
        root_flops=machine.accelerators * ACCELERATOR_EIGEN or machine.vcpus * HOST_FLOAT64 * machine.achieved_other,
        text_bytes=machine.tokenize_bytes_per_second,
        # A step's forward pass, its backward pass to inputs and weights, and the queries' two forward passes, in float32.
        step_flops=machine.peak_float32 * machine.achieved_encode,
        check_bytes=store,  # SHA-256 on all of its processors is faster
        start_seconds=machine.start_seconds,
        restart_seconds=machine.start_seconds,
        load_seconds=model_bytes / store,
        pipeline_seconds=60.0,
        file_seconds=0.1,
        fetch_seconds=0.3,
    )


def _is_rate(value: object, may_be_zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value >= 0 if may_be_zero else value > 0
