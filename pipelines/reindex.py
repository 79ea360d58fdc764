"""Brings an index up to date with its corpus: encodes new and changed shards, drops those that are gone, in one commit.

Shards are told apart by name and version (size and modification time, or an object's generation), so what is unchanged is
neither opened nor encoded again. Where nothing has changed, nothing is read, and no model is loaded unless the files of --model
are others than last time. Readers of the last snapshot keep reading it. Started again, a run that broke off takes up where it
stopped.

With --new_index the corpus is encoded into another index, which `trackstar fit` made with other settings; when it is complete,
whoever opens the old one is led to it.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines import cli, cost_flags, flag_types, heavy, options
from pipelines.corpus import add_corpus_arguments, add_reject_argument
from pipelines.cost_flags import add_cost_arguments
from pipelines.model_flags import add_model_arguments
from pipelines.progress import say
from pipelines.scan_flags import Scanning, add_scan_arguments
from pipelines.standing_sets import carry_over, update_all
from trackstar import checkpoint_files, manifest, reindexing, removal
from trackstar.amounts import human_bytes
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import ItemCounts
from trackstar.reindexing import Changes, Plan
from trackstar.spec import Spec
from trackstar.vacuum import plan_vacuum, vacuum
from trackstar.write_lock import WriteLock

if TYPE_CHECKING:
    from pipelines.build_index import Encoded
    from trackstar.encoder import EncoderSource

EXPECTED = (
    "max_length",
    "long_documents",
    "append_eos",
    "batch_tokens",
    "attributed",
    "layout",
    "layer_groups",
    "block_rows",
    "block_columns",
    "projection",
    "projection_seed",
    "whitening_damping",
    "moments",
    "damping",
    "normalisation",
    "storage",
    "stores_text",
)
"""Settings of an index that a command may name, to be sure of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index")
    parser.add_argument(
        "--new_index",
        metavar="DIR",
        help="build this index instead, which `trackstar fit` made with other settings, and then switch to it: whoever opens "
        "--index is led there",
    )
    add_corpus_arguments(parser)
    parser.set_defaults(item_bytes=None, fingerprint=None)  # the index's own
    add_model_arguments(parser)
    add_reject_argument(parser, "encoded")
    parser.add_argument(
        "--max_dropped_fraction",
        type=flag_types.fraction,
        default=0.5,
        metavar="X",
        help="the run is refused where more than this share of the index's shards is gone from the corpus, as with a wrong "
        "mount; 1 allows everything",
    )
    add_cost_arguments(parser)
    group = parser.add_argument_group("standing queries")
    group.add_argument(
        "--update_standing",
        type=options.boolean,
        default=True,
        metavar="true|false",
        help="afterwards bring the proponents of standing queries up to date (`trackstar standing`)",
    )
    add_scan_arguments(group)
    group = parser.add_argument_group("retention")
    group.add_argument(
        "--vacuum_days",
        type=flag_types.natural,
        metavar="N",
        help="afterwards delete the files that no snapshot of the last N days needs, and what killed runs left (delete nothing)",
    )
    group = parser.add_argument_group("drift of the corpus")
    group.add_argument(
        "--drift_sample",
        type=flag_types.natural,
        default=256,
        metavar="N",
        help="new documents that are compared with those of the fit; 0: none",
    )
    group.add_argument(
        "--drift_limit",
        type=float,
        default=1.5,
        metavar="X",
        help="advise a new fit where they are so many times as far from it as old documents",
    )
    group = parser.add_argument_group("what the index must be (refused if it is not; by default nothing is asked)")
    options.add_field_arguments(group, Spec, dict.fromkeys(EXPECTED))


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Re-indexes, or builds the new index and switches; then drift and retention."""
    index = Index.open(args.index)
    if args.new_index:
        return _switch(args, beam_args, index)
    reindexing.check_spec(index.spec, _expected(args), args.index)
    if cost_flags.wanted(args):
        return _describe(args, beam_args, index)
    with WriteLock(index.uri, "reindex") as lock:
        changes = reindex(args, beam_args, index, _plan(args, index), lock)
        after_commit(args, beam_args, index, changes)
    return cli.EXIT_DONE


def reindex(args: argparse.Namespace, beam_args: Sequence[str], index: Index, plan: Plan, lock: WriteLock) -> Changes:
    """Carries out a plan: encodes what is missing and commits the next snapshot.

    Args:
        args: The command's flags.
        beam_args: Beam's flags.
        index: The index.
        plan: Made while `lock` is held.
        lock: The index's; checked right before the commit.

    Returns:
        What is new and what is gone.

    Raises:
        PipelineError: an item failed, too much was rejected, or --model is another than the index's; nothing was committed, and
            what was encoded is kept.
    """
    before = plan.survey.before
    say(f"{index.uri}: {plan.survey.difference.describe()}")
    if plan.is_empty and before is not None:
        _check_model(args, beam_args, index)
        manifest.save(index, plan.manifest())
        say(f"{index.uri}: nothing has changed since version {before.version}; no document was read")
        return Changes.between(index.uri, before, before)
    encoded, plan = _encode(args, beam_args, index, plan)
    manifest.save(index, plan.manifest())
    lock.check()
    index.commit([*plan.keep, *encoded.files])
    changes = Changes.between(index.uri, before, index.snapshot())
    say(
        f"{index.uri}: version {changes.version_after}: {encoded.counts.examples:,} examples in {len(changes.added):,} files "
        f"are new, {sum(file.num_rows for file in changes.removed):,} in {len(changes.removed):,} files are gone, "
        f"{len(plan.keep):,} files stay"
    )
    return changes


def _encode(args: argparse.Namespace, beam_args: Sequence[str], index: Index, plan: Plan) -> "tuple[Encoded, Plan]":
    """Encodes what the plan lacks, and what take-downs meanwhile changed; returns the plan that holds in the end."""
    while True:
        encoded = heavy.build_index.Encoded([], ItemCounts(), [])
        if plan.to_encode:
            index.remove_partial_files()
            encoded = heavy.build_index.encode_items(index, plan.to_encode, _source(args, index), beam_args)
            encoded.check_failures()
        _check_model(args, beam_args, index)
        newer = reindexing.replan(index, plan)
        if newer is plan:
            encoded.check_rejects(index, args.max_reject_fraction)
            return encoded, plan
        plan = newer


def _check_model(args: argparse.Namespace, beam_args: Sequence[str], index: Index) -> None:
    """Has a worker hold --model against the index, where its files are not those of the model that last was.

    Workers that encode do so by themselves; where nothing is to be encoded, another model would go unnoticed.
    """
    files = checkpoint_files.fingerprints(args.model)
    if checkpoint_files.are_others(index.uri, files):
        say(
            f"{args.model}: its files are not those that {index.uri} was last encoded with; the model is loaded to compare"
        )
        heavy.build_index.check_model(_source(args, index), beam_args)
        checkpoint_files.record(index.uri, files)


def after_commit(args: argparse.Namespace, beam_args: Sequence[str], index: Index, changes: Changes) -> None:
    """What follows a commit, while the lock is still held: whoever keeps up with the index's changes does it here."""
    _report_drift(args, index, changes)
    if args.vacuum_days is not None:
        plan = plan_vacuum(index, args.vacuum_days)
        vacuum(index, plan)
        say(f"{index.uri}: deleted {plan.describe()}")
    if args.update_standing:
        update_all(index, Scanning.of(args, beam_args))


def _plan(args: argparse.Namespace, index: Index) -> Plan:
    return reindexing.plan(index, args.corpus, args.item_bytes, args.fingerprint, args.max_dropped_fraction)


def _switch(args: argparse.Namespace, beam_args: list[str], old: Index) -> int:
    """Builds --new_index from the whole corpus and makes it take the old one's place."""
    new = Index.open(args.new_index, follow=False)
    if new.uri == old.uri:
        raise TrackStarError(f"--new_index {args.new_index} is the index that is in use already; leave the flag out")
    reindexing.check_spec(new.spec, _expected(args), args.new_index)
    say(f"{new.uri} takes the place of {old.uri}:\n  {reindexing.describe_switch(old.spec, new.spec)}")
    if cost_flags.wanted(args):
        return _describe(args, beam_args, new, old)
    with WriteLock(old.uri, "reindex --new_index"), WriteLock(new.uri, "reindex") as lock:
        removal.carry_over(old.uri, new.uri)
        plan = _plan_anew(args, new, old)
        changes = reindex(args, beam_args, new, plan, lock)
        if args.update_standing:
            carry_over(old, new, lambda: _source(args, new), beam_args)
        new.supersede(old)
        removal.carry_over(old.uri, new.uri)  # what was taken down while it was built hides there at once, too
        say(f"{old.uri}: whoever opens it from now on is led to {new.uri}; what it holds stays until you delete it")
        after_commit(args, beam_args, new, changes)
    return cli.EXIT_DONE


def _plan_anew(args: argparse.Namespace, new: Index, old: Index) -> Plan:
    """The plan of an index that takes another's place: cut like it, and held against its shards."""
    survey = reindexing.survey(old, args.corpus, None, args.fingerprint, args.max_dropped_fraction)
    item_bytes = args.item_bytes or survey.item_bytes
    if new.versions():
        item_bytes = args.item_bytes  # its own
    return reindexing.plan(new, args.corpus, item_bytes, args.fingerprint, 1.0)


def _source(args: argparse.Namespace, index: Index) -> "EncoderSource":
    return heavy.build_index.encoder_source(args, index)


def _expected(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in EXPECTED}


def _describe(args: argparse.Namespace, beam_args: list[str], index: Index, old: Index | None = None) -> int:
    """Says what a run would do."""
    # Before the corpus is listed: what a process needs to start is how long this one has run when it is imported.
    costs = heavy.costs
    plan = _plan(args, index) if old is None else _plan_anew(args, index, old)
    difference, to_encode = plan.survey.difference, plan.to_encode
    to_read = sum(item.num_bytes for item in to_encode)
    lines = [
        difference.describe(),
        f"to encode        {len(to_encode):,} work items, {human_bytes(to_read)}",
        f"to keep          {len(plan.keep):,} files, {sum(file.num_rows for file in plan.keep):,} examples",
        f"to drop          {len(plan.drop):,} files, {sum(file.num_rows for file in plan.drop):,} examples",
    ]
    if args.vacuum_days is not None:
        lines.append(
            f"to delete        {plan_vacuum(index, args.vacuum_days).describe()}; what this run drops comes later"
        )
    say(f"{index.uri}: a re-index now:\n" + "\n".join(lines))
    if not to_encode:
        return cli.EXIT_DONE
    source, estimate = _source(args, index), heavy.build_index.estimate
    return costs.dry_run(
        args, beam_args, lambda basis: estimate(index, difference.to_encode, to_encode, source, basis, "reindex")
    )


def _report_drift(args: argparse.Namespace, index: Index, changes: Changes) -> None:
    if not (args.drift_sample and changes.added and changes.version_before is not None):
        return
    fresh = {file.uri for file in changes.added}
    old = [file for file in index.snapshot(changes.version_after).files if file.uri not in fresh]
    try:
        found = heavy.drift.measure(index, changes.added, old, args.drift_sample)
    except TrackStarError as error:  # the commit is made: a number that is missing makes no failure of the run
        found = str(error)
    say(f"drift: not measured: {found}" if isinstance(found, str) else found.describe(args.drift_limit))


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.reindex`."""
    return cli.run_command("reindex", argv)


if __name__ == "__main__":
    raise SystemExit(main())
