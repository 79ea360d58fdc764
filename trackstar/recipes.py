"""Sets of defaults for what an encoding is, and the size of its blocks where nobody says.

"default" is what measured best for its bytes (docs/benchmarks.md, "Influence per byte"). "paper" is arXiv 2410.17413, section 3:
layers pooled into 16 blocks of 64×64, V, R, unit norm of the whole, bfloat16.
"""

import dataclasses
import math
from collections.abc import Sequence

from trackstar.errors import TrackStarError
from trackstar.models import WeightInfo, block_layout

DIMENSION = 65_536
"""Numbers of an encoding at most, unless told otherwise: the paper's d."""
WHITENING_DAMPING = 0.01
"""Of whitened projections, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults that belong together; None is a size that follows from the model and the dimension (`block_shape`)."""

    attributed: str
    layout: str
    normalisation: str
    projection: str
    storage: str
    moments: str
    preconditioner: str
    block_rows: int | None
    block_columns: int | None

    def describe(self) -> str:
        """The flags that it stands for."""
        fields = {field.name: getattr(self, field.name) or "auto" for field in dataclasses.fields(self)}
        return " ".join(f"--{name} {value}" for name, value in fields.items())


RECIPES = {
    "default": Recipe("outputs", "weights", "block", "whitened", "sign", "none", "none", None, None),
    "paper": Recipe("all", "blocks", "vector", "gaussian", "bfloat16", "auto", "train", 64, 64),
}


def block_shape(
    weights: Sequence[WeightInfo],
    layout: str,
    layer_groups: int,
    dimension: int = DIMENSION,
    rows: int | None = None,
    columns: int | None = None,
) -> tuple[int, int]:
    """d₀ and d₁: as given, or else the largest square with which all blocks together have at most `dimension` numbers.

    A side that is not given is never larger than that side of the largest weight. Where one is given, the other fills the
    dimension.

    Args:
        weights: The attributed weights.
        layout: "blocks" or "weights".
        layer_groups: Of the layout "blocks".
        dimension: Numbers of an encoding at most; does not matter where both sides are given.
        rows: d₀, or None.
        columns: d₁, or None.

    Raises:
        TrackStarError: there are more blocks than numbers to share.
    """
    if rows is not None and columns is not None:
        return rows, columns
    blocks = len(block_layout(weights, layout, layer_groups).names)
    share = dimension // blocks
    given = rows or columns
    if share < (given or 1):
        raise TrackStarError(
            f"--dimension {dimension:,} is too small for {blocks:,} blocks (--layout {layout})"
            + (f" with a side of {given}" if given else "")
            + ": raise it"
            + (", or take --layout blocks" if layout == "weights" else "")
        )
    side = share // given if given else math.isqrt(share)
    most_rows, most_columns = max(w.outputs for w in weights), max(w.inputs for w in weights)
    return rows or min(side, most_rows), columns or min(side, most_columns)
