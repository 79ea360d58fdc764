"""Command-line flags: ours by argparse, Beam's passed through, and any other an error that names the nearest."""

import argparse
import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from trackstar.errors import TrackStarError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Beam's options for its own tests: one of them is --dry_run, which here must never be taken for Beam's.
_BEAM_TEST_OPTIONS = ("TestOptions", "TestDataflowOptions")


class UsageError(TrackStarError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `UsageError` where argparse would print and exit, and takes no abbreviated flags."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class _HelpFormatter(argparse.HelpFormatter):
    """Shows defaults, where there are any, and leaves line breaks of descriptions alone."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, argparse.SUPPRESS) and "%(default)" not in (action.help or "")
        return f"{action.help} (%(default)s)" if has_default and action.help else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command's flags and takes Beam's out.

    Flags may be written with - or _ between words (`--top-k`, `--top_k`), as may Beam's.

    Returns:
        Our arguments, and Beam's flags (checked, in their order) for `pipeline_options`.

    Raises:
        UsageError: an unknown flag, with the nearest known one; a missing or malformed value of either kind of flag.
    """
    ours, beams = split(parser, argv)
    if beams:
        _beam_parser().parse_args(beams)
    return parser.parse_args(ours), beams


def split(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sorts the words of a command line into the parser's own and Beam's; flags come out as they were declared.

    Beam is imported (a second) only where a flag is not the parser's.
    """
    own_flags = _flags(parser)
    ours: list[str] = []
    beams: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            ours += [word, *words]
            break
        if not word.startswith("--"):
            ours.append(word)
            continue
        name, equals, value = word.partition("=")
        if (own := own_flags.get(_normal(name))) is not None:
            ours.append(own[0] + equals + value)
        elif (beam_flag := _flags(_beam_parser()).get(_normal(name))) is not None:
            flag, action = beam_flag
            beams.append(flag + equals + value)
            if not equals:
                count = _num_values(action, words)
                beams += words[:count]
                del words[:count]
        else:
            raise UsageError(_unknown_flag(name, own_flags))
    return ours, beams


def from_parameters(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words of a command line for a template's parameters, which all come as --name=value.

    A switch takes true or false (`--dry_run=true`), a flag of several values has them in one word, blanks between
    (`--corpus=gs://a/*.gz gs://b/*.gz`), a word without a flag goes by its name (`--action=update`), and an empty value is a
    field that was left empty in a form.

    Raises:
        UsageError: an unknown flag, with the nearest known one; a switch that is neither true nor false.
    """
    own_flags = _flags(parser)
    positional = {f"--{action.dest}" for action in parser._actions if not action.option_strings}
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in positional:
            found.append(value)
            continue
        known = own_flags.get(_normal(name)) or _flags(_beam_parser()).get(_normal(name))
        if known is None:
            raise UsageError(_unknown_flag(name, own_flags))
        flag, action = known
        if not equals:
            found.append(flag)
        elif value and action.nargs == 0:
            found += _switch(flag, value)
        elif value and action.nargs in ("+", "*"):
            found += [flag, *value.split()]
        elif value:
            found.append(f"{flag}={value}")
    return found


def named(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of Beam's flags that have these names, of words in the form --name=value or --name."""
    wanted = {_normal(f"--{name}") for name in names}
    return [word for word in words if _normal(word.partition("=")[0]) in wanted]


def value_of(words: Sequence[str], name: str) -> str | None:
    """The last value that words in the form --name=value give a flag."""
    found = named(words, [name])
    return found[-1].partition("=")[2] if found else None


def _switch(flag: str, value: str) -> list[str]:
    """The flag that says what a switch's value says; none where the default does."""
    try:
        if boolean(value):
            return [flag]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"argument {flag}: {error}") from error
    opposite = f"--no_{flag[2:]}"
    return [opposite] if opposite in _flags(_beam_parser()) else []


def _normal(flag: str) -> str:
    return "--" + flag[2:].replace("-", "_")


def _flags(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.Action]]:
    """The parser's long flags: normal form → (flag as declared, its action)."""
    return {_normal(f): (f, action) for f, action in parser._option_string_actions.items() if f.startswith("--")}


def _num_values(action: argparse.Action, following: Sequence[str]) -> int:
    """How many of the following words are the flag's values."""
    if action.nargs is None:
        return min(1, len(following))
    if isinstance(action.nargs, int):
        return action.nargs
    free = next((i for i, word in enumerate(following) if word.startswith("--")), len(following))
    return min(free, 1) if action.nargs == "?" else free


def _unknown_flag(name: str, own_flags: Mapping[str, Any]) -> str:
    candidates = list(own_flags) + [flag for flag in _flags(_beam_parser()) if flag not in own_flags]
    nearest = difflib.get_close_matches(_normal(name), candidates, n=1, cutoff=0.6)
    hint = f"; did you mean {nearest[0]}?" if nearest else ": it is neither this command's nor Apache Beam's"
    return f"unknown flag {name}{hint}"


@functools.cache
def _beam_parser() -> argparse.ArgumentParser:
    """A parser of all flags that Beam knows, errors raised as `UsageError`."""
    from apache_beam.options import pipeline_options as beam_options

    class BeamParser(beam_options._BeamArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message} (a flag of Apache Beam)")

    parser = BeamParser(allow_abbrev=False, add_help=False)
    for options_class in _subclasses(beam_options.PipelineOptions):
        if options_class.__module__.startswith("apache_beam.") and options_class.__name__ not in _BEAM_TEST_OPTIONS:
            options_class._add_argparse_args(parser)
    return parser


def _subclasses(base: type[Any]) -> Iterator[Any]:
    subclass: Any
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def pipeline_options(beam_args: Sequence[str]) -> "PipelineOptions":
    """Beam's options object for flags that `parse` let through."""
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(list(beam_args))


def boolean(text: str) -> bool:
    """The value of a flag that takes true or false."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def add_field_arguments(
    parser: argparse._ActionsContainer, settings: type, defaults: Mapping[str, Any], flags: Mapping[str, str] = {}
) -> None:
    """Adds one flag for each field of a settings dataclass that `defaults` names.

    Help text and choices are the field's metadata (`help`, `choices`), as in `trackstar.spec`; the type is the
    field's annotation: str, int, float or bool (given as true or false), or one of them with None.

    Args:
        parser: Parser, or group of one, to add to.
        settings: The dataclass.
        defaults: Field name → default value.
        flags: Field name → flag, where the flag is not the field's name.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name, default in defaults.items():
        field = fields[name]
        kind = next((t for t in (bool, int, float) if t.__name__ in str(field.type).replace("builtins.", "")), str)
        if isinstance(field.type, type):
            kind = field.type if field.type in (bool, int, float) else str
        parser.add_argument(
            flags.get(name, f"--{name}"),
            dest=name,
            default=default,
            type=boolean if kind is bool else kind,
            choices=field.metadata.get("choices"),
            help=field.metadata.get("help"),
            metavar=None if field.metadata.get("choices") else {bool: "true|false", str: "TEXT"}.get(kind, "N"),
        )
