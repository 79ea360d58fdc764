"""What an encoding of so many bytes keeps: `python -m benchmarks.frontier`.

On the corpora and trained models of the fact-tracing benchmark: MRR and Recall@10, agreement with the exact scores of full
gradients, tail-patch and LDS of encodings by projection (Gaussian, whitened), stored form (bfloat16, int8, sign bits), R, norms,
layout and size, beside the paper's layout. With --models instead: a few rows on models of several sizes.

What is done is kept in --folder and not done again, so a run that broke off goes on where it was; models and retrainings are
those of `python -m benchmarks.fact_tracing` where they are there. --small takes two minutes.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.fact_tracing import dataset, sources
from benchmarks.fact_tracing.__main__ import Seconds, tell
from benchmarks.fact_tracing.settings import BM25, RANDOM
from benchmarks.fact_tracing.truth import tail_patches
from benchmarks.frontier import report, truth
from benchmarks.frontier.measured import Bench, Measured
from benchmarks.frontier.rows import file_name, model_rows, principal, rows, unique
from benchmarks.frontier.settings import SIZES, Size
from trackstar import scratch
from trackstar.errors import TrackStarError


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two minutes: everything runs, the figures mean little")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("benchmarks/work/fact_tracing"),
        help="where work is kept, the fact-tracing benchmark's (%(default)s)",
    )
    parser.add_argument(
        "--datasets", nargs="+", choices=("easy", "hard"), default=["easy", "hard"], help="the corpora (easy hard)"
    )
    parser.add_argument(
        "--models", nargs="*", metavar="NAME", help="instead: these models on the first corpus (all: 1M 7M 25M)"
    )
    parser.add_argument("--no_retraining", action="store_true", help="without LDS")
    parser.add_argument("--no_tail_patch", action="store_true", help="without tail-patch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables and JSON go (%(default)s)")
    args = parser.parse_args(argv)
    if absent := sources.missing():
        print(f"{absent}: this benchmark needs ParaRel and WikiText-2", file=sys.stderr)
        return 2
    size = SIZES["small" if args.small else "standard"]
    if args.models is not None and (unknown := set(args.models) - set(size.models)):
        print(f"--models {', '.join(sorted(unknown))}: there are {', '.join(size.models)}", file=sys.stderr)
        return 2
    folder = args.folder / size.facts.name
    spent = Seconds(folder / ("frontier_models_seconds.json" if args.models is not None else "frontier_seconds.json"))
    try:
        with scratch.folder() as work:
            if args.models is not None:
                names = args.models or list(size.models)
                parts = [measure_model(name, args.datasets[0], size, folder, work, spent) for name in names]
            else:
                parts = [
                    measure(name, size, folder, work, not args.no_retraining, not args.no_tail_patch, spent)
                    for name in args.datasets
                ]
    except TrackStarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    words = ["--small"] * args.small + (["--models", *args.models] if args.models is not None else [])
    text = report.markdown(parts, size, " ".join(["python -m benchmarks.frontier", *words]), spent.parts)
    kind = "frontier" if args.models is None else "frontier_models"
    paths = report.write(parts, size, text, spent.parts, args.results, kind)
    print(text)
    print(" and ".join(map(str, paths)))
    return 0


def measure(name: str, size: Size, folder: Path, work: Path, retrain: bool, patch: bool, spent: Seconds) -> report.Part:
    """Everything on one corpus."""
    facts = size.facts
    with spent.on(f"{name}: corpus and model"):
        corpus = dataset.build(name, facts.facts, facts.passages)
        data = dataset.prepare(name, corpus, facts.model, folder / name, tell)
    bench = Bench.of(data.checkpoint, data.texts, data.queries)
    extent = size.exact_queries, size.exact_documents
    measured = Measured(data, bench, size, extent, work / name, tell)
    all_rows = rows(bench.loaded, bench.template, size)
    chosen = principal(bench.loaded, bench.template, size)
    with spent.on(f"{name}: rankings and agreement"):
        measured.rankings.baselines()
        measured.make(list({file_name(c): c for c in [*unique(all_rows), *chosen.values()]}.values()))
    patches = None
    if patch:
        with spent.on(f"{name}: tail-patch"):
            files = {label: file_name(candidate) for label, candidate in chosen.items()}
            patches = tail_patches(measured.rankings, {**files, BM25: BM25, RANDOM: RANDOM}, facts, tell)
    found = None
    if retrain:
        with spent.on(f"{name}: retraining"):
            smaller = dataset.build(name, facts.truth.facts, facts.truth.passages)
            where = folder / f"{name}_truth"
            little = dataset.prepare(f"{name}, smaller", smaller, facts.truth.model, where, tell)
            found = truth.retrained(little, size, where / "retrained", work, tell)
    return report.Part(name, measured, all_rows, patches, found)


def measure_model(name: str, corpus_name: str, size: Size, folder: Path, work: Path, spent: Seconds) -> report.Part:
    """A few rows with a model of another size on a corpus."""
    label = f"{corpus_name}, {name}"
    with spent.on(f"{label}: corpus and model"):
        corpus = dataset.build(corpus_name, size.facts.facts, size.facts.passages)
        data = dataset.prepare(label, corpus, size.models[name], folder / f"{corpus_name}_{name}", tell)
    bench = Bench.of(data.checkpoint, data.texts, data.queries)
    measured = Measured(data, bench, size, size.model_exact, work / name, tell)
    all_rows = model_rows(bench.loaded, bench.template, size)
    with spent.on(f"{label}: rankings and agreement"):
        measured.make(unique(all_rows))
    return report.Part(label, measured, all_rows)


if __name__ == "__main__":
    raise SystemExit(main())
