"""Traces by HTTP: what `score` says, progress, cancelling, history, many users, a full queue."""

import concurrent.futures
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import cli
from tests.end_to_end.world import World
from tests.server.running import ENDED, QUERY, Gated, Running, running, wait_for
from trackstar.corpus import Record
from trackstar.tracing import Tracer, open_index

PROMPTS = ["The capital of Italy is", "seven green", "Rome is a city in", "a river", "The old", "Paris is"]
TARGETS = [" Rome", " old river", " Italy", " in Paris", " city.", " a green city"]


def score(world: World, index: Path, folder: Path, *more: str) -> dict:
    """The line that `trackstar score` writes for QUERY."""
    query = {"inputs_plaintext": QUERY["prompt"], "targets_plaintext": QUERY["target"]}
    (folder / "queries.jsonl").write_text(json.dumps(query) + "\n")
    words = ["--index", str(index), "--model", str(world.model), "--queries", str(folder / "queries.jsonl")]
    words += ["--output", str(folder / "results.jsonl"), "--task_hessian", "none", *more]
    assert cli.main(["score", *words]) == 0
    return json.loads((folder / "results.jsonl").read_text())


def test_a_trace_is_what_score_says(server: Running, world: World, built: Path, tmp_path: Path) -> None:
    found = server.ended(server.ask(top_k=9, opponents=True))
    assert found["state"] == "done"
    assert found["error"] is None
    record, expected = found["result"], score(world, built, tmp_path, "--top_k", "9", "--scan_threads", "1")
    for end in ("proponent", "opponent"):
        assert len(record[f"{end}_ids"]) == 9
        assert record[f"{end}_ids"] == expected[f"{end}_ids"]
        assert record[f"{end}s"] == expected[f"{end}s"]
        np.testing.assert_allclose(record[f"{end}_scores"], expected[f"{end}_scores"], rtol=0, atol=1e-6)
    assert record["inputs_plaintext"] == QUERY["prompt"]
    assert record["targets_plaintext"] == QUERY["target"]
    assert record["example_id"] == found["id"]
    assert found["progress"]["fraction"] == 1.0


def test_without_opponents_there_are_none(server: Running) -> None:
    record = server.ended(server.ask(top_k=3))["result"]
    assert len(record["proponents"]) == 3
    assert record["opponents"] == record["opponent_ids"] == record["opponent_scores"] == []


def test_the_model_completes_and_its_completion_can_be_traced(server: Running, tracer: Tracer) -> None:
    asked = {"prompt": "The capital of", "max_new_tokens": 5}
    answer = server.call("POST", "/api/v1/completions", asked)
    assert answer.status == 200
    assert answer.json == {"prompt": asked["prompt"], "completion": tracer.complete("The capital of", 5)}
    if answer.json["completion"].strip():
        assert server.ended(server.ask(prompt=asked["prompt"], target=answer.json["completion"]))["state"] == "done"


@pytest.mark.parametrize("end", ["proponents", "opponents"])
def test_explanations_add_up_to_the_score(server: Running, end: str) -> None:
    trace = server.ended(server.ask(opponents=True))
    answer = server.call("POST", f"/api/v1/traces/{trace['id']}/explanations", {"ranks": [2, 1], "end": end})
    assert answer.status == 200, answer.body
    one = end[:-1]
    assert [explained["rank"] for explained in answer.json["explanations"]] == [2, 1]
    for explained in answer.json["explanations"]:
        place = explained["rank"] - 1
        assert explained["example_id"] == trace["result"][f"{one}_ids"][place]
        assert explained["index_score"] == trace["result"][f"{one}_scores"][place]
        assert explained["score"] == pytest.approx(explained["index_score"], abs=0.01)  # bfloat16 in the index
        for parts in ("blocks", "layers"):
            assert sum(part["contribution"] for part in explained[parts]) == pytest.approx(explained["score"], abs=1e-4)
        for side in ("document", "query"):
            tokens = explained[side]
            assert sum(tokens["by_position"]) == pytest.approx(explained["score"], abs=1e-4)
            ends = [0] + [part[1] for part in tokens["segments"]]
            assert all(before <= part[0] < part[1] for before, part in zip(ends, tokens["segments"], strict=False))
            assert ends[-1] <= len(tokens["text"])
            inside = [i for i, (start, end) in enumerate(tokens["spans"]) if end > start]  # not an end of text
            for name, values in (("segments", "by_position"), ("target_segments", "by_target")):
                assert sum(part[2] for part in tokens[name]) == pytest.approx(sum(tokens[values][i] for i in inside))
        assert explained["document"]["text"] == trace["result"][end][place]


def test_an_index_of_the_mlps_alone_is_explained_by_these(mlp_tracer: Tracer) -> None:
    """The index scores sign bits; what is explained is the score of the numbers that they are the signs of."""
    with running(mlp_tracer) as server:
        trace = server.ended(server.ask())
        answer = server.call(
            "POST", f"/api/v1/traces/{trace['id']}/explanations", {"ranks": [1, 2], "end": "proponents"}
        )
    encoder = mlp_tracer.encoder
    [query] = encoder.encode([encoder.tokenization.query("q", QUERY["prompt"], QUERY["target"])])[0].vectors
    for explained, text in zip(answer.json["explanations"], trace["result"]["proponents"], strict=False):
        record = Record(explained["example_id"], "", 0, text, None)
        [document] = encoder.encode(encoder.tokenization.documents(record)[0])[0].vectors
        assert explained["score"] == pytest.approx(float(document @ query), abs=1e-4)
        signs = torch.where(document >= 0, 1.0, -1.0) / len(document) ** 0.5
        assert explained["index_score"] == pytest.approx(float(signs @ query), abs=5e-4)
        assert [part["name"] for part in explained["blocks"]] == [weight.name for weight in encoder.loaded.weights]
        assert [part["kind"] for part in explained["layers"]] == ["mlp"] * 3
        for parts in ("blocks", "layers"):
            assert sum(part["contribution"] for part in explained[parts]) == pytest.approx(explained["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("ranks", "message"), [([0], "rank 0"), ([99], "rank 99"), ([-1], "rank -1"), ([1] * 30, "30 ranks")]
)
def test_ranks_that_cannot_be_explained(server: Running, ranks: list[int], message: str) -> None:
    trace_id = server.ended(server.ask())["id"]
    answer = server.call("POST", f"/api/v1/traces/{trace_id}/explanations", {"ranks": ranks})
    assert answer.status == 422
    assert message in answer.error["message"]


def test_progress_comes_as_events_and_by_asking(gated: Gated) -> None:
    with running(gated) as server:
        trace_id = server.ask()
        num_files = len(gated._tracer._state.snapshot.files)
        assert num_files > 3
        with server.events(trace_id) as events:
            name, state = next(event for event in events if event[1]["progress"]["stage"] == "scanning")
            assert (name, state["state"], state["progress"]["fraction"]) == ("progress", "running", 0.0)
            gated.step()
            wait_for(lambda: server.get(f"/traces/{trace_id}"), lambda trace: trace["progress"]["fraction"] > 0)
            halfway = server.get(f"/traces/{trace_id}")
            assert halfway["result"] is None
            assert 0 < halfway["progress"]["rows"] < gated.num_examples
            assert halfway["progress"]["rows_per_second"] > 0
            assert halfway["progress"]["seconds_left"] > 0
            gated.open()
            rest = list(events)
        assert {name for name, _ in rest[:-1]} <= {"progress"}
        assert rest[-1][0] == "end"
        assert rest[-1][1]["state"] == "done"
        fractions = [state["progress"]["fraction"] for _, state in rest]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        with server.events(trace_id) as events:  # of a trace that has ended: the end at once
            assert [name for name, _ in events] == ["end"]


def test_cancelling(gated: Gated) -> None:
    with running(gated) as server:
        first, second, third = (server.ask(target=target) for target in TARGETS[:3])
        server.state(first, "running")
        assert [server.get(f"/traces/{i}")["before"] for i in (first, second, third)] == [0, 0, 1]
        waiting = server.call("DELETE", f"/api/v1/traces/{second}")
        assert (waiting.status, waiting.json["state"]) == (200, "cancelled")
        assert server.get(f"/traces/{third}")["before"] == 0
        assert server.call("DELETE", f"/api/v1/traces/{first}").status == 200
        assert server.ended(first)["state"] == "cancelled"
        gated.open()
        done = server.ended(third)
        assert done["state"] == "done"
        for _ in range(2):  # Too late: nothing changes.
            answer = server.call("DELETE", f"/api/v1/traces/{third}")
            assert (answer.status, answer.json["state"]) == (200, "done")
        assert server.get(f"/traces/{third}")["result"] == done["result"]
        assert server.call("DELETE", "/api/v1/traces/nonsense").status == 404


def test_traces_that_wait_together_share_a_scan(gated: Gated, tracer: Tracer) -> None:
    """Each keeps its own size, progress, cancelling and place in the history, and gets what it would get alone."""
    asked = [
        {"prompt": PROMPTS[0], "target": TARGETS[0], "top_k": 3, "opponents": True},
        {"prompt": PROMPTS[1], "target": TARGETS[1], "top_k": 40, "opponents": False},
        {"prompt": PROMPTS[2], "target": TARGETS[2], "top_k": 1, "opponents": True},
        {"prompt": PROMPTS[3], "target": TARGETS[3], "top_k": 7, "opponents": False},
    ]
    with running(gated, max_batch=3) as server:
        first = server.ask()
        server.state(first, "running")
        ids = [server.ask(**fields) for fields in asked]
        assert [server.get(f"/traces/{trace_id}")["before"] for trace_id in ids] == [0, 1, 2, 3]
        assert server.call("DELETE", f"/api/v1/traces/{first}").status == 200  # its scan ends, the next begins
        for trace_id in ids[:3]:
            scanning = server.state(trace_id, "running")
            assert scanning["before"] == 0
        assert server.get(f"/traces/{ids[3]}")["state"] == "queued"
        gated.step()
        wait_for(
            lambda: [server.get(f"/traces/{trace_id}")["progress"]["fraction"] for trace_id in ids[:3]],
            lambda shares: min(shares) > 0,
        )
        assert server.call("DELETE", f"/api/v1/traces/{ids[1]}").status == 200
        assert server.ended(ids[1])["state"] == "cancelled"
        gated.open()
        found = [server.ended(trace_id) for trace_id in ids]
        assert [trace["state"] for trace in found] == ["done", "cancelled", "done", "done"]
        assert gated.batches == [1, 3, 1]
        assert [trace["id"] for trace in server.get("/traces")["traces"]] == [first, *ids][::-1]
    for fields, trace in zip(asked, found, strict=True):
        if trace["state"] == "cancelled":
            continue
        alone = tracer.trace(fields["prompt"], fields["target"], fields["top_k"], fields["opponents"])
        for end, examples in (("proponent", alone.proponents), ("opponent", alone.opponents)):
            assert trace["result"][f"{end}_ids"] == [example.example_id for example in examples]
            assert trace["result"][f"{end}_scores"] == [example.score for example in examples]


def test_a_trace_that_is_not_done_cannot_be_explained(gated: Gated) -> None:
    with running(gated) as server:
        trace_id = server.ask()
        answer = server.call("POST", f"/api/v1/traces/{trace_id}/explanations", {"ranks": [1]})
        assert (answer.status, answer.error["code"]) == (409, "not_done")


def test_the_history_is_bounded(tracer: Tracer) -> None:
    with running(tracer, max_history=3) as server:
        ids = [server.ask(target=target) for target in TARGETS]
        for trace_id in ids[-3:]:
            assert server.ended(trace_id)["state"] == "done"
        listed = server.get("/traces")["traces"]
        assert [trace["id"] for trace in listed] == ids[:-4:-1]
        assert all("result" not in trace for trace in listed)
        assert [trace["target"] for trace in listed] == TARGETS[:-4:-1]
        gone = server.call("GET", f"/api/v1/traces/{ids[0]}")
        assert (gone.status, gone.error["code"]) == (404, "no_such_trace")


def test_results_are_forgotten_where_they_take_too_much_memory(tracer: Tracer) -> None:
    with running(tracer, max_history_bytes=1) as server:
        for target in TARGETS[:3]:
            last = server.ask(target=target)
            assert server.ended(last)["state"] == "done"  # the last is kept whatever its size
        assert [trace["id"] for trace in server.get("/traces")["traces"]] == [last]


def test_many_users_at_once(tracer: Tracer) -> None:
    queries = [(f"{prompt} {number}", TARGETS[number % 6]) for number, prompt in enumerate(PROMPTS * 4)][:20]

    def use(query: tuple[str, str]) -> dict:
        prompt, target = query
        completed = server.call("POST", "/api/v1/completions", {"prompt": prompt, "max_new_tokens": 2})
        assert completed.status in (200, 503)
        found = server.ended(server.ask(prompt=prompt, target=target, opponents=True))
        explained = server.call("POST", f"/api/v1/traces/{found['id']}/explanations", {"ranks": [1]})
        assert explained.status in (200, 503)
        return found

    with running(tracer, max_queued=20) as server, concurrent.futures.ThreadPoolExecutor(20) as pool:
        for (prompt, target), found in zip(queries, pool.map(use, queries), strict=True):
            assert found["state"] == "done", found["error"]
            alone = tracer.trace(prompt, target, QUERY["top_k"], opponents=True)
            assert found["result"]["proponent_ids"] == [example.example_id for example in alone.proponents]
            assert found["result"]["opponent_scores"] == [example.score for example in alone.opponents]
        assert len(server.get("/traces")["traces"]) == 20


def test_a_full_queue_says_when_to_come_again(gated: Gated) -> None:
    with running(gated, max_queued=2) as server:
        first = server.ask()
        server.state(first, "running")
        waiting = [server.ask(), server.ask()]
        refused = server.call("POST", "/api/v1/traces", QUERY)
        assert (refused.status, refused.error["code"]) == (503, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        gated.open()
        assert [server.ended(trace_id)["state"] for trace_id in [first, *waiting]] == ["done"] * 3
        assert server.ended(server.ask())["state"] == "done"


def test_a_trace_that_takes_too_long_ends(gated: Gated) -> None:
    with running(gated, trace_seconds=1) as server:
        found = server.ended(server.ask())
        assert (found["state"], found["error"]["code"]) == ("failed", "timeout")
        gated.open()
        assert server.ended(server.ask())["state"] == "done"


def test_what_is_taken_down_is_in_no_result_from_then_on(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "index")
    own = open_index(str(tmp_path / "index"), str(world.model), "cpu", threads=1)
    with running(own) as server:
        before = server.ended(server.ask())["result"]["proponent_ids"]
        (tmp_path / "ids.txt").write_text(before[0] + "\n")
        assert cli.main(["remove", "--index", str(tmp_path / "index"), "--ids", str(tmp_path / "ids.txt")]) == 0
        after = server.ended(server.ask())["result"]["proponent_ids"]
        assert before[0] not in after
        assert after[:-1] == before[1:]


def test_a_new_snapshot_is_taken_unless_one_was_named(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "index")
    own, kept = (open_index(str(tmp_path / "index"), str(world.model), "cpu", threads=1) for _ in range(2))
    with running(own) as server, running(kept, follow=False) as fixed:
        first = server.ended(server.ask())["snapshot"]
        assert fixed.ended(fixed.ask())["snapshot"] == first
        opened = own._state.index
        opened.commit(opened.snapshot().files[1:])
        found = server.ended(server.ask())
        assert found["snapshot"] == first + 1
        assert found["result"]["num_examples"] < fixed.ended(fixed.ask())["result"]["num_examples"]
        assert server.get("/info")["snapshot"] == first + 1
        assert fixed.get("/info")["snapshot"] == first


def test_a_damaged_index_fails_the_trace_and_not_the_server(world: World, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "index")
    own = open_index(str(tmp_path / "index"), str(world.model), "cpu", threads=1)
    for path in (tmp_path / "index" / "encodings").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    with running(own) as server:
        found = server.ended(server.ask())
        assert (found["state"], found["error"]["code"]) == ("failed", "failed")
        assert ".parquet" in found["error"]["message"]
        assert server.get("/healthz") == {"status": "ok"}


def test_info(server: Running, tracer: Tracer) -> None:
    info = server.get("/info")
    assert info["live"] is True
    assert info["index"] == tracer.uri
    assert info["spec_hash"] == tracer.spec.hash
    assert info["spec"]["max_length"] == tracer.spec.max_length == info["limits"]["max_tokens"]
    assert (info["rows"], info["snapshot"], info["model"]) == (tracer.num_examples, tracer.version, "the model")
    assert info["limits"]["max_top_k"] == 1000


def test_states(server: Running) -> None:
    assert {trace["state"] for trace in server.get("/traces")["traces"]} <= {*ENDED, "queued", "running"}
