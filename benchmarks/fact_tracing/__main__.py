"""How well attributions find what a model's answers come from: `python -m benchmarks.fact_tracing` (`make bench-facts`).

Corpora of ParaRel's facts among WikiText's passages, an easy one and a hard one; a small Llama trained on each; every row of
the paper's ablation (second moments, preconditioner, unit norm; size and layout of the projection; damping and mixing), BM25
and random; MRR and Recall by annotation, tail-patch, and ground truth by retraining (LDS, leave-k-out).

What is done is kept in --folder and not done again, so a run that broke off goes on where it was. --small takes minutes.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.fact_tracing import ablation, dataset, report, settings, sources, truth
from benchmarks.fact_tracing.settings import BM25, RANDOM, SIZES, Size
from trackstar.errors import TrackStarError
from trackstar.evaluation.fact_corpus import about


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few minutes: everything runs, the figures mean little")
    parser.add_argument(
        "--folder", type=Path, default=Path("benchmarks/work/fact_tracing"), help="where work is kept (%(default)s)"
    )
    parser.add_argument(
        "--datasets", nargs="+", choices=dataset.DATASETS, default=["easy", "hard"], help="the corpora (easy hard)"
    )
    parser.add_argument("--trex_facts", metavar="FILE", help="for --datasets trex: the paper's trex_facts_sample.jsonl")
    parser.add_argument("--trex_sentences", metavar="GLOB", help="for --datasets trex: its trex_sentences.jsonl-*")
    parser.add_argument(
        "--no_retraining", nargs="+", choices=dataset.DATASETS, default=[], metavar="DATASET", help="corpora without it"
    )
    parser.add_argument(
        "--retraining_seeds", type=int, metavar="N", help="trainings of each subset; by default as the size says"
    )
    parser.add_argument(
        "--every_seed", action="store_true", help="all seeds of the projections for every row: half an hour more"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables and JSON go (%(default)s)")
    args = parser.parse_args(argv)
    trex = dataset.TrexFiles(args.trex_facts, args.trex_sentences) if args.trex_facts and args.trex_sentences else None
    if set(args.datasets) - {"trex"} and (absent := sources.missing()):
        print(f"{absent}: this benchmark needs ParaRel and WikiText-2", file=sys.stderr)
        return 2
    size = SIZES["small" if args.small else "standard"]
    if args.retraining_seeds is not None:
        size = size.with_retraining_seeds(args.retraining_seeds)
    if args.every_seed:
        size = size.with_every_seed()
    spent = Seconds(args.folder / size.name / "seconds.json")
    try:
        reports = [
            measure(name, size, args.folder / size.name, trex, name not in args.no_retraining, spent)
            for name in args.datasets
        ]
    except TrackStarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    flags = [f" --{name}" for name in ("small", "every_seed") if getattr(args, name)]
    command = "python -m benchmarks.fact_tracing" + "".join(flags)
    text = report.markdown(reports, size, command, spent.parts)
    paths = report.write(reports, size, text, spent.parts, args.results)
    print(text)
    print(" and ".join(map(str, paths)))
    return 0


def measure(
    name: str, size: Size, folder: Path, trex: dataset.TrexFiles | None, retrain: bool, spent: "Seconds"
) -> report.DatasetReport:
    """Everything on one corpus, the retraining if asked for."""
    with spent.on(f"{name}: corpus and model"):
        corpus = dataset.build(name, size.facts, size.passages, trex)
        data = dataset.prepare(name, corpus, size.model, folder / name, tell)
    rankings = ablation.Rankings(data, tell)
    methods = settings.ablation(size)
    with spent.on(f"{name}: rankings"):
        rankings.baselines()
        rankings.make(methods)
    with spent.on(f"{name}: metrics"):
        rows = [
            report.Row(report.row_name(group[0]), group, ablation.metrics(rankings, [method.name for method in group]))
            for group in report.by_seed(methods)
        ]
        rows += [report.Row(other, (), ablation.metrics(rankings, [other])) for other in (BM25, RANDOM)]
    principal = settings.principal(size)
    with spent.on(f"{name}: tail-patch"):
        files = {**{label: method.name for label, method in principal.items()}, BM25: BM25, RANDOM: RANDOM}
        patches = truth.tail_patches(rankings, files, size, tell)
    if not retrain:
        return report.DatasetReport(data, about(data.corpus), rows, patches, None)
    with spent.on(f"{name}: retraining"):
        smaller = dataset.build(name, size.truth.facts, size.truth.passages, trex, size.truth.words_per_passage)
        little = dataset.prepare(f"{name}, smaller", smaller, size.truth.model, folder / f"{name}_truth", tell)
        found = truth.retrained(little, principal, size.truth, folder / f"{name}_truth" / "retrained", tell)
    return report.DatasetReport(data, about(data.corpus), rows, patches, found)


def tell(line: str) -> None:
    """One line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


class Seconds:
    """How long each part has taken, over all runs in a folder.

    Args:
        path: File that keeps it.
    """

    def __init__(self, path: Path):
        self._path = path
        self.parts: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Adds the block's time, also where it is stopped."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.parts[what] = round(self.parts.get(what, 0.0) + time.monotonic() - started, 1)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.parts))


if __name__ == "__main__":
    raise SystemExit(main())
