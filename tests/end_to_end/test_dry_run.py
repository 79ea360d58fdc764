"""--dry_run of every pipeline: says what a run would take, runs nothing, and leaves every byte as it was."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipelines import cli, driver, runner
from tests.end_to_end.world import World
from trackstar import corpus
from trackstar.cost.rates import read_rates
from trackstar.index import Index
from trackstar.results import read_queries, read_results

KEYS = {"wall_seconds", "machine_hours", "money", "stages", "read_bytes", "written_bytes", "shuffle_bytes", "flops"}


@pytest.fixture(scope="module")
def own(world: World, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`index` whole, `half` with some files missing, `queries.jsonl`, `results.jsonl`; all read only."""
    root = tmp_path_factory.mktemp("dry")
    shutil.copytree(built, root / "index")
    shutil.copytree(built, root / "half")
    for path in sorted((root / "half" / "encodings").glob("*.parquet"))[:9]:
        path.unlink()
    shutil.rmtree(root / "half" / "encodings" / "_delta_log")
    lines = [{"inputs_plaintext": f"The capital of France {n}", "targets_plaintext": " is Paris"} for n in range(70)]
    (root / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [*model_flags(world), "--index", str(root / "index"), "--queries", str(root / "queries.jsonl")]
    words += ["--output", str(root / "results.jsonl"), "--top_k", "3", "--task_hessian", "none"]
    assert cli.main(["score", *words]) == 0
    return root


def model_flags(world: World) -> list[str]:
    return ["--model", str(world.model)]


def commands(world: World, own: Path) -> dict[str, list[str]]:
    """Every pipeline's command line, but for --dry_run."""
    queries, output = ["--queries", str(own / "queries.jsonl")], ["--output", str(own / "out.jsonl")]
    small = ["--recipe", "paper", "--block_rows", "6", "--block_columns", "6", "--sample_size", "120"]
    return {
        "fit": [*world.flags(own / "new"), *small],
        "build-index": world.flags(own / "half"),
        "reindex": world.flags(own / "half"),
        "score": [*model_flags(world), "--index", str(own / "index"), *queries, *output, "--top_k", "10"],
        "baseline": ["--method", "bm25", "--corpus", world.pattern, *queries, *output, "--item_bytes", "2000"],
        "tail-patch": [*model_flags(world), "--results", str(own / "results.jsonl"), *output, "--step", "sgd"],
        "verify": ["--index", str(own / "index")],
    }


COMMANDS = ("fit", "build-index", "reindex", "score", "baseline", "tail-patch", "verify")


def state(*folders: Path) -> dict[str, tuple[int, str]]:
    """Every file with its modification time and content."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a pipeline was run")

    monkeypatch.setattr(runner, "run_pipeline", refuse)


def dry_run(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.main([command, *words, "--dry_run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert set(estimate) >= KEYS
    return estimate


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_and_something_is_said(command: str, world: World, own: Path, capsys) -> None:
    words = commands(world, own)[command]
    before = state(own, world.root)
    estimate = dry_run(command, words, capsys)
    assert state(own, world.root) == before
    assert estimate["command"] == command
    assert estimate["machine"] == "here"
    assert estimate["not_counted"] == []  # everything was measured
    assert estimate["wall_seconds"] > 0
    assert estimate["money"]["on_demand"] is None
    for stage in estimate["stages"]:
        assert stage["wall_seconds"] >= 0
        for part in stage["parts"]:
            assert part["seconds"] == pytest.approx(part["amount"] / part["rate"] if part["amount"] else 0.0)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_named_machine_needs_no_weights(command: str, world: World, own: Path, tmp_path: Path, capsys) -> None:
    """Without calibration the model's configuration is enough, and there is a price."""
    shutil.copytree(world.model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    words = [word.replace(str(world.model), str(tmp_path / "model")) for word in commands(world, own)[command]]
    words += ["--machine", "n4-standard-80", "--num_machines", "3"]
    estimate = dry_run(command, words, capsys)
    assert (estimate["machine"], estimate["machines"]) == ("n4-standard-80", 3)
    assert estimate["not_counted"] == []
    assert estimate["money"]["on_demand"] == pytest.approx(estimate["machine_hours"] * 3.628)
    assert 0 < estimate["money"]["spot"] < estimate["money"]["on_demand"] < estimate["money"]["dataflow"] * 10


def test_amounts_are_those_of_the_corpus(world: World, own: Path, capsys) -> None:
    """350 documents in 14 items, every record in the sample: what is counted is exact."""
    flags = ["--machine", "n4-standard-80"]
    words = [word.replace(str(own / "half"), str(own / "empty")) for word in commands(world, own)["build-index"]]
    shutil.copytree(own / "index", own / "empty")
    for path in (own / "empty" / "encodings").glob("*.parquet"):
        path.unlink()
    estimate = dry_run("build-index", [*words, *flags], capsys)
    assert estimate["items"] == len(list((own / "index" / "encodings").glob("*.parquet")))
    assert estimate["examples"] == pytest.approx(350, rel=0.15)  # from 7 of 14 items, by bytes
    assert estimate["written_bytes"] == pytest.approx(
        estimate["examples"] * Index.open(str(own / "index")).spec.bytes_per_encoding
    )
    assert estimate["padded_tokens"] >= estimate["tokens"]
    items = corpus.plan(corpus.expand([world.pattern]), 2000)
    assert estimate["read_bytes"] == sum(item.num_bytes for item in items)
    half = dry_run("build-index", [*commands(world, own)["build-index"], *flags], capsys)
    assert (half["items"], half["items_done"]) == (9, 5)
    score = dry_run("score", [*commands(world, own)["score"], *flags], capsys)
    assert (score["examples"], score["queries"], score["items"]) == (350, 70, 1)
    assert score["shuffle_bytes"] == 1 * 70 * 2 * 10 * 44
    patch = dry_run("tail-patch", [*commands(world, own)["tail-patch"], *flags, "--linear_sample", "0"], capsys)
    ids = {i for result in read_results(str(own / "results.jsonl")) for i in result.proponents.ids}
    assert (patch["pairs"], patch["steps"]) == (len(read_queries(str(own / "queries.jsonl"))) * 3, len(ids))


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("machine", [[], ["--machine", "n4-standard-80"]])
def test_whitened_projections_are_counted(world: World, own: Path, capsys, machine: list[str]) -> None:
    words = [*commands(world, own)["fit"], *machine, "--recipe", "paper", "--moments", "none"]
    plain = dry_run("fit", words, capsys)
    estimate = dry_run("fit", [*words, "--projection", "whitened"], capsys)
    assert estimate["not_counted"] == []
    assert [stage["name"] for stage in estimate["stages"]] == [
        "start-up",
        "covariances",
        "whitening",
        "sums of R",
        "roots of R",
    ]
    assert not {"covariances", "whitening"} & {stage["name"] for stage in plain["stages"]}
    covariances, roots = estimate["stages"][1:3]
    # Query, key and value share their inputs, as do gate and up; without weights that cannot be known.
    sums = 3 * 4 * ((9 if machine else 6) * 32**2 + 2 * 16**2 + 3 * 56**2)
    amounts = {part["name"]: part["amount"] for part in covariances["parts"]}
    assert amounts["sums as files"] == 2 * sums * (2 * 4 - 1)
    assert roots["items"] == (42 if machine else 33)
    default = dry_run("fit", [*world.flags(own / "new"), "--sample_size", "120", *machine], capsys)
    assert default["not_counted"] == []
    assert [stage["name"] for stage in default["stages"]] == ["start-up", "covariances", "whitening"]  # no V, no R
    assert default["stages"][2]["items"] == 2 * 6  # both sides of what writes into the residual stream


@pytest.mark.parametrize("machine", [[], ["--machine", "n4-standard-80"]])
def test_the_default_recipe_is_counted(world: World, own: Path, tmp_path: Path, capsys, machine: list[str]) -> None:
    """Six blocks of 6×6 signs of the output matrices: 27 bytes; the model runs whole, and nothing is done for V or R."""
    index = tmp_path / "index"
    words = [word.replace(str(own / "new"), str(index)) for word in commands(world, own)["fit"]] + [
        "--recipe",
        "default",
    ]
    fit = dry_run("fit", [*words, *machine], capsys)
    assert fit["not_counted"] == []
    assert [stage["name"] for stage in fit["stages"]] == ["start-up", "covariances", "whitening"]
    covariances, roots = fit["stages"][1:]
    amounts = {part["name"]: part["amount"] for part in covariances["parts"]}
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 56 * 32
    assert amounts["gradients"] == pytest.approx(4 * (3 * layer + 300 * 32) * fit["padded_tokens"])
    squares = 3 * (3 * 32**2 + 56**2)
    assert amounts["sums of covariances"] == pytest.approx(2 * squares * fit["padded_tokens"])
    assert amounts["sums as files"] == 2 * 4 * squares * (2 * 4 - 1)
    assert roots["items"] == 12

    assert cli.main(["fit", *words]) == 0
    build_words = [word.replace(str(own / "half"), str(index)) for word in commands(world, own)["build-index"]]
    build = dry_run("build-index", [*build_words, *machine], capsys)
    assert build["not_counted"] == []
    assert build["written_bytes"] == pytest.approx(27 * build["examples"])
    [encoding] = [stage for stage in build["stages"] if stage["name"] == "encoding"]
    projections = 2 * 3 * ((32 + 32 + 32 + 56) * 6 + 2 * 36)
    assert encoding["flops"] == pytest.approx((4 * (3 * layer + 300 * 32) + projections) * build["padded_tokens"])

    assert cli.main(["build-index", *build_words]) == 0
    score_words = [word.replace(str(own / "index"), str(index)) for word in commands(world, own)["score"]]
    score = dry_run("score", [*score_words, *machine], capsys)
    assert score["not_counted"] == []
    assert [stage["name"] for stage in score["stages"]] == ["start-up", "encoding queries", "scan", "merge"]
    assert score["stages"][2]["flops"] == 2 * 350 * 70 * 216


def test_a_calibration_is_kept_for_another_day(world: World, own: Path, tmp_path: Path, capsys) -> None:
    words = commands(world, own)["build-index"]
    kept = tmp_path / "calibration.json"
    first = dry_run("build-index", [*words, "--save_calibration", str(kept)], capsys)
    rates = read_rates(str(kept))
    assert rates.encode_flops is not None and rates.write_bytes is not None
    again = dry_run("build-index", [*words, "--calibration", str(kept)], capsys)
    assert again["stages"] == first["stages"]
    # Rates of the calibration, price of the machine.
    named = dry_run("build-index", [*words, "--calibration", str(kept), "--machine", "n4-standard-80"], capsys)
    encoding = next(stage for stage in named["stages"] if stage["name"] == "encoding")
    assert encoding["parts"][1]["rate"] == rates.encode_flops
    assert named["money"]["on_demand"] > 0


def test_verify_reads_the_whole_index(world: World, own: Path, capsys) -> None:
    estimate = dry_run("verify", [*commands(world, own)["verify"], "--check_bytes", "60000"], capsys)
    index = Index.open(str(own / "index"))
    files = index.snapshot().files
    settings = sum(path.stat().st_size for path in (own / "index" / "preconditioner").iterdir())
    assert settings > 0
    assert estimate["read_bytes"] == sum(file.num_bytes for file in files) + 2 * settings
    assert estimate["files"] == len(files) > estimate["items"] > 1
    assert estimate["written_bytes"] == 0


def test_every_pipeline_has_a_dry_run() -> None:
    for name in driver.commands():
        assert any(action.dest == "dry_run" for action in cli.parser(name)._actions), name


def test_standing_queries(world: World, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    index = tmp_path / "index"
    shutil.copytree(own / "index", index)
    words = ["--index", str(index), "--name", "facts"]
    queries = ["--queries", str(own / "queries.jsonl"), *model_flags(world), "--top_k", "3"]
    assert cli.main(["standing", "add", *words, *queries]) == 0
    before = state(index)
    monkeypatch.setattr(runner, "run_pipeline", None)
    capsys.readouterr()
    estimate = dry_run("standing", ["update", *words, "--rescan"], capsys)
    assert (estimate["command"], estimate["examples"], estimate["queries"]) == ("standing update", 350, 70)
    assert estimate["not_counted"] == []
    assert [stage["name"] for stage in estimate["stages"]] == ["start-up", "scan", "merge"]
    idle = dry_run("standing", ["update", *words], capsys)  # up to date: nothing is to be scored
    assert idle["examples"] == 0
    assert [stage["name"] for stage in idle["stages"]] == ["start-up"]
    assert state(index) == before


def test_text_for_people(world: World, own: Path, tmp_path: Path, capfd) -> None:
    prices = tmp_path / "prices.toml"
    shutil.copy(Path(cli.__file__).parents[1] / "trackstar" / "cost" / "prices.toml", prices)
    words = [*commands(world, own)["score"], "--dry_run", "--machine", "a3-highgpu-8g", "--prices", str(prices)]
    assert cli.main(["score", *words]) == 0
    shown = capfd.readouterr().err
    for text in (
        "queries          70, top 10 of both ends",
        "on 1 × a3-highgpu-8g",
        "on demand",
        "check yours",
        "scan  ",
    ):
        assert text in shown
    assert cli.main(["build-index", *commands(world, own)["build-index"], "--dry_run", "--calibrate", "false"]) == 0
    shown = capfd.readouterr().err
    assert "not counted      encoding: reading and tokenizing" in shown
    assert "no price for this machine" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry_run", "--machine", "n4-standard"], "did you mean n4-standard-80?"),
        (["--dry_run", "--prices", "/nowhere.toml"], "/nowhere.toml"),
        (["--dry_run", "--calibration", "/nowhere.json"], "/nowhere.json"),
        (["--dry_run", "--save_calibration", "x", "--calibrate", "false"], "give --calibrate true, too"),
        (["--machine", "n4-standard-80"], "--machine belongs to --dry_run: give both, or neither"),
        (["--json"], "--json belongs to --dry_run"),
        (["--dry_run", "--num_machines", "0"], "'0' is not a whole number above zero"),
    ],
)
def test_flags_that_make_no_sense(world: World, own: Path, capfd, flags: list[str], message: str) -> None:
    before = state(own)
    assert cli.main(["build-index", *commands(world, own)["build-index"], *flags]) == cli.EXIT_USAGE
    assert message in capfd.readouterr().err
    assert state(own) == before
