"""What a re-index has to do: the corpus as it is now against the shards of the last snapshot.

Shards are told apart by name and version alone, both from a listing: what is unchanged is neither opened nor planned.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trackstar import corpus, manifest, storage
from trackstar.corpus import Shard, WorkItem
from trackstar.corpus.items import line_ranges
from trackstar.errors import TrackStarError
from trackstar.index import DataFile, Index, Snapshot
from trackstar.manifest import Manifest, StoredShard
from trackstar.removed_items import without_removed
from trackstar.spec import Spec

DEFAULT_ITEM_BYTES = 16 << 20
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a commit changed: all that whoever follows the index has to look at.

    Args:
        index_uri: The index.
        version_before: The snapshot that readers had; None where there was none.
        version_after: The one that they have now; equal to `version_before` where nothing changed.
        added: Files that are in the index now and were not.
        removed: Files that were in the index and are not now. They stay on disk until a vacuum.
    """

    index_uri: str
    version_before: int | None
    version_after: int
    added: tuple[DataFile, ...]
    removed: tuple[DataFile, ...]

    @classmethod
    def between(cls, index_uri: str, before: Snapshot | None, after: Snapshot) -> "Changes":
        """Of two snapshots of one index."""
        old = {file.uri: file for file in before.files} if before else {}
        new = {file.uri: file for file in after.files}
        return cls(
            index_uri,
            before.version if before else None,
            after.version,
            tuple(file for uri, file in new.items() if uri not in old),
            tuple(file for uri, file in old.items() if uri not in new),
        )


@dataclasses.dataclass(frozen=True)
class Difference:
    """The corpus against the last snapshot, shard by shard."""

    new: tuple[Shard, ...]
    changed: tuple[Shard, ...]
    dropped: tuple[StoredShard, ...]
    """In the snapshot, and no longer in the corpus."""
    kept: tuple[StoredShard, ...]

    @property
    def to_encode(self) -> list[Shard]:
        """New and changed shards, sorted by URI."""
        return sorted([*self.new, *self.changed], key=lambda shard: shard.uri)

    @property
    def is_empty(self) -> bool:
        """Whether the corpus is as it was."""
        return not (self.new or self.changed or self.dropped)

    def describe(self) -> str:
        """ "2 new, 1 changed, 0 dropped, 97 unchanged shards"."""
        return (
            f"{len(self.new):,} new, {len(self.changed):,} changed, {len(self.dropped):,} dropped, "
            f"{len(self.kept):,} unchanged shards"
        )

    def check_dropped(self, limit: float) -> None:
        """Raises TrackStarError where more than the share `limit` of the snapshot's shards is gone from the corpus."""
        known = len(self.dropped) + len(self.kept) + len(self.changed)
        if not known or len(self.dropped) <= limit * known:
            return
        names = "\n  ".join(shard.uri for shard in self.dropped[:_SHOWN])
        more = f"\n  and {len(self.dropped) - _SHOWN:,} more" if len(self.dropped) > _SHOWN else ""
        raise TrackStarError(
            f"{len(self.dropped):,} of the {known:,} shards that the index holds are gone from the corpus, more than "
            f"--max_dropped_fraction {limit:g} allows, and nothing was changed. Is the right bucket or disk mounted, and does "
            f"--corpus name all shards? If they are to go, run this with --max_dropped_fraction 1. Gone are:\n  {names}{more}"
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a re-index does.

    Args:
        survey: The corpus beside the last snapshot.
        items: All work items of the next snapshot, those of kept shards included, each with what was taken down of it.
        spec_hash: The index's.
    """

    survey: "Survey"
    items: tuple[WorkItem, ...]
    spec_hash: str

    @functools.cached_property
    def _keys(self) -> dict[str, WorkItem]:
        return {item.key(self.spec_hash): item for item in self.items}

    @functools.cached_property
    def keep(self) -> tuple[DataFile, ...]:
        """Files of the snapshot that stay."""
        return tuple(file for file in self._files if file.key in self._keys)

    @functools.cached_property
    def drop(self) -> tuple[DataFile, ...]:
        """Files of the snapshot that go: of dropped shards, of changed ones' old versions, or with something taken down."""
        return tuple(file for file in self._files if file.key not in self._keys)

    @functools.cached_property
    def to_encode(self) -> tuple[WorkItem, ...]:
        """Work items that the snapshot has no file of."""
        present = {file.key for file in self._files}
        return tuple(item for key, item in self._keys.items() if key not in present)

    @property
    def is_empty(self) -> bool:
        """Whether the next snapshot would be the last one."""
        return self.survey.before is not None and not self.to_encode and not self.drop

    def manifest(self) -> Manifest:
        """What the next snapshot will be made of."""
        shards = [*self.survey.difference.to_encode, *map(_shard, self.survey.difference.kept)]
        return Manifest.of(self.spec_hash, shards, self.items, self.survey.item_bytes, self.survey.fingerprint)

    @property
    def _files(self) -> list[DataFile]:
        return self.survey.before.files if self.survey.before else []


@dataclasses.dataclass(frozen=True)
class Survey:
    """The corpus as it is, beside the last snapshot.

    Args:
        before: The last snapshot; None before the first commit.
        item_bytes: What shards are cut by.
        fingerprint: How local shards' versions are told.
        difference: The shards.
    """

    before: Snapshot | None
    item_bytes: int
    fingerprint: storage.FingerprintKind
    difference: Difference


def survey(
    index: Index,
    patterns: Sequence[str],
    item_bytes: int | None = None,
    fingerprint: storage.FingerprintKind | None = None,
    max_dropped_fraction: float = 0.5,
) -> Survey:
    """Compares the corpus with the index's last snapshot; opens no shard.

    Args:
        index: The index.
        patterns: The corpus, as `corpus.expand` takes it.
        item_bytes: As for `corpus.plan`; None: what the index was made with, or 16 MiB for a new one.
        fingerprint: As for `corpus.expand`; None: what the index was made with.
        max_dropped_fraction: Most shards of the snapshot that may be gone, as a share.

    Raises:
        TrackStarError: another item_bytes or fingerprint than the index was made with; too many shards gone.
    """
    before = index.snapshot() if index.versions() else None
    known = manifest.load(index, before) if before else None
    item_bytes, fingerprint = _settings(known, item_bytes, fingerprint)
    shards = corpus.expand(patterns, fingerprint, allow_no_match=max_dropped_fraction >= 1)
    difference = compare(shards, known, before)
    difference.check_dropped(max_dropped_fraction)
    if known is not None and known.item_bytes is None:
        _check_item_bytes(difference.kept, item_bytes)
    return Survey(before, item_bytes, fingerprint, difference)


def plan(
    index: Index,
    patterns: Sequence[str],
    item_bytes: int | None = None,
    fingerprint: storage.FingerprintKind | None = None,
    max_dropped_fraction: float = 0.5,
) -> Plan:
    """Surveys the corpus, and plans work for what is new or changed; arguments and errors are `survey`'s.

    Raises:
        ShardError: a new or changed shard that cannot be planned.
    """
    found = survey(index, patterns, item_bytes, fingerprint, max_dropped_fraction)
    kept = [
        WorkItem(shard.uri, shard.format, shard.size, shard.fingerprint, item.start, item.end)
        for shard in found.difference.kept
        for item in shard.items
    ]
    items = [*kept, *corpus.plan(found.difference.to_encode, found.item_bytes)]
    return Plan(found, tuple(without_removed(index, items)), index.spec.hash)


def replan(index: Index, plan: Plan) -> Plan:
    """The plan without what was taken down since it was made; the same plan where nothing was."""
    items = without_removed(index, [dataclasses.replace(item, removed=()) for item in plan.items])
    return plan if tuple(items) == plan.items else dataclasses.replace(plan, items=tuple(items))


def compare(shards: Iterable[Shard], known: Manifest | None, before: Snapshot | None) -> Difference:
    """Sorts shards into new, changed and kept, and names those that are gone.

    A shard counts as kept if its version is the one that was encoded and the snapshot still has all of its files.
    """
    files = {file.key for file in before.files} if before else set()
    stored: Mapping[str, StoredShard] = {shard.uri: shard for shard in known.shards} if known else {}
    new, changed, kept = [], [], []
    present = set()
    for shard in shards:
        present.add(shard.uri)
        then = stored.get(shard.uri)
        if then is None:
            new.append(shard)
        elif then.fingerprint == shard.fingerprint and all(item.key in files for item in then.items):
            kept.append(then)
        else:
            changed.append(shard)
    dropped = [shard for uri, shard in stored.items() if uri not in present]
    return Difference(tuple(new), tuple(changed), tuple(dropped), tuple(kept))


def check_spec(spec: Spec, wanted: Mapping[str, Any], where: str) -> None:
    """Raises TrackStarError where fields of the index's spec are not those that the command names, with the differences.

    Args:
        spec: The index's.
        wanted: Field → value; None says nothing of a field.
        where: The index, for the message.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    lines = spec.differences(dataclasses.replace(spec, **given))
    if lines:
        raise TrackStarError(
            f"{where}: these settings are not those of the index, and a re-index keeps them. For other settings fit another "
            "index (`trackstar fit --index DIR …`) and give it as --new_index DIR, which builds it and switches:\n  "
            + "\n  ".join(lines)
        )


def describe_switch(old: Spec, new: Spec) -> str:
    """What another spec changes, one line a field, for people."""
    return "\n  ".join(old.differences(new)) or "no setting differs"


def _shard(stored: StoredShard) -> Shard:
    return Shard(stored.uri, stored.format, stored.size, stored.fingerprint)


def _settings(
    known: Manifest | None, item_bytes: int | None, fingerprint: storage.FingerprintKind | None
) -> tuple[int, storage.FingerprintKind]:
    """What the index was made with; another value that is asked for is an error."""
    if known is None:
        return item_bytes or DEFAULT_ITEM_BYTES, fingerprint or "modified"
    if known.item_bytes is not None and item_bytes not in (None, known.item_bytes):
        raise TrackStarError(
            f"--item_bytes {item_bytes:,}: the index was made with {known.item_bytes:,}, and another value makes other work "
            "items of every shard; leave the flag out (or build everything again: trackstar build-index)"
        )
    if fingerprint not in (None, known.fingerprint) and known.shards:
        raise TrackStarError(
            f"--fingerprint {fingerprint}: the index was made with {known.fingerprint}, and with the other every shard "
            "would count as changed; leave the flag out (or build everything again: trackstar build-index)"
        )
    return known.item_bytes or item_bytes or DEFAULT_ITEM_BYTES, known.fingerprint


def _check_item_bytes(kept: Iterable[StoredShard], item_bytes: int) -> None:
    """Where no manifest remembers what shards were cut by: whether `item_bytes` cuts them as they are cut."""
    for shard in kept:
        if shard.format in ("jsonl", "txt"):
            ranges = [(item.start, item.end) for item in shard.items]
            if ranges != line_ranges(shard.size, item_bytes):
                raise TrackStarError(
                    f"--item_bytes {item_bytes:,} is not what the index was made with ({shard.uri} is in {len(ranges)} work "
                    "items, by ranges that this does not give): give the value that `trackstar build-index` had"
                )
