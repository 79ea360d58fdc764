"""fit --projection whitened, and all that follows: the same projections from any number of workers, passes and stores."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelines import cli
from tests.end_to_end.world import World, rows
from trackstar import corpus, fitting, second_moments, storage, whitening
from trackstar.covariances import plan_parts, shared_inputs
from trackstar.encoder import EncoderSource
from trackstar.index import Index
from trackstar.results import read_results
from trackstar.sample_sums import sum_covariances

pytest_plugins = ["tests.gcs"]

FLAGS = ("--projection", "whitened", "--layout", "weights", "--normalisation", "block")
"""With all weights, R and bfloat16, as the world fits."""


@pytest.fixture(scope="module")
def whitened(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built index with whitened projections; read only."""
    index = tmp_path_factory.mktemp("whitened") / "index"
    assert world.fit(index, *FLAGS) == 0
    assert world.build(index) == 0
    return index


@pytest.mark.parametrize(
    ("kind", "attributed"), [("none", "all"), ("factored", "all"), ("exact", "all"), ("none", "outputs")]
)
def test_projections_are_those_of_the_sample(world: World, tmp_path: Path, kind: str, attributed: str) -> None:
    """With a sample that takes every document, against one pass over all of them in this process."""
    index = tmp_path / "index"
    chosen = ("--moments", kind, "--attributed", attributed)
    assert world.fit(index, *FLAGS, *chosen, "--sample_size", "100000") == 0
    spec = Index.open(str(index)).spec
    assert (spec.projection, spec.whitening_damping, spec.moments) == ("whitened", 0.01, kind)
    assert spec.num_blocks == (21 if attributed == "all" else 6)
    found = whitening.read_for(str(index / "projections.safetensors"), spec)
    uri = str(index / "second_moments.safetensors") if kind != "none" else None
    plain = fitting.stage_spec(spec, moments=kind != "none", projections=False)
    encoder = EncoderSource(plain.to_json(), str(world.model), uri, None, "cpu").load()
    items = corpus.plan(corpus.expand([world.pattern]), 2000)
    records = [record for item in items for record in corpus.read(item) if isinstance(record, corpus.Record)]
    examples = [example for record in records for example in encoder.tokenization.documents(record)[0]]
    assert len(examples) == 350
    weights = encoder.loaded.weights
    exact = [weight.name for weight in weights] if kind == "exact" else []
    parts = plan_parts(weights, shared_inputs(encoder.loaded), exact)
    moments = second_moments.read(uri) if uri else None
    sums = sum_covariances(encoder, lambda: examples, parts)
    expected = whitening.whitened(parts, sums, spec, moments).named()
    assert found.named().keys() == expected.keys()
    for name, tensor in found.named().items():
        assert (tensor - expected[name]).norm() <= 1e-4 * expected[name].norm()
    # The encoder of the index uses them, and R_train is that of gradients projected so.
    source = EncoderSource(
        spec.to_json(),
        str(world.model),
        uri,
        str(index / "preconditioner"),
        "cpu",
        projections_uri=f"{index}/projections.safetensors",
    )
    gradients = source.load().project(examples[:64]).gradients
    assert not torch.allclose(gradients, encoder.project(examples[:64]).gradients, rtol=0.1)
    assert torch.isfinite(gradients).all()


def test_workers_and_passes_do_not_change_a_bit(
    world: World, whitened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    spec = (whitened / "spec.json").read_bytes()
    assert not (whitened / "fit").exists()
    assert world.fit(tmp_path / "workers", *FLAGS, "--direct_num_workers=2") == 0
    assert (tmp_path / "workers" / "spec.json").read_bytes() == spec
    monkeypatch.setattr(fitting, "_PASS_BYTES", 40_000)  # of 192,768
    capfd.readouterr()
    assert world.fit(tmp_path / "passes", *FLAGS) == 0
    assert "whitening: pass 2 of 6 over 120 documents" in capfd.readouterr().err
    assert (tmp_path / "passes" / "spec.json").read_bytes() == spec
    # A run that broke off before its end is taken up.
    (tmp_path / "passes" / "spec.json").unlink()
    assert world.fit(tmp_path / "passes", *FLAGS) == 0
    assert (tmp_path / "passes" / "spec.json").read_bytes() == spec


def test_a_pass_that_broke_off_is_taken_up(
    world: World, whitened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first passes made stays, and is not made again."""
    monkeypatch.setattr(fitting, "_PASS_BYTES", 40_000)
    made: list[str] = []
    fold = whitening.fold_file

    def failing(part, *arguments):
        if len(made) == 9:
            raise OSError("the machine is gone")
        made.append(part.key)
        fold(part, *arguments)

    monkeypatch.setattr(whitening, "fold_file", failing)
    index = tmp_path / "index"
    assert world.fit(index, *FLAGS) == cli.EXIT_FAILED
    assert not (index / "spec.json").exists()
    first = list(made)
    monkeypatch.setattr(
        whitening, "fold_file", lambda part, *arguments: (made.append(part.key), fold(part, *arguments))
    )
    assert world.fit(index, *FLAGS) == 0
    assert len(made) == len(set(made)) == 33  # three layers of seven output sides and four inputs
    assert set(first) < set(made)
    assert (index / "spec.json").read_bytes() == (whitened / "spec.json").read_bytes()


def test_the_number_of_parts_of_the_sample_matters_to_rounding_alone(
    world: World, whitened: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    assert world.fit(index, *FLAGS, "--sample_tasks", "1") == 0
    found = whitening.read(str(index / "projections.safetensors")).named()
    for name, expected in whitening.read(str(whitened / "projections.safetensors")).named().items():
        assert (found[name] - expected).norm() <= 1e-4 * expected.norm()


def test_planted_duplicates_are_found(world: World, whitened: Path, tmp_path: Path) -> None:
    """The text of a document as a query, but for its first word, which is the prompt."""
    texts = [json.loads(line)["text"] for line in (world.corpus / "a.jsonl").read_text().splitlines()]
    chosen = [text for text in texts if 60 <= len(text) <= 90][:5]
    assert len(chosen) == 5
    lines = [dict(zip(("inputs_plaintext", "targets_plaintext"), text.split(" ", 1), strict=True)) for text in chosen]
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({**line, "targets_plaintext": " " + line["targets_plaintext"]}) + "\n" for line in lines)
    )
    words = ["--index", str(whitened), "--model", str(world.model), "--queries", str(tmp_path / "q.jsonl")]
    for hessian in ("none", "auto"):
        output = tmp_path / f"{hessian}.jsonl"
        assert cli.main(["score", *words, "--output", str(output), "--top_k", "3", "--task_hessian", hessian]) == 0
        for text, result in zip(chosen, read_results(str(output)), strict=True):
            assert result.proponents.texts[0] == text


def test_a_second_fit_and_another_one(world: World, whitened: Path, capfd) -> None:
    assert world.fit(whitened, *FLAGS) == 0
    assert "fitted already with these settings" in capfd.readouterr().err
    assert world.fit(whitened, *FLAGS, "--projection", "gaussian") == cli.EXIT_USAGE
    error = capfd.readouterr().err
    assert "an index with other settings is there already" in error
    assert "projection: 'whitened' here, 'gaussian' there" in error
    assert world.fit(whitened, *FLAGS, "--whitening_damping", "0.2") == cli.EXIT_USAGE
    assert "whitening_damping: 0.01 here, 0.2 there" in capfd.readouterr().err
    assert world.fit(whitened, *FLAGS, "--attributed", "outputs") == cli.EXIT_USAGE
    assert "attributed: 'all' here, 'outputs' there" in capfd.readouterr().err


def test_damaged_projections_are_noticed(world: World, whitened: Path, tmp_path: Path, capfd) -> None:
    index = tmp_path / "index"
    shutil.copytree(whitened, index)
    assert cli.main(["verify", "--index", str(index)]) == 0
    capfd.readouterr()
    path = index / "projections.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)
    assert cli.main(["verify", "--index", str(index)]) == cli.EXIT_FAILED
    assert capfd.readouterr().out.startswith("projections.safetensors:")
    for file in (index / "encodings").glob("*.parquet"):
        file.unlink()
    assert world.build(index) != 0
    assert "these projections are not the index's; run fit again" in capfd.readouterr().err


def test_an_index_in_an_object_store(world: World, whitened: Path, gcs: str) -> None:
    index = f"{gcs}/index"
    assert world.fit(index, *FLAGS) == 0  # type: ignore[arg-type]
    assert world.build(index) == 0  # type: ignore[arg-type]
    assert storage.read_bytes(f"{index}/spec.json") == (whitened / "spec.json").read_bytes()
    assert storage.list(f"{index}/fit") == []
    assert Index.open(index).snapshot().num_rows == len(rows(whitened)) == 350
