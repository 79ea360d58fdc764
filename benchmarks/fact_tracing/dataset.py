"""One corpus of the benchmark, written, with a model trained on it and its answers."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fact_tracing import corpora, hard
from benchmarks.fact_tracing.gradients import Tell
from trackstar.demo.answers import answers
from trackstar.errors import TrackStarError
from trackstar.evaluation.fact_corpus import Corpus, with_answers, write_corpus
from trackstar.evaluation.facts import Fact
from trackstar.evaluation.trex import TrexSettings, load_trex
from trackstar.results import Query
from trackstar.small_models import TrainSettings, train_checkpoint

DATASETS = ("easy", "hard", "trex")


@dataclasses.dataclass(frozen=True)
class TrexFiles:
    """The paper's own files, where a person has them.

    Args:
        facts: `trex_facts_sample.jsonl`, or a file like it.
        sentences: Glob of `trex_sentences.jsonl-*`.
    """

    facts: str
    sentences: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A corpus with a trained model.

    Args:
        name: Of the corpus.
        folder: Where everything of it lies.
        corpus: Contradicted facts have the answer that the model gives as their object.
        checkpoint: Of the model.
        answered: For each query, whether the model answers it correctly.
    """

    name: str
    folder: Path
    corpus: Corpus
    checkpoint: Path
    answered: tuple[bool, ...]

    @cached_property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document.text for document in self.corpus.documents]

    @cached_property
    def ids(self) -> list[str]:
        """The documents' ids."""
        return [document.id for document in self.corpus.documents]

    @cached_property
    def queries(self) -> list[Query]:
        """The queries as results files hold them, `answered` among the fields."""
        made = []
        for query, answered in zip(self.corpus.queries, self.answered, strict=True):
            fields = {name: value for name, value in dataclasses.asdict(query).items() if name not in _QUERY_FIELDS}
            made.append(
                Query(
                    query.example_id, query.inputs_plaintext, query.targets_plaintext, {**fields, "answered": answered}
                )
            )
        return made

    @cached_property
    def facts(self) -> dict[str, Fact]:
        """The annotations."""
        return {f.fact_id: Fact(f.fact_id, frozenset(f.gold_ids), f.relation) for f in self.corpus.facts}


TREX_SENTENCES = 19_600_000
"""In the release."""
_QUERY_FIELDS = ("example_id", "inputs_plaintext", "targets_plaintext")


def build(
    name: str,
    facts: int,
    passages: int,
    trex: TrexFiles | None = None,
    words_per_passage: int = corpora.STANDARD.words_per_passage,
    seed: int = 0,
) -> Corpus:
    """One of the corpora: of ParaRel's facts and WikiText's passages, or of the paper's T-REx files.

    Args:
        name: "easy", "hard" or "trex".
        facts: How many.
        passages: How much other text.
        trex: For "trex": its files. So many of its sentences are taken as other text that they are about `passages`.
        words_per_passage: Words at which a passage of WikiText ends with its sentence.
        seed: Of all choices.

    Raises:
        TrackStarError: the data is not there, or has too few facts or passages.
    """
    if name == "trex":
        if trex is None:
            raise TrackStarError(
                "--datasets trex needs --trex_facts and --trex_sentences, files of the paper's release"
            )
        share = min(1.0, passages / TREX_SENTENCES)
        return load_trex(trex.facts, trex.sentences, TrexSettings(facts, share, seed))
    often = (8, 16) * max(1, facts // 100)
    settings = corpora.CorpusSettings(
        facts=facts, often=often, passages=passages, words_per_passage=words_per_passage, seed=seed
    )
    inputs = corpora.read_inputs(settings.words_per_passage)
    if name == "easy":
        return corpora.build_easy(*inputs, settings)
    return hard.build_hard(*inputs, hard.HardSettings(**dataclasses.asdict(settings)))


def prepare(name: str, corpus: Corpus, settings: TrainSettings, folder: Path, tell: Tell) -> Dataset:
    """Trains (or finds) the model, asks it everything, and writes corpus, queries and annotations as they then are.

    What the model says to the query of a contradicted fact becomes the query's target, where it is one of the objects that
    documents state.
    """
    tell(f"{name}: {len(corpus.documents):,} documents, {len(corpus.queries):,} queries")
    checkpoint = train_checkpoint([document.text for document in corpus.documents], folder / "model", settings)
    measured = json.loads((checkpoint / "training.json").read_text())["measured"]
    tell(f"{name}: {measured['parameters']:,} parameters, final loss {measured['final_loss']:.3f}")
    said = asked(corpus, checkpoint)
    corpus = with_answers(corpus, said)
    correct = tuple(query.example_id in said and said[query.example_id] == query.object for query in corpus.queries)
    tell(f"{name}: the model answers {sum(correct):,} of {len(correct):,} queries")
    write_corpus(corpus, str(folder))
    return Dataset(name, folder, corpus, checkpoint, correct)


def asked(corpus: Corpus, checkpoint: Path) -> dict[str, str]:
    """`example_id` → the object that the model says, where that is one that documents state."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    facts = {fact.fact_id: fact for fact in corpus.facts}
    lines = [
        {"example_id": query.example_id, "inputs_plaintext": query.inputs_plaintext, "targets_plaintext": " " + object}
        for query in corpus.queries
        for object in facts[query.fact_id].alternatives or [facts[query.fact_id].object]
    ]
    correct = answers(model, tokenizer, lines)
    return {
        line["example_id"]: line["targets_plaintext"].strip() for line, said in zip(lines, correct, strict=True) if said
    }


def sample(dataset: Dataset, count: int) -> list[int]:
    """Evenly spaced places among the queries that the model answers, or among all where it answers too few."""
    places: Sequence[int] = [place for place, answered in enumerate(dataset.answered) if answered]
    if len(places) < count:
        places = range(len(dataset.answered))
    count = min(count, len(places))
    return [places[i * len(places) // count] for i in range(count)]
