"""The image: the versions that the project pins, the files that it needs, and the entrypoints of Dataflow."""

import fnmatch
import re
import subprocess
import tomllib

import pytest
import yaml

from deploy.settings import FOLDER

ROOT = FOLDER.parent
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def _argument(name: str) -> str:
    return re.search(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.MULTILINE)[1]


def test_python_is_of_the_minor_that_the_project_takes():
    minor = _argument("PYTHON_VERSION")
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert re.fullmatch(r"3\.\d+", minor)
    assert int(low) <= int(minor.split(".")[1]) < int(high)
    assert f"python{minor.replace('.', '')}-template-launcher-base" in DOCKERFILE
    assert "FROM apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION} AS beam" in DOCKERFILE
    assert "FROM python:${PYTHON_VERSION}-slim" in DOCKERFILE


def test_beam_is_the_one_that_is_pinned():
    assert _argument("BEAM_VERSION") == PINS["apache-beam"]
    (beam,) = [line for line in PROJECT["dependencies"] if line.startswith("apache-beam")]
    assert f">={'.'.join(PINS['apache-beam'].split('.')[:2])}," in beam


def test_torch_is_the_pinned_one_built_for_cuda():
    index, major = _argument("TORCH_INDEX"), _argument("CUDA_MAJOR")
    assert re.search(r"/cu(\d\d)\d$", index)[1] == major
    assert "grep '^torch==' constraints.txt" in DOCKERFILE
    assert "torch" in PINS
    assert DOCKERFILE.index('"$TORCH_INDEX"') < DOCKERFILE.index("pip install -c constraints.txt")


def test_both_of_dataflows_programs_are_in_it():
    assert "COPY --from=beam /opt/apache/beam /opt/apache/beam" in DOCKERFILE
    launcher = "/opt/google/dataflow/python_template_launcher"
    assert f"COPY --from=launcher {launcher} {launcher}" in DOCKERFILE
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in DOCKERFILE
    entry = re.search(r"^ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/trackstar/(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert f"COPY {entry} {entry}" in DOCKERFILE
    assert "from pipelines import driver" in (ROOT / entry).read_text()


def _ignored(path: str) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that fits it or a folder of it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        folders = [path.rsplit("/", number)[0] for number in range(path.count("/") + 1)]
        if any(fnmatch.fnmatch(folder, pattern.removeprefix("**/")) for folder in folders) or (
            pattern.startswith("**/") and any(fnmatch.fnmatch(part, pattern[3:]) for part in path.split("/"))
        ):
            ignored = not line.strip().startswith("!")
    return ignored


def test_what_is_copied_is_sent_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = [word for line in copied for word in line.split()[:-1]]
    assert {"trackstar", "pipelines", "constraints.txt", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not _ignored(f"{source}/x.py" if (ROOT / source).is_dir() else source), source
    for path in (
        ".git/config",
        "tests/gcs.py",
        ".venv/bin/python",
        "deploy/settings.tfvars.json",
        "trackstar/__pycache__/a.pyc",
    ):
        assert _ignored(path), path


@pytest.mark.parametrize("name", ["trackstar", "pipelines"])
def test_the_packages_files_are_all_sent(name):
    files = [str(path.relative_to(ROOT)) for path in (ROOT / name).rglob("*") if path.is_file()]
    left_out = [path for path in files if _ignored(path) and "__pycache__" not in path]
    assert left_out == []


def test_cloud_build_is_sent_what_the_image_needs(tmp_path):
    """By git itself, whose rules are those of .gcloudignore."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True, timeout=60)
    (tmp_path / ".gitignore").write_text((ROOT / ".gcloudignore").read_text())
    needed = [str(path.relative_to(ROOT)) for name in ("trackstar", "pipelines") for path in (ROOT / name).rglob("*.*")]
    needed = [path for path in needed if "__pycache__" not in path]
    needed += [".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"]
    needed += ["deploy/Dockerfile", "deploy/flex_template.py", "deploy/cloudbuild.yaml"]
    kept_back = [
        ".git/config",
        "tests/gcs.py",
        ".venv/bin/python",
        "deploy/settings.tfvars.json",
        "deploy/build/launch/fit.json",
    ]
    kept_back += ["trackstar/__pycache__/a.pyc", "deploy/terraform/terraform.tfstate"]
    done = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        input="\n".join([*needed, *kept_back]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert set(done.stdout.split("\n")) - {""} == set(kept_back)


def test_cloud_build_builds_the_same_file():
    build = yaml.safe_load((FOLDER / "cloudbuild.yaml").read_text())
    (step,) = build["steps"]
    assert "--file=deploy/Dockerfile" in step["args"]
    assert build["images"] == ["${_IMAGE}"]
