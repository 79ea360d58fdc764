"""How long an object store is waited for: which of its errors pass, what is done meanwhile, what is said at the end.

One policy for every request: what passes (429, 408, 5xx, time-outs, connections that break) is tried again after a random wait
whose bound doubles, until patience is over; what does not (400, 401, 403, 404, 412 …) fails at once. Patience is counted anew
for each request, so a long read that gets on is never given up.
"""

import dataclasses
import http.client
import logging
import math
import os
import time
from typing import Any

import google.auth.exceptions
import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.cloud.storage.exceptions import InvalidResponse

from trackstar.errors import TrackStarError

VARIABLE = "TRACKSTAR_STORE_PATIENCE"
"""Environment variable: seconds that one request to an object store is tried again before it counts as failed."""

_DEFAULT_SECONDS = 300.0
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 32.0
_SILENCE = 60.0
_TOLD_AFTER = 5.0
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_TYPES = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.PoolError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
)
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long one request is tried again.

    Args:
        seconds: From the first failure to the last attempt.
    """

    seconds: float = _DEFAULT_SECONDS

    @classmethod
    def from_environment(cls) -> "Patience":
        """What TRACKSTAR_STORE_PATIENCE says, by default 300 seconds.

        Raises:
            TrackStarError: it is no number above zero.
        """
        text = os.environ.get(VARIABLE, "")
        if not text:
            return cls()
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise TrackStarError(f"{VARIABLE} is {text!r}; it must be a number of seconds above zero")
        return cls(seconds)

    @property
    def silence(self) -> float:
        """Seconds without a byte after which a request counts as lost; several such fit into the patience."""
        return min(_SILENCE, self.seconds / 3)


class Attempts:
    """The attempts at one operation on a store.

    Args:
        uri: What is asked for, for messages.
        patience: How long.
    """

    def __init__(self, uri: str, patience: Patience):
        self._uri = uri
        self._patience = patience
        self.failed = 0
        """How many have failed so far."""
        self._started = time.monotonic()
        self._told = False

    @property
    def options(self) -> dict[str, Any]:
        """`retry` and `timeout`, as every method of Google's client takes them."""
        seconds = self._patience.seconds
        retry = Retry(
            predicate=is_passing,
            initial=min(_FIRST_WAIT, seconds / 100),
            maximum=min(_LONGEST_WAIT, seconds / 4),
            multiplier=2.0,
            timeout=seconds,
            on_error=self._failed_once,
        )
        return {"retry": retry, "timeout": self._patience.silence}

    def given_up(self, error: api.RetryError) -> str:
        """What was tried and what to do, as a clause for a message."""
        last = brief(error.cause) if error.cause is not None else brief(error)
        return (
            f"{self.failed} attempts in {self._patience.seconds:g} s failed, the last with: {last}); what is done is kept: "
            f"run the command again when the store answers, or be more patient with {VARIABLE}=SECONDS"
        )

    def _failed_once(self, error: Exception) -> None:
        self.failed += 1
        waited = time.monotonic() - self._started
        if not self._told and waited > _TOLD_AFTER:
            self._told = True
            _LOGGER.warning(
                "%s: no success for %.0f s (%s); trying again for up to %.0f s",
                self._uri,
                waited,
                brief(error),
                self._patience.seconds,
            )


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, InvalidResponse):
        return error.response.status_code in _PASSING_STATUSES
    if isinstance(error, api.GoogleAPICallError):
        return error.code in _PASSING_STATUSES
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return bool(error.retryable) or isinstance(error, google.auth.exceptions.TransportError)
    if isinstance(error, requests.exceptions.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, _PASSING_TYPES)


def brief(error: BaseException) -> str:
    """The error on one line, at most 300 characters."""
    if isinstance(error, InvalidResponse):
        return f"HTTP {error.response.status_code} {error.response.reason}"
    text = " ".join(str(error).split()).partition(": ('Request failed with status code'")[0] or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
