"""Container specs and launch bodies: of the types that the API has, of the flags that the commands have, and up to date."""

import dataclasses
import json
import re
import tomllib

import pytest
from google.cloud.dataflow_v1beta3 import ContainerSpec, LaunchFlexTemplateRequest, ParameterType
from google.protobuf.json_format import ParseError

from deploy import render
from deploy.launches import launch_body, plans
from deploy.settings import EXAMPLE, EXAMPLE_SETTINGS, FOLDER, Settings, SettingsError, shapes
from deploy.templates import container_spec, name_of
from pipelines import cli, options
from pipelines.driver import Launch
from tests.deploy.launched import COMMANDS, IMAGE, body, launcher_words, settings


def _parameters(command):
    return {found["name"]: found for found in container_spec(command, settings(), IMAGE)["metadata"]["parameters"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_container_spec_is_of_the_type_of_the_api(command):
    content = json.dumps(container_spec(command, settings(), IMAGE))
    spec = ContainerSpec.from_json(content, ignore_unknown_fields=False)
    assert spec.image == spec.default_environment.sdk_container_image == IMAGE
    assert spec.sdk_info.language.name == "PYTHON"
    assert all(found.param_type != ParameterType.DEFAULT and found.label for found in spec.metadata.parameters)
    with pytest.raises(ParseError):
        ContainerSpec.from_json(content.replace('"helpText"', '"help"'), ignore_unknown_fields=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_launch_body_is_of_the_type_of_the_api(command):
    content = json.dumps(launch_body(command, settings(), IMAGE))
    launch = LaunchFlexTemplateRequest.from_json(content, ignore_unknown_fields=False).launch_parameter
    assert launch.job_name == f"trackstar-{command}"
    assert launch.container_spec_gcs_path == f"gs://{settings().bucket}/templates/{command}.json"
    assert launch.environment.service_account_email == settings().service_account("launcher")
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", launch.job_name)
    with pytest.raises(ParseError):
        LaunchFlexTemplateRequest.from_json(content.replace('"jobName"', '"name"'), ignore_unknown_fields=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_parameters_are_the_flags(command):
    own = cli.parser(command)
    flags = {name_of(action): action for action in own._actions if action.dest != "help"}
    parameters = _parameters(command)
    assert set(flags) <= set(parameters), "a flag of the command is no parameter"
    for name, found in parameters.items():
        if name in flags:
            assert found.get("isOptional", False) != flags[name].required
        elif name == "command":
            assert found["regexes"] == [f"^{command}$"]
        else:
            assert found["isOptional"]
            if not name.startswith(("driver_", "worker_service_account")):
                options.split(own, [f"--{name}=1"])  # Beam's, or this raises


@pytest.mark.parametrize("command", COMMANDS)
def test_a_launch_passes_what_its_template_takes(command):
    parameters, passed = _parameters(command), body(command)["parameters"]
    assert {name for name, found in parameters.items() if not found.get("isOptional")} <= set(passed) <= set(parameters)
    for name, value in passed.items():
        assert value, f"{name} is empty"
        assert all(re.fullmatch(regex, value) for regex in parameters[name].get("regexes", [])), (name, value)


@pytest.mark.parametrize("command", COMMANDS)
def test_regexes_take_defaults_and_refuse_what_is_wrong(command):
    parameters = _parameters(command)
    for action in cli.parser(command)._actions:
        found = parameters.get(name_of(action))
        scalar = action.default is not None and not isinstance(action.default, bool | list | tuple)
        if found and scalar and action.default != "==SUPPRESS==":
            assert all(re.fullmatch(regex, str(action.default)) for regex in found.get("regexes", [])), found["name"]
    refused = {"model": "/local/model", "index": "gs://", "corpus": "gs://a/*.gz /b", "max_num_workers": "many"}
    refused |= {"command": "sco re", "machine_type": "N1", "damping": "small", "dry_run": "perhaps"}
    for name, value in refused.items():
        if name in parameters:
            assert not all(re.fullmatch(regex, value) for regex in parameters[name]["regexes"]), name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_launcher_passes_the_command_its_words(command):
    launch = Launch.parse(launcher_words(command, f"gs://{settings().bucket}"))
    args, beam_args = options.parse(cli.parser(command), launch.words)
    for name, value in plans(settings())[command].parameters.items():
        assert str(getattr(args, name)) == (str([value]) if name == "corpus" else value)
    assert options.value_of(beam_args, "template_location") is None
    assert options.value_of(beam_args, "job_name") == f"trackstar-{command}-work"
    assert launch.state_uri.startswith(f"gs://{settings().bucket}/tmp/driver/trackstar-{command}-")


def test_the_example_is_up_to_date():
    files = render.rendered(settings(), render.EXAMPLE_TAG)
    assert render.out_of_date(files, EXAMPLE) == [], "run: python -m deploy.render"
    assert set(files) == {f"{kind}/{command}.json" for kind in ("templates", "launch") for command in COMMANDS}


def test_rendering_drops_what_is_no_more(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "gone.json").write_text("{}")
    files = render.rendered(settings(), "1")
    assert "launch/gone.json" in render.out_of_date(files, tmp_path)
    render.write(files, tmp_path)
    assert render.out_of_date(files, tmp_path) == []


def test_every_shape_has_a_price():
    """So that `--dry_run --machine` reckons with the machines that a launch takes."""
    machines = tomllib.loads((FOLDER.parent / "trackstar" / "cost" / "prices.toml").read_text())["machines"]
    for name, shape in shapes().items():
        machine = machines[shape.machine_type]
        assert machine["vcpus"] == shape.vcpus, name
        assert machine["accelerators"] == bool(shape.accelerator), name


def test_shapes_have_what_their_machines_need():
    for name, shape in shapes().items():
        assert shape.disk_type != "pd-standard", f"{name}: G2, A2 and C3 machines take none"
        assert bool(shape.accelerator) == shape.machine_type.startswith(("g2-", "a2-")), name


def test_settings_say_all_that_is_wrong_at_once(tmp_path):
    path = tmp_path / "settings.json"
    good = json.loads(EXAMPLE_SETTINGS.read_text())
    path.write_text(json.dumps(good))
    assert Settings.load(path) == settings()
    del good["project"]
    path.write_text(json.dumps({**good, "bucket": "gs://x", "regoin": "x", "corpus": "/local", "schedule": "nightly"}))
    with pytest.raises(SettingsError) as caught:
        Settings.load(path)
    for line in ("project: missing", "bucket: 'gs://x' is not", "regoin: there is no", "corpus: '/local'", "schedule:"):
        assert line in str(caught.value)
    path.write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        Settings.load(path)
    with pytest.raises(SettingsError, match="copy"):
        Settings.load(tmp_path / "none.json")


def test_several_corpora_travel_as_one_parameter():
    changed = dataclasses.replace(settings(), corpus="gs://one/*.gz gs://two/x/*.parquet")
    words = [
        f"--{name}={value}"
        for name, value in launch_body("build-index", changed, IMAGE)["launchParameter"]["parameters"].items()
    ]
    launch = Launch.parse([*words, "--temp_location=gs://b/tmp"])
    args, _ = options.parse(cli.parser("build-index"), launch.words)
    assert args.corpus == ["gs://one/*.gz", "gs://two/x/*.parquet"]
