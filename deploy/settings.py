"""What differs from one team to the next: one file of settings, read here and by Terraform."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
OWN_SETTINGS = FOLDER / "settings.tfvars.json"
EXAMPLE_SETTINGS = FOLDER / "example" / "settings.tfvars.json"
BUILD = FOLDER / "build"
EXAMPLE = FOLDER / "example"

_NAME = "[a-z][a-z0-9-]{4,28}[a-z0-9]"
_OBJECT = r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]/[^\s\"\\]+"


class SettingsError(Exception):
    """Settings that cannot be used: says which, and what is wanted."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A machine that workers run on.

    Args:
        machine_type: Compute Engine's name.
        vcpus: Its virtual processors.
        accelerator: Compute Engine's name of its GPU, one a machine; empty without.
        disk_type: Persistent disk; G2, A2 and C3 machines take no pd-standard.
        disk_size_gb: Room for the image and the model, in GB.
    """

    machine_type: str
    vcpus: int
    accelerator: str
    disk_type: str
    disk_size_gb: int


def shapes() -> dict[str, Shape]:
    """The machine shapes by name, from shapes.json."""
    return {name: Shape(**fields) for name, fields in json.loads((FOLDER / "shapes.json").read_text()).items()}


def _field(pattern: str, wanted: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"pattern": pattern, "wanted": wanted})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings; each is a variable of the same name in terraform/variables.tf, which describes it."""

    project: str = _field(_NAME, "the id of a Google Cloud project")
    bucket: str = _field("[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]", "the name of a bucket to be made, without gs://")
    corpus: str = _field(f"{_OBJECT}( {_OBJECT})*", "gs://BUCKET/GLOB, several with a blank between")
    model: str = _field(_OBJECT, "gs://BUCKET/FOLDER of a checkpoint with its tokenizer")
    alert_email: str = _field(r"[^@\s\"\\]+@[^@\s\"\\]+", "an e-mail address")
    region: str = _field("[a-z]+-[a-z]+[0-9]+", "a region, like us-central1", "us-central1")
    schedule: str = _field(r"[0-9*/, -]+( [0-9A-Z*/,-]+){4}", 'five fields of cron, like "0 1 * * *"', "0 1 * * *")
    time_zone: str = _field("[A-Za-z0-9_/+-]+", "a name of the tz database", "Etc/UTC")
    encode_shape: str = _field("|".join(map(re.escape, shapes())), f"one of {', '.join(shapes())}", "l4")
    scan_shape: str = _field("|".join(map(re.escape, shapes())), f"one of {', '.join(shapes())}", "cpu")
    max_workers: int = _field("[1-9][0-9]*", "a whole number above zero", 4)
    vacuum_days: int = _field("[0-9]+", "a whole number of days", 30)

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Reads a file of settings.

        Raises:
            SettingsError: no file, no JSON, a setting that is unknown, missing or malformed; all of them at once.
        """
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise SettingsError(f"{path}: there is no such file; copy {EXAMPLE_SETTINGS} there and edit it") from error
        except ValueError as error:
            raise SettingsError(f"{path}: not JSON: {error}") from error
        fields = {field.name: field for field in dataclasses.fields(cls)}
        problems = [f"{name}: there is no such setting" for name in found if name not in fields]
        for name, field in fields.items():
            value = found.get(name, field.default)
            if value is dataclasses.MISSING:
                problems.append(f"{name}: missing; wanted is {field.metadata['wanted']}")
            elif not re.fullmatch(field.metadata["pattern"], str(value)):
                problems.append(f"{name}: {value!r} is not {field.metadata['wanted']}")
        if problems:
            raise SettingsError("\n  ".join([f"{path}:", *problems]))
        return cls(**found)

    def image(self, tag: str) -> str:
        """URL of the image."""
        return f"{self.region}-docker.pkg.dev/{self.project}/trackstar/trackstar:{tag}"

    def service_account(self, name: str) -> str:
        """E-mail address of one of our service accounts: launcher, worker, scheduler or builder."""
        return f"trackstar-{name}@{self.project}.iam.gserviceaccount.com"

    def uri(self, path: str) -> str:
        """A place in the bucket."""
        return f"gs://{self.bucket}/{path}"
