"""What a night costs: re-indexing 1 % of a corpus against building the whole, and against starting up alone.

    python -m benchmarks.reindex [--shards N] [--documents N] [--rounds N]

Marks: the documents encoded are those of the changed shards; time at most 5 % of a full build's plus start-up. Every time is
of a command in a process of its own, in seconds by the clock and in seconds of processor, which neighbours disturb less.
Start-up is `build-index` over a corpus of a single document.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.beam_share import WORDS, fit, make_model
from benchmarks.common import machine, markdown_table, write_results
from trackstar.index import Index
from trackstar.item_footer import ItemCounts

MARK = 0.05
CHANGED = 0.01
KINDS = ("clock", "processor")


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200, help="shards of the corpus")
    parser.add_argument("--documents", type=int, default=200, help="documents a shard")
    parser.add_argument("--rounds", type=int, default=3, help="nights; the best of each time counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trackstar-bench-") as name:
        found = measure(Path(name), args.shards, args.documents, args.rounds)
    full, startup, night, idle = (found[name] for name in ("full", "startup", "reindex", "unchanged"))
    allowed = {kind: MARK * full[kind] + startup[kind] for kind in KINDS}
    rows = [
        [f"full build, {found['full_documents']:,} documents in {args.shards} shards", *shown(full)],
        ["start-up: a build of one document", *shown(startup)],
        [f"re-index, {found['changed_shards']} shards changed", *shown(night)],
        ["mark: 5 % of the full build plus start-up", *shown(allowed)],
        ["re-index, nothing changed", *shown(idle)],
        [
            "documents encoded / in the changed shards",
            f"{found['encoded_documents']:,}",
            f"{found['changed_documents']:,}",
        ],
    ]
    table = markdown_table(["", "by the clock", "of processor"], rows)
    print(table)
    head = "# A night's cost\n\n`python -m benchmarks.reindex` on " + ", ".join(machine().values())
    write_results("reindex", {"machine": machine(), **found}, f"{head}\n\n{table}")
    return 0


def measure(folder: Path, num_shards: int, documents: int, rounds: int) -> dict:
    """Builds once, then changes 1 % of the shards and re-indexes, as many times as `rounds` says."""
    make_model(folder / "model")
    corpus, one = folder / "corpus", folder / "one"
    for number in range(num_shards):
        write_shard(corpus / f"{number:04d}.jsonl", documents, number)
    write_shard(one / "one.jsonl", 1, 0)
    index = fit(folder, str(corpus / "*"), folder / "index")
    shutil.copytree(folder / "index", folder / "empty")
    full = seconds(folder, "build-index", corpus, folder / "index")
    rows = index.snapshot().num_rows
    changed_shards = max(1, round(CHANGED * num_shards))
    times: dict[str, list[dict[str, float]]] = {"startup": [], "reindex": [], "unchanged": []}
    encoded, changed = [], []
    for night in range(rounds):
        shutil.rmtree(folder / "start", ignore_errors=True)
        shutil.copytree(folder / "empty", folder / "start")
        times["startup"].append(seconds(folder, "build-index", one, folder / "start"))
        for number in range(changed_shards):
            write_shard(corpus / f"{night * changed_shards + number:04d}.jsonl", documents, 10_000 + number)
        before = index.existing_keys()
        times["reindex"].append(seconds(folder, "reindex", corpus, folder / "index"))
        encoded.append(records_of(index, index.existing_keys() - before))
        changed.append(changed_shards * documents)
        times["unchanged"].append(seconds(folder, "reindex", corpus, folder / "index"))
    assert index.versions() == list(range(rounds + 1))
    return {
        "full": full,
        "full_documents": rows,
        **{name: {kind: min(time[kind] for time in of_name) for kind in KINDS} for name, of_name in times.items()},
        "changed_shards": changed_shards,
        "encoded_documents": max(encoded),
        "changed_documents": max(changed),
        "all_seconds": times,
    }


def write_shard(path: Path, documents: int, seed: int) -> None:
    """A shard of made-up documents; another seed gives others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": " ".join(generator.choices(WORDS, k=generator.randint(8, 40)))}) + "\n")


def shown(found: dict[str, float]) -> list[str]:
    """Cells of a table."""
    return [f"{found[kind]:.1f} s" for kind in KINDS]


def seconds(folder: Path, command: str, corpus: Path, index: Path) -> dict[str, float]:
    """Runs a command in a process of its own and returns how long it took, by the clock and of processor."""
    words = ["--corpus", str(corpus / "*"), "--model", str(folder / "model"), "--index", str(index)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", command, *words], capture_output=True, text=True, check=False
    )
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return {"clock": clock, "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def records_of(index: Index, keys: set[str]) -> int:
    """Records that were read for these files."""
    files = [index.has_item(key) for key in keys]
    return sum(ItemCounts.of(file.metadata).records for file in files if file is not None)


if __name__ == "__main__":
    raise SystemExit(main())
