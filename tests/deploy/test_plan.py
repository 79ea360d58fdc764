"""`make deploy-plan` and `make deploy`: what they say, and what they refuse, where tools or settings are missing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from deploy import plan
from deploy.plan import missing_tools, steps
from deploy.settings import BUILD, EXAMPLE_SETTINGS
from tests.deploy.launched import COMMANDS, IMAGE, settings


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A PATH with git and no tool of a cloud."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def own_settings(tmp_path):
    """A team's settings, of a project that is not the example's."""
    path = tmp_path / "settings.tfvars.json"
    path.write_text(json.dumps({**json.loads(EXAMPLE_SETTINGS.read_text()), "project": "another-project"}))
    return path


@pytest.mark.usefixtures("bare")
def test_the_plan_says_what_is_missing_and_what_would_run(own_settings, capsys):
    assert plan.main([f"--settings={own_settings}"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "terraform is not installed: it makes bucket",
        "gcloud is not installed: it signs in",
        "Docker is not installed: Cloud Build builds the image instead",
        "gcloud builds submit",
        "projects/another-project/locations/us-central1/flexTemplates:launch",
    ):
        assert expected in printed
    shown = printed[printed.index("\n{\n") :]
    body, _ = json.JSONDecoder().raw_decode(shown.lstrip())
    assert body["launchParameter"]["jobName"] == "trackstar-reindex"
    assert json.loads((BUILD / "launch" / "reindex.json").read_text()) == body
    assert {path.stem for path in (BUILD / "templates").glob("*.json")} == set(COMMANDS)


@pytest.mark.usefixtures("bare")
def test_a_deployment_without_tools_touches_nothing(own_settings, capsys):
    assert plan.main(["--apply", f"--settings={own_settings}"]) == 2
    printed = capsys.readouterr()
    assert "cannot deploy yet" in printed.err
    assert "terraform" in printed.err
    assert "[1/" not in printed.out


@pytest.mark.usefixtures("bare")
def test_wrong_settings_are_named(own_settings, capsys):
    own_settings.write_text(json.dumps({**json.loads(own_settings.read_text()), "region": "Europe"}))
    assert plan.main([f"--settings={own_settings}"]) == 2
    assert "region: 'Europe' is not a region, like us-central1" in capsys.readouterr().err
    assert plan.main(["--settings=/none.json"]) == 2


def test_a_failed_step_ends_the_deployment(tmp_path, own_settings, monkeypatch, capsys):
    """With tools that only write down how they were called, the second of which fails: nothing after it is called."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    for name in ("terraform", "gcloud", "docker"):
        tool = folder / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\ncase "$*" in *target*) exit 7;; esac\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert plan.main(["--apply", f"--settings={own_settings}"]) == 1
    assert "ended with exit code 7" in capsys.readouterr().err
    called = log.read_text().splitlines()
    assert [line.split()[0] for line in called] == ["terraform", "terraform"]
    assert "init -input=false" in called[0]
    assert f"-var-file={own_settings}" in called[1]


def test_the_steps_are_in_order():
    with_docker = [step.words[0] for step in steps(settings(), EXAMPLE_SETTINGS, IMAGE, True)]
    assert with_docker == ["terraform", "terraform", "gcloud", "docker", "docker", "terraform"]
    without = steps(settings(), EXAMPLE_SETTINGS, IMAGE, False)
    assert [step.words[0] for step in without] == ["terraform", "terraform", "gcloud", "terraform"]
    assert any("trackstar-builder@" in word for word in without[2].words)
    assert f"--substitutions=_IMAGE={IMAGE}" in without[2].words
    assert Path(without[2].words[3]).joinpath("pyproject.toml").exists()


def test_the_tools_that_are_missing():
    assert set(missing_tools(lambda _: None)) == {"terraform", "gcloud"}
    assert missing_tools(lambda name: f"/bin/{name}") == {}
