"""Off Google Cloud: the Kubernetes manifest and the line of cron run a command that the parsers take."""

import re
import shlex

import yaml

from deploy.settings import FOLDER
from pipelines import cli, options


def _parse(words):
    assert words[0] == "trackstar"
    assert words[1] in cli.COMMANDS
    return options.parse(cli.parser(words[1]), words[2:])


def test_the_kubernetes_manifest():
    claim, job = yaml.safe_load_all((FOLDER / "kubernetes" / "nightly.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args, beam_args = _parse([*container["command"], *container["args"]])
    assert args.device == "cuda"
    assert options.value_of(beam_args, "runner") == "DirectRunner"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["restartPolicy"] == "Never"
    (rule,) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [cli.EXIT_USAGE]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert {
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    } == {claim["metadata"]["name"]}
    assert args.index.startswith(mounts["data"])
    assert {"name": "TMPDIR", "value": mounts["scratch"]} in container["env"]


def test_the_line_of_cron():
    lines = [line for line in (FOLDER / "cron" / "trackstar").read_text().split("\n") if re.match(r"[0-9*]", line)]
    (line,) = lines
    assert "%" not in line, "cron takes % for a newline"
    words = shlex.split(line.split(">>")[0])
    assert words[5:7] == ["trackstar", "flock"]
    args, _ = _parse(words[words.index("trackstar", 6) :])
    assert args.corpus == ["/data/corpus/*.jsonl.gz"]
