"""What a comparison of encodings will measure, from shapes alone."""

import dataclasses
import math
from collections.abc import Sequence

import psutil

from trackstar.amounts import human_bytes
from trackstar.errors import TrackStarError
from trackstar.models import WeightInfo, block_layout
from trackstar.spec import Spec
from trackstar.tuning import measuring
from trackstar.tuning.candidates import Candidate, at_most, chosen_weights, families
from trackstar.tuning.exact import Pass, plan_passes


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared with what.

    Args:
        budget: Bytes of one stored encoding at most.
        sizes: Bytes at which encodings are compared; the budget is one of them.
        exact: "corrected": the exact scores are of gradients divided by √V, if there is V; "whitened": both sides of these are
            whitened, too.
        exact_normalisation: "vector": cosines of whole gradients; "block": every weight's part is given unit norm first.
        top_k: k of the overlap.
        memory_bytes: For full gradients, and for sums.
    """

    budget: int
    sizes: tuple[int, ...]
    exact: str = "corrected"
    exact_normalisation: str = "vector"
    top_k: int = 10
    memory_bytes: int = 1 << 30

    @property
    def describe_exact(self) -> str:
        """What the exact scores are, in words."""
        what = (
            "whitened full gradients" if self.exact == "whitened" else "full gradients, divided by √V where there is V"
        )
        if self.exact_normalisation == "block":
            return f"cosine of {what}, every weight's part to unit norm first"
        return f"cosine of {what}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be measured.

    Args:
        candidates: The encodings.
        left_out: Why others are not among them, a line each.
        passes: Runs of the documents through the model for the exact scores.
        groups: Further runs, for the candidates.
    """

    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...]
    passes: tuple[Pass, ...]
    groups: tuple[measuring.Group, ...]


def default_sizes(budget: int) -> tuple[int, ...]:
    """A quarter of the budget, half, all of it, and twice as much."""
    return tuple(sorted({max(1, budget // 4), max(1, budget // 2), budget, 2 * budget}))


def make_plan(
    weights: Sequence[WeightInfo], template: Spec, settings: Settings, num_queries: int, num_fitted: int
) -> Plan:
    """What will be measured, from shapes alone.

    Args:
        weights: All of the model's weights.
        template: A spec of the model with its second moments' kind.
        settings: The budget and the sizes.
        num_queries: Q.
        num_fitted: Examples that R is fitted on.

    Raises:
        TrackStarError: no encoding is as small as the budget; or one is too large for this machine.
    """
    candidates: dict[Spec, Candidate] = {}
    left_out: list[str] = []
    compared = families(template.moments, template.whitening_damping)
    for family in compared:
        for size in settings.sizes:
            candidate = at_most(family, template, weights, size)
            if candidate is None:
                left_out.append(f"{family.name}: not in {size:,} bytes")
            elif family.preconditioner != "none" and (why := _too_large(candidate.spec, settings, num_fitted)):
                left_out.append(f"{family.name}, {size:,} bytes: {why}")
            else:
                candidates.setdefault(candidate.spec, candidate)
    chosen = tuple(candidates.values())
    if not any(candidate.num_bytes <= settings.budget for candidate in chosen):
        attributed = [(family, chosen_weights(family, weights)) for family in compared]
        blocks = min(
            len(block_layout(some, family.layout, template.layer_groups).names) for family, some in attributed if some
        )
        raise TrackStarError(
            f"--budget {settings.budget:,} bytes: no encoding is so small. One bit for each of {blocks:,} blocks takes "
            f"{math.ceil(blocks / 8):,} bytes, and one that is worth its name some hundred times that"
        )
    _check_memory(chosen, num_queries)
    groups = measuring.group(chosen, num_queries, settings.memory_bytes)
    return Plan(chosen, tuple(left_out), plan_passes(weights, num_queries, 1, settings.memory_bytes), tuple(groups))


def _too_large(spec: Spec, settings: Settings, num_fitted: int) -> str:
    """Why R is not tried with an encoding; empty where it is."""
    if spec.block_dimension > num_fitted:
        return f"R has {spec.block_dimension:,} dimensions a block, and {num_fitted:,} documents to be fitted on (--fit_size)"
    needed = 2 * 8 * spec.num_blocks * spec.block_dimension**2
    if needed > settings.memory_bytes:
        return f"R takes {human_bytes(needed)} (--memory)"
    return ""


def _check_memory(candidates: Sequence[Candidate], num_queries: int) -> None:
    """Raises TrackStarError where the widest candidate would not fit into this machine's memory."""
    widest = max(candidates, key=lambda candidate: candidate.spec.dimension)
    needed = 4 * widest.spec.dimension * (2 * num_queries + 4 * 64)
    available = psutil.virtual_memory().available
    if needed > available:
        raise TrackStarError(
            f"encodings of {widest.spec.dimension:,} numbers ({widest.family.name}, {widest.num_bytes:,} bytes) for "
            f"{num_queries:,} queries need {human_bytes(needed)}, and {human_bytes(available)} are available: lower --budget, "
            "--sizes or --query_sample"
        )
