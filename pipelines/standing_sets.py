"""What happens to sets of standing queries: they are made, follow the index, and go over to one that takes its place."""

import argparse
import dataclasses
from collections.abc import Sequence

import apache_beam as beam

from pipelines import runner
from pipelines.errors import PipelineError
from pipelines.progress import Progress, say
from pipelines.scanning import Scan, ScanIndex, Tops, group_files, save_removals, scan_threads
from pipelines.score import encode_queries
from trackstar import standing_report, storage
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, PlannedScan, estimate_scans
from trackstar.encoder import EncoderSource
from trackstar.errors import BusyError, TrackStarError
from trackstar.estimate import human_bytes
from trackstar.index import DataFile, Index
from trackstar.models import choose_device
from trackstar.queries import QuerySet
from trackstar.query_encoding import prepare_queries, queries_key
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.standing import Settings, StandingSet, lock, names_of
from trackstar.standing_state import State, tops_from_bytes, tops_to_bytes
from trackstar.standing_update import Contents, Work, plan, update


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


def create(
    index: Index,
    name: str,
    settings: Settings,
    queries: Sequence[Query],
    source: EncoderSource,
    beam_args: Sequence[str],
    keep_task_hessian: str | None = None,
) -> StandingSet:
    """Encodes queries and writes the set, without a state; call it under the lock.

    Args:
        index: The index.
        name: The set's.
        settings: As for `StandingSet.create`.
        queries: The queries.
        source: The index's encoder.
        beam_args: Beam's flags.
        keep_task_hessian: Folder to keep R_eval in, or None.
    """
    work = storage.join(index.uri, "queries", queries_key(index.spec.hash, queries) + "-standing")
    parts = encode_queries(queries, source, work, beam_args)
    prepared = prepare_queries(index, parts, settings.task_hessian, settings.task_mixing, keep_task_hessian, say)
    standing = StandingSet.create(index, name, settings, queries, prepared)
    storage.delete(work)
    return standing


def update_all(index: Index, scanning: Scanning) -> None:
    """Brings all sets of an index up to date; for whoever committed to it.

    Raises:
        PipelineError: a set could not be; the others were, and the index is whole: the message says how to go on.
    """
    names = names_of(index)
    if not names:
        return
    try:
        with lock(index, "standing update"):
            update_each(index, names, scanning)
    except BusyError as error:
        raise PipelineError(f"standing queries were not brought up to date: {error}\n{go_on(index)}") from error


def update_each(index: Index, names: Sequence[str], scanning: Scanning, rescan: bool = False) -> None:
    """Brings some sets up to date, those that can be; call it under the lock.

    Raises:
        PipelineError: some could not be, each with its reason.
    """
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
            f"are as they were:\n  {shown}\n{go_on(index)}",
            "\n".join(details),
        )


def carry_over(old: Index, new: Index, source: EncoderSource, beam_args: Sequence[str]) -> None:
    """Adds the sets of an index to the one that takes its place, their queries encoded for it; they are not ranked yet.

    Args:
        old: The index that has the sets.
        new: The other; sets that it has already stay as they are.
        source: The new index's encoder.
        beam_args: Beam's flags.
    """
    names = [name for name in names_of(old) if name not in names_of(new)]
    if not names:
        return
    with lock(new, "reindex --new_index"):
        for name in names:
            standing = StandingSet.open(old, name)
            if standing.settings.task_hessian not in ("auto", "none", "identity"):
                say(
                    f"standing queries {name} stay with {old.uri}: their --task_hessian {standing.settings.task_hessian} was "
                    f"made for it; add {storage.join(standing.uri, 'queries.jsonl')} to {new.uri} with `trackstar standing add`"
                )
                continue
            create(new, name, standing.settings, standing.queries(), source, beam_args)


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


def describe_update(index: Index, standing: StandingSet, rescan: bool) -> str:
    """What an update would scan at most."""
    contents = Contents.of(index)
    work = plan(_begin(standing, rescan), contents, standing.settings.top_k)
    return f"{_from_to(standing, standing.state(), contents)} would scan {_describe(work, contents)}"


def estimate_update(index: Index, standing: StandingSet, scanning: Scanning, rescan: bool, basis: Basis) -> Estimated:
    """What these scans would take at most."""
    settings = standing.settings
    work = plan(_begin(standing, rescan), Contents.of(index), settings.top_k)
    scans = [
        PlannedScan(files, len(group_files(files, scanning.scan_bytes)), queries)
        for files, queries in ((work.added, settings.num_queries), (work.others, len(work.again)))
    ]
    return estimate_scans(
        "standing update",
        index.spec,
        scans,
        QuerySet.load(standing.queries_uri),
        ScanSettings(settings.capacity, settings.opponents, settings.unit_norm, str(choose_device(scanning.device))),
        settings.task_hessian,
        scan_threads(scanning.scan_threads, scanning.beam_args),
        basis,
    )


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


def _begin(standing: StandingSet, rescan: bool) -> State:
    settings = standing.settings
    return State.empty(settings.num_queries, settings.capacity, settings.opponents) if rescan else standing.state()


def go_on(index: Index) -> str:
    """What to do after an update that failed."""
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
