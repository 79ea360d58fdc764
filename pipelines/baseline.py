"""Ranks the corpus's documents for each query without a model: by BM25, or at random. Baselines to hold attributions against.

BM25 scores every document exactly, in two passes: the first counts documents, words and the queries' terms, the second scores.
Documents that score 0 (no shared word, or none whose idf is above 0) are not ranked, so a ranking may be shorter than --top_k.
Documents are scored whole, however long, and carry the record's id: with --long_documents split, an index calls their passages
`id#0`, `id#1`, … Records that cannot be read are left out and counted.
"""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipelines import cli, cost_flags, costs, flag_types, options, runner
from pipelines.corpus import add_corpus_arguments, add_reject_argument, planned
from pipelines.cost_flags import add_cost_arguments
from pipelines.elements import OneByOne
from pipelines.progress import Progress, Reporter, say
from pipelines.scan_flags import add_query_arguments, query_set_of
from pipelines.scanning import FetchPassages, MergeTops, Passages, Tops, write
from trackstar.corpus import WorkItem
from trackstar.cost.evaluation_commands import estimate_baseline
from trackstar.errors import TrackStarError
from trackstar.evaluation.bm25 import BM25Settings, query_words
from trackstar.evaluation.corpus_scan import (
    BM25Method,
    CorpusCounts,
    Method,
    RandomMethod,
    best_of_item,
    count_item,
    texts_of,
    total,
)
from trackstar.results import Query, read_queries
from trackstar.topk import TopK

_LOGGER = logging.getLogger(__name__)
_BM25 = {field.name: field.default for field in dataclasses.fields(BM25Settings)}
_SEED = 0
_SHOWN_QUERIES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--method", required=True, choices=("bm25", "random"), help="what ranks the documents")
    add_corpus_arguments(parser)
    add_query_arguments(parser)
    parser.add_argument("--top_k", type=flag_types.positive, default=100, metavar="N", help="documents a query")
    add_reject_argument(parser, "ranked")
    add_cost_arguments(parser)
    options.add_field_arguments(parser.add_argument_group("--method bm25"), BM25Settings, _BM25)
    group = parser.add_argument_group("--method random")
    group.add_argument("--seed", type=int, default=_SEED, metavar="N", help="another seed draws other documents")


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Ranks and writes the results."""
    method_of = chosen_method(args)
    queries = read_queries(args.queries)
    shards, items = planned(args)
    if not items:
        raise TrackStarError(f"{' '.join(args.corpus)}: the shards are empty; there is nothing to rank")
    method = method_of(queries)
    passes = 2 if method.needs_statistics else 1
    if cost_flags.wanted(args):
        return costs.dry_run(
            args,
            beam_args,
            lambda basis: estimate_baseline(args.method, items, shards, method, len(queries), args.top_k, basis),
        )
    work = float(passes * sum(item.num_bytes for item in items))
    with Progress(args.method, work, passes * len(items), "documents", enabled=runner.is_local(beam_args)) as progress:
        transform = RankCorpus(
            items=[item.to_dict() for item in items],
            method=method,
            top_k=args.top_k,
            max_reject_fraction=args.max_reject_fraction,
            queries=queries,
            query_set=query_set_of(args),
            output=args.output,
            reporter=progress.reporter,
        )
        runner.run_pipeline(lambda pipeline: pipeline | "RankCorpus" >> transform, beam_args)
    say(f"{args.output}: {len(queries):,} queries ranked by --method {args.method}")
    return cli.EXIT_DONE


def chosen_method(args: argparse.Namespace) -> Callable[[list[Query]], Method]:
    """What --method and its flags ask for, checked before anything is read; a flag of the other method is an error."""
    foreign = {"seed": _SEED} if args.method == "bm25" else _BM25
    for name, default in foreign.items():
        if getattr(args, name) != default:
            raise TrackStarError(f"--{name} has no meaning with --method {args.method}: leave it out")
    settings = BM25Settings(**{name: getattr(args, name) for name in _BM25})
    if args.method == "bm25":
        return lambda queries: BM25Method(query_words(queries, settings), settings)
    return lambda queries: RandomMethod([query.example_id for query in queries], args.seed)


@dataclasses.dataclass
class RankCorpus(beam.PTransform):
    """Work items → results. Top-k arrays and counts leave a worker, documents do not, but for the winners' texts.

    Args:
        items: `WorkItem`s as dictionaries.
        method: What ranks.
        top_k: Documents a query.
        max_reject_fraction: Above this share of unusable records the run fails.
        queries: The queries, in order.
        query_set: Name of the set.
        output: Results file.
        reporter: Where progress goes.
    """

    items: list[dict[str, Any]]
    method: Method
    top_k: int
    max_reject_fraction: float
    queries: list[Query]
    query_set: str
    output: str
    reporter: Reporter

    def expand(self, root: Any) -> Any:
        items = root | OneByOne(list(enumerate(self.items)))
        score = ScoreItem(self.method, self.top_k, self.reporter)
        if isinstance(self.method, BM25Method):
            counts = self._checked(items | "CountItem" >> beam.ParDo(CountItem(self.method, self.reporter)))
            scoring = beam.ParDo(score, beam.pvalue.AsSingleton(counts))
            scored = items | "ScoreItem" >> scoring.with_outputs(ScoreItem.COUNTS, main="tops")
        else:
            scored = items | "ScoreItem" >> beam.ParDo(score).with_outputs(ScoreItem.COUNTS, main="tops")
            counts = self._checked(scored[ScoreItem.COUNTS])
        tops = scored["tops"] | "MergeTops" >> beam.CombineGlobally(MergeTops())
        passages = tops | "FetchTexts" >> FetchPassages(fetch_texts)
        return passages | "WriteResults" >> beam.Map(
            write_rankings,
            beam.pvalue.AsSingleton(tops),
            beam.pvalue.AsSingleton(counts),  # nothing is written before the rejects are found to be few
            self.queries,
            self.query_set,
            self.output,
        )

    def _checked(self, counts: Any) -> Any:
        summed = counts | "SumCounts" >> beam.CombineGlobally(total)
        return summed | "CheckRejects" >> beam.Map(check_rejects, self.max_reject_fraction)


class CountItem(beam.DoFn):
    """What BM25 must know of a work item before it can score."""

    def __init__(self, method: BM25Method, reporter: Reporter):
        self._method = method
        self._reporter = reporter

    def process(self, element: tuple[int, dict[str, Any]]) -> Iterator[CorpusCounts]:
        number, fields = element
        item, key = WorkItem.from_dict(fields), f"count-{number}"
        # Documents are counted as they are scored; this pass only moves the bar.
        counts = count_item(self._method.ranker(), item, lambda work, count: self._reporter.report(key, work, 0))
        self._reporter.report(key, item.num_bytes, 0, finished=True)
        yield counts


class ScoreItem(beam.DoFn):
    """A work item → its best documents for all queries."""

    COUNTS = "counts"

    def __init__(self, method: Method, top_k: int, reporter: Reporter):
        self._method = method
        self._top_k = top_k
        self._reporter = reporter
        self._documents = Metrics.counter("trackstar", "num_scored_documents")
        self._rejected = Metrics.counter("trackstar", "num_rejects")

    def process(self, element: tuple[int, dict[str, Any]], corpus: CorpusCounts | None = None) -> Iterator[Any]:
        number, fields = element
        item, key = WorkItem.from_dict(fields), f"score-{number}"
        ranker = self._method.ranker(corpus.statistics if corpus else None)
        top, counts = best_of_item(
            ranker, item, self._top_k, lambda work, count: self._reporter.report(key, work, count)
        )
        self._reporter.report(key, item.num_bytes, counts.documents, finished=True)
        self._documents.inc(counts.documents)
        self._rejected.inc(counts.rejected)
        yield top, None
        yield beam.pvalue.TaggedOutput(self.COUNTS, counts)


def check_rejects(counts: CorpusCounts, max_reject_fraction: float) -> CorpusCounts:
    """Passes the counts on, and says what was left out of the ranking."""
    left_out = counts.check(max_reject_fraction)
    if left_out:
        _LOGGER.warning("%s", left_out)
    return counts


def fetch_texts(needed: tuple[str, list[int]]) -> Passages:
    """Texts of the winners of one work item."""
    name, positions = needed
    return {(name, position): text for position, text in zip(positions, texts_of(name, positions), strict=True)}


def write_rankings(
    passages: list[Passages], tops: Tops, counts: CorpusCounts, queries: list[Query], query_set: str, output: str
) -> None:
    """Writes the results file, and says which rankings are empty."""
    write(passages, tops, queries, query_set, output)
    empty = empty_rankings(tops[0], queries)
    if empty:
        Metrics.counter("trackstar", "num_empty_rankings").inc(len(empty))
        _LOGGER.warning(
            "%d of %d queries share no word that counts with any of %d documents, so their rankings are empty: %s%s",
            len(empty),
            len(queries),
            counts.documents,
            ", ".join(empty[:_SHOWN_QUERIES]),
            ", …" if len(empty) > _SHOWN_QUERIES else "",
        )


def empty_rankings(top: TopK, queries: list[Query]) -> list[str]:
    """Ids of the queries that nothing was found for."""
    spans = [top.entries(number) for number in range(len(queries))]
    return [query.example_id for query, span in zip(queries, spans, strict=True) if span.start == span.stop]


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.baseline`."""
    return cli.run_command("baseline", argv)


if __name__ == "__main__":
    raise SystemExit(main())
