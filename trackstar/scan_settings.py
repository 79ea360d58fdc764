"""How a scan of the index scores, and how much of it its device takes at once."""

import dataclasses

import torch

from trackstar.device_memory import SizeLimit
from trackstar.errors import TrackStarError

_FEWEST_ROWS = 16  # of a block; where so few do not fit, it is the queries that take the memory


@dataclasses.dataclass(frozen=True)
class ScanSettings:
    """How to score.

    Args:
        top_k: Proponents, and opponents, of a query.
        opponents: Whether to look for the lowest scores too.
        unit_norm: Whether encodings count as unit vectors. If not, scores are multiplied with both gradients' norms (the
            paper's ablation).
        device: "cpu" or a CUDA device.
        max_pairs: Pairs of query and row that may wait for their float64 scores; about 40 bytes each.
        max_bytes: Encodings that are held in memory while they wait, where files cannot be mapped (object stores).
    """

    top_k: int = 100
    opponents: bool = False
    unit_norm: bool = True
    device: str = "cpu"
    max_pairs: int = 2**22
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name in ("top_k", "max_pairs", "max_bytes"):
            if getattr(self, name) < 1:
                raise TrackStarError(f"{name} is {getattr(self, name)}; it must be positive")


class ScanLimit:
    """How much of a scan the device's memory takes at once; keep it from scan to scan, so that nothing is tried in vain.

    Args:
        device: Where rows and queries are multiplied.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.queries = SizeLimit(device, "queries of a scan")
        self.rows = self._for_rows()

    def more_rows(self) -> None:
        """Forgets what many queries left room for."""
        self.rows = self._for_rows()

    def _for_rows(self) -> SizeLimit:
        return SizeLimit(self.device, "rows of the index", _FEWEST_ROWS)
