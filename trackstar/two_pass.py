"""What a run in two passes did: a report beside the results, with the recall against a scan of the better index alone."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from trackstar import storage
from trackstar.index_pair import Difference
from trackstar.rescoring import Missing, Tops
from trackstar.topk import TopK

_SEED = 0
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class TwoPassRun:
    """What is known before it begins.

    Args:
        index: The index that is scanned.
        version: Its snapshot.
        storage: Form of its encodings.
        better: The index that scores come from, or whose spec they are computed under.
        better_version: Its snapshot; None where encodings are computed.
        better_storage: Form of its encodings.
        queries: How many.
        top_k: Proponents, and opponents, of a query.
        over_fetch: Times as many are proposed.
        examples: Rows that the first pass scans.
        differences: Shards that only one of the indexes holds, or in another version.
        missing_fraction: Share of all examples in these.
        one_sided: By index: ids and shards that were taken down of the other one alone.
        checked: Ids of the queries whose recall is measured.
    """

    index: str
    version: int
    storage: str
    better: str
    better_version: int | None
    better_storage: str
    queries: int
    top_k: int
    over_fetch: int
    examples: int
    differences: tuple[Difference, ...] = ()
    missing_fraction: float = 0.0
    one_sided: Mapping[str, int] = dataclasses.field(default_factory=dict)
    checked: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recall:
    """Of some queries, the share of a full scan's best that the two passes found.

    Args:
        mean: Over the queries.
        lowest: Of one query.
    """

    mean: float
    lowest: float

    @classmethod
    def of(cls, found: TopK, exact: TopK) -> "Recall":
        """Of two rankings of the same queries and files, whose entries are compared row by row."""
        shares = recalls(found, exact)
        return cls(float(np.mean(shares)), float(np.min(shares)))


@dataclasses.dataclass(frozen=True)
class TwoPassReport:
    """What it did.

    Args:
        run: What was known before.
        proposed: Pairs of a query and an example that the first pass proposed.
        missing: Proposed examples that could not be scored again.
        proponents: Their recall; None where it was not measured.
        opponents: Theirs.
    """

    run: TwoPassRun
    proposed: int
    missing: tuple[Missing, ...]
    proponents: Recall | None = None
    opponents: Recall | None = None

    def save(self, uri: str) -> None:
        """Writes it as JSON."""
        storage.write_bytes(uri, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())

    def to_dict(self) -> dict[str, Any]:
        """What the file holds (docs/formats.md)."""
        fields = dataclasses.asdict(self.run)
        checked = fields.pop("checked")
        recall = None
        if self.proponents is not None:
            ends = {"proponents": self.proponents, "opponents": self.opponents}
            recall = {
                "k": self.run.top_k,
                "queries": list(checked),
                **{name: dataclasses.asdict(end) for name, end in ends.items() if end is not None},
            }
        missing = [dataclasses.asdict(example) for example in self.missing]
        return {**fields, "proposed": self.proposed, "missing": missing, "recall": recall}

    @classmethod
    def load(cls, uri: str) -> "TwoPassReport":
        """Reads what `save` wrote."""
        fields = json.loads(storage.read_bytes(uri))
        recall = fields.pop("recall") or {}
        missing = tuple(Missing(**example) for example in fields.pop("missing"))
        differences = tuple(Difference(**found) for found in fields.pop("differences"))
        proposed = fields.pop("proposed")
        run = TwoPassRun(**fields, differences=differences, checked=tuple(recall.get("queries", ())))
        ends = [Recall(**recall[name]) if name in recall else None for name in ("proponents", "opponents")]
        return cls(run, proposed, missing, *ends)

    def describe(self, where: str) -> list[str]:
        """Lines for people; `where` is the report's file."""
        run = self.run
        how = "encoded again under the spec of" if run.better_version is None else "scored again in"
        version = "" if run.better_version is None else f", version {run.better_version}"
        lines = [
            f"two passes: of {run.examples:,} examples ({run.index}, version {run.version}, {run.storage}), the best "
            f"{run.over_fetch * run.top_k:,} of each query were {how} {run.better} ({run.better_storage}{version})"
        ]
        if self.proponents is not None:
            lines.append(self._describe_recall())
        if self.missing:
            first = [f"{one.example_id} ({one.shard}, position {one.position}): {one.reason}" for one in self.missing]
            shown = "\n  ".join(first[:_SHOWN])
            lines.append(
                f"{len(self.missing):,} proposed examples could not be scored again and were left out; all are in {where}, "
                f"the first:\n  {shown}"
            )
        return lines

    def _describe_recall(self) -> str:
        ends = {"proponents": self.proponents, "opponents": self.opponents}
        shown = ", ".join(
            f"{end.mean:.4f} of the {name} (lowest of a query {end.lowest:.2f})" for name, end in ends.items() if end
        )
        run = self.run
        advice = "; a larger --over_fetch finds more" if self.proponents and self.proponents.mean < 1 else ""
        return f"recall@{run.top_k} against a scan of {run.better} alone, {len(run.checked):,} queries: {shown}{advice}"


def report_uri(output: str) -> str:
    """Where the report of a results file lies: `r.jsonl` → `r.two_pass.json`."""
    suffix = PurePosixPath(output).suffix
    return (output.removesuffix(suffix) if suffix in (".jsonl", ".json") else output) + ".two_pass.json"


def sample_queries(count: int, wanted: int) -> list[int]:
    """Numbers of the queries whose recall is measured, ascending: always the same of so many."""
    return sorted(random.Random(_SEED).sample(range(count), min(count, wanted)))


def recalls(found: TopK, exact: TopK) -> list[float]:
    """Of each query, the share of `exact` that is in `found`; 1 where there is nothing to find."""
    shares = []
    for query in range(exact.num_queries):
        wanted = _rows(exact, query)
        shares.append(len(wanted & _rows(found, query)) / len(wanted) if wanted else 1.0)
    return shares


def report(
    run: TwoPassRun, proposed: int, tops: Tops, missing: Sequence[Missing], exact: Tops | None, chosen: Sequence[int]
) -> TwoPassReport:
    """The report of a run.

    Args:
        run: What was known before.
        proposed: Pairs that the first pass proposed.
        tops: What the second pass made of them.
        missing: Examples that it could not score.
        exact: A scan of the better index alone, for some queries; None where there was none.
        chosen: Numbers of these queries, ascending.
    """
    found = tuple(sorted(missing, key=lambda one: (one.shard, one.position, one.example_id)))
    if exact is None:
        return TwoPassReport(run, proposed, found)
    ends = [
        None if best is None or other is None else Recall.of(best.choose(chosen), other)
        for best, other in zip(tops, exact, strict=True)
    ]
    return TwoPassReport(run, proposed, found, *ends)


def _rows(top: TopK, query: int) -> set[tuple[str, int]]:
    span = top.entries(query)
    return {(top.uris[file], row) for file, row in zip(top.files[span].tolist(), top.rows[span].tolist(), strict=True)}
