"""What an encoding of so many bytes keeps: `python -m benchmarks.frontier`.

On the corpora and trained models of the fact-tracing benchmark: MRR and Recall@10, agreement with the exact scores of full
gradients, tail-patch and LDS of encodings by projection (Gaussian, whitened), stored form (bfloat16, int8, sign bits), R, norms,
layout and size, beside the paper's layout. With --models instead: a few rows on models of several sizes.

What is done is kept in --folder and not done again, so a run that broke off goes on where it was, and one of more rows takes over
those there are. Models and retrainings are those of `python -m benchmarks.fact_tracing` where they are there, or in the folder
that --reuse names. All of it takes hours; --rows, --storages, --kilobytes, --dimension, --seeds and the --no_ flags choose.
Tail-patch and LDS are of a few rows, the same whatever is chosen. --small takes two minutes.
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.fact_tracing import dataset, sources
from benchmarks.fact_tracing.__main__ import Seconds, tell
from benchmarks.fact_tracing.dataset import Dataset
from benchmarks.fact_tracing.settings import BM25, RANDOM
from benchmarks.fact_tracing.truth import tail_patches
from benchmarks.frontier import report, reuse, truth
from benchmarks.frontier.measured import Bench, Measured
from benchmarks.frontier.rows import KEYS, Choice, file_name, model_rows, patched, rows, unique
from benchmarks.frontier.settings import SIZES, STORAGES, Size
from trackstar import scratch
from trackstar.errors import TrackStarError


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    if absent := sources.missing():
        print(f"{absent}: this benchmark needs ParaRel and WikiText-2", file=sys.stderr)
        return 2
    size = SIZES["small" if args.small else "standard"]
    if args.models is not None and (unknown := set(args.models) - set(size.models)):
        print(f"--models {', '.join(sorted(unknown))}: there are {', '.join(size.models)}", file=sys.stderr)
        return 2
    kind = "frontier" if args.models is None else "frontier_models"
    try:
        with scratch.folder() as work:
            run = Run(args, size, work)
            if args.models is None:
                parts = [run.measure(name) for name in args.corpora]
            else:
                parts = [run.measure_model(name) for name in args.models or size.models]
    except TrackStarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "benchmarks.frontier", *_without_folders(words)])
    paths = report.write(parts, size, command, run.spent.parts, args.results, kind)
    print(paths[1].read_text())
    print(" and ".join(map(str, paths)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two minutes: everything runs, the figures mean little")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("benchmarks/work/fact_tracing"),
        help="where work is kept, the fact-tracing benchmark's (%(default)s)",
    )
    parser.add_argument(
        "--reuse",
        type=Path,
        metavar="FOLDER",
        help="another such folder, whose models and retrainings are copied to --folder where it lacks them; it is only read. "
        "Then no model is trained: it is an error where one would have to be",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables and JSON go (%(default)s)")
    parser.add_argument(
        "--models", nargs="*", metavar="NAME", help="instead: these models on the first corpus (all: 2M 7M 25M)"
    )
    group = parser.add_argument_group("what is measured (everything)")
    group.add_argument(
        "--corpora", nargs="+", choices=("easy", "hard"), default=["easy", "hard"], help="the corpora (easy hard)"
    )
    group.add_argument("--rows", nargs="+", choices=KEYS, metavar="KEY", help=f"rows by question: {' '.join(KEYS)}")
    group.add_argument("--storages", nargs="+", choices=STORAGES, help="rows of these stored forms")
    group.add_argument(
        "--kilobytes", nargs="+", type=float, metavar="KB", help="rows of so many KB of 1,024 bytes (1 2 4 8 16 64 128)"
    )
    group.add_argument(
        "--dimension", type=int, metavar="N", help="rows of so many numbers at most: 128 KB of sign bits are a million"
    )
    group.add_argument("--seeds", type=int, choices=(1, 2, 3), metavar="N", help="seeds of the projections (3)")
    group.add_argument("--no_exact", action="store_true", help="without agreement with the scores of full gradients")
    group.add_argument("--no_tail_patch", action="store_true", help="without tail-patch")
    group.add_argument("--no_retraining", action="store_true", help="without LDS")
    group.add_argument("--no_truth", action="store_true", help="without tail-patch and LDS")
    return parser


def _without_folders(words: list[str]) -> list[str]:
    """A command line without the flags that say where things lie on this machine."""
    flags = ("--folder", "--reuse", "--results")
    kept = [word for word in words if word.partition("=")[0] not in flags or "=" not in word]
    for flag in flags:
        while flag in kept:
            place = kept.index(flag)
            del kept[place : place + 2]
    return kept


class Run:
    """One run of the command.

    Args:
        args: Its flags.
        size: Of the benchmark.
        work: For sums, while it runs.
    """

    def __init__(self, args: argparse.Namespace, size: Size, work: Path):
        self._args = args
        self._size = size
        self._work = work
        self._choice = Choice(args.rows, args.storages, args.kilobytes, args.dimension, args.seeds)
        self._folder: Path = args.folder / size.facts.name
        kind = "frontier_seconds" if args.models is None else "frontier_models_seconds"
        self.spent = Seconds(self._folder / f"{kind}.json")
        if args.reuse is not None:
            reuse.copy_work(args.reuse / size.facts.name, self._folder, args.corpora, tell)

    def measure(self, name: str) -> report.Part:
        """Everything on one corpus."""
        args, size = self._args, self._size
        with self.spent.on(f"{name}: corpus and model"):
            data = self._dataset(name)
        bench = Bench.of(data.checkpoint, data.texts, data.queries)
        extent = None if args.no_exact else (size.exact_queries, size.exact_documents)
        measured = Measured(data, bench, size, extent, self._work / name, tell)
        all_rows = rows(bench.loaded, bench.template, size, self._choice)
        chosen = patched(bench.loaded, bench.template, size)
        wants_patches = not (args.no_tail_patch or args.no_truth)
        with self.spent.on(f"{name}: rankings" + ("" if args.no_exact else " and agreement")):
            measured.rankings.baselines()
            wanted = [*unique(all_rows), *(chosen.values() if wants_patches else ())]
            measured.make(list({file_name(c): c for c in wanted}.values()))
        patches = None
        if wants_patches:
            with self.spent.on(f"{name}: tail-patch"):
                files = {label: file_name(candidate) for label, candidate in chosen.items()}
                patches = tail_patches(measured.rankings, {**files, BM25: BM25, RANDOM: RANDOM}, size.facts, tell)
        found = None
        if not (args.no_retraining or args.no_truth):
            with self.spent.on(f"{name}: LDS"):
                little = self._smaller(name)
                found = truth.retrained(little, size, little.folder / "retrained", self._work, tell)
        return report.Part(name, measured, all_rows, patches, found)

    def measure_model(self, name: str) -> report.Part:
        """A few rows with a model of another size on the first corpus."""
        size, corpus_name = self._size, self._args.corpora[0]
        label = f"{corpus_name}, {name}"
        with self.spent.on(f"{label}: corpus and model"):
            corpus = dataset.build(corpus_name, size.facts.facts, size.facts.passages)
            folder = self._folder / f"{corpus_name}_{name}"
            data = dataset.prepare(label, corpus, size.models[name], folder, tell)
        bench = Bench.of(data.checkpoint, data.texts, data.queries)
        extent = None if self._args.no_exact else size.model_exact
        measured = Measured(data, bench, size, extent, self._work / name, tell)
        all_rows = model_rows(bench.loaded, bench.template, size, self._choice)
        with self.spent.on(f"{label}: rankings" + ("" if self._args.no_exact else " and agreement")):
            measured.make(unique(all_rows))
        return report.Part(label, measured, all_rows)

    def _dataset(self, name: str) -> Dataset:
        """A corpus with its model, trained where it is missing and --reuse does not forbid it."""
        facts = self._size.facts
        corpus = dataset.build(name, facts.facts, facts.passages)
        folder = self._folder / name
        if self._args.reuse is not None:
            reuse.check_model(folder / "model", [document.text for document in corpus.documents], facts.model)
        return dataset.prepare(name, corpus, facts.model, folder, tell)

    def _smaller(self, name: str) -> Dataset:
        """The smaller corpus of a name, which the retrainings are of, with its model."""
        truth_of = self._size.facts.truth
        words = truth_of.words_per_passage
        corpus = dataset.build(name, truth_of.facts, truth_of.passages, words_per_passage=words)
        folder = self._folder / f"{name}_truth"
        if self._args.reuse is not None:
            texts = [document.text for document in corpus.documents]
            for model, settings in reuse.truth_settings(truth_of).items():
                reuse.check_model(folder / model, texts, settings)
        return dataset.prepare(f"{name}, smaller", corpus, truth_of.model, folder, tell)


if __name__ == "__main__":
    raise SystemExit(main())
