"""Tail-patch where the device's memory runs out: queries in smaller batches, and documents that are too long left out."""

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.trackstar.evaluation.trained import CAPITALS, PROMPT, UNRELATED, bits, fact, random_tokens, train_on_facts
from trackstar.batching import Example
from trackstar.corpus import Record
from trackstar.device_memory import TooLongError
from trackstar.errors import TrackStarError
from trackstar.evaluation.tail_patch import TailPatch, TailPatchSettings
from trackstar.evaluation.tail_patch_plan import make_plan
from trackstar.evaluation.tail_patch_run import measure
from trackstar.evaluation.tail_patch_tasks import Group, MeasureTask, Prompted, SlopeTask, run_here
from trackstar.models import load_model
from trackstar.results import Query, Ranking, Result

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."
RATES = (1e-4, 1e-2)


class Full(nn.Module):
    """A layer of a model on a device with room for so many tokens: of passes without gradients, and of those with."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.forwards = self.backwards = 10**9
        self.tried: list[tuple[bool, int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, width = x.shape[:2]
        with_gradient = torch.is_grad_enabled()
        self.tried.append((with_gradient, size, width))
        if size * width > (self.backwards if with_gradient else self.forwards):
            raise torch.OutOfMemoryError(MESSAGE)
        return self.inner(x)

    @property
    def failures(self) -> int:
        return sum(size * width > (self.backwards if grad else self.forwards) for grad, size, width in self.tried)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_on_facts(tmp_path_factory.mktemp("facts")))


@pytest.fixture
def small(checkpoint: str) -> tuple[TailPatch, Full]:
    """A tail-patch and what limits its device, large at first."""
    loaded = load_model(checkpoint)
    layer = loaded.model.model.layers[1].mlp
    full = layer.act_fn = Full(layer.act_fn)
    patch = TailPatch(loaded, checkpoint)
    full.tried = []  # it looks at the head with a few tokens
    return patch, full


def document(length: int, seed: int = 1) -> Example:
    return Example(f"d{length}", random_tokens(1, length, seed)[0])


def facts_asked(patch: TailPatch) -> tuple[list[Example], int, int]:
    """Six queries, tokens of the longest, and of the fourth longest."""
    queries = [patch.query(PROMPT.format(country), CAPITALS[country]) for country in list(CAPITALS)[:6]]
    lengths = sorted((len(query.input_ids) for query in queries), reverse=True)
    return queries, lengths[0], lengths[3]


def test_queries_are_measured_in_halves_before_the_step_and_after(
    small: tuple[TailPatch, Full], caplog: pytest.LogCaptureFixture
) -> None:
    patch, full = small
    queries, longest, fourth = facts_asked(patch)
    expected = patch.measure(document(12), queries, *RATES)
    assert [size for grad, size, _ in full.tried if not grad] == [6, 6, 6]
    before = bits(patch.loaded.model)
    patch._before.clear()
    full.forwards, full.tried = 3 * longest, []
    with caplog.at_level(logging.WARNING):
        measured = patch.measure(document(12), queries, *RATES)
    assert bits(patch.loaded.model) == before
    assert measured.before == pytest.approx(expected.before, abs=1e-6)
    for after, other in zip(measured.after, expected.after, strict=True):
        assert after == pytest.approx(other, abs=1e-6)
        assert max(abs(a - b) for a, b in zip(after, measured.before, strict=True)) > 1e-5
    # Six together fail, three fit: the two halves, before the step and at both rates.
    halves = [(3, longest), (3, fourth)]
    assert [(size, width) for grad, size, width in full.tried if not grad] == [(6, longest), *halves * 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"cpu ran out of memory on a batch of 6 × {longest} tokens: batches run in halves from here on "
        "(--batch_tokens says how large they are planned)"
    ]
    full.tried = []
    patch.measure(document(10), queries, *RATES)
    assert full.failures == 0


def test_memory_that_runs_out_after_the_step_starts_the_pair_again(small: tuple[TailPatch, Full]) -> None:
    """What was measured before the step in a larger batch is not held against what comes after it in smaller ones."""
    patch, full = small
    queries, longest, _ = facts_asked(patch)
    still = TailPatch(patch.loaded, None, TailPatchSettings(step="sgd"))
    still.measure(None, queries, 1.0)  # remembers the whole batch's probabilities before a step
    full.forwards, full.tried = 3 * longest, []
    measured = still.measure(None, queries, 1.0)
    assert full.failures == 1
    assert measured.after[0] == measured.before
    assert patch.measure(document(12), queries, *RATES).after[0] != measured.before


def test_a_document_that_is_too_long_is_left_out_with_its_reason(small: tuple[TailPatch, Full]) -> None:
    patch, full = small
    queries, _, _ = facts_asked(patch)
    full.backwards = 16
    before = bits(patch.loaded.model)
    with pytest.raises(
        TooLongError, match=r"a document of 17 tokens does not fit into the memory of cpu \(CUDA out of memory"
    ):
        patch.measure(document(17), queries, *RATES)
    patch.measure(document(10), queries, *RATES)
    with pytest.raises(TooLongError, match="a query of 20 tokens"):
        patch.slope(document(10), Example("", random_tokens(1, 20, 3)[0], 15))
    assert bits(patch.loaded.model) == before
    assert not any(parameter.requires_grad for parameter in patch.loaded.model.parameters())
    full.backwards = 8  # less than what went through: something else has taken it
    with pytest.raises(TrackStarError, match=r"10 tokens by itself, and ones of 10 did before.*lower --max_length"):
        patch.measure(document(10), queries, *RATES)


def test_a_query_that_does_not_fit_by_itself_fails_the_run(small: tuple[TailPatch, Full]) -> None:
    patch, full = small
    queries, longest, _ = facts_asked(patch)
    full.forwards = longest - 1
    with pytest.raises(
        TrackStarError, match=f"ran out of memory on an example of {longest} tokens by itself, and no other did"
    ):
        patch.measure(document(9), queries, *RATES)


def test_other_errors_are_not_taken_for_it(small: tuple[TailPatch, Full], monkeypatch: pytest.MonkeyPatch) -> None:
    patch, full = small
    queries, _, _ = facts_asked(patch)

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(full, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        patch.measure(document(9), queries, *RATES)


def test_a_run_goes_on_without_the_pairs_of_such_documents(small: tuple[TailPatch, Full]) -> None:
    patch, full = small
    long = " ".join([*UNRELATED, *UNRELATED])
    lengths = [len(patch.document(text)[0].input_ids) for text in (fact("France"), long)]
    full.backwards = sum(lengths) // 2
    results = [
        Result(
            Query(country, PROMPT.format(country), CAPITALS[country]),
            "capitals",
            Ranking([long, fact(country)], ["long", country], [0.9, 0.8]),
        )
        for country in ("France", "Peru")
    ]
    patches = measure(make_plan(results, 2), run_here(patch), 1e-3, 0)
    rows, rejects = patches.rows()
    assert [(row["example_id"], row["proponent_id"]) for row in rows] == [("France", "France"), ("Peru", "Peru")]
    assert [(reject["example_id"], reject["proponent_id"]) for reject in rejects] == [
        ("France", "long"),
        ("Peru", "long"),
    ]
    assert all(f"a document of {lengths[1]} tokens does not fit" in reject["reason"] for reject in rejects)
    group = Group(Record("long", "", 0, long, None), (Prompted("The", " capital"), Prompted("The", "")))
    for task in (MeasureTask((group,), (1e-3,)), SlopeTask((group,))):
        [[too_long, empty]] = task.parse(task.compute(lambda: patch, lambda steps, pairs: None))
        assert "does not fit" in too_long.reason
        assert empty.reason.startswith("query: ")
