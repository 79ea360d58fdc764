"""How far new documents have moved from those that R_train was fitted on.

Under the stored R, a document's gradient is grad_norm · φ = (R + δI)^(-1/2) vec(E), which the index holds. Were new documents
like those of the fit, the mean of its outer product would be R̃ = (R + δI)^(-1/2) R (R + δI)^(-1/2), block by block. Reported is
the relative Frobenius distance of the two, ‖mean − R̃‖ / ‖R̃‖, estimated without the bias that a small sample's own noise adds:
‖mean‖² comes from products of *different* documents alone. R_train, from a sample itself, never fits documents that it has not
seen exactly; so the number means something only beside that of as many old documents, and that is how it is reported.

Two things make old documents' distances too small to be held against. Where R_train fits well they are noise about zero, and a
ratio of two such numbers says nothing. And where many of them are its own sample, it fits them better than any new ones. So new
documents are held against what chance alone gives, too. The square of a distance is the mean over pairs i ≠ j of
h_ij = ⟨x_i x_iᵀ − R̃, x_j x_jᵀ − R̃⟩; chance is what it has in mean from R_train's own sample of n documents, E[h_ii] / n, and
two standard deviations of the estimate, whose variance is 2·E[h_ij²] / (N(N−1)).

Where encodings are normalised block by block, the blocks' norms are not stored. Then directions are compared: the mean of the
outer product of block b's direction, with R̃ / tr R̃. Without R_train, or where sign bits are stored, so that the sizes of the
numbers are gone, there is no R̃ to hold them against: then new documents are held against old ones (`two_samples`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from trackstar import drift_rows, storage, two_samples
from trackstar.index import DataFile, Index
from trackstar.preconditioner import load_blocks, num_documents
from trackstar.spec import Spec

_OLD_GROUPS = 3
_FEWEST = 32
_MOST = 4096  # the products of all pairs are held in memory
_DEVIATIONS = 2.0  # of the squared distance, that may be chance


@dataclasses.dataclass(frozen=True)
class Drift:
    """Distances from R_train, or from old documents: of new documents, and of groups of as many old ones."""

    documents: int
    """Documents in each group."""
    fresh: float
    """Of the new documents, over all blocks."""
    old: tuple[float, ...]
    """Of each group of old documents: what the number is when nothing has changed."""
    fresh_blocks: tuple[float, ...]
    """Of the new documents, block by block."""
    old_blocks: tuple[float, ...]
    """Of the old documents, the largest of the groups, block by block."""
    chance: float
    """What as many documents may show by chance, if they are like those of the fit."""
    fitted: str = "the preconditioner"
    """What a new fit would make anew."""
    from_r_train: bool = True
    """Whether distances are from R_train; else of encodings from those of old documents."""
    by_file: bool = True
    """Whether groups of old documents are of other files each, so that their distances tell how much files differ."""

    @property
    def ratio(self) -> float:
        """New over old, or over what may be chance: about 1, or less, where new documents are like the old ones."""
        return self.fresh / max(*self.old, self.chance, 1e-9)

    def describe(self, limit: float) -> str:
        """Lines for people; above `limit` times the old documents' distance a refit is advised."""
        block = int(np.argmax(np.square(self.fresh_blocks) - np.square(self.old_blocks)))
        if self.from_r_train:
            said = f"the R of {self.documents:,} new documents is {self.fresh:.2f} from R_train; that of as many old ones is"
        else:
            said = (
                f"the encodings of {self.documents:,} new documents are {self.fresh:.2f} from those of as many old ones; these "
                "are among themselves"
            )
        text = (
            f"drift: {said} {min(self.old):.2f} to {max(self.old):.2f}, and {self.chance:.2f} may be chance (most in block "
            f"{block}: {self.fresh_blocks[block]:.2f} against {self.old_blocks[block]:.2f})"
        )
        if not self.by_file:
            text += "; there are too few old files to tell drift from how much files differ"
        if self.ratio <= limit:
            return text
        return (
            f"{text}\nThe new documents are unlike those that {self.fitted} was fitted on. Scores stay exact as they are "
            "defined, but a new fit would serve better: `trackstar fit --index NEW …`, then `trackstar reindex --new_index NEW`"
        )


def measure(index: Index, fresh: Sequence[DataFile], old: Sequence[DataFile], documents: int) -> Drift | str:
    """Compares a sample of the documents in `fresh` and one of those in `old` with R_train, or with one another.

    Reads 12 files of each, or more where these are small, and the preconditioner's blocks one after the other.

    Args:
        index: The index.
        fresh: Files of new documents.
        old: Files of old ones.
        documents: New documents in the sample at most; never more than 4,096, nor than 768 where they are held against old ones.

    Returns:
        The distances, or why there are none.
    """
    fitted = _fitted(index.spec)
    if fitted is None:
        return "nothing in the index was fitted on documents"
    if index.spec.preconditioner == "none" or index.spec.storage == "sign":
        return _from_old(index.spec, fresh, old, documents, fitted)
    return _from_r_train(index, fresh, old, documents)


def _fitted(spec: Spec) -> str | None:
    """What of an index was made of a sample of the corpus; None for nothing."""
    if spec.preconditioner != "none":
        return "the preconditioner"
    if spec.projection == "whitened":
        return "the whitening"
    return "the second moments" if spec.moments_source == "estimated" else None


def _from_old(
    spec: Spec, fresh: Sequence[DataFile], old: Sequence[DataFile], documents: int, fitted: str
) -> Drift | str:
    """Encodings of new documents against those of documents that were in the index first."""
    groups = two_samples.OLD_GROUPS
    count = min(documents, two_samples.MOST, sum(file.num_rows for file in fresh))
    old = drift_rows.oldest(old, groups * count)
    count = min(count, sum(file.num_rows for file in old) // groups)
    if count < _FEWEST:
        return _too_few(groups)
    chosen = drift_rows.drawn(fresh, count)
    by_file = drift_rows.groups_by_file(old, groups, count, len(chosen), max(_FEWEST, count // 2), spec.dimension)
    mixed = drift_rows.sampled(old, groups * count, spec.dimension) if by_file is None else torch.empty(0)
    of_old = by_file or [mixed[group::groups] for group in range(groups)]
    samples = [drift_rows.rows(chosen, count, spec.dimension), *of_old]
    count = min(map(len, samples))
    found = two_samples.compare([rows[:count] for rows in samples], spec.num_blocks, spec.normalisation == "block")
    return Drift(
        count,
        found.fresh,
        found.old,
        found.fresh_blocks,
        found.old_blocks,
        found.chance,
        fitted,
        from_r_train=False,
        by_file=by_file is not None,
    )


def _too_few(groups: int) -> str:
    return f"too few documents: {_FEWEST} new and {groups * _FEWEST} old ones are the least"


def _from_r_train(index: Index, fresh: Sequence[DataFile], old: Sequence[DataFile], documents: int) -> Drift | str:
    """Gradients under R_train's inverse root against R̃."""
    count = min(
        documents, _MOST, sum(file.num_rows for file in fresh), sum(file.num_rows for file in old) // _OLD_GROUPS
    )
    if count < _FEWEST:
        return _too_few(_OLD_GROUPS)
    spec = index.spec
    new_rows = drift_rows.sampled(fresh, count, spec.dimension, lengths=True)
    old_rows = drift_rows.sampled(old, _OLD_GROUPS * count, spec.dimension, lengths=True)
    count = min(len(new_rows), len(old_rows) // _OLD_GROUPS)
    groups = [new_rows[:count], *(old_rows[group::_OLD_GROUPS][:count] for group in range(_OLD_GROUPS))]
    distances: list[list[float]] = []  # squared: [blocks][groups]
    norms: list[float] = []  # squared
    of_pairs = torch.zeros(count, count, dtype=torch.float64)  # h over all blocks, of old documents
    for block, (sigma, u, damping) in enumerate(load_blocks(storage.join(index.uri, "preconditioner"))):
        columns = slice(block * spec.block_dimension, (block + 1) * spec.block_dimension)
        kept = sigma / (sigma + damping)  # eigenvalues of R̃
        parts = [rows[:, columns] for rows in groups]
        if spec.normalisation == "block":
            kept = kept / kept.sum()
            parts = [torch.nn.functional.normalize(part, dim=1) for part in parts]
        norms.append(float((kept * kept).sum()))
        distances.append([])
        for number, part in enumerate(parts):
            products = _pair_products(part, u.float(), kept, norms[-1])
            distances[-1].append(_mean_of_pairs(products))
            if number == 1:
                of_pairs += products
    by_block = np.sqrt(np.maximum(np.array(distances), 0.0) / np.array(norms)[:, None])  # [blocks, groups]
    overall = np.sqrt(np.maximum(np.sum(distances, axis=0), 0.0) / np.sum(norms))  # [groups]
    of_the_fit = float(of_pairs.diagonal().mean()) / num_documents(storage.join(index.uri, "preconditioner"))
    deviation = np.sqrt(2 * _mean_of_pairs(of_pairs.square_()) / (count * (count - 1)))
    return Drift(
        count,
        float(overall[0]),
        tuple(overall[1:].tolist()),
        tuple(by_block[:, 0].tolist()),
        tuple(by_block[:, 1:].max(axis=1).tolist()),
        float(np.sqrt((of_the_fit + _DEVIATIONS * deviation) / np.sum(norms))),
    )


def _pair_products(rows: torch.Tensor, u: torch.Tensor, kept: torch.Tensor, norm: float) -> torch.Tensor:
    """⟨x_i x_iᵀ − R̃, x_j x_jᵀ − R̃⟩ of all pairs, float64 [N, N].

    Args:
        rows: x, float32 [N, d_b].
        u: Eigenvectors of R̃, float32 [d_b, d_b].
        kept: Its eigenvalues, float64 [d_b].
        norm: ‖R̃‖².
    """
    own = (rows @ u).double().square() @ kept  # xᵀ R̃ x, [N]
    return (rows @ rows.T).double().square_().sub_(own[:, None]).sub_(own[None, :]).add_(norm)


def _mean_of_pairs(products: torch.Tensor) -> float:
    """Mean over i ≠ j of [N, N]: of `_pair_products` it is an estimate of ‖mean x xᵀ − R̃‖² without bias, perhaps below zero."""
    count = len(products)
    return float((products.sum() - products.diagonal().sum()) / (count * (count - 1)))
