"""The one kind of error that a client reads: what is wrong, and what to do."""

from collections.abc import Mapping

from trackstar.server.typed import InvalidError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        code: A word for programs.
        message: What is wrong, for people.
        hint: What to do about it, if there is something.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.headers = dict(headers or {})

    @classmethod
    def invalid(cls, message: str, hint: str = "") -> "ApiError":
        """A request that is understood and cannot be served as it is."""
        return cls(422, "invalid", message, hint)

    @classmethod
    def of_field(cls, error: InvalidError) -> "ApiError":
        """A field that is missing, of another type or out of bounds."""
        return cls.invalid(str(error), "GET /api/v1/openapi.json describes every request.")

    @classmethod
    def busy(cls, message: str, seconds: float) -> "ApiError":
        """No room at the moment; the client is told when to come again."""
        wait = max(1, round(seconds))
        return cls(503, "busy", message, f"Try again in {wait} s.", {"Retry-After": str(wait)})
