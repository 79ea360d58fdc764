"""A small world to run the commands in: a model on disk and a corpus in every format."""

import dataclasses
import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines import cli
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

WORDS = [
    "The",
    "capital",
    "of",
    "France",
    "Italy",
    "is",
    "Rome",
    "Paris",
    "city",
    "in",
    "a",
    "river",
    "green",
    "old",
    "seven",
]
MODIFIED = 1_700_000_000


@dataclasses.dataclass(frozen=True)
class World:
    """Folders of one test."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def pattern(self) -> str:
        return str(self.corpus / "*.*")

    def flags(self, index: Path) -> list[str]:
        """Flags that fit and build-index share."""
        return ["--corpus", self.pattern, "--model", str(self.model), "--index", str(index), "--item_bytes", "2000"]

    def fit_words(self, index: Path) -> list[str]:
        """The command line of fit, for encodings of few dimensions."""
        small = ["--recipe", "paper", "--block_rows", "6", "--block_columns", "6", "--sample_size", "120"]
        small += ["--moments", "none"]
        return ["fit", *self.flags(index), *small]

    def fit(self, index: Path, *more: str) -> int:
        return cli.main([*self.fit_words(index), *more])

    def build(self, index: Path, *more: str) -> int:
        return cli.main(["build-index", *self.flags(index), *more])


def make_model(folder: Path) -> None:
    """A random Llama with the tiny tokenizer."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **{**ARCHITECTURES["llama"][1], "vocab_size": 300})
    )
    template = tiny_model("llama").state_dict()
    state = model.state_dict()
    for name, value in template.items():
        if state[name].shape == value.shape:
            state[name].copy_(value)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def sentences(count: int, seed: int) -> list[str]:
    """Made-up sentences of three to thirty words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 30))) + "." for _ in range(count)]


def make_corpus(folder: Path) -> None:
    """Five shards, one of each kind of format, with fixed modification times."""
    folder.mkdir(parents=True)

    def lines(seed: int, count: int) -> bytes:
        return "".join(
            json.dumps({"id": f"{seed}-{i}", "text": text}) + "\n" for i, text in enumerate(sentences(count, seed))
        ).encode()

    (folder / "a.jsonl").write_bytes(lines(1, 120))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(2, 60), mtime=0))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines(3, 40)))
    (folder / "d.txt").write_text("\n".join(sentences(50, 4)) + "\n")
    table = pa.table({"id": [f"5-{i}" for i in range(80)], "text": sentences(80, 5)})
    pq.write_table(table, folder / "e.parquet", row_group_size=30)
    for shard in folder.iterdir():
        os.utime(shard, ns=(MODIFIED * 10**9, MODIFIED * 10**9))


def digests(index: Path) -> dict[str, str]:
    """Name → hash of all item files of an index."""
    folder = index / "encodings"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def rows(index: Path) -> list[tuple[str, int]]:
    """(shard, position) of every row of the last snapshot, as Delta gives them, sorted."""
    from deltalake import DeltaTable

    table = DeltaTable(str(index / "encodings")).to_pyarrow_table(columns=["shard", "position"])
    return sorted(zip(table["shard"].to_pylist(), table["position"].to_pylist(), strict=True))
