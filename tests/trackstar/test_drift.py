"""Drift against its definition: the distance of a second moment from R̃, without the bias of small samples."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.indexes import make_encodings, make_spec, write_file
from trackstar import drift, drift_rows
from trackstar.encoder import precondition_and_normalise
from trackstar.index import DataFile, Index
from trackstar.preconditioner import Preconditioner

D = 12


def make(folder: Path, **fields: object) -> tuple[Index, Preconditioner]:
    """An index with a preconditioner of two blocks of 3×4, fitted on 4,000 Gaussian examples."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1, D)
    rows = torch.randn(4000, 2, D, generator=generator) * scales
    preconditioner = Preconditioner.of([(rows[:, b].T @ rows[:, b]).double() / 4000 for b in range(2)], 0.1, 4000)
    shape = {"block_rows": 3, "block_columns": 4, "storage": "float32"}
    spec = make_spec(**{**shape, "preconditioner": preconditioner.fingerprint, **fields})
    index = Index.create(str(folder), spec)
    preconditioner.save(str(folder / "preconditioner"))
    return index, preconditioner


def gradients(count: int, seed: int, scales: torch.Tensor | None = None) -> torch.Tensor:
    """E, [count, 2, D]: like those of the fit, or with other scales in the second block."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 2, D, generator=generator) * torch.logspace(0, -1, D)
    if scales is not None:
        found[:, 1] = torch.randn(count, D, generator=generator) * scales
    return found


def add(index: Index, preconditioner: Preconditioner, number: int, rows: torch.Tensor) -> None:
    """One file of examples with these gradients; commits it beside the others."""
    vectors, norms = precondition_and_normalise(rows, preconditioner.inverse_root, index.spec.normalisation)
    write_file(index, number, [make_encodings(vectors, grad_norm=norms.numpy(), start=1000 * number)])
    index.commit([item for key in sorted(index.existing_keys()) if (item := index.has_item(key)) is not None])


def measure(index: Index, fresh: set[int], documents: int = 10_000) -> drift.Drift:
    files = index.snapshot().files
    new = [file for file in files if int(file.key, 16) in fresh]
    found = drift.measure(index, new, [file for file in files if file not in new], documents)
    assert isinstance(found, drift.Drift)
    return found


def test_the_estimate_is_the_distance(tmp_path: Path) -> None:
    """With many documents: ‖mean x xᵀ − R̃‖ / ‖R̃‖, computed plainly."""
    index, preconditioner = make(tmp_path)
    shifted = gradients(2000, 1, torch.linspace(0.1, 2, D))
    for number, rows in enumerate([gradients(6000, 2), shifted]):
        add(index, preconditioner, number, rows)
    found = measure(index, {1})
    assert found.documents == 2000
    for block in range(2):
        root = preconditioner.power(block, -0.5)
        expected = root @ preconditioner.matrices()[block] @ root
        x = shifted[:, block].double() @ root
        distance = (x.T @ x / len(x) - expected).norm() / expected.norm()
        # The estimate has no bias of the sample's size, the plain distance has one of √(D/N).
        assert found.fresh_blocks[block] == pytest.approx(float(distance), abs=0.1)
    assert found.fresh_blocks[1] > 1
    assert found.fresh_blocks[0] < 0.15
    assert max(found.old) < 0.15
    assert found.ratio > 5


@pytest.mark.parametrize("count", [40, 200])
def test_small_samples_of_the_same_kind_are_no_further_than_old_ones(tmp_path: Path, count: int) -> None:
    """A plain distance would be √(D/N) off: 0.55 with 40 documents. Over many nights the estimate's square is about zero."""
    index, preconditioner = make(tmp_path)
    add(index, preconditioner, 0, gradients(3 * count, 3))
    squares = []
    for night in range(1, 13):
        add(index, preconditioner, night, gradients(count, 10 + night))
        found = measure(index, {night}, count)
        assert found.documents == count
        squares.append(found.fresh**2)
    assert np.sqrt(np.mean(squares)) < 0.5 * np.sqrt(D / count)


def test_chance_is_no_drift(tmp_path: Path) -> None:
    """Nights of documents like those of a fit that was good: distances are noise, whose size is told, and nothing is advised."""
    index, preconditioner = make(tmp_path)
    add(index, preconditioner, 0, gradients(400, 3))
    nights = []
    for night in range(1, 41):
        add(index, preconditioner, night, gradients(40, 100 + night))
        nights.append(measure(index, {night}, 40))
    assert not any("trackstar fit" in found.describe(1.5) for found in nights)
    # By the old documents' distances alone a new fit would be advised every few nights.
    assert sum(found.fresh > 1.5 * max(found.old) for found in nights) >= 3
    # Squares below zero are told as zero, so the others are half of the variance.
    deviation = np.sqrt(2 * np.mean([found.fresh**4 for found in nights]))
    assert deviation == pytest.approx(np.mean([found.chance**2 for found in nights]) / 2, rel=0.4)


def test_a_fit_on_many_of_the_old_documents_is_no_drift(tmp_path: Path) -> None:
    """It fits its own sample better than all others, which are no other documents for that."""
    old = gradients(360, 3)
    sums = [(old[:120, b].T @ old[:120, b]).double() / 120 for b in range(2)]
    preconditioner = Preconditioner.of(sums, 0.1, 120)
    shape = {"block_rows": 3, "block_columns": 4, "storage": "float32"}
    index = Index.create(str(tmp_path), make_spec(**shape, preconditioner=preconditioner.fingerprint))
    preconditioner.save(str(tmp_path / "preconditioner"))
    add(index, preconditioner, 0, old)
    nights = []
    for night in range(1, 16):
        add(index, preconditioner, night, gradients(100, 50 + night))
        known, *_, new = sorted(index.snapshot().files, key=lambda file: file.key)
        found = drift.measure(index, [new], [known], 100)
        assert isinstance(found, drift.Drift)
        nights.append(found)
    assert not any("trackstar fit" in found.describe(1.5) for found in nights)
    assert sum(found.fresh > 1.5 * max(found.old) for found in nights) >= 3
    # What the fit's own sample gives is about what they all show.
    assert np.sqrt(np.mean([found.fresh**2 for found in nights])) == pytest.approx(nights[0].chance, rel=0.35)
    add(index, preconditioner, 99, gradients(100, 2, torch.linspace(0.1, 3, D)))
    known, *_, new = sorted(index.snapshot().files, key=lambda file: file.key)
    assert "trackstar fit" in drift.measure(index, [new], [known], 100).describe(1.5)  # type: ignore[union-attr]


def test_the_advice(tmp_path: Path) -> None:
    index, preconditioner = make(tmp_path)
    add(index, preconditioner, 0, gradients(600, 1))
    add(index, preconditioner, 1, gradients(100, 2, torch.linspace(0.1, 3, D)))
    found = measure(index, {1}, 64)
    assert found.documents == 64
    assert found == measure(index, {1}, 64)
    text = found.describe(1.5)
    assert "the R of 64 new documents is" in text
    assert "most in block 1" in text
    assert "`trackstar fit --index NEW …`" in text
    assert "trackstar fit" not in found.describe(1e9)


def test_directions_where_blocks_are_normalised(tmp_path: Path) -> None:
    """Longer gradients of the same directions are no drift there; other directions are."""
    index, preconditioner = make(tmp_path, normalisation="block")
    add(index, preconditioner, 0, gradients(600, 1))
    add(index, preconditioner, 1, 5 * gradients(150, 2))
    assert measure(index, {1}, 150).ratio < 1.4
    add(index, preconditioner, 2, gradients(150, 3, torch.linspace(0.1, 3, D)))
    found = measure(index, {2}, 150)
    assert found.ratio > 1.5
    assert found.fresh_blocks[1] > 2 * found.old_blocks[1]
    assert found.fresh_blocks[0] < 1.5 * max(found.old_blocks)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_what_is_stored_in_fewer_bits_drifts_alike(tmp_path: Path, storage: str) -> None:
    found = []
    for name in ("float32", storage):
        index, preconditioner = make(tmp_path / name, storage=name)
        for number, rows in enumerate([gradients(900, 1), gradients(300, 2, torch.linspace(0.1, 2, D))]):
            add(index, preconditioner, number, rows)
        found.append(measure(index, {1}, 300))
    np.testing.assert_allclose(found[1].fresh_blocks, found[0].fresh_blocks, rtol=0.05)
    np.testing.assert_allclose(found[1].old, found[0].old, atol=0.05)


def test_where_there_is_nothing_to_compare(tmp_path: Path) -> None:
    index, preconditioner = make(tmp_path / "a")
    add(index, preconditioner, 0, gradients(20, 1))
    add(index, preconditioner, 1, gradients(500, 1))
    files = index.snapshot().files
    assert "too few" in str(drift.measure(index, files[:1], files[1:], 256))
    assert "too few" in str(drift.measure(index, files[1:], files[:1], 256))
    assert "too few" in str(drift.measure(index, files, [], 256))
    plain = Index.create(str(tmp_path / "c"), make_spec())
    assert "nothing in the index was fitted" in str(drift.measure(plain, files, files, 256))
    signs, preconditioner = make(tmp_path / "d", storage="sign")
    add(signs, preconditioner, 0, gradients(20, 1))
    add(signs, preconditioner, 1, gradients(130, 1))
    files = signs.snapshot().files
    assert "too few documents: 32 new and 128 old" in str(drift.measure(signs, files[:1], files[1:], 256))
    assert "too few" in str(drift.measure(signs, files[1:], files[:1], 256))


# Without R_train, or of sign bits: new documents against old ones.

WHITENED = {"projection": "whitened", "projection_fingerprint": "p", "whitening_damping": 0.1, "storage": "sign"}
NO_R: dict[str, object] = {"preconditioner": "none", "normalisation": "block", **WHITENED}


def mixed(count: int, seed: int, kind: int = 0, amount: float = 1.0) -> torch.Tensor:
    """[count, 2, D], correlated in a way that the kind says; block 0 always in that of kind 0."""
    rows = torch.randn(count, 2, D, generator=torch.Generator().manual_seed(seed))
    for block, of_kind in enumerate((0, kind)):
        mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(1000 + of_kind))
        rows[:, block] = rows[:, block] + amount * rows[:, block] @ mixing
    return rows


def signed(folder: Path, **fields: object) -> tuple[Index, Preconditioner]:
    """An index like the default's: whitened, sign bits, no R. The preconditioner changes nothing."""
    index, _ = make(folder, **{**NO_R, **fields})
    return index, Preconditioner.of([torch.eye(D).double()] * 2, 0.0, 1)


def test_new_documents_against_old_ones(tmp_path: Path) -> None:
    index, same = signed(tmp_path)
    for number in range(9):
        add(index, same, number, mixed(200, number))
    alike = measure(index, {8}, 200)
    assert not alike.from_r_train
    assert alike.documents == 200
    assert alike.ratio < 1.5
    assert alike == measure(index, {8}, 200)
    add(index, same, 9, mixed(200, 9, kind=1))
    found = measure(index, {9}, 200)
    assert found.ratio > 1.5
    assert found.fresh_blocks[1] > 3 * found.old_blocks[1]
    assert found.fresh_blocks[0] < 2 * max(found.old_blocks[0], found.chance)
    text = found.describe(1.5)
    assert "the encodings of 200 new documents are" in text
    assert "those of as many old ones" in text
    assert "unlike those that the whitening was fitted on" in text
    assert "`trackstar fit --index NEW …`" in text
    assert "most in block 1" in text


def test_chance_among_documents_is_no_drift(tmp_path: Path) -> None:
    index, same = signed(tmp_path)
    add(index, same, 0, mixed(400, 3))
    nights = []
    for night in range(1, 41):
        add(index, same, night, mixed(40, 100 + night))
        nights.append(measure(index, {night}, 40))
    assert not any("trackstar fit" in found.describe(1.5) for found in nights)
    assert sum(found.fresh > found.chance for found in nights) <= 4  # one in forty is expected


def test_files_that_differ_among_themselves_are_no_drift(tmp_path: Path) -> None:
    """Every file is of a kind of its own: so is the new one, which is no news."""
    index, same = signed(tmp_path)
    for number in range(12):
        add(index, same, number, mixed(200, number, kind=number))
    add(index, same, 99, mixed(200, 99, kind=99))
    found = measure(index, {99}, 200)
    assert found.fresh > 3 * found.chance
    assert found.ratio < 1.5


@pytest.mark.parametrize(("old_files", "new_files"), [(8, 3), (5, 2), (4, 1)])
def test_nor_where_old_files_are_few(tmp_path: Path, old_files: int, new_files: int) -> None:
    index, same = signed(tmp_path)
    for number in range(old_files + new_files):
        add(index, same, number, mixed(300, number, kind=number))
    found = measure(index, set(range(old_files, old_files + new_files)), 200)
    assert found.fresh > 2 * found.chance
    assert found.ratio < 1.5


def test_nor_where_old_files_are_small(tmp_path: Path) -> None:
    index, same = signed(tmp_path)
    for number in range(30):
        add(index, same, number, mixed(60, number, kind=number))
    add(index, same, 99, mixed(200, 99, kind=99))
    found = measure(index, {99}, 100)
    assert found.documents >= 50
    assert found.ratio < 1.5


def test_too_few_files_to_tell_drift_from_how_they_differ_is_said(tmp_path: Path) -> None:
    index, same = signed(tmp_path)
    for number in range(3):
        add(index, same, number, mixed(300, number, kind=number))
    found = measure(index, {2}, 100)
    assert not found.by_file
    assert "too few old files to tell drift from how much files differ" in found.describe(1.5)


def test_the_block_that_is_named_is_the_one_that_moved() -> None:
    """Distances of blocks that did not move may be zero by chance, and any number is many times zero."""
    found = drift.Drift(100, 0.5, (0.1,), (0.03, 0.68, 0.02), (0.0, 0.13, 0.04), 0.1, from_r_train=False)
    assert "most in block 1: 0.68 against 0.13" in found.describe(1.5)


def test_entries_of_one_commit_stay_together_and_enough_documents_are_taken() -> None:
    def committed(*times: float) -> list[DataFile]:
        return [DataFile(f"{number}", "s", 100, 1, time) for number, time in enumerate(times)]

    hours = committed(0, 3600, 7200, 10800)
    assert drift_rows.oldest(hours, 0) == hours[:2]
    assert drift_rows.oldest(hours, 250) == hours[:3]
    assert drift_rows.oldest(hours, 10**6) == hours
    once = committed(0.0, 0.5, 1.0, 30.0, 3600.0)
    assert drift_rows.oldest(once, 0) == once[:4]


def test_new_documents_are_held_against_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus has become another one little by little; last night's documents are like those of the nights before."""
    nights = itertools.count(10**12, 86_400_000)
    monkeypatch.setattr("trackstar.index.now", lambda: next(nights))
    index, same = signed(tmp_path)
    for number in range(6):
        add(index, same, number, mixed(200, number))
    for number in range(6, 11):
        add(index, same, number, mixed(200, number, kind=1))
    assert len({file.committed for file in index.snapshot().files}) > 6
    assert measure(index, {10}, 150).ratio > 1.5


@pytest.mark.parametrize("fields", [{"storage": "bfloat16"}, {"storage": "int8"}, {"normalisation": "vector"}], ids=str)
def test_encodings_of_every_form_are_compared(tmp_path: Path, fields: dict[str, object]) -> None:
    index, same = signed(tmp_path, **fields)
    for number in range(5):
        add(index, same, number, mixed(200, number))
    assert measure(index, {4}, 200).ratio < 1.5
    add(index, same, 7, mixed(200, 7, kind=1))
    assert measure(index, {7}, 200).ratio > 1.5


def test_sign_bits_under_r_and_estimated_second_moments_are_compared(tmp_path: Path) -> None:
    for name, fields, what in (
        ("a", {"storage": "sign"}, "the preconditioner"),
        ("b", {"preconditioner": "none", "moments": "exact", "moments_source": "estimated"}, "the second moments"),
    ):
        index, preconditioner = make(tmp_path / name, **fields)
        for number in range(5):
            add(index, preconditioner, number, gradients(150, number))
        found = measure(index, {4}, 150)
        assert not found.from_r_train
        assert found.fitted == what
