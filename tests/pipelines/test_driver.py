"""The driver: how it sorts flags, runs a command as a process, and what it does when it is started again."""

import json
import logging
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.dataflow.internal.apiclient import DataflowJobAlreadyExistsError

from pipelines import cli, driver, options, runner
from pipelines.driver import Launch, RunCommand, State, run_command
from pipelines.errors import PipelineError
from trackstar.errors import BusyError, TrackStarError


@pytest.fixture
def world(tmp_path):
    """A corpus of two documents and one query, which need no model."""
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "Rome is old."}\n{"id": "b", "text": "Paris is green."}\n')
    (tmp_path / "q.jsonl").write_text('{"inputs_plaintext": "Paris is", "targets_plaintext": "green"}\n')
    return tmp_path


def _words(world: Path, *more: str) -> list[str]:
    files = {"corpus": "a.jsonl", "queries": "q.jsonl", "output": "r.jsonl", "temp_location": "tmp"}
    return ["--command=baseline", "--method=bm25", *(f"--{name}={world / file}" for name, file in files.items()), *more]


def _state(world: Path) -> State:
    (path,) = (world / "tmp" / "driver").iterdir()
    return State.load(str(path))


def test_a_command_runs_to_its_end_and_is_noted_done(world, caplog):
    caplog.set_level(logging.INFO)
    assert driver.main(_words(world, "--dry_run=false", "--top_k=")) == cli.EXIT_DONE
    result = json.loads((world / "r.jsonl").read_text())
    assert result["proponent_ids"][0] == "b"
    assert _state(world) == State(attempts=1, done=True)


def test_a_command_that_failed_is_not_run_again(world, capsys):
    (world / "a.jsonl").unlink()
    assert driver.main(_words(world)) == cli.EXIT_FAILED
    assert "no file matches" in capsys.readouterr().err
    state = _state(world)
    assert (state.attempts, state.done) == (1, False)
    (path,) = (world / "tmp" / "driver").iterdir()
    with pytest.raises(PipelineError, match="no file matches"):
        list(RunCommand("baseline", ["--no_such_flag"], str(path)).process("baseline"))
    assert _state(world) == state


def test_a_command_that_is_done_is_not_run_again(tmp_path):
    uri = str(tmp_path / "state.json")
    State(attempts=1, done=True).save(uri)
    assert list(RunCommand("baseline", ["--no_such_flag"], uri).process("baseline")) == ["baseline"]


def test_after_a_lost_driver_the_command_waits_for_what_runs(tmp_path, monkeypatch):
    """The first two starts find the lost one's job running; the state says that there was an earlier attempt."""
    codes = [(cli.EXIT_BUSY, "running"), (cli.EXIT_BUSY, "running"), (cli.EXIT_DONE, "")]
    monkeypatch.setattr(driver, "run_command", lambda *_: codes.pop(0))
    uri = str(tmp_path / "state.json")
    State(attempts=1).save(uri)
    assert list(RunCommand("reindex", [], uri, busy_seconds=0.01).process("reindex")) == ["reindex"]
    assert not codes
    assert State.load(uri) == State(attempts=2, done=True)


def test_a_first_start_that_finds_another_run_says_so_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "run_command", lambda *_: (cli.EXIT_BUSY, "index: another run writes to it"))
    uri = str(tmp_path / "state.json")
    with pytest.raises(PipelineError, match="another run writes"):
        list(RunCommand("reindex", [], uri).process("reindex"))
    assert "exit code 3" in State.load(uri).failure


def test_what_a_command_says_is_logged_and_its_end_is_kept(caplog):
    caplog.set_level(logging.INFO, logger="pipelines.driver")
    code, tail = run_command("inspect", ["/no/such/index"])
    assert code == cli.EXIT_USAGE
    assert "/no/such/index" in tail
    assert any(record.getMessage().startswith("inspect: ") for record in caplog.records)


def test_flags_go_where_they_belong():
    words = [
        "--command=score",
        "--index=gs://b/index",
        "--model=gs://b/model",
        "--queries=gs://b/q.jsonl",
        "--output=gs://b/r.jsonl",
        "--opponents=false",
        "--allow_low_coverage=true",
        "--runner=DataflowRunner",
        "--project=p",
        "--region=r",
        "--temp_location=gs://b/tmp",
        "--job_name=trackstar-score",
        "--service_account_email=launcher@p",
        "--worker_service_account=worker@p",
        "--sdk_container_image=image",
        "--machine_type=g2-standard-8",
        "--driver_machine_type=e2-highmem-8",
        "--subnetwork=s",
        "--use_public_ips=false",
        "--template_location=gs://b/job",
        '--labels={\n "goog-dataflow-provided-template-type": "flex",\n "team": "data"\n}',
        "--labels=cost=low",
    ]
    launch = Launch.parse(words)
    args, beam_args = options.parse(cli.parser("score"), launch.words)
    assert (args.opponents, args.allow_low_coverage) == (False, True)
    wanted = {
        "runner": ("DataflowRunner", "DataflowRunner"),
        "job_name": ("trackstar-score-work", "trackstar-score"),
        "service_account_email": ("worker@p", "launcher@p"),
        "sdk_container_image": ("image", "image"),
        "machine_type": ("g2-standard-8", "e2-highmem-8"),
        "subnetwork": ("s", "s"),
        "template_location": (None, "gs://b/job"),
    }
    for name, (work, own) in wanted.items():
        assert (options.value_of(beam_args, name), options.value_of(launch.driver_args, name)) == (work, own), name
    assert "--no_use_public_ips" in beam_args
    assert "--no_use_public_ips" in launch.driver_args
    assert launch.state_uri.startswith("gs://b/tmp/driver/trackstar-score-")
    labels = options.pipeline_options(beam_args).view_as(GoogleCloudOptions).labels
    assert labels == ["team=data", "cost=low", "trackstar-command=score"]
    assert any("goog-dataflow" in word for word in launch.driver_args)


def test_a_job_of_the_same_name_is_another_run(capsys):
    error = runner._explain(DataflowJobAlreadyExistsError("There is already active job named x with id: y."))
    assert isinstance(error, BusyError)
    assert cli._report(error, debug=False) == cli.EXIT_BUSY
    assert "already active job named x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--command=baseline", "--temp_location=gs://b/t", "--metod=bm25"],
            "unknown flag --metod; did you mean --method",
        ),
        (["--command=evaluate"], "invalid choice"),
        (["--command=baseline", "--temp_location=gs://b/t", "--dry_run=maybe"], "neither true nor false"),
        (["--command=baseline", "--method=bm25"], "--temp_location is needed"),
        (["--command=baseline", "--temp_location=gs://b/t", "--method=bm25"], "required: --corpus"),
    ],
)
def test_wrong_parameters_fail_at_launch(words, message, capsys):
    assert driver.main(words) == cli.EXIT_USAGE
    assert message in capsys.readouterr().err


def test_a_words_own_name_stands_for_what_has_no_flag():
    words = ["--command=standing", "--action=update", "--index=gs://b/index", "--temp_location=gs://b/t"]
    launch = Launch.parse(words)
    args, _ = options.parse(cli.parser("standing"), launch.words)
    assert (args.action, args.index) == ("update", "gs://b/index")


def test_a_template_is_refused_where_a_command_waits(tmp_path):
    with pytest.raises(TrackStarError, match="Flex Template"):
        runner.run_pipeline(lambda pipeline: None, [f"--template_location={tmp_path}/t"])
    with pytest.raises(TrackStarError, match="--template_location=gs"):
        runner.write_template(lambda pipeline: None, [])
