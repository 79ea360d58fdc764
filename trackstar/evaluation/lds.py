"""Linear datamodeling score (LDS): do the scores foretell what a model loses that was trained on a part of the corpus?

Source: Park, Georgiev, Ilyas, Leclerc, Madry, *TRAK: Attributing Model Behavior at Scale*, ICML 2023 (arXiv
2303.14186), definition 2.3. For subsets S_1 … S_m of the corpus, a query's scores foretell g_j = Σ_{z in S_j} score(z, q).
LDS(q) is Spearman's correlation, over the subsets, of g_j and the output of a model trained on S_j; here the output is
minus the query's loss, because a proponent, which scores high, lowers the loss.
"""

import dataclasses
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from trackstar.errors import TrackStarError
from trackstar.evaluation.facts import document_of
from trackstar.evaluation.intervals import Bootstrap, Estimate
from trackstar.results import Result


@dataclasses.dataclass(frozen=True)
class LDS:
    """LDS of every query.

    Args:
        per_query: [Q] float64, −1 to 1; NaN where the query's losses are the same in all subsets.
        without_spread: How many queries that are; nothing can be said of them and no mean counts them.
        unranked: Queries whose scores foretell the same for all subsets, for example scores that are all 0: they count
            as 0, since a method does not gain by not answering.
    """

    per_query: np.ndarray
    without_spread: int
    unranked: int

    def estimate(self, bootstrap: Bootstrap | None = None) -> Estimate:
        """Mean over the queries, with its interval.

        The interval is over queries, given the subsets that were drawn and the models that were trained on them.
        """
        return (bootstrap or Bootstrap()).estimates({"lds": self.per_query})["lds"]


def subset_masks(num_examples: int, num_subsets: int, fraction: float = 0.5, seed: int = 0) -> np.ndarray:
    """Random subsets of equal size, no two the same.

    The first m masks of a larger number of subsets are the m masks, so subsets can be added later.

    Args:
        num_examples: N.
        num_subsets: m.
        fraction: Share of the examples in each subset.
        seed: Of the choice.

    Returns:
        bool [m, N]; each row has round(fraction · N) members.

    Raises:
        TrackStarError: a subset would be empty or the whole corpus, or there are not so many different ones.
    """
    members = round(fraction * num_examples)
    if num_subsets < 1 or not 0 < members < num_examples:
        raise TrackStarError(
            f"{num_subsets} subsets of {members} of {num_examples} examples: at least one subset is needed, and each "
            "must hold some of the examples and leave some out"
        )
    if math.comb(num_examples, members) < num_subsets:
        raise TrackStarError(
            f"there are only {math.comb(num_examples, members)} different subsets of {members} of {num_examples} "
            f"examples; {num_subsets} were asked for"
        )
    masks = np.zeros((num_subsets, num_examples), dtype=bool)
    seen: set[bytes] = set()
    generator = np.random.default_rng(seed)
    for mask in masks:
        while True:
            mask[:] = False
            mask[generator.permutation(num_examples)[:members]] = True
            if mask.tobytes() not in seen:
                break
        seen.add(mask.tobytes())
    return masks


def lds(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> LDS:
    """LDS of each query.

    Args:
        scores: [Q, N], high for proponents.
        masks: bool [m, N], which examples each subset holds.
        losses: [m, Q], each query's loss under the model trained on each subset; or [seeds, m, Q] of several trainings
            a subset, which are averaged first.

    Raises:
        TrackStarError: shapes that do not fit, fewer than three subsets, or a score or loss that is not finite; the
            message names the query or the subset.
    """
    stats = _scipy_stats()
    scores, masks, losses = _checked(np.asarray(scores), np.asarray(masks), np.asarray(losses))
    outputs = -losses.mean(axis=0)  # [m, Q]
    # Σ (score − lowest) + lowest · size: equal scores foretell exactly the same for subsets of equal size.
    lowest = scores.min(axis=1)  # [Q]
    foretold = masks.astype(np.float64) @ (scores - lowest[:, None]).T + np.outer(masks.sum(axis=1), lowest)  # [m, Q]
    spread, ranked = np.ptp(outputs, axis=0) > 0, np.ptp(foretold, axis=0) > 0  # [Q]
    per_query = np.zeros(len(scores))
    per_query[~spread] = np.nan
    for q in np.flatnonzero(spread & ranked):
        per_query[q] = stats.spearmanr(foretold[:, q], outputs[:, q]).statistic
    return LDS(per_query, int((~spread).sum()), int((spread & ~ranked).sum()))


def repeatability(losses: np.ndarray) -> np.ndarray:
    """How far another training of the same subsets agrees with the first: a ceiling for what scores can foretell.

    Args:
        losses: [seeds, m, Q], at least two seeds.

    Returns:
        [Q] float64: Spearman's correlation, over the subsets, of the first half of the seeds' mean losses with the other
        half's; NaN where one of them is the same in all subsets.
    """
    stats = _scipy_stats()
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 3 or len(losses) < 2 or not np.isfinite(losses).all():
        raise TrackStarError(f"losses {losses.shape}: expected finite [seeds, m, Q] of at least two seeds")
    half = len(losses) // 2
    first, second = losses[:half].mean(axis=0), losses[half:].mean(axis=0)  # [m, Q]
    per_query = np.full(losses.shape[2], np.nan)
    for q in np.flatnonzero((np.ptp(first, axis=0) > 0) & (np.ptp(second, axis=0) > 0)):
        per_query[q] = stats.spearmanr(first[:, q], second[:, q]).statistic
    return per_query


def dense_scores(
    results: Sequence[Result], example_ids: Sequence[str], queries: Sequence[str] | None = None
) -> np.ndarray:
    """Scores of all examples, from results that list every one of them.

    A document that the index holds in passages ("d7#0", "d7#1", …) gets the sum of its passages' scores.

    Args:
        results: Of `trackstar score` with --top_k at least the number of examples.
        example_ids: Ids of the N documents, in the order of the masks' columns.
        queries: Ids of the Q queries, in the order of the losses; by default the order of the results.

    Returns:
        [Q, N] float64.

    Raises:
        TrackStarError: examples that a result does not list, ids that are not in `example_ids`, or no result for a
            query.
    """
    column = numbers(example_ids)
    ordered = list(results) if queries is None else in_order_of(results, queries)
    scores = np.zeros((len(ordered), len(example_ids)))
    for row, result in zip(scores, ordered, strict=True):
        listed: dict[str, float] = {}  # An id can be among the proponents and among the opponents.
        for ranking in (result.proponents, result.opponents):
            listed.update(zip(ranking.ids, ranking.scores, strict=True))
        found = np.zeros(len(example_ids), dtype=bool)
        for example_id, score in listed.items():
            place = number_of(example_id, column, result)
            row[place] += score
            found[place] = True
        missing = int((~found).sum())
        if missing:
            raise TrackStarError(
                f"query {result.query.example_id!r}: {missing:,} of {len(example_ids):,} examples have no score in its "
                f"result (the first: {example_ids[int(np.argmin(found))]!r}); LDS needs the scores of all: score again "
                f"with --top_k {max(len(example_ids), len(listed) + missing)} or more"
            )
    return scores


def in_order_of(results: Sequence[Result], queries: Sequence[str]) -> list[Result]:
    """One result for each of the queries' ids, in their order; further results are left out.

    Raises:
        TrackStarError: a query has no result, or two.
    """
    by_id: dict[str, Result] = {}
    for result in results:
        if result.query.example_id in by_id:
            raise TrackStarError(f"query {result.query.example_id!r} has more than one result; give one file a method")
        by_id[result.query.example_id] = result
    missing = [query for query in queries if query not in by_id]
    if missing:
        raise TrackStarError(
            f"{len(missing):,} of {len(queries):,} queries have no result (the first: {missing[0]!r}); score them too"
        )
    return [by_id[query] for query in queries]


def numbers(example_ids: Sequence[str]) -> dict[str, int]:
    """Id → its place.

    Raises:
        TrackStarError: an id occurs twice.
    """
    places = {example_id: place for place, example_id in enumerate(example_ids)}
    if len(places) != len(example_ids):
        twice = next(e for place, e in enumerate(example_ids) if places[e] != place)
        raise TrackStarError(f"the id {twice!r} occurs more than once in the corpus; ids must tell documents apart")
    return places


def number_of(example_id: str, places: dict[str, int], result: Result) -> int:
    """The place of an example, or of the document that it is a passage of.

    Raises:
        TrackStarError: there is no such document.
    """
    place = places.get(example_id, places.get(document_of(example_id)))
    if place is None:
        raise TrackStarError(
            f"query {result.query.example_id!r}: its result lists {example_id!r}, which is not among the "
            f"{len(places):,} ids of this corpus; give the results and the corpus of one index"
        )
    return place


def _checked(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with losses [seeds, m, Q], all of it known to fit and to be finite."""
    losses = losses[None] if losses.ndim == 2 else losses
    fits = scores.ndim == masks.ndim == 2 and masks.dtype == bool and losses.ndim == 3
    if not fits or losses.shape[1:] != (len(masks), len(scores)) or masks.shape[1] != scores.shape[1]:
        raise TrackStarError(
            f"LDS: scores {scores.shape}, masks {masks.shape} of {masks.dtype} and losses {losses.shape}; expected "
            "[Q, N], bool [m, N] and [m, Q] or [seeds, m, Q]"
        )
    if len(masks) < 3 or not scores.size or not losses.size:
        raise TrackStarError(
            f"LDS of {len(scores)} queries over {len(masks)} subsets: at least one query and three subsets are needed"
        )
    bad = ~np.isfinite(losses)
    if bad.any():
        seed, subset, _ = map(int, np.argwhere(bad)[0])
        raise TrackStarError(
            f"LDS: subset {subset}, training {seed}: {int(bad[seed, subset].sum()):,} of {len(scores):,} losses are NaN "
            "or infinite; train it again or leave the subset out"
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        raise TrackStarError(f"LDS: query {int(np.argwhere(bad)[0, 0])}: {int(bad.sum())} scores are NaN or infinite")
    return scores.astype(np.float64), masks, losses.astype(np.float64)


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise TrackStarError("LDS needs scipy; install trackstar[evaluation]") from error
    return stats
