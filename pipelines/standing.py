"""Standing queries: query sets that are kept with the index, and whose proponents follow it.

  standing add      encodes a set of queries, once, and ranks the whole index for it
  standing update   brings the rankings up to date from what changed in the index; `trackstar reindex` does so by itself
  standing results  writes a set's results, brought up to date first, as `trackstar score` would
  standing list     shows the sets
  standing remove   deletes a set

Encodings, R_eval and λ stay what they were when the set was added, so an example's score never changes: what is new in a ranking
is new in the corpus. An update reads the files that are new in the index, and all of them only for queries that lost more
proponents than --spare. It is told in INDEX/standing/NAME/changes-….jsonl which proponents are new and which are gone.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from pipelines import cli, cost_flags, flag_types, heavy, options
from pipelines.cost_flags import add_cost_arguments
from pipelines.errors import PipelineError
from pipelines.model_flags import add_model_arguments
from pipelines.progress import say
from pipelines.scan_flags import Scanning, add_ranking_arguments, add_scan_arguments, query_set_of
from pipelines.standing_sets import bring_up_to_date, go_on, plan_update, update_each
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.results import read_queries
from trackstar.standing import Settings, StandingSet, check_new_name, lock, names_of, remove
from trackstar.standing_update import Contents

_RANKING = ("top_k", "opponents", "task_hessian", "keep_task_hessian", "task_mixing", "unit_norm")
_MODEL = ("model", "threads_per_worker", "allow_low_coverage")
_SCAN = ("device", "scan_bytes", "scan_threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("action", choices=list(_ACTIONS), help="what to do")
    parser.add_argument("--index", required=True, metavar="DIR", help="the index")
    parser.add_argument("--name", metavar="NAME", help="name of the set; without it, update takes all")
    group = parser.add_argument_group("standing add")
    group.add_argument("--queries", metavar="FILE", help="JSONL: inputs_plaintext, targets_plaintext, …")
    group.add_argument("--query_set", metavar="NAME", help="the results' field query_set (the queries file's name)")
    group.add_argument(
        "--spare",
        type=flag_types.natural,
        metavar="N",
        help="further rows that are kept of each query: one that loses no more of its best than these needs no pass over the "
        "whole index (as many as --top_k)",
    )
    add_ranking_arguments(parser)
    add_model_arguments(parser, required=False)
    group = parser.add_argument_group("standing update")
    group.add_argument(
        "--rescan",
        action="store_true",
        help="score every file again, as if the set were new, for example after `trackstar verify --repair`; the report stays a "
        "comparison",
    )
    add_cost_arguments(parser, json=False)
    group = parser.add_argument_group("standing results")
    group.add_argument("--output", metavar="FILE", help="results, JSONL")
    group = parser.add_argument_group("standing list, standing update --dry_run")
    group.add_argument(
        "--json", action="store_true", help="print one JSON object a set (update: an estimate) instead of text"
    )
    add_scan_arguments(parser.add_argument_group("the scan (add, update, results)"))


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Does what `action` says."""
    action = _ACTIONS[args.action]
    action.check(args, beam_args)
    action.run(args, beam_args)
    return cli.EXIT_DONE


def add(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Encodes the queries, keeps them as a set, and ranks the index for it."""
    index = Index.open(args.index)
    check_new_name(index, args.name)
    index.spec.check_unit_norm(args.unit_norm)
    index.snapshot()  # says if there is none
    queries = read_queries(args.queries)
    settings = Settings(
        query_set=query_set_of(args),
        top_k=args.top_k,
        spare=args.top_k if args.spare is None else args.spare,
        opponents=args.opponents,
        unit_norm=args.unit_norm,
        task_hessian=args.task_hessian,
        task_mixing=args.task_mixing,
    )
    source = heavy.build_index.encoder_source(args, index)
    with lock(index, "standing add"):
        standing = heavy.standing_scans.create(
            index, args.name, settings, queries, source, beam_args, args.keep_task_hessian
        )
        try:
            bring_up_to_date(index, standing, Scanning.of(args, beam_args))
        except TrackStarError as error:
            raise PipelineError(
                f"standing queries {args.name}: added, but not ranked yet: {error}\n{go_on(index)}",
                getattr(error, "details", ""),
            ) from error


def update_sets(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Brings the named set, or all, up to date."""
    if cost_flags.wanted(args):
        _describe_updates(args, beam_args)
        return
    index = Index.open(args.index)
    names = _names(args, index)
    with lock(index, "standing update"):
        update_each(index, names, Scanning.of(args, beam_args), args.rescan)


def _describe_updates(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Says what an update would do."""
    # First of all: what a process needs to start is how long this one has run when it is imported.
    costs = heavy.costs
    index, scanning = Index.open(args.index), Scanning.of(args, beam_args)
    for name in _names(args, index):
        standing = StandingSet.open(index, name)
        work, described = plan_update(index, standing, args.rescan)
        say(described)
        estimate = functools.partial(heavy.standing_scans.estimate_update, index, standing, work, scanning)
        costs.dry_run(args, beam_args, estimate)


def _names(args: argparse.Namespace, index: Index) -> list[str]:
    names = [args.name] if args.name else names_of(index)
    if not names:
        say(f"{index.uri}: no standing queries")
    return names


def write_results(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Writes the results of a set, brought up to date first."""
    index = Index.open(args.index)
    standing = StandingSet.open(index, args.name)
    with lock(index, "standing results"):
        bring_up_to_date(index, standing, Scanning.of(args, beam_args))
        heavy.standing_scans.write_results(index, standing, args.output, beam_args)
    say(f"{args.output}: {standing.settings.num_queries:,} queries (version {standing.state().version})")


def list_sets(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Shows the sets."""
    index = Index.open(args.index)
    sets = StandingSet.all(index)
    contents = Contents.of(index) if sets else None
    if not sets and not args.json:
        say(f"{index.uri}: no standing queries; add some with `trackstar standing add`")
    for standing in sets:
        assert contents is not None
        settings, state = standing.settings, standing.state()
        fields: dict[str, Any] = {
            "name": standing.name,
            **dataclasses.asdict(settings),
            "version": None if state.version < 0 else state.version,
            "up_to_date": contents.holds(state),
        }
        if args.json:
            print(json.dumps(fields, ensure_ascii=False))
            continue
        ends = "proponents and opponents" if settings.opponents else "proponents"
        ranked = "not ranked yet" if state.version < 0 else f"of version {state.version}"
        current = "up to date" if fields["up_to_date"] else f"the index is at version {contents.snapshot.version}"
        print(
            f"{standing.name}: {settings.num_queries:,} queries, {settings.top_k:,} {ends} each, "
            f"{settings.spare:,} spare; {ranked}, {current}"
        )


def remove_set(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Deletes a set."""
    index = Index.open(args.index)
    with lock(index, "standing remove"):
        remove(index, args.name)
    say(f"{index.uri}: standing queries {args.name} are deleted")


@dataclasses.dataclass(frozen=True)
class _Action:
    """One of the command's actions.

    Args:
        run: Does it.
        needs: Flags that have to be there.
        takes: Flags that may be.
        runs_pipelines: Whether it takes Beam's flags.
    """

    run: Callable[[argparse.Namespace, list[str]], None]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    runs_pipelines: bool = True

    def check(self, args: argparse.Namespace, beam_args: Sequence[str]) -> None:
        """Raises UsageError where flags are missing, or given that mean nothing here."""
        parser = options.Parser()
        add_arguments(parser)
        given = {name for name, value in vars(args).items() if value != parser.get_default(name)} - {"action", "index"}
        missing = [f"--{name}" for name in self.needs if name not in given]
        if missing:
            raise options.UsageError(f"standing {args.action} needs {', '.join(missing)}")
        others = sorted(given - {*self.needs, *self.takes})
        if others:
            fixed = " (fixed by `standing add`)" if set(others) & {"queries", "spare", *_RANKING, *_MODEL} else ""
            flags = ", ".join(f"--{name}" for name in others)
            raise options.UsageError(f"standing {args.action} does not take {flags}{fixed}")
        if beam_args and not self.runs_pipelines:
            flags = " ".join(beam_args)
            raise options.UsageError(
                f"standing {args.action} runs no pipeline and does not take flags of Beam: {flags}"
            )


_ACTIONS = {
    "add": _Action(add, ("name", "queries", "model"), ("query_set", "spare", *_RANKING, *_MODEL, *_SCAN)),
    "update": _Action(update_sets, (), ("name", "rescan", *cost_flags.FLAGS, *_SCAN)),
    "results": _Action(write_results, ("name", "output"), _SCAN),
    "list": _Action(list_sets, (), ("json",), runs_pipelines=False),
    "remove": _Action(remove_set, ("name",), (), runs_pipelines=False),
}


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.standing`."""
    return cli.run_command("standing", argv)


if __name__ == "__main__":
    raise SystemExit(main())
