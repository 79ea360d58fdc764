"""Fits what encodings need, projections, second moments and the preconditioner, and writes the spec of a new index.

Whitened projections (the default) and, where it is asked for, the preconditioner R_train are fitted on the same fixed random
sample of the corpus, in this order: R_train is that of the gradients as they are projected. Second moments, where there are to be
any, come from the optimizer state of the training run (--optimizer_state), or else are estimated on the sample.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from pipelines import cli, cost_flags, costs, flag_types, options, runner
from pipelines.corpus import add_corpus_arguments, planned
from pipelines.cost_flags import add_cost_arguments
from pipelines.model_flags import add_model_arguments
from pipelines.progress import say
from pipelines.sample_sums import SumOverSample, WhitenOverSample
from trackstar import checkpoint_files, covariances, fitting, sample_sums, second_moments, storage, whitening
from trackstar.amounts import human_bytes
from trackstar.attributed import attributing
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, estimate_fit
from trackstar.cost.skeleton import load_skeleton
from trackstar.covariances import Part
from trackstar.encoder import EncoderSource
from trackstar.errors import TrackStarError
from trackstar.fitting import PENDING
from trackstar.index import Index
from trackstar.models import LoadedModel, load_model
from trackstar.preconditioner import GramSum, Preconditioner
from trackstar.recipes import DIMENSION, RECIPES, WHITENING_DAMPING, block_shape
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec

SPEC_DEFAULTS = {
    "long_documents": "truncate",
    "append_eos": False,
    "batch_tokens": 4096,
    "layer_groups": 8,
    "projection_seed": 0,
    "whitening_damping": WHITENING_DAMPING,
    "damping": 0.1,
    "stores_text": True,
}
_OF_RECIPE = ("attributed", "layout", "normalisation", "projection", "storage")
"""Fields of the spec that the recipe decides, beside moments, R and the sides of blocks."""
_SMALL_SIDE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="folder or gs:// prefix of the new index")
    add_corpus_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--optimizer_state",
        metavar="FILE",
        help="optimizer.pt of a Trainer checkpoint (AdamW, Adafactor), its folder, or a safetensors file by weight name",
    )
    group = parser.add_argument_group("what an encoding is (kept in the index's spec)")
    group.add_argument(
        "--model_dtype", choices=("float32", "bfloat16"), default="float32", help="type the model runs in"
    )
    group.add_argument(
        "--max_length", type=flag_types.positive, metavar="N", help="longest example in tokens (the model's context)"
    )
    _add_recipe_arguments(group)
    options.add_field_arguments(group, Spec, SPEC_DEFAULTS)
    sample = parser.add_argument_group("the sample")
    sample.add_argument(
        "--sample_size", type=flag_types.positive, default=8192, metavar="N", help="documents in the sample"
    )
    sample.add_argument("--sample_seed", type=int, default=0, metavar="N", help="which documents")
    sample.add_argument(
        "--sample_tasks", type=flag_types.positive, default=4, metavar="N", help="parts that the sample is summed in"
    )
    add_cost_arguments(parser)


def _add_recipe_arguments(group: argparse._ActionsContainer) -> None:
    """The recipe and what it decides, unless a flag says otherwise."""
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="default",
        help="what the next nine flags are where they are not given; "
        + "; ".join(f"{name}: {recipe.describe()}" for name, recipe in RECIPES.items()),
    )
    options.add_field_arguments(group, Spec, dict.fromkeys(_OF_RECIPE))
    group.add_argument(
        "--moments",
        choices=("auto", "none", "factored", "exact"),
        help="second moments: auto takes them as the optimizer state has them, or estimates exact ones without one; factored "
        "keeps row and column means of them, which makes encoding cheaper. --optimizer_state alone means auto",
    )
    group.add_argument("--preconditioner", choices=("train", "none"), help="R_train, or none")
    group.add_argument(
        "--dimension",
        type=flag_types.positive,
        default=DIMENSION,
        metavar="N",
        help="numbers of an encoding at most; decides block_rows and block_columns where they are auto",
    )
    for name in ("block_rows", "block_columns"):
        [help] = [field.metadata["help"] for field in dataclasses.fields(Spec) if field.name == name]
        group.add_argument(
            f"--{name}",
            type=flag_types.positive_or_auto,
            metavar="N|auto",
            help=f"{help}; auto: as large as --dimension allows, both sides alike",
        )


def _with_recipe(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with what the recipe decides.

    Raises:
        TrackStarError: they contradict each other.
    """
    if args.moments == "none" and args.optimizer_state:
        raise TrackStarError("--moments none contradicts --optimizer_state: leave one of them out")
    recipe = RECIPES[args.recipe]
    decided = {
        **{name: getattr(args, name) or getattr(recipe, name) for name in _OF_RECIPE},
        "moments": args.moments or ("auto" if args.optimizer_state else recipe.moments),
        "preconditioner": args.preconditioner or recipe.preconditioner,
        "block_rows": _side(args.block_rows, recipe.block_rows),
        "block_columns": _side(args.block_columns, recipe.block_columns),
    }
    return argparse.Namespace(**{**vars(args), **decided})


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Fits; a second run with the same settings finds the work done."""
    args = _with_recipe(args)
    if cost_flags.wanted(args):
        return costs.dry_run(args, beam_args, lambda basis: estimate(args, beam_args, basis))
    fit = _Fit(args, beam_args)
    if fit.is_done():
        say(f"{args.index}: fitted already with these settings; next: trackstar build-index")
        return cli.EXIT_DONE
    fit.check_sizes()
    fit.collect_moments()
    fit.collect_projections()
    fit.collect_preconditioner()
    fit.write()
    say(f"{args.index}: fitted; spec {fit.spec.hash}, d = {fit.spec.dimension:,}; next: trackstar build-index")
    return cli.EXIT_DONE


def estimate(args: argparse.Namespace, beam_args: Sequence[str], basis: Basis) -> Estimated:
    """What fitting would take. An optimizer's state is not read: its moments are taken for exact ones, unless --moments says
    otherwise; nor is an index that is there already."""
    shards, items = planned(args)
    tasks = fitting.choose_sample(items, args.sample_size, args.sample_tasks, args.sample_seed)
    loaded = (
        load_model(args.model, args.model_dtype, "cpu", args.allow_low_coverage)
        if basis.calibrates
        else load_skeleton(args.model, args.model_dtype)
    )
    loaded = attributing(loaded, args.attributed)
    say(loaded.coverage.describe())
    spec = _make_spec(args, loaded, None, args.moments != "none")
    plain = fitting.stage_spec(spec, moments=False, projections=False)
    source = EncoderSource(
        plain.to_json(), args.model, None, None, args.device, args.threads_per_worker, args.allow_low_coverage
    )
    estimates_moments = args.moments != "none" and not args.optimizer_state
    passes: list[list[Part]] = []
    if spec.projection == "whitened":
        exact = [weight.name for weight in loaded.weights] if spec.moments == "exact" else []
        parts = covariances.plan_parts(loaded.weights, covariances.shared_inputs(loaded), exact)
        workers = _local_workers(beam_args) if basis.machine is None else None
        passes = covariances.plan_passes(parts, fitting.pass_bytes(workers))
    return estimate_fit(spec, shards, tasks, estimates_moments, passes, source, basis)


def _local_workers(beam_args: Sequence[str]) -> int | None:
    """Worker processes on this machine; None where they run elsewhere."""
    return runner.num_local_workers(beam_args) if runner.is_local(beam_args) else None


def _make_spec(args: argparse.Namespace, loaded: LoadedModel, moments: SecondMoments | None, pending: bool) -> Spec:
    """The spec, as far as it is known; `pending`: moments are still to be found out."""
    rows, columns = block_shape(
        loaded.weights, args.layout, args.layer_groups, args.dimension, args.block_rows, args.block_columns
    )
    spec = fitting.make_spec(
        loaded,
        block_rows=rows,
        block_columns=columns,
        max_length=args.max_length,
        moments=moments,
        moments_pending=pending,
        factored=args.moments == "factored",
        precondition=args.preconditioner == "train",
        **{name: getattr(args, name) for name in (*_OF_RECIPE, *SPEC_DEFAULTS)},
    )
    say(f"encodings: {spec.describe_blocks()}")
    if spec.projection == "whitened":
        say(f"projections: whitened by the sample, damping {spec.whitening_damping:g} of the mean eigenvalue")
    if min(rows, columns) < _SMALL_SIDE:
        say("note: so small blocks keep little of a weight's gradient; give a larger --dimension, or --layout blocks")
    return spec


def _side(given: int | str | None, recipe: int | None) -> int | None:
    """A side of the blocks as asked for; None is auto."""
    return None if given == "auto" else recipe if given is None else int(given)


class _Fit:
    """One run of the command: the spec fills up as the parts come in."""

    def __init__(self, args: argparse.Namespace, beam_args: list[str]):
        self.args, self.beam_args = args, beam_args
        self.shards, items = planned(args)
        self.tasks = fitting.choose_sample(items, args.sample_size, args.sample_tasks, args.sample_seed)
        self.checkpoint = checkpoint_files.fingerprints(args.model)
        loaded = load_model(args.model, args.model_dtype, "cpu", args.allow_low_coverage)
        loaded = attributing(loaded, args.attributed)
        say(loaded.coverage.describe())
        self.weights = loaded.weights
        self.moments: SecondMoments | None = None
        if args.optimizer_state:
            self.moments = second_moments.load(args.optimizer_state, loaded.model, loaded.weights)
            self.moments = self.moments.factored() if args.moments == "factored" else self.moments
        self.spec = _make_spec(args, loaded, self.moments, self.moments is None and args.moments != "none")
        is_whitened = self.spec.projection == "whitened"
        self.shared_inputs = covariances.shared_inputs(loaded) if is_whitened else {}
        self.sample = {"size": args.sample_size, "seed": args.sample_seed, "tasks": args.sample_tasks}
        self.moments_uri = storage.join(args.index, "second_moments.safetensors")
        self.projections_uri = storage.join(args.index, "projections.safetensors")
        self.preconditioner_uri = storage.join(args.index, "preconditioner")
        self.partial_uri = storage.join(args.index, "fit", fitting.sample_key(self.tasks, self.spec))

    def is_done(self) -> bool:
        """Whether an index with these settings is there; an index with others is an error."""
        if not storage.exists(storage.join(self.args.index, "spec.json")):
            return False
        stored = Index.open(self.args.index, follow=False).spec
        lines = fitting.differences(stored, self.spec)
        fit_uri = storage.join(self.args.index, "fit.json")
        sample = json.loads(storage.read_bytes(fit_uri)) if storage.exists(fit_uri) else self.sample
        lines += [
            f"sample {name}: {sample.get(name)} there, {self.sample[name]} here"
            for name in self.sample
            if sample.get(name) != self.sample[name]
        ]
        if lines:
            raise TrackStarError(
                f"{self.args.index}: an index with other settings is there already; give another --index, or delete it:\n  "
                + "\n  ".join(lines)
            )
        return True

    def check_sizes(self) -> None:
        """Raises TrackStarError where the sums would not fit into memory."""
        fitting.check_memory(self.spec, _local_workers(self.beam_args) or 1)

    def collect_moments(self) -> None:
        """Saves the second moments; estimates them where no optimizer state was given."""
        if self.spec.moments_fingerprint == PENDING:
            say(f"estimating second moments on {self.args.sample_size:,} documents")
            merged = self._sum_over_sample("squares", fitting.stage_spec(self.spec, moments=False, projections=False))
            sums, count = sample_sums.load_squares(merged)
            self.moments = second_moments.estimated(sums, count)
            self.moments = self.moments.factored() if self.args.moments == "factored" else self.moments
            self.spec = dataclasses.replace(
                self.spec, moments_fingerprint=self.moments.fingerprint, moments_epsilon=self.moments.epsilon
            )
        if self.moments is not None:
            second_moments.save(self.moments, self.moments_uri)

    def collect_projections(self) -> None:
        """Saves whitened projections, of covariances that passes over the sample add up."""
        if self.spec.projection_fingerprint != PENDING:
            return
        exact = self.moments.exact_weights if self.moments is not None else frozenset()
        parts = covariances.plan_parts(self.weights, self.shared_inputs, exact)
        workers = _local_workers(self.beam_args)
        passes = covariances.plan_passes(parts, fitting.pass_bytes(workers))
        if workers is not None:
            fitting.check_pass_memory(passes, workers)
        folder = storage.join(self.partial_uri, "projections")
        present = {info.uri.rsplit("/", 1)[-1] for info in storage.list(folder)}
        for number, group in enumerate(passes, 1):
            if all(whitening.part_file(part) in present for part in group):
                continue
            size = human_bytes(sum(part.num_bytes for part in group))
            say(
                f"whitening: pass {number:,} of {len(passes):,} over {self.args.sample_size:,} documents: {len(group):,} of "
                f"{len(parts):,} covariances, {size} of sums"
            )
            self._whiten(group, folder)
        projections = whitening.collect(storage.join(folder, whitening.part_file(part)) for part in parts)
        whitening.save(projections, self.projections_uri)
        self.spec = dataclasses.replace(self.spec, projection_fingerprint=projections.fingerprint)

    def collect_preconditioner(self) -> None:
        """Sums vec(E) vec(E)ᵀ over the sample and saves R_train with its roots."""
        if self.spec.preconditioner != PENDING:
            return
        say(f"summing the preconditioner over {self.args.sample_size:,} documents")
        total = GramSum.load(
            self._sum_over_sample("gram", fitting.stage_spec(self.spec, moments=True, projections=True))
        )
        fitting.warn_small_sample(total.count, self.spec, say)
        preconditioner = Preconditioner.of(total.mean(), self.spec.damping, total.count)
        preconditioner.save(self.preconditioner_uri)
        self.spec = dataclasses.replace(self.spec, preconditioner=preconditioner.fingerprint)

    def write(self) -> None:
        """Writes the spec, which makes the folder an index, and drops the partial sums."""
        storage.write_bytes(storage.join(self.args.index, "fit.json"), json.dumps(self.sample, indent=2).encode())
        checkpoint_files.record(self.args.index, self.checkpoint)
        Index.create(self.args.index, self.spec)
        storage.delete(storage.join(self.args.index, "fit"))

    def _sum_over_sample(self, kind: str, spec: Spec) -> str:
        """Runs the pipeline that leaves one file of sums; returns its URI."""
        source = self._source(spec)
        target = storage.join(self.partial_uri, f"{kind}.total")
        if not storage.exists(target):
            transform = SumOverSample([task.to_dict() for task in self.tasks], source, kind, self.partial_uri, target)
            runner.run_pipeline(lambda pipeline: pipeline | "SumOverSample" >> transform, self.beam_args)
        return storage.read_bytes(target).decode()

    def _whiten(self, parts: Sequence[Part], folder: str) -> None:
        """Runs one pass, and drops its sums, which are large."""
        sums = storage.join(self.partial_uri, covariances.pass_name(parts))
        is_exact = any(part.exact for part in parts)
        transform = WhitenOverSample(
            [task.to_dict() for task in self.tasks],
            self._source(fitting.stage_spec(self.spec, moments=is_exact, projections=False)),
            parts,
            sums,
            self.spec.to_json(),
            self.moments_uri if self.moments is not None and not all(part.exact for part in parts) else None,
            folder,
        )
        runner.run_pipeline(lambda pipeline: pipeline | "WhitenOverSample" >> transform, self.beam_args)
        storage.delete(sums)

    def _source(self, spec: Spec) -> EncoderSource:
        """Where workers find an encoder without preconditioner."""
        return EncoderSource(
            spec.to_json(),
            self.args.model,
            self.moments_uri if spec.moments != "none" else None,
            None,
            self.args.device,
            self.args.threads_per_worker,
            self.args.allow_low_coverage,
            self.projections_uri if spec.projection == "whitened" else None,
        )


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.fit`."""
    return cli.run_command("fit", argv)


if __name__ == "__main__":
    raise SystemExit(main())
