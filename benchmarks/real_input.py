"""TrackStar on real text: ParaRel facts among Wikipedia paragraphs, a small model trained on them, its answers traced.

    python -m benchmarks.real_input [--folder DIR] [--shared ../shared]

Each fact of a sample stands in three of its relation's sentence patterns; one pattern a relation, ending in the object, is
held out for the queries. WikiText-2 paragraphs stand among them. Writes `docs/real_input.md`: a dozen results as they came out.
What is done already is reused.
"""

import argparse
import collections
import gzip
import json
import random
from pathlib import Path

from pipelines import cli
from trackstar.demo import answers, train
from trackstar.demo.report import measure, read_jsonl
from trackstar.json_lines import jsonl, write_if_changed

FACTS = 2000
PATTERNS_PER_FACT = 3
WORDS_PER_PASSAGE = 60
SHARDS = 5
SHOWN = 12
SETTINGS = train.TrainSettings(vocabulary_size=8192, steps=2000, batch_size=64, learning_rate=3e-3)


def main() -> int:
    """Corpus, model, index, results, document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/work/real_input"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("docs/real_input.md"))
    args = parser.parse_args()
    if not (args.shared / "pararel" / "facts.jsonl").exists():
        print(f"{args.shared}: no pararel/facts.jsonl here; this benchmark needs that data (--shared)")
        return 0
    folder = args.folder.resolve()
    documents = write_corpus(args.shared, folder)
    checkpoint = train.train(folder, SETTINGS)
    queries = answers.answer_queries(folder / "queries.jsonl", checkpoint)
    shared = [
        "--corpus",
        str(folder / "corpus" / "*.jsonl.gz"),
        "--model",
        str(checkpoint),
        "--index",
        str(folder / "index"),
    ]
    sizes = ["--recipe", "paper", "--block_rows", "32", "--block_columns", "32", "--long_documents", "split"]
    for command, words in (
        ("fit", [*shared, *sizes, "--optimizer_state", str(checkpoint)]),
        ("build-index", shared),
        ("score", [*shared[2:], "--queries", str(queries), "--output", str(folder / "results.jsonl"), "--top_k", "10"]),
    ):
        if cli.call(command, words) != cli.EXIT_DONE:
            return 1
    describe(folder, documents, args.output)
    return 0


def write_corpus(shared: Path, folder: Path) -> int:
    """Shards, queries and annotations; returns the number of documents."""
    generator = random.Random(0)
    patterns = collections.defaultdict(list)
    for line in read_jsonl(shared / "pararel" / "patterns.jsonl"):
        patterns[line["relation"]].append(line["pattern"])
    held_out = {
        relation: next((p for p in found if p.rstrip(" .").endswith("[Y]") and p.startswith("[X]")), None)
        for relation, found in patterns.items()
    }
    facts = read_jsonl(shared / "pararel" / "facts.jsonl")
    usable = [
        fact for fact in facts if held_out[fact["relation"]] and len(patterns[fact["relation"]]) > PATTERNS_PER_FACT
    ]
    documents: list[dict[str, str]] = []
    stating: dict[str, list[str]] = {}
    queries = []
    for fact in generator.sample(usable, FACTS):
        left_out = held_out[fact["relation"]]
        others = [pattern for pattern in patterns[fact["relation"]] if pattern != left_out]
        for number, pattern in enumerate(generator.sample(others, PATTERNS_PER_FACT)):
            name = f"{fact['relation']}/{fact['fact_id'][:8]}/{number}"
            text = pattern.replace("[X]", fact["subject"]).replace("[Y]", fact["object"])
            documents.append({"id": name, "text": text})
            stating.setdefault(fact["fact_id"], []).append(name)
        prompt = left_out.rstrip(" .").removesuffix("[Y]").replace("[X]", fact["subject"]).strip()
        queries.append(
            {
                "example_id": fact["fact_id"],
                "inputs_plaintext": prompt,
                "targets_plaintext": " " + fact["object"],
                **fact,
            }
        )
    for number, passage in enumerate(wikitext_passages(shared / "wikitext2" / "valid.txt")):
        documents.append({"id": f"wikitext/{number}", "text": passage})
    generator.shuffle(documents)
    for shard in range(SHARDS):
        content = gzip.compress(jsonl(documents[shard::SHARDS]), mtime=0)
        write_if_changed(str(folder / "corpus" / f"shard-{shard:02d}.jsonl.gz"), content)
    write_if_changed(str(folder / "queries.jsonl"), jsonl(queries))
    write_if_changed(str(folder / "stating.json"), json.dumps(stating).encode())
    return len(documents)


def wikitext_passages(path: Path) -> list[str]:
    """Paragraphs in passages of whole sentences, about sixty words each."""
    passages = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("=") or len(line.split()) < 12:
            continue
        words: list[str] = []
        for sentence in line.strip().split(" . "):
            words += [*sentence.split(), "."]
            if len(words) >= WORDS_PER_PASSAGE:
                passages.append(" ".join(words))
                words = []
        if len(words) > 8:
            passages.append(" ".join(words))
    return passages


def describe(folder: Path, documents: int, output: Path) -> None:
    """Writes the document from the results."""
    stating = {fact: frozenset(ids) for fact, ids in json.loads((folder / "stating.json").read_text()).items()}
    results = read_jsonl(folder / "results.jsonl")
    answered = [result for result in results if result["answered"]]
    quality, everything = measure(answered, stating), measure(results, stating)
    measured = json.loads((folder / "model" / train.SETTINGS_FILE).read_text())["measured"]
    lines = [
        "# Real input",
        "",
        f"Made by `python -m benchmarks.real_input`: {documents:,} documents ({FACTS:,} ParaRel facts in {PATTERNS_PER_FACT} "
        f"patterns each, and WikiText-2 paragraphs), a Llama-shaped model of {measured['parameters']:,} parameters trained on "
        f"them ({SETTINGS.steps:,} steps of AdamW through `transformers.Trainer`), blocks of 32×32 (d = 8,192), the training "
        "run's own second moments, R_eval mixed in. Queries are in a pattern that no training sentence has.",
        "",
        f"The model answers {len(answered):,} of {len(results):,} queries. Among the ten first proponents of those that it "
        f"answers, a sentence that states the fact is found for {quality.recall_at_10:.1%} (MRR {quality.mrr:.2f}); over all "
        f"queries for {everything.recall_at_10:.1%} (MRR {everything.mrr:.2f}). One seed, one model: an example, no benchmark.",
        "",
        f"The {SHOWN} results below are a random draw (seed 0), half answered, half not, nothing left out; ✓ marks a sentence "
        "that states the fact.",
    ]
    generator = random.Random(0)
    missed = [result for result in results if not result["answered"]]
    drawn = generator.sample(answered, min(SHOWN // 2, len(answered))) + generator.sample(
        missed, min(SHOWN // 2, len(missed))
    )
    for result in drawn:
        verdict = "answered" if result["answered"] else "not answered"
        lines += ["", f"**{result['inputs_plaintext']}** → **{result['targets_plaintext'].strip()}** ({verdict})", ""]
        lines += ["| score | | proponent |", "| --- | --- | --- |"]
        rows = zip(result["proponent_scores"], result["proponent_ids"], result["proponents"], strict=True)
        for score, name, text in list(rows)[:5]:
            mark = "✓" if name in stating[result["fact_id"]] else ""
            cut = text if len(text) <= 160 else text[:160] + "…"
            lines.append(f"| {score:.3f} | {mark} | {cut.replace('|', '/')} |")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{output}: R@10 {quality.recall_at_10:.3f} over {len(answered)} answered queries")


if __name__ == "__main__":
    raise SystemExit(main())
