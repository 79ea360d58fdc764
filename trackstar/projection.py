"""Counter-based random projections: the same bits on every machine, thread count, process and device; and orthogonal ones made
of them.

An entry is a function of (seed, weight name, side, row, column) alone: Philox 4x32-10 (Salmon et al., SC 2011) with the
first three as key and the last two as counter, then Box-Muller. The normal variates use only +, −, ×, ÷ and square root,
which IEEE 754 rounds correctly everywhere; the C library's log and cos differ from machine to machine in the last place.
"""

import hashlib
import math
from typing import Literal

import numpy as np
import torch

Side = Literal["left", "right"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_ROWS_AT_ONCE = 4096


def projection(seed: int, weight: str, side: Side, rows: int, columns: int) -> torch.Tensor:
    """L_i or R_i: independent N(0, 1/columns) entries.

    Args:
        seed: The spec's projection seed.
        weight: Name of the weight.
        side: "left" projects the weight's outputs, "right" its inputs.
        rows: m or n.
        columns: d₀ or d₁. A wider projection has a narrower one's entries as its first columns, up to the scale.

    Returns:
        float32 [rows, columns] on the CPU.
    """
    key = _key(seed, weight, side)
    parts = [
        standard_normal(key, start, min(start + _ROWS_AT_ONCE, rows), columns)
        for start in range(0, rows, _ROWS_AT_ONCE)
    ]
    return torch.from_numpy((np.concatenate(parts) / math.sqrt(columns)).astype(np.float32))


def orthogonal_projection(seed: int, weight: str, side: Side, rows: int, columns: int) -> torch.Tensor:
    """L_i or R_i with orthogonal columns of equal norms, uniformly distributed: the Gaussian ones, orthonormalised.

    E L Lᵀ = I as of independent entries, but what a projection adds to an inner product by chance falls to about 1 − columns/rows
    of theirs in variance, and to nothing where all directions are kept. Beyond `rows` columns begins another orthogonal set.

    Args:
        seed: The spec's projection seed.
        weight: Name of the weight.
        side: As for `projection`.
        rows: m or n.
        columns: d₀ or d₁. A wider projection has a narrower one's entries as its first columns, up to the scale.

    Returns:
        float64 [rows, columns] on the CPU; the last bits depend on the machine's linear algebra.
    """
    gaussian = projection(seed, weight, side, rows, columns).double()
    sets = [_orthonormal(gaussian[:, start : start + rows]) for start in range(0, columns, rows)]
    return torch.cat(sets, dim=1) * math.sqrt(rows / columns)


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Gram and Schmidt's basis of some columns, [m, k] with k ≤ m: the first k of it are that of the first k columns."""
    basis, triangle = torch.linalg.qr(columns)
    return basis * torch.sign(torch.diagonal(triangle))


def standard_normal(key: tuple[int, int], first_row: int, last_row: int, columns: int) -> np.ndarray:
    """N(0, 1) variates at counters (row, column), float64 [last_row − first_row, columns]."""
    rows = np.arange(first_row, last_row, dtype=np.uint64)[:, None]
    pairs = np.arange((columns + 1) // 2, dtype=np.uint64)[None, :]
    zeros = np.zeros(np.broadcast_shapes(rows.shape, pairs.shape), dtype=np.uint64)
    words = philox4x32((rows + zeros, pairs + zeros, zeros, zeros), key)
    # 53 random bits each: u in (0, 1], v in [0, 1).
    u = ((words[0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[1] >> np.uint64(6)) + np.uint64(1)) * 2.0**-53
    v = ((words[2] >> np.uint64(5)) * np.uint64(1 << 26) + (words[3] >> np.uint64(6))) * 2.0**-53
    radius = np.sqrt(-2.0 * _log(u))
    cosine, sine = _cos_sin_turns(v)
    pairs_of_normals = np.stack([radius * cosine, radius * sine], axis=-1)
    return pairs_of_normals.reshape(len(rows), -1)[:, :columns]


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int], rounds: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox 4x32: four 32-bit words for each counter, held in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _key(seed: int, weight: str, side: Side) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}/{side}/{weight}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of x in (0, 1] by ln m = 2 artanh((m−1)/(m+1)) with m in [√½, √2)."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small
    ratio = (mantissa - 1.0) / (mantissa + 1.0)  # |ratio| <= 0.1716, so 11 terms reach 2^-53
    square = ratio * ratio
    series = np.full_like(square, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * math.log(2.0) + 2.0 * ratio * series


def _cos_sin_turns(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos 2πv and sin 2πv for v in [0, 1): nearest quarter turn, then Taylor series on [−π/4, π/4]."""
    quarter = np.floor(v * 4.0 + 0.5)
    x = (v - quarter * 0.25) * (2.0 * math.pi)
    square = x * x
    cosine, sine = np.ones_like(x), np.ones_like(x)
    for k in range(9, 0, -1):
        cosine = 1.0 - cosine * square / ((2 * k - 1) * (2 * k))
        sine = 1.0 - sine * square / ((2 * k) * (2 * k + 1))
    sine = sine * x
    turn = quarter.astype(np.int64) % 4
    swap, flip_cosine, flip_sine = turn % 2 == 1, (turn == 1) | (turn == 2), turn >= 2
    rotated_cosine = np.where(swap, sine, cosine)
    rotated_sine = np.where(swap, cosine, sine)
    return np.where(flip_cosine, -rotated_cosine, rotated_cosine), np.where(flip_sine, -rotated_sine, rotated_sine)
