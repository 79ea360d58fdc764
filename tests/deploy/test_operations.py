"""docs/operations.md: its command lines are ones that the parsers take, and what it names is there."""

import re
import shlex

import pytest

from deploy.settings import FOLDER, Settings, shapes
from pipelines import cli, options
from pipelines.driver import DONE_MESSAGE, commands

ROOT = FOLDER.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()


def _command_lines() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [line for line in lines if line.startswith("trackstar ")]


@pytest.mark.parametrize("line", _command_lines())
def test_command_lines_parse(line):
    words = shlex.split(line, comments=True)
    _, beam_args = options.parse(cli.parser(words[1]), words[2:])
    assert not beam_args or cli.COMMANDS[words[1]].runs_pipelines


def test_there_are_command_lines():
    assert {shlex.split(line)[1] for line in _command_lines()} >= {
        "build-index",
        "reindex",
        "score",
        "verify",
        "remove",
        "fit",
    }


def test_every_counter_of_the_pipelines_is_in_the_table():
    sources = "\n".join(path.read_text() for path in (ROOT / "pipelines").glob("*.py"))
    counters = set(re.findall(r'Metrics\.(?:counter|distribution)\("trackstar", "(\w+)"\)', sources))
    documented = set(re.findall(r"`((?:num|load)_\w+)`", TEXT))
    assert counters
    assert counters <= documented
    assert documented - counters <= {"num_workers"}


def test_what_it_names_is_there():
    for path in re.findall(r"\]\(\.\./([\w./-]+)\)", TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:deploy|pipelines|trackstar)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists() or path == "deploy/build/launch", path
    for name in Settings.__dataclass_fields__:
        assert f"`{name}`" in TEXT, f"setting {name}"
    for name in [*shapes(), *commands()]:
        assert f"`{name}`" in TEXT, name
    assert DONE_MESSAGE.format(command="reindex") in TEXT


def test_messages_of_the_table_are_real():
    """The texts of section 7 that are ours are found in the code that says them."""
    sources = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in ROOT.glob("[pt]*[es]*/**/*.py")))
    for text in (
        "work item(s) failed, nothing was committed",
        "could not be encoded",
        "shards that the index holds are gone from the corpus",
        "these settings are not those of the index",
        "no file matches",
        "is writing to it, last sign of life",
        "another run took over the right to write",
        "no permission",
        "do not fit into",
        "the disk is full",
        "TRACKSTAR_STORE_PATIENCE",
    ):
        assert text in TEXT, text
        assert text in sources, text
