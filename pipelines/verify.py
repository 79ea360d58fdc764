"""Checks every file of an index against what was written: finds damaged, truncated, missing and foreign files.

Each file is read through once. With --repair, the items whose files are damaged are encoded again from the corpus; every other
file stays as it is. Exit code 0: all is well; 1: something is damaged, and listed.
"""

import argparse
import dataclasses
import functools
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipelines import cli, cost_flags, flag_types, heavy, options, runner
from pipelines.corpus import add_corpus_arguments
from pipelines.cost_flags import add_cost_arguments
from pipelines.elements import OneByOne
from pipelines.model_flags import add_model_arguments
from pipelines.progress import Progress, Reporter, say
from trackstar import storage, verification
from trackstar.errors import TrackStarError
from trackstar.file_groups import group_files
from trackstar.index import Index
from trackstar.spec import Spec
from trackstar.verification import Check, Finding
from trackstar.write_lock import WriteLock

_SHOWN = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--index", required=True, metavar="DIR", help="the index")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print what was found (with --dry_run, the estimate) as JSON, one object a line",
    )
    parser.add_argument(
        "--check_bytes",
        type=flag_types.positive,
        default=1 << 30,
        metavar="N",
        help="bytes of the index that one element of work reads",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="encode the items whose files are damaged again; needs --corpus and --model, and the shards as they were",
    )
    add_corpus_arguments(parser, required=False)
    parser.set_defaults(item_bytes=None, fingerprint=None)  # the index's own, where it is known
    add_model_arguments(parser, required=False)
    add_cost_arguments(parser, json=False)


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Verifies, and repairs if asked to."""
    if args.repair and not (args.corpus and args.model):
        raise options.UsageError(
            "--repair encodes again what is damaged: give --corpus and --model, as for build-index"
        )
    if cost_flags.wanted(args, own=("json",)):
        return _describe(args, beam_args)
    try:
        index = Index.open(args.index)
    except TrackStarError as error:
        if not storage.exists(storage.join(args.index, "spec.json")):
            raise
        return _report([Finding("spec.json", "changed", str(error))], args.json)
    findings = verify(index, args.check_bytes, beam_args)
    if not args.repair or not findings:
        return _report(findings, args.json, index)
    _report(findings, args.json, index)
    with WriteLock(index.uri, "verify --repair"):
        left = heavy.repair.repair(args, index, findings, beam_args)
    keys = {finding.key for finding in findings if finding.key}
    left += verify(index, args.check_bytes, beam_args, keys)
    others = [finding for finding in findings if not finding.key]
    return _report(list(dict.fromkeys([*others, *left])), args.json, index)


def _describe(args: argparse.Namespace, beam_args: Sequence[str]) -> int:
    """Says what reading the index through would take."""
    # First of all: what a process needs to start is how long this one has run when it is imported.
    costs = heavy.costs
    index = Index.open(args.index)
    checks, _ = verification.checks(index, not verification.check_log(index))
    groups = len(group_files(checks, args.check_bytes))
    return costs.dry_run(args, beam_args, functools.partial(heavy.verifying.estimate_verify, index, checks, groups))


def verify(index: Index, check_bytes: int, beam_args: Sequence[str], keys: set[str] | None = None) -> list[Finding]:
    """Runs the pipeline over all item files, or those of `keys` alone, and looks at everything else here.

    Args:
        index: The index.
        check_bytes: Bytes that one element of work reads.
        beam_args: Beam's flags.
        keys: Check these items and nothing else.
    """
    of_log = verification.check_log(index)
    checks, foreign = verification.checks(index, not of_log)
    if keys is not None:
        checks, foreign = [check for check in checks if check.key in keys], []
    work = storage.join(index.uri, "failures", f"verify-{uuid.uuid4().hex[:12]}")
    groups = group_files(checks, check_bytes)
    total = float(sum(check.num_bytes for check in checks))
    with Progress("verifying", total, len(groups), "files", enabled=runner.is_local(beam_args)) as progress:
        transform = VerifyFiles(groups, index.uri, index.spec.to_json(), work, progress.reporter)
        runner.run_pipeline(lambda pipeline: pipeline | "VerifyFiles" >> transform, beam_args)
    done = storage.list(work)
    if len(done) != len(groups):
        raise runner.PipelineError(
            f"{len(groups) - len(done)} of {len(groups)} groups of files were not checked; run again"
        )
    findings = [*foreign, *verification.load_findings(work)]
    storage.delete(work)
    if keys is None:
        findings += [*verification.check_settings(index), *of_log]
        if unrecorded := verification.unrecorded_log(index):
            say(f"no checksum was kept of {', '.join(unrecorded[:5])}; the next commit does it")
    return sorted(set(findings))


@dataclasses.dataclass
class VerifyFiles(beam.PTransform):
    """Groups of files → a file of findings for each group.

    Args:
        groups: What to check.
        index_uri: The index.
        spec_json: Its spec.
        work: Folder of the findings.
        reporter: Where progress goes.
    """

    groups: list[list[Check]]
    index_uri: str
    spec_json: str
    work: str
    reporter: Reporter

    def expand(self, root: Any) -> Any:
        check = VerifyGroup(self.index_uri, self.spec_json, self.work, self.reporter)
        return root | OneByOne(list(enumerate(self.groups))) | "VerifyGroup" >> beam.ParDo(check)


class VerifyGroup(beam.DoFn):
    """Reads the files of a group through."""

    def __init__(self, index_uri: str, spec_json: str, work: str, reporter: Reporter):
        self._index_uri, self._spec_json, self._work, self._reporter = index_uri, spec_json, work, reporter
        self._files = Metrics.counter("trackstar", "num_verified_files")
        self._found = Metrics.counter("trackstar", "num_damaged_files")

    def setup(self) -> None:
        self._index = Index(self._index_uri, Spec.from_json(self._spec_json))

    def process(self, element: tuple[int, list[Check]]) -> Iterator[int]:
        number, checks = element
        findings: list[Finding] = []
        read = 0
        for done, check in enumerate(checks):
            tell = _Teller(self._reporter, str(number), read, done)
            findings += verification.check_item(self._index, check, tell)
            read += check.num_bytes
        verification.save_findings(storage.join(self._work, f"{number:06d}.jsonl"), findings)
        self._files.inc(len(checks))
        self._found.inc(len(findings))
        self._reporter.report(str(number), read, len(checks), finished=True)
        yield len(findings)


class _Teller:
    """Passes on how far a file is, as part of its group."""

    def __init__(self, reporter: Reporter, group: str, before: int, files: int):
        self._reporter, self._group, self._before, self._files = reporter, group, before, files

    def __call__(self, num_bytes: int) -> None:
        self._reporter.report(self._group, self._before + num_bytes, self._files)


def _report(findings: Sequence[Finding], as_json: bool, index: Index | None = None) -> int:
    """Prints what was found, and what to do; returns the exit code."""
    if as_json:
        for finding in findings:
            print(json.dumps(dataclasses.asdict(finding), ensure_ascii=False))
    else:
        for finding in findings[:_SHOWN]:
            print(finding)
        if len(findings) > _SHOWN:
            print(f"… and {len(findings) - _SHOWN:,} more (--json lists all)")
    if not findings:
        say(f"{index.uri if index else ''}: all files are as they were written")
        return cli.EXIT_DONE
    say(f"{len(findings):,} finding(s)" + "".join(f"\n  {advice}" for advice in verification.advice(findings)))
    return cli.EXIT_FAILED


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.verify`."""
    return cli.run_command("verify", argv)


if __name__ == "__main__":
    raise SystemExit(main())
