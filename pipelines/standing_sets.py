"""What happens to sets of standing queries: they follow the index, and go over to one that takes its place.

A set that is up to date is found to be so without torch; `standing_scans` has what takes a scan or a model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines import heavy
from pipelines.errors import PipelineError
from pipelines.progress import say
from pipelines.scan_flags import Scanning
from trackstar import standing_report, storage
from trackstar.amounts import human_bytes
from trackstar.errors import BusyError, TrackStarError
from trackstar.index import DataFile, Index
from trackstar.standing import StandingSet, lock, names_of
from trackstar.standing_state import State
from trackstar.standing_update import Contents, Work, plan, update
from trackstar.topk import TopK

if TYPE_CHECKING:
    from trackstar.encoder import EncoderSource


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


def carry_over(old: Index, new: Index, source: "Callable[[], EncoderSource]", beam_args: Sequence[str]) -> None:
    """Adds the sets of an index to the one that takes its place, their queries encoded for it; they are not ranked yet.

    Args:
        old: The index that has the sets.
        new: The other; sets that it has already stay as they are.
        source: Gives the new index's encoder.
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
            heavy.standing_scans.create(new, name, standing.settings, standing.queries(), source(), beam_args)


def bring_up_to_date(index: Index, standing: StandingSet, scanning: Scanning, rescan: bool = False) -> None:
    """Updates one set to the index as it is now, and reports what changed; call it under the lock.

    Raises:
        TrackStarError: something went wrong; the set's last state is as it was.
    """
    contents, before = Contents.of(index), standing.state()
    if before.version == contents.snapshot.version and contents.holds(before) and not rescan:
        say(f"standing queries {standing.name}: up to date with version {before.version}")
        return

    def scan(files: Sequence[DataFile], numbers: Sequence[int] | None) -> tuple[TopK, TopK | None]:
        return heavy.standing_scans.scan(standing, contents, files, numbers, scanning)

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


def plan_update(index: Index, standing: StandingSet, rescan: bool) -> tuple[Work, str]:
    """What an update would scan at most, and that in words."""
    contents = Contents.of(index)
    work = plan(_begin(standing, rescan), contents, standing.settings.top_k)
    return work, f"{_from_to(standing, standing.state(), contents)} would scan {_describe(work, contents)}"


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
