"""The console script `trackstar`: one command a pipeline, each a module of this package.

A command's module has `add_arguments(parser)`, `run(args, beam_args) -> exit code`, a docstring whose first paragraph
describes it, and, so that it can be started as `python -m pipelines.<name>`,

    def main(argv=None):
        return cli.run_command("<name>", argv)

Modules are imported only when their command is called: `trackstar --help` imports neither Beam nor torch.

Exit codes: 0 done; 1 the run failed; 2 the input or the settings are wrong; 3 another run is at it; 130 stopped by Ctrl-C;
143 stopped by SIGTERM.
"""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import NoReturn

import trackstar
from pipelines import logs, options
from pipelines.errors import PipelineError
from trackstar.errors import BusyError, TrackStarError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUSY = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the console script.

    Args:
        module: Name of the module that holds it.
        help: One line for the list of commands.
        runs_pipelines: Whether it takes Beam's flags.
    """

    module: str
    help: str
    runs_pipelines: bool = True


COMMANDS: dict[str, Command] = {
    "fit": Command("pipelines.fit", "fit what encodings need on a sample of the corpus; write the spec of a new index"),
    "build-index": Command("pipelines.build_index", "encode the corpus into the index"),
    "reindex": Command(
        "pipelines.reindex", "bring an index up to date with its corpus: encode what changed, drop what is gone"
    ),
    "score": Command("pipelines.score", "find each query's proponents in the whole index"),
    "standing": Command("pipelines.standing", "keep queries with the index, and their proponents up to date with it"),
    "remove": Command(
        "pipelines.remove",
        "take examples or shards down: no result shows them from then on; show what was taken down",
        runs_pipelines=False,
    ),
    "verify": Command("pipelines.verify", "find damaged files of an index, and encode them again with --repair"),
    "evaluate": Command(
        "pipelines.evaluate",
        "measure proponents against annotated facts: MRR, Recall@k, precision@k",
        runs_pipelines=False,
    ),
    "baseline": Command("pipelines.baseline", "rank the corpus for each query without a model: BM25, or at random"),
    "tail-patch": Command("pipelines.tail_patch", "measure what one training step on each proponent does to its query"),
    "tune": Command(
        "pipelines.tune",
        "measure how much influence encodings of a few bytes keep, on your own sample; recommend the flags of fit",
        runs_pipelines=False,
    ),
    "inspect": Command(
        "pipelines.inspect", "show what an index holds: spec, snapshots, rows, bytes, rejects", runs_pipelines=False
    ),
    "view": Command(
        "pipelines.view", "show results in the browser, or write them as one HTML file", runs_pipelines=False
    ),
    "serve": Command(
        "pipelines.serve",
        "trace what a model says on request, against the whole index: by page and by HTTP",
        runs_pipelines=False,
    ),
    "demo": Command("pipelines.demo", "train a tiny model, build its index, trace queries and write the page"),
}

_BEAM_NOTE = (
    "Flags of Apache Beam pass through, for example --direct_num_workers=4 (worker processes on this machine)\n"
    "or --runner=DataflowRunner.\n"
)
_NOTE = "Words in flags may be joined with - or _. --debug shows all logs, and tracebacks."


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Runs `trackstar <command> …` and returns its exit code.

    Args:
        argv: Words after the program's name; the process's own by default.
        commands: The commands there are.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = _take_debug(words)
    logs.configure(debug)
    try:
        with _ending_on_sigterm():
            code = _run(words, commands)
        sys.stdout.flush()  # while a reader that is gone can still be told from a bug
        return code
    except KeyboardInterrupt:
        print("trackstar: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # The reader of our output is gone, as in `trackstar inspect … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _report(error, debug)


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """`main` for one command, for `python -m pipelines.<module>`.

    The module is imported under its own name, so what a pipeline pickles refers to it and not to `__main__`, which
    would be another module in the workers.
    """
    return main([name, *(sys.argv[1:] if argv is None else argv)])


def call(name: str, words: Sequence[str]) -> int:
    """Runs one command from within another: its exit code, or its exception."""
    return _run_command(name, COMMANDS[name], words)


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM leave the block as an exception does, so that locks are released and workers ended on the way out."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(EXIT_TERMINATED)

    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _take_debug(words: list[str]) -> bool:
    end = words.index("--") if "--" in words else len(words)
    found = "--debug" in words[:end]
    words[:end] = [word for word in words[:end] if word != "--debug"]
    return found


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands), default=0)
    lines = [
        "usage: trackstar <command> [flags]",
        "",
        "Finds, for something a language model says, the training documents that made it say so.",
        "",
        "commands:",
        *(f"  {name:{width}}  {command.help}" for name, command in commands.items()),
        "",
        "flags:",
        f"  {'--help':{width}}  this text; after a command, the command's flags",
        f"  {'--version':{width}}  the version",
        f"  {'--debug':{width}}  all logs, and tracebacks",
    ]
    return "\n".join(lines)


def _run(words: Sequence[str], commands: Mapping[str, Command]) -> int:
    name = words[0] if words else ""
    if name in ("", "-h", "--help", "help"):
        print(_overview(commands))
        return EXIT_DONE if name else EXIT_USAGE
    if name in ("-V", "--version"):
        print(f"trackstar {trackstar.__version__}")
        return EXIT_DONE
    command = commands.get(name) or commands.get(name.replace("_", "-"))
    if command is None:
        nearest = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(commands)}"
        raise options.UsageError(f"unknown {'flag' if name.startswith('-') else 'command'} {name}; {hint}")
    return _run_command(name, command, words[1:])


def parser(name: str) -> options.Parser:
    """A command's parser, with its own flags."""
    return _parser(name, COMMANDS[name], _import(name, COMMANDS[name]))


def _parser(name: str, command: Command, module: ModuleType) -> options.Parser:
    parser = options.Parser(
        prog=f"trackstar {name}",
        description=inspect.cleandoc(module.__doc__ or command.help),
        epilog=(_BEAM_NOTE if command.runs_pipelines else "") + _NOTE,
    )
    module.add_arguments(parser)
    return parser


def _run_command(name: str, command: Command, words: Sequence[str]) -> int:
    module = _import(name, command)
    parser = _parser(name, command, module)
    try:
        args, beam_args = options.parse(parser, words)
        if beam_args and not command.runs_pipelines:
            raise options.UsageError(f"{name} runs no pipeline and takes no flags of Beam: {' '.join(beam_args)}")
    except options.UsageError as error:
        raise options.UsageError(f"{error}\nsee `trackstar {name} --help`") from error
    except SystemExit as exit:  # --help
        return int(exit.code or 0)
    return int(module.run(args, beam_args))


def _import(name: str, command: Command) -> ModuleType:
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if error.name != command.module:
            raise
        raise TrackStarError(f"the command {name} is not part of this installation ({error})") from error


def _report(error: Exception, debug: bool) -> int:
    """Says what is wrong in one message, with --debug after the traceback; returns the exit code."""
    message, code = str(error), EXIT_USAGE
    if isinstance(error, BusyError):
        code = EXIT_BUSY
    elif isinstance(error, PipelineError):
        code = EXIT_FAILED
    elif not isinstance(error, TrackStarError):
        message, code = f"{type(error).__name__}: {error}", EXIT_FAILED
    if debug:
        traceback.print_exception(error)
        print(getattr(error, "details", ""), file=sys.stderr)
    elif code == EXIT_FAILED:
        message += "\n(--debug shows where it happened)"
    print(f"trackstar: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
