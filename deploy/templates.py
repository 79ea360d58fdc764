"""Flex Templates: a container spec for each command, its parameters taken from the command's own parser."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from deploy.settings import Settings
from pipelines import cli, driver, flag_types, options

_GS = r"gs://\S+"
_PATHS = ("DIR", "FILE", "GLOB", "CKPT")

# Flags of Beam that a launch sets: (flag, label, help, regex, kind).
_BEAM_PARAMETERS = (
    ("machine_type", "Compute Engine machine type of the workers.", "[a-z][a-z0-9-]+", "TEXT"),
    (
        "worker_disk_type",
        "Disk of the workers: compute.googleapis.com/projects//zones//diskTypes/pd-ssd.",
        r"\S+",
        "TEXT",
    ),
    ("disk_size_gb", "Disk of the workers in GB: image and model must fit.", "[0-9]+", "NUMBER"),
    ("max_num_workers", "Most workers at once.", "[0-9]+", "NUMBER"),
    ("num_workers", "Workers to start with.", "[0-9]+", "NUMBER"),
    (
        "dataflow_service_options",
        "GPU of the workers: worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver.",
        r"\S+",
        "TEXT",
    ),
    ("experiments", "no_use_multiple_sdk_containers keeps a worker to one process, as one GPU needs.", r"\S+", "TEXT"),
    ("number_of_worker_harness_threads", "Work items at once in a process; 1 on a GPU.", "[0-9]+", "NUMBER"),
)


def container_spec(command: str, settings: Settings, image: str) -> dict[str, Any]:
    """The file that a launch names as `containerSpecGcsPath`.

    One image serves all commands. What tells them apart is the required parameter `command`, of which each template allows
    one value: a container spec has no environment variables, in which the image could look its command up.
    """
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": {
            "name": f"trackstar {command}",
            "description": f"TrackStar: {cli.COMMANDS[command].help}.",
            "parameters": list(_parameters(command)),
        },
        "defaultEnvironment": environment(settings, image),
    }


def environment(settings: Settings, image: str) -> dict[str, str]:
    """Where launcher and driver run, and what they run in; the workers' machines are parameters."""
    return {
        "serviceAccountEmail": settings.service_account("launcher"),
        "sdkContainerImage": image,
        "tempLocation": settings.uri("tmp"),
        "stagingLocation": settings.uri("staging"),
        "launcherMachineType": "e2-standard-2",
    }


def _parameters(command: str) -> Iterator[dict[str, Any]]:
    yield {
        "name": "command",
        "label": "Command",
        "helpText": f"Always {command}: the image serves all commands.",
        "paramType": "TEXT",
        "regexes": [f"^{command}$"],
    }
    parser = cli.parser(command)
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield _parameter(parser, action)
    own = argparse.ArgumentParser(add_help=False)
    driver.add_arguments(own)
    for action in own._actions:
        if action.dest != "command":
            yield _parameter(own, action)
    for name, text, regex, kind in _BEAM_PARAMETERS:
        yield {**_described(name, text), "isOptional": True, "paramType": kind, "regexes": [f"^{regex}$"]}


def _described(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "label": name.replace("_", " ").capitalize(), "helpText": text}


def _parameter(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    """One flag as a parameter."""
    name = name_of(action)
    text = parser._get_formatter()._expand_help(action) if action.help else name
    found = _described(name, text[:1].upper() + text[1:] + ".")
    if not action.required:
        found["isOptional"] = True
    return found | _type(action)


def name_of(action: argparse.Action) -> str:
    """A parameter's name: its flag without the dashes."""
    return action.option_strings[-1].removeprefix("--") if action.option_strings else action.dest


def _type(action: argparse.Action) -> dict[str, Any]:
    """Parameter type, and what its values look like."""
    if action.nargs == 0 or action.type is options.boolean:
        return {"paramType": "BOOLEAN", "regexes": ["^(true|false)$"]}
    if action.choices:
        values = [str(choice) for choice in action.choices]
        return {"paramType": "ENUM", "enumOptions": [{"value": value, "label": value} for value in values]} | {
            "regexes": [f"^({'|'.join(map(re.escape, values))})$"]
        }
    if action.metavar in _PATHS:
        several = action.nargs in ("+", "*")
        return {"paramType": "TEXT", "regexes": [f"^{_GS}( {_GS})*$" if several else f"^{_GS}$"]}
    if action.type in (int, flag_types.positive, flag_types.natural):
        return {"paramType": "NUMBER", "regexes": ["^-?[0-9]+$"]}
    if action.type in (float, flag_types.fraction):
        return {"paramType": "NUMBER", "regexes": ["^-?[0-9]*[.]?[0-9]+([eE][+-]?[0-9]+)?$"]}
    return {"paramType": "TEXT"}
