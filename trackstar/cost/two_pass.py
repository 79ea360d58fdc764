"""The estimate of `score` in two passes: the first one's scan, queries encoded twice, what is scored again, and the check."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from trackstar.batching import plan_batches
from trackstar.cost import model
from trackstar.cost.basis import Basis
from trackstar.cost.commands import Estimated, estimate_score, load_for, scan_shape
from trackstar.cost.model import Estimate, Stage
from trackstar.cost.rates import Rates
from trackstar.cost.shapes import CorpusShape, EncodingShape
from trackstar.encoder import EncoderSource
from trackstar.index import DataFile
from trackstar.passages import fetch_rows
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.spec import Spec

Scoring = tuple[Spec, EncoderSource, ScanSettings]
_SAMPLED_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class PlannedPasses:
    """What two passes go through.

    Args:
        files: Files that are scanned.
        groups: Elements of work that they are grouped into.
        better_files: Files of the better index; none where encodings are computed.
        better_groups: Elements of work of a scan of these.
        pairs: Pairs of query and example that are scored again, at most.
        second_groups: Elements of work of the second pass.
        checked: Queries whose recall is measured.
        computes: Whether encodings are computed.
    """

    files: Sequence[DataFile]
    groups: int
    better_files: Sequence[DataFile]
    better_groups: int
    pairs: int
    second_groups: int
    checked: int
    computes: bool

    @property
    def rows(self) -> float:
        """Examples that are scored again, at most."""
        return float(min(self.pairs, sum(file.num_rows for file in self.files)))


def estimate_two_pass(
    cheap: Scoring,
    better: Scoring,
    planned: PlannedPasses,
    queries: Sequence[Query],
    task_hessian: str,
    scan_threads: int,
    basis: Basis,
) -> Estimated:
    """Everything that `score` does in two passes.

    Args:
        cheap: Spec, encoder and settings of the scan.
        better: The same of what scores come from.
        planned: What there is to do.
        queries: The queries.
        task_hessian: As the command's flag.
        scan_threads: Threads of a scanning worker.
        basis: What to reckon with.
    """
    spec, source, settings = cheap
    first, rates = estimate_score(
        spec, planned.files, planned.groups, queries, settings, task_hessian, source, scan_threads, basis
    )
    spec, source, settings = better
    alone, of_better = estimate_score(
        spec, planned.better_files, planned.better_groups, queries, settings, task_hessian, source, scan_threads, basis
    )
    if planned.computes:  # there is nothing to time float64 scores on but the cheap index
        of_better = of_better.with_measured(
            rescore_numbers=rates.rescore_numbers,
            merge_entries=rates.merge_entries,
            result_entries=rates.result_entries,
            fetch_seconds=rates.fetch_seconds,
            weigh_flops=rates.weigh_flops,
        )
    stages = [_merging_alone(stage) if stage.name == "merge" else stage for stage in first.stages]
    stages += [
        dataclasses.replace(stage, name=f"{stage.name} (better)")
        for stage in alone.stages
        if stage.name in ("encoding queries", "roots of R")
    ]
    stages += _second_pass(better, planned, len(queries), task_hessian, of_better, basis)
    if planned.checked:
        stages += _check(spec, settings, planned, task_hessian, of_better)
    what = "encoded again" if planned.computes else "read of the better index"
    facts = (
        *first.facts,
        ("second pass", f"at most {planned.pairs:,} pairs of query and example; {planned.rows:,.0f} examples {what}"),
        *((("check", f"{planned.checked:,} queries against the better index alone"),) if planned.checked else ()),
    )
    return Estimate("score", tuple(stages), facts, (*first.amounts, ("pairs", float(planned.pairs)))), rates


def _merging_alone(stage: Stage) -> Stage:
    """The merge of a scan whose winners are not written out."""
    return dataclasses.replace(
        stage, parts=stage.parts[:1], written_bytes=0.0, kept_bytes=0.0, object_reads=0.0, object_writes=0.0
    )


def _second_pass(
    better: Scoring, planned: PlannedPasses, queries: int, task_hessian: str, rates: Rates, basis: Basis
) -> list[Stage]:
    """Rows found and read, or encoded; float64 scores; the merge, and the results."""
    spec, source, settings = better
    shape = EncodingShape.without_model(spec)
    scan = scan_shape(spec, planned.files, planned.second_groups, queries, settings, task_hessian)
    stages = []
    if planned.computes:
        shape = load_for(spec, source, dataclasses.replace(basis, calibrates=False)).shape
        stages.append(model.query_stage(shape, _encoded(planned, spec), rates))
        stages[0] = dataclasses.replace(stages[0], name="encoding again")
    files = min(len(planned.files), planned.rows)
    stages.append(model.second_pass_stage(shape, scan, planned.rows, planned.pairs, files, planned.computes, rates))
    return [*stages, model.merge_stage(scan, rates)]


def _check(spec: Spec, settings: ScanSettings, planned: PlannedPasses, task_hessian: str, rates: Rates) -> list[Stage]:
    shape = EncodingShape.without_model(spec)
    scan = scan_shape(spec, planned.better_files, planned.better_groups, planned.checked, settings, task_hessian)
    stages = [model.scan_stage(shape, scan, rates), _merging_alone(model.merge_stage(scan, rates))]
    return [dataclasses.replace(stage, name=f"{stage.name} (check)") for stage in stages]


def _encoded(planned: PlannedPasses, spec: Spec) -> CorpusShape:
    """The examples that are encoded again, by the lengths of the first of the index."""
    tokens = padded = 1.0
    if planned.files:
        file = planned.files[0]
        table, _ = fetch_rows(file.uri, np.arange(min(file.num_rows, _SAMPLED_ROWS)), ("num_tokens",))
        lengths = table["num_tokens"].to_pylist()
        if lengths:
            tokens = sum(lengths) / len(lengths)
            batches = plan_batches(lengths, spec.batch_tokens)
            padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / len(lengths)
    rows = planned.rows
    return CorpusShape(planned.second_groups, 0.0, rows, tokens * rows, math.ceil(padded * rows))
