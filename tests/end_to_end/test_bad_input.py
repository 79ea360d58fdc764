"""Bad input: a clear message each, and nothing else is lost."""

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines import build_index, cli
from tests.end_to_end.world import World, make_corpus, rows
from tests.tiny_models import tiny_tokenizer
from trackstar import corpus
from trackstar.index import Index

GOOD = 350


@pytest.fixture
def own(world: World, tmp_path: Path) -> World:
    """The model, and a corpus that the test may spoil."""
    (tmp_path / "model").symlink_to(world.model)
    make_corpus(tmp_path / "corpus")
    return World(tmp_path)


def shards_of(index: Path) -> set[str]:
    return {Path(shard).name for shard, _ in rows(index)}


BAD_LINES = [
    (b'{"text": "half a line', "malformed JSON"),
    (b'{"title": "no text"}', "neither text nor input_ids"),
    (b'{"text": ""}', "text is empty"),
    (b'{"text": "  \\n "}', "text is empty"),
    (b'{"text": 7}', "text is a number"),
    (b'["a list"]', "a list, not a JSON object"),
    (b'{"text": "\xff\xfe broken"}', "not valid UTF-8"),
    (b'{"text": "a"}', "no token to predict"),
    (b'{"input_ids": [5, 9999, 7]}', "token 9999 lies outside the model's vocabulary of 300"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_record_is_rejected_with_its_reason(own: World, index: Path, capfd, line: bytes, reason: str) -> None:
    (own.corpus / "f.jsonl").write_bytes(b'{"text": "Rome is a city"}\n' + line + b'\n{"text": "Paris is a city"}\n')
    assert own.build(index) == 0
    assert len(rows(index)) == GOOD + 2
    [reject] = list(Index.open(str(index)).rejects())
    assert reason in reject.reason
    assert (Path(reject.shard).name, reject.position) == ("f.jsonl", 27)
    shown = capfd.readouterr().err
    assert "1 of 353 records (0.28%) could not be encoded" in shown
    assert reason in shown


def test_too_many_bad_records_fail_the_run_and_lose_nothing(own: World, index: Path, capfd) -> None:
    (own.corpus / "f.jsonl").write_bytes(b"".join(line + b"\n" for line, _ in BAD_LINES))
    assert own.build(index) == cli.EXIT_FAILED
    message = capfd.readouterr().err
    assert "9 of 359 records (2.51%)" in message
    assert "The limit is 1.00%" in message
    assert Index.open(str(index)).versions() == []
    assert own.build(index, "--max_reject_fraction", "0.05") == 0
    assert len(rows(index)) == GOOD


def test_long_documents_are_cut_or_split_aloud(own: World, tmp_path: Path, capfd) -> None:
    text = "The capital of Italy is Rome. " * 60
    (own.corpus / "f.jsonl").write_text(json.dumps({"id": "long", "text": text}) + "\n")
    cut, split = tmp_path / "cut", tmp_path / "split"
    assert own.fit(cut) == own.build(cut) == 0
    assert "1 documents were cut to 128 tokens" in capfd.readouterr().err
    assert own.fit(split, "--long_documents", "split") == own.build(split) == 0
    assert "documents were cut" not in capfd.readouterr().err
    tokens = len(tiny_tokenizer()(text)["input_ids"])
    assert len(rows(cut)) == GOOD + 1
    assert len(rows(split)) == GOOD + -(-(tokens - 1) // 127)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_truncated_gzip_fails_its_item_alone(own: World, index: Path, capfd) -> None:
    truncate(own.corpus / "b.jsonl.gz")
    assert own.build(index) == cli.EXIT_FAILED
    message = capfd.readouterr().err
    assert "1 work item(s) failed, nothing was committed" in message
    assert "b.jsonl.gz" in message and "truncated" in message
    # The others are kept: with the shard mended only its item is encoded.
    kept = Index.open(str(index)).existing_keys()
    lines = [json.dumps({"text": "Rome is a green city"}) for _ in range(3)]
    (own.corpus / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert own.build(index) == 0
    assert len(Index.open(str(index)).existing_keys() - kept) == 1
    assert len(rows(index)) == GOOD - 60 + 3


def test_a_truncated_parquet_is_named(own: World, index: Path, capfd) -> None:
    truncate(own.corpus / "e.parquet")
    assert own.build(index) != 0
    message = capfd.readouterr().err
    assert "e.parquet" in message and "Parquet" in message
    assert "Traceback" not in message


def test_shards_that_vanish_or_change_after_planning(own: World, index: Path) -> None:
    opened = Index.open(str(index))
    items = corpus.plan(corpus.expand([own.pattern]), 2000)
    (own.corpus / "c.jsonl.zst").unlink()
    with (own.corpus / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "one more"}\n')
    args = cli_args(own, index)
    encoded = build_index.encode_items(opened, items, build_index.encoder_source(args, opened), [])
    failed = {Path(line.split(": ")[0]).name for line in encoded.failures}
    assert failed == {"c.jsonl.zst", "a.jsonl"}
    assert {Path(file.shard).name for file in encoded.files} == {"b.jsonl.gz", "d.txt", "e.parquet"}
    vanished = next(line for line in encoded.failures if "c.jsonl.zst" in line)
    assert "no such" in vanished.lower(), vanished
    assert any("changed" in line for line in encoded.failures)


def cli_args(world: World, index: Path):
    from pipelines import options

    parser = options.Parser()
    build_index.add_arguments(parser)
    return options.parse(parser, world.flags(index))[0]


def test_a_non_finite_gradient_is_a_reject(own: World, tmp_path: Path, capfd) -> None:
    model = AutoModelForCausalLM.from_pretrained(own.model)
    [token] = tiny_tokenizer()(" zebra")["input_ids"][:1]
    poisoned = tiny_tokenizer()("\u00e9")["input_ids"][0]  # a byte that no other text holds
    assert poisoned != token
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("inf")
    (own.root / "model").unlink()
    model.save_pretrained(own.model)
    tiny_tokenizer().save_pretrained(own.model)
    (own.corpus / "f.jsonl").write_text(json.dumps({"text": "Rome \u00e9 is a city"}) + "\n")
    index = tmp_path / "index"
    assert own.fit(index) == 0
    assert own.build(index) == 0
    assert len(rows(index)) == GOOD
    assert "non-finite gradient" in capfd.readouterr().err


def test_a_model_of_another_vocabulary(own: World, index: Path, capfd) -> None:
    model = AutoModelForCausalLM.from_pretrained(own.model)
    model.resize_token_embeddings(310)
    (own.root / "model").unlink()
    model.save_pretrained(own.model)
    tiny_tokenizer().save_pretrained(own.model)
    assert own.build(index) != 0
    message = capfd.readouterr().err
    assert "vocabulary_size: the index has 300, --model gives 310" in message
    assert not Index.open(str(index)).existing_keys()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["build-index", "--corpus", "X/*.nothing"], "no file matches"),
        (
            ["build-index", "--corpus", "X/*.*", "--item_bites", "9"],
            "unknown flag --item_bites; did you mean --item_bytes?",
        ),
        (["build-index", "--corpus", "X/*.*", "--item_bytes", "-3"], "'-3' is not a whole number above zero"),
        (["build-index", "--corpus", "X/*.*", "--index", "nowhere"], "no index here"),
        (["build-index", "--corpus", "X/*.*", "--model", "nowhere"], "nowhere: cannot load a causal language model"),
        (["build-index"], "the following arguments are required: --corpus"),
    ],
)
def test_bad_command_lines(own: World, index: Path, capfd, command: list[str], message: str) -> None:
    words = [word.replace("X", str(own.corpus)) for word in command]
    for flag, value in (("--index", str(index)), ("--model", str(own.model))):
        words += [] if flag in words else [flag, value]
    assert cli.main(words) in (cli.EXIT_USAGE, cli.EXIT_FAILED)
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_folder_that_cannot_be_written(own: World, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("in the way")
    assert own.fit(tmp_path / "file" / "index") != 0
    message = capfd.readouterr().err
    assert "file/index" in message
    assert "Traceback" not in message


def test_a_disk_that_fills_up(own: World, index: Path) -> None:
    """Files may not grow past 2 kB, as on a disk with no more room: the run ends with the reason and no torn file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, "-m", "pipelines", "build-index", *own.flags(index)]
    done = subprocess.run(
        command,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == cli.EXIT_FAILED
    assert "cannot be written" in done.stderr
    assert "exceeds what is allowed here" in done.stderr
    assert not list((index / "encodings").iterdir())
    assert own.build(index) == 0
    assert len(rows(index)) == GOOD


def test_a_torn_index_file_is_named(own: World, index: Path, capfd) -> None:
    assert own.build(index) == 0
    victim = sorted((index / "encodings").glob("*.parquet"))[0]
    whole = victim.read_bytes()
    truncate(victim)
    assert own.build(index) != 0
    message = capfd.readouterr().err
    assert victim.name in message and "trackstar verify --repair" in message
    victim.unlink()
    assert own.build(index) == 0
    assert victim.read_bytes() == whole
    assert pq.read_metadata(victim).num_rows > 0
