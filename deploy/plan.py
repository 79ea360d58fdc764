"""`make deploy-plan` says what `make deploy` would do and what it lacks; `make deploy` does it."""

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import render
from deploy.launches import NIGHTLY, launch_body
from deploy.settings import BUILD, EXAMPLE_SETTINGS, FOLDER, OWN_SETTINGS, Settings, SettingsError

_ROOT = FOLDER.parent
_TERRAFORM = FOLDER / "terraform"
TOOLS = {
    "terraform": "makes bucket, accounts, schedule and alerts; 1.5 or later: developer.hashicorp.com/terraform/install",
    "gcloud": "signs in, and builds the image where there is no Docker: cloud.google.com/sdk/docs/install",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a deployment.

    Args:
        what: What it does, for people.
        words: The command.
    """

    what: str
    words: list[str]

    def __str__(self) -> str:
        return shlex.join(self.words)


def steps(settings: Settings, settings_file: Path, image: str, has_docker: bool) -> list[Step]:
    """The commands of a deployment, in order. Each can be run again."""
    terraform = ["terraform", f"-chdir={_TERRAFORM}"]
    variables = f"-var-file={settings_file.resolve()}"
    registry = image.split("/", maxsplit=1)[0]
    first = [
        "google_artifact_registry_repository.images",
        "google_storage_bucket.trackstar",
        "google_service_account.builder",
    ]
    rights = ["google_artifact_registry_repository_iam_member.pushes", "google_storage_bucket_iam_member.writes"]
    logs = ["google_project_iam_member.project_role"]
    if has_docker:
        push = [
            Step("let Docker push there", ["gcloud", "auth", "configure-docker", registry, "--quiet"]),
            Step("build the image", ["docker", "build", "-f", str(FOLDER / "Dockerfile"), "-t", image, str(_ROOT)]),
            Step("push the image", ["docker", "push", image]),
        ]
    else:
        account = f"projects/{settings.project}/serviceAccounts/{settings.service_account('builder')}"
        words = [
            "gcloud",
            "builds",
            "submit",
            str(_ROOT),
            f"--project={settings.project}",
            f"--region={settings.region}",
        ]
        words += [
            f"--config={FOLDER / 'cloudbuild.yaml'}",
            f"--substitutions=_IMAGE={image}",
            f"--service-account={account}",
        ]
        words += [f"--gcs-source-staging-dir={settings.uri('build')}", f"--ignore-file={_ROOT / '.gcloudignore'}"]
        push = [Step("build and push the image by Cloud Build", words)]
    targets = [f"-target={name}" for name in (first if has_docker else [*first, *rights, *logs])]
    return [
        Step("fetch Terraform's provider", [*terraform, "init", "-input=false"]),
        Step("make what the image needs (asks first)", [*terraform, "apply", variables, *targets]),
        *push,
        Step("make all the rest: templates, schedule, alerts (asks first)", [*terraform, "apply", variables]),
    ]


def tag() -> str:
    """The image's tag: version and commit, marked where the tree has changes that no commit holds."""
    words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--match=v[0-9]*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"{render.EXAMPLE_TAG}-{done.stdout.strip()}" if done.returncode == 0 else render.EXAMPLE_TAG


def missing_tools(which: Callable[[str], str | None] = shutil.which) -> dict[str, str]:
    """The tools that are not on this machine, and what each is for."""
    return {name: text for name, text in TOOLS.items() if which(name) is None}


def describe(settings: Settings, settings_file: Path, image: str, has_docker: bool) -> str:
    """What a deployment does, and what runs at night."""
    body = launch_body(NIGHTLY, settings, image)
    url = f"https://dataflow.googleapis.com/v1b3/projects/{settings.project}/locations/{settings.region}/flexTemplates:launch"
    templates = sorted(path.stem for path in (BUILD / "templates").glob("*.json"))
    lines = [
        f"settings   {settings_file}",
        f"project    {settings.project}, {settings.region}",
        f"image      {image}",
        f"bucket     gs://{settings.bucket}: index/ queries/ results/ templates/",
        f"templates  {', '.join(templates)}",
        f"night      {settings.schedule} ({settings.time_zone}), at most {settings.max_workers} × {settings.encode_shape}",
        "",
        "make deploy runs:",
        *(f"  # {step.what}\n  {step}" for step in steps(settings, settings_file, image, has_docker)),
        "",
        f"At night Cloud Scheduler posts to {url}",
        json.dumps(body, indent=2),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Plans or deploys; 0 done, 1 a step failed, 2 something is missing."""
    parser = argparse.ArgumentParser(prog="python -m deploy.plan", description=__doc__)
    parser.add_argument("--settings", type=Path, default=OWN_SETTINGS, help="the settings' file (%(default)s)")
    parser.add_argument("--apply", action="store_true", help="deploy")
    args = parser.parse_args(argv)
    is_example = args.settings == OWN_SETTINGS and not OWN_SETTINGS.exists()
    settings_file = EXAMPLE_SETTINGS if is_example else args.settings
    try:
        settings = Settings.load(settings_file)
        image_tag = tag()
        render.write(render.rendered(settings, image_tag), BUILD)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    image, has_docker = settings.image(image_tag), shutil.which("docker") is not None
    problems = [f"{name} is not installed: it {text}" for name, text in missing_tools().items()]
    if is_example:
        problems.insert(0, f"{OWN_SETTINGS} is missing: copy {EXAMPLE_SETTINGS} there and edit it")
    if args.apply:
        return _deploy(steps(settings, settings_file, image, has_docker), problems)
    print(describe(settings, settings_file, image, has_docker))
    print(f"\nrendered into {BUILD}: every template, and the launch body of every command")
    if not has_docker:
        print("Docker is not installed: Cloud Build builds the image instead")
    if image_tag.endswith("-dirty"):
        print("there are changes that are not committed: the image's tag says so")
    if problems:
        print("\nBefore make deploy:\n  " + "\n  ".join(problems))
        return 0
    print(f"\nnothing is missing. What Terraform would change: {_terraform_plan(settings_file)}")
    return 0


def _terraform_plan(settings_file: Path) -> str:
    if not (_TERRAFORM / ".terraform").exists():
        return "known after the first `terraform init`, which make deploy runs"
    words = ["terraform", f"-chdir={_TERRAFORM}", "plan", "-input=false", f"-var-file={settings_file.resolve()}"]
    code = subprocess.run(words, check=False).returncode
    return (
        "see above"
        if code == 0
        else "terraform plan failed, see above (signed in? gcloud auth application-default login)"
    )


def _deploy(to_do: Sequence[Step], problems: Sequence[str]) -> int:
    if problems:
        print("cannot deploy yet:\n  " + "\n  ".join(problems), file=sys.stderr)
        return 2
    for number, step in enumerate(to_do, start=1):
        print(f"[{number}/{len(to_do)}] {step.what}\n  {step}", flush=True)
        code = subprocess.run(step.words, check=False).returncode
        if code:
            print(
                f"error: this step ended with exit code {code}; mend it and run make deploy again: what is done is found done",
                file=sys.stderr,
            )
            return 1
    print("deployed; next: docs/operations.md, section 4 (fit, first build)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
