"""How an encoding is stored: numbers of few bits c(z), and a factor f(z). The encoding that they stand for is φ̂ = f·c.

| form | c | f | bytes a row |
| --- | --- | --- | --- |
| bfloat16 | φ, rounded to nearest | 1 | 2·d |
| float32 | φ | 1 | 4·d |
| int8 | φ / scale, rounded to nearest, ties to even | scale = max|φ| / 127, rounded to float32 | d, and 4 for the scale |
| sign | +1 where φ ≥ 0, else −1 | 1/√d | ⌈d/8⌉ |

All of these numbers are bfloat16 numbers too (float32's aside), so a scan multiplies them in bfloat16 and nothing but the query
is rounded; the factor comes after the sum. Queries are never stored so.

int8 has one scale a row, not one a block: unit norm block by block leaves blocks of about one size, and without it a small
block counts little, so that its coarse numbers err little in the sum; while scales of blocks would have to be multiplied in
before the sum, block by block, for every row. A row whose largest number is far above the others loses the most; scale · 1/√12
is each number's error.

The layout in a file: docs/formats.md.
"""

import abc
import dataclasses
import math

import numpy as np
import torch

from trackstar import stored_kernel
from trackstar.errors import TrackStarError
from trackstar.spec import bytes_of_row
from trackstar.threads import Shares

_LARGEST = 127
_PIECE = 2**22  # numbers that are held in float64 at a time
_SHARE = 2**19  # numbers that are worth another thread


class StoredForm(abc.ABC):
    """One form of storage.

    Args:
        name: As the spec has it.
        matrix_type: What rows are viewed as where they lie: numbers, or bytes of bits.
        tile_type: What they are multiplied in; it holds every number c exactly.
        is_scaled: Whether each row has a scale, in a column of its own.
        fixed_norm: An upper bound of ‖φ̂‖ where it is the same for all rows; None where it is not.
        direct_queries: Up to so many queries, packed rows are multiplied on the CPU as they lie (`stored_kernel`): that takes as
            long for each query, where unpacking takes its time once and the product in bfloat16 little. Where the two meet was
            measured (docs/benchmarks.md).
    """

    name: str
    matrix_type: torch.dtype
    tile_type: torch.dtype
    is_scaled: bool = False
    fixed_norm: float | None = None
    direct_queries: int = 0

    def width(self, dimension: int) -> int:
        """Bytes of one row."""
        return bytes_of_row(self.name, dimension)

    @property
    def is_packed(self) -> bool:
        """Whether rows have to be unpacked before they can be multiplied in `tile_type`."""
        return self.matrix_type != self.tile_type

    @abc.abstractmethod
    def pack(self, vectors: torch.Tensor) -> "StoredRows":
        """[N, d] float32 → rows as they are stored, on the CPU. float64 is taken, too: of `StoredRows.values` the same rows.

        Raises:
            TrackStarError: a row of which nothing is left but zeros, or with NaN or infinity; of bfloat16 and float32 it is
                taken as it is.
        """

    @abc.abstractmethod
    def unpack(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor | None, shares: Shares) -> torch.Tensor:
        """Numbers c of some columns, [N, n] in `tile_type` on the matrix's device: in `out`, or where they lie."""

    def factors(self, scales: torch.Tensor | None, dimension: int) -> torch.Tensor | None:
        """f: [N] float64, or [1] for all rows, or None for 1."""
        return None


class _Plain(StoredForm):
    """The numbers themselves, in a type that torch multiplies."""

    def __init__(self, name: str, dtype: torch.dtype):
        self.name, self.matrix_type, self.tile_type = name, dtype, dtype

    def pack(self, vectors: torch.Tensor) -> "StoredRows":
        matrix = vectors.detach().to("cpu", self.matrix_type).contiguous()
        return StoredRows(self, matrix, None, vectors.shape[1])

    def unpack(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor | None, shares: Shares) -> torch.Tensor:
        return matrix[:, columns]


class _Packed(StoredForm):
    """Rows that are unpacked to bfloat16: by a kernel on the CPU, with torch elsewhere."""

    tile_type = torch.bfloat16

    def unpack(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor | None, shares: Shares) -> torch.Tensor:
        start, count = columns.start, columns.stop - columns.start
        if out is None:
            out = torch.empty(len(matrix), count, dtype=torch.bfloat16, device=matrix.device)
        if matrix.device.type != "cpu":
            return self.unpack_by_torch(matrix, columns, out)

        def share(first: int, end: int) -> None:
            stored_kernel.unpack(matrix[first:end], start, out[first:end])

        shares.run(share, len(matrix), max(1, _SHARE // max(1, count)))
        return out

    @abc.abstractmethod
    def unpack_by_torch(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor) -> torch.Tensor:
        """`unpack` by operations that every device of torch has."""


class _Int8(_Packed):
    name = "int8"
    matrix_type = torch.int8
    is_scaled = True
    direct_queries = 1

    def pack(self, vectors: torch.Tensor) -> "StoredRows":
        matrix = torch.empty(vectors.shape, dtype=torch.int8)
        scales = torch.empty(len(vectors), dtype=torch.float32)
        for some in _pieces(*vectors.shape):
            # In float64, where the quotient's rounding to an integer is that of the true quotient.
            numbers = vectors[some].detach().cpu().double()
            scales[some] = (_largest(numbers, some.start) / _LARGEST).float()
            matrix[some] = (numbers / scales[some].double()[:, None]).round().to(torch.int8)
        return StoredRows(self, matrix, scales, vectors.shape[1])

    def unpack_by_torch(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(matrix[:, columns])

    def factors(self, scales: torch.Tensor | None, dimension: int) -> torch.Tensor | None:
        assert scales is not None
        return scales.double()


class _Sign(_Packed):
    name = "sign"
    matrix_type = torch.uint8
    fixed_norm = 1 + 1e-6
    direct_queries = 8

    def pack(self, vectors: torch.Tensor) -> "StoredRows":
        matrix = torch.empty(len(vectors), self.width(vectors.shape[1]), dtype=torch.uint8)
        for some in _pieces(*vectors.shape):
            numbers = vectors[some].detach().cpu()
            _largest(numbers, some.start)
            bits = np.packbits((numbers >= 0).numpy(), axis=1, bitorder="little")
            matrix[some] = torch.from_numpy(bits)
        return StoredRows(self, matrix, None, vectors.shape[1])

    def unpack_by_torch(self, matrix: torch.Tensor, columns: slice, out: torch.Tensor) -> torch.Tensor:
        places = torch.arange(8, dtype=torch.uint8, device=matrix.device)
        some = matrix[:, columns.start // 8 : -(-columns.stop // 8)]
        bits = (some[:, :, None] >> places) & 1  # [N, bytes, 8]
        return out.copy_(bits.flatten(1)[:, : out.shape[1]]).mul_(2).sub_(1)

    def factors(self, scales: torch.Tensor | None, dimension: int) -> torch.Tensor | None:
        return torch.tensor([1 / math.sqrt(dimension)], dtype=torch.float64)


FORMS: dict[str, StoredForm] = {
    form.name: form for form in (_Plain("bfloat16", torch.bfloat16), _Plain("float32", torch.float32), _Int8(), _Sign())
}


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """N rows as they are stored.

    Args:
        form: Their form.
        matrix: [N, numbers or bytes of bits] in the form's type; not to be written to.
        scales: [N] float32 where the form has scales, else None.
        dimension: d.
    """

    form: StoredForm
    matrix: torch.Tensor
    scales: torch.Tensor | None
    dimension: int

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, without their scales."""
        return self.matrix.nbytes

    def rows(self, start: int, end: int) -> "StoredRows":
        """The rows from `start` up to, not including, `end`, where they lie."""
        scales = None if self.scales is None else self.scales[start:end]
        return dataclasses.replace(self, matrix=self.matrix[start:end], scales=scales)

    def take(self, places: torch.Tensor) -> "StoredRows":
        """Copies of single rows: places [n] integers."""
        scales = None if self.scales is None else self.scales[places]
        return dataclasses.replace(self, matrix=self.matrix[places], scales=scales)

    def to(self, device: torch.device) -> "StoredRows":
        """The rows on another device, packed as they are."""
        scales = None if self.scales is None else self.scales.to(device)
        return dataclasses.replace(self, matrix=self.matrix.to(device), scales=scales)

    def numbers(
        self, columns: slice | None = None, out: torch.Tensor | None = None, shares: Shares | None = None
    ) -> torch.Tensor:
        """c: [N, n] in the type that rows are multiplied in, on the rows' device.

        Args:
            columns: Which; all by default. Of bits they begin at a multiple of 8.
            out: [N, n], where to unpack to; used where rows have to be unpacked.
            shares: Threads that share the unpacking.
        """
        return self.form.unpack(self.matrix, columns or slice(0, self.dimension), out, shares or Shares())

    def factors(self) -> torch.Tensor | None:
        """f: [N] float64, or [1] for all rows, or None for 1."""
        found = self.form.factors(self.scales, self.dimension)
        return None if found is None else found.to(self.matrix.device)

    def values(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """φ̂ = f·c: [N, d] on the CPU. In float64 exact but for 1/√d, and packed again they give the same bits."""
        found = torch.empty(len(self), self.dimension, dtype=dtype)
        for some in _pieces(*found.shape):
            part = self.rows(some.start, some.stop)
            values, factors = part.numbers().cpu().double(), part.factors()
            found[some] = (values if factors is None else values * factors.cpu()[:, None]).to(dtype)
        return found

    def norms(self) -> torch.Tensor:
        """‖φ̂‖: [N] float64 on the CPU."""
        found = torch.empty(len(self), dtype=torch.float64)
        for some in _pieces(len(self), self.dimension):
            found[some] = self.rows(some.start, some.stop).values().norm(dim=1)
        return found


def _pieces(count: int, dimension: int) -> list[slice]:
    """Ranges of rows, so many that a piece in float64 is of bounded size."""
    step = max(1, _PIECE // max(1, dimension))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _largest(numbers: torch.Tensor, first: int) -> torch.Tensor:
    """max|φ| of each row, [N]; of a unit vector it is 1/√d at least, so that a scale is never zero.

    Raises:
        TrackStarError: a row for which it is not so; rows are counted from `first`.
    """
    largest = numbers.abs().amax(dim=1)
    bad = ~(torch.isfinite(largest) & (largest >= _LARGEST * torch.finfo(torch.float32).tiny))
    if bad.any():
        row = int(bad.nonzero()[0])
        what = "zero" if largest[row] < 1 else "not finite"
        raise TrackStarError(
            f"encodings: the vector of row {first + row} is {what}, so it has no direction to store; "
            "reject such examples before they reach the index"
        )
    return largest
