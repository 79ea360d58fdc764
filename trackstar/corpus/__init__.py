"""The corpus: shards → work items → records.

    shards = expand(["shards/*.jsonl.gz", "gs://bucket/more/*.parquet"])
    for item in plan(shards, target_bytes=16 << 20):
        for record in read(item):  # Record | Reject
            ...

Items are fixed by the shards and the target size alone; reading one depends on nothing but the item.
"""

from trackstar.corpus.items import WorkItem, plan
from trackstar.corpus.reading import read
from trackstar.corpus.records import Record, Reject
from trackstar.corpus.shards import FORMATS, Format, Shard, expand

__all__ = ["FORMATS", "Format", "Record", "Reject", "Shard", "WorkItem", "expand", "plan", "read"]
