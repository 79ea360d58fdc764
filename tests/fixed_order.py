"""The order in which scores are summed, written down a second time."""

import numpy as np

LANES = 8


def dot(row: np.ndarray, query: np.ndarray) -> float:
    """Σ row·query in float64 as trackstar.exact_kernel defines it; both [n], of a type that float64 holds."""
    terms = row.astype(np.float64) * query.astype(np.float64)
    lanes = np.zeros(LANES)
    for start in range(0, len(terms), LANES):
        some = terms[start : start + LANES]
        lanes[: len(some)] += some
    fours = lanes[:4] + lanes[4:]
    return float((fours[0] + fours[2]) + (fours[1] + fours[3]))
