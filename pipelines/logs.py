"""What a person sees of the logs: our own lines, readable; Beam's only where they are errors, or with --debug."""

import json
import logging
import os
import sys
from typing import Any, TextIO

DEBUG_VARIABLE = "TRACKSTAR_DEBUG"
OWN_PACKAGES = ("trackstar", "pipelines")

# A worker process writes one record a line to its standard error, after this mark, and the launcher shows it.
RECORD_MARK = "\x1e"

# Beam logs these failures once more, with their traceback, though the launcher reports them in the end.
_REPORTED_ELSEWHERE = ("apache_beam.runners",)


def is_debug() -> bool:
    """Whether --debug was given, here or in the process that started this one."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def _is_of(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Our own lines from INFO, Beam's from ERROR, others' from WARNING; with --debug everything.

    A filter of the handler and not levels of the loggers, because Beam sets levels itself when a worker starts.
    """
    if is_debug() or record.name == "root":
        return record.levelno >= (logging.DEBUG if is_debug() else logging.ERROR)
    if _is_of(record.name, OWN_PACKAGES):
        return record.levelno >= logging.INFO
    if _is_of(record.name, _REPORTED_ELSEWHERE):
        return record.levelno > logging.ERROR
    if _is_of(record.name, ("apache_beam",)):
        return record.levelno >= logging.ERROR
    return record.levelno >= logging.WARNING


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: the progress bar replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(_is_relevant)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("this handler has no stream of its own")


class _LineFormatter(logging.Formatter):
    """ "12:03:04 message"; from WARNING on with the level, with --debug with the logger's name too."""

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record, "%H:%M:%S")
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        name = f"{record.name}: " if is_debug() else ""
        record.message = f"{name}{level}{record.getMessage()}"
        text = f"{record.asctime} {record.message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info and is_debug() else text


class _RecordFormatter(logging.Formatter):
    """One line of JSON after `RECORD_MARK`; `parse_record` reads it."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and is_debug():
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return RECORD_MARK + json.dumps({"name": record.name, "level": record.levelno, "message": text})


def configure(debug: bool = False, as_records: bool = False) -> None:
    """Makes ours the only handler of the root logger.

    Args:
        debug: Show everything. Processes started from this one inherit it.
        as_records: Write lines for the launcher to show, as a worker process does.
    """
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    handler = _StandardError()
    handler.setFormatter(_RecordFormatter() if as_records else _LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if is_debug() else logging.INFO)
    logging.captureWarnings(as_records)


def parse_record(line: str) -> logging.LogRecord | None:
    """The record that a worker process wrote as `line`; None for any other line."""
    if not line.startswith(RECORD_MARK):
        return None
    try:
        fields: dict[str, Any] = json.loads(line[len(RECORD_MARK) :])
        return logging.LogRecord(fields["name"], fields["level"], "", 0, fields["message"], None, None)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
