"""Everything on gs://: corpus, model, optimizer state, index, queries, results and what evaluates them, by worker processes.

The same commands on local files give the same bytes, but for the names of files.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import google.auth
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from google.auth.credentials import AnonymousCredentials
from transformers import AutoModelForCausalLM

from pipelines import build_index, cli, options
from tests.end_to_end.world import World
from tests.faulty_store import ANSWERS, Plan, faulty_store
from trackstar import corpus, storage
from trackstar.index import Index
from trackstar.preconditioner import Preconditioner

pytest_plugins = ["tests.gcs"]

QUERIES = [
    {"inputs_plaintext": "The capital of France is", "targets_plaintext": " Paris", "fact_id": "france"},
    {"inputs_plaintext": "Rome is a city in", "targets_plaintext": "Italy", "fact_id": "rome", "example_id": "rome"},
    {"inputs_plaintext": "seven green", "targets_plaintext": "old river", "fact_id": "river"},
]
FACTS = [{"fact_id": fact["fact_id"], "gold_ids": [f"1-{n}", f"5-{n}"]} for n, fact in enumerate(QUERIES)]
GOOD = 350
WORKERS = "--direct_num_workers=2"


@dataclasses.dataclass(frozen=True)
class Place:
    """A root that holds `model`, `corpus`, `queries.jsonl`, `facts.jsonl` and `index`: a local folder or a bucket."""

    root: str

    def of(self, name: str) -> str:
        return f"{self.root}/{name}"

    def flags(self, shards: str = "*.*") -> list[str]:
        paths = ["--corpus", self.of(f"corpus/{shards}"), "--model", self.of("model"), "--index", self.of("index")]
        return [*paths, "--item_bytes", "2000"]

    def run(self, command: str, *words: str) -> int:
        return cli.main([command, *words])

    def score(self, output: str, *more: str) -> int:
        words = ["--index", self.of("index"), "--model", self.of("model"), "--queries", self.of("queries.jsonl")]
        return self.run("score", *words, "--output", self.of(output), "--top_k", "17", "--scan_threads", "1", *more)

    def text(self, name: str) -> str:
        """A file's text without the names of this place."""
        return storage.read_bytes(self.of(name)).decode().replace(self.root, "ROOT")


@dataclasses.dataclass(frozen=True)
class Twins:
    """The same world in a bucket and in a local folder: fitted in the bucket, built there in two steps, and here in one."""

    remote: Place
    local: Place
    cache: Path


def upload(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.copy(str(path), f"{uri}/{path.relative_to(folder)}")


def train(model: Path) -> None:
    """Leaves the optimizer state of three steps beside the model."""
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-3)
    for _ in range(3):
        tokens = torch.randint(2, 300, (4, 32))
        optimizer.zero_grad()
        loaded(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    loaded.save_pretrained(model)
    torch.save(optimizer.state_dict(), model / "optimizer.pt")


@pytest.fixture(scope="module")
def store(gcs_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A bucket and a cache for all tests of this file."""
    from tests import gcs

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
        patch.setenv("TRACKSTAR_CACHE", str(cache))
        patch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), "test"))
        gcs.client(gcs_server).create_bucket("everywhere")
        yield "gs://everywhere", cache


@pytest.fixture(scope="module")
def twins(world: World, store: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Twins:
    bucket, cache = store
    root = tmp_path_factory.mktemp("twins")
    shutil.copytree(world.model, root / "model")
    train(root / "model")
    shutil.copytree(world.corpus, root / "corpus")
    (root / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    (root / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    upload(root, bucket)
    local, remote = Place(str(root)), Place(bucket)
    small = ["--recipe", "paper", "--block_rows", "6", "--block_columns", "6", "--sample_size", "4000"]
    assert remote.run("fit", *remote.flags(), *small, "--optimizer_state", remote.of("model"), WORKERS) == 0
    for info in storage.list(remote.of("index")):  # a sample is drawn by the shards' names: the twins share one
        storage.copy(info.uri, info.uri.replace(bucket, str(root)))
    assert remote.run("build-index", *remote.flags("[a-d].*"), WORKERS) == 0
    assert remote.run("reindex", *remote.flags(), WORKERS) == 0
    assert local.run("build-index", *local.flags()) == 0
    return Twins(remote, local, cache)


@pytest.fixture(scope="module")
def scored(twins: Twins) -> Twins:
    """The twins with `results.jsonl`."""
    assert twins.remote.score("results.jsonl", WORKERS, "--scan_bytes", "30000") == 0
    assert twins.local.score("results.jsonl") == 0
    return twins


def test_an_index_in_a_bucket_holds_the_same(twins: Twins) -> None:
    tables = []
    for place in (twins.remote, twins.local):
        index = Index.open(place.of("index"))
        rows = []
        for file in index.snapshot().files:
            with storage.open_input(file.uri) as source:
                rows += pq.read_table(source).to_pylist()
        for row in rows:
            row["shard"] = row["shard"].replace(place.root, "ROOT")
            row["example_id"] = row["example_id"].replace(place.root, "ROOT")
        tables.append(sorted(rows, key=lambda row: (row["shard"], row["position"])))
    assert len(tables[0]) == GOOD
    assert tables[0] == tables[1]


def test_a_night_without_changes_reads_nothing(twins: Twins, capfd: pytest.CaptureFixture[str]) -> None:
    before = Index.open(twins.remote.of("index")).snapshot()
    assert before.version == 1
    assert twins.remote.run("reindex", *twins.remote.flags(), "--model", "gs://everywhere/no-such-model") == 0
    assert Index.open(twins.remote.of("index")).snapshot() == before
    assert not storage.list(twins.remote.of("index/failures"))


def test_results_are_the_same_bytes(scored: Twins) -> None:
    assert scored.remote.text("results.jsonl") == scored.local.text("results.jsonl")
    assert len(scored.local.text("results.jsonl").splitlines()) == len(QUERIES)
    left = [info.uri for info in storage.list(scored.remote.of("index/queries"))]
    assert left == []


def test_the_model_was_fetched_once(scored: Twins) -> None:
    """By the launcher and by workers of three pipelines: one copy of the checkpoint, one of the optimizer state."""
    copies = [path for path in scored.cache.iterdir() if path.is_dir()]
    files = sorted(path.name for copy in copies for path in copy.iterdir())
    assert files.count("model.safetensors") == files.count("optimizer.pt") == 1
    assert len(copies) == 2


def test_fit_in_a_bucket_agrees_with_fit_on_a_disk(twins: Twins, tmp_path: Path) -> None:
    """The sample is the whole corpus in both, but summed in another order."""
    words = [
        "--corpus",
        twins.local.of("corpus/*.*"),
        "--model",
        twins.local.of("model"),
        "--index",
        str(tmp_path / "index"),
    ]
    small = ["--recipe", "paper", "--item_bytes", "2000", "--block_rows", "6", "--block_columns", "6"]
    small += ["--sample_size", "4000"]
    assert cli.main(["fit", *words, *small, "--optimizer_state", twins.local.of("model/optimizer.pt")]) == 0
    here, there = Index.open(str(tmp_path / "index")), Index.open(twins.remote.of("index"))
    differing = {line.split()[0] for line in there.spec.differences(here.spec)}
    assert differing <= {"preconditioner", "preconditioner:"}
    ours, theirs = (Preconditioner.load(f"{index.uri}/preconditioner") for index in (here, there))
    for one, other in zip(ours.matrices(), theirs.matrices(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


def test_a_task_preconditioner_in_a_bucket(scored: Twins) -> None:
    assert scored.remote.score("kept.jsonl", "--keep_task_hessian", scored.remote.of("r_eval")) == 0
    assert scored.remote.score("again.jsonl", "--task_hessian", scored.remote.of("r_eval")) == 0
    for name in ("kept.jsonl", "again.jsonl"):
        rows = [json.loads(line) for line in scored.remote.text(name).splitlines()]
        expected = [json.loads(line) for line in scored.remote.text("results.jsonl").splitlines()]
        for row, other in zip(rows, expected, strict=True):
            assert row["proponent_ids"] == other["proponent_ids"]
            assert np.allclose(row["proponent_scores"], other["proponent_scores"], atol=1e-6)


def test_baseline_tail_patch_and_evaluation(scored: Twins, capfd: pytest.CaptureFixture[str]) -> None:
    for place in (scored.remote, scored.local):
        queries = ["--queries", place.of("queries.jsonl")]
        words = ["--method", "bm25", "--corpus", place.of("corpus/*.*"), *queries, "--top_k", "5"]
        assert place.run("baseline", *words, "--output", place.of("bm25.jsonl")) == 0
        words = ["--results", place.of("results.jsonl"), "--model", place.of("model"), "--top_k", "2"]
        rate = ["--learning_rate", "1e-4", "--linear_sample", "0"]
        assert place.run("tail-patch", *words, *rate, "--output", place.of("patch.jsonl")) == 0
        words = ["--results", place.of("results.jsonl"), place.of("bm25.jsonl"), "--facts", place.of("facts.jsonl")]
        words += ["--tail_patch", place.of("patch.jsonl"), "none", "--index", place.of("index"), "--resamples", "50"]
        outputs = [word for end in ("markdown", "json", "plot") for word in (f"--{end}", place.of(f"report.{end[:2]}"))]
        outputs[-1] = place.of("report.svg")
        assert place.run("evaluate", *words, *outputs) == 0
        assert place.run("inspect", place.of("index")) == 0
        assert f"{GOOD:,}" in capfd.readouterr().out
    for name in ("bm25.jsonl", "patch.jsonl", "report.ma", "report.js", "report.svg"):
        assert scored.remote.text(name) == scored.local.text(name), name
    assert storage.list(scored.remote.of("patch.jsonl.work")) == []


def test_tune_keeps_in_a_bucket_what_it_finds(twins: Twins) -> None:
    """Samples are drawn by the shards' names, so that the twins' differ."""
    place, texts = twins.remote, []
    words = ["--corpus", place.of("corpus/*.*"), "--model", place.of("model"), "--queries", place.of("queries.jsonl")]
    words += ["--optimizer_state", place.of("model"), "--output", place.of("tuned"), "--budget", "64", "--sizes", "64"]
    for _ in range(2):
        assert place.run("tune", *words, "--sample_size", "30", "--fit_size", "30", "--threads", "1") == 0
        texts.append(place.text("tuned/tune.json"))
    assert texts[0] == texts[1]  # speeds, too: nothing was measured again
    names = {info.uri.removeprefix(place.of("tuned/")).split("/")[0] for info in storage.list(place.of("tuned"))}
    assert names == {"tune.json", "tune.md", "tune.png", "work"}


def test_a_take_down_and_the_check_of_all_files(
    scored: Twins, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On an index of its own; ids come from a file in the bucket."""
    place = Place(f"{scored.remote.root}/second")
    for name in ("index", "model", "queries.jsonl"):
        storage_copy(scored.remote, place, name)
    first = json.loads(scored.remote.text("results.jsonl").splitlines()[0])["proponent_ids"]
    ids = [name.replace("ROOT", scored.remote.root) for name in first if "d.txt" not in name][:2]
    storage.write_bytes(place.of("ids.txt"), "".join(f"{name}\n" for name in ids).encode())
    assert place.run("verify", "--index", place.of("index")) == 0
    assert place.run("remove", "--index", place.of("index"), "--ids", place.of("ids.txt")) == 0
    assert place.run("remove", "--index", place.of("index"), "--shard", scored.remote.of("corpus/d.*")) == 0
    assert place.score("results.jsonl") == 0
    masked = storage.read_bytes(place.of("results.jsonl"))
    shown = {name for line in masked.splitlines() for name in json.loads(line)["proponent_ids"]}
    assert len(shown) > 17
    assert not set(ids) & shown
    assert not any(name.startswith(scored.remote.of("corpus/d.txt")) for name in shown)
    capfd.readouterr()
    assert place.run("remove", "--index", place.of("index"), "--list") == 0
    assert "2 ids, 0 shards, 2 examples at version 1" in (log := capfd.readouterr().out)
    assert "0 ids, 1 shards" in log
    # The next night its bytes go, and results stay as they are.
    night = ["--index", place.of("index"), "--corpus", scored.remote.of("corpus/*.*"), "--drift_sample", "0"]
    assert place.run("reindex", *night, "--model", scored.remote.of("model"), "--vacuum_days", "30") == 0
    index = Index.open(place.of("index"))
    held = []
    for info in storage.list(place.of("index/encodings")):
        if info.uri.endswith(".parquet") and "_delta_log" not in info.uri:
            with storage.open_input(info.uri) as source:
                held += pq.read_table(source, columns=["example_id"])["example_id"].to_pylist()
    assert len(held) == index.snapshot().num_rows == GOOD - 2 - 50
    assert not set(ids) & set(held)
    assert place.score("results.jsonl") == 0
    assert storage.read_bytes(place.of("results.jsonl")) == masked
    assert place.run("verify", "--index", place.of("index")) == 0
    victim = Index.open(place.of("index")).snapshot().files[0].uri
    storage.write_bytes(victim, storage.read_bytes(victim)[:-100])
    capfd.readouterr()
    assert place.run("verify", "--index", place.of("index")) == cli.EXIT_FAILED
    assert Path(victim).name in "".join(capfd.readouterr())


def storage_copy(source: Place, target: Place, name: str) -> None:
    """Copies a file or a folder of the bucket."""
    for info in [*storage.list(source.of(name)), *storage.glob(source.of(name))]:
        storage.copy(info.uri, info.uri.replace(source.root, target.root, 1))


def encode(place: Place, index: str, items: list[corpus.WorkItem]) -> build_index.Encoded:
    """Encodes planned items as `build-index` does."""
    parser = options.Parser()
    build_index.add_arguments(parser)
    args, beam = options.parse(parser, [*place.flags(), "--index", index])
    opened = Index.open(index)
    return build_index.encode_items(opened, items, build_index.encoder_source(args, opened), beam)


@pytest.mark.parametrize("where", ["remote", "local"])
def test_a_shard_that_changes_is_read_in_one_version_or_not_at_all(
    twins: Twins, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between plan and reading; the next run takes the new version, and the snapshot holds nothing of the old one."""
    place = Place(f"{getattr(twins, where).root}/changing-{where}")
    for info in storage.list(f"{getattr(twins, where).root}/corpus"):
        storage.copy(info.uri, place.of(f"corpus/{info.uri.rsplit('/', 1)[-1]}"))
    for info in storage.list(twins.remote.of("index")):
        if "/encodings/" not in info.uri:
            storage.copy(info.uri, info.uri.replace(twins.remote.root, place.root))
    shutil.copytree(twins.local.of("model"), place.of("model")) if where == "local" else None
    for info in storage.list(twins.remote.of("model")):
        storage.copy(info.uri, info.uri.replace(twins.remote.root, place.root))
    items = corpus.plan(corpus.expand([place.of("corpus/*.*")]), 2000)
    old = [{"id": f"old-{n}", "text": f"The old river {n} is in Italy."} for n in range(60)]
    new = [{"id": f"new-{n}", "text": f"The green city {n} is in France."} for n in range(50)]
    shard = place.of("corpus/a.jsonl")
    storage.write_bytes(shard, "".join(json.dumps(row) + "\n" for row in old).encode())
    encoded = encode(place, place.of("index"), items)
    assert encoded.failures and all(
        "a.jsonl" in line and "changed since the work was planned" in line for line in encoded.failures
    )
    # The version of the next run is the one that is there then.
    assert place.run("build-index", *place.flags()) == 0
    storage.write_bytes(shard, "".join(json.dumps(row) + "\n" for row in new).encode())
    assert place.run("build-index", *place.flags()) == 0
    index = Index.open(place.of("index"))
    ids = []
    for file in index.snapshot().files:
        if file.shard == storage.normalise(shard):
            with storage.open_input(file.uri) as source:
                ids += pq.read_table(source, columns=["example_id"])["example_id"].to_pylist()
    assert sorted(ids) == sorted(row["id"] for row in new)
    assert index.snapshot().num_rows == GOOD - 120 + 50
    assert not storage.list(place.of("index/failures"))


def test_a_build_through_a_store_that_fails_now_and_then(
    twins: Twins, gcs_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same bytes, though every third request fails."""
    folder = twins.remote.of("faulty")
    for info in storage.list(twins.remote.of("index")):
        if "/encodings/" not in info.uri:
            storage.copy(info.uri, info.uri.replace(twins.remote.of("index"), folder))
    with faulty_store(gcs_server) as faulty, monkeypatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", faulty.address)
        patch.setenv("TRACKSTAR_STORE_PATIENCE", "10")
        patch.setenv("TRACKSTAR_CACHE", str(tmp_path))
        faulty.plan = Plan((*ANSWERS, "reset", "torn", "lost", "cut", "short"), rate=0.35, seed=3)
        flags = [word if word != twins.remote.of("index") else folder for word in twins.remote.flags()]
        assert twins.remote.run("build-index", *flags) == 0
        assert len(faulty.faults()) > 50
    expected = {file.key: file for file in Index.open(twins.remote.of("index")).snapshot().files}
    found = Index.open(folder).snapshot().files
    assert {file.key for file in found} == set(expected)
    for file in found:
        assert storage.read_bytes(file.uri) == storage.read_bytes(expected[file.key].uri)


def test_a_store_that_goes_away_ends_the_run_with_its_name(
    twins: Twins, gcs_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with faulty_store(gcs_server) as faulty, monkeypatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", faulty.address)
        patch.setenv("TRACKSTAR_STORE_PATIENCE", "0.5")
        faulty.plan = Plan((503,), in_a_row=None, only="POST .*upload")
        assert twins.remote.score("never.jsonl") != 0
    shown = capfd.readouterr().err
    assert "gs://everywhere/" in shown and "attempts in 0.5 s failed" in shown and "TRACKSTAR_STORE_PATIENCE" in shown
    assert "Traceback" not in shown
    assert not storage.exists(twins.remote.of("never.jsonl"))
