"""Shows what an index holds: spec, snapshots, rows, bytes, tokens and rejects."""

import argparse
import collections
import dataclasses
import json

from pipelines import cli, flag_types
from trackstar import removal, storage
from trackstar.amounts import human_bytes
from trackstar.errors import TrackStarError
from trackstar.index import Index, Snapshot
from trackstar.item_footer import ItemCounts
from trackstar.removed_items import all_hits, load_removals
from trackstar.spec import Spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("index", metavar="DIR", help="the index")
    parser.add_argument("--version", type=flag_types.natural, metavar="N", help="which snapshot (the last)")
    parser.add_argument("--rejects", type=flag_types.natural, default=5, metavar="N", help="rejected records to show")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Prints the description."""
    index = Index.open(args.index)
    versions = index.versions()
    snapshot = index.snapshot(args.version) if versions or args.version is not None else None
    contents = _contents(index, versions, snapshot, args.rejects)
    print(json.dumps(contents, indent=2, ensure_ascii=False) if args.json else _text(contents, index.spec))
    return cli.EXIT_DONE


def _contents(index: Index, versions: list[int], snapshot: Snapshot | None, num_rejects: int) -> dict:
    contents: dict = {
        "index": index.uri,
        "hash": index.spec.hash,
        "dimension": index.spec.dimension,
        "bytes_per_encoding": index.spec.bytes_per_encoding,
        "spec": dataclasses.asdict(index.spec),
        "versions": versions,
        "snapshot": None,
    }
    files = index.existing_keys()
    if snapshot is None:
        return {**contents, "files_not_in_snapshot": len(files)}
    counts = ItemCounts()
    shards: collections.Counter[str] = collections.Counter()
    rejects: list[dict] = []
    for file in snapshot.files:
        item = index.has_item(file.key)
        if item is None:
            raise TrackStarError(
                f"{file.uri}: the snapshot names this file and it is gone; run `trackstar verify --repair`"
            )
        counts += ItemCounts.of(item.metadata)
        shards[file.shard] += file.num_rows
        if len(rejects) < num_rejects and int(item.metadata.get("rejected", 0)):
            first = index.rejects_of(file.key)[: num_rejects - len(rejects)]
            rejects += [dataclasses.asdict(reject) for reject in first]
    contents["take_downs"] = _take_downs(index, snapshot)
    contents["snapshot"] = {
        "version": snapshot.version,
        "files": len(snapshot.files),
        "bytes": snapshot.num_bytes,
        "rows_by_shard": dict(sorted(shards.items())),
        **dataclasses.asdict(counts),
    }
    return {**contents, "files_not_in_snapshot": len(files - {file.key for file in snapshot.files}), "rejects": rejects}


def _take_downs(index: Index, snapshot: Snapshot) -> dict:
    """How much was taken down, and how many rows of the snapshot that hides until the files are written without it."""
    removals = load_removals(index)
    rows: collections.Counter[str] = collections.Counter()
    counted: dict[str, set[str]] = collections.defaultdict(set)
    for hit in all_hits(index) if removals.ids else []:
        if not counted[hit.file].issuperset(hit.ids):  # two take-downs may name the same
            rows[hit.file] += hit.rows
            counted[hit.file].update(hit.ids)
    hidden = sum(
        file.num_rows if file.shard in removals.shards else min(rows[file.key], file.num_rows)
        for file in snapshot.files
    )
    entries = removal.take_downs(index.uri)
    return {"entries": len(entries), "ids": len(removals.ids), "shards": len(removals.shards), "hidden_rows": hidden}


def _text(contents: dict, spec: Spec) -> str:
    lines = [f"index     {contents['index']}", f"spec      {contents['hash']}"]
    lines += [f"  {name:<22} {value}" for name, value in contents["spec"].items()]
    lines.append(f"encoding  {spec.describe_blocks()}; stored as {spec.describe_storage()}")
    versions = contents["versions"]
    lines.append(f"versions  {', '.join(map(str, versions)) if versions else 'none: run `trackstar build-index`'}")
    snapshot = contents["snapshot"]
    if snapshot:
        lines += [
            f"snapshot  version {snapshot['version']}",
            f"  examples             {snapshot['examples']:,}",
            f"  tokens               {snapshot['tokens']:,}",
            f"  records read         {snapshot['records']:,}",
            f"  documents truncated  {snapshot['truncated']:,}",
            f"  records rejected     {snapshot['rejected']:,}",
            f"  files                {snapshot['files']:,} ({human_bytes(snapshot['bytes'])})",
        ]
        downs = contents["take_downs"]
        if downs["entries"]:
            hidden = f"{downs['hidden_rows']:,} rows still in the files are hidden"
            lines += [
                f"  records taken down   {snapshot['removed']:,} left out of the files; {hidden}",
                f"  take-downs           {downs['entries']:,}: {downs['ids']:,} ids, {downs['shards']:,} shards "
                "(`trackstar remove --list`)",
            ]
        shards = list(snapshot["rows_by_shard"].items())
        lines += [f"  {rows:>12,} rows of {shard}" for shard, rows in shards[:20]]
        lines += [f"  … and {len(shards) - 20:,} more shards"] if len(shards) > 20 else []
        lines += [f"rejected  {r['shard']}:{r['position']}: {r['reason']}" for r in contents["rejects"]]
    if contents["files_not_in_snapshot"]:
        lines.append(f"beside    {contents['files_not_in_snapshot']:,} item file(s) that the snapshot does not name")
    lines.append(f"folder    {storage.join(contents['index'], 'encodings')} opens as a Delta table")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.inspect`."""
    return cli.run_command("inspect", argv)


if __name__ == "__main__":
    raise SystemExit(main())
