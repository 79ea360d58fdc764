"""Terraform's files: parsed, formatted, with no more rights than needed, and of one mind with the rest of the deployment."""

import json
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import hcl2
import pytest

from deploy.launches import NIGHTLY, launch_body
from deploy.plan import steps
from deploy.settings import EXAMPLE_SETTINGS, FOLDER, Settings
from pipelines.driver import DONE_MESSAGE, commands
from tests.deploy.launched import IMAGE, settings

TERRAFORM = FOLDER / "terraform"
FILES = sorted(TERRAFORM.glob("*.tf"))
LEAST_ROLES = {
    "roles/dataflow.developer",
    "roles/dataflow.worker",
    "roles/iam.serviceAccountUser",
    "roles/storage.objectUser",
    "roles/storage.objectViewer",
    "roles/artifactregistry.reader",
    "roles/artifactregistry.writer",
    "roles/logging.logWriter",
}
PROJECT_WIDE = {"roles/dataflow.developer", "roles/dataflow.worker", "roles/logging.logWriter"}


_MARKS = ("__is_block__", "__comments__", "__inline_comments__")


def _plain(value: Any) -> Any:
    """Parsed values without the quotes and the marks of the parser."""
    if isinstance(value, str):
        return value[1:-1].replace('\\"', '"') if value.startswith('"') and value.endswith('"') else value
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(element) for key, element in value.items() if key not in _MARKS}
    return value


def parsed(kind: str) -> list[Any]:
    """All blocks of a kind, over all files."""
    found = []
    for path in FILES:
        with path.open() as file:
            found += _plain(hcl2.load(file)).get(kind, [])
    return found


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """The resources of a type, by name."""
    found = [block[kind] for block in parsed("resource") if kind in block]
    return {name: body for block in found for name, body in block.items()}


def test_all_files_parse():
    assert len(FILES) == 9
    assert {"google_storage_bucket", "google_cloud_scheduler_job"} <= {
        next(iter(block)) for block in parsed("resource")
    }


@pytest.mark.skipif(
    shutil.which("terraform") is None, reason="terraform is not installed; the next test checks the main rules"
)
def test_formatted_as_terraform_formats():
    done = subprocess.run(
        ["terraform", f"-chdir={TERRAFORM}", "fmt", "-check", "-diff"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def _close(levels: list[int], brackets: int) -> None:
    for _ in range(brackets):
        if levels:
            levels[-1] -= 1
            if not levels[-1]:
                levels.pop()


def format_problems(text: str) -> list[str]:
    """Where a file breaks the main rules of `terraform fmt`: indentation by two, `=` of neighbouring lines in one column, no
    blanks at the end of a line, one newline at the end of the file."""
    problems: list[str] = []
    in_text = False
    levels: list[int] = []  # brackets that each level is open by: those of one line open one level
    assignments: list[tuple[int, int, int]] = []  # (line, indentation, column of =)
    for number, line in enumerate(text.split("\n"), start=1):
        if in_text:
            in_text = line.strip() != "EOT"
            continue
        code = re.sub(r'"(\\.|[^"\\])*"', '""', line).split("#", maxsplit=1)[0]
        if line != line.rstrip():
            problems.append(f"{number}: blanks at the end")
        closing = len(re.match(r"\s*([\]})]*)", code)[1])
        _close(levels, closing)
        indentation = len(line) - len(line.lstrip())
        if line.strip() and indentation != 2 * len(levels):
            problems.append(f"{number}: indented by {indentation}")
        opened = len(re.findall(r"[\[{(]", code)) - len(re.findall(r"[\]})]", code)) + closing
        if opened > 0:
            levels.append(opened)
        else:
            _close(levels, -opened)
        found = re.match(r'(\s*)("[^"]*"|[\w.-]+)\s*=[^=>]', line)
        if found and code.count("{") == code.count("}") and code.count("[") == code.count("]"):
            assignments.append((number, indentation, line.index("=", len(found[2]) + indentation)))
        in_text = "<<-EOT" in line
    for (first, indent, column), (second, other_indent, other_column) in pairwise(assignments):
        if second == first + 1 and indent == other_indent and column != other_column:
            problems.append(f"{second}: = is not below the one of line {first}")
    if not text.endswith("\n") or text.endswith("\n\n"):
        problems.append("the end: one newline is wanted")
    return problems


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_formatted(path: Path):
    assert format_problems(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "a {\n   b = 1\n}\n",
        "a {\n  b = 1\n  long = 2\n}\n",
        "a {\n  b = 1 \n}\n",
        "a {\n  b = 1\n}",
        "a {\nb = 1\n}\n",
    ],
)
def test_the_check_of_the_format_finds_faults(text):
    assert format_problems(text)


def test_variables_are_the_settings():
    variables = {name: body for block in parsed("variable") for name, body in block.items()}
    own = {field.name: field for field in fields(Settings)}
    assert set(variables) - {"rendered"} == set(own) == set(json.loads(EXAMPLE_SETTINGS.read_text()))
    for name, field in own.items():
        assert variables[name]["description"]
        wanted = variables[name].get("default")
        assert wanted == (None if not isinstance(field.default, str | int) else field.default), name


def test_every_variable_is_used_and_every_reference_is_there():
    text = "\n".join(path.read_text() for path in FILES)
    not_terraforms = {
        "encode_shape",
        "scan_shape",
        "max_workers",
        "vacuum_days",
    }  # what renders the launch bodies reads them
    variables = {name for block in parsed("variable") for name in block}
    used = set(re.findall(r"\bvar\.(\w+)", text))
    assert used <= variables
    assert variables - used == not_terraforms
    assert set(re.findall(r"\blocal\.(\w+)", text)) == {name for block in parsed("locals") for name in block}
    there = {f"{kind}.{name}" for block in parsed("resource") for kind, named in block.items() for name in named}
    assert set(re.findall(r"(?<![\w./\"])(google_\w+\.\w+)", text)) <= there


def test_rights_are_the_least():
    text = (TERRAFORM / "identity.tf").read_text()
    assert set(re.findall(r'"(roles/[\w.]+)"', text)) == LEAST_ROLES
    assert "roles/" not in "".join(path.read_text() for path in FILES if path.name != "identity.tf")
    (roles,) = [block["project_roles"] for block in parsed("locals") if "project_roles" in block]
    found = {(grant["member"].removeprefix("${local.").removesuffix("}"), grant["role"]) for grant in roles.values()}
    assert {role for _, role in found} == PROJECT_WIDE
    assert found == {
        ("scheduler", "roles/dataflow.developer"),
        ("launcher", "roles/dataflow.developer"),
        ("launcher", "roles/dataflow.worker"),
        ("worker", "roles/dataflow.worker"),
        ("builder", "roles/logging.logWriter"),
    }
    assert not re.search(
        r"google_project_iam_(binding|policy)|allUsers|allAuthenticatedUsers|roles/(owner|editor)", text
    )


def test_the_bucket_is_closed_and_forgets():
    (bucket,) = resources("google_storage_bucket").values()
    assert bucket["uniform_bucket_level_access"] is True or bucket["uniform_bucket_level_access"] == "true"
    assert bucket["public_access_prevention"] == "enforced"
    (swept,) = [rule for rule in bucket["lifecycle_rule"] if rule["action"][0]["type"] == "Delete"]
    prefixes = swept["condition"][0]["matches_prefix"]
    environment = launch_body(NIGHTLY_OR_FIRST, settings(), IMAGE)["launchParameter"]["environment"]
    for location in (environment["tempLocation"], environment["stagingLocation"]):
        assert f"{location.removeprefix(f'gs://{settings().bucket}/')}/" in prefixes
    assert not any(prefix.startswith(("index", "queries", "results", "templates")) for prefix in prefixes)


NIGHTLY_OR_FIRST = NIGHTLY if NIGHTLY in commands() else commands()[0]


def test_accounts_are_those_of_the_launch_bodies():
    accounts = {body["account_id"] for body in resources("google_service_account").values()}
    launch = launch_body(NIGHTLY_OR_FIRST, settings(), IMAGE)["launchParameter"]
    used = {launch["environment"]["serviceAccountEmail"], launch["parameters"]["worker_service_account"]}
    assert {email.split("@")[0] for email in used} == {"trackstar-launcher", "trackstar-worker"}
    assert accounts == {f"trackstar-{name}" for name in ("scheduler", "launcher", "worker", "builder")}
    assert all(email.endswith(f"@{settings().project}.iam.gserviceaccount.com") for email in used)


def test_the_image_goes_where_the_registry_is():
    (registry,) = resources("google_artifact_registry_repository").values()
    host, project, repository, name = settings().image("1").split("/")
    assert (host, project) == (f"{settings().region}-docker.pkg.dev", settings().project)
    assert repository == registry["repository_id"]
    assert registry["location"] == "${var.region}"
    assert name == "trackstar:1"


def test_the_night_posts_the_launch_body():
    (job,) = resources("google_cloud_scheduler_job").values()
    (target,) = job["http_target"]
    assert target["uri"] == (
        "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    )
    assert f"${{var.rendered}}/launch/{NIGHTLY}.json" in target["body"]
    assert target["body"].startswith("${base64encode(file(")
    assert target["oauth_token"][0]["service_account_email"] == "${google_service_account.scheduler.email}"
    (template,) = resources("google_storage_bucket_object").values()
    assert template["name"] == "templates/${each.key}"
    folder = launch_body(NIGHTLY_OR_FIRST, settings(), IMAGE)["launchParameter"]["containerSpecGcsPath"]
    assert folder == f"gs://{settings().bucket}/templates/{NIGHTLY_OR_FIRST}.json"


def test_alerts_look_for_what_is_logged():
    (metric,) = resources("google_logging_metric").values()
    assert DONE_MESSAGE.format(command=NIGHTLY) in metric["filter"]
    assert f'job_name="trackstar-{NIGHTLY}"' in metric["filter"]
    policies = resources("google_monitoring_alert_policy")
    assert set(policies) == {"failed", "not_launched", "missed"}
    assert all(policy["notification_channels"] for policy in policies.values())
    (missed,) = policies["missed"]["conditions"][0]["condition_threshold"]
    assert "${google_logging_metric.nights_done.name}" in missed["filter"]
    period = missed["aggregations"][0]["alignment_period"]
    assert int(period.removesuffix("s")) <= 90000, "the longest that Cloud Monitoring allows is 25 hours"
    (scheduler,) = resources("google_cloud_scheduler_job").values()
    (refused,) = policies["not_launched"]["conditions"][0]["condition_matched_log"]
    assert f'resource.labels.job_id="{scheduler["name"]}"' in refused["filter"]


def test_the_steps_of_a_deployment_name_resources_that_are_there():
    there = {f"{kind}.{name}" for block in parsed("resource") for kind, named in block.items() for name in named}
    for has_docker in (True, False):
        words = [word for step in steps(settings(), EXAMPLE_SETTINGS, IMAGE, has_docker) for word in step.words]
        targets = {word.removeprefix("-target=") for word in words if word.startswith("-target=")}
        assert targets
        assert targets <= there
