"""What takes a model or a scan of the index: sets of standing queries are made, ranked and written out."""

import dataclasses
from collections.abc import Sequence

import apache_beam as beam

from pipelines import runner
from pipelines.progress import Progress, say
from pipelines.query_parts import encode_queries
from pipelines.scan_flags import Scanning
from pipelines.scanning import Scan, ScanIndex, Tops, WriteResults, scan_threads
from trackstar import storage
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, PlannedScan, estimate_scans
from trackstar.devices import choose_device
from trackstar.encoder import EncoderSource
from trackstar.errors import TrackStarError
from trackstar.file_groups import group_files
from trackstar.index import DataFile, Index
from trackstar.queries import QuerySet
from trackstar.query_encoding import prepare_queries, queries_key
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.standing import Settings, StandingSet
from trackstar.standing_state import tops_from_bytes, tops_to_bytes
from trackstar.standing_update import Contents, Work


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


def scan(
    standing: StandingSet,
    contents: Contents,
    files: Sequence[DataFile],
    numbers: Sequence[int] | None,
    scanning: Scanning,
) -> Tops:
    """Runs the pipeline that scores some files, for all queries (None) or those of the given numbers."""
    settings, beam_args = standing.settings, scanning.beam_args
    name = standing.scan_name(files, numbers, contents.removals)
    uri = storage.join(standing.work_uri, f"{name}.parquet")
    if not storage.exists(uri):  # else a run that broke off has done it
        queries_uri = standing.queries_uri
        if numbers is not None:
            queries_uri = storage.join(standing.work_uri, f"{name}.safetensors")
            QuerySet.load(standing.queries_uri).choose(numbers).save(queries_uri)
        scan = Scan(
            queries_uri,
            standing.change_uri,
            ScanSettings(settings.capacity, settings.opponents, settings.unit_norm, scanning.device),
            scan_threads(scanning.scan_threads, beam_args),
            contents.removals.save(standing.work_uri),
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


def estimate_update(index: Index, standing: StandingSet, work: Work, scanning: Scanning, basis: Basis) -> Estimated:
    """What an update's scans would take at most."""
    settings = standing.settings
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


def write_results(index: Index, standing: StandingSet, output: str, beam_args: Sequence[str]) -> None:
    """Writes a set's last rankings as a results file."""
    write = WriteResults(standing.queries(), standing.settings.query_set, output)
    source = "StandingSet" >> beam.Create([(index.uri, standing.name)], reshuffle=False)
    runner.run_pipeline(lambda pipeline: pipeline | source | "Tops" >> beam.MapTuple(load_tops) | write, beam_args)


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
