"""The one rule between the two packages: trackstar knows no Beam, pipelines know no mathematics."""

import ast
import importlib.util
import json
import pathlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import pipelines
import trackstar

MATHEMATICS = ("torch", "numpy", "scipy", "transformers")


def _sources(package: object) -> list[pathlib.Path]:
    return sorted(pathlib.Path(package.__path__[0]).rglob("*.py"))  # type: ignore[attr-defined]


def _imports(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Absolute names that a file imports anywhere in it, functions included, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield ast.unparse(node.args[0]).strip("'"), node.lineno


def _forbidden(package: object, names: tuple[str, ...]) -> list[str]:
    return [
        f"{path}:{line}: {name}"
        for path in _sources(package)
        for name, line in _imports(path)
        if name.split(".")[0] in names
    ]


def test_imports_are_found_wherever_they_stand(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import apache_beam.io as io\n"
        "from apache_beam import Map\n"
        "def f():\n    import numpy, torch.nn\n"
        "import importlib\nimportlib.import_module('scipy.linalg')\n"
        "from . import sibling\n"
    )
    assert sorted(name for name, _ in _imports(source)) == [
        "apache_beam",
        "apache_beam.io",
        "importlib",
        "numpy",
        "scipy.linalg",
        "torch.nn",
    ]


def test_trackstar_imports_no_beam_and_no_pipelines() -> None:
    assert len(_sources(trackstar)) > 5
    assert _forbidden(trackstar, ("apache_beam", "pipelines")) == []


def test_pipelines_import_no_mathematics() -> None:
    assert len(_sources(pipelines)) > 5
    assert _forbidden(pipelines, MATHEMATICS) == []


IMPORT_ALL = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("apache_beam", "pipelines"))))
"""


@pytest.mark.timeout(120)
def test_importing_all_of_trackstar_loads_no_beam() -> None:
    names = [module.name for module in pkgutil.walk_packages(trackstar.__path__, "trackstar.")]
    names = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(["trackstar", *names])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert importlib.util.find_spec("apache_beam") is not None  # It could have been loaded.
