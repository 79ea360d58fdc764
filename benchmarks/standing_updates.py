"""What an update of standing queries reads when 1 % of an index's files change every night: counts, not times.

    python -m benchmarks.standing_updates [--nights N]

Scores are drawn at random, since only their order matters here; the states, their updates and the rankings are the real ones.
Every tenth night the rankings are checked against all scores.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from benchmarks.common import markdown_table, write_results
from trackstar.index import DataFile, Snapshot
from trackstar.standing_state import State
from trackstar.standing_update import Contents, update
from trackstar.topk import TopK

NUM_QUERIES = 100
TOP_K = 100
NUM_FILES = 1_000
ROWS = 20  # of a file
CHANGED = 10  # files a night: 1 %
CHECKED = 10  # one night in so many
SPARES = (0, 10, 25, 50, 100, 200)
KINDS = {"every document of a changed file is another": 1.0, "one document in ten of a changed file is another": 0.1}


@dataclasses.dataclass
class Corpus:
    """Files and the scores of their rows, [queries, rows of the file] each, by key."""

    random: np.random.Generator
    scores: dict[str, np.ndarray]
    shards: dict[str, str]
    made: int = 0

    @classmethod
    def new(cls, seed: int) -> "Corpus":
        """A corpus as it is before the first night."""
        corpus = cls(np.random.default_rng(seed), {}, {})
        for shard in range(NUM_FILES):
            corpus.add(f"shard{shard}", corpus.random.standard_normal((NUM_QUERIES, ROWS)))
        return corpus

    def add(self, shard: str, scores: np.ndarray) -> None:
        """A file with a key of its own."""
        key = f"{self.made:032x}"
        self.scores[key], self.shards[key] = scores, shard
        self.made += 1

    def night(self, share: float) -> None:
        """Some shards change: their files go, and others come in which `share` of the documents are others."""
        for key in self.random.choice(sorted(self.scores), CHANGED, replace=False).tolist():
            scores, shard = self.scores.pop(key).copy(), self.shards.pop(key)
            other = self.random.random(ROWS) < share
            scores[:, other] = self.random.standard_normal((NUM_QUERIES, int(other.sum())))
            self.add(shard, scores)

    def contents(self, version: int) -> Contents:
        """What an index of it would hold."""
        files = [DataFile(f"{key}.parquet", self.shards[key], ROWS, ROWS) for key in sorted(self.scores)]
        return Contents(Snapshot(version, files))

    def scan(self, k: int, files: Sequence[DataFile], numbers: Sequence[int] | None) -> tuple[TopK, None]:
        """The k best rows of some files, as a scan gives them."""
        chosen = slice(None) if numbers is None else list(numbers)
        scores = np.concatenate([self.scores[file.key][chosen] for file in files], axis=1)
        count = min(k, scores.shape[1])
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        query = np.repeat(np.arange(len(scores)), count)
        place = best.reshape(-1)
        ids = pa.array([f"{files[at // ROWS].shard}:{at % ROWS}" for at in place.tolist()], pa.string())
        uris = [file.uri for file in files]
        found = TopK.select(len(scores), k, True, query, scores[query, place], ids, uris, place // ROWS, place % ROWS)
        return found, None


def simulate(share: float, spare: int, nights: int) -> dict[str, float]:
    """Means over the nights, of one sequence of changes that is the same for every `spare`."""
    corpus = Corpus.new(0)
    scan = functools.partial(corpus.scan, TOP_K + spare)
    state, _ = update(State.empty(NUM_QUERIES, TOP_K + spare, False), corpus.contents(0), TOP_K, scan)
    read, passes, again = [], [], []
    for night in range(1, nights + 1):
        corpus.night(share)
        contents = corpus.contents(night)
        state, work = update(state, contents, TOP_K, scan)
        if night % CHECKED == 0:
            expected, _ = corpus.scan(TOP_K, contents.snapshot.files, None)
            found, _ = state.tops(TOP_K)
            assert found.scores.tobytes() == expected.scores.tobytes()
            assert found.example_ids.equals(expected.example_ids)
        read.append(work.num_files / NUM_FILES)
        passes.append(bool(work.again))
        again.append(len(work.again) / NUM_QUERIES)
    return {"files_read": np.mean(read), "nights_with_a_pass": np.mean(passes), "queries_again": np.mean(again)}


def main() -> int:
    """Counts, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=60, help="nights of each sequence")
    args = parser.parse_args()
    measured = {kind: {spare: simulate(share, spare, args.nights) for spare in SPARES} for kind, share in KINDS.items()}
    rows = [
        [kind, spare, *(f"{found[name]:.1%}" for name in ("files_read", "nights_with_a_pass", "queries_again"))]
        for kind, by_spare in measured.items()
        for spare, found in by_spare.items()
    ]
    header = ["1 % of the files change a night, and", "--spare", "files read a night"]
    table = markdown_table([*header, "nights with a pass over all", "queries scored again, of all"], rows)
    print(table)
    setting = {"queries": NUM_QUERIES, "top_k": TOP_K, "files": NUM_FILES, "rows": ROWS, "nights": args.nights}
    head = "# What an update of standing queries reads\n\n`python -m benchmarks.standing_updates`: " + ", ".join(
        f"{name} {value:,}" for name, value in setting.items()
    )
    write_results("standing_updates", {"setting": setting, "measured": measured}, f"{head}\n\n{table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
