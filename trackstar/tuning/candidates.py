"""The encodings that are compared: families that differ in more than size, and the spec of each at a number of bytes."""

import dataclasses
import shlex
from collections.abc import Sequence

from trackstar.attributed import select
from trackstar.errors import TrackStarError
from trackstar.fitting import PENDING
from trackstar.models import WeightInfo, block_layout
from trackstar.recipes import WHITENING_DAMPING, block_shape
from trackstar.spec import ATTRIBUTED, Spec, bytes_of_row
from trackstar.stored_forms import FORMS

_SCALE_BYTES = 4


Exponents = tuple[float, float]
"""Of C_s and C_a in whitened projections; (-1/2, -1/2) makes both sides white."""
WHITE: Exponents = (-0.5, -0.5)


@dataclasses.dataclass(frozen=True)
class Family:
    """Encodings that differ in nothing but their size; most fields are the spec's.

    Args:
        projection: "gaussian" or "whitened".
        layout: "weights" or "blocks".
        normalisation: "vector" or "block".
        preconditioner: "none"; "train": R_train; "mixed": stored under R_train, and scored under R = λ R_eval + (1−λ) R_train, as
            `trackstar score` does.
        storage: The stored form.
        moments: "none", "factored" or "exact".
        whitening_damping: Of whitened projections.
        exponents: Of whitened projections; the spec knows `WHITE` alone.
        attributed: Which weights: one of `spec.ATTRIBUTED`.
    """

    projection: str = "gaussian"
    layout: str = "weights"
    normalisation: str = "block"
    preconditioner: str = "none"
    storage: str = "bfloat16"
    moments: str = "none"
    whitening_damping: float = WHITENING_DAMPING
    exponents: Exponents = WHITE
    attributed: str = "all"

    @property
    def name(self) -> str:
        """What tables call it: "whitened, V exact, block norms, sign"."""
        left, right = self.exponents
        has_other_damping = self.projection == "whitened" and self.whitening_damping != WHITENING_DAMPING
        parts = [
            self.projection if self.layout == "weights" else f"{self.projection}, pooled",
            *([self.attributed] if self.attributed != "all" else []),
            *([f"exponents {left:g} and {right:g}"] if self.exponents != WHITE else []),
            *([f"damping {self.whitening_damping:g}"] if has_other_damping else []),
            "no V" if self.moments == "none" else f"V {self.moments}",
            *({"none": [], "train": ["R"], "mixed": ["mixed R"]}[self.preconditioner]),
            {"vector": "whole norm", "block": "block norms"}[self.normalisation],
            self.storage,
        ]
        return ", ".join(parts)

    @property
    def has_papers_layout(self) -> bool:
        """Whether it is `paper`'s, with R or without."""
        return dataclasses.replace(self, preconditioner="none") == dataclasses.replace(
            paper(self.moments, "none"), whitening_damping=self.whitening_damping
        )

    @property
    def features(self) -> tuple[str, str, str, str, float, Exponents]:
        """What its projected gradients depend on, beside their size and seed."""
        whitening = (self.whitening_damping, self.exponents) if self.projection == "whitened" else (0.0, WHITE)
        return self.attributed, self.projection, self.moments, self.layout, *whitening


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A family at one size.

    Args:
        family: The family.
        spec: All of it; hashes that nobody has computed are `PENDING`.
    """

    family: Family
    spec: Spec

    @property
    def num_bytes(self) -> int:
        """Of one stored encoding, with its scale where it has one."""
        return stored_bytes(self.spec)


def families(moments: str, whitening_damping: float = WHITENING_DAMPING) -> tuple[Family, ...]:
    """What `trackstar tune` compares, for the second moments that there are.

    Both projections, in every stored form, with either norm; then one at a time cheaper moments, some of the weights instead of
    all, pooled blocks, R, and the paper's recipe with it.

    Args:
        moments: "none", "factored" or "exact".
        whitening_damping: Of whitened projections.
    """
    projections = ("gaussian", "whitened")
    found = [
        Family(projection, "weights", normalisation, "none", storage, moments)
        for projection in projections
        for storage in ("bfloat16", "int8", "sign")
        for normalisation in ("block", "vector")
    ]
    for cheaper in {"exact": ("factored", "none"), "factored": ("none",)}.get(moments, ()):
        found += [Family(projection, storage="sign", moments=cheaper) for projection in projections]
    found += [
        Family("whitened", storage="sign", moments=kind, attributed=attributed)
        for kind in sorted({moments, "none"})
        for attributed in ATTRIBUTED
        if attributed != "all"
    ]
    found += [
        Family(projection, "blocks", "vector", "none", storage, moments)
        for projection in projections
        for storage in ("bfloat16", "sign")
    ]
    found += [
        Family(projection, preconditioner="train", storage=storage, moments=moments)
        for projection, storage in (("gaussian", "bfloat16"), ("gaussian", "sign"), ("whitened", "sign"))
    ]
    found.append(paper(moments))
    return tuple(dataclasses.replace(family, whitening_damping=whitening_damping) for family in found)


def paper(moments: str, preconditioner: str = "train") -> Family:
    """Pooled blocks, unit norm of the whole, bfloat16 (arXiv 2410.17413, section 3)."""
    return Family("gaussian", "blocks", "vector", preconditioner, "bfloat16", moments)


def at_most(family: Family, template: Spec, weights: Sequence[WeightInfo], num_bytes: int) -> Candidate | None:
    """The family's largest member of at most so many bytes; None where not even one number a block fits, or the model has none of
    its weights.

    Args:
        family: The family.
        template: A spec of the model, from which all comes that the family and the size do not say.
        weights: All of the model's weights.
        num_bytes: Of one stored encoding.
    """
    weights = chosen_weights(family, weights)
    if not weights:
        return None
    blocks = len(block_layout(weights, family.layout, template.layer_groups).names)
    dimension = num_bytes // bytes_of_row(family.storage, 8) * 8 + 7  # of no form does a row of eight numbers more fit
    while True:
        try:
            rows, columns = block_shape(weights, family.layout, template.layer_groups, dimension)
        except TrackStarError:  # fewer numbers than blocks
            return None
        spec = member(family, template, blocks, rows, columns)
        if stored_bytes(spec) <= num_bytes:
            return Candidate(family, spec)
        dimension = spec.dimension - 1  # what is stored beside the numbers counts, too


def chosen_weights(family: Family, weights: Sequence[WeightInfo]) -> tuple[WeightInfo, ...]:
    """The weights that a family attributes; none where a model has no such ones."""
    try:
        return select(weights, family.attributed)
    except TrackStarError:
        return ()


def stored_bytes(spec: Spec) -> int:
    """Bytes of one stored encoding, with its scale where it has one."""
    return spec.bytes_per_encoding + (_SCALE_BYTES if FORMS[spec.storage].is_scaled else 0)


def member(family: Family, template: Spec, blocks: int, rows: int, columns: int) -> Spec:
    """The family's spec with blocks of rows × columns."""
    is_whitened = family.projection == "whitened"
    return dataclasses.replace(
        template,
        attributed=family.attributed,
        projection=family.projection,
        projection_fingerprint=PENDING if is_whitened else "",
        whitening_damping=family.whitening_damping if is_whitened else 0.0,
        layout=family.layout,
        num_blocks=blocks,
        block_rows=rows,
        block_columns=columns,
        normalisation=family.normalisation,
        preconditioner="none" if family.preconditioner == "none" else PENDING,
        storage=family.storage,
        moments=family.moments,
        moments_source="none" if family.moments == "none" else template.moments_source,
        moments_fingerprint="" if family.moments == "none" else template.moments_fingerprint,
    )


def fit_words(candidate: Candidate) -> list[str]:
    """The flags of `trackstar fit` that make the candidate's spec, all of what its family and size decide."""
    family, spec = candidate.family, candidate.spec
    words = {
        "attributed": family.attributed,
        "layout": family.layout,
        "normalisation": family.normalisation,
        "block_rows": str(spec.block_rows),
        "block_columns": str(spec.block_columns),
        "projection": family.projection,
        "moments": family.moments,
        "preconditioner": family.preconditioner,
        "storage": family.storage,
    }
    if family.projection == "whitened":
        words["whitening_damping"] = f"{family.whitening_damping:g}"
    return [word for name, value in words.items() for word in (f"--{name}", value)]


def shown(words: Sequence[str]) -> str:
    """Words as a shell takes them."""
    return shlex.join(words)
