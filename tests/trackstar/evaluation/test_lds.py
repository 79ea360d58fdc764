"""LDS, against models whose retraining is a system of linear equations, and against scipy on data made by hand."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from trackstar.errors import TrackStarError
from trackstar.evaluation.intervals import Bootstrap
from trackstar.evaluation.lds import LDS, dense_scores, in_order_of, lds, repeatability, subset_masks
from trackstar.results import Query, Ranking, Result


@dataclasses.dataclass(frozen=True)
class Regression:
    """Ridge regression: its weights, its losses on queries, and the exact first-order influence of each example."""

    inputs: np.ndarray  # [N, p]
    outputs: np.ndarray  # [N]
    query_inputs: np.ndarray  # [Q, p]
    query_outputs: np.ndarray  # [Q]
    ridge: float = 1e-3  # of an example

    @classmethod
    def random(cls, examples: int = 300, width: int = 6, queries: int = 25) -> "Regression":
        generator = np.random.default_rng(0)
        weights = generator.normal(size=width)
        inputs, query_inputs = (generator.normal(size=(n, width)) for n in (examples, queries))
        outputs = inputs @ weights + generator.normal(size=examples)
        return cls(inputs, outputs, query_inputs, query_inputs @ weights + generator.normal(size=queries))

    def weights(self, kept: np.ndarray) -> np.ndarray:
        """[p], by the normal equations of the examples that are kept."""
        x, y = self.inputs[kept], self.outputs[kept]
        return np.linalg.solve(x.T @ x + self.ridge * len(x) * np.eye(x.shape[1]), x.T @ y)

    def losses(self, kept: np.ndarray) -> np.ndarray:
        """[Q], half the squared error."""
        return 0.5 * (self.query_inputs @ self.weights(kept) - self.query_outputs) ** 2

    def influence(self) -> np.ndarray:
        """[Q, N]: g_q H⁻¹ g_z at the full fit, by how much the query's loss falls where z weighs one more."""
        everything = np.ones(len(self.inputs), dtype=bool)
        weights = self.weights(everything)
        hessian = self.inputs.T @ self.inputs + self.ridge * len(self.inputs) * np.eye(len(weights))
        of_examples = (self.inputs @ weights - self.outputs)[:, None] * self.inputs  # [N, p]
        of_queries = (self.query_inputs @ weights - self.query_outputs)[:, None] * self.query_inputs  # [Q, p]
        return of_queries @ np.linalg.solve(hessian, of_examples.T)


@pytest.fixture(scope="module")
def regression():
    """A regression, the subsets, and the losses after retraining on each."""
    model = Regression.random()
    masks = subset_masks(len(model.inputs), 80, 0.5, seed=1)
    return model, masks, np.stack([model.losses(mask) for mask in masks])


def test_exact_influence_of_a_linear_model_foretells_retraining(regression):
    model, masks, losses = regression
    found = lds(model.influence(), masks, losses)
    assert found.estimate().mean > 0.9
    assert np.median(found.per_query) > 0.95
    assert found.without_spread == found.unranked == 0


def test_negated_scores_foretell_the_opposite_and_random_ones_nothing(regression):
    model, masks, losses = regression
    right, wrong = (lds(sign * model.influence(), masks, losses) for sign in (1, -1))
    assert np.allclose(right.per_query, -wrong.per_query)
    chance = lds(np.random.default_rng(2).normal(size=(25, 300)), masks, losses).estimate()
    assert abs(chance.mean) < 0.1
    assert chance.low < 0 < chance.high


def test_influence_is_by_how_much_an_example_lowers_the_loss(regression):
    """The influence that the tests above take for exact is: leaving one example out raises the loss by its score."""
    model, *_ = regression
    everything = np.ones(len(model.inputs), dtype=bool)
    rise = (
        np.stack([model.losses(np.delete(np.arange(300), i)) for i in range(300)], axis=1)
        - model.losses(everything)[:, None]
    )
    assert np.corrcoef(rise.ravel(), model.influence().ravel())[0, 1] > 0.98


def test_correlations_are_scipys_and_ties_share_their_ranks():
    scores = np.array([[1.0, 1.0, 2.0, 0.0], [3.0, -1.0, 0.5, 0.5]])
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=bool)
    losses = np.array([[0.3, 1.0], [0.1, 1.0], [0.1, 2.0], [0.2, 2.5], [0.9, 0.5]])
    foretold = np.array([[2.0, 2.0], [3.0, 3.5], [3.0, -0.5], [2.0, 1.0], [1.0, 3.5]])  # by hand
    found = lds(scores, masks, losses)
    for q in range(2):
        assert found.per_query[q] == pytest.approx(stats.spearmanr(foretold[:, q], -losses[:, q]).statistic)
        ranks = stats.rankdata(foretold[:, q]), stats.rankdata(-losses[:, q])
        assert found.per_query[q] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert stats.rankdata(foretold[:, 0]).tolist() == [2.5, 4.5, 4.5, 2.5, 1.0]


def test_a_proponent_scores_high_and_lowers_the_loss():
    masks = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    losses = np.array([[1.0], [2.0], [5.0]])  # without example 0 the loss is highest, then without example 1
    assert lds(np.array([[9.0, 5.0, 1.0]]), masks, losses).per_query.tolist() == pytest.approx([1.0])
    assert lds(np.array([[1.0, 5.0, 9.0]]), masks, losses).per_query.tolist() == pytest.approx([-1.0])


def test_several_trainings_of_a_subset_are_averaged_first(regression):
    model, masks, losses = regression
    noise = np.random.default_rng(3).normal(size=losses.shape)
    both = np.stack([losses + noise, losses - noise])
    assert np.allclose(lds(model.influence(), masks, both).per_query, lds(model.influence(), masks, losses).per_query)
    one = lds(model.influence(), masks, both[0]).estimate().mean
    assert one < lds(model.influence(), masks, both).estimate().mean


def test_query_whose_loss_never_changes_is_counted_and_left_out(regression):
    model, masks, losses = regression
    stuck = losses.copy()
    stuck[:, 4] = 0.25
    found = lds(model.influence(), masks, stuck)
    assert found.without_spread == 1
    assert np.flatnonzero(np.isnan(found.per_query)).tolist() == [4]
    kept = np.delete(lds(model.influence(), masks, losses).per_query, 4)
    assert found.estimate().mean == pytest.approx(kept.mean())
    assert found.estimate().n == 24


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_query_with_equal_scores_counts_as_zero(regression, constant):
    model, masks, losses = regression
    scores = model.influence()
    scores[7] = constant
    found = lds(scores, masks, losses)
    assert (found.unranked, found.per_query[7], found.estimate().n) == (1, 0.0, 25)


def test_interval_is_that_of_the_bootstrap():
    found = LDS(np.array([0.5, np.nan, 0.7, 0.9]), 1, 0)
    bootstrap = Bootstrap(confidence=0.8, resamples=200, seed=3)
    estimate = found.estimate(bootstrap)
    assert estimate == bootstrap.estimates({"x": found.per_query})["x"]
    assert estimate.mean == pytest.approx(0.7)
    assert estimate.low < estimate.mean < estimate.high


def test_losses_that_are_not_finite_name_their_subset(regression):
    model, masks, losses = regression
    both = np.stack([losses, losses])
    both[1, 3, :2] = np.nan
    with pytest.raises(TrackStarError, match="subset 3, training 1: 2 of 25 losses are NaN"):
        lds(model.influence(), masks, both)
    scores = model.influence()
    scores[6, 0] = np.inf
    with pytest.raises(TrackStarError, match="query 6: 1 scores"):
        lds(scores, masks, losses)


def test_shapes_that_do_not_fit_are_told(regression):
    model, masks, losses = regression
    scores = model.influence()
    for bad in [(scores[:, 1:], masks, losses), (scores, masks.astype(int), losses), (scores, masks, losses.T)]:
        with pytest.raises(TrackStarError, match="expected \\[Q, N\\]"):
            lds(*bad)
    with pytest.raises(TrackStarError, match="three subsets"):
        lds(scores, masks[:2], losses[:2])


def test_masks_have_their_size_and_differ():
    masks = subset_masks(101, 50, 0.3, seed=4)
    assert masks.shape == (50, 101)
    assert masks.dtype == bool
    assert set(masks.sum(axis=1)) == {30}
    assert len({mask.tobytes() for mask in masks}) == 50
    assert masks.any(axis=0).all()  # every example is in one
    assert not masks.all(axis=0).any()  # and out of another
    assert len({mask.tobytes() for mask in subset_masks(4, 6, 0.5)}) == 6  # all that there are


def test_masks_depend_on_the_seed_alone_and_can_be_added_to():
    masks = subset_masks(40, 10, seed=5)
    assert (subset_masks(40, 10, seed=5) == masks).all()
    assert (subset_masks(40, 25, seed=5)[:10] == masks).all()
    assert (subset_masks(40, 10, seed=6) != masks).any()


@pytest.mark.parametrize(
    ("settings", "text"), [((10, 0, 0.5), "0 subsets"), ((10, 3, 0.01), "0 of 10"), ((4, 7, 0.5), "only 6")]
)
def test_masks_that_cannot_be_are_told(settings, text):
    with pytest.raises(TrackStarError, match=text):
        subset_masks(*settings)


def _result(query: str, proponents: dict[str, float], opponents: dict[str, float] | None = None) -> Result:
    rankings = [
        Ranking([""] * len(scores), list(scores), list(scores.values())) for scores in (proponents, opponents or {})
    ]
    return Result(Query(query, "p", "t"), "", *rankings)


def test_dense_scores_are_in_the_order_of_corpus_and_queries():
    results = [
        _result("q1", {"b": 3.0, "a": 1.0}, {"c": -2.0, "a": 1.0}),
        _result("q0", {"c": 0.5, "a": 0.25, "b": 0.0}),
        _result("unasked", {}),
    ]
    assert dense_scores(results, ["a", "b", "c"], ["q0", "q1"]).tolist() == [[0.25, 0.0, 0.5], [1.0, 3.0, -2.0]]
    assert dense_scores(results[:2], ["a", "b", "c"]).tolist() == [[1.0, 3.0, -2.0], [0.25, 0.0, 0.5]]


def test_dense_scores_of_a_split_document_are_summed():
    result = _result("q", {"a#1": 3.0, "b": 2.0, "a#0": -1.0})
    assert dense_scores([result], ["a", "b"]).tolist() == [[2.0, 2.0]]


def test_dense_scores_that_are_not_dense_say_what_to_do():
    with pytest.raises(TrackStarError, match=r"'q': 2 of 4 examples have no score .*'b'.*--top_k 4"):
        dense_scores([_result("q", {"a": 1.0, "d": 2.0})], ["a", "b", "c", "d"])
    with pytest.raises(TrackStarError, match=r"lists 'z', which is not among the 1 ids"):
        dense_scores([_result("q", {"a": 1.0, "z": 2.0})], ["a"])
    with pytest.raises(TrackStarError, match="'a' occurs more than once"):
        dense_scores([_result("q", {"a": 1.0})], ["a", "a"])


def test_results_that_do_not_fit_the_queries_are_told():
    results = [_result("q0", {}), _result("q0", {})]
    with pytest.raises(TrackStarError, match="'q0' has more than one result"):
        in_order_of(results, ["q0"])
    with pytest.raises(TrackStarError, match=r"1 of 2 queries have no result .*'q1'"):
        in_order_of(results[:1], ["q0", "q1"])


def test_repeatability_is_spearmans_correlation_of_two_halves_of_the_seeds() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(size=(12, 5))
    losses = np.stack([truth + 0.3 * generator.normal(size=truth.shape) for _ in range(4)])
    losses[:, :, 4] = 1.0
    found = repeatability(losses)
    ranks = [np.argsort(np.argsort(half.mean(axis=0), axis=0), axis=0) for half in (losses[:2], losses[2:])]
    expected = [np.corrcoef(ranks[0][:, q], ranks[1][:, q])[0, 1] for q in range(4)]
    np.testing.assert_allclose(found[:4], expected, atol=1e-12)
    assert np.isnan(found[4])
    np.testing.assert_allclose(repeatability(np.stack([truth, 2 * truth + 1])), 1.0)


@pytest.mark.parametrize("losses", [np.zeros((1, 3, 2)), np.zeros((3, 2)), np.full((2, 3, 2), np.nan)])
def test_repeatability_needs_two_seeds_of_finite_losses(losses: np.ndarray) -> None:
    with pytest.raises(TrackStarError, match="two seeds"):
        repeatability(losses)
