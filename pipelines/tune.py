"""Measures on a sample how much influence encodings of a few bytes keep, and recommends the flags of fit for a budget.

Encodings of several kinds (Gaussian and whitened projections; bfloat16, int8, sign bits; with and without R; the paper's layout)
and sizes score a sample of documents for your queries. Quality is how far these scores agree with the exact ones, of full,
unprojected gradients: Spearman's correlation over the documents, and how many of the exact top 10 are found, as means over the
queries. Beside it stand the bytes of a document and the examples encoded in a second.

What is exact depends on the metric that gradients are compared in, so say which: --exact corrected (division by √V), or whitened.
Agreement says how much of that metric's scores an encoding keeps, not which metric finds the better proponents.

Runs in this process. Second moments (without --optimizer_state), whitened projections and R are fitted on documents of the sample
that are not scored. Writes tune.json, tune.md and tune.png into --output. What is found on the way is kept in its folder work:
started again, with other sizes or another budget, the command measures only what is new.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines import cli, flag_types, options
from pipelines.corpus import add_corpus_arguments, planned
from pipelines.fit import SPEC_DEFAULTS
from pipelines.progress import Progress, say
from trackstar import fitting, scratch, second_moments, storage, threads
from trackstar.amounts import human_bytes
from trackstar.corpus import WorkItem
from trackstar.cost.skeleton import load_skeleton
from trackstar.devices import choose_device
from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, load_model
from trackstar.results import Query, read_queries
from trackstar.second_moments import SecondMoments
from trackstar.spec import NORMALISATIONS, Spec
from trackstar.tuning import candidates, report
from trackstar.tuning.plan import Settings, default_sizes, make_plan
from trackstar.tuning.run import Tuned, tune
from trackstar.tuning.sample import FIT_SIZE, SAMPLE_SIZE, choose_queries, draw, tokenization

_KEPT_FIELDS = (
    "long_documents",
    "append_eos",
    "batch_tokens",
    "layer_groups",
    "projection_seed",
    "whitening_damping",
    "damping",
)
"""Fields of the spec that stay as they are given, and go into the recommended flags where they are not the default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--queries", required=True, metavar="FILE", help="JSONL, as for score")
    parser.add_argument(
        "--budget",
        required=True,
        type=flag_types.num_bytes,
        metavar="BYTES",
        help="of one stored encoding at most: 2KB (2,048), 800",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the table, the figures and the plot")
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be measured; read no weights, and write nothing"
    )
    add_corpus_arguments(parser)
    _add_model_arguments(parser)
    parser.add_argument(
        "--optimizer_state",
        metavar="FILE",
        help="optimizer.pt of a Trainer checkpoint (AdamW, Adafactor), its folder, or a safetensors file by weight name",
    )
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--sizes",
        nargs="+",
        type=flag_types.num_bytes,
        metavar="BYTES",
        help="bytes at which encodings are compared, beside the budget (a quarter, half, all and twice of it)",
    )
    group.add_argument(
        "--exact",
        choices=("corrected", "whitened"),
        default="corrected",
        help="which full gradients the exact scores are cosines of: corrected by second moments, if there are any, or whitened "
        "on both sides, too",
    )
    group.add_argument(
        "--exact_normalisation",
        choices=NORMALISATIONS,
        default="vector",
        help="unit norm of the whole gradient, or of every weight's part first (block)",
    )
    group.add_argument("--top_k", type=flag_types.positive, default=10, metavar="N", help="k of the overlap")
    group.add_argument(
        "--moments",
        choices=("auto", "none", "factored", "exact"),
        default="auto",
        help="second moments, as for fit; with exact ones, factored and none are compared, too",
    )
    group.add_argument(
        "--model_dtype", choices=("float32", "bfloat16"), default="float32", help="type the model runs in"
    )
    group.add_argument(
        "--max_length", type=flag_types.positive, metavar="N", help="longest example in tokens (the model's context)"
    )
    options.add_field_arguments(group, Spec, {name: SPEC_DEFAULTS[name] for name in _KEPT_FIELDS})
    sample = parser.add_argument_group("the sample")
    sample.add_argument(
        "--sample_size",
        type=flag_types.positive,
        metavar="N",
        help=f"documents whose scores are compared ({SAMPLE_SIZE:,}, or half of a smaller corpus)",
    )
    sample.add_argument(
        "--fit_size",
        type=flag_types.positive,
        metavar="N",
        help=f"other documents, to fit on ({FIT_SIZE:,}, or the rest of a smaller corpus)",
    )
    sample.add_argument(
        "--query_sample", type=flag_types.positive, default=100, metavar="N", help="queries at most, evenly spaced"
    )
    sample.add_argument("--sample_seed", type=int, default=0, metavar="N", help="which documents")
    sample.add_argument(
        "--memory",
        type=flag_types.num_bytes,
        default="1GB",
        metavar="BYTES",
        help="for full gradients of the queries, and for sums; less means more passes over the sample",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model", required=True, metavar="CKPT", help="checkpoint folder of the model, with its tokenizer"
    )
    group.add_argument("--device", default="auto", help="auto, cpu or cuda: where the model runs")
    group.add_argument(
        "--threads", type=flag_types.natural, default=0, metavar="N", help="threads of torch; 0: one a core"
    )
    group.add_argument(
        "--allow_low_coverage",
        action="store_true",
        help="go on where less than half of the non-embedding parameters can be attributed",
    )


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Measures, prints, writes and recommends."""
    if args.moments == "none" and args.optimizer_state:
        raise TrackStarError("--moments none contradicts --optimizer_state: leave one of them out")
    queries = read_queries(args.queries)
    _, items = planned(args)
    if args.dry_run:
        return _dry_run(args, queries, items)
    threads.use(args.threads)
    loaded = load_model(args.model, args.model_dtype, choose_device(args.device), args.allow_low_coverage)
    say(loaded.coverage.describe())
    moments: SecondMoments | None = None
    if args.optimizer_state:
        moments = second_moments.load(args.optimizer_state, loaded.model, loaded.weights)
        moments = moments.factored() if args.moments == "factored" else moments
    template = _template(args, loaded, moments)
    text_to_examples = tokenization(loaded, template)
    asked = choose_queries(queries, args.query_sample, text_to_examples)
    sample = draw(items, text_to_examples, args.sample_size, args.fit_size, args.sample_seed)
    settings = _settings(args)
    say(
        f"{len(asked):,} queries of {len(queries):,}; {len(sample.scored):,} documents to score and {len(sample.fitted):,} "
        "others to fit on" + (f"; {sample.unusable:,} that were drawn cannot be used" if sample.unusable else "")
    )
    with scratch.folder() as folder:
        kept = storage.join(args.output, "work")
        tuned = tune(loaded, template, moments, sample, asked, settings, folder, kept, _stage, say)
    _report(
        args, tuned, settings, {"num_queries": len(asked), "fitted_on": len(sample.fitted), "moments": template.moments}
    )
    return cli.EXIT_DONE


def _report(args: argparse.Namespace, tuned: Tuned, settings: Settings, about: Mapping[str, Any]) -> None:
    """Prints what was found and writes it into the output folder; the recommended command goes last, to standard output."""
    words = _fit_words(args, tuned.recommended.candidate)
    command = candidates.shown(words)
    about = {"model": args.model, "corpus": args.corpus, "queries": args.queries, **about}
    figures = report.as_json(tuned, settings, about, words)
    storage.write_bytes(storage.join(args.output, "tune.json"), figures.encode())
    storage.write_bytes(storage.join(args.output, "tune.md"), report.markdown(tuned, settings, command).encode())
    picture = storage.join(args.output, "tune.png")
    try:
        report.plot(tuned, settings, picture)
    except TrackStarError as error:
        say(f"note: no plot ({error})")
    report.show(tuned, settings)
    best = tuned.recommended
    say(
        f"recommended for {settings.budget:,} bytes: {best.candidate.family.name}, {best.candidate.num_bytes:,} bytes, Spearman "
        f"{best.quality:.3f} with the exact scores ({settings.describe_exact}); everything is in {args.output}"
    )
    print(command)


def _settings(args: argparse.Namespace) -> Settings:
    sizes = (*args.sizes, args.budget) if args.sizes else default_sizes(args.budget)
    return Settings(
        args.budget, tuple(sorted(set(sizes))), args.exact, args.exact_normalisation, args.top_k, args.memory
    )


def _template(args: argparse.Namespace, loaded: LoadedModel, moments: SecondMoments | None) -> Spec:
    """A spec of the model: what no family of encodings decides is as the flags say."""
    return fitting.make_spec(
        loaded,
        max_length=args.max_length,
        attributed="all",
        layout="weights",
        block_rows=1,
        block_columns=1,
        projection="whitened",
        moments=moments,
        moments_pending=moments is None and args.moments != "none",
        factored=args.moments == "factored",
        precondition=False,
        normalisation="block",
        storage="bfloat16",
        stores_text=True,
        **{name: getattr(args, name) for name in _KEPT_FIELDS},
    )


def _fit_words(args: argparse.Namespace, recommended: candidates.Candidate) -> list[str]:
    """The command line that fits an index of the recommended encodings; --index is left to the reader."""
    words = ["trackstar", "fit", "--corpus", *args.corpus, "--model", args.model]
    if args.optimizer_state and recommended.family.moments != "none":
        words += ["--optimizer_state", args.optimizer_state]
    if args.model_dtype != "float32":
        words += ["--model_dtype", args.model_dtype]
    if args.max_length is not None:
        words += ["--max_length", str(args.max_length)]
    if args.allow_low_coverage:
        words.append("--allow_low_coverage")
    decided = candidates.fit_words(recommended)
    for name in _KEPT_FIELDS:
        if name == "whitening_damping" or getattr(args, name) == SPEC_DEFAULTS[name]:
            continue
        value = getattr(args, name)
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return [*words, "--index", "INDEX", *decided]


def _dry_run(args: argparse.Namespace, queries: list[Query], items: list[WorkItem]) -> int:
    """What would be measured, of the model's configuration alone."""
    loaded = load_skeleton(args.model, args.model_dtype)
    say(loaded.coverage.describe())
    # An optimizer's state is not read: its moments are taken for exact ones, unless --moments says otherwise.
    template = _template(args, loaded, None)
    settings = _settings(args)
    asked = min(args.query_sample, len(queries))
    scored, fitted = args.sample_size or SAMPLE_SIZE, args.fit_size or FIT_SIZE
    corpus = human_bytes(sum(item.num_bytes for item in items))
    plan = make_plan(loaded.weights, template, settings, asked, fitted)
    report.show_plan(plan)
    for line in plan.left_out:
        say(f"not compared: {line}")
    say(
        f"{len(plan.candidates):,} encodings, {asked:,} queries of {len(queries):,}, {scored:,} documents to score and "
        f"{fitted:,} others to fit on, out of {corpus} of corpus (fewer where it has fewer): {len(plan.passes):,} passes over "
        f"the scored ones for the exact scores ({settings.describe_exact}), and {len(plan.groups):,} for the encodings. Nothing "
        "was run or written"
    )
    return cli.EXIT_DONE


@contextlib.contextmanager
def _stage(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far one part of the measurement is."""
    with Progress(label, total, 1, "examples" if label != "speed" else "encodings") as progress:
        yield lambda done: progress.reporter.report(label.replace(" ", "-"), done, done, finished=done >= total)


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.tune`."""
    return cli.run_command("tune", argv)


if __name__ == "__main__":
    raise SystemExit(main())
