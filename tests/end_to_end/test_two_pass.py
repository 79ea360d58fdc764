"""score in two passes: a cheap index proposes, a better one or the model has the last word, and what was lost is measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli, runner
from tests.end_to_end.test_score import QUERIES, project, stored
from tests.end_to_end.world import World
from trackstar import storage
from trackstar.encoder import precondition_and_normalise
from trackstar.index import Index
from trackstar.preconditioner import Preconditioner
from trackstar.results import Result, read_results

pytest_plugins = ["tests.gcs"]

K = 17
ALL = 24
"""Times K: more than there are examples."""


class Scene:
    """A corpus with ties, a cheap index of sign bits and a better one, both with R, cut otherwise; and queries."""

    def __init__(self, root: Path, world: World | None = None):
        self.root = root
        self.world = world or World(root)
        self.cheap, self.better = root / "cheap", root / "better"

    def flags(self, index: Path, item_bytes: int) -> list[str]:
        words = ["--corpus", self.world.pattern, "--model", str(self.world.model), "--index", str(index)]
        return [*words, "--item_bytes", str(item_bytes)]

    def fit(self, index: Path, item_bytes: int, *more: str) -> None:
        small = ["--sample_size", "120", "--moments", "none"]
        assert cli.main(["fit", *self.flags(index, item_bytes), *small, *more]) == 0

    def build(self, index: Path, item_bytes: int) -> None:
        assert cli.main(["build-index", *self.flags(index, item_bytes)]) == 0

    def score(self, output: Path, *more: str, index: Path | None = None) -> int:
        words = ["--index", str(index or self.cheap), "--model", str(self.world.model), "--top_k", str(K)]
        words += ["--queries", str(self.root / "queries.jsonl"), "--scan_threads", "1", "--output", str(output)]
        return cli.main(["score", *words, *more])

    def both(self, output: Path, *more: str) -> int:
        return self.score(output, "--better_index", str(self.better), *more)

    def copy(self, root: Path) -> "Scene":
        """The same with indexes of its own; corpus and model stay where they are."""
        for name in ("cheap", "better"):
            shutil.copytree(self.root / name, root / name)
        shutil.copy(self.root / "queries.jsonl", root)
        return Scene(root, self.world)


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Read only."""
    root = tmp_path_factory.mktemp("two")
    (root / "model").symlink_to(world.model)
    (root / "corpus").mkdir()
    for name in ("a.jsonl", "d.txt", "e.parquet"):
        shutil.copy2(world.corpus / name, root / "corpus")
    lines = (root / "corpus" / "a.jsonl").read_text().splitlines()  # every text of a.jsonl a second time: ties
    copies = [{**json.loads(line), "id": "9" + json.loads(line)["id"]} for line in lines]
    (root / "corpus" / "z.jsonl").write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    (root / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    made = Scene(root)
    made.fit(made.cheap, 2000, "--block_rows", "4", "--block_columns", "4", "--preconditioner", "train")
    made.build(made.cheap, 2000)
    made.fit(made.better, 3500, "--recipe", "paper", "--block_rows", "7", "--block_columns", "7")
    made.build(made.better, 3500)
    return made


def results(path: Path) -> list[Result]:
    return list(read_results(str(path)))


def report(path: Path) -> dict:
    return json.loads(path.with_suffix(".two_pass.json").read_text())


def exact_scores(scene: Scene) -> tuple[list[str], np.ndarray]:
    """Ids and float64 scores of every row of the better index under R_train, [rows, queries]."""
    ids, _, vectors, _ = stored(scene.better)
    train = Preconditioner.load(str(scene.better / "preconditioner"))
    queries, _ = precondition_and_normalise(project(scene.world, scene.better)[1], train.inverse_root, "vector")
    return ids, vectors @ queries.double().numpy().T


@pytest.mark.parametrize(
    "flags",
    [
        ["--task_hessian", "none"],
        ["--scan_bytes", "3000"],
        ["--task_hessian", "identity", "--opponents", "false", "--scan_bytes", "1"],
    ],
)
def test_fetching_all_equals_the_better_index_alone(scene: Scene, tmp_path: Path, flags: list[str]) -> None:
    """Ids, order, scores, texts: byte for byte, ties included."""
    assert scene.score(tmp_path / "alone.jsonl", *flags, index=scene.better) == 0
    assert scene.both(tmp_path / "both.jsonl", "--over_fetch", str(ALL), *flags) == 0
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert len(set(results(tmp_path / "both.jsonl")[0].proponents.scores)) < K  # there were ties to break
    found = report(tmp_path / "both.jsonl")
    assert found["proposed"] == found["examples"] * len(QUERIES) * (1 if "--opponents" in flags else 2)
    assert (found["missing"], found["recall"], found["better_version"]) == ([], None, 0)
    for index in (scene.cheap, scene.better):
        assert not (index / "queries").exists() or not list((index / "queries").iterdir())


def test_without_unit_norm(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The scores of the better index, with its norms; the default recipe of the cheap one has none and says so."""
    assert scene.both(tmp_path / "r.jsonl", "--unit_norm", "false") == cli.EXIT_USAGE
    assert "--unit_norm false needs the sizes of all blocks" in capfd.readouterr().err
    other = Scene(tmp_path)
    (tmp_path / "model").symlink_to(scene.world.model)
    (tmp_path / "corpus").symlink_to(scene.world.corpus)
    shutil.copy(scene.root / "queries.jsonl", tmp_path)
    small = ("--recipe", "paper", "--block_rows", "4", "--block_columns", "4", "--storage", "int8")
    other.fit(other.cheap, 2000, *small)
    other.build(other.cheap, 2000)
    shutil.copytree(scene.better, other.better)
    # The corpus is the same by another name: shards are known by their URIs.
    assert other.both(tmp_path / "r.jsonl") == cli.EXIT_USAGE
    assert "are of different corpora: no shard is in both" in capfd.readouterr().err
    shutil.rmtree(other.better)
    other.fit(other.better, 2000, "--recipe", "paper", "--block_rows", "7", "--block_columns", "7")
    other.build(other.better, 2000)
    flags = ["--unit_norm", "false", "--task_hessian", "none"]
    assert other.score(tmp_path / "alone.jsonl", *flags, index=other.better) == 0
    assert other.both(tmp_path / "both.jsonl", "--over_fetch", str(ALL), *flags) == 0
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.parametrize("times", [1, 3])
def test_what_the_cheap_scan_proposes_is_ranked_by_the_better_scores(scene: Scene, tmp_path: Path, times: int) -> None:
    flags = ["--task_hessian", "none"]
    assert scene.both(tmp_path / "both.jsonl", "--over_fetch", str(times), *flags) == 0
    assert scene.score(tmp_path / "cheap.jsonl", "--top_k", str(K * times), *flags) == 0
    ids, scores = exact_scores(scene)
    row = {name: number for number, name in enumerate(ids)}
    moved = 0
    for query, (found, proposed) in enumerate(
        zip(results(tmp_path / "both.jsonl"), results(tmp_path / "cheap.jsonl"), strict=True)
    ):
        for mine, theirs, sign in (
            (found.proponents, proposed.proponents, -1.0),
            (found.opponents, proposed.opponents, 1.0),
        ):
            assert len(theirs.ids) == K * times
            order = sorted(theirs.ids, key=lambda name: (sign * round(scores[row[name], query], 11), name))[:K]
            assert list(mine.ids) == order
            expected = [scores[row[name], query] for name in order]
            np.testing.assert_allclose(mine.scores, expected, rtol=0, atol=1e-6)
            moved += list(theirs.ids)[:K] != order
    assert moved


def test_recall_is_that_of_brute_force(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--task_hessian", "none", "--over_fetch", "2"]
    assert scene.both(tmp_path / "both.jsonl", "--check_recall", "2", *flags) == 0
    shown = capfd.readouterr().err
    assert scene.both(tmp_path / "unchecked.jsonl", *flags) == 0
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "unchecked.jsonl").read_bytes()
    recall = report(tmp_path / "both.jsonl")["recall"]
    names = {"0": 0, "rome": 1, "2": 2}
    assert len(recall["queries"]) == 2
    assert recall["k"] == K
    ids, scores = exact_scores(scene)
    for end, sign in (("proponents", -1.0), ("opponents", 1.0)):
        shares = []
        for name in recall["queries"]:
            column = scores[:, names[name]]
            best = sorted(range(len(ids)), key=lambda row: (sign * round(column[row], 11), ids[row]))[:K]
            found = getattr(results(tmp_path / "both.jsonl")[names[name]], end).ids
            shares.append(len({ids[row] for row in best} & set(found)) / K)
        assert recall[end] == {"mean": pytest.approx(np.mean(shares)), "lowest": pytest.approx(min(shares))}
        assert f"{np.mean(shares):.4f} of the {end} (lowest of a query {min(shares):.2f})" in shown
        assert min(shares) < 1  # or this says nothing
    assert f"recall@{K} against a scan of {scene.better} alone, 2 queries: " in shown
    assert scene.both(tmp_path / "all.jsonl", "--check_recall", "9", "--over_fetch", str(ALL)) == 0
    recall = report(tmp_path / "all.jsonl")["recall"]
    assert len(recall["queries"]) == len(QUERIES)
    assert recall["proponents"] == recall["opponents"] == {"mean": 1.0, "lowest": 1.0}


def test_take_downs_of_either_index_hold(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = scene.copy(tmp_path)
    flags = ["--task_hessian", "none", "--over_fetch", str(ALL)]
    assert own.score(tmp_path / "before.jsonl", "--task_hessian", "none", index=own.better) == 0
    before = [name for one in results(tmp_path / "before.jsonl") for name in one.proponents.ids]
    gone = {own.cheap: before[0], own.better: before[1]}
    for index, name in gone.items():
        (tmp_path / "ids.txt").write_text(name + "\n")
        assert cli.main(["remove", "--index", str(index), "--ids", str(tmp_path / "ids.txt")]) == 0
    capfd.readouterr()
    assert own.both(tmp_path / "r.jsonl", *flags, "--check_recall", "3") == 0
    shown = capfd.readouterr().err
    for index in gone:
        assert f"1 ids or shards that were taken down of the other index were not taken down of {index}" in shown
    found = results(tmp_path / "r.jsonl")
    assert not set(gone.values()) & {name for one in found for name in (*one.proponents.ids, *one.opponents.ids)}
    assert report(tmp_path / "r.jsonl")["one_sided"] == {str(index): 1 for index in gone}
    assert report(tmp_path / "r.jsonl")["recall"]["proponents"]["mean"] == 1.0
    for index, name in gone.items():  # in both, as it should be
        (tmp_path / "ids.txt").write_text(name + "\n")
        other = own.better if index == own.cheap else own.cheap
        assert cli.main(["remove", "--index", str(other), "--ids", str(tmp_path / "ids.txt")]) == 0
    own.build(own.better, 3500)  # the bytes go, too
    capfd.readouterr()
    assert own.score(tmp_path / "alone.jsonl", "--task_hessian", "none", index=own.better) == 0
    assert own.both(tmp_path / "again.jsonl", *flags) == 0
    assert "taken down of the other" not in capfd.readouterr().err
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_document_that_the_better_index_lacks_is_named(
    scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = scene.copy(tmp_path)
    assert own.score(tmp_path / "before.jsonl", "--task_hessian", "none", index=own.better) == 0
    name = results(tmp_path / "before.jsonl")[0].proponents.ids[0]
    (tmp_path / "ids.txt").write_text(name + "\n")
    assert cli.main(["remove", "--index", str(own.better), "--ids", str(tmp_path / "ids.txt")]) == 0
    own.build(own.better, 3500)
    shutil.rmtree(own.better / "removed")  # and nobody knows why it is not there
    capfd.readouterr()
    assert own.both(tmp_path / "r.jsonl", "--task_hessian", "none", "--over_fetch", str(ALL)) == 0
    shown = capfd.readouterr().err
    assert "1 proposed examples could not be scored again and were left out" in shown
    assert f"{name} (" in shown
    [missing] = report(tmp_path / "r.jsonl")["missing"]
    assert missing["example_id"] == name
    assert "in no file of" in missing["reason"]
    assert name not in results(tmp_path / "r.jsonl")[0].proponents.ids
    assert own.score(tmp_path / "alone.jsonl", "--task_hessian", "none", index=own.better) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_snapshots_of_different_corpora(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = scene.copy(tmp_path)
    gone = scene.world.corpus / "d.txt"
    words = ["--model", str(own.world.model), "--index", str(own.better), "--item_bytes", "3500"]
    kept = [str(path) for path in sorted(scene.world.corpus.iterdir()) if path != gone]
    assert cli.main(["reindex", "--corpus", *kept, *words]) == 0
    capfd.readouterr()
    flags = ["--task_hessian", "none", "--over_fetch", str(ALL)]
    assert own.both(tmp_path / "r.jsonl", *flags) == cli.EXIT_USAGE
    shown = capfd.readouterr().err
    assert "are not of the same corpus: 1 shard(s) with 13.51% of the examples differ" in shown
    assert f"{gone}: only in {own.cheap} (50 examples)" in shown
    assert "trackstar reindex" in shown
    assert not (tmp_path / "r.jsonl").exists()
    assert own.both(tmp_path / "old.jsonl", *flags, "--better_version", "0") == 0
    assert own.both(tmp_path / "r.jsonl", *flags, "--max_missing_fraction", "0.2") == 0
    assert f"{gone}: only in {own.cheap} (50 examples)" in capfd.readouterr().err
    assert own.score(tmp_path / "alone.jsonl", "--task_hessian", "none", index=own.better) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert report(tmp_path / "r.jsonl")["differences"] == [
        {"shard": str(gone), "how": f"only in {own.cheap}", "rows": 50}
    ]


def test_texts_come_from_whichever_index_holds_them(scene: Scene, tmp_path: Path) -> None:
    own = scene.copy(tmp_path)
    shutil.rmtree(own.better)
    small = ("--recipe", "paper", "--block_rows", "7", "--block_columns", "7")
    own.fit(own.better, 900, *small, "--stores_text", "false")
    own.build(own.better, 900)
    assert own.both(tmp_path / "r.jsonl") == 0
    ids, texts, _, _ = stored(own.cheap)
    by_id = dict(zip(ids, texts, strict=True))
    for one in results(tmp_path / "r.jsonl"):
        assert list(one.proponents.texts) == [by_id[name] for name in one.proponents.ids]
        assert list(one.opponents.texts) == [by_id[name] for name in one.opponents.ids]


def test_encoded_again_under_a_better_spec(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What an index under that spec gives, to the rounding of stored numbers."""
    spec = tmp_path / "spec"
    shutil.copytree(scene.better, spec)
    for name in ("encodings", "manifests", "checksums"):
        shutil.rmtree(spec / name, ignore_errors=True)
    flags = ["--over_fetch", "3", "--task_hessian", "none"]
    words = ["--better_spec", str(spec), "--direct_num_workers=2"]
    assert scene.score(tmp_path / "spec.jsonl", *words, *flags) == 0
    shown = capfd.readouterr().err
    assert f"were encoded again under the spec of {spec} (bfloat16)" in shown
    assert scene.both(tmp_path / "both.jsonl", *flags) == 0
    for one, other in zip(results(tmp_path / "spec.jsonl"), results(tmp_path / "both.jsonl"), strict=True):
        for mine, theirs in ((one.proponents, other.proponents), (one.opponents, other.opponents)):
            np.testing.assert_allclose(mine.scores, theirs.scores, rtol=0, atol=2e-4)
            scores = dict(zip(theirs.ids, theirs.scores, strict=True))
            for name, score, text in zip(mine.ids, mine.scores, mine.texts, strict=True):
                assert scores.get(name, theirs.scores[-1]) == pytest.approx(score, abs=2e-4)
                assert text
    assert report(tmp_path / "spec.jsonl")["better_version"] is None
    assert report(tmp_path / "spec.jsonl")["missing"] == []


def test_passages_of_split_documents(world: World, tmp_path: Path) -> None:
    """Several rows a record, known by their ids; later ones are encoded again from the corpus."""
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "corpus").mkdir()
    shutil.copy2(world.corpus / "a.jsonl", tmp_path / "corpus")
    (tmp_path / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    own = Scene(tmp_path)
    split = ("--long_documents", "split", "--max_length", "12")
    own.fit(own.cheap, 2000, *split, "--block_rows", "4", "--block_columns", "4")
    own.build(own.cheap, 2000)
    better = ("--block_rows", "5", "--block_columns", "5", "--storage", "bfloat16", "--preconditioner", "train")
    own.fit(own.better, 3500, *split, *better)
    own.build(own.better, 3500)
    flags = ["--task_hessian", "none", "--over_fetch", "40"]
    assert own.score(tmp_path / "alone.jsonl", "--task_hessian", "none", index=own.better) == 0
    assert own.both(tmp_path / "both.jsonl", *flags) == 0
    found = report(tmp_path / "both.jsonl")
    assert 120 < found["examples"] < K * 40
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    mixing = ["--task_mixing", "0.3"]  # the cheap index has no R to mix with, the better one has
    assert own.score(tmp_path / "mixed_alone.jsonl", *mixing, index=own.better) == 0
    assert own.both(tmp_path / "mixed.jsonl", *mixing, "--over_fetch", "40") == 0
    assert (tmp_path / "mixed.jsonl").read_bytes() == (tmp_path / "mixed_alone.jsonl").read_bytes()
    assert own.score(tmp_path / "spec.jsonl", "--better_spec", str(own.better), *flags) == 0
    assert report(tmp_path / "spec.jsonl")["missing"] == []
    [again], [alone] = results(tmp_path / "spec.jsonl"), results(tmp_path / "alone.jsonl")
    np.testing.assert_allclose(again.proponents.scores, alone.proponents.scores, rtol=0, atol=2e-4)
    assert any(name.endswith(("#1", "#2", "#3")) for name in again.proponents.ids)


def test_texts_that_are_gone_cannot_be_encoded_again(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither index nor corpus holds them."""
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "corpus").mkdir()
    shutil.copy2(world.corpus / "a.jsonl", tmp_path / "corpus")
    (tmp_path / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    own = Scene(tmp_path)
    small = ("--block_rows", "4", "--block_columns", "4")
    own.fit(own.cheap, 2000, *small, "--stores_text", "false")
    own.build(own.cheap, 2000)
    own.fit(own.better, 2000, *small, "--storage", "bfloat16")
    words = ["--better_spec", str(own.better), "--over_fetch", "2"]
    assert own.score(tmp_path / "corpus.jsonl", *words) == 0
    assert len(results(tmp_path / "corpus.jsonl")[0].proponents.ids) == K
    (tmp_path / "corpus" / "a.jsonl").unlink()
    capfd.readouterr()
    assert own.score(tmp_path / "r.jsonl", *words) == cli.EXIT_FAILED
    assert "proposed examples can be scored again" in capfd.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()


def test_in_an_object_store(scene: Scene, gcs: str, tmp_path: Path) -> None:
    """Both indexes in a bucket: the same bytes."""
    for name in ("cheap", "better"):
        for path in sorted((scene.root / name).rglob("*")):
            if path.is_file():
                storage.copy(str(path), f"{gcs}/{name}/{path.relative_to(scene.root / name)}")
    flags = ["--over_fetch", "2", "--check_recall", "1"]
    assert scene.both(tmp_path / "local.jsonl", *flags) == 0
    words = ["score", "--index", f"{gcs}/cheap", "--better_index", f"{gcs}/better", "--model", str(scene.world.model)]
    words += ["--queries", str(scene.root / "queries.jsonl"), "--output", f"{gcs}/r.jsonl", "--top_k", str(K)]
    assert cli.main([*words, *flags, "--scan_threads", "1", "--direct_num_workers=2"]) == 0
    assert storage.read_bytes(f"{gcs}/r.jsonl") == (tmp_path / "local.jsonl").read_bytes()
    found = json.loads(storage.read_bytes(f"{gcs}/r.two_pass.json"))
    assert found["recall"] == report(tmp_path / "local.jsonl")["recall"]


@pytest.mark.parametrize("kind", ["index", "spec"])
@pytest.mark.parametrize("machine", [[], ["--machine", "n4-standard-80"]])
def test_dry_run(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, kind: str, machine: list[str]
) -> None:
    monkeypatch.setattr(runner, "run_pipeline", None)
    before = sorted(str(path) for folder in (scene.cheap, scene.better) for path in folder.rglob("*"))
    words = [f"--better_{kind}", str(scene.better), "--over_fetch", "2", "--dry_run", "--json", *machine]
    if kind == "index":
        words += ["--check_recall", "2"]
    assert scene.score(tmp_path / "r.jsonl", *words) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["not_counted"] == []
    names = ["start-up", "encoding queries", "roots of R", "scan", "merge"]
    names += ["encoding queries (better)", "roots of R (better)"]
    names += ["second pass", "merge", "scan (check)", "merge (check)"] if kind == "index" else []
    names += ["encoding again", "second pass", "merge"] if kind == "spec" else []
    assert [stage["name"] for stage in estimate["stages"]] == names
    assert estimate["pairs"] == len(QUERIES) * 2 * 2 * K
    stages = {stage["name"]: stage for stage in estimate["stages"]}
    if kind == "index":
        row = Index.open(str(scene.better)).spec.bytes_per_encoding
        assert stages["second pass"]["read_bytes"] == estimate["pairs"] * row  # 204 pairs, of 370 examples
        assert stages["scan (check)"]["read_bytes"] == Index.open(str(scene.better)).snapshot().num_bytes
    after = sorted(str(path) for folder in (scene.cheap, scene.better) for path in folder.rglob("*"))
    assert after == before
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--better_index", "CHEAP"], "the same index twice"),
        (["--better_index", "COPY"], "have the same spec"),
        (["--better_index", "BETTER", "--over_fetch", "0"], "'0' is not a whole number above zero"),
        (["--better_index", "BETTER", "--over_fetch", "1.5"], "'1.5' is not a whole number above zero"),
        (["--better_index", "BETTER", "--check_recall", "0"], "'0' is not a whole number above zero"),
        (["--better_index", "BETTER", "--better_spec", "BETTER"], "give one of them"),
        (["--over_fetch", "5"], "--over_fetch belongs to --better_index or --better_spec"),
        (["--check_recall", "5"], "--check_recall belongs to --better_index"),
        (["--better_spec", "BETTER", "--check_recall", "5"], "--check_recall belongs to --better_index"),
        (["--better_spec", "BETTER", "--better_version", "0"], "--better_version belongs to --better_index"),
        (["--better_index", "NOWHERE"], "no index here"),
        (["--better_index", "EMPTY"], "nothing was committed yet"),
        (["--better_index", "BETTER", "--better_version", "7"], "there is no version 7"),
        (["--better_index", "BETTER", "--task_hessian", "BETTER"], "belongs to one index, and here there are two"),
        (["--better_index", "BETTER", "--keep_task_hessian", "NOWHERE"], "here there are two: leave it out"),
        (["--better_index", "OTHER_MODEL"], "were made with different models"),
        (["--better_index", "OTHER_LENGTH"], "cut documents into different examples"),
    ],
)
def test_refusals(
    scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    places = {"CHEAP": scene.cheap, "BETTER": scene.better, "NOWHERE": tmp_path / "nowhere"}
    spec = json.loads((scene.better / "spec.json").read_text())
    changes: dict[str, dict] = {
        "COPY": json.loads((scene.cheap / "spec.json").read_text()),
        "EMPTY": spec,
        "OTHER_MODEL": {**spec, "model_fingerprint": "another"},
        "OTHER_LENGTH": {**spec, "max_length": spec["max_length"] + 1},
    }
    for name, fields in changes.items():
        if name in flags:
            fields.pop("hash")
            Index.create(str(tmp_path / name), Index.open(str(scene.better)).spec.__class__(**fields))
            places[name] = tmp_path / name
    words = [str(places.get(word, word)) for word in flags]
    assert scene.score(tmp_path / "r.jsonl", *words) == cli.EXIT_USAGE
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "r.jsonl").exists()


def test_indexes_the_wrong_way_round_are_noticed(
    scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert scene.score(tmp_path / "r.jsonl", "--better_index", str(scene.cheap), index=scene.better) == 0
    assert "are --index and --better_index the wrong way round?" in capfd.readouterr().err
