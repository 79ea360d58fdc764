"""What the device's memory cannot take at once: run in halves, and remembered for the rest of the process.

`attempt` tells running out of memory from all other errors; `BatchLimit` halves batches of examples by it, and `SizeLimit` any
range, such as the rows of a scan.

A planned batch that fails is cut in two where its examples stand in order, and each half again while it fails; so what runs is
a function of the planned batch and of how often it had to be halved. An example has the same encoding in any batch, up to
rounding: a file written with halved batches equals an undisturbed one to rounding, not to the last bit.
"""

import contextlib
import dataclasses
import functools
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from trackstar.errors import TrackStarError

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

# What is said where no type of its own is raised: by CUDA's libraries, the CPU's allocator and oneDNN, other devices.
_MARKS = ("out of memory", "defaultcpuallocator", "alloc_failed", "std::bad_alloc", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator says that there is no more memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _MARKS)


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """An attempt that memory did not suffice for."""

    said: str
    """First line of what the allocator said."""


class TooLongError(Exception):
    """An example that the device's memory cannot take even alone; its text says so."""


def attempt(run: Callable[[], T], device: torch.device) -> T | OutOfMemory:
    """What `run` gives, or what was said when memory ran out in it; then nothing of the attempt stays on the device."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = _first_line(error)  # the text alone: who keeps the error keeps the batch
    # Outside the handler the error is gone, and with its frames all that they hold, as the graph of a batch.
    gc.collect(1)  # what a failed attempt leaves is young; all of the heap would take a quarter of a second
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return OutOfMemory(said)


@contextlib.contextmanager
def explained(
    what: str, device: torch.device, remedy: str = "fit an index of lower --model_dtype or fewer dimensions"
) -> Iterator[None]:
    """Turns running out of memory into one sentence, for what cannot be made smaller.

    Args:
        what: What ran out of it.
        device: Where.
        remedy: What helps beside more memory.

    Raises:
        TrackStarError: memory ran out in the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrackStarError(
            f"{what} does not fit into the memory of {device} ({_first_line(error)}): free some, use a device with more, or "
            f"{remedy}"
        ) from error


class SizeLimit:
    """How many things are taken at once, as far as running out of memory has shown.

    Args:
        device: Where.
        what: The things, for the warning.
        fewest: Where so few do not fit either, something else has to give way.
    """

    def __init__(self, device: torch.device, what: str, fewest: int = 1):
        self._device = device
        self._what = what
        self._fewest = fewest
        self.most: int | None = None
        """The number; None while everything has fitted."""

    def parts(self, first: int, end: int, run: Callable[[int, int], T]) -> Iterator[T]:
        """run(a, b) for consecutive parts of the range from `first` up to `end`, each as large as can be.

        Args:
            first: Where the range begins.
            end: Where it ends, not included.
            run: Is called again for half of a part where memory ran out, so it must not matter how far it came.

        Raises:
            MemoryError: not even `fewest` fit.
        """
        while first < end:
            last = end if self.most is None else min(end, first + self.most)
            found = attempt(functools.partial(run, first, last), self._device)
            if isinstance(found, OutOfMemory):
                self._lower(last - first, found.said)
            else:
                yield found
                first = last

    def _lower(self, count: int, said: str) -> None:
        if count <= self._fewest:
            raise MemoryError(said)
        if self.most is None:
            _LOGGER.warning(
                "%s ran out of memory on %d %s: fewer are taken at once from here on", self._device, count, self._what
            )
        self.most = max(self._fewest, count // 2)


class BatchLimit:
    """How large a batch may be here, as far as running out of memory has shown.

    Args:
        device: Where the batches run.
        batch_flag: The flag that says how large they are planned.
        length_remedy: What makes examples shorter.
    """

    def __init__(
        self,
        device: torch.device,
        batch_flag: str = "--batch_tokens of fit",
        length_remedy: str = "fit an index with a lower --max_length",
    ):
        self._device = device
        self._batch_flag = batch_flag
        self._length_remedy = length_remedy
        self.tokens: int | None = None
        """Padded tokens of a batch that is tried whole; None while every batch has fitted."""
        self.failures = 0
        """How often memory ran out."""
        self._widest = 0  # tokens of the longest example that went through
        self._last = ""  # what was said when memory ran out

    def each(
        self, batches: Iterable[Sequence[int]], lengths: Sequence[int], run: Callable[[list[int]], None]
    ) -> dict[int, str]:
        """Runs every batch, in halves where it must be.

        Args:
            batches: Numbers of the examples of each batch.
            lengths: Tokens of each example.
            run: Runs the examples of these numbers as one batch; is called again for parts of them where memory ran out, so
                it must not matter how far it came.

        Returns:
            Why, for each example that does not fit even alone.

        Raises:
            TrackStarError: no example fits, or one does not although longer ones did: the memory is taken by something else.
        """
        alone: list[int] = []
        for batch in batches:
            waiting = [list(batch)]
            while waiting:
                indices = waiting.pop()
                width = max(lengths[i] for i in indices)
                if halves := self._halves(indices, width):
                    waiting += reversed(halves)
                elif alone and len(indices) == 1 and width >= min(lengths[i] for i in alone):
                    alone.append(indices[0])
                elif self._fits(run, indices):
                    self._widest = max(self._widest, width)
                elif len(indices) == 1:
                    alone.append(indices[0])
                else:
                    self._lower(len(indices), width)
                    waiting.append(indices)
        return {i: self._reason(lengths[i]) for i in sorted(alone)}

    def together(
        self, batches: Sequence[Sequence[int]], lengths: Sequence[int], run: Callable[[list[list[int]]], T]
    ) -> T:
        """What `run` gives of all batches, for who runs the same ones several times and may not halve them in between.

        Args:
            batches: As in `each`.
            lengths: As in `each`.
            run: Runs these batches, or halves of them; is called again, from the beginning, where memory ran out.

        Raises:
            TrackStarError: one of the examples does not fit even alone.
        """
        while True:
            halved = [part for batch in batches for part in self._parts(list(batch), lengths)]
            found = attempt(functools.partial(run, halved), self._device)
            if not isinstance(found, OutOfMemory):
                self._widest = max([self._widest, *lengths])
                return found
            self.failures += 1
            self._last = found.said
            sizes = [(len(part), max(lengths[i] for i in part)) for part in halved]
            size, width = max(sizes, key=lambda of: (of[0] > 1, of[0] * of[1]), default=(1, 0))
            if size == 1:
                raise self._refusal(width)
            self._lower(size, width)

    def alone(self, width: int, run: Callable[[], T], what: str) -> T:
        """What `run` gives of one example.

        Args:
            width: Tokens of the example.
            run: Runs it.
            what: What the example is, for the reason.

        Raises:
            TooLongError: it does not fit, and longer ones were not seen to.
            TrackStarError: it does not fit although longer ones did: the memory is taken by something else.
        """
        found = attempt(run, self._device)
        if not isinstance(found, OutOfMemory):
            self._widest = max(self._widest, width)
            return found
        self.failures += 1
        self._last = found.said
        if width <= self._widest:
            raise self._refusal(width)
        raise TooLongError(f"{what} of {width:,} tokens does not fit into the memory of {self._device} ({found.said})")

    def _parts(self, indices: list[int], lengths: Sequence[int]) -> list[list[int]]:
        """A batch as `each` would run it by what is known now."""
        halves = self._halves(indices, max(lengths[i] for i in indices))
        return [part for half in halves for part in self._parts(half, lengths)] or [indices]

    def _halves(self, indices: list[int], width: int) -> list[list[int]]:
        """Both halves of a batch that is above the limit; of others nothing."""
        if len(indices) == 1 or self.tokens is None or len(indices) * width <= self.tokens:
            return []
        half = -(-len(indices) // 2)
        return [indices[:half], indices[half:]]

    def _fits(self, run: Callable[[list[int]], None], indices: list[int]) -> bool:
        found = attempt(functools.partial(run, indices), self._device)
        if not isinstance(found, OutOfMemory):
            return True
        self._last = found.said
        self.failures += 1
        return False

    def _lower(self, size: int, width: int) -> None:
        if self.tokens is None:
            _LOGGER.warning(
                "%s ran out of memory on a batch of %d × %d tokens: batches run in halves from here on "
                "(%s says how large they are planned)",
                self._device,
                size,
                width,
                self._batch_flag,
            )
        self.tokens = size * width // 2

    def _reason(self, width: int) -> str:
        if width > self._widest > 0:
            return f"{width:,} tokens do not fit into the memory of {self._device}, even alone"
        raise self._refusal(width)

    def _refusal(self, width: int) -> TrackStarError:
        found = f"ones of {self._widest:,} did before" if self._widest else "no other did"
        return TrackStarError(
            f"{self._device} ran out of memory on an example of {width:,} tokens by itself, and {found} ({self._last}): free its "
            f"memory (does another process use it?), use a device with more, or {self._length_remedy}; "
            "then run the command again"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
