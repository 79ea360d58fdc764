"""Which of a model's matrices are attributed: all of them, or some.

An encoding has so many numbers to share among its weights. Fewer weights get larger blocks, which keep more of each: what
measures better depends on what is asked (docs/benchmarks.md, "Influence per byte"). "outputs" are the matrices that write into
the residual stream, two a layer: attention's output projection and the MLP's down projection.
"""

import dataclasses
import re
from collections.abc import Sequence

from trackstar.errors import TrackStarError
from trackstar.models import LoadedModel, WeightInfo
from trackstar.spec import ATTRIBUTED

_OUTPUT_NAMES = re.compile(
    r"(?:^|\.)(?:o_proj|out_proj|c_proj|down_proj|dense|dense_4h_to_h|fc2|fc_out|wo|w2)$"  # by the names of transformers
)


def attributing(loaded: LoadedModel, chosen: str) -> LoadedModel:
    """The same model with the chosen weights alone; of a model that has no others it is that model.

    Args:
        loaded: The model with all its weights, or with those chosen already.
        chosen: One of `spec.ATTRIBUTED`.

    Raises:
        TrackStarError: none of the model's weights is chosen.
    """
    weights = select(loaded.weights, chosen)
    if weights == loaded.weights:
        return loaded
    entries = sum(weight.outputs * weight.inputs for weight in weights)
    coverage = dataclasses.replace(loaded.coverage, attributed=entries, chosen=chosen)
    return dataclasses.replace(loaded, weights=weights, coverage=coverage)


def select(weights: Sequence[WeightInfo], chosen: str) -> tuple[WeightInfo, ...]:
    """The chosen ones of some weights, in their order.

    Args:
        weights: The weights.
        chosen: One of `spec.ATTRIBUTED`.

    Raises:
        TrackStarError: there is none.
    """
    if chosen not in ATTRIBUTED:
        raise TrackStarError(f"attributed {chosen!r}: must be one of {', '.join(ATTRIBUTED)}")
    found = tuple(weights)
    if chosen in ("attention", "mlp"):
        found = tuple(weight for weight in weights if weight.kind == chosen)
    elif chosen == "outputs":
        names = _outputs(weights)
        found = tuple(weight for weight in weights if weight.name in names)
    if not found:
        raise TrackStarError(
            f"--attributed {chosen}: the model has no such matrix in its layers: take --attributed all"
        )
    return found


def _outputs(weights: Sequence[WeightInfo]) -> set[str]:
    """Of each layer's attention and MLP the matrices that are named as outputs are, or else the last one."""
    parts: dict[tuple[int, str], list[WeightInfo]] = {}
    for weight in weights:
        parts.setdefault((weight.layer, weight.kind), []).append(weight)
    found: set[str] = set()
    for part in parts.values():
        named = [weight.name for weight in part if _OUTPUT_NAMES.search(weight.module)]
        found.update(named or [part[-1].name])
    return found
