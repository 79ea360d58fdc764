"""A command line of `trackstar` that is to be killed between two of its steps.

    python -m tests.faults.armed PLAN build-index --corpus …

runs `python -m pipelines build-index --corpus …` in this process, unchanged but for a timer that sends SIGKILL. Windows of a
few milliseconds cannot be hit from outside on a busy machine; this process knows when it is in one. The plan is JSON:
`window` ("before" or "during" the commit), `files`, how many item files the run writes, and `delay` in seconds: the timer
starts when the window opens, and where the window closes first, that is the moment.
"""

import ctypes
import functools
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)


class _SignalEvent(ctypes.Structure):
    """`struct sigevent`."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    ]


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`, once."""

    _fields_ = [(name, ctypes.c_long) for name in ("again_s", "again_ns", "first_s", "first_ns")]


def kill_in(seconds: float) -> None:
    """Has the kernel kill this process after a time, whatever it does then, be it in Python or not."""
    timer = ctypes.c_void_p()
    event = _SignalEvent(None, signal.SIGKILL, 0)  # SIGEV_SIGNAL
    spec = _TimerSpec(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    created = _LIBC.timer_create(ctypes.c_int(time.CLOCK_MONOTONIC), ctypes.byref(event), ctypes.byref(timer))
    if created != 0 or _LIBC.timer_settime(timer, 0, ctypes.byref(spec), None) != 0:
        raise OSError(ctypes.get_errno(), "no timer")


def kill_now() -> None:
    """Kills this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm_at_the_commit(delay: float) -> None:
    """The window is all that the log does for a commit; it closes when the entry is written and nobody has heard of it."""
    _around_commit(lambda: kill_in(delay), kill_now)


def arm_before_the_commit(files: int, delay: float) -> None:
    """The window opens with the last item file, and closes where the log is asked to commit."""
    done = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "os.rename" and str(arguments[1]).endswith(".parquet"):
            done += 1
            if done == files:
                kill_in(delay)

    sys.addaudithook(on_event)
    _around_commit(kill_now, kill_now)


def _around_commit(before: Callable[[], None], after: Callable[[], None]) -> None:
    from trackstar.delta_log import DeltaLog

    replace = DeltaLog.replace

    @functools.wraps(replace)
    def armed(*arguments: Any, **named: Any) -> Any:
        before()
        result = replace(*arguments, **named)
        after()
        return result

    DeltaLog.replace = armed  # type: ignore[method-assign]


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    if plan["window"] == "during":
        arm_at_the_commit(plan["delay"])
    else:
        arm_before_the_commit(plan["files"], plan["delay"])
    sys.argv = ["pipelines", *sys.argv[2:]]
    runpy.run_module("pipelines", run_name="__main__", alter_sys=True)
