"""The whole of TrackStar in a few minutes on a laptop.

Writes a corpus of sentences that state real-world facts, trains a tiny language model on it, builds the index of its
gradients with Beam, and asks which sentences made the model say what it says. What is done already is reused.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines import cli, runner, view
from pipelines.progress import say
from trackstar import threads
from trackstar.demo import answers, corpus, page, report, train
from trackstar.evaluation.facts import read_facts

_DOT_PRODUCT = "plain gradient dot product"
# The paper's recipe without its corrections: one Gaussian projection of all weights' gradients, as they are, and their norms.
_DOT_PRODUCT_FLAGS = ["--recipe", "paper", "--block_rows", "32", "--block_columns", "32", "--moments", "none"]
_DOT_PRODUCT_FLAGS += ["--preconditioner", "none", "--stores_text", "false"]
_SHOWN_PROPONENTS = 20  # Of each query, in the page; the results hold more.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--folder", default="demo_output", metavar="DIR", help="where everything goes")


def run(args: argparse.Namespace, beam_args: list[str]) -> int:
    """Corpus, model, index, results, table, page."""
    folder = Path(args.folder).resolve()
    written = corpus.write_corpus(folder)
    say(f"corpus: {written.num_documents:,} documents stating {written.num_facts:,} facts, in {folder / 'corpus'}")
    checkpoint = train.train(folder)
    asked = answers.answer_queries(written.queries, checkpoint)
    shared = ["--corpus", *written.patterns, "--model", str(checkpoint)]
    shared += ["--threads_per_worker", str(min(4, threads.cores()))]
    trackstar = _Index(folder, "trackstar", shared, beam_args)
    trackstar.build()
    results = trackstar.score(asked)
    plain = _Index(folder, "dot_product", shared, beam_args)
    plain.build(*_DOT_PRODUCT_FLAGS)
    baseline = plain.score(asked, "--unit_norm", "false", "--opponents", "false")
    methods = {"TrackStar": report.read_jsonl(results), _DOT_PRODUCT: report.read_jsonl(baseline)}
    report.show(methods, written.facts)
    page.fill_texts(baseline, folder)
    shown = _write_page(folder, {"TrackStar": results, _DOT_PRODUCT: baseline}, written.facts)
    print(_next_steps(folder, shown, [results, baseline], trackstar.folder, checkpoint))
    return cli.EXIT_DONE


def _write_page(folder: Path, methods: Mapping[str, Path], facts: Path) -> Path:
    """One HTML file with all results, side by side and marked by the annotations."""
    written = folder / "page.html"
    with view.opened(list(methods), [str(path) for path in methods.values()], read_facts(str(facts))) as runs:
        view.export_page(str(written), runs, _SHOWN_PROPONENTS)
    return written


class _Index:
    """One index of the demo and the results against it."""

    def __init__(self, folder: Path, name: str, shared: list[str], beam_args: list[str]):
        self.folder = folder / f"index_{name}"
        self._results = folder / f"results_{name}.jsonl"
        self._shared = shared
        self._beam_args = beam_args

    def build(self, *fit_flags: str) -> None:
        """fit and build-index."""
        where = [*self._shared, "--index", str(self.folder)]
        _call("fit", [*where, *fit_flags, *self._beam_args])
        _call("build-index", [*where, *self._beam_args])

    def score(self, queries: Path, *flags: str) -> Path:
        """score, unless the results are newer than the index and the queries."""
        log = self.folder / "encodings" / "_delta_log"
        inputs = [queries, *log.glob("*.json")]
        fresh = self._results.exists() and all(path.stat().st_mtime <= self._results.stat().st_mtime for path in inputs)
        if fresh:
            say(f"{self._results}: up to date")
        else:
            model = self._shared[self._shared.index("--model") :]
            where = ["--index", str(self.folder), "--queries", str(queries), "--output", str(self._results)]
            _call("score", [*where, *model, *flags, *self._beam_args])
        return self._results


def _call(command: str, words: list[str]) -> None:
    """Runs another command in this process."""
    code = cli.call(command, words)
    if code != cli.EXIT_DONE:
        raise runner.PipelineError(f"`trackstar {command}` ended with exit code {code}")


def _next_steps(folder: Path, shown: Path, results: Sequence[Path], index: Path, checkpoint: Path) -> str:
    query = json.dumps({"inputs_plaintext": "The capital of Norway is", "targets_plaintext": "Oslo"})
    files = " ".join(map(str, results))
    serve = ""
    if "serve" in cli.COMMANDS:
        serve = f"\nAsk in the browser:      trackstar serve --index {index} --model {checkpoint}"
    return f"""
The page, to look at:    {shown}   (opens in a browser, from disk)
The same from a server:  trackstar view {files} \\
                             --facts {folder}/facts.jsonl{serve}
Results for all queries: {results[0]}
What the index holds:    trackstar inspect {index}
Ask something else:      echo '{query}' > {folder}/mine.jsonl
                         trackstar score --index {index} --model {checkpoint} \\
                             --queries {folder}/mine.jsonl --output {folder}/mine_results.jsonl
Your own model:          trackstar fit --help   (after `make`, the program is .venv/bin/trackstar)"""


def main(argv: list[str] | None = None) -> int:
    """`python -m pipelines.demo`."""
    return cli.run_command("demo", argv)


if __name__ == "__main__":
    raise SystemExit(main())
