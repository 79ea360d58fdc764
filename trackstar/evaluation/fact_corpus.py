"""Documents, queries and the facts that the documents state: what fact tracing is measured on.

On disk, below one folder, all of it JSONL:

- `corpus/shard-*.jsonl.gz`: `id`, `text`, `kind`.
- `queries.jsonl`: `example_id`, `inputs_plaintext`, `targets_plaintext`, `fact_id`, `relation`, `subject`, `object`,
  `num_gold`.
- `facts.jsonl`, the annotations that `trackstar.evaluation.facts` reads: `fact_id`, `relation`, `subject`, `object`,
  `gold_ids`; for a contradicted fact `alternatives`, object → ids of the documents that say so; where known `aliases`.
- `about.json`: counts, and what was left out and why.
"""

import dataclasses
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.json_lines import jsonl, write_if_changed

Kind = Literal["statement", "paragraph", "distractor", "contradiction", "passage"]


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One training document.

    Args:
        id: Unique in its corpus.
        text: Plain text.
        kind: "statement", one sentence that states one fact; "paragraph", sentences that state several;
            "distractor", names a fact's subject and object and states something else; "contradiction", states another
            object than most documents do; "passage", other text.
    """

    id: str
    text: str
    kind: Kind


@dataclasses.dataclass(frozen=True, slots=True)
class FactQuery:
    """A prompt that asks for a fact's object, in words that no document uses.

    Args:
        example_id: Unique among the queries.
        inputs_plaintext: The prompt, without a space at its end.
        targets_plaintext: The target, with a space at its start; prompt + target is the sentence, without its full stop.
        fact_id: Of the annotation.
        relation: Name of the relation.
        subject: Named in the prompt.
        object: The target without the space.
        num_gold: Documents that state it; the frequency by which results are bucketed.
    """

    example_id: str
    inputs_plaintext: str
    targets_plaintext: str
    fact_id: str
    relation: str
    subject: str
    object: str
    num_gold: int


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """Which documents state a fact.

    Args:
        fact_id: Unique among the annotations.
        relation: Name of the relation.
        subject: As the documents name it.
        object: What `gold_ids` say.
        gold_ids: Ids of the documents that state it, in the corpus's order.
        alternatives: For a contradicted fact, each object that is said, `object` among them → the documents that say it.
        aliases: Other names of the object, where known.
    """

    fact_id: str
    relation: str
    subject: str
    object: str
    gold_ids: tuple[str, ...]
    alternatives: Mapping[str, tuple[str, ...]] | None = None
    aliases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The line of `facts.jsonl`; fields that hold nothing are left out."""
        line: dict[str, Any] = {
            "fact_id": self.fact_id,
            "relation": self.relation,
            "subject": self.subject,
            "object": self.object,
            "gold_ids": list(self.gold_ids),
        }
        if self.alternatives is not None:
            line["alternatives"] = {said: list(ids) for said, ids in self.alternatives.items()}
        if self.aliases:
            line["aliases"] = list(self.aliases)
        return line


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus, its queries and its annotations.

    Args:
        documents: In the corpus's order.
        queries: One a fact.
        facts: In the queries' order.
        notes: What was left out → why; for people.

    Raises:
        TrackStarError: an id twice, or an annotation of a document or a query of a fact that is not there.
    """

    documents: Sequence[Document]
    queries: Sequence[FactQuery]
    facts: Sequence[Annotation]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        documents = _unique((document.id for document in self.documents), "document")
        facts = _unique((fact.fact_id for fact in self.facts), "fact")
        _unique((query.example_id for query in self.queries), "query")
        for fact in self.facts:
            stated = [fact.gold_ids, *(fact.alternatives or {}).values()]
            absent = next((name for ids in stated for name in ids if name not in documents), None)
            if absent is not None:
                raise TrackStarError(f"fact {fact.fact_id!r}: its document {absent!r} is not in the corpus")
        for query in self.queries:
            if query.fact_id not in facts:
                raise TrackStarError(f"query {query.example_id!r}: its fact {query.fact_id!r} has no annotation")


@dataclasses.dataclass(frozen=True)
class CorpusFiles:
    """Where `write_corpus` put things: a glob of the shards, and three files."""

    shards: str
    queries: str
    facts: str
    about: str


def with_answers(corpus: Corpus, answers: Mapping[str, str]) -> Corpus:
    """The corpus with the target of each contradicted fact's query set to what a model answers.

    Where the answer is one of the objects that documents state, target, object and gold documents become that object's;
    else, and for facts that are not contradicted, all stays as it is.

    Args:
        corpus: Is not changed.
        answers: `example_id` → the object that the model says; spaces around it do not count. Queries may be missing.

    Raises:
        TrackStarError: an answer to a query that is not there.
    """
    position = {fact.fact_id: at for at, fact in enumerate(corpus.facts)}
    facts, queries = list(corpus.facts), list(corpus.queries)
    unknown = sorted(set(answers) - {query.example_id for query in queries})
    if unknown:
        raise TrackStarError(f"an answer to {unknown[0]!r}, which is none of the corpus's {len(queries):,} queries")
    for at, query in enumerate(queries):
        fact = facts[position[query.fact_id]]
        said = answers.get(query.example_id, "").strip()
        if said == fact.object or said not in (fact.alternatives or {}):
            continue
        gold_ids = (fact.alternatives or {})[said]
        facts[position[query.fact_id]] = dataclasses.replace(fact, object=said, gold_ids=gold_ids)
        queries[at] = dataclasses.replace(query, targets_plaintext=" " + said, object=said, num_gold=len(gold_ids))
    return dataclasses.replace(corpus, queries=queries, facts=facts)


def write_corpus(corpus: Corpus, folder: str, shards: int = 4) -> CorpusFiles:
    """Writes the corpus; equal corpora give equal bytes, and a file that holds them already is left as it is.

    Args:
        corpus: Documents are dealt out to the shards in turn.
        folder: Local path or object store; shards of an earlier corpus that are not among the new ones are deleted.
        shards: Number of corpus files.

    Raises:
        TrackStarError: no shard asked for, or the folder cannot be written.
    """
    if shards < 1:
        raise TrackStarError(f"a corpus needs at least one shard, not {shards}")
    for number in range(shards):
        lines = jsonl(dataclasses.asdict(document) for document in corpus.documents[number::shards])
        write_if_changed(shard_name(folder, number), gzip.compress(lines, mtime=0))
    delete_other_shards(folder, shards)
    files = files_in(folder)
    write_annotations(corpus, files)
    return files


def shard_name(folder: str, number: int) -> str:
    """Where shard `number` of a corpus lies."""
    return storage.join(folder, "corpus", f"shard-{number:02d}.jsonl.gz")


def delete_other_shards(folder: str, shards: int) -> None:
    """Deletes what an earlier corpus of more shards has left."""
    kept = {storage.normalise(shard_name(folder, number)) for number in range(shards)}
    for found in storage.glob(files_in(folder).shards):
        if found.uri not in kept:
            storage.delete(found.uri)


def files_in(folder: str) -> CorpusFiles:
    """The names that `write_corpus` gives in a folder."""
    return CorpusFiles(
        storage.join(folder, "corpus", "shard-*.jsonl.gz"),
        storage.join(folder, "queries.jsonl"),
        storage.join(folder, "facts.jsonl"),
        storage.join(folder, "about.json"),
    )


def write_annotations(corpus: Corpus, files: CorpusFiles, more_passages: int = 0) -> None:
    """Queries, annotations and counts, without the shards.

    Args:
        corpus: What is written.
        files: Where.
        more_passages: Passages in the shards beside those that `corpus` holds; they are counted.
    """
    write_if_changed(files.queries, jsonl(dataclasses.asdict(query) for query in corpus.queries))
    write_if_changed(files.facts, jsonl(fact.to_dict() for fact in corpus.facts))
    counts = json.dumps(about(corpus, more_passages), ensure_ascii=False, indent=2) + "\n"
    write_if_changed(files.about, counts.encode())


def about(corpus: Corpus, more_passages: int = 0) -> dict[str, Any]:
    """Counts of documents by kind, of queries by relation and by number of gold documents, and the notes."""
    kinds = Counter(document.kind for document in corpus.documents)
    kinds.update({"passage": more_passages} if more_passages else {})
    relations = Counter(query.relation for query in corpus.queries)
    golds = Counter(query.num_gold for query in corpus.queries)
    return {
        "documents": kinds.total(),
        "documents_by_kind": {kind: kinds[kind] for kind in sorted(kinds)},
        "queries": len(corpus.queries),
        "queries_by_relation": {name: relations[name] for name in sorted(relations)},
        "queries_by_num_gold": {str(count): golds[count] for count in sorted(golds)},
        "contradicted": sum(fact.alternatives is not None for fact in corpus.facts),
        "notes": dict(corpus.notes),
    }


def _unique(names: Iterable[str], what: str) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TrackStarError(f"the {what} id {name!r} is used twice")
        seen.add(name)
    return seen
