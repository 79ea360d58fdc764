"""The page as one file: nothing breaks out of its data, nothing is fetched, and it holds what the results hold."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.viewer import made
from trackstar.errors import TrackStarError
from trackstar.viewer import assets
from trackstar.viewer.export import Written, one_script, page_around_data, shortened, write_page
from trackstar.viewer.rows import open_run


class _Reader(html.parser.HTMLParser):
    """What a browser would make of the page: its elements, and the texts of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self._open: tuple[str, dict[str, str | None]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = (tag, dict(attrs))
            self.raw.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            tag, attributes, text = self.raw.pop()
            self.raw.append((tag, attributes, text + data))


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader


def _export(tmp_path: Path, lines: list[made.Line], **settings: Any) -> tuple[str, Written]:
    run = open_run("run", made.write(tmp_path / "r.jsonl", lines))
    written = write_page(str(tmp_path / "page.html"), [run], **settings)
    return (tmp_path / "page.html").read_text(encoding="utf-8"), written


def _data(page: str) -> Any:
    [text] = [text for tag, attributes, text in _read(page).raw if attributes.get("id") == "trackstar-data"]
    return json.loads(text)


def test_the_page_holds_what_the_results_hold(tmp_path: Path) -> None:
    lines = made.lines(6)
    page, written = _export(tmp_path, lines)
    [run] = _data(page)["runs"]
    assert run["records"] == lines
    assert (run["name"], [row["id"] for row in run["rows"]]) == ("run", [f"q{n}" for n in range(6)])
    assert written == Written(len(page.encode()), 6, 0)


def test_nothing_breaks_out_of_the_data(tmp_path: Path) -> None:
    lines = made.hostile()
    page, _ = _export(tmp_path, lines)
    assert [record["proponents"] for record in _data(page)["runs"][0]["records"]] == [
        line["proponents"] for line in lines
    ]
    # The same elements as without any data at all: no text has become markup.
    plain = _read("[]".join(page_around_data()))
    assert _read(page).tags == plain.tags
    inside = page.split('id="trackstar-data">')[1].split("</script>")[0]
    assert not re.search("[<>&\u2028\u2029\x00]", inside)


def test_names_of_runs_cannot_break_out_either(tmp_path: Path) -> None:
    run = open_run("</script><b>", made.write(tmp_path / "r.jsonl", made.lines(1)))
    write_page(str(tmp_path / "page.html"), [run, run])
    page = (tmp_path / "page.html").read_text()
    assert [run["name"] for run in _data(page)["runs"]] == ["</script><b>"] * 2


def test_the_policy_allows_the_script_and_the_style_and_nothing_else(tmp_path: Path) -> None:
    page, _ = _export(tmp_path, made.lines(1))
    reader = _read(page)
    [policy] = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in (policy or "").split(";"))
    assert directives["default-src"] == "'none'"
    assert "connect-src" not in directives
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [text] = [
            text
            for name, attributes, text in reader.raw
            if name == tag and attributes.get("type") != "application/json"
        ]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    assert not [
        tag for tag, a in reader.tags if a.get("src") or (tag == "link" and not (a["href"] or "").startswith("data:"))
    ]


def test_the_script_is_every_module_once_and_imports_nothing() -> None:
    modules = {name: asset.text for name, asset in assets.files().items()}
    script = one_script(modules)
    assert not re.search(r"^(import|export)\b(?!\()", script, re.MULTILINE)
    declared = re.findall(r"^(?:async )?(?:function\*?|class|const|let) ([\w$]+)", script, re.MULTILINE)
    assert len(declared) > 50
    assert sorted(declared) == sorted(set(declared))
    for name in ("filter.js", "main.js", "text.js"):
        own = re.findall(r"^export (?:function|class) (\w+)", modules[name], re.MULTILINE)
        assert set(own) <= set(declared)
    assert declared.index("h") < declared.index("QueryList") < declared.index("Page")


def test_modules_that_cannot_be_one_script() -> None:
    with pytest.raises(TrackStarError, match=r"b\.js: the page's file is missing"):
        one_script({"main.js": 'import { x } from "./b.js";\n'})
    with pytest.raises(TrackStarError, match="would end it"):
        one_script({"main.js": 'const a = "</SCRIPT>";\n'})


def test_no_script_of_the_page_makes_markup_or_code_from_text() -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser|createContextualFragment"
    forbidden = re.compile(markup + r"|\beval\b|new Function|\bFunction\(|setTimeout\(\s*[\"'`]")
    for asset in assets.files().values():
        if asset.name.endswith(".js"):
            assert not forbidden.search(asset.text), asset.name
    for asset in assets.files().values():
        assert not re.search(r"""["'(=]\s*(https?:)?//\w""", asset.text), asset.name


def test_a_page_may_hold_a_part_of_each_ranking(tmp_path: Path) -> None:
    lines = [*made.lines(3), made.minimal(proponent_tokens=[])]
    lines[0]["proponent_tokens"] = [[[0, 4, 0.1]]] * 12
    page, written = _export(tmp_path, lines, max_proponents=2)
    [run] = _data(page)["runs"]
    record = run["records"][0]
    assert written.cut == 3
    assert {name: len(value) for name, value in record.items() if name.startswith(("proponent", "opponent"))} == {
        "proponents": 2,
        "proponent_ids": 2,
        "proponent_scores": 2,
        "proponent_correct": 2,
        "proponent_tokens": 2,
        "opponents": 2,
        "opponent_ids": 2,
        "opponent_scores": 2,
    }
    assert record["8b_generations"] == lines[0]["8b_generations"]  # Two of them, and not of the ranking.
    assert [row["n"] for row in run["rows"]] == [12, 12, 12, 0]
    assert len(run["rows"][0]["marks"]) == 12  # Metrics stay those of all.
    assert run["records"][3]["proponents"] == run["records"][3]["proponent_tokens"] == []


def test_a_list_of_another_length_is_not_cut() -> None:
    record = {"proponents": ["a", "b", "c"], "opponents": [], "proponent_note": ["x"] * 5, "proponent_ids": [1, 2, 3]}
    assert shortened(record, 2) == {**record, "proponents": ["a", "b"], "proponent_ids": [1, 2]}
    assert shortened(record, 3) is record
