"""Which work items hold what was taken down, so that the next re-index writes their files anew without it.

    removed/hits/<name>.jsonl    {"file": <key>, "ids": […], "rows": n}: a file of the index holds examples of these ids
    removed/items/<key>.json     {"item": <key without removals>, "ids": […]}: this file was written without these ids

An item's key has the ids that it is without as an extra part, so content stays a function of the name, and all other items
keep their files. Three things keep the two folders complete whatever runs at the same time: a take-down looks through the
files once more after it was published; a run that encodes reads what was taken down anew before it commits, and looks
through the files that no snapshot names yet; and what a take-down that broke off left to do, the next run does.
"""

import concurrent.futures
import dataclasses
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from trackstar import removal, storage
from trackstar.corpus import Reject, WorkItem, read
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.item_footer import read_footer
from trackstar.removal import Removals, TakeDown

_READERS = 16
_HITS = removal.FOLDER + "/hits"
_ITEMS = removal.FOLDER + "/items"
Tell = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Hit:
    """One file of the index that holds what was taken down.

    Args:
        file: Its key.
        ids: The ids on the take-down's list that are in it, sorted.
        rows: How many of its rows they take.
    """

    file: str
    ids: tuple[str, ...]
    rows: int


def load_removals(index: Index) -> Removals:
    """All that was taken down of the index."""
    return removal.load(index.uri, _splits(index))


def find_hits(index: Index, keys: Iterable[str], removals: Removals, tell: Tell = lambda done: None) -> list[Hit]:
    """Looks for ids in files of the index: of each file the ids are read and nothing else.

    Args:
        index: The index.
        keys: Which files; one that is gone meanwhile is passed over.
        removals: What to look for; shards do not count.
        tell: Told, after each file, how many are done.

    Returns:
        The files that hold some, sorted by key.

    Raises:
        TrackStarError: a file is damaged.
    """
    if not removals.ids:
        return []
    hits = []
    rejects = index.keys_with_rejects()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        looks = pool.map(lambda key: _look(index, key, removals, key in rejects), sorted(keys))
        for done, hit in enumerate(looks, start=1):
            tell(done)
            if hit is not None:
                hits.append(hit)
    return hits


def take_down(
    index: Index, removals: Removals, hits: Sequence[Hit] | None, looked_through: set[str], reason: str, rows: int
) -> TakeDown:
    """Publishes a take-down, and then what it hits.

    Args:
        index: The index.
        removals: What is to be taken down.
        hits: What `find_hits` found; None where it could not look through all: the next run that encodes then does.
        looked_through: Keys of the files in which it looked; what has come since is looked through after publishing.
        reason: For the audit log.
        rows: Rows of the last snapshot that it takes down.
    """
    version = max(index.versions(), default=None)
    found = {name for hit in hits or () for name in hit.ids}
    entry = TakeDown.new(removals.ids, removals.shards, reason, version, rows, len(removals.ids - found))
    entry.publish(index.uri)
    if hits is None:
        return entry
    later = find_hits(index, index.existing_keys() - looked_through, removals)
    _write_hits(index, entry.name, [*hits, *later])
    return entry


def without_removed(index: Index, items: Sequence[WorkItem]) -> list[WorkItem]:
    """The items as they are to be encoded now: without removed shards, each with the ids that it is without.

    Call it when the work has been planned, and again before the commit: what was taken down meanwhile changes the keys of
    the items that it hits. Where nothing was ever taken down it costs one listing.

    Raises:
        TrackStarError: a take-down, or a file of the index that has to be looked through, is damaged.
    """
    removals = load_removals(index)
    if not removals:
        return list(items)
    kept = [item for item in items if item.shard not in removals.shards]
    if not removals.ids:
        return kept
    _finish_take_downs(index, removals)
    planned = _with_known(index, kept)
    # Files that a broken-off run, or one that did not know of a take-down yet, left; committed ones were looked through.
    committed = {file.key for file in index.snapshot().files} if index.versions() else set()
    loose = index.existing_keys() & {item.key(index.spec.hash) for item in planned} - committed
    hits = find_hits(index, loose, removals)
    if not hits:
        return planned
    _write_hits(index, f"files-{uuid.uuid4().hex[:12]}", hits)
    return _with_known(index, kept)


def discover(index: Index, item: WorkItem, removals: Removals) -> WorkItem:
    """An item that is to be encoded, with all the ids in it that were taken down: it is read through for them.

    What is found is kept for the launcher, before the item's file is there.

    Raises:
        ShardError: the shard cannot be read through.
    """
    if not removals.ids:
        return item
    found = set(item.removed)
    for record in read(item):
        if isinstance(record, Reject):
            matched = removals.matched(record.name)
        else:
            matched = removals.matched(record.example_id)
            found.update(removals.passages.get(record.example_id, ()) if matched is None else ())
        found.update(() if matched is None else [matched])
    item = _with(item, found)
    remember(index, item)
    return item


def remember(index: Index, item: WorkItem) -> None:
    """Keeps which ids the item's file is without; call it before that file is written."""
    if item.removed:
        fields = {"item": base_key(index, item), "ids": list(item.removed)}
        uri = storage.join(index.uri, _ITEMS, item.key(index.spec.hash) + ".json")
        storage.write_bytes(uri, removal.sealed([fields]))


def written_without(index: Index) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of each file that was written without something: the item's key as if there were no removals, and the ids."""
    uris = [info.uri for info in storage.list(storage.join(index.uri, _ITEMS)) if info.uri.endswith(".json")]
    found = {}
    for uri, content in zip(uris, removal.read_all(uris), strict=True):
        [fields] = removal.unsealed(content, uri)
        found[uri.rsplit("/", 1)[-1].removesuffix(".json")] = (fields["item"], tuple(fields["ids"]))
    return found


def all_hits(index: Index) -> list[Hit]:
    """All files that were ever found to hold what was taken down; some are gone since."""
    found = []
    uris = [info.uri for info in storage.list(storage.join(index.uri, _HITS))]
    for uri, content in zip(uris, removal.read_all(uris), strict=True):
        for fields in removal.unsealed(content, uri):
            found.append(Hit(fields["file"], tuple(fields["ids"]), fields["rows"]))
    return found


def files_to_purge(index: Index) -> set[str]:
    """Keys of files that hold what was taken down and that the last snapshot does not name.

    When they are deleted (`Index.delete_item`), its bytes are gone. Older snapshots that name them cannot be read any more.
    """
    removals = load_removals(index)
    if not removals:
        return set()
    if removals.ids:
        _finish_take_downs(index, removals)
    current = {file.key for file in index.snapshot().files} if index.versions() else set()
    old = index.existing_keys() - current
    found = old & {hit.file for hit in all_hits(index)}
    if removals.shards:
        found |= {key for key in old - found if _shard_of(index, key) in removals.shards}
    return found


def base_key(index: Index, item: WorkItem) -> str:
    """The item's key as if nothing had been taken down."""
    return dataclasses.replace(item, removed=()).key(index.spec.hash)


def predecessor(
    index: Index, item: WorkItem, present: set[str], without: Mapping[str, tuple[str, tuple[str, ...]]]
) -> str | None:
    """Key of a file from which the item's own follows by leaving rows out, if there is one.

    Args:
        index: The index.
        item: An item with removals.
        present: Keys of the files there are.
        without: What `written_without` gave.
    """
    base = base_key(index, item)
    if base in present:
        return base
    if _splits(index):  # which of a document's passages were counted already cannot be told
        return None
    wanted = set(item.removed)
    usable = [key for key, (of, ids) in without.items() if of == base and key in present and wanted.issuperset(ids)]
    return min(usable, default=None)


def _look(index: Index, key: str, removals: Removals, has_rejects: bool) -> Hit | None:
    uri = index.item_uri(key)
    if not storage.exists(uri):
        return None
    with storage.open_input(uri) as source:
        footer = read_footer(uri, source)
        try:
            column = pq.ParquetFile(source, metadata=footer).read(["example_id"]).column("example_id")
        except (pa.ArrowException, OSError) as error:
            raise TrackStarError(
                f"{uri}: its ids cannot be read ({error}); run `trackstar verify --repair`, then this again"
            ) from error
    names = column.combine_chunks().cast(pa.string())
    rows = removals.rows(names)
    covered = names.filter(pa.array(rows)).to_pylist() if rows is not None else []
    rejected = [reject.name for reject in index.rejects_of(key)] if has_rejects else []
    ids = {matched for name in [*covered, *rejected] if (matched := removals.matched(name)) is not None}
    return Hit(key, tuple(sorted(ids)), len(covered)) if ids else None


def _shard_of(index: Index, key: str) -> str | None:
    item = index.has_item(key)
    return None if item is None else item.shard


def _finish_take_downs(index: Index, removals: Removals) -> None:
    """Looks through the files on behalf of take-downs that broke off between being published and having done so."""
    done = {info.uri.rsplit("/", 1)[-1].removesuffix(".jsonl") for info in storage.list(storage.join(index.uri, _HITS))}
    for entry in removal.take_downs(index.uri):
        if entry.name not in done and entry.ids:
            own = Removals(frozenset(entry.ids), splits=removals.splits)
            _write_hits(index, entry.name, find_hits(index, index.existing_keys(), own))


def _known(index: Index) -> dict[str, set[str]]:
    """By key without removals: the ids that are known to be in an item and taken down."""
    without = written_without(index)
    known: dict[str, set[str]] = {}
    for base, ids in without.values():
        known.setdefault(base, set()).update(ids)
    for hit in all_hits(index):
        base = without[hit.file][0] if hit.file in without else hit.file
        known.setdefault(base, set()).update(hit.ids)
    return known


def _with_known(index: Index, items: Sequence[WorkItem]) -> list[WorkItem]:
    known = _known(index)
    return [_with(item, known.get(base_key(index, item), ())) for item in items]


def _with(item: WorkItem, ids: Iterable[str]) -> WorkItem:
    return dataclasses.replace(item, removed=tuple(sorted(ids)))


def _write_hits(index: Index, name: str, hits: Sequence[Hit]) -> None:
    uri = storage.join(index.uri, _HITS, name + ".jsonl")
    storage.write_bytes(uri, removal.sealed([dataclasses.asdict(hit) for hit in hits]))


def _splits(index: Index) -> bool:
    return index.spec.long_documents == "split"
