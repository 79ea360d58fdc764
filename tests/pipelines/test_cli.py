"""The console script: choosing a command, exit codes, and what a person reads when something is wrong."""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

import trackstar
from pipelines import cli, options
from pipelines.errors import PipelineError
from trackstar.errors import ShardError, TrackStarError

Runs = list[tuple[argparse.Namespace, list[str]]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Runs]]:
    """Registers the command `toy`, whose run does what the test says; returns the runs it sees."""

    def register(run: Callable[[], int] = lambda: 0) -> Runs:
        runs: Runs = []

        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--top_k", type=int, default=100, help="how many")

        def run_module(args: argparse.Namespace, beam_args: list[str]) -> int:
            runs.append((args, beam_args))
            return run()

        module = types.ModuleType("toy_command", "Does nothing much.\n\nBut it does it well.")
        module.add_arguments = add_arguments  # type: ignore[attr-defined]
        module.run = run_module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "toy_command", module)
        monkeypatch.setitem(cli.COMMANDS, "toy-one", cli.Command("toy_command", "does nothing"))
        return runs

    yield register


@pytest.fixture(autouse=True)
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` configures logging for its process; pytest's own handlers stay here."""
    monkeypatch.setattr("pipelines.logs.configure", lambda *_, **__: None)


def _raise(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def test_a_command_gets_its_flags_and_beams(command: Callable[..., Runs]) -> None:
    runs = command()
    assert cli.main(["toy-one", "--top-k", "3", "--direct_num_workers=2"]) == 0
    assert [(args.top_k, beam_args) for args, beam_args in runs] == [(3, ["--direct_num_workers=2"])]


def test_a_command_may_be_written_with_an_underscore(command: Callable[..., Runs]) -> None:
    runs = command()
    assert cli.main(["toy_one"]) == 0
    assert cli.run_command("toy-one", ["--top_k=4"]) == 0
    assert [args.top_k for args, _ in runs] == [100, 4]


def test_the_exit_code_is_the_commands(command: Callable[..., Runs]) -> None:
    command(lambda: 5)
    assert cli.main(["toy-one"]) == 5


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrackStarError("no such folder: x"), 2, "no such folder: x\n"),
        (ShardError("part-1", "truncated"), 2, "part-1: truncated\n"),
        (PipelineError("worker 3 died", "the traceback"), 1, "worker 3 died\n(--debug shows where it happened)\n"),
        (ValueError("oh"), 1, "ValueError: oh\n(--debug shows where it happened)\n"),
    ],
    ids=repr,
)
def test_an_error_is_one_message_without_a_traceback(
    command: Callable[..., Runs], capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    command(_raise(error))
    assert cli.main(["toy-one"]) == code
    assert capsys.readouterr() == ("", f"trackstar: error: {message}")


@pytest.mark.parametrize("words", [["toy-one", "--debug"], ["--debug", "toy-one"]])
def test_debug_shows_the_traceback_and_the_details(
    command: Callable[..., Runs], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command(_raise(PipelineError("worker 3 died", "the worker's traceback")))
    assert cli.main(words) == 1
    errors = capsys.readouterr().err
    assert "in _run_command" in errors
    assert "\nthe worker's traceback\n" in errors
    assert errors.endswith("\ntrackstar: error: worker 3 died\n")


def test_ctrl_c(command: Callable[..., Runs], capsys: pytest.CaptureFixture[str]) -> None:
    command(_raise(KeyboardInterrupt()))
    assert cli.main(["toy-one"]) == 130
    assert capsys.readouterr().err == "trackstar: interrupted\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy-on"], "unknown command toy-on; did you mean toy-one?"),
        (["xyzzy"], "unknown command xyzzy; there are: fit, build-index, "),
        (["--xyzzy"], "unknown flag --xyzzy; "),
        (["toy-one", "--topk=3"], "unknown flag --topk; did you mean --top_k?\nsee `trackstar toy-one --help`"),
        (["toy-one", "--top_k=x"], "argument --top_k: invalid int value: 'x'\nsee `trackstar toy-one --help`"),
    ],
    ids=" ".join,
)
def test_usage_errors(
    command: Callable[..., Runs], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    runs = command()
    assert cli.main(words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"trackstar: error: {message}")
    assert runs == []


def test_help_of_a_command(command: Callable[..., Runs], capsys: pytest.CaptureFixture[str]) -> None:
    runs = command()
    assert cli.main(["toy-one", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("usage: trackstar toy-one", "But it does it well.", "how many (100)", "--direct_num_workers"):
        assert part in text
    assert runs == []


def test_a_module_that_is_missing_fails_only_when_called(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {"lost": cli.Command("pipelines.no_such_module", "is lost"), **cli.COMMANDS}
    assert cli.main(["--help"], commands) == 0
    assert "is lost" in capsys.readouterr().out
    assert cli.main(["lost"], commands) == 2
    assert "the command lost is not part of this installation" in capsys.readouterr().err


def test_a_broken_import_inside_a_command_is_not_hidden(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_command.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["broken"], {"broken": cli.Command("broken_command", "breaks")}) == 1
    assert "ModuleNotFoundError: No module named 'no_such_dependency'" in capsys.readouterr().err


SCRIPT = """
import json, sys, time
from pipelines import cli
code = cli.main(sys.argv[1:])
heavy = [name for name in ("apache_beam", "torch", "transformers", "numpy", "pyarrow") if name in sys.modules]
print(json.dumps([code, heavy, time.process_time()]))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fti"]])
def test_the_script_answers_at_once(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    code, heavy, seconds = json.loads(last)
    assert heavy == []
    assert seconds < 1.0
    assert code == (2 if words == ["fti"] else 0)
    if words == ["--version"]:
        assert lines == [f"trackstar {trackstar.__version__}"]
    if words == ["--help"]:
        assert all(any(line.startswith(f"  {name} ") for line in lines) for name in cli.COMMANDS)


def test_the_reader_of_the_output_may_go_away() -> None:
    program = "from pipelines import cli; import sys; sys.exit(cli.main(['--help']))"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; echo "${PIPESTATUS[0]}"', sys.executable, program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command(name: str) -> None:
    """Its module is there, its help is complete, none of its flags is hidden behind one of Beam's."""
    module = importlib.import_module(cli.COMMANDS[name].module)
    assert module.__doc__
    assert callable(module.run)
    assert callable(module.main)
    parser = options.Parser(prog=f"trackstar {name}")
    module.add_arguments(parser)
    for action in parser._actions:
        assert action.help, f"{action.option_strings} of {name} has no help"
        assert all("-" not in flag[2:] for flag in action.option_strings), f"{action.option_strings}: use _"
    shared = set(options._flags(parser)) & set(options._flags(options._beam_parser()))
    assert shared == set(), f"flags of {name} that are Beam's, too"
