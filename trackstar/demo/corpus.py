"""Writes the demo's corpus: shards of short documents, queries, and which document states which fact."""

import dataclasses
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trackstar.demo.facts import WELL_KNOWN, Fact, all_facts, element_descriptions, things
from trackstar.demo.phrasings import ASIDES, RELATIONS, fill, prompt
from trackstar.errors import TrackStarError
from trackstar.json_lines import jsonl, write_if_changed

# A relation of fewer facts is stated in every phrasing, or else too few sentences would be about it.
FEW_FACTS = 10


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """How much is written.

    Attributes:
        forward_per_fact: Sentences a fact that name its subject first.
        backward_per_fact: Sentences a fact that name its object first.
        pairs: Documents of two sentences that state two facts about one subject.
        asides_per_thing: Sentences that name a thing and state none of the facts.
        shards: Files; the first half gzipped JSONL, the rest Parquet.
        max_facts: Keep the first so many facts of every relation; None keeps all.
        seed: Of all choices.
    """

    forward_per_fact: int = 6
    backward_per_fact: int = 1
    pairs: int = 200
    asides_per_thing: int = 1
    shards: int = 6
    max_facts: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Document:
    """One training document and the facts it states."""

    example_id: str
    text: str
    fact_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DemoCorpus:
    """Where the corpus lies and what is in it.

    Attributes:
        patterns: Globs of the shards, one a format.
        queries: JSONL, one query a line, with `fact_id`, `relation` and `phrasing` ("seen" or "unseen").
        facts: JSONL, one fact a line, with `stating`: the ids of the documents that state it.
        num_documents: Documents in all shards.
        num_queries: Lines of `queries`.
        num_facts: Lines of `facts`.
    """

    patterns: tuple[str, ...]
    queries: Path
    facts: Path
    num_documents: int
    num_queries: int
    num_facts: int


def write_corpus(folder: Path, settings: CorpusSettings | None = None) -> DemoCorpus:
    """Writes the corpus into a folder; files that already hold the same bytes are left as they are.

    The bytes depend on the settings alone (and, for Parquet, on the version of pyarrow).

    Raises:
        TrackStarError: The folder cannot be written.
    """
    settings = settings or CorpusSettings()
    folder = Path(folder)
    facts = select_facts(settings)
    documents = make_documents(facts, settings)
    stating: dict[str, list[str]] = {fact.fact_id: [] for fact in facts}
    for document in documents:
        for fact_id in document.fact_ids:
            stating[fact_id].append(document.example_id)

    queries = make_queries(facts, documents)
    corpus = DemoCorpus(
        patterns=(str(folder / "corpus" / "*.jsonl.gz"), str(folder / "corpus" / "*.parquet")),
        queries=folder / "queries.jsonl",
        facts=folder / "facts.jsonl",
        num_documents=len(documents),
        num_queries=len(queries),
        num_facts=len(facts),
    )
    for number in range(settings.shards):
        part = documents[number * len(documents) // settings.shards : (number + 1) * len(documents) // settings.shards]
        if number < settings.shards // 2:
            write_if_changed(str(folder / "corpus" / f"shard-{number:02d}.jsonl.gz"), _jsonl_gz(part))
        else:
            write_if_changed(str(folder / "corpus" / f"shard-{number:02d}.parquet"), _parquet(part))
    write_if_changed(str(corpus.queries), jsonl(queries))
    write_if_changed(
        str(corpus.facts), jsonl({**dataclasses.asdict(fact), "stating": stating[fact.fact_id]} for fact in facts)
    )
    return corpus


def select_facts(settings: CorpusSettings) -> list[Fact]:
    """The facts that the corpus is about."""
    selected = []
    for name in RELATIONS:
        of_relation = [fact for fact in all_facts() if fact.relation == name]
        selected.extend(of_relation[: settings.max_facts])
    return selected


def make_documents(facts: list[Fact], settings: CorpusSettings) -> list[Document]:
    """All documents, shuffled and numbered in that order; no text occurs twice."""
    per_relation = Counter(fact.relation for fact in facts)
    stated_by: dict[str, list[str]] = {}  # text → ids of the facts it states, in order of creation
    for fact in facts:
        for text in _statements(fact, settings, every_phrasing=per_relation[fact.relation] < FEW_FACTS):
            stated_by.setdefault(text, []).append(fact.fact_id)
    for text, fact_ids in _pairs(facts, settings):
        stated_by.setdefault(text, []).extend(fact_ids)
    for text in _asides(facts, settings):
        stated_by.setdefault(text, [])

    texts = list(stated_by)
    random.Random(f"{settings.seed}/order").shuffle(texts)
    return [
        Document(f"demo-{number:05d}", text, tuple(dict.fromkeys(stated_by[text]))) for number, text in enumerate(texts)
    ]


def _statements(fact: Fact, settings: CorpusSettings, every_phrasing: bool) -> list[str]:
    """Sentences that state a fact; one of them at least ends in its object."""
    relation = RELATIONS[fact.relation]
    if every_phrasing:
        return [fill(t, fact.subject, fact.object) for t in (*relation.forward, *relation.backward)]
    chance = random.Random(f"{settings.seed}/{fact.fact_id}")
    question = relation.questions[0] if fact.fact_id in WELL_KNOWN else chance.choice(relation.questions)
    others = [template for template in relation.forward if template != question]
    chosen = [question, *chance.sample(others, settings.forward_per_fact - 1)]
    chosen += chance.sample(relation.backward, settings.backward_per_fact)
    return [fill(template, fact.subject, fact.object) for template in chosen]


def _pairs(facts: list[Fact], settings: CorpusSettings) -> Iterable[tuple[str, list[str]]]:
    """Documents of two sentences, each stating a fact about the same subject."""
    chance = random.Random(f"{settings.seed}/pairs")
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.relation not in ("state_capital", "planet_order"):  # Georgia and Mercury are two things each
            by_subject.setdefault(fact.subject, []).append(fact)
    several = [about for about in by_subject.values() if len(about) > 1]
    for _ in range(settings.pairs if several else 0):
        pair = chance.sample(chance.choice(several), 2)
        sentences = [fill(chance.choice(RELATIONS[f.relation].forward), f.subject, f.object) for f in pair]
        yield " ".join(sentences), [fact.fact_id for fact in pair]


def _asides(facts: list[Fact], settings: CorpusSettings) -> Iterable[str]:
    """Sentences that share a subject or an object with the facts and state something else."""
    chance = random.Random(f"{settings.seed}/asides")
    named = {name for fact in facts for name in (fact.subject, fact.object)}
    for kind, name in things():
        if name in named:
            templates = ASIDES[kind]
            for template in chance.sample(templates, min(settings.asides_per_thing, len(templates))):
                yield fill(template, name, "")
    yield from element_descriptions()


def make_queries(facts: list[Fact], documents: list[Document]) -> list[dict[str, str]]:
    """Two queries a fact: one phrased as in a training sentence that states it, one as in none at all."""
    texts = {document.text for document in documents}
    queries = []
    for number, fact in enumerate(facts):
        relation = RELATIONS[fact.relation]
        seen = [t for t in relation.questions if fill(t, fact.subject, fact.object) in texts]
        asked = {
            "seen": seen[0] if fact.fact_id in WELL_KNOWN else seen[number % len(seen)],
            "unseen": relation.unseen[number % len(relation.unseen)],
        }
        for phrasing, template in asked.items():
            queries.append(
                {
                    "example_id": f"{fact.fact_id}/{phrasing}",
                    "inputs_plaintext": prompt(template, fact.subject),
                    "targets_plaintext": f" {fact.object}",
                    "fact_id": fact.fact_id,
                    "relation": fact.relation,
                    "phrasing": phrasing,
                }
            )
    return queries


def _jsonl_gz(documents: list[Document]) -> bytes:
    return gzip.compress(jsonl({"id": d.example_id, "text": d.text} for d in documents), mtime=0)


def _parquet(documents: list[Document]) -> bytes:
    table = pa.table({"id": [d.example_id for d in documents], "text": [d.text for d in documents]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=500)
    return buffer.getvalue()


def read_texts(folder: Path) -> list[str]:
    """The texts of all documents, shard by shard.

    Raises:
        TrackStarError: There is no corpus in the folder.
    """
    return list(read_by_id(folder).values())


def read_by_id(folder: Path) -> dict[str, str]:
    """Id → text of all documents, shard by shard.

    Raises:
        TrackStarError: There is no corpus in the folder.
    """
    texts: dict[str, str] = {}
    for path in sorted((Path(folder) / "corpus").glob("shard-*")):
        if path.suffix == ".parquet":
            rows = pq.read_table(path, columns=["id", "text"]).to_pylist()
        else:
            rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        texts.update((row["id"], row["text"]) for row in rows)
    if not texts:
        raise TrackStarError(f"{folder}: no demo corpus here; write it first (write_corpus)")
    return texts
