"""How far the encodings of new documents are from those of old ones, where no R_train says what these were like.

Compared are second moments: M = mean of x_b x_bᵀ over documents, block by block; x_b is block b of the encoding, or its direction
where encodings are normalised block by block. With k(x, y) = (x_b · y_b)²,

    ‖M − M'‖² = mean k(x, y) + mean k(x', y') − 2 mean k(x, x')

over pairs of different documents: no M is ever formed, and a small sample's own noise adds no bias (the unbiased estimate of the
maximum mean discrepancy, for a kernel of degree two: Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012, section 2.2).

Documents that nearly repeat one another have a k a thousand times the others', and a few such pairs would decide everything. So
the largest hundredth of a block's k counts for no more than what it begins with. On a corpus of facts, to which half passages
came, that raised the distance's square from 1.2 times what chance gives to 9 times.

New documents are one group, old ones several. Reported are distances ‖M − M'‖ / ‖M_old‖: of the new ones from a group of old ones
and of a group of old ones from another, each in mean over the other groups. Where groups of old documents are of different files,
as new ones are, their distances tell how much files differ at all. What chance gives is found by dealing all the documents out
into groups again and again.
"""

import dataclasses
from collections.abc import Sequence

import torch

OLD_GROUPS = 4
MOST = 768
"""Documents of a group: the products of all pairs are held in memory."""
_DEALS = 400
_QUANTILE = 0.975
_CLIPPED = 0.99
_CLIPPING_PAIRS = 2**20


@dataclasses.dataclass(frozen=True)
class Compared:
    """Distances, relative to the norm of old documents' M."""

    fresh: float
    old: tuple[float, ...]
    fresh_blocks: tuple[float, ...]
    old_blocks: tuple[float, ...]
    """The largest of the groups."""
    chance: float
    """What the new documents' distance is below in 97.5 % of the cases, were all documents alike."""


def compare(groups: Sequence[torch.Tensor], num_blocks: int, directions: bool, clipped: float = _CLIPPED) -> Compared:
    """Compares the first group with the others.

    Args:
        groups: New documents, then `OLD_GROUPS` groups of as many old ones: φ, [N, d] of any type.
        num_blocks: Equal parts of φ.
        directions: Whether each block counts with its direction alone.
        clipped: Quantile of a block's k above which none counts for more; 1 for all of k.
    """
    count = len(groups[0])
    width = groups[0].shape[1] // num_blocks
    labels = torch.arange(len(groups)).repeat_interleave(count)
    products = torch.zeros(len(labels), len(labels), dtype=torch.float64)
    by_block = []
    for block in range(num_blocks):
        x = torch.cat([group[:, block * width : (block + 1) * width] for group in groups]).float()
        if directions:
            x = torch.nn.functional.normalize(x, dim=1)
        squares = (x @ x.T).double().square_()
        squares = squares.clamp_max_(_largest(squares, clipped)).fill_diagonal_(0.0)
        by_block.append(_means(squares, labels, count))
        products += squares
    blocks = torch.stack(by_block)  # [blocks, groups, groups]
    distances = _distances(blocks)  # [blocks, groups], squared
    norms = blocks.diagonal(dim1=1, dim2=2)[:, 1:].mean(dim=1)  # [blocks], ‖M‖²
    norms = norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a block that nearly no document has anything in
    generator = torch.Generator().manual_seed(0)
    dealt = torch.stack(
        [
            _distances(_means(products, labels[torch.randperm(len(labels), generator=generator)], count)[None])[0, 0]
            for _ in range(_DEALS)
        ]
    )
    overall = _roots(distances.sum(dim=0) / norms.sum())
    each = _roots(distances / norms[:, None])
    return Compared(
        overall[0].item(),
        tuple(overall[1:].tolist()),
        tuple(each[:, 0].tolist()),
        tuple(each[:, 1:].amax(dim=1).tolist()),
        _roots(dealt.quantile(_QUANTILE) / norms.sum()).item(),
    )


def _largest(squares: torch.Tensor, quantile: float) -> float:
    """A quantile of the numbers [N, N] off the diagonal, from a million of them at most."""
    off = squares.flatten()[1:].view(len(squares) - 1, -1)[:, :-1].flatten()  # each row between two of the diagonal's
    return float(off[:: 1 + len(off) // _CLIPPING_PAIRS].quantile(quantile))


def _means(products: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Mean of k over the pairs of each two groups, [groups, groups].

    Args:
        products: k of all pairs [N, N], 0 of a document with itself.
        labels: Each document's group [N].
        count: Documents of a group.
    """
    of_group = torch.nn.functional.one_hot(labels).double()  # [N, groups]
    sums = of_group.T @ products @ of_group
    same = torch.eye(len(sums), dtype=torch.bool)
    return torch.where(same, sums / (count * (count - 1)), sums / count**2)


def _distances(means: torch.Tensor) -> torch.Tensor:
    """‖M − M'‖² of each group, in mean over the groups of old documents other than itself, [blocks, groups], from `_means`."""
    own = means.diagonal(dim1=1, dim2=2)
    squared = own[:, :, None] + own[:, None, :] - 2 * means  # of a group and itself 0
    groups = means.shape[1]
    others = torch.full((groups,), float(groups - 2))
    others[0] = groups - 1
    return squared[:, :, 1:].sum(dim=2) / others


def _roots(squares: torch.Tensor) -> torch.Tensor:
    """√, and 0 of an estimate below 0."""
    return squares.clamp_min(0.0).sqrt()
