"""fit: what it writes equals the definitions, from any number of workers; the corpus may lie in an object store."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from pipelines import cli
from tests.end_to_end.world import World, rows
from tests.tiny_models import tiny_tokenizer
from trackstar import corpus, second_moments, storage
from trackstar.encoder import EncoderSource
from trackstar.fitting import choose_sample, sample_records
from trackstar.index import Index
from trackstar.models import load_model
from trackstar.preconditioner import Preconditioner

pytest_plugins = ["tests.gcs"]


def documents(world: World) -> list[corpus.Record]:
    """All records of the corpus."""
    items = corpus.plan(corpus.expand([world.pattern]), 2000)
    return [record for item in items for record in corpus.read(item) if isinstance(record, corpus.Record)]


def test_r_train_is_the_mean_over_the_sample(world: World, tmp_path: Path) -> None:
    """With a sample that takes every document: R against the definition, computed from gradients encoded one by one."""
    index = tmp_path / "index"
    assert world.fit(index, "--sample_size", "100000") == 0
    spec = Index.open(str(index)).spec
    encoder = EncoderSource(spec.to_json(), str(world.model), None, None, "cpu").load()
    examples = [encoder.tokenization.documents(record)[0][0] for record in documents(world)]
    gradients = torch.cat([encoder.project([example]).gradients for example in examples]).double()
    expected = torch.einsum("nbi,nbj->bij", gradients, gradients) / len(examples)
    found = Preconditioner.load(str(index / "preconditioner"))
    assert found.count == 350
    for block, matrix in enumerate(found.matrices()):
        assert (matrix - expected[block]).norm() <= 1e-5 * expected[block].norm()


def test_workers_and_resuming_do_not_change_the_result(world: World, fitted: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert world.fit(index, "--direct_num_workers=2") == 0
    assert (index / "spec.json").read_bytes() == (fitted / "spec.json").read_bytes()
    for file in sorted((fitted / "preconditioner").iterdir()):
        assert (index / "preconditioner" / file.name).read_bytes() == file.read_bytes()
    assert not (index / "fit").exists()  # partial sums are gone
    # A run that broke off before the spec was written is taken up.
    (index / "spec.json").unlink()
    assert world.fit(index) == 0
    assert (index / "spec.json").read_bytes() == (fitted / "spec.json").read_bytes()


def test_estimated_moments_are_the_mean_square(world: World, tmp_path: Path) -> None:
    index, factored = tmp_path / "index", tmp_path / "factored"
    assert world.fit(index, "--sample_size", "100000", "--moments", "exact") == 0
    assert world.fit(factored, "--sample_size", "100000", "--moments", "factored") == 0
    spec = Index.open(str(index)).spec
    assert (spec.moments, spec.moments_source) == ("exact", "estimated")
    assert Index.open(str(factored)).spec.moments == "factored"
    found = second_moments.read(str(index / "second_moments.safetensors"))
    name = "model.layers.1.mlp.up_proj.weight"
    model = AutoModelForCausalLM.from_pretrained(world.model)
    total = torch.zeros_like(model.get_parameter(name), dtype=torch.float64)
    texts = [record.text for record in documents(world)]
    for text in texts:
        tokens = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
        model.zero_grad()
        (model(input_ids=tokens, labels=tokens).loss * (tokens.shape[1] - 1)).backward()
        total += model.get_parameter(name).grad.double().square()
    expected = total / len(texts)
    assert (found.by_weight[name].values.double() - expected).norm() <= 1e-5 * expected.norm()
    rows_of = second_moments.read(str(factored / "second_moments.safetensors")).by_weight[name].rows
    torch.testing.assert_close(rows_of.double(), expected.mean(dim=1), rtol=1e-4, atol=0.0)


def test_the_optimizer_state_of_a_training_run(world: World, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    texts = [record.text for record in documents(world)][:32]
    data = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text)["input_ids"][:16] for text in texts)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=1,
        save_steps=4,
        weight_decay=0.1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(AutoModelForCausalLM.from_pretrained(world.model), arguments, train_dataset=data).train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    tokenizer.save_pretrained(checkpoint)
    own = World(tmp_path)
    (tmp_path / "model").symlink_to(checkpoint)
    (tmp_path / "corpus").symlink_to(world.corpus)
    index = tmp_path / "index"
    assert own.fit(index, "--moments", "auto", "--optimizer_state", str(checkpoint)) == 0
    spec = Index.open(str(index)).spec
    assert (spec.moments, spec.moments_source, spec.moments_epsilon) == ("exact", "adamw", 1e-8)
    loaded = load_model(str(checkpoint))
    expected = second_moments.load(str(checkpoint / "optimizer.pt"), loaded.model, loaded.weights)
    assert spec.moments_fingerprint == expected.fingerprint
    assert own.build(index) == 0
    assert len(rows(index)) == 350


def test_contradicting_flags(world: World, tmp_path: Path, capfd) -> None:
    words = ["--moments", "none", "--optimizer_state", str(world.model)]
    assert world.fit(tmp_path / "index", *words) == cli.EXIT_USAGE
    assert "--moments none contradicts --optimizer_state" in capfd.readouterr().err
    assert world.fit(tmp_path / "index", "--max_length", "4096") == cli.EXIT_USAGE
    assert "--max_length 4096 is above the model's context of 128" in capfd.readouterr().err


def test_the_sample_is_fixed_and_spread_over_the_corpus(world: World) -> None:
    items = corpus.plan(corpus.expand([world.pattern]), 2000)
    tasks = choose_sample(items, 100, 3, seed=0)
    assert tasks == choose_sample(list(reversed(items)), 100, 3, seed=0)
    assert len(tasks) == 3
    assert {item for task in tasks for item in task.items} == set(items)
    assert 100 <= sum(quota for task in tasks for quota in task.quotas) <= 100 + len(items)
    item = max(items, key=lambda item: item.num_bytes)
    everything = [record for record in corpus.read(item) if isinstance(record, corpus.Record)]
    few = sample_records(item, 5, seed=0)
    assert len(few) == 5 and all(record in everything for record in few)
    assert [record.position for record in few] == sorted(record.position for record in few)
    assert few != sample_records(item, 5, seed=1)
    assert set(few) <= set(sample_records(item, 12, seed=0))
    assert sample_records(item, 10_000, seed=0) == everything


def test_a_corpus_in_an_object_store(world: World, fitted: Path, tmp_path: Path, gcs: str) -> None:
    for shard in world.corpus.iterdir():
        storage.write_bytes(f"{gcs}/corpus/{shard.name}", shard.read_bytes())
    index = tmp_path / "index"
    flags = [
        "--corpus",
        f"{gcs}/corpus/*.*",
        "--model",
        str(world.model),
        "--index",
        str(index),
        "--item_bytes",
        "2000",
    ]
    small = ["--block_rows", "6", "--block_columns", "6", "--sample_size", "120", "--moments", "none"]
    assert cli.main(["fit", *flags, *small]) == 0
    assert cli.main(["build-index", *flags]) == 0
    found = rows(index)
    assert len(found) == len(set(found)) == 350
    assert all(shard.startswith(f"{gcs}/corpus/") for shard, _ in found)
    assert json.loads((index / "spec.json").read_text())["stores_text"] is True
