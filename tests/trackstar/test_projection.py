"""Projections: pinned bits, the same from any process or thread, independent normal entries, unbiased products."""

import hashlib
import subprocess
import sys

import numpy as np
import torch

from trackstar.projection import _cos_sin_turns, _log, orthogonal_projection, philox4x32, projection

# Known answers of Philox 4x32-10 from the Random123 distribution.
_ZEROS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
_ONES = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)

PINNED = [
    [0.16196030378341675, -0.11776858568191528, -0.2507948577404022],
    [0.21746504306793213, 0.6730263233184814, -0.8369658589363098],
    [0.13312943279743195, 0.013011515140533447, -0.27136728167533875],
    [1.2124816179275513, -0.5532785654067993, 0.07115216553211212],
    [-0.4309343993663788, -0.4417996406555176, 0.40304651856422424],
]
PINNED_DIGEST = "a1a46bbb1d3e18e7"


def digest(*arguments: object) -> str:
    return hashlib.sha256(projection(*arguments).numpy().tobytes()).hexdigest()[:16]


def test_philox_gives_the_published_words() -> None:
    zero, ones = np.zeros(1, np.uint64), np.full(1, 0xFFFFFFFF, np.uint64)
    assert tuple(int(word[0]) for word in philox4x32((zero,) * 4, (0, 0))) == _ZEROS
    assert tuple(int(word[0]) for word in philox4x32((ones,) * 4, (0xFFFFFFFF, 0xFFFFFFFF))) == _ONES


def test_pinned_values() -> None:
    matrix = projection(0, "transformer.h.0.attn.c_attn.weight", "left", 5, 3)
    expected = torch.tensor(PINNED)
    assert torch.equal(matrix, expected)
    assert digest(0, "w", "left", 100, 64) == PINNED_DIGEST


def test_same_bits_from_another_process_and_thread_count() -> None:
    program = (
        "import hashlib, torch, threading; torch.set_num_threads(2)\n"
        "from trackstar.projection import projection\n"
        "out = []\n"
        "def work(): out.append(projection(0, 'w', 'left', 100, 64))\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert all(torch.equal(out[0], other) for other in out)\n"
        "print(hashlib.sha256(out[0].numpy().tobytes()).hexdigest()[:16])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == PINNED_DIGEST


def test_rows_do_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(projection(1, "w", "right", 9000, 8)[:5000], projection(1, "w", "right", 5000, 8))
    narrow, wide = projection(1, "w", "right", 50, 7), projection(1, "w", "right", 50, 28)
    torch.testing.assert_close(wide[:, :7] * 2.0, narrow, rtol=1e-6, atol=0.0)  # √28 = 2√7


def test_sides_weights_and_seeds_are_independent() -> None:
    matrices = [projection(s, w, side, 400, 50) for s in (0, 1) for w in ("a", "b") for side in ("left", "right")]
    flat = torch.stack([matrix.flatten() for matrix in matrices]) * 50**0.5
    correlation = flat @ flat.T / flat.shape[1]
    assert (correlation - torch.eye(8)).abs().max() < 5 / flat.shape[1] ** 0.5


def test_entries_are_standard_normal() -> None:
    entries = (projection(3, "w", "left", 4000, 100).double() * 10.0).flatten()
    count = len(entries)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(entries.pow(power).mean() - moment) < 5 * (variance / count) ** 0.5
    inside = (entries.abs() < 1.959964).double().mean()
    assert abs(inside - 0.95) < 5 * (0.95 * 0.05 / count) ** 0.5


def test_own_logarithm_and_circle_are_accurate() -> None:
    x = np.random.default_rng(0).random(100_000) * (1 - 2.0**-53) + 2.0**-53
    np.testing.assert_allclose(_log(x), np.log(x), rtol=1e-15, atol=4e-16)
    cosine, sine = _cos_sin_turns(x)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * x), rtol=0, atol=1e-15)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * x), rtol=0, atol=1e-15)


def test_projected_products_are_unbiased_and_sharpen_with_dimension() -> None:
    """⟨Lᵀ G R, Lᵀ G′ R⟩ over seeds against ⟨G, G′⟩: weights of unequal shapes, pooled into one block."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (24, 40), "b": (9, 33), "c": (64, 5)}
    first = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    second = {name: 0.5 * g + torch.randn(g.shape, generator=generator) for name, g in first.items()}
    exact = sum(float((first[name] * second[name]).sum()) for name in shapes)
    scale = (
        sum(float(g.square().sum()) for g in first.values()) * sum(float(g.square().sum()) for g in second.values())
    ) ** 0.5
    spread = []
    for side in (4, 16):
        products = []
        for seed in range(300):
            encoded = []
            for gradients in (first, second):
                total = torch.zeros(side, side)
                for name, gradient in gradients.items():
                    left = projection(seed, name, "left", gradient.shape[0], side)
                    right = projection(seed, name, "right", gradient.shape[1], side)
                    total += left.T @ gradient @ right
                encoded.append(total)
            products.append(float((encoded[0] * encoded[1]).sum()))
        values = np.array(products)
        assert abs(values.mean() - exact) < 4 * values.std() / len(values) ** 0.5
        spread.append(values.std() / scale)
    # The error falls as 1/√d: d grows 16 times, so the spread falls 4 times.
    assert 2.8 < spread[0] / spread[1] < 5.6


def test_orthogonal_columns_and_nesting() -> None:
    """Within a set of as many columns as rows all are orthogonal; a narrower one is cut out of a wider one."""
    wide = orthogonal_projection(3, "w", "left", 12, 30)
    gram = wide.T @ wide * 30 / 12
    for start, end in ((0, 12), (12, 24), (24, 30)):
        torch.testing.assert_close(gram[start:end, start:end], torch.eye(end - start, dtype=torch.float64))
    assert gram[:12, 12:24].abs().max() > 0.1  # the next set is another one
    narrow = orthogonal_projection(3, "w", "left", 12, 17)
    torch.testing.assert_close(narrow * (17 / 30) ** 0.5, wide[:, :17])
    torch.testing.assert_close(wide[:, :24] @ wide[:, :24].T, 24 / 30 * torch.eye(12, dtype=torch.float64))


def test_orthogonal_directions_are_those_of_the_gaussian_ones() -> None:
    gaussian = projection(3, "w", "left", 12, 5).double()
    found = orthogonal_projection(3, "w", "left", 12, 5)
    for count in range(1, 6):
        onto = torch.linalg.lstsq(gaussian[:, :count], found[:, :count]).solution
        torch.testing.assert_close(gaussian[:, :count] @ onto, found[:, :count])


def test_orthogonal_products_are_unbiased_and_vary_less() -> None:
    """Over many draws: mean xᵀ L Lᵀ y = xᵀ y, and the variance near 1 − columns/rows of the Gaussian one's."""
    x, y = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = {
        make: torch.tensor(
            [
                float(x @ made @ made.T @ y)
                for seed in range(2000)
                for made in [make(seed, "w", "left", 20, 15).double()]
            ]
        )
        for make in (projection, orthogonal_projection)
    }
    for found in draws.values():
        assert abs(found.mean() - x @ y) <= 4 * found.std() / 2000**0.5
    ratio = draws[orthogonal_projection].var() / draws[projection].var()
    assert 0.15 < ratio < 0.35
