"""What a trace costs, part by part, and what further queries in the same scan cost: `python -m benchmarks.trace`.

    python -m benchmarks.trace [--rows N] [--queries N …] [--threads N] [--rounds N]

A model of GPT-2 small's shape (124M parameters, random weights) and an index of random unit vectors in bfloat16 that are made for
it, on this machine's disk and in its page cache: what `trackstar serve` does between a request and its answer. Parts: encoding
the queries, one after the other; scanning, of which the float64 scores of what can win; reading the texts of the winners.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import RESULTS, machine, markdown_table, write_results
from tests.encoders import make_encoder
from tests.tiny_models import tiny_tokenizer
from trackstar.encodings import Encodings
from trackstar.index import Index
from trackstar.models import LoadedModel, prepare_model
from trackstar.queries import QuerySet
from trackstar.scoring import ScanSettings, timed_scan
from trackstar.trace import Trace, TraceProgress
from trackstar.tracing import TraceQuery, Tracer, open_index

TEXT = "The capital of France is Paris. " * 10
FILES = 8
STEP = 1024  # rows that are made at a time


@dataclasses.dataclass(frozen=True)
class Parts:
    """Seconds of one batch of traces."""

    encoding: float
    scanning: float
    reading: float

    @property
    def total(self) -> float:
        """From the request to the last answer."""
        return self.encoding + self.scanning + self.reading


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65_536, help="examples in the index, 32 KB each")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4, 16], help="queries that share a scan")
    parser.add_argument("--top_k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: one a core")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured; the median counts")
    parser.add_argument("--folder", help="where to put the index; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the written figures")
    args = parser.parse_args()
    torch.manual_seed(0)
    loaded = prepare_model(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2")), tiny_tokenizer())
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="trackstar-trace-") as folder:
        make_index(folder, loaded, args.rows)
        tracer = open_index(folder, loaded, "cpu", threads=args.threads)
        found = {count: measure(tracer, count, args.top_k, args.rounds) for count in args.queries}
        settling = {count: settling_share(tracer, count, args.top_k, args.rounds) for count in args.queries}
        num_bytes = tracer.num_bytes
    rows = [row_of(parts, count, settling[count], found) for count, parts in found.items()]
    head = ["queries in a scan", "encoding", "scan", "of it float64", "texts", "all", "one by one"]
    table = markdown_table(head, rows)
    about = (
        f"# A trace\n\n`python -m benchmarks.trace` on {', '.join(machine().values())}. Index: {args.rows:,} × "
        f"{tracer.spec.dimension:,} bfloat16, {num_bytes / 1e9:.2f} GB, {FILES} files, from page cache; a model of GPT-2 small's "
        f"shape; queries of {num_tokens(tracer)} tokens; top {args.top_k}. Seconds, medians of {args.rounds}."
    )
    print(table)
    data = {
        "machine": machine(),
        "rows": args.rows,
        "bytes": num_bytes,
        "seconds": {
            count: {**dataclasses.asdict(parts), "settling": settling[count]} for count, parts in found.items()
        },
    }
    write_results("trace", data, f"{about}\n\n{table}", args.results)
    return 0


def row_of(parts: Parts, count: int, settling: float, found: dict[int, Parts]) -> list[str]:
    """A line of the table."""
    alone = f"{count * found[1].total:.2f}" if 1 in found else "–"
    seconds = (parts.encoding, parts.scanning, settling, parts.reading, parts.total)
    return [str(count), *(f"{value:.3f}" for value in seconds), alone]


def make_index(folder: str, loaded: LoadedModel, num_rows: int) -> None:
    """An index of random unit vectors that the model could have made."""
    encoder = make_encoder(loaded, block_rows=32, block_columns=32, max_length=256, storage="bfloat16")
    index = Index.create(folder, encoder.spec)
    edges = [num_rows * file // FILES for file in range(FILES + 1)]

    def batches(first: int, end: int) -> Iterator[Encodings]:
        for start in range(first, end, STEP):
            numbers = np.arange(start, min(start + STEP, end))
            ones = np.ones(len(numbers), np.float32)
            generator = torch.Generator().manual_seed(start)
            vectors = torch.randn(len(numbers), encoder.spec.dimension, generator=generator)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            ids = [f"example {number}" for number in numbers]
            yield Encodings(ids, numbers, [TEXT] * len(ids), ones.astype(np.int32), ones, ones, vectors)

    items = [
        index.write_item(f"{file:032x}", f"shard {file}", batches(*edges[file : file + 2]), dict)
        for file in range(FILES)
    ]
    index.commit(items)


def queries_of(count: int, top_k: int) -> list[TraceQuery]:
    """Queries of about thirty tokens."""
    return [TraceQuery(f"{number} The capital of Italy is", " Rome", top_k) for number in range(count)]


def num_tokens(tracer: Tracer) -> int:
    """Of the first query."""
    [query] = queries_of(1, 1)
    return len(tracer.encoder.tokenization.query("", query.prompt, query.target).input_ids)


def measure(tracer: Tracer, count: int, top_k: int, rounds: int) -> Parts:
    """Medians over some batches; one before them is not counted."""
    found = [once(tracer, queries_of(count, top_k)) for _ in range(rounds + 1)][1:]
    return Parts(
        *(statistics.median(getattr(parts, name) for parts in found) for name in ("encoding", "scanning", "reading"))
    )


def once(tracer: Tracer, queries: list[TraceQuery]) -> Parts:
    """One batch, timed by what it tells of itself."""
    times: dict[str, list[float]] = {"scanning": [], "reading": []}

    def note(progress: TraceProgress) -> None:
        if progress.stage in times:
            times[progress.stage].append(time.perf_counter())

    start = time.perf_counter()
    watched = [dataclasses.replace(queries[0], on_progress=note), *queries[1:]]
    outcomes = [outcome for _, outcome in tracer.trace_all(watched)]
    end = time.perf_counter()
    assert all(isinstance(outcome, Trace) for outcome in outcomes)
    began, scanned = times["scanning"][0], times["reading"][0]
    return Parts(began - start, scanned - began, end - scanned)


def settling_share(tracer: Tracer, count: int, top_k: int, rounds: int) -> float:
    """Seconds for float64 scores of what can win, in a scan of all files at once."""
    generator = torch.Generator().manual_seed(count)
    vectors = torch.randn(count, tracer.spec.dimension, generator=generator)
    queries = QuerySet.of(torch.nn.functional.normalize(vectors, dim=1))
    uris = [file.uri for file in Index.open(tracer.uri).snapshot().files]
    scans = [timed_scan(uris, queries, ScanSettings(top_k)) for _ in range(rounds)]
    return statistics.median(scan.settling_seconds for scan in scans)


if __name__ == "__main__":
    raise SystemExit(main())
