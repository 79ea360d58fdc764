"""Writes the template and the launch body of every command.

    python -m deploy.render            renews deploy/example, which shows them for made-up settings
    python -m deploy.render --check    only says which files there are out of date

`make deploy-plan` and `make deploy` render your settings into deploy/build.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import trackstar
from deploy.launches import launch_body, plans
from deploy.settings import EXAMPLE, EXAMPLE_SETTINGS, Settings, SettingsError
from deploy.templates import container_spec
from pipelines import driver

EXAMPLE_TAG = trackstar.__version__


def rendered(settings: Settings, tag: str) -> dict[str, str]:
    """Name → content of all files.

    Raises:
        SettingsError: a command without a plan of how to launch it.
    """
    image = settings.image(tag)
    files = {}
    for command in driver.commands():
        if command not in plans(settings):
            raise SettingsError(f"the command {command} has no plan in deploy/launches.py: say how it is launched")
        files[f"templates/{command}.json"] = container_spec(command, settings, image)
        files[f"launch/{command}.json"] = launch_body(command, settings, image)
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in files.items()}


def write(files: dict[str, str], folder: Path) -> None:
    """Writes the files, and drops those of commands that are no more."""
    for path in [*folder.glob("templates/*.json"), *folder.glob("launch/*.json")]:
        if str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def out_of_date(files: dict[str, str], folder: Path) -> list[str]:
    """Names of files that are missing, differ, or should not be there."""
    there = {
        str(path.relative_to(folder)) for pattern in ("templates", "launch") for path in folder.glob(f"{pattern}/*")
    }
    return sorted(
        name for name in there | set(files) if name not in there or files.get(name) != (folder / name).read_text()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Renews or checks deploy/example."""
    parser = argparse.ArgumentParser(prog="python -m deploy.render", description="Renews deploy/example.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    args = parser.parse_args(argv)
    try:
        files = rendered(Settings.load(EXAMPLE_SETTINGS), EXAMPLE_TAG)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        stale = out_of_date(files, EXAMPLE)
        print("\n".join(f"out of date: deploy/example/{name}" for name in stale) or "up to date")
        return 1 if stale else 0
    write(files, EXAMPLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
