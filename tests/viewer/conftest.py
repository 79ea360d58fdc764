"""A real browser on the real page: served by the view server, or opened from disk."""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from trackstar.viewer import listening
from trackstar.viewer.app import view_app
from trackstar.viewer.rows import Run, open_run

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 375, "height": 667}


@contextlib.contextmanager
def served(runs: Sequence[Run]) -> Iterator[str]:
    """The view server's address, while the block lasts."""
    listener = listening.bind("127.0.0.1", 0)
    config = uvicorn.Config(view_app(runs, only_local=True), log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listening.url_of(listener, "127.0.0.1")
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listener.close()


def chromium() -> str | None:
    """Where Chromium is."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Ends with each module: while it runs, its event loop is this thread's."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium of this machine; nothing is downloaded."""
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium); .ci/run installs it")
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    running = playwright.chromium.launch(executable_path=executable, args=args)
    yield running
    running.close()


@dataclasses.dataclass
class Opener:
    """Opens pages, and sees to it that they never complain and never leave their server.

    Args:
        browser: The browser.
        problems: What the consoles said, errors that were not caught, and requests to anywhere else.
    """

    browser: Browser
    problems: list[str]
    _closers: contextlib.ExitStack

    def __call__(self, url: str, **settings: Any) -> Page:
        """A page at an address of a server, or of a file; ready."""
        context = self.browser.new_context(
            **{"viewport": WIDE, "accept_downloads": True, "reduced_motion": "reduce", **settings}
        )
        self._closers.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self._note(True, str(error)))
        origin = url.partition("#")[0] if url.startswith("file:") else "/".join(url.split("/")[:3]) + "/"
        page.on(
            "request", lambda request: self._note(not request.url.startswith((origin, "data:", "blob:")), request.url)
        )
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        return page

    def serve(self, **files: str) -> str:
        """Serves results files by the names they are to have, until the test ends."""
        runs = [open_run(name, uri) for name, uri in files.items()]
        for run in runs:
            self._closers.callback(run.close)
        return self._closers.enter_context(served(runs))

    def _note(self, is_problem: bool, text: str) -> None:
        if is_problem:
            self.problems.append(text)


@pytest.fixture
def opener(browser: Browser) -> Iterator[Opener]:
    """Opens pages; the test fails if any of them complained."""
    with contextlib.ExitStack() as closers:
        found = Opener(browser, [], closers)
        yield found
    assert found.problems == []


@pytest.fixture
def view(opener: Opener) -> Callable[..., Page]:
    """`view(name=file, …)`: the page on results files; settings of the browser's context in `context`."""

    def open_page(fragment: str = "", context: dict[str, Any] | None = None, **files: str) -> Page:
        return opener(opener.serve(**files) + fragment, **(context or {}))

    return open_page


@pytest.fixture
def screenshots() -> Path | None:
    """Where pictures for the documents go; None unless TRACKSTAR_SCREENSHOTS names a folder."""
    folder = os.environ.get("TRACKSTAR_SCREENSHOTS")
    return Path(folder) if folder else None
