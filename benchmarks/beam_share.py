"""What Beam costs: build-index through the local runner against a plain loop, and memory as the corpus grows.

    python -m benchmarks.beam_share [--documents N] [--rounds N]

Marks: at most 1.15 times the plain loop's time; peak memory of a ten times larger corpus within 10 %.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import machine, markdown_table, write_results
from pipelines import build_index, cli
from trackstar import corpus
from trackstar.encoder import EncoderSource
from trackstar.index import Index
from trackstar.indexing import encode_item
from trackstar.small_models import train_tokenizer

ITEM_DOCUMENTS = 3000
FEW = 3  # work items of the smaller corpus: the first one or two fill the allocator's free lists
WORDS = "amber basil cedar delta ember flint grove heron iris jade kelp lotus maple north opal pearl river stone thyme".split()  # noqa: SIM905


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=6000, help="documents of the timed corpus")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of (loop, Beam); the best of each counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trackstar-bench-") as name:
        folder = Path(name)
        make_model(folder / "model")
        speed = measure_speed(folder, args.documents, args.rounds)
        memory = measure_memory(folder)
    rows = [
        ["plain loop", f"{speed['loop_seconds']:.1f} s", ""],
        ["local runner", f"{speed['beam_seconds']:.1f} s", f"ratio {speed['ratio']:.3f} (mark: at most 1.15)"],
        [f"peak memory, {FEW} items", f"{memory['small_mib']:.0f} MiB", ""],
        [
            f"peak memory, {10 * FEW} items",
            f"{memory['large_mib']:.0f} MiB",
            f"ratio {memory['ratio']:.3f} (mark: at most 1.10)",
        ],
    ]
    table = markdown_table(["", "measured", "against the mark"], rows)
    print(table)
    head = "# What Beam costs\n\n`python -m benchmarks.beam_share` on " + ", ".join(machine().values())
    write_results("beam_share", {"machine": machine(), "speed": speed, "memory": memory}, f"{head}\n\n{table}")
    return 0


def make_model(folder: Path) -> None:
    """A random Llama of width 128 with four layers, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 5, 512)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_corpus(folder: Path, documents: int) -> str:
    """Shards of `ITEM_DOCUMENTS` documents each; returns their glob."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = random.Random(0)
    for shard in range(documents // ITEM_DOCUMENTS):
        with (folder / f"{shard:03d}.jsonl").open("w") as file:
            for _ in range(ITEM_DOCUMENTS):
                text = " ".join(generator.choices(WORDS, k=generator.randint(8, 40)))
                file.write(json.dumps({"text": text}) + "\n")
    return str(folder / "*.jsonl")


def fit(folder: Path, pattern: str, index: Path) -> Index:
    """A fitted index with d = 8,192 and no moments."""
    shutil.rmtree(index, ignore_errors=True)
    words = ["--corpus", pattern, "--model", str(folder / "model"), "--index", str(index), "--moments", "none"]
    assert (
        cli.call(
            "fit", [*words, "--recipe", "paper", "--block_rows", "32", "--block_columns", "32", "--sample_size", "500"]
        )
        == 0
    )
    return Index.open(str(index))


def measure_speed(folder: Path, documents: int, rounds: int) -> dict[str, float]:
    """Seconds of the loop and of the pipeline, loading the encoder included in both, one thread each."""
    pattern = make_corpus(folder / "corpus", documents)
    index = fit(folder, pattern, folder / "index")
    items = corpus.plan(corpus.expand([pattern]), 16 << 20)
    source = EncoderSource(
        index.spec.to_json(), str(folder / "model"), None, str(folder / "index" / "preconditioner"), "cpu", 1
    )
    loop, beam = [], []
    for _ in range(rounds):
        clear(index)
        started = time.perf_counter()
        encoder = source.load()
        for item in items:
            encode_item(encoder, index, item)
        loop.append(time.perf_counter() - started)
        clear(index)
        started = time.perf_counter()
        build_index.encode_items(index, items, source, [])
        beam.append(time.perf_counter() - started)
    return {
        "documents": documents,
        "rounds": rounds,
        "loop_seconds": min(loop),
        "beam_seconds": min(beam),
        "ratio": min(beam) / min(loop),
    }


def clear(index: Index) -> None:
    """Takes the item files away."""
    for path in (Path(index.uri) / "encodings").glob("*.parquet"):
        path.unlink()


def measure_memory(folder: Path) -> dict[str, float]:
    """Peak resident memory of `trackstar build-index` over a few items and over ten times as many."""
    peaks = []
    for count in (FEW, 10 * FEW):
        pattern = make_corpus(folder / "grown", count * ITEM_DOCUMENTS)
        index = fit(folder, pattern, folder / "grown_index")
        command = [sys.executable, "-m", "pipelines", "build-index", "--corpus", pattern, "--index", index.uri]
        peaks.append(peak_mib([*command, "--model", str(folder / "model")]))
        shutil.rmtree(folder / "grown_index")
    return {"small_mib": peaks[0], "large_mib": peaks[1], "ratio": peaks[1] / peaks[0]}


def peak_mib(command: list[str]) -> float:
    """Runs a command in a process of its own, whose only child it is, and returns its peak resident memory."""
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    return int(done.stdout) / (1 if sys.platform == "darwin" else 1024) / (1024 if sys.platform == "darwin" else 1)


if __name__ == "__main__":
    raise SystemExit(main())
