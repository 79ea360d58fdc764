"""Agreement of scores, against scipy and by brute force."""

import numpy as np
import pytest
from scipy import stats

from trackstar.errors import TrackStarError
from trackstar.tuning.agreement import Judge, best, ranks

GENERATOR = np.random.default_rng(0)
EXACT = GENERATOR.normal(size=(5, 200))
NOISY = EXACT + 0.5 * GENERATOR.normal(size=EXACT.shape)
TIED = np.round(NOISY)


@pytest.mark.parametrize("scores", [NOISY, TIED, -EXACT, np.exp(3 * EXACT)], ids=["noisy", "tied", "reversed", "bent"])
def test_equals_scipy_and_brute_force(scores: np.ndarray) -> None:
    found = Judge(EXACT, 10).agreement(scores)
    for query in range(len(EXACT)):
        assert found.spearman[query] == pytest.approx(stats.spearmanr(scores[query], EXACT[query]).statistic, abs=1e-12)
        assert found.pearson[query] == pytest.approx(stats.pearsonr(scores[query], EXACT[query]).statistic, abs=1e-12)
        wanted = set(sorted(range(200), key=lambda z: -EXACT[query, z])[:10])
        listed = set(sorted(range(200), key=lambda z: (-scores[query, z], z))[:10])
        assert found.overlap[query] == len(wanted & listed) / 10


def test_ranks_share_ties() -> None:
    np.testing.assert_array_equal(ranks(np.array([[3.0, 1.0, 3.0, 2.0]])), [[2.5, 0.0, 2.5, 1.0]])
    np.testing.assert_array_equal(ranks(TIED), [stats.rankdata(row) - 1 for row in TIED])
    np.testing.assert_array_equal(best(np.array([[1.0, 2.0, 2.0, 0.0]]), 2), [[1, 2]])


def test_the_same_scores_agree_and_shuffled_ones_do_not() -> None:
    same = Judge(EXACT, 10).agreement(2 * EXACT + 1)
    for values in (same.spearman, same.pearson, same.overlap):
        np.testing.assert_allclose(values, 1.0)
    large = np.random.default_rng(1).normal(size=(40, 2000))
    shuffled = np.random.default_rng(2).permuted(large, axis=1)
    found = Judge(large, 10).agreement(shuffled)
    assert abs(found.spearman.mean()) < 0.02
    assert abs(found.pearson.mean()) < 0.02
    assert found.overlap.mean() < 0.05


def test_scores_that_are_all_the_same_agree_with_nothing() -> None:
    found = Judge(EXACT, 10).agreement(np.ones_like(EXACT))
    np.testing.assert_array_equal(found.spearman, 0.0)
    exact = EXACT.copy()
    exact[2] = 7.0
    of_constant = Judge(exact, 10).agreement(NOISY)
    assert np.isnan(of_constant.spearman[2])
    assert np.isfinite(of_constant.spearman[[0, 1, 3, 4]]).all()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(TrackStarError, match="larger sample"):
        Judge(EXACT[:, :10], 10)
    with pytest.raises(TrackStarError, match="NaN or infinite"):
        Judge(np.where(EXACT > 2, np.nan, EXACT), 10)
    with pytest.raises(TrackStarError, match="same shape, and finite"):
        Judge(EXACT, 10).agreement(EXACT[:, :-1])
    with pytest.raises(TrackStarError, match="same shape, and finite"):
        Judge(EXACT, 10).agreement(np.full_like(EXACT, np.nan))
