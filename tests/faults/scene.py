"""A corpus that changes between two runs, the indexes that undisturbed runs make of it, and what a disturbed one must equal."""

import dataclasses
import gzip
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines import cli
from tests.end_to_end.world import MODIFIED, World, digests, make_model, sentences
from trackstar.index import Index, Snapshot
from trackstar.queries import QuerySet
from trackstar.scoring import ScanSettings, scan_files

SHARDS = 12
DOCUMENTS = 30
"""Of each shard: two work items."""

State = dict[str, int]
"""The corpus: name of each shard → seed of its content."""


def first_state() -> State:
    """The corpus as it was first indexed."""
    suffixes = ["jsonl", "jsonl", "jsonl.gz", "parquet", "txt"]
    return {f"s{number:02}.{suffixes[number % len(suffixes)]}": number for number in range(SHARDS)}


def changed_state(seed: int) -> State:
    """The corpus at the second run: of twelve shards two are gone, four have other content, and three are new."""
    generator = random.Random(f"change/{seed}")
    state = first_state()
    names = generator.sample(sorted(state), 6)
    for name in names[:2]:
        del state[name]
    for name in names[2:]:
        state[name] = 100 + generator.randrange(10**6)
    for number in range(3):
        state[f"n{number}.jsonl"] = 100 + generator.randrange(10**6)
    return state


def write_state(folder: Path, state: State) -> None:
    """Makes the folder hold exactly these shards; equal content has equal bytes and modification time."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in state:
            path.unlink()
    for name, seed in state.items():
        path = folder / name
        texts = sentences(DOCUMENTS, seed)
        if name.endswith(".parquet"):
            table = pa.table({"id": [f"{name}/{seed}/{i}" for i in range(DOCUMENTS)], "text": texts})
            pq.write_table(table, path, row_group_size=DOCUMENTS // 2)
        elif name.endswith(".txt"):
            path.write_text("\n".join(texts))
        else:
            lines = [json.dumps({"id": f"{name}/{seed}/{i}", "text": text}) + "\n" for i, text in enumerate(texts)]
            data = "".join(lines).encode()
            path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        os.utime(path, (MODIFIED + seed, MODIFIED + seed))


@dataclasses.dataclass(frozen=True)
class Target:
    """What a command makes of an index when nothing disturbs it.

    Args:
        command: The command.
        before: The index that it starts from.
        after: The index that it leaves, in an undisturbed run.
        state: The corpus.
        valid: Every state that a reader may see: digest of the snapshot, by version.
    """

    command: str
    before: Path
    after: Path
    state: State
    valid: dict[int, str]

    @property
    def new_files(self) -> frozenset[str]:
        """Names of the item files that the command writes."""
        return frozenset(set(digests(self.after)) - set(digests(self.before)))

    @property
    def old_commits(self) -> frozenset[str]:
        """Names of the log entries that were there before."""
        return frozenset(commits(self.before))


class Scene:
    """A model, a corpus, and one index for each thing that can be disturbed.

    Args:
        root: Folder for all of it.
    """

    def __init__(self, root: Path):
        self.world = World(root)
        make_model(self.world.model)
        write_state(self.world.corpus, first_state())
        self.fitted = root / "fitted"
        assert self.world.fit(self.fitted) == cli.EXIT_DONE
        self.first = root / "first"
        shutil.copytree(self.fitted, self.first)
        assert self.world.build(self.first) == cli.EXIT_DONE
        self._targets: dict[tuple[str, bool, int], Target] = {}

    def target(self, command: str, fresh: bool, change: int) -> Target:
        """What the command makes of a fresh index, or of the one of the first state, when the corpus is in a changed state."""
        key = (command, fresh, change)
        if key not in self._targets:
            state = changed_state(change)
            before = self.fitted if fresh else self.first
            after = self.world.root / f"{command}-{'fresh' if fresh else 'changed'}-{change}"
            shutil.copytree(before, after)
            write_state(self.world.corpus, state)
            assert cli.main(self.words(command, after)) == cli.EXIT_DONE
            index = Index.open(str(after))
            valid = {version: digest(index, index.snapshot(version)) for version in index.versions()}
            self._targets[key] = Target(command, before, after, state, valid)
        return self._targets[key]

    def words(self, command: str, index: Path) -> list[str]:
        """The command line, without the program."""
        return [command, *self.world.flags(index)]


def commits(index: Path) -> list[str]:
    """The log's entries, in order."""
    log = index / "encodings" / "_delta_log"
    return sorted(path.name for path in log.glob("*.json")) if log.exists() else []


def rows(index: Path) -> list[tuple[str, str, int]]:
    """(example, shard, position) of every row of the last snapshot, sorted."""
    from deltalake import DeltaTable

    columns = ["example_id", "shard", "position"]
    table = DeltaTable(str(index / "encodings")).to_pyarrow_table(columns=columns)
    return sorted(zip(*(table[column].to_pylist() for column in columns), strict=True))


def digest(index: Index, snapshot: Snapshot) -> str:
    """What a scorer sees of a snapshot: its rows, and the best and worst of all its files for a fixed set of queries."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, index.spec.dimension, generator=generator)
    queries = QuerySet.of(torch.nn.functional.normalize(vectors, dim=1))
    uris = [file.uri for file in snapshot.files]
    best, worst = scan_files(uris, queries, ScanSettings(top_k=10, opponents=True))
    assert worst is not None
    ids = [name for uri in uris for name in pq.read_table(uri, columns=["example_id"])["example_id"].to_pylist()]
    assert len(ids) == snapshot.num_rows, (
        f"version {snapshot.version}: {len(ids)} rows, its log says {snapshot.num_rows}"
    )
    seen = [
        sorted(ids),
        *(part for top in (best, worst) for part in (top.example_ids.to_pylist(), top.scores.tolist())),
    ]
    return f"{len(ids)} rows, {hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]}"
