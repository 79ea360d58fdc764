"""Takes examples down: from now on no result shows them, whatever version of the index is asked.

Their rows stay in the files until the corpus is indexed again (`trackstar reindex` or `trackstar build-index`), which writes the
files that hold them anew without them, and until the old files are deleted (`trackstar reindex --vacuum_days N`: whatever N is).
A take-down holds for ever: an id that comes back in another shard stays out. Each is an entry of the log in INDEX/removed, shown
by --list.
"""

import argparse
import fnmatch
import json

from pipelines import cli
from pipelines.progress import Progress, say
from trackstar import removal, storage
from trackstar.errors import TrackStarError
from trackstar.index import Index, Snapshot
from trackstar.removal import Removals, TakeDown
from trackstar.removed_items import Hit, find_hits, take_down

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index")
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="ids of the examples: one a line, or JSON lines with `example_id` or `id`. In an index of split documents a "
        "document's id takes all its passages down, and a passage's id (`id#3`) that passage alone",
    )
    parser.add_argument(
        "--shard",
        nargs="+",
        default=[],
        metavar="URI",
        help="whole shards, as the index names them (`trackstar inspect`); with * and ?, those of the index that match now",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="kept in the log")
    parser.add_argument(
        "--allow_missing", action="store_true", help="take down what the index does not hold, too: it will not come in"
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would go, and take nothing down")
    parser.add_argument("--list", action="store_true", help="show all take-downs there were, and do nothing else")
    parser.add_argument(
        "--json", action="store_true", help="with --list: one JSON object a line, with all ids and shards"
    )


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Takes down, or lists."""
    if args.list:
        if args.ids or args.shard:
            raise TrackStarError("--list shows take-downs and makes none: leave --ids and --shard out")
        _list(removal.take_downs(Index.open(args.index).uri), args.json)
        return cli.EXIT_DONE
    if not args.ids and not args.shard:
        raise TrackStarError("nothing is named to be taken down: give --ids FILE or --shard URI (or --list)")
    index = Index.open(args.index)
    request = _Request(args, index)
    request.check()
    say(request.describe())
    if args.dry_run:
        say("nothing was taken down (--dry_run)")
        return cli.EXIT_DONE
    entry = take_down(index, request.removals, request.hits, request.keys, args.reason, request.rows)
    say(
        f"{args.index}: taken down; no result shows it from now on. Its bytes go with the next "
        f"`trackstar reindex --vacuum_days N`. In the log: {storage.join(index.uri, removal.FOLDER, entry.name)}.jsonl"
    )
    return cli.EXIT_DONE


class _Request:
    """What is to go, and what of the index that is."""

    def __init__(self, args: argparse.Namespace, index: Index):
        self._allow_missing = bool(args.allow_missing)
        ids = removal.read_ids(args.ids) if args.ids else []
        snapshot = index.snapshot() if index.versions() else None
        self.keys = index.existing_keys()
        shards, self.missing_shards = _shards(args.shard, snapshot, self._allow_missing)
        splits = index.spec.long_documents == "split"
        self.removals = Removals(frozenset(ids), frozenset(shards), splits)
        self.hits: list[Hit] | None = None
        self.damage = ""
        try:
            self.hits = self._find(index)
        except TrackStarError as error:  # no reason to go on showing what is to go
            self.damage = str(error)
        self.rows = _rows(snapshot, self.removals, self.hits or [])
        found = {name for hit in self.hits or [] for name in hit.ids}
        self.missing_ids = [name for name in ids if name not in found]

    def check(self) -> None:
        """Raises where nothing that was named is in the index, or a shard is not."""
        if self._allow_missing:
            return
        hint = "check the names (`trackstar inspect` shows shards), or give --allow_missing to keep them out for ever"
        if self.missing_shards:
            raise TrackStarError(f"the index has no shard {', '.join(self.missing_shards[:_SHOWN])}; {hint}")
        if self.missing_ids and len(self.missing_ids) == len(self.removals.ids) and not self.damage:
            raise TrackStarError(f"none of the {len(self.missing_ids):,} ids is in the index; {hint}")

    def describe(self) -> str:
        """What goes, for people."""
        where = "" if self.hits is None else f", in {len(self.hits):,} files of the index"
        lines = [
            f"ids         {len(self.removals.ids):,}{where}",
            f"shards      {len(self.removals.shards):,}",
            f"examples    {self.rows:,} of the last snapshot",
        ]
        if self.damage:
            lines.append(f"damaged     not all files could be looked through; the next re-index does it: {self.damage}")
        elif self.missing_ids:
            first = ", ".join(self.missing_ids[:_SHOWN]) + (", …" if len(self.missing_ids) > _SHOWN else "")
            lines.append(f"not found   {len(self.missing_ids):,} ids, kept out all the same: {first}")
        return "to be taken down:\n  " + "\n  ".join(lines)

    def _find(self, index: Index) -> list[Hit]:
        if not self.removals.ids:
            return []
        with Progress("looking for ids", len(self.keys), len(self.keys), "files") as progress:
            return find_hits(
                index, self.keys, self.removals, lambda done: progress.reporter.report("files", done, done)
            )


def _shards(named: list[str], snapshot: Snapshot | None, allow_missing: bool) -> tuple[set[str], list[str]]:
    """URIs of the shards that are named, and the names that fit none of the index's."""
    known = {file.shard for file in snapshot.files} if snapshot else set()
    shards: set[str] = set()
    missing = []
    for name in named:
        uri = storage.normalise(name)
        matches = {uri} & known or {shard for shard in known if fnmatch.fnmatchcase(shard, uri)}
        if not matches:
            missing.append(name)
            if not any(character in uri for character in "*?["):
                matches = {uri}
            elif allow_missing:
                raise TrackStarError(f"--shard {name}: no shard of the index matches; name shards to come one by one")
        shards |= matches
    return shards, missing


def _rows(snapshot: Snapshot | None, removals: Removals, hits: list[Hit]) -> int:
    """Rows of the snapshot that go."""
    if snapshot is None:
        return 0
    by_file = {hit.file: hit.rows for hit in hits}
    return sum(file.num_rows if file.shard in removals.shards else by_file.get(file.key, 0) for file in snapshot.files)


def _list(entries: list[TakeDown], as_json: bool) -> None:
    for entry in entries:
        if as_json:
            fields = {name: getattr(entry, name) for name in ("name", "when", "who", "reason", "version", "rows")}
            fields |= {"ids": list(entry.ids), "shards": list(entry.shards), "not_found": entry.not_found}
            print(json.dumps(fields, ensure_ascii=False))
            continue
        what = f"{len(entry.ids):,} ids, {len(entry.shards):,} shards, {entry.rows:,} examples"
        at = "before the first version" if entry.version is None else f"at version {entry.version}"
        print(f"{entry.when}  {entry.who}  {what} {at}  {entry.reason or '(no reason given)'}".rstrip())
    if not entries and not as_json:
        print("nothing was ever taken down")


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.remove`."""
    return cli.run_command("remove", argv)


if __name__ == "__main__":
    raise SystemExit(main())
