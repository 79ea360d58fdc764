"""Inner products of full gradients, accumulated weight by weight, against a plain loop of autograd in float64."""

import numpy as np
import pytest
import torch

from tests.tiny_models import tiny_model
from tests.trackstar.test_gradients import examples, random_moments
from trackstar.batching import Batch, Example
from trackstar.errors import TrackStarError
from trackstar.gradients import GradientEngine
from trackstar.models import LoadedModel, prepare_model
from trackstar.second_moments import Exact, Factored, SecondMoments
from trackstar.tuning.exact import exact_scores, plan_passes
from trackstar.tuning.metric import corrected

# Of two tokens, only the first one's loss counts, which attends to itself alone: the gradients of its query and key are zero but
# for rounding, and a part of unit norm that is made of it is anybody's.
DOCUMENTS, QUERIES = ([e for e in examples(n, seed) if len(e.input_ids) > 2] for n, seed in ((9, 4), (4, 2)))


def plain_gradient(name: str, example: Example, moments: SecondMoments | None) -> dict[str, torch.Tensor]:
    """Weight → G ⊘ (√V + ε) [m, n], all in float64, of the model's own loss."""
    loaded = prepare_model(tiny_model(name, dtype=torch.float64))
    model = loaded.model.requires_grad_(True)
    tokens = torch.tensor([example.input_ids])
    log_p = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(dim=-1)
    loss = -sum(log_p[t - 1, tokens[0, t]] for t in range(max(1, example.first_target), len(example.input_ids)))
    loss.backward()
    found = {}
    for weight in loaded.weights:
        gradient = model.get_parameter(weight.name).grad
        gradient = gradient.T if weight.transposed else gradient
        moment = moments.by_weight[weight.name] if moments else None
        if isinstance(moment, Exact):
            gradient = gradient / (moment.values.double().sqrt() + moments.epsilon)
        elif isinstance(moment, Factored):
            rows, columns = moment.rows.double(), moment.columns.double()
            gradient = gradient / (rows[:, None] * columns / rows.mean()).sqrt()
        found[weight.name] = gradient
    return found


def expected_cosines(name: str, moments: SecondMoments | None, normalisation: str) -> torch.Tensor:
    def rows(sample: list[Example]) -> torch.Tensor:
        vectors = []
        for example in sample:
            parts = [part.flatten() for part in plain_gradient(name, example, moments).values()]
            if normalisation == "block":
                parts = [part / part.norm() for part in parts]
            vectors.append(torch.cat(parts))
        found = torch.stack(vectors)
        return found / found.norm(dim=1, keepdim=True)

    return rows(QUERIES) @ rows(DOCUMENTS).T


@pytest.mark.parametrize("normalisation", ["vector", "block"])
@pytest.mark.parametrize("kind", ["none", "factored", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_equals_plain_autograd_in_float64(name: str, kind: str, normalisation: str) -> None:
    loaded = prepare_model(tiny_model(name))
    moments = random_moments(loaded.weights, kind)
    found = exact_scores(loaded, QUERIES, DOCUMENTS, {"it": corrected(moments)})["it"].cosines(normalisation)
    expected = expected_cosines(name, moments, normalisation)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


def test_products_and_squares_are_those_of_the_whole_gradient() -> None:
    loaded = prepare_model(tiny_model("llama"))
    found = exact_scores(loaded, QUERIES, DOCUMENTS, {"it": corrected(None)})["it"]
    queries, documents = (
        torch.stack([torch.cat([p.flatten() for p in plain_gradient("llama", e, None).values()]) for e in sample])
        for sample in (QUERIES, DOCUMENTS)
    )
    np.testing.assert_allclose(found.squares, documents.square().sum(dim=1), rtol=1e-5)
    np.testing.assert_allclose(found.query_squares, queries.square().sum(dim=1), rtol=1e-5)
    scale = float(queries.norm(dim=1).max() * documents.norm(dim=1).max())
    np.testing.assert_allclose(found.products, queries @ documents.T, rtol=0, atol=1e-5 * scale)
    assert (found.weights == len(loaded.weights)).all()


def test_little_memory_and_small_batches_change_nothing() -> None:
    """Weights one at a time, and of the larger ones two queries at a time; several metrics at once."""
    loaded = prepare_model(tiny_model("llama"))
    metrics = {"plain": corrected(None), "V": corrected(random_moments(loaded.weights, "exact"))}
    seen: list[tuple[int, int]] = []
    at_once = exact_scores(loaded, QUERIES, DOCUMENTS, metrics)
    memory = 2 * 2 * 4 * 32 * 56  # two queries of an MLP's matrix, twice
    in_parts = exact_scores(
        loaded,
        QUERIES,
        DOCUMENTS,
        metrics,
        memory_bytes=memory,
        batch_tokens=40,
        on_progress=lambda *done: seen.append(done),
    )
    passes = plan_passes(loaded.weights, len(QUERIES), 2, memory)
    assert len(passes) > len(loaded.weights) // 2
    assert seen[-1][0] == seen[-1][1] == sum(p.last - p.first + len(DOCUMENTS) for p in passes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    for name in metrics:
        for field in ("products", "query_squares", "squares", "weight_cosines", "query_weights", "weights"):
            one, other = getattr(at_once[name], field), getattr(in_parts[name], field)
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6 * np.abs(one).max())


@pytest.mark.parametrize("memory", [4 * 32 * 56, 3 * 4 * 32 * 56, 10**6, 10**9])
def test_passes_cover_every_weight_and_query_once_within_the_memory(memory: int) -> None:
    loaded = prepare_model(tiny_model("llama"))
    passes = plan_passes(loaded.weights, 7, 1, memory)
    covered = [(w.name, q) for p in passes for w in p.weights for q in range(p.first, p.last)]
    assert sorted(covered) == sorted((w.name, q) for w in loaded.weights for q in range(7))
    for planned in passes:
        taken = sum(4 * w.outputs * w.inputs for w in planned.weights) * (planned.last - planned.first)
        assert taken <= memory


def test_a_memory_too_small_for_one_gradient_is_an_error() -> None:
    loaded = prepare_model(tiny_model("llama"))
    with pytest.raises(TrackStarError, match=r"mlp.*raise --memory"):
        plan_passes(loaded.weights, 7, 1, 4 * 32 * 56 - 1)


def without_targets(loaded: LoadedModel) -> Example:
    return Example("empty", DOCUMENTS[0].input_ids, first_target=len(DOCUMENTS[0].input_ids))


def test_documents_without_a_gradient_have_no_score_and_queries_without_one_are_an_error() -> None:
    loaded = prepare_model(tiny_model("llama"))
    empty = without_targets(loaded)
    found = exact_scores(loaded, QUERIES, [DOCUMENTS[0], empty, DOCUMENTS[1]], {"it": corrected(None)})["it"]
    for normalisation in ("vector", "block"):
        cosines = found.cosines(normalisation)
        assert np.isnan(cosines[:, 1]).all()
        assert np.isfinite(cosines[:, [0, 2]]).all()
    with pytest.raises(TrackStarError, match=r"query 'empty'.*leave the query out"):
        exact_scores(loaded, [QUERIES[0], empty], DOCUMENTS, {"it": corrected(None)})


def test_what_the_device_cannot_take_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that fits in one pass alone counts as one without a gradient; a query is an error."""
    loaded = prepare_model(tiny_model("llama"))
    length = max(len(example.input_ids) for example in DOCUMENTS)
    longest = [place for place, example in enumerate(DOCUMENTS) if len(example.input_ids) == length]
    run, failures = GradientEngine.run, 1

    def of_little_memory(engine: GradientEngine, batch: Batch) -> torch.Tensor:
        nonlocal failures
        if batch.input_ids.shape[1] >= length and (batch.size > 1 or failures):
            failures -= batch.size == 1
            raise torch.OutOfMemoryError("out of memory")
        return run(engine, batch)

    monkeypatch.setattr(GradientEngine, "run", of_little_memory)
    memory = sum(4 * w.outputs * w.inputs for w in loaded.weights) * len(QUERIES) // 2
    assert len(plan_passes(loaded.weights, len(QUERIES), 1, memory)) > 1
    shorter = [query for query in QUERIES if len(query.input_ids) < length]
    found = exact_scores(loaded, shorter, DOCUMENTS, {"it": corrected(None)}, memory_bytes=memory)["it"]
    for normalisation in ("vector", "block"):
        cosines = found.cosines(normalisation)
        assert np.isnan(cosines[:, longest]).all()
        others = [place for place in range(len(DOCUMENTS)) if place not in longest]
        assert np.isfinite(cosines[:, others]).all()
    assert failures == 0
    failures = 99
    too_long = Example("too long", DOCUMENTS[longest[0]].input_ids, 1)
    with pytest.raises(TrackStarError, match=r"query 'too long': .* do not fit .*leave the query out"):
        exact_scores(loaded, [*shorter, too_long], DOCUMENTS, {"it": corrected(None)}, memory_bytes=memory)
