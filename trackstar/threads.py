"""How many threads torch uses in this process."""

import os

import torch


def use(count: int) -> None:
    """Sets the number of threads; 0 means one a core."""
    torch.set_num_threads(count or cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
