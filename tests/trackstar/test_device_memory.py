"""Running out of the device's memory: halved batches give the same encodings, and nothing of a failed batch stays."""

import copy
import json
import logging
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.encoders import make_encoder
from tests.tiny_models import VOCABULARY, tiny_model
from trackstar import sample_sums
from trackstar.batching import Example
from trackstar.corpus import expand, plan
from trackstar.device_memory import BatchLimit, SizeLimit, is_out_of_memory
from trackstar.encoder import Encoder
from trackstar.errors import TrackStarError
from trackstar.fitting import SampleTask
from trackstar.gradients import SquareSumSink
from trackstar.models import prepare_model

MESSAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "onednn": RuntimeError("could not create a primitive"),
    "python": MemoryError(),
}


class Full(nn.Module):
    """A layer of a model on a device with room for `tokens`: larger batches fail in it, on the way there or back."""

    def __init__(self, inner: nn.Module, error: BaseException, backward: bool):
        super().__init__()
        self.inner = inner
        self.error = error
        self.backward = backward
        self.tokens = 10**9
        self.tried: list[tuple[int, int]] = []
        self.graphs: list[weakref.ref[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not any(graph() is not None for graph in self.graphs), "an earlier batch's graph is still there"
        out = self.inner(x)
        size, width = x.shape[:2]
        if torch.is_grad_enabled():
            self.tried.append((size, width))
            self.graphs.append(weakref.ref(out))
            if size * width > self.tokens:
                if not self.backward:
                    raise copy.copy(self.error)
                out.register_hook(self._fail)
        return out

    def _fail(self, gradient: torch.Tensor) -> None:
        raise copy.copy(self.error)


def documents(lengths: list[int]) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    return [
        Example(str(i), tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()))
        for i, length in enumerate(lengths)
    ]


def encoder_with(error: BaseException, backward: bool = False, **settings: object) -> tuple[Encoder, Full]:
    model = tiny_model("llama")
    encoder = make_encoder(prepare_model(model), **settings)
    full = Full(model.model.layers[1].mlp.act_fn, error, backward)
    model.model.layers[1].mlp.act_fn = full
    return encoder, full


LENGTHS = [20, 3, 17, 20, 9, 12, 20, 2, 16, 11, 7, 19]


@pytest.mark.parametrize(("kind", "backward"), [("cuda", False), ("cuda", True), ("cpu", True), ("python", False)])
def test_halved_batches_give_the_same_encodings(kind: str, backward: bool, caplog: pytest.LogCaptureFixture) -> None:
    encoder, full = encoder_with(MESSAGES[kind], backward)
    asked = documents(LENGTHS)
    expected = encoder.encode(asked)[0]
    assert full.tried == [(12, 20)]
    full.tried.clear()
    full.tokens = 70
    with caplog.at_level(logging.WARNING):
        encodings, bad = encoder.encode(asked)
        again, _ = encoder.encode(asked)
    assert not bad
    assert encodings.example_ids == expected.example_ids
    torch.testing.assert_close(encodings.vectors, expected.vectors, atol=1e-5, rtol=0)
    assert torch.equal(again.vectors, encodings.vectors)
    # 12 fail, 6 fail, 3 fit; the second time nothing is tried that failed before.
    halves = [(3, 20), (3, 19), (3, 12), (3, 7)]
    assert full.tried == [(12, 20), (6, 20), *halves, *halves]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "cpu ran out of memory on a batch of 12 × 20 tokens"
    ]


def test_an_example_too_large_by_itself_is_left_out_with_its_reason() -> None:
    asked = documents(LENGTHS)
    expected = encoder_with(MESSAGES["cuda"])[0].encode(asked)[0]
    encoder, full = encoder_with(MESSAGES["cuda"])
    full.tokens = 18
    encodings, bad = encoder.encode(asked)
    too_large = [i for i, length in enumerate(LENGTHS) if length > 18]
    assert sorted(bad) == too_large
    assert bad[too_large[0]] == "20 tokens do not fit into the memory of cpu, even alone"
    kept = [i for i in range(len(asked)) if i not in bad]
    assert encodings.example_ids == [asked[i].example_id for i in kept]
    torch.testing.assert_close(encodings.vectors, expected.vectors[kept], atol=1e-5, rtol=0)
    # What fails alone is tried once: the others of its length or more are known to fail, too.
    assert full.tried.count((1, 20)) == 1


def test_where_nothing_fits_the_run_fails() -> None:
    encoder, full = encoder_with(MESSAGES["cuda"])
    full.tokens = 1
    with pytest.raises(
        TrackStarError,
        match=r"an example of 20 tokens by itself, and no other did \(CUDA out of memory.*free its memory",
    ):
        encoder.encode(documents(LENGTHS))


def test_memory_that_something_else_takes_rejects_nothing() -> None:
    """Ones of this length fitted before: the example is not at fault."""
    encoder, full = encoder_with(MESSAGES["cuda"])
    encoder.encode(documents(LENGTHS))
    full.tokens = 10
    with pytest.raises(TrackStarError, match=r"20 tokens by itself, and ones of 20 did before.*another process"):
        encoder.encode(documents(LENGTHS))


def test_other_errors_are_not_taken_for_it() -> None:
    encoder, full = encoder_with(RuntimeError("CUDA error: an illegal memory access was encountered"))
    full.tokens = 70
    with pytest.raises(RuntimeError, match="illegal memory access"):
        encoder.encode(documents(LENGTHS))


@pytest.mark.parametrize("tokens", [70, 18])
def test_sums_of_squares_count_nothing_twice(tokens: int, tmp_path: Path) -> None:
    encoder, full = encoder_with(MESSAGES["cuda"], backward=True)
    lines = [json.dumps({"input_ids": example.input_ids}) + "\n" for example in documents(LENGTHS)]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    fitting_ones = [line for line, length in zip(lines, LENGTHS, strict=True) if length <= tokens]
    (tmp_path / "small.jsonl").write_text("".join(fitting_ones))

    def sums(name: str) -> SquareSumSink:
        items = plan(expand([str(tmp_path / name)]), 1 << 20)
        return sample_sums.sum_squares(encoder, SampleTask(tuple(items), (len(lines),), 0))

    expected = sums("small.jsonl")
    full.tokens = tokens
    found = sums("all.jsonl")
    assert (expected.count, encoder.limit.failures > 0) == (len(fitting_ones), True)
    assert found.count == expected.count
    for name, total in expected.sums.items():
        torch.testing.assert_close(found.sums[name], total, rtol=1e-4, atol=1e-6)


def test_the_preconditioners_sums_leave_out_what_does_not_fit(tmp_path: Path) -> None:
    encoder, full = encoder_with(MESSAGES["cpu"])
    lines = [json.dumps({"input_ids": example.input_ids}) + "\n" for example in documents(LENGTHS)]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    task = SampleTask(tuple(plan(expand([str(tmp_path / "all.jsonl")]), 1 << 20)), (len(lines),), 0)
    full.tokens = 18
    total = sample_sums.sum_gram(encoder, task)
    assert total.count == sum(length <= 18 for length in LENGTHS)
    assert all(torch.isfinite(block).all() for block in total.mean())


def test_the_way_a_batch_is_cut_depends_on_it_and_the_limit_alone() -> None:
    limit = BatchLimit(torch.device("cpu"))
    limit.tokens = 30
    ran: list[list[int]] = []
    assert limit.each([[0, 1, 2, 3, 4], [5], [6, 7]], [10, 10, 9, 8, 1, 50, 9, 9], ran.append) == {}
    assert ran == [[0, 1, 2], [3, 4], [5], [6, 7]]


def test_a_range_is_taken_in_parts_that_fit() -> None:
    limit = SizeLimit(torch.device("cpu"), "things", fewest=3)
    tried: list[tuple[int, int]] = []

    def run(first: int, end: int) -> list[int]:
        tried.append((first, end))
        if end - first > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(range(first, end))

    assert list(limit.parts(2, 32, run)) == [[*range(2, 5)], *(list(range(i, i + 3)) for i in range(5, 32, 3))]
    assert tried[:4] == [(2, 32), (2, 17), (2, 9), (2, 5)]
    assert limit.most == 3
    tried.clear()
    assert [len(part) for part in limit.parts(0, 8, run)] == [3, 3, 2]
    assert tried == [(0, 3), (3, 6), (6, 8)]
    assert list(limit.parts(5, 5, run)) == []


def test_a_range_of_which_the_fewest_do_not_fit() -> None:
    tried: list[int] = []

    def run(first: int, end: int) -> None:
        tried.append(end - first)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemoryError, match="CUDA out of memory"):
        list(SizeLimit(torch.device("cpu"), "things", fewest=16).parts(0, 100, run))
    assert tried == [100, 50, 25, 16]


def test_what_allocators_say() -> None:
    assert all(map(is_out_of_memory, MESSAGES.values()))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


SMALL_PROCESS = """
    import logging, resource, sys
    import torch
    from tests.trackstar.test_device_memory import documents
    from tests.encoders import make_encoder
    from tests.tiny_models import tiny_model
    from trackstar.models import prepare_model

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    asked = documents([120] * 128)
    encoder = make_encoder(prepare_model(tiny_model("llama")), batch_tokens=1920)
    expected = encoder.encode(asked)[0].vectors
    encoder = make_encoder(prepare_model(tiny_model("llama")), batch_tokens=10**6)
    encoder.encode(asked[:2])
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20),) * 2)
    encodings, bad = encoder.encode(asked)
    print(len(bad), encoder.limit.failures > 0, float((encodings.vectors - expected).abs().max()) <= 1e-5)
"""


def test_a_process_that_really_has_no_more_memory() -> None:
    """One batch of 128 × 120 tokens takes some 100 MB; the process may grow by 32."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SMALL_PROCESS)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    warning, result = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert "ran out of memory on a batch of 128 × 120 tokens" in warning
    assert result == "0 True True"
