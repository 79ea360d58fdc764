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
import json
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import apache_beam as beam

from pipelines import cli, flag_types, options, runner
from pipelines.build_index import encoder_source
from pipelines.errors import PipelineError
from pipelines.progress import Progress, say
from pipelines.score import (
    Scan,
    ScanIndex,
    Tops,
    WriteResults,
    add_ranking_arguments,
    add_scan_arguments,
    encode_queries,
    group_files,
    save_removals,
    scan_threads,
)
from pipelines.workers import add_model_arguments
from trackstar import standing_report, storage
from trackstar.errors import TrackStarError
from trackstar.estimate import human_bytes
from trackstar.index import DataFile, Index
from trackstar.query_encoding import prepare_queries, queries_key
from trackstar.results import read_queries
from trackstar.scoring import ScanSettings
from trackstar.standing import Settings, StandingSet, check_new_name, lock, names_of, remove
from trackstar.standing_state import State, tops_from_bytes, tops_to_bytes
from trackstar.standing_update import Contents, Work, plan, update

_RANKING = ("top_k", "opponents", "task_hessian", "keep_task_hessian", "task_mixing", "unit_norm")
_MODEL = ("model", "threads_per_worker", "allow_low_coverage")
_SCAN = ("device", "scan_bytes", "scan_threads")


@dataclasses.dataclass(frozen=True)
class Scanning:
    """How a run scans.

    Args:
        device: "auto", "cpu" or a CUDA device.
        scan_bytes: Bytes that one element of work scans.
        scan_threads: Threads a worker; 0: the cores' share.
        beam_args: Beam's flags.
    """

    device: str = "auto"
    scan_bytes: int = 4 << 30
    scan_threads: int = 0
    beam_args: Sequence[str] = ()

    @classmethod
    def of(cls, args: argparse.Namespace, beam_args: Sequence[str]) -> "Scanning":
        """As the flags say."""
        return cls(args.device, args.scan_bytes, args.scan_threads, beam_args)


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
        help="score every file again, as if the set were new; the report stays a comparison",
    )
    group.add_argument("--dry_run", action="store_true", help="say what would be scanned, and scan nothing")
    group = parser.add_argument_group("standing results")
    group.add_argument("--output", metavar="FILE", help="results, JSONL")
    group = parser.add_argument_group("standing list")
    group.add_argument("--json", action="store_true", help="print one JSON object a set instead of text")
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
    index.snapshot()  # says if there is none
    queries = read_queries(args.queries)
    with lock(index, "standing add"):
        work = storage.join(index.uri, "queries", queries_key(index.spec.hash, queries) + "-standing")
        parts = encode_queries(queries, encoder_source(args, index), work, beam_args)
        prepared = prepare_queries(index, parts, args.task_hessian, args.task_mixing, args.keep_task_hessian, say)
        settings = Settings(
            spec_hash=index.spec.hash,
            query_set=args.query_set or PurePosixPath(args.queries).name.split(".")[0],
            num_queries=len(queries),
            top_k=args.top_k,
            spare=args.top_k if args.spare is None else args.spare,
            opponents=args.opponents,
            unit_norm=args.unit_norm,
            task_hessian=args.task_hessian,
            mixing=prepared.mixing,
            changes=prepared.change is not None,
        )
        standing = StandingSet.create(index, args.name, settings, queries, prepared)
        storage.delete(work)
        try:
            bring_up_to_date(index, standing, Scanning.of(args, beam_args))
        except TrackStarError as error:
            raise PipelineError(
                f"standing queries {args.name}: added, but not ranked yet: {error}\n{_go_on(index)}",
                getattr(error, "details", ""),
            ) from error


def update_sets(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Brings the named set, or all, up to date."""
    index = Index.open(args.index)
    names = [args.name] if args.name else names_of(index)
    if not names:
        say(f"{index.uri}: no standing queries")
    if args.dry_run:
        for name in names:
            standing = StandingSet.open(index, name)
            state, contents = _begin(standing, args.rescan), Contents.of(index)
            work = plan(state, contents, standing.settings.top_k)
            say(f"{_from_to(standing, standing.state(), contents)} would scan {_describe(work, contents)}")
        return
    with lock(index, "standing update"):
        _update_each(index, names, Scanning.of(args, beam_args), args.rescan)


def update_all(index: Index, scanning: Scanning) -> None:
    """Brings all sets of an index up to date; for whoever committed to it.

    Raises:
        PipelineError: a set could not be; the others were, and the index is whole: the message says how to go on.
        BusyError: another process is updating them.
    """
    names = names_of(index)
    if names:
        with lock(index, "standing update"):
            _update_each(index, names, scanning)


def write_results(args: argparse.Namespace, beam_args: list[str]) -> None:
    """Writes the results of a set, brought up to date first."""
    index = Index.open(args.index)
    standing = StandingSet.open(index, args.name)
    with lock(index, "standing results"):
        bring_up_to_date(index, standing, Scanning.of(args, beam_args))
        write = WriteResults(standing.queries(), standing.settings.query_set, args.output)
        source = "StandingSet" >> beam.Create([(index.uri, args.name)], reshuffle=False)
        runner.run_pipeline(lambda pipeline: pipeline | source | "Tops" >> beam.MapTuple(load_tops) | write, beam_args)
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


def bring_up_to_date(index: Index, standing: StandingSet, scanning: Scanning, rescan: bool = False) -> None:
    """Updates one set to the index as it is now, and reports what changed; call it under the lock.

    Raises:
        TrackStarError: something went wrong; the set's last state is as it was.
    """
    contents, before = Contents.of(index), standing.state()
    if before.version == contents.snapshot.version and contents.holds(before) and not rescan:
        say(f"standing queries {standing.name}: up to date with version {before.version}")
        return

    def scan(files: Sequence[DataFile], numbers: Sequence[int] | None) -> Tops:
        return _scan(standing, contents, files, numbers, scanning)

    after, work = update(_begin(standing, rescan), contents, standing.settings.top_k, scan)
    lines = [f"{_from_to(standing, before, contents)} scanned {_describe(work, contents)}"]
    if before.version >= 0:
        changes = standing_report.compare(before, after, contents, standing.queries(), standing.settings.top_k)
        report = standing.changes_uri(after)
        standing_report.write(report, changes, after.version, before.version)
        lines += [*standing_report.summary(changes, standing.settings.num_queries), f"  all of it: {report}"]
    standing.save(after, before)
    storage.delete(standing.work_uri)
    say("\n".join(lines))


def save_tops(tops: Tops | None, uri: str) -> None:
    """Leaves the rankings of a scan in a file."""
    if tops is None:
        raise TrackStarError("the scan gave nothing: the pipeline lost its elements")
    storage.write_bytes(uri, tops_to_bytes(tops))


def load_tops(index_uri: str, name: str) -> Tops:
    """A set's last rankings, with the files' URIs."""
    index = Index.open(index_uri)
    standing = StandingSet.open(index, name)
    proponents, opponents = (
        None if top is None else dataclasses.replace(top, uris=tuple(map(index.item_uri, top.uris)))
        for top in standing.state().tops(standing.settings.top_k)
    )
    assert proponents is not None
    return proponents, opponents


def _scan(
    standing: StandingSet,
    contents: Contents,
    files: Sequence[DataFile],
    numbers: Sequence[int] | None,
    scanning: Scanning,
) -> Tops:
    """Runs the pipeline that scores some files, for all queries or some."""
    settings, beam_args = standing.settings, scanning.beam_args
    name = standing.scan_name(files, numbers, contents.removals)
    uri = storage.join(standing.work_uri, f"{name}.parquet")
    if not storage.exists(uri):  # else a run that broke off has done it
        queries_uri = standing.queries_uri
        if numbers is not None:
            queries_uri = storage.join(standing.work_uri, f"{name}.safetensors")
            standing.save_some(numbers, queries_uri)
        scan = Scan(
            queries_uri,
            standing.change_uri,
            ScanSettings(settings.capacity, settings.opponents, settings.unit_norm, scanning.device),
            scan_threads(scanning.scan_threads, beam_args),
            save_removals(contents.removals, standing.work_uri),
        )
        shown = [file for file in files if file.shard not in contents.removals.shards]
        elements = group_files(shown, scanning.scan_bytes)
        total = float(sum(file.num_bytes for file in shown))
        with Progress("scanning", total, len(elements), "examples", enabled=runner.is_local(beam_args)) as progress:
            transform = ScanIndex(elements, scan, progress.reporter)
            runner.run_pipeline(
                lambda pipeline: pipeline | transform | "SaveTops" >> beam.Map(save_tops, uri), beam_args
            )
    return tops_from_bytes(storage.read_bytes(uri), uri)


def _update_each(index: Index, names: Sequence[str], scanning: Scanning, rescan: bool = False) -> None:
    failures, details = [], []
    for name in names:
        try:
            bring_up_to_date(index, StandingSet.open(index, name), scanning, rescan)
        except TrackStarError as error:
            failures.append(f"{name}: {error}")
            details.append(getattr(error, "details", ""))
    if failures:
        shown = "\n  ".join(failures)
        raise PipelineError(
            f"{len(failures)} of {len(names)} set(s) of standing queries could not be brought up to date; their last rankings "
            f"are as they were:\n  {shown}\n{_go_on(index)}",
            "\n".join(details),
        )


def _begin(standing: StandingSet, rescan: bool) -> State:
    settings = standing.settings
    return State.empty(settings.num_queries, settings.capacity, settings.opponents) if rescan else standing.state()


def _go_on(index: Index) -> str:
    return f"The index is whole. Mend this and run `trackstar standing update --index {index.uri}`."


def _from_to(standing: StandingSet, before: State, contents: Contents) -> str:
    start = "" if before.version < 0 else f"version {before.version} → "
    return f"standing queries {standing.name}: {start}version {contents.snapshot.version}:"


def _describe(work: Work, contents: Contents) -> str:
    files = contents.snapshot.files
    total = sum(file.num_bytes for file in files)
    text = (
        f"{work.num_files:,} of {len(files):,} files ({human_bytes(work.num_bytes)} of {human_bytes(total)}), "
        f"{len(work.added):,} of them new"
    )
    return f"{text}; {len(work.again):,} queries against all files" if work.again else text


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
    "update": _Action(update_sets, (), ("name", "rescan", "dry_run", *_SCAN)),
    "results": _Action(write_results, ("name", "output"), _SCAN),
    "list": _Action(list_sets, (), ("json",), runs_pipelines=False),
    "remove": _Action(remove_set, ("name",), (), runs_pipelines=False),
}


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.standing`."""
    return cli.run_command("standing", argv)


if __name__ == "__main__":
    raise SystemExit(main())
