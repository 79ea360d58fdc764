"""Traces from one process: the same answers as the pipelines give, explained, cancelled, from many threads, with any text."""

import concurrent.futures
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trackstar
from pipelines import cli
from tests.end_to_end.world import World, make_corpus, make_model
from trackstar import storage
from trackstar.encoding_reader import EncodingReader
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.kept_files import KeptFiles
from trackstar.models import load_model
from trackstar.results import Query, read_results, write_results
from trackstar.trace import (
    BlockContribution,
    Explanation,
    RankedExample,
    TokenContributions,
    Trace,
    TraceCancelledError,
    TraceProgress,
    WeightContribution,
)
from trackstar.tracing import TraceQuery, Tracer, open_index

pytest_plugins = ["tests.gcs"]

PROMPT, TARGET = "The capital of France is", "Paris"
K = 17
SETTINGS = {
    "pooled": ["--recipe", "paper", "--moments", "none"],
    # Documents of more than 24 tokens become passages; exact moments, estimated on the sample.
    "passages": [
        *("--attributed", "all", "--projection", "gaussian", "--moments", "auto", "--preconditioner", "train"),
        *("--storage", "float32", "--max_length", "24", "--long_documents", "split", "--append_eos", "true"),
    ],
    # The default but for these: whitened, neither V nor R.
    "mlp": ["--attributed", "mlp", "--storage", "float32"],
}
WITH_R = ("pooled", "passages")


@dataclasses.dataclass(frozen=True)
class Built:
    """A world and its indexes."""

    world: World
    indexes: dict[str, Path]

    def tracer(self, name: str = "pooled", **more: object) -> Tracer:
        return open_index(str(self.indexes[name]), model=str(self.world.model), threads=1, **more)

    def score(self, name: str, output: Path, *more: str) -> list:
        queries = output.with_suffix(".queries")
        queries.write_text(json.dumps({"inputs_plaintext": PROMPT, "targets_plaintext": TARGET}) + "\n")
        words = ["--index", str(self.indexes[name]), "--model", str(self.world.model), "--queries", str(queries)]
        words += ["--output", str(output), "--top_k", str(K), "--scan_threads", "1", *more]
        assert cli.main(["score", *words]) == 0
        return read_results(str(output))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Indexes of one corpus; read only."""
    world = World(tmp_path_factory.mktemp("world"))
    make_model(world.model)
    make_corpus(world.corpus)
    indexes = {}
    for name, flags in SETTINGS.items():
        indexes[name] = world.root / name
        sizes = ["--block_rows", "6", "--block_columns", "6", "--sample_size", "60"]
        assert cli.main(["fit", *world.flags(indexes[name]), *sizes, *flags]) == 0
        assert world.build(indexes[name]) == 0
    return Built(world, indexes)


@pytest.fixture(scope="module")
def tracers(built: Built) -> dict[str, Tracer]:
    return {name: built.tracer(name) for name in SETTINGS}


@pytest.fixture
def own(built: Built, tmp_path: Path) -> Path:
    """An index of the test's own."""
    shutil.copytree(built.indexes["pooled"], tmp_path / "index")
    return tmp_path / "index"


def check_same(trace: Trace, expected: list) -> None:
    [result] = expected
    for found, ranking in ((trace.proponents, result.proponents), (trace.opponents, result.opponents)):
        assert [example.example_id for example in found] == list(ranking.ids)
        assert [example.text for example in found] == list(ranking.texts)
        np.testing.assert_allclose([example.score for example in found], ranking.scores, rtol=0, atol=1e-6)
        assert [example.rank for example in found] == list(range(1, K + 1))


# The same as `score`.


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("task_hessian", ["none", "identity"])
def test_a_trace_is_what_score_gives(built: Built, tmp_path: Path, name: str, task_hessian: str) -> None:
    expected = built.score(name, tmp_path / "r.jsonl", "--task_hessian", task_hessian)
    tracer = built.tracer(name, task_hessian=task_hessian)
    check_same(tracer.trace(PROMPT, TARGET, top_k=K, opponents=True), expected)
    check_same(tracer.trace(PROMPT, TARGET, top_k=K, opponents=True), expected)  # from files that are mapped by now


@pytest.mark.parametrize("name", WITH_R)
def test_under_a_kept_r_eval_too(built: Built, tmp_path: Path, name: str) -> None:
    kept = str(tmp_path / "r_eval")
    built.score(name, tmp_path / "a.jsonl", "--keep_task_hessian", kept)
    expected = built.score(name, tmp_path / "b.jsonl", "--task_hessian", kept, "--task_mixing", "0.3")
    tracer = built.tracer(name, task_hessian=kept, task_mixing=0.3)
    trace = tracer.trace(PROMPT, TARGET, top_k=K, opponents=True)
    check_same(trace, expected)
    check_explained(tracer, trace, 1e-4 if name == "passages" else 5e-3)


def test_what_a_trace_says_of_its_examples(built: Built, tracers: dict[str, Tracer]) -> None:
    import pyarrow.parquet as pq

    trace = tracers["pooled"].trace(PROMPT, TARGET, top_k=3)
    assert trace.opponents == ()
    assert (trace.version, trace.num_examples) == (0, tracers["pooled"].num_examples) == (0, 350)
    for example in trace.proponents:
        row = pq.read_table(example.file).slice(example.row, 1).to_pylist()[0]
        for field in ("example_id", "text", "shard", "position", "num_tokens", "loss"):
            assert getattr(example, field) == row[field]
    loaded = load_model(str(built.world.model))
    tokens = torch.tensor([loaded.tokenizer(f"{PROMPT} {TARGET}")["input_ids"]])
    log_p = loaded.model(tokens).logits[0].log_softmax(dim=-1)
    first = tokens.shape[1] - trace.num_target_tokens
    expected = -sum(float(log_p[t - 1, tokens[0, t]]) for t in range(first, tokens.shape[1]))
    assert trace.loss == pytest.approx(expected, rel=1e-5)


def test_the_model_may_be_in_memory_already(built: Built, tracers: dict[str, Tracer]) -> None:
    tracer = open_index(str(built.indexes["passages"]), load_model(str(built.world.model)), threads=1)
    found, expected = tracer.trace(PROMPT, TARGET), tracers["passages"].trace(PROMPT, TARGET)
    assert found.proponents == expected.proponents


def test_from_a_bucket_the_same(
    built: Built, tracers: dict[str, Tracer], gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKSTAR_CACHE", str(tmp_path))
    for name in ("passages", "model"):
        folder = built.world.root / name
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                storage.copy(str(path), f"{gcs}/{name}/{path.relative_to(folder)}")
    tracer = open_index(f"{gcs}/passages", model=f"{gcs}/model", threads=1)
    found = tracer.trace(PROMPT, TARGET, top_k=5, opponents=True)
    expected = tracers["passages"].trace(PROMPT, TARGET, top_k=5, opponents=True)
    assert [(e.example_id, e.score) for e in found.proponents] == [(e.example_id, e.score) for e in expected.proponents]
    assert [(e.example_id, e.score) for e in found.opponents] == [(e.example_id, e.score) for e in expected.opponents]
    assert tracer.explain(found, 1)[0].as_encoded


# Explanations.


def check_explained(tracer: Tracer, trace: Trace, tolerance: float) -> None:
    """Every contribution sums to the score that the index gave, as far as its encodings are not rounded."""
    for end in ("proponents", "opponents"):
        for explanation, example in zip(tracer.explain(trace, end=end), getattr(trace, end), strict=True):
            assert explanation.example == example
            assert explanation.as_encoded
            assert explanation.score == pytest.approx(example.score, abs=tolerance)
            sides = (explanation.document, explanation.query)
            sums = [values for side in sides for values in (side.by_position, side.by_target)]
            sums += [[p.contribution for p in getattr(explanation, part)] for part in ("weights", "blocks", "layers")]
            for values in sums:
                assert sum(values) == pytest.approx(explanation.score, abs=1e-4)


@pytest.mark.parametrize(("name", "tolerance"), [("pooled", 5e-3), ("passages", 1e-5), ("mlp", 1e-5)])
def test_contributions_sum_to_the_scores_of_the_index(tracers: dict[str, Tracer], name: str, tolerance: float) -> None:
    trace = tracers[name].trace(PROMPT, TARGET, top_k=12, opponents=True)
    check_explained(tracers[name], trace, tolerance)


def test_an_index_of_some_weights_is_explained_by_these_alone(built: Built, tracers: dict[str, Tracer]) -> None:
    """Against the blocks of the stored encodings, one a weight, and the query's."""
    import pyarrow.parquet as pq

    tracer = tracers["mlp"]
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(3) for part in ("gate", "up", "down")]
    trace = tracer.trace(PROMPT, TARGET, top_k=4)
    encoder = tracer.encoder
    assert [weight.name for weight in encoder.loaded.weights] == names
    [query] = encoder.encode([encoder.tokenization.query("q", PROMPT, TARGET)])[0].vectors.double().numpy()
    for explanation in tracer.explain(trace):
        example = explanation.example
        [stored] = pq.read_table(example.file, columns=["encoding"]).slice(example.row, 1)["encoding"].to_pylist()
        products = np.frombuffer(stored, "<f4").astype(np.float64) * query
        expected = products.reshape(len(names), 36).sum(axis=1)
        assert [part.name for part in explanation.weights] == names
        assert [part.kind for part in explanation.layers] == ["mlp"] * 3
        for parts in (explanation.weights, explanation.blocks):
            np.testing.assert_allclose([part.contribution for part in parts], expected, rtol=0, atol=1e-5)


def test_the_query_is_explained_with_its_own_words(tracers: dict[str, Tracer]) -> None:
    tracer = tracers["pooled"]
    trace = tracer.trace(PROMPT, TARGET, top_k=2)
    second, first = tracer.explain(trace, [2, 1])
    assert (second.example.rank, first.example.rank) == (2, 1)
    query = first.query
    assert query.text == f"{PROMPT} {TARGET}"
    assert "".join(query.pieces) == query.text
    assert query.text[query.spans[query.first_target][0] :] == f" {TARGET}"
    assert len(query.input_ids) - query.first_target == trace.num_target_tokens
    assert query.by_target is not None and not any(query.by_target[: query.first_target])
    assert first.document.text == first.example.text
    segments = first.document.segments()
    assert "".join(first.document.text[part.start : part.end] for part in segments) == first.document.text
    assert json.loads(json.dumps(first.to_dict()))["score"] == first.score
    assert [tracer.explain(trace, 1, by_target=False)[0].document.by_target] == [None]


def test_later_passages_are_explained_as_they_were_encoded(built: Built, tracers: dict[str, Tracer]) -> None:
    """One of each format: what went before a passage is not in its text, and comes from the corpus."""
    tracer = tracers["passages"]
    everything = tracer.trace(PROMPT, TARGET, top_k=tracer.num_examples)
    chosen = {}
    for example in everything.proponents:
        if example.example_id.endswith("#1"):
            chosen.setdefault(Path(example.shard).suffixes[-1], example)
    assert sorted(chosen) == [".gz", ".jsonl", ".parquet", ".txt", ".zst"]
    for explanation in tracer.explain(everything, [example.rank for example in chosen.values()]):
        assert explanation.as_encoded
        assert explanation.score == pytest.approx(explanation.example.score, abs=1e-5)
        assert explanation.document.text == explanation.example.text
        assert explanation.document.spans[0] == (0, 0)  # the context token is not in the text
        assert explanation.document.spans[1][0] == 0


def test_without_the_corpus_passages_are_explained_as_well_as_their_text_allows(built: Built, tmp_path: Path) -> None:
    tracer = built.tracer("passages")
    everything = tracer.trace(PROMPT, TARGET, top_k=tracer.num_examples)
    [later] = [example for example in everything.proponents if example.example_id.endswith("#1")][:1]
    [whole] = [example for example in everything.proponents if "#" not in example.example_id][:1]
    changed = dataclasses.replace(later, shard=str(tmp_path / "gone.jsonl"))
    trace = dataclasses.replace(everything, proponents=(changed, whole))
    first, second = tracer.explain(trace)
    assert not first.as_encoded
    assert second.as_encoded
    assert sum(first.document.by_position) == pytest.approx(first.score, abs=1e-4)
    bare = dataclasses.replace(trace, proponents=(dataclasses.replace(changed, text=""),))
    with pytest.raises(TrackStarError, match=r"#1: cannot be explained: the index holds no text of it, and the corpus"):
        tracer.explain(bare)
    there = dataclasses.replace(everything, proponents=(dataclasses.replace(later, text=""),))
    assert tracer.explain(there)[0].as_encoded  # an index without texts, and a corpus


# What it does while it runs.


def test_progress_and_cancelling(tracers: dict[str, Tracer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trackstar.index_scan._GROUP_BYTES", 1)
    tracer = tracers["pooled"]
    told: list[TraceProgress] = []
    trace = tracer.trace(PROMPT, TARGET, on_progress=told.append)
    assert [report.stage for report in told[:2]] == ["encoding", "scanning"]
    assert told[-1].stage == "reading"
    done = [report.done_bytes for report in told]
    assert done == sorted(done) and len(set(done)) > 5
    assert told[-1].done_bytes == told[-1].total_bytes == tracer.num_bytes
    assert told[-1].num_examples == trace.num_examples
    reports: list[TraceProgress] = []
    with pytest.raises(TraceCancelledError):
        tracer.trace(PROMPT, TARGET, on_progress=reports.append, cancel=lambda: len(reports) >= 4)
    assert len(reports) == 4
    with pytest.raises(TraceCancelledError):
        tracer.explain(trace, cancel=lambda: True)
    assert tracer.trace(PROMPT, TARGET).proponents == trace.proponents


QUERIES = [
    TraceQuery(PROMPT, TARGET, 5),
    TraceQuery("Rome is a", "green river", 40, opponents=True, example_id="mine"),
    TraceQuery(PROMPT, ""),
    TraceQuery("", "The old city of Italy", 1, opponents=True),
    TraceQuery(PROMPT, "Rome", 0),
    TraceQuery("seven", "old", 350),
]


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("task_hessian", ["none", "identity"])
def test_queries_that_share_a_scan_get_what_each_would_alone(built: Built, name: str, task_hessian: str) -> None:
    """To the last bit: "identity" changes the preconditioner, where a product for several queries could round otherwise."""
    tracer = built.tracer(name, task_hessian=task_hessian)
    found = dict(tracer.trace_all(QUERIES))
    assert sorted(found) == list(range(len(QUERIES)))
    for number, query in enumerate(QUERIES):
        outcome = found[number]
        settings = {"opponents": query.opponents, "example_id": query.example_id}
        if isinstance(outcome, TrackStarError):
            with pytest.raises(TrackStarError, match=re.escape(str(outcome))):
                tracer.trace(query.prompt, query.target, query.top_k, **settings)
        else:
            alone = tracer.trace(query.prompt, query.target, query.top_k, **settings)
            assert outcome == dataclasses.replace(alone, seconds=outcome.seconds)
    failed = [number for number, outcome in found.items() if isinstance(outcome, TrackStarError)]
    assert failed == [2, 4]


def test_a_scan_reads_the_index_once_for_all_queries(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = built.tracer()
    opened: list[str] = []
    plain = tracer._files.open
    monkeypatch.setattr(tracer._files, "open", lambda uri, dimension: opened.append(uri) or plain(uri, dimension))
    assert len(list(tracer.trace_all(QUERIES))) == len(QUERIES)
    assert sorted(opened) == sorted(file.uri for file in tracer._state.snapshot.files)


def test_one_query_of_a_scan_is_cancelled_and_the_others_go_on(
    tracers: dict[str, Tracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackstar.index_scan._GROUP_BYTES", 1)
    tracer = tracers["pooled"]
    told: dict[int, list[TraceProgress]] = {0: [], 1: [], 2: []}
    stops = {0: lambda: False, 1: lambda: len(told[1]) >= 4, 2: lambda: len(told[2]) >= 1}
    queries = [
        TraceQuery(PROMPT, target, 4, on_progress=told[number].append, cancel=stops[number])
        for number, target in enumerate([TARGET, "Rome", "green"])
    ]
    found = list(tracer.trace_all(queries))
    assert [number for number, _ in found] == [2, 1, 0]  # each as soon as it ends
    assert [isinstance(outcome, TraceCancelledError) for _, outcome in found] == [True, True, False]
    assert [len(told[number]) for number in (1, 2)] == [4, 1]
    alone = tracer.trace(PROMPT, TARGET, 4)
    assert found[2][1] == dataclasses.replace(alone, seconds=found[2][1].seconds)
    assert told[0][-1] == TraceProgress("reading", tracer.num_bytes, tracer.num_bytes, 350)
    everyone = [TraceQuery(PROMPT, TARGET, cancel=lambda: len(told[1]) >= 4)] * 2
    assert all(isinstance(outcome, TraceCancelledError) for _, outcome in tracer.trace_all(everyone))


def test_a_damaged_file_fails_every_query_of_the_scan(built: Built, own: Path) -> None:
    tracer = open_index(str(own), str(built.world.model), threads=1)
    for path in (own / "encodings").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    found = dict(tracer.trace_all(QUERIES))
    assert all(isinstance(outcome, TrackStarError) for outcome in found.values())
    assert sum(".parquet" in str(outcome) for outcome in found.values()) == 4


def test_many_threads_at_once_get_what_each_would_alone(built: Built) -> None:
    tracer = built.tracer("passages")
    targets = ["Paris", "Rome", "green river", "old city", "seven"]
    alone = [tracer.trace(PROMPT, target, top_k=4) for target in targets]
    explained = [tracer.explain(trace, 1)[0].to_dict() for trace in alone]
    said = tracer.complete(PROMPT, 6)

    def work(number: int) -> tuple[object, ...]:
        target = targets[number % len(targets)]
        trace = tracer.trace(PROMPT, target, top_k=4)
        tracer.refresh()
        return trace.proponents, tracer.explain(trace, 1)[0].to_dict(), tracer.complete(PROMPT, 6)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(15)))
    for number, (proponents, explanation, completion) in enumerate(found):
        assert proponents == alone[number % len(targets)].proponents
        assert explanation == explained[number % len(targets)]
        assert completion == said


def test_a_refresh_takes_the_last_snapshot(built: Built, own: Path) -> None:
    tracer = open_index(str(own), str(built.world.model), threads=1)
    before = tracer.trace(PROMPT, TARGET, top_k=350)
    index = Index.open(str(own))
    files = index.snapshot().files
    gone = next(file for file in files if file.uri == before.proponents[0].file)
    index.commit([file for file in files if file is not gone])
    assert tracer.trace(PROMPT, TARGET, top_k=350).proponents == before.proponents
    assert tracer.refresh() == tracer.version == 1
    after = tracer.trace(PROMPT, TARGET, top_k=350)
    assert after.version == 1 and after.num_examples == tracer.num_examples == 350 - gone.num_rows
    kept = [(e.example_id, e.score) for e in before.proponents if e.file != gone.uri]
    assert [(e.example_id, e.score) for e in after.proponents] == kept
    assert len(tracer._files) == len(files) - 1
    old = open_index(str(own), str(built.world.model), version=0, threads=1)
    assert old.trace(PROMPT, TARGET, top_k=350).proponents == before.proponents
    other = Index.create(str(own.parent / "other"), dataclasses.replace(index.spec, damping=0.5))
    other.supersede(index)
    with pytest.raises(TrackStarError, match=r"open it anew[\s\S]*damping: 0.1 here, 0.5 there"):
        tracer.refresh()


def test_take_downs_count_at_once(built: Built, own: Path) -> None:
    tracer = open_index(str(own), str(built.world.model), threads=1)
    before = tracer.trace(PROMPT, TARGET, top_k=350)
    first, second = before.proponents[0], next(e for e in before.proponents if e.shard != before.proponents[0].shard)
    ids = own.parent / "ids.txt"
    ids.write_text(first.example_id + "\n")
    assert cli.main(["remove", "--index", str(own), "--ids", str(ids)]) == 0
    assert first.example_id not in [example.example_id for example in tracer.trace(PROMPT, TARGET, 350).proponents]
    assert cli.main(["remove", "--index", str(own), "--shard", second.shard]) == 0
    expected = [e.score for e in before.proponents if e.shard != second.shard and e.example_id != first.example_id]
    after = tracer.trace(PROMPT, TARGET, 350)
    assert [example.score for example in after.proponents] == expected
    for example in (first, second):
        with pytest.raises(TrackStarError, match="was taken down after this trace was made"):
            tracer.explain(before, example.rank)


# Completions.


def greedy(built: Built, text: str, count: int) -> str:
    """The plain way: everything computed again for every token."""
    loaded = load_model(str(built.world.model))
    tokens = loaded.tokenizer(text)["input_ids"]
    new: list[int] = []
    for _ in range(count):
        token = int(loaded.model(torch.tensor([tokens + new])).logits[0, -1].argmax())
        if token == loaded.tokenizer.eos_token_id:
            break
        new.append(token)
    return loaded.tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")


def test_completions_are_greedy(built: Built) -> None:
    tracer = built.tracer()
    for prompt in (PROMPT, "Rome is a city in", "x"):
        said = tracer.complete(prompt, 9)
        assert said == greedy(built, prompt, 9)
        assert tracer.complete(prompt + " ", 9) == said.lstrip()
    tokens = tracer.encoder.loaded.tokenizer(PROMPT)["input_ids"]
    first = int(tracer.encoder.loaded.model(torch.tensor([tokens])).logits[0, -1].argmax())
    tracer.encoder.loaded.model.generation_config.eos_token_id = [first]
    assert tracer.complete(PROMPT, 9) == ""  # the model ends its text at once


def test_a_completion_ends_with_the_context(built: Built) -> None:
    tracer = built.tracer()
    count = len(tracer.encoder.loaded.tokenizer("Rome " * 40)["input_ids"])
    prompt = "Rome " * (40 * 120 // count)
    left = 128 - len(tracer.encoder.loaded.tokenizer(prompt.rstrip())["input_ids"])
    assert 0 < left < 40
    assert tracer.complete(prompt, 1000) == greedy(built, prompt.rstrip(), left).lstrip()
    with pytest.raises(TrackStarError, match=r"the prompt has \d+ tokens and the model's context 128: shorten it by"):
        tracer.complete("Rome " * 200)
    with pytest.raises(TraceCancelledError):
        tracer.complete(PROMPT, 9, cancel=lambda: True)


# Errors.


@pytest.mark.parametrize(
    ("prompt", "target", "settings", "message"),
    [
        (PROMPT, "", {}, "the target is empty"),
        (PROMPT, " \n", {}, "the target is empty"),
        ("\ud800", TARGET, {}, "half of a surrogate pair"),
        (PROMPT, TARGET, {"top_k": 0}, "top_k is 0; it must be positive"),
        (
            "Rome " * 200,
            TARGET,
            {},
            r"prompt and target have [\d,]+ tokens, \d of them the target's.*shorten the prompt by",
        ),
    ],
)
def test_queries_that_cannot_be_traced(
    tracers: dict[str, Tracer], prompt: str, target: str, settings: dict, message: str
) -> None:
    with pytest.raises(TrackStarError, match=message):
        tracers["pooled"].trace(prompt, target, **settings)


def test_other_errors_say_what_to_do(built: Built, tracers: dict[str, Tracer], tmp_path: Path) -> None:
    tracer = tracers["pooled"]
    trace = tracer.trace(PROMPT, TARGET, top_k=2)
    for ranks in (0, 3, [1, -1]):
        with pytest.raises(TrackStarError, match="this trace has 2 proponents; for more, trace with a larger top_k"):
            tracer.explain(trace, ranks)
    with pytest.raises(TrackStarError, match="trace with opponents=True"):
        tracer.explain(trace, 1, end="opponents")
    with pytest.raises(TrackStarError, match="it must be 'proponents' or 'opponents'"):
        tracer.explain(trace, 1, end="middle")
    with pytest.raises(TrackStarError, match="made with another index or preconditioner"):
        tracers["passages"].explain(trace, 1)
    with pytest.raises(TrackStarError, match="'auto' is R_eval of a set of queries"):
        built.tracer(task_hessian="auto")
    with pytest.raises(TrackStarError, match="max_new_tokens is 0"):
        tracer.complete(PROMPT, 0)
    with pytest.raises(TrackStarError, match="the prompt is empty"):
        tracer.complete(" ")
    with pytest.raises(TrackStarError, match="no index here"):
        open_index(str(tmp_path))
    bare = open_index(str(built.indexes["pooled"]), threads=1)
    assert bare.num_examples == 350
    with pytest.raises(TrackStarError, match=r"opened without a model.*model=CHECKPOINT"):
        bare.trace(PROMPT, TARGET)


def test_the_package_is_light_until_an_index_is_opened() -> None:
    program = (
        "import sys, trackstar; assert 'torch' not in sys.modules; trackstar.open_index; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert trackstar.open_index is open_index
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = trackstar.nothing


# Values that travel.


def test_a_trace_is_a_line_of_a_results_file(tracers: dict[str, Tracer], tmp_path: Path) -> None:
    trace = tracers["passages"].trace(PROMPT, TARGET, top_k=3, opponents=True, example_id="mine")
    write_results(str(tmp_path / "r.jsonl"), [trace.to_result("live")])
    [result] = read_results(str(tmp_path / "r.jsonl"))
    assert result == trace.to_result("live")
    assert (result.query.example_id, result.query_set) == ("mine", "live")
    (tmp_path / "d.jsonl").write_text(json.dumps(trace.to_dict("live")) + "\n")
    [full] = read_results(str(tmp_path / "d.jsonl"))
    assert full.proponents == result.proponents and full.opponents == result.opponents
    assert full.query.fields["proponent_shards"] == [example.shard for example in trace.proponents]
    assert full.query.fields["opponent_losses"] == [example.loss for example in trace.opponents]
    assert full.query.fields["num_examples"] == trace.num_examples


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</bdi></td></table></div><style>*{display:none}</style>",
    "\u202eevil\u2066 \u200f \u061c",
    "NUL \x00 escape \x1b[31m bell \x07 \x85",
    "half \ud800 pair, private \ue000, tag \U000e0041, line \u2028 paragraph \u2029",
    "long " * 250_000,
    "\"'&amp;` javascript:alert(1)",
    "",
]


class Checker(html.parser.HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(page: str) -> None:
    page.encode()  # no half of a pair
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.tags <= {"div", "style", "p", "b", "br", "bdi", "i", "table", "tr", "td", "th", "span"}
    assert checker.attributes <= {"class", "style", "title"}
    assert page.count("<style>") == 1
    hidden = "\u202e\u2066\u200f\u061c\x00\x1b\x07\x85\ue000\u2028\u2029\U000e0041"
    assert not any(character in page for character in hidden)


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_any_text_as_text(text: str) -> None:
    example = RankedExample(1, text, 0.5, text, text, 3, 2.5, 7, "file", 0)
    trace = Trace(Query("q", text, text), (example,), (example,), 1.5, 2, 0, 10, 0.25, "spec")
    page = trace._repr_html_()
    check_html(page)
    assert len(page) < 100_000
    spans = tuple((at, at + 1) for at in range(min(len(text), 3000)))
    tokens = TokenContributions(
        text,
        tuple(range(len(spans))),
        tuple(text[: len(spans)]),
        spans,
        1,
        tuple(float(at) - 5 for at, _ in spans),
        None,
    )
    weights = (WeightContribution("w", 0, "mlp", 0.5),)
    explanation = Explanation(example, 0.5, 1.0, tokens, tokens, weights, (BlockContribution("b", 0.5),), False)
    page = explanation._repr_html_()
    check_html(page)
    assert "not exactly what was encoded" in page
    assert len(page) < 1_000_000
    without = dataclasses.replace(tokens, spans=((0, 0),) * len(spans))
    check_html(dataclasses.replace(explanation, document=without)._repr_html_())


# Files that stay mapped.


def test_kept_files_read_as_others_do(built: Built) -> None:
    index = Index.open(str(built.indexes["pooled"]))
    kept = KeptFiles()
    files = index.snapshot().files
    for _ in range(2):
        for file in files:
            reader, plain = kept.open(file.uri, index.spec.dimension), EncodingReader(file.uri, index.spec.dimension)
            assert reader.column("example_id").equals(plain.column("example_id"))
            assert reader.column("grad_norm").equals(plain.column("grad_norm"))
            assert (reader.shard, reader.max_norm, reader.num_rows) == (plain.shard, plain.max_norm, plain.num_rows)
            for ours, theirs in zip(reader.chunks(), plain.chunks(), strict=True):
                assert ours.row == theirs.row and torch.equal(ours.stored.matrix, theirs.stored.matrix)
            reader.close()
            assert kept.open(file.uri, index.spec.dimension) is reader
            plain.close()
    assert len(kept) == len(files)
    kept.keep_only([files[0].uri])
    assert len(kept) == 1
    with pytest.raises(TrackStarError, match="it is gone"):
        kept.open(f"{index.uri}/encodings/nothing.parquet", index.spec.dimension)


def test_more_files_than_can_be_kept(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(str(built.indexes["pooled"]))
    files = index.snapshot().files
    kept = KeptFiles()
    kept._most = 2
    first = [kept.open(file.uri, index.spec.dimension) for file in files]
    assert len(kept) == 2 and [kept.open(file.uri, index.spec.dimension) for file in files[:2]] == first[:2]
    assert sum(len(chunk) for reader in first for chunk in reader.chunks()) == 350
    monkeypatch.setattr("trackstar.kept_files._ID_BYTES", 1)
    few = KeptFiles()
    for file in files:
        few.open(file.uri, index.spec.dimension)
    assert len(few) == 1
