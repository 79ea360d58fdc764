"""How many threads torch uses in this process."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def use(count: int) -> None:
    """Sets the number of threads; 0 means one a core."""
    torch.set_num_threads(count or cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Shares:
    """Work on rows that torch's number of threads share. The threads are kept until this object goes."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, work: Callable[[int, int], None], count: int, least: int) -> None:
        """Calls work(first, end) for shares of `count` rows, `least` rows each at least; this thread takes one of them."""
        threads = max(1, min(torch.get_num_threads(), count // max(1, least)))
        edges = [count * share // threads for share in range(threads + 1)]
        if threads > 1 and self._size < threads - 1:
            self._pool, self._size = ThreadPoolExecutor(threads - 1), threads - 1
        others = []
        if self._pool is not None:
            others = [self._pool.submit(work, *edge) for edge in itertools.pairwise(edges[1:])]
        work(0, edges[1])
        for other in others:
            other.result()
