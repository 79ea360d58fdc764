"""`trackstar view`: files, names, annotations, the exported page, and a server that ends with Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from pipelines import cli
from tests.viewer import made


@pytest.fixture(autouse=True)
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` configures logging for its process; pytest's own handlers stay here."""
    monkeypatch.setattr("pipelines.logs.configure", lambda *_, **__: None)


def _runs(page: Path) -> list[dict]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'id="trackstar-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])["runs"]


def test_a_page_is_exported(tmp_path: Path) -> None:
    first = made.write(tmp_path / "first.jsonl", made.lines(4))
    second = made.write(tmp_path / "second.jsonl", made.lines(4, seed=1))
    facts = made.write(tmp_path / "facts.jsonl", [{"fact_id": f"f{n}", "gold_ids": ["c4_1"]} for n in range(4)])
    page = tmp_path / "out" / "page.html"
    words = ["view", first, second, "--facts", facts, "--export", str(page), "--max_proponents", "3"]
    assert cli.main(words) == 0
    runs = _runs(page)
    assert [(run["name"], len(run["records"])) for run in runs] == [("first", 4), ("second", 4)]
    for run, seed in zip(runs, (0, 1), strict=True):
        for row, line in zip(run["rows"], made.lines(4, seed=seed), strict=True):
            assert row["marks"] == "".join(str(int(i == "c4_1")) for i in line["proponent_ids"])
        assert {len(record["proponents"]) for record in run["records"]} == {3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jsonl"], "none.jsonl: no such file"),
        (["r.jsonl", "r.jsonl"], "two files would have the same name"),
        (["r.jsonl", "--names", "a", "b"], "--names: 2 given for 1"),
        (["r.jsonl", "--max_proponents", "3"], "give --export FILE, too"),
        (["r.jsonl", "--port", "70000"], "is not a port from 0 to 65535, nor auto"),
        (["r.jsonl", "--facts", "r.jsonl"], "the field 'gold_ids' is missing"),
        (["bad.jsonl", "--export", "p.html"], "bad.jsonl, line 1: not JSON"),
        ([], "FILE"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    made.write(tmp_path / "r.jsonl", made.lines(1))
    (tmp_path / "bad.jsonl").write_text("{")
    assert cli.main(["view", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_answers_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    results = made.write(tmp_path / "r.jsonl", made.lines(3))
    command = [sys.executable, "-m", "pipelines", "view", results, "--no_browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url), process.communicate()[1]
        with urllib.request.urlopen(f"{url}api/v1/results", timeout=20) as answer:
            assert len(json.loads(answer.read())["runs"][0]["rows"]) == 3
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert out == ""


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    results = made.write(tmp_path / "r.jsonl", made.lines(1))
    (tmp_path / "file").write_text("")
    assert cli.main(["view", results, "--export", str(tmp_path / "file" / "page.html")]) != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "r.jsonl"]
