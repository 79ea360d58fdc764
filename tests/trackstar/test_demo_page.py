"""The demo's results as its page shows them: with texts, and marked by the annotations."""

import json
import re
from pathlib import Path

from pipelines import demo
from trackstar.demo.corpus import CorpusSettings, read_by_id, read_texts, write_corpus
from trackstar.demo.page import fill_texts
from trackstar.results import Query, Ranking, Result, read_results, write_results


def test_texts_are_filled_in_where_they_are_missing(tmp_path: Path) -> None:
    write_corpus(tmp_path, CorpusSettings(max_facts=3))
    texts = read_by_id(tmp_path)
    assert list(texts.values()) == read_texts(tmp_path)
    ids = list(texts)[:3]
    results = tmp_path / "r.jsonl"
    bare = Ranking(["", "", ""], ids, [3.0, 2.0, 1.0])
    known = Ranking(["own text", "", ""], [*ids[:2], "stranger"], [-3.0, -2.0, -1.0])
    write_results(str(results), [Result(Query("0", "p", "t"), "", bare, known)])
    fill_texts(results, tmp_path)
    [filled] = read_results(str(results))
    assert filled.proponents.texts == [texts[example_id] for example_id in ids]
    assert filled.opponents.texts == ["own text", texts[ids[1]], ""]
    before = results.stat().st_mtime_ns
    fill_texts(results, tmp_path)
    assert results.stat().st_mtime_ns == before


def test_the_page_holds_both_methods_marked(tmp_path: Path) -> None:
    written = write_corpus(tmp_path, CorpusSettings(max_facts=3))
    queries = [json.loads(line) for line in written.queries.read_text().splitlines()][:4]
    stating = {fact["fact_id"]: fact["stating"] for fact in map(json.loads, written.facts.read_text().splitlines())}
    ids = list(read_by_id(tmp_path))
    results = []
    for query in queries:
        fields = {name: query[name] for name in ("fact_id", "relation", "phrasing")}
        asked = Query(query["example_id"], query["inputs_plaintext"], query["targets_plaintext"], fields)
        chosen = [*ids[:30], stating[query["fact_id"]][0]]
        chosen = list(dict.fromkeys(chosen))
        results.append(Result(asked, "", Ranking([""] * len(chosen), chosen, [0.5] * len(chosen))))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("ours", "plain")}
    for path in files.values():
        write_results(str(path), results)
        fill_texts(path, tmp_path)
    page = demo._write_page(tmp_path, files, written.facts)
    found = re.search(r'id="trackstar-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    runs = json.loads(found[1])["runs"]
    assert [run["name"] for run in runs] == ["ours", "plain"]
    for run in runs:
        assert [row["marks"].count("1") >= 1 for row in run["rows"]] == [True] * 4
        for row, result in zip(run["rows"], results, strict=True):
            gold = stating[result.query.fields["fact_id"]]
            assert row["marks"] == "".join(str(int(i in gold)) for i in result.proponents.ids)
        assert {len(record["proponents"]) for record in run["records"]} == {20}
        assert all(text for record in run["records"] for text in record["proponents"])


def test_the_next_steps_name_what_there_is(tmp_path: Path) -> None:
    text = demo._next_steps(tmp_path, tmp_path / "page.html", [tmp_path / "a", tmp_path / "b"], tmp_path, tmp_path)
    assert f"{tmp_path}/page.html" in text
    assert f"trackstar view {tmp_path}/a {tmp_path}/b" in text
    assert ("trackstar serve" in text) == ("serve" in demo.cli.COMMANDS)
