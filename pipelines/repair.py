"""Encodes the items whose files are damaged again, and nothing else."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from pipelines import runner
from pipelines.build_index import EncodeItems, encoder_source
from pipelines.corpus import planned
from pipelines.progress import Progress, say
from trackstar import checksums, manifest, storage
from trackstar.corpus import WorkItem
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.indexing import take_failure
from trackstar.reindexing import DEFAULT_ITEM_BYTES
from trackstar.removed_items import base_key, written_without
from trackstar.verification import REPAIRABLE, Finding


def repair(
    args: argparse.Namespace, index: Index, findings: Sequence[Finding], beam_args: Sequence[str]
) -> list[Finding]:
    """Writes damaged item files anew; each stays until its new one is complete.

    Args:
        args: The flags that name corpus and model.
        index: The index.
        findings: What was found.
        beam_args: Beam's flags.

    Returns:
        What could not be repaired, and why.
    """
    keys = sorted({finding.key for finding in findings if finding.key and finding.kind in REPAIRABLE})
    if not keys:
        return []
    _settings(args, index)
    items = _items(args, index, keys)
    before = {key: _recorded(index, key) for key in items}
    if items:
        _encode(args, index, list(items.values()), beam_args)
    named = _commit_sizes(index, items)
    left = []
    for key in keys:
        path = index.item_path(key)
        if key in items:
            failure = take_failure(index, base_key(index, items[key]))
            after = _recorded(index, key)
            if failure is not None:
                left.append(Finding(path, "changed", f"was not repaired: {failure}", key))
            elif before[key] is not None and before[key] != after:
                say(
                    f"{path}: encoded again, but not to the bytes that it had: another machine, --threads_per_worker or "
                    "version of torch? Its encodings are as good"
                )
            else:
                say(f"{path}: repaired")
        elif key in named:
            what = (
                "cannot be encoded again: its shard is gone or has changed since, or the index was built with another "
                "--item_bytes or --fingerprint; `trackstar reindex` brings the index up to date with the corpus"
            )
            left.append(Finding(path, "missing", what, key))
        else:
            index.delete_item(key)
            say(f"{path}: deleted; the last snapshot does not name it, and the corpus does not give it any more")
    return left


def _settings(args: argparse.Namespace, index: Index) -> None:
    """Takes what the index was made with, where flags do not say and it is known."""
    try:
        known = manifest.load(index, index.snapshot()) if index.versions() else None
    except TrackStarError:  # it was to be made from the files, and they are damaged
        known = None
    args.item_bytes = args.item_bytes or (known and known.item_bytes) or DEFAULT_ITEM_BYTES
    args.fingerprint = args.fingerprint or (known and known.fingerprint) or "modified"


def _items(args: argparse.Namespace, index: Index, keys: Sequence[str]) -> dict[str, WorkItem]:
    """Those of the keys that the corpus still gives, with their work items."""
    by_key = {item.key(index.spec.hash): item for item in planned(args)[1]}
    without = written_without(index)
    found = {}
    for key in keys:
        base, ids = without.get(key, (key, ()))
        if base in by_key:
            found[key] = dataclasses.replace(by_key[base], removed=ids)
    return found


def _encode(args: argparse.Namespace, index: Index, items: list[WorkItem], beam_args: Sequence[str]) -> None:
    total = sum(item.num_bytes for item in items)
    with Progress("encoding again", total, len(items), "examples", enabled=runner.is_local(beam_args)) as progress:
        fields = [item.to_dict() for item in items]
        transform = EncodeItems(fields, encoder_source(args, index), index.uri, progress.reporter, replace=True)
        runner.run_pipeline(lambda pipeline: pipeline | "RepairItems" >> transform, beam_args)


def _commit_sizes(index: Index, items: Mapping[str, WorkItem]) -> set[str]:
    """Commits files that were encoded to another size than the log says; returns the keys of the last snapshot's files."""
    if not index.versions():
        return set()
    files = index.snapshot().files
    sizes = {file.key: storage.size(file.uri) for file in files if file.key in items and storage.exists(file.uri)}
    now = [dataclasses.replace(file, num_bytes=sizes.get(file.key, file.num_bytes)) for file in files]
    if now != files:
        index.commit(now)
    return {file.key for file in files}


def _recorded(index: Index, key: str) -> checksums.Checksum | None:
    try:
        return checksums.recorded(index.uri, index.item_path(key))
    except TrackStarError:  # the checksum itself was damaged
        return None
