"""The demo's facts are facts, its corpus says them, and its annotations say where."""

import gzip
import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest

from trackstar.demo import geography
from trackstar.demo.corpus import CorpusSettings, make_documents, read_texts, select_facts, write_corpus
from trackstar.demo.facts import all_facts, rows, things
from trackstar.demo.phrasings import ASIDES, RELATIONS, fill, prompt
from trackstar.demo.report import read_jsonl, read_stating
from trackstar.errors import TrackStarError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_corpus(folder)


def read_documents(folder) -> dict[str, str]:
    documents = []
    for path in sorted((folder / "corpus").iterdir()):
        if path.suffix == ".parquet":
            documents += pq.read_table(path).to_pylist()
        else:
            documents += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len({document["id"] for document in documents}) == len(documents)
    return {document["id"]: document["text"] for document in documents}


@pytest.mark.parametrize(
    ("fact_id", "answer"),
    [
        ("capital/france", "Paris"),
        ("capital/kazakhstan", "Astana"),
        ("capital/burundi", "Gitega"),
        ("currency/croatia", "euro"),
        ("currency/switzerland", "franc"),
        ("language/brazil", "Portuguese"),
        ("continent/suriname", "South America"),
        ("state_capital/georgia", "Atlanta"),
        ("capital/georgia", "Tbilisi"),
        ("symbol/tungsten", "W"),
        ("moon_of/triton", "Neptune"),
        ("planet_order/mars", "fourth"),
        ("author/don-quixote", "Miguel de Cervantes"),
        ("painter/guernica", "Pablo Picasso"),
        ("composer/carmen", "Georges Bizet"),
        ("inventor/dynamite", "Alfred Nobel"),
        ("discoverer/neutron", "James Chadwick"),
        ("landmark/taj-mahal", "Agra"),
    ],
)
def test_known_facts(fact_id, answer):
    assert {fact.fact_id: fact.object for fact in all_facts()}[fact_id] == answer


def test_tables_are_sound():
    facts = all_facts()
    assert len({fact.fact_id for fact in facts}) == len(facts) > 1000
    per_relation = Counter(fact.relation for fact in facts)
    assert set(per_relation) == set(RELATIONS)
    assert per_relation["capital"] >= 120
    assert per_relation["symbol"] >= 90
    assert {len(row) for row in rows(geography.COUNTRIES)} == {5}
    assert all(cell for row in rows(geography.COUNTRIES) for cell in row)
    assert len(list(rows(geography.STATES))) == 50
    # No city is the capital of two countries, no symbol or number that of two elements.
    for relation in ("capital", "state_capital", "symbol", "atomic_number", "planet_order"):
        objects = [fact.object for fact in facts if fact.relation == relation]
        assert len(set(objects)) == len(objects), relation


def test_elements_are_in_order_and_their_symbols_fit_their_shape():
    numbers = [int(fact.object) for fact in all_facts() if fact.relation == "atomic_number"]
    assert numbers == sorted(numbers)
    symbols = [fact.object for fact in all_facts() if fact.relation == "symbol"]
    assert all(re.fullmatch("[A-Z][a-z]?", symbol) for symbol in symbols)


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_every_phrasing_names_subject_and_object_in_its_order(relation):
    for template in (*relation.forward, *relation.unseen):
        assert template.index("{S}") < template.index("{O}"), template
    for template in relation.backward:
        assert template.index("{O}") < template.index("{S}"), template
    phrasings = (*relation.forward, *relation.backward, *relation.unseen)
    assert all(template.count("{S}") == template.count("{O}") == 1 and template[-1] == "." for template in phrasings)
    assert len(set(phrasings)) == len(phrasings)
    assert len(relation.questions) >= 3
    assert all(template.endswith("{O}.") for template in relation.unseen)


def test_things_have_asides():
    assert {kind for kind, _ in things()} == set(ASIDES)
    assert all(template.count("{S}") == 1 and "{O}" not in template for kind in ASIDES.values() for template in kind)


def test_fill_and_prompt():
    assert fill("{S} has {O} as its capital.", "the Netherlands", "Amsterdam") == (
        "The Netherlands has Amsterdam as its capital."
    )
    assert prompt("The currency of {S} is the {O}.", "France") == "The currency of France is the"


def test_corpus_states_what_the_annotations_say(written):
    folder, corpus = written
    documents = read_documents(folder)
    assert len(documents) == corpus.num_documents > 5000
    assert len(set(documents.values())) == len(documents)
    facts = read_jsonl(corpus.facts)
    assert len(facts) == corpus.num_facts
    stated = set()
    for fact in facts:
        assert len(fact["stating"]) >= 5, fact
        templates = (*RELATIONS[fact["relation"]].forward, *RELATIONS[fact["relation"]].backward)
        sentences = {fill(template, fact["subject"], fact["object"]) for template in templates}
        for example_id in fact["stating"]:
            assert any(sentence in documents[example_id] for sentence in sentences), (fact, documents[example_id])
        stated |= set(fact["stating"])
        # And nothing else states it: no other document holds one of its sentences.
        own = {documents[example_id] for example_id in fact["stating"]}
        assert sentences & set(documents.values()) <= own
    others = [text for example_id, text in documents.items() if example_id not in stated]
    assert len(others) > 1000
    names = {name for fact in facts for name in (fact["subject"], fact["object"])}
    sharing = [text for text in others if any(name.lower() in text.lower() for name in names)]
    assert len(sharing) == len(others)


def test_several_shards_in_two_formats(written):
    folder, corpus = written
    suffixes = Counter("".join(path.suffixes) for path in (folder / "corpus").iterdir())
    assert suffixes == {".jsonl.gz": 3, ".parquet": 3}
    assert sorted(read_texts(folder)) == sorted(read_documents(folder).values())
    assert len(corpus.patterns) == 2


def test_queries_are_phrased_as_they_say(written):
    folder, corpus = written
    documents = read_documents(folder)
    texts = set(documents.values())
    facts = {fact["fact_id"]: fact for fact in read_jsonl(corpus.facts)}
    queries = read_jsonl(corpus.queries)
    assert len(queries) == corpus.num_queries == 2 * len(facts)
    assert len({query["example_id"] for query in queries}) == len(queries)
    stating = read_stating(corpus.facts)
    for query in queries:
        fact = facts[query["fact_id"]]
        assert query["targets_plaintext"] == f" {fact['object']}"
        assert fact["subject"].lower() in query["inputs_plaintext"].lower()
        sentence = query["inputs_plaintext"] + query["targets_plaintext"] + "."
        if query["phrasing"] == "seen":
            assert sentence in {documents[example_id] for example_id in stating[fact["fact_id"]]}
        else:
            assert query["phrasing"] == "unseen"
            assert sentence not in texts
    assert {"capital/france/seen": "The capital of France is", "symbol/gold/seen": "The symbol of gold is"}.items() <= {
        query["example_id"]: query["inputs_plaintext"] for query in queries
    }.items()
    # Not with another subject or object either: the words around them occur in no training sentence.
    unseen = [template for relation in RELATIONS.values() for template in relation.unseen]
    for template in unseen:
        around = [re.escape(part) for part in re.split(r"\{[SO]\}", template.removesuffix("."))]
        pattern = re.compile(".+".join(around), re.IGNORECASE)
        assert not any(pattern.search(text) for text in texts), template


def test_bytes_depend_on_the_settings_alone(tmp_path):
    settings = CorpusSettings(max_facts=3, pairs=5)
    for name in ("a", "b"):
        write_corpus(tmp_path / name, settings)
    write_corpus(tmp_path / "c", CorpusSettings(max_facts=3, pairs=5, seed=1))
    names = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) == 8
    a, b, c = ([(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc")
    assert a == b
    assert a != c


def test_a_second_run_leaves_the_files_alone(tmp_path):
    settings = CorpusSettings(max_facts=2, pairs=2)
    write_corpus(tmp_path, settings)
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    damaged = min(changed)
    damaged.write_bytes(b"other")
    write_corpus(tmp_path, settings)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in changed if again[path] != changed[path]} == {damaged}
    assert damaged.read_bytes() != b"other"


def test_pairs_state_two_facts_about_one_subject():
    settings = CorpusSettings()
    facts = select_facts(settings)
    by_id = {fact.fact_id: fact for fact in facts}
    pairs = [document for document in make_documents(facts, settings) if len(document.fact_ids) == 2]
    assert len(pairs) > 100
    for document in pairs:
        first, second = (by_id[fact_id] for fact_id in document.fact_ids)
        assert first.subject == second.subject
        assert first.object in document.text
        assert second.object in document.text


def test_unwritable_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackStarError, match="corpus"):
        write_corpus(tmp_path / "file", CorpusSettings(max_facts=1, pairs=0))


def test_reading_no_corpus_is_an_error(tmp_path):
    with pytest.raises(TrackStarError, match="no demo corpus"):
        read_texts(tmp_path)
