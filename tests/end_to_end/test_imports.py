"""A command that finds nothing to do loads nothing for it: most nights a re-index is one of these, on every index there is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli, heavy
from tests.end_to_end.world import World

ROOT = Path(__file__).parents[2]
LARGE = (
    "apache_beam",
    "torch",
    "transformers",
    "google.cloud.storage",
    "numba",
    "sklearn",
    "scipy",
    "bm25s",
    "matplotlib",
    "pandas",
)
PROGRAM = f"""
import json, sys
from pipelines import cli
code = cli.main(sys.argv[1:])
print(json.dumps([code, [name for name in {LARGE} if name in sys.modules]]))
"""


def imported(*words: str) -> list[str]:
    """Which of the large packages a process has imported when the command is done."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def kept(world: World, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full index of the module's own, with standing queries."""
    root = tmp_path_factory.mktemp("kept")
    shutil.copytree(built, root / "index")
    (root / "queries.jsonl").write_text('{"inputs_plaintext": "Rome is a city in", "targets_plaintext": "Italy"}\n')
    words = ["--index", str(root / "index"), "--model", str(world.model), "--name", "facts", "--top_k", "3"]
    assert cli.main(["standing", "add", *words, "--queries", str(root / "queries.jsonl")]) == 0
    return root / "index"


def test_help_of_all_commands() -> None:
    assert imported("--help") == []


def test_a_night_without_changes(world: World, kept: Path) -> None:
    """Standing queries that are up to date included."""
    common = ["--index", str(kept), "--corpus", world.pattern, "--model", str(world.model)]
    assert imported("reindex", *common, "--vacuum_days", "7") == []
    assert imported("standing", "update", "--index", str(kept)) == []


def test_a_look_at_an_index(world: World, kept: Path) -> None:
    assert imported("inspect", str(kept)) == []
    assert imported("standing", "list", "--index", str(kept)) == []
    assert imported("remove", "--index", str(kept), "--shard", str(world.corpus / "a.jsonl"), "--dry_run") == []


def test_verify_needs_no_model(kept: Path) -> None:
    """It runs a pipeline, and reads the preconditioner: which shows, too, that these tests would see what is imported."""
    assert imported("verify", "--index", str(kept)) == ["apache_beam", "torch", "google.cloud.storage"]


def test_a_night_with_changes_loads_what_it_needs(world: World, kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "index")
    shutil.copytree(world.corpus, tmp_path / "corpus")
    words = ["--index", str(tmp_path / "index"), "--corpus", str(tmp_path / "corpus" / "[ab]*")]
    found = imported(
        "reindex", *words, "--model", str(world.model), "--item_bytes", "2000", "--max_dropped_fraction", "1"
    )
    assert {"apache_beam", "torch", "transformers"} <= set(found)


@pytest.mark.parametrize("name", heavy.__all__)
def test_what_is_late_is_there(name: str) -> None:
    assert getattr(heavy, name).__name__.endswith(f".{name}")


def test_nothing_else_is_late() -> None:
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        heavy.torch  # noqa: B018
