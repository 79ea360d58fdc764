"""Does a dry run predict what a run takes? `python -m benchmarks.cost_model`

At three corpus sizes: `build-index --dry_run` and `score --dry_run`, each calibrating itself as a user's would, against the real
commands, all as processes of their own. Mark: within 15 % at each size.

On a machine that others use, wall times say little. `--clock cpu` compares processor seconds instead: what the calibration
measured in them, with what the run used; it leaves out waiting, which on a quiet machine there is hardly any of.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.beam_share import WORDS, make_model
from benchmarks.common import machine, markdown_table, write_results

SHARD_DOCUMENTS = 1000
MARK = 0.15
_CPU = """
import dataclasses, sys, time
from pipelines import cli, costs
make_basis = costs.make_basis
costs.make_basis = lambda args, prices: dataclasses.replace(
    make_basis(args, prices), clock=time.process_time, start_seconds=costs.WITH_EXIT * time.process_time()
)
sys.exit(cli.main(sys.argv[1:]))
"""


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=int, default=3000, help="documents of the smallest corpus; a multiple of 1,000"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 10], help="how many times as large corpora are")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--block", type=int, default=32, help="d0 and d1; eight blocks of them")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of (dry run, run); medians count")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    parser.add_argument("--no_results", action="store_true", help="print only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trackstar-bench-", dir=args.folder) as name:
        results = measure(Path(name), args)
    table = describe(results)
    print(table)
    if not args.no_results:
        settings = {name: getattr(args, name) for name in ("documents", "sizes", "queries", "block", "rounds", "clock")}
        head = "# Dry run against run\n\n`python -m benchmarks.cost_model` on " + ", ".join(machine().values())
        load = f"{args.clock} seconds; load average {os.getloadavg()[0]:.1f} at the end"
        data = {"machine": machine(), "settings": settings, "results": results}
        write_results("cost_model", data, f"{head}; {load}.\n\n{table}")
    return 0


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result a size and command: medians of predicted and measured seconds."""
    make_model(folder / "model")
    largest = make_corpus(folder, max(args.sizes) * args.documents)
    queries = folder / "queries.jsonl"
    write_queries(queries, args.queries)
    fitted = folder / "fitted"
    flags = ["--model", str(folder / "model")]
    block = [
        "--recipe",
        "paper",
        "--block_rows",
        str(args.block),
        "--block_columns",
        str(args.block),
        "--moments",
        "none",
    ]
    run(["fit", "--corpus", largest, *flags, "--index", str(fitted), *block, "--sample_size", "500"], "wall")
    results = []
    for size in args.sizes:
        shards = sorted((folder / "corpus").iterdir())[: size * args.documents // SHARD_DOCUMENTS]
        index = folder / "index"
        build = ["build-index", "--corpus", *map(str, shards), *flags, "--index", str(index)]
        score = ["score", *flags, "--index", str(index), "--queries", str(queries), "--output", str(folder / "r.jsonl")]
        seconds: dict[str, list[tuple[float, float]]] = {"build-index": [], "score": []}
        for _ in range(args.rounds):
            shutil.rmtree(index, ignore_errors=True)
            shutil.copytree(fitted, index)
            for command in (build, score):
                seconds[command[0]].append((predict(command, args.clock), run(command, args.clock)[0]))
        for command, pairs in seconds.items():
            predicted, measured = (statistics.median(values) for values in zip(*pairs, strict=True))
            results.append(
                {
                    "documents": size * args.documents,
                    "command": command,
                    "predicted_seconds": predicted,
                    "measured_seconds": measured,
                    "ratio": predicted / measured,
                    "rounds": pairs,
                }
            )
            print(results[-1], flush=True)
    return results


def predict(command: Sequence[str], clock: str) -> float:
    """What a dry run says."""
    words = [*command, "--dry_run", "--json"]
    estimate = json.loads(run(words, clock, _CPU if clock == "cpu" else None)[1])
    # Processor seconds of all machines together are those of one machine, since this is one worker.
    return float(estimate["wall_seconds"])


def run(words: Sequence[str], clock: str, program: str | None = None) -> tuple[float, str]:
    """Runs a command in a process of its own; its seconds and standard output."""
    command = [sys.executable, *(["-c", program] if program else ["-m", "pipelines"]), *words]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr}")
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall if clock == "wall" else used, done.stdout


def make_corpus(folder: Path, documents: int) -> str:
    """Shards of 1,000 documents each; returns their glob."""
    (folder / "corpus").mkdir()
    generator = random.Random(0)
    for shard in range(documents // SHARD_DOCUMENTS):
        lines = []
        for _ in range(SHARD_DOCUMENTS):
            text = " ".join(generator.choices(WORDS, k=generator.randint(8, 40)))
            lines.append(json.dumps({"text": text}) + "\n")
        (folder / "corpus" / f"{shard:04d}.jsonl").write_text("".join(lines))
    return str(folder / "corpus" / "*.jsonl")


def write_queries(path: Path, count: int) -> None:
    """Queries of a few words."""
    generator = random.Random(1)
    with path.open("w") as file:
        for _ in range(count):
            *prompt, target = generator.choices(WORDS, k=6)
            file.write(json.dumps({"inputs_plaintext": " ".join(prompt), "targets_plaintext": target}) + "\n")


def describe(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table."""
    rows = [
        (
            f"{result['documents']:,}",
            result["command"],
            f"{result['predicted_seconds']:.1f} s",
            f"{result['measured_seconds']:.1f} s",
            f"{result['ratio']:.2f}",
            "within" if abs(result["ratio"] - 1) <= MARK else "outside",
        )
        for result in results
    ]
    return markdown_table(("documents", "command", "predicted", "measured", "ratio", "mark (15 %)"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
