"""Batches that the device's memory cannot take: run in halves, and remembered for the rest of the process.

A planned batch that fails is cut in two where its examples stand in order, and each half again while it fails; so what runs is
a function of the planned batch and of how often it had to be halved. An example has the same encoding in any batch, up to
rounding: a file written with halved batches equals an undisturbed one to rounding, not to the last bit.
"""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from trackstar.errors import TrackStarError

_LOGGER = logging.getLogger(__name__)

# What is said where no type of its own is raised: by CUDA's libraries, the CPU's allocator and oneDNN, other devices.
_MARKS = ("out of memory", "defaultcpuallocator", "alloc_failed", "std::bad_alloc", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator says that there is no more memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _MARKS)


@contextlib.contextmanager
def explained(what: str, device: torch.device) -> Iterator[None]:
    """Turns running out of memory into one sentence, for what cannot be made smaller.

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
            "fit an index of lower --model_dtype or fewer dimensions"
        ) from error


class BatchLimit:
    """How large a batch may be here, as far as running out of memory has shown.

    Args:
        device: Where the batches run.
    """

    def __init__(self, device: torch.device):
        self._device = device
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
                if len(indices) > 1 and self.tokens is not None and len(indices) * width > self.tokens:
                    half = -(-len(indices) // 2)
                    waiting += [indices[half:], indices[:half]]
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

    def _fits(self, run: Callable[[list[int]], None], indices: list[int]) -> bool:
        try:
            run(indices)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._last = _first_line(error)  # the text alone: who keeps the error keeps the batch
        # Outside the handler the error is gone, and with its frames the graph of the batch.
        self.failures += 1
        gc.collect(1)  # what a failed batch leaves is young; all of the heap would take a quarter of a second
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _lower(self, size: int, width: int) -> None:
        if self.tokens is None:
            _LOGGER.warning(
                "%s ran out of memory on a batch of %d × %d tokens: batches run in halves from here on "
                "(--batch_tokens of fit says how large they are planned)",
                self._device,
                size,
                width,
            )
        self.tokens = size * width // 2

    def _reason(self, width: int) -> str:
        if width > self._widest > 0:
            return f"{width:,} tokens do not fit into the memory of {self._device}, even alone"
        found = f"ones of {self._widest:,} did before" if self._widest else "no other did"
        raise TrackStarError(
            f"{self._device} ran out of memory on an example of {width:,} tokens by itself, and {found} ({self._last}): free its "
            "memory (does another process use it?), use a device with more, or fit an index with a lower --max_length; "
            "then run the command again"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
