"""Two indexes of one corpus, a cheap one and a better one: whether they are that, and which of their files hold the same records.

A shard counts as the same where its URI and its version are. Of such a shard, the files of the two indexes that can hold the same
records are those whose ranges overlap, however each index has cut it. Which row is which is told by the rows (`rescoring`).
"""

import bisect
import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from trackstar import manifest
from trackstar.errors import TrackStarError
from trackstar.index import DataFile, Index, Snapshot
from trackstar.manifest import StoredItem, StoredShard
from trackstar.removal import Removals
from trackstar.removed_items import load_removals
from trackstar.spec import Spec

_OF_MODEL = ("model_architecture", "model_fingerprint", "model_dtype", "tokenizer_fingerprint", "vocabulary_size")
_OF_TEXT = ("max_length", "long_documents", "append_eos")
_SHOWN = 10


def check_specs(cheap: Index, better: Index) -> None:
    """Whether what one index proposes can be scored again under the other's spec.

    Raises:
        TrackStarError: they are one index, or were made with different models, or cut documents into different examples.
    """
    if cheap.uri == better.uri:
        raise TrackStarError(
            f"{better.uri}: the same index twice; the second pass wants another, of the same corpus, with a better form"
        )
    if cheap.spec.hash == better.spec.hash:
        raise TrackStarError(
            f"{cheap.uri} and {better.uri} have the same spec ({cheap.spec.hash}): a second pass would give the same scores"
        )
    for fields, what in (
        (_OF_MODEL, "were made with different models, so their scores are not of the same thing"),
        (_OF_TEXT, "cut documents into different examples, so that none of one is sure to be in the other"),
    ):
        lines = _differences(cheap.spec, better.spec, fields)
        if lines:
            shown = "\n  ".join(lines)
            raise TrackStarError(
                f"{cheap.uri} (here) and {better.uri} (there) {what}:\n  {shown}\nFit one of them again with the other's settings"
            )


def _differences(one: Spec, other: Spec, fields: Iterable[str]) -> list[str]:
    return [line for line in one.differences(other) if line.split(":")[0] in fields]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A shard that the two snapshots do not hold in the same version.

    Args:
        shard: Its URI.
        how: "only in <index>" or "in another version in <index>".
        rows: Its examples; where both hold it, in the index that has more.
    """

    shard: str
    how: str
    rows: int


@dataclasses.dataclass(frozen=True)
class IndexPair:
    """What two passes go through.

    Args:
        cheap_files: Files of the cheap index that the first pass scans: those of shards that the better one holds, too.
        better_files: All files of the better index.
        links: By the URI of a cheap file: the better ones that can hold the same records.
        removals: What was taken down of either index.
        one_sided: By index: how many ids and shards were taken down of the other one alone.
        differences: Shards that are not the same in both.
        missing: Share of all examples that is in those shards.
    """

    cheap_files: list[DataFile]
    better_files: list[DataFile]
    links: dict[str, list[str]]
    removals: Removals
    one_sided: dict[str, int]
    differences: tuple[Difference, ...] = ()
    missing: float = 0.0

    def check(self, limit: float, cheap: str, better: str) -> None:
        """Raises TrackStarError where a larger share than `limit` of the examples is in shards that are not the same in both."""
        if not self.cheap_files and self.differences:
            shown = "\n  ".join(f"{found.shard}: {found.how}" for found in self.differences[:_SHOWN])
            raise TrackStarError(
                f"{cheap} and {better} are of different corpora: no shard is in both in the same version. Shards are known by "
                f"their URIs, so a corpus that was moved is another one. The first:\n  {shown}"
            )
        if self.missing > limit:
            raise TrackStarError(
                f"{cheap} and {better} are not of the same corpus: {self.describe()}\n"
                "Bring both up to date with `trackstar reindex`, or name snapshots that agree (--version, --better_version); "
                "--max_missing_fraction X leaves these examples out and goes on"
            )

    def describe(self) -> str:
        """The differences in words, the first of them by name."""
        lines = [f"{found.shard}: {found.how} ({found.rows:,} examples)" for found in self.differences[:_SHOWN]]
        if len(self.differences) > _SHOWN:
            lines.append(f"and {len(self.differences) - _SHOWN:,} more")
        shown = "\n  ".join(lines)
        return f"{len(self.differences):,} shard(s) with {self.missing:.2%} of the examples differ:\n  {shown}"


def union_of_removals(cheap: Index, better: Index) -> tuple[Removals, dict[str, int]]:
    """All that was taken down of either index; and by index, how many ids and shards were taken down of the other one alone."""
    one, other = load_removals(cheap), load_removals(better)
    both = Removals(one.ids | other.ids, one.shards | other.shards, one.splits or other.splits)
    lacking = {
        index.uri: len(both.ids - own.ids) + len(both.shards - own.shards)
        for index, own in ((cheap, one), (better, other))
    }
    return both, {uri: count for uri, count in lacking.items() if count}


def pair(cheap: Index, cheap_snapshot: Snapshot, better: Index, better_snapshot: Snapshot) -> IndexPair:
    """Compares two snapshots, shard by shard.

    Raises:
        TrackStarError: a file that has to be asked is gone or damaged.
    """
    removals, one_sided = union_of_removals(cheap, better)
    cheap_shards = _shards(cheap, cheap_snapshot, removals)
    better_shards = _shards(better, better_snapshot, removals)
    cheap_rows, better_rows = _rows(cheap_snapshot), _rows(better_snapshot)
    differences = []
    links: dict[str, list[str]] = {}
    total = missing = 0
    for uri in sorted(cheap_shards.keys() | better_shards.keys()):
        one, other = cheap_shards.get(uri), better_shards.get(uri)
        rows = max(cheap_rows[uri], better_rows[uri])
        total += rows
        how = ""
        if one is None or other is None:
            how = f"only in {better.uri if one is None else cheap.uri}"
        elif not _same_version(one, other):
            how = f"in another version in {better.uri}"
        else:
            for key, others in _overlaps(one.items, other.items).items():
                links[cheap.item_uri(key)] = [better.item_uri(found) for found in others]
        if how:
            differences.append(Difference(uri, how, rows))
            missing += rows
    return IndexPair(
        [file for file in cheap_snapshot.files if file.uri in links],
        [file for file in better_snapshot.files if file.shard not in removals.shards],
        links,
        removals,
        one_sided,
        tuple(differences),
        missing / max(1, total),
    )


def alone(cheap: Index, snapshot: Snapshot) -> IndexPair:
    """Where the better index holds nothing, and gives its spec alone."""
    removals = load_removals(cheap)
    files = [file for file in snapshot.files if file.shard not in removals.shards]
    return IndexPair(files, [], {file.uri: [] for file in files}, removals, {})


def _shards(index: Index, snapshot: Snapshot, removals: Removals) -> dict[str, StoredShard]:
    """The snapshot's shards by URI, without what was taken down and what has no files."""
    found = manifest.load(index, snapshot).shards
    return {shard.uri: shard for shard in found if shard.items and shard.uri not in removals.shards}


def _rows(snapshot: Snapshot) -> Mapping[str, int]:
    """Examples by shard."""
    counts: collections.Counter[str] = collections.Counter()
    for file in snapshot.files:
        counts[file.shard] += file.num_rows
    return counts


def _same_version(one: StoredShard, other: StoredShard) -> bool:
    """Whether two indexes hold the same version of a shard, as far as they tell it in the same way; else their rows will."""
    if one.fingerprint and other.fingerprint and _is_content(one) == _is_content(other):
        return one.fingerprint == other.fingerprint
    return not one.size or not other.size or one.size == other.size


def _is_content(shard: StoredShard) -> bool:
    """Whether the version is told by a hash of the content, and not by size and time, or by an object's generation."""
    return ":" in shard.fingerprint


def _overlaps(items: Sequence[StoredItem], others: Sequence[StoredItem]) -> dict[str, list[str]]:
    """By key: the keys of those others whose ranges have something in common with the item's; all where a range is not known."""
    ordered = sorted(others, key=lambda item: (item.start, item.end))
    if any(item.end <= item.start for item in (*items, *ordered)):
        return {item.key: [other.key for other in ordered] for item in items}
    starts, ends = [item.start for item in ordered], [item.end for item in ordered]
    return {
        item.key: [
            other.key for other in ordered[bisect.bisect_right(ends, item.start) : bisect.bisect_left(starts, item.end)]
        ]
        for item in items
    }
