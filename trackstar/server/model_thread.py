"""The thread in which the model answers what clients wait for: completions and explanations, one at a time."""

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from trackstar.server.errors import ApiError
from trackstar.server.limits import Limits

T = TypeVar("T")

Cancel = Callable[[], bool]


class _Task:
    """A call that waits or runs."""

    def __init__(self, function: Callable[[Cancel], Any]):
        self.function = function
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.cancel = threading.Event()


class ModelThread:
    """Runs calls one after the other, with a bound on how many wait and on how long each may take.

    The thread is a daemon: what does not heed `cancel` does not keep the program from ending.

    Args:
        limits: The bounds.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._open: set[_Task] = set()  # of the event loop alone
        self._thread = threading.Thread(target=self._work, daemon=True, name="model")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Cancels all calls; to be called in the event loop."""
        for task in self._open:
            task.cancel.set()
        self._tasks.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the thread's end."""
        self._thread.join(seconds)

    async def call(self, function: Callable[[Cancel], T]) -> T:
        """What `function(cancel)` returns or raises; `cancel()` says whether it had better stop.

        Raises:
            ApiError: 503, too much waits already; 504, it took too long.
        """
        if len(self._open) >= self._limits.max_waiting:
            raise ApiError.busy("too much waits for the model already", 5)
        task = _Task(function)
        self._open.add(task)
        self._tasks.put(task)
        try:
            async with asyncio.timeout(self._limits.model_seconds):
                result: T = await asyncio.wrap_future(task.future)
                return result
        except TimeoutError as error:
            raise ApiError(
                504, "timeout", f"the model did not answer in {self._limits.model_seconds} s", "Ask for less at a time."
            ) from error
        finally:
            task.cancel.set()
            self._open.discard(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                task.future.set_result(task.function(task.cancel.is_set))
            except BaseException as error:
                task.future.set_exception(error)
