"""How close a scan of the index comes to the hardware: `python -m benchmarks.scoring`.

Scores queries against an index of random unit vectors, Parquet reading and exact top-100 included, and compares with what no
scan can beat on the same machine in the same run:

    bound = max(time to read the bytes, time of the bare product in the same type)        ratio = bound / time

With `--storage int8` or `sign` the product is that of bfloat16 tiles, as large as the scan's, that are unpacked and in cache
already; for so few queries that the scan does not unpack rows (`StoredForm.direct_queries`), reading alone is the bound.

Random directions are the hard case for an exact search: every row is about as good as the next. `faiss.IndexFlatIP` searches
the same vectors as float32 in memory; its time has no reading in it, and its scores are float32.

The measurements take turns, and each figure is the best of several: other work on the machine slows all alike.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.indexes import make_spec
from trackstar import approximate
from trackstar.encoding_reader import EncodingReader
from trackstar.encodings import Encodings
from trackstar.index import Index
from trackstar.scoring import QuerySet, ScanSettings, scan_files
from trackstar.spec import STORAGES
from trackstar.stored_forms import FORMS, StoredRows

_BLOCK = 64  # entries of d0 and d1 in a block
_READ_BYTES = 2**20
_PRODUCT_ROWS = (1024, 4096)


def main() -> None:
    """Runs the benchmark; writes a table to the terminal, and JSON and Markdown into `--results`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", help="where to put the index; default: a temporary folder")
    parser.add_argument("--rows", type=int, default=65536, help="examples in the index")
    parser.add_argument("--dimension", type=int, default=16384, help="d; a multiple of 4,096")
    parser.add_argument("--storage", choices=STORAGES, default="bfloat16", help="form of the stored encodings")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--faiss_queries", type=int, default=1024, help="most queries for faiss; 0 leaves it out")
    parser.add_argument("--results", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="trackstar-scoring-") as folder:
        uris = make_index(folder, args.rows, args.dimension, args.files, args.storage)
        results = list(measure(uris, args))
    report = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__},
        "index": {"rows": args.rows, "dimension": args.dimension, "files": args.files, "type": args.storage},
        "top_k": args.top_k,
        "repeats": args.repeats,
        "results": results,
    }
    where = Path(args.results)
    where.mkdir(parents=True, exist_ok=True)
    name = "scoring" if args.storage == "bfloat16" else f"scoring-{args.storage}"
    (where / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (where / f"{name}.md").write_text(markdown(report))
    print(markdown(report))


def make_index(folder: str, rows: int, dimension: int, files: int, storage: str) -> list[str]:
    """Writes and commits an index of random unit vectors; returns its files."""
    shape = {"block_rows": _BLOCK, "block_columns": _BLOCK, "num_blocks": dimension // _BLOCK**2}
    spec = make_spec(**shape, stores_text=False, storage=storage)
    index = Index.create(folder, spec)

    def batches(file: int) -> Iterator[Encodings]:
        for start in range(rows * file // files, rows * (file + 1) // files, 1024):
            count = min(1024, rows * (file + 1) // files - start)
            generator = torch.Generator().manual_seed(start)
            vectors = torch.nn.functional.normalize(torch.randn(count, dimension, generator=generator), dim=1)
            numbers = np.arange(start, start + count)
            ones = np.ones(count, np.float32)
            ids = [f"example {number}" for number in numbers]
            yield Encodings(ids, numbers, None, ones.astype(np.int32), ones, ones, vectors)

    index.commit([index.write_item(f"{file:032x}", f"shard {file}", batches(file), dict) for file in range(files)])
    return [file.uri for file in index.snapshot().files]


def measure(uris: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One result a number of threads and of queries."""
    readers = [EncodingReader(uri, args.dimension) for uri in uris]
    chunks = [chunk.stored for reader in readers for chunk in reader.chunks()]
    num_bytes = sum(chunk.nbytes for chunk in chunks)
    form = FORMS[args.storage]
    faiss_index = _faiss_index(chunks) if args.faiss_queries and not form.is_packed else None
    for threads in args.threads:
        torch.set_num_threads(threads)
        for count in args.queries:
            generator = torch.Generator().manual_seed(count)
            vectors = torch.nn.functional.normalize(torch.randn(count, args.dimension, generator=generator), dim=1)
            queries = QuerySet.of(vectors)
            settings = ScanSettings(args.top_k)
            tasks: dict[str, Callable[[], object]] = {
                "read": lambda threads=threads: read_all(uris, threads),
                "sum": lambda: sum_all(chunks),
                "scan": lambda queries=queries, settings=settings: scan_files(uris, queries, settings),
            }
            if not form.is_packed:
                for rows in _PRODUCT_ROWS:
                    tasks[f"product {rows}"] = lambda rows=rows, vectors=vectors: bare_product(chunks, vectors, rows)
            elif count > form.direct_queries:
                tasks["product"] = lambda vectors=vectors: tile_product(args.rows, vectors)
            if faiss_index is not None and count <= args.faiss_queries:
                tasks["faiss"] = lambda vectors=vectors, threads=threads: _faiss_search(
                    faiss_index, vectors, args.top_k, threads
                )
            best = _best_of(tasks, args.repeats)
            product = min((seconds for name, seconds in best.items() if name.startswith("product")), default=0.0)
            read = min(best["read"], best["sum"])
            result = {
                "threads": threads,
                "queries": count,
                "gigabytes": round(num_bytes / 1e9, 3),
                "read_seconds": round(read, 4),
                "product_seconds": round(product, 4),
                "scan_seconds": round(best["scan"], 4),
                "documents_per_second_and_core": round(args.rows / best["scan"] / threads),
                "ratio": round(max(read, product) / best["scan"], 3),
                "faiss_seconds": round(best["faiss"], 4) if "faiss" in best else None,
            }
            print(result, flush=True)
            yield result


def read_all(uris: list[str], threads: int) -> None:
    """Reads every byte of the files into a small buffer, the fastest way there is without mapping them."""

    def read(share: int) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))
        for uri in uris:
            with open(uri, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                at, end = size * share // threads, size * (share + 1) // threads
                while at < end:
                    at += os.preadv(file.fileno(), [buffer[: min(_READ_BYTES, end - at)]], at)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))


def sum_all(chunks: list[StoredRows]) -> int:
    """Adds up every eight bytes of mapped memory, which copies nothing."""
    return sum(int(chunk.matrix.view(torch.int64).sum()) for chunk in chunks)


def tile_product(count: int, vectors: torch.Tensor) -> None:
    """Products with `count` rows that are one tile over and over, a slice of columns at a time, as a scan multiplies them."""
    rows, columns = approximate.tile_rows(vectors.shape[1]), min(approximate.SLICE, vectors.shape[1])
    queries = vectors.bfloat16()
    tile = torch.ones(rows, columns, dtype=torch.bfloat16)
    out = torch.empty(len(queries), rows, dtype=torch.bfloat16)
    for _ in range(0, count, rows):
        for start in range(0, vectors.shape[1], columns):
            some = queries[:, start : start + columns]
            torch.mm(some, tile[:, : some.shape[1]].T, out=out)


def bare_product(chunks: list[StoredRows], vectors: torch.Tensor, rows: int) -> None:
    """All products in the stored type, from mapped memory, into a buffer that is overwritten."""
    queries = vectors.to(chunks[0].matrix.dtype)
    out = torch.empty(len(queries), rows, dtype=queries.dtype)
    for chunk in chunks:
        for start in range(0, len(chunk), rows):
            block = chunk.matrix[start : start + rows]
            torch.mm(queries, block.T, out=out if len(block) == rows else out.new_empty(len(queries), len(block)))


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    index = report["index"]
    lines = [
        "# Scoring",
        "",
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores. Index: {index['rows']:,} × {index['dimension']:,} "
        f"{index['type']}, {report['results'][0]['gigabytes']} GB, {index['files']} files, from page cache. "
        f"Exact top-{report['top_k']}, Parquet reading included. Best of {report['repeats']}, in seconds. "
        "Bound: the larger of read and product.",
        "",
        "| threads | queries | read | product | **scan** | documents a second a core | **bound / scan** | faiss (float32) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["results"]:
        faiss = "–" if row["faiss_seconds"] is None else f"{row['faiss_seconds']:.3f}"
        lines.append(
            f"| {row['threads']} | {row['queries']:,} | {row['read_seconds']:.3f} | {row['product_seconds']:.3f} "
            f"| {row['scan_seconds']:.3f} | {row['documents_per_second_and_core']:,} | {row['ratio']:.2f} | {faiss} |"
        )
    return "\n".join(lines) + "\n"


def _best_of(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _faiss_index(chunks: list[StoredRows]) -> Any:
    try:
        import faiss
    except ImportError:
        print("faiss is not installed (pip install 'trackstar[bench]'): left out")
        return None
    index = faiss.IndexFlatIP(chunks[0].dimension)
    for chunk in chunks:
        index.add(chunk.values(torch.float32).numpy())
    return index


def _faiss_search(index: Any, vectors: torch.Tensor, top_k: int, threads: int) -> object:
    import faiss

    faiss.omp_set_num_threads(threads)
    return index.search(vectors.numpy(), top_k)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
