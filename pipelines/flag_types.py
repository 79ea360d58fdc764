"""Types of flags' values, with errors that say what is allowed."""

import argparse
import re

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "kib": 1 << 10, "mb": 1 << 20, "mib": 1 << 20, "gb": 1 << 30, "gib": 1 << 30}


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def positive_or_auto(text: str) -> int | str:
    """A whole number above zero, or "auto"."""
    return text if text == "auto" else positive(text)


def natural(text: str) -> int:
    """A whole number, zero included."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of zero or more")
    return int(text)


def port_or_auto(text: str) -> int | str:
    """A TCP port, 0 included, or "auto"."""
    if text != "auto" and not (text.isdigit() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535, nor auto")
    return text if text == "auto" else int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def num_bytes(text: str) -> int:
    """A number of bytes: 800, 2KB, 1.5MB (of 1,024 and 1,048,576)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes: give one like 800, 2KB or 1.5MB")
    return int(float(match[1]) * _UNITS[match[2]])
