"""What encodings of every size are made of, collected once on a sample: second moments, whitened projections, R.

A projection's first columns are those of a narrower one, up to the scale (`projection`), and whitening does not change that. So
the widest encodings of a kind hold all narrower ones, and R of the widest holds theirs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from trackstar import second_moments
from trackstar.attributed import select
from trackstar.covariances import CovarianceSums, Part, plan_parts, plan_passes, shared_inputs
from trackstar.encoder import Encoder
from trackstar.fitting import SampleTask, sampled_examples, stage_spec
from trackstar.models import LoadedModel, WeightInfo
from trackstar.preconditioner import Preconditioner
from trackstar.projection import Side
from trackstar.sample_sums import sum_covariances, sum_gram, sum_squares
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec
from trackstar.tuning.candidates import WHITE, Exponents
from trackstar.tuning.metric import Metric, Roots, corrected, whitened
from trackstar.whitening import DampedPower, Projections, factored_scale, folded

_SIDES: tuple[Side, Side] = ("left", "right")


class Materials:
    """Second moments, covariances and R of one model and one sample; whatever is asked for is made once.

    Args:
        loaded: The model.
        template: A spec of the model; seed, dampings and batches are taken from it.
        moments: Kind ("none", "factored", "exact") → second moments.
        sample: What covariances and R are fitted on.
        folder: For the sums behind the covariances; they may be larger than the memory.
        pass_bytes: Sums of covariances in memory at a time.
        tell: Told what is made; it takes as long as a run of the sample through the model, or several.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        template: Spec,
        moments: Mapping[str, SecondMoments | None],
        sample: SampleTask,
        folder: Path,
        pass_bytes: int = 2 << 30,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self.loaded = loaded
        self.template = template
        self.moments = moments
        self.sample = sample
        self.folder = folder
        self._pass_bytes = pass_bytes
        self._tell = tell
        self._covariances: dict[frozenset[str], Covariances] = {}
        self._projections: dict[tuple[str, str, Exponents, int, float], tuple[int, int, Projections]] = {}

    def encoder(self, spec: Spec, inverse_root: torch.Tensor | None = None, exponents: Exponents = WHITE) -> Encoder:
        """An encoder of a spec. Widest first: whitened projections of a narrower one are cut out of a wider one's."""
        projections = self.projections(spec, exponents) if spec.projection == "whitened" else None
        return Encoder(self.loaded, spec, self.moments[spec.moments], inverse_root, projections)

    def projections(self, spec: Spec, exponents: Exponents = WHITE) -> Projections:
        """Whitened projections of a spec's shape."""
        key = spec.attributed, spec.moments, exponents, spec.projection_seed, spec.whitening_damping
        rows, columns, wide = self._projections.get(key, (0, 0, None))
        if wide is None or spec.block_rows > rows or spec.block_columns > columns:
            rows, columns = max(rows, spec.block_rows), max(columns, spec.block_columns)
            shaped = dataclasses.replace(spec, block_rows=rows, block_columns=columns)
            named: dict[str, torch.Tensor] = {}
            covariances = self.covariances(spec.moments)
            chosen = {weight.name for weight in select(self.loaded.weights, spec.attributed)}
            for part in covariances.parts:
                part = dataclasses.replace(part, serves=tuple(name for name in part.serves if name in chosen))
                if not part.serves:
                    continue
                exponent = exponents[0] if part.side == "left" else exponents[1]
                named |= folded(part, covariances.mean(part), shaped, self.moments[spec.moments], exponent)
            wide = Projections.of_named(named)
            self._projections[key] = rows, columns, wide
        return Projections(
            {
                name: (narrower(left, spec.block_rows), narrower(right, spec.block_columns))
                for name, (left, right) in wide.by_weight.items()
            }
        )

    def covariances(self, moments: str) -> "Covariances":
        """Behind the projections with second moments of a kind; no second moments and factored ones share them."""
        of_kind = self.moments[moments]
        exact = of_kind.exact_weights if of_kind is not None else frozenset()
        if exact not in self._covariances:
            parts = plan_parts(self.loaded.weights, shared_inputs(self.loaded), exact)
            kind = moments if exact else "none"
            encoder = Encoder(self.loaded, plain_spec(self.template, kind), self.moments[kind], None)
            folder = self.folder / f"covariances-{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            files: dict[str, str] = {}
            passes = plan_passes(parts, self._pass_bytes)
            for number, group in enumerate(passes):
                of = "corrected gradients" if exact else "tokens"
                self._tell(f"covariances of {of} for whitening: run {number + 1} of {len(passes)} of the sample")
                uri = str(folder / f"{number:05d}.safetensors")
                sum_covariances(encoder, lambda: sampled_examples(encoder, self.sample), group).save(uri)
                files |= {part.key: uri for part in group}
            self._covariances[exact] = Covariances(parts, files)
        return self._covariances[exact]

    def metric(self, moments: str, whiten: bool) -> Metric:
        """What the scores of very wide encodings tend to: the inner product of full gradients, perhaps whitened."""
        of_kind = self.moments[moments]
        if not whiten:
            return corrected(of_kind)
        return whitened(of_kind, self.roots(moments))

    def roots(self, moments: str) -> Roots:
        """What whitened projections multiply a gradient with before the Gaussian ones do."""
        covariances, of_kind = self.covariances(moments), self.moments[moments]
        last: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # a large weight is asked for pass after pass

        def roots(weight: WeightInfo) -> tuple[torch.Tensor, torch.Tensor]:
            if weight.name not in last:
                left, right = (
                    full_root(covariances.part(weight.name, side), covariances, weight.name, of_kind, self.template)
                    for side in _SIDES
                )
                last.clear()
                last[weight.name] = left.T, right
            return last[weight.name]

        return roots

    def gram(self, spec: Spec, exponents: Exponents = WHITE) -> "Gram":
        """Σ vec(E_b) vec(E_b)ᵀ / count over the sample, for encodings of this shape."""
        encoder = self.encoder(dataclasses.replace(spec, preconditioner="none"), exponents=exponents)
        self._tell(f"R of {spec.num_blocks:,} blocks of {spec.block_dimension:,} numbers: a run of the sample")
        total = sum_gram(encoder, self.sample)
        return Gram(total.mean(), total.count, spec.block_rows, spec.block_columns)


def plain_spec(template: Spec, moments: str = "none") -> Spec:
    """The spec of an encoder that runs batches and projects next to nothing."""
    spec = stage_spec(template, moments=moments != "none", projections=False)
    return dataclasses.replace(spec, block_rows=1, block_columns=1, moments=moments)


def estimated_moments(loaded: LoadedModel, template: Spec, sample: SampleTask) -> SecondMoments:
    """Second moments of a sample's gradients, element by element: what `fit` takes where no optimizer's state is given."""
    sink = sum_squares(Encoder(loaded, plain_spec(template), None, None), sample)
    return second_moments.estimated(sink.sums, sink.count)


@dataclasses.dataclass(frozen=True)
class Gram:
    """R of the widest encodings of a kind.

    Args:
        matrices: float64 [d₀d₁, d₀d₁] a block.
        count: Examples behind it.
        rows: d₀.
        columns: d₁.
    """

    matrices: Sequence[torch.Tensor]
    count: int
    rows: int
    columns: int

    def preconditioner(self, spec: Spec) -> Preconditioner:
        """R of narrower encodings."""
        kept = (torch.arange(spec.block_rows)[:, None] * self.columns + torch.arange(spec.block_columns)).flatten()
        scale = self.rows * self.columns / (spec.block_rows * spec.block_columns)
        return Preconditioner.of([m[kept][:, kept] * scale for m in self.matrices], spec.damping, self.count)


@dataclasses.dataclass(frozen=True)
class Covariances:
    """Covariances whose sums lie in files.

    Args:
        parts: All of them.
        files: `Part.key` → file of its sum.
    """

    parts: Sequence[Part]
    files: Mapping[str, str]

    def mean(self, part: Part) -> torch.Tensor:
        """One covariance, float64 [k, k]."""
        return CovarianceSums.load(self.files[part.key], (part.key,)).mean(part.key)

    def part(self, weight: str, side: Side) -> Part:
        """The covariance that a side of a weight is whitened by."""
        return next(part for part in self.parts if part.side == side and weight in part.serves)


def full_root(
    part: Part, covariances: Covariances, weight: str, moments: SecondMoments | None, template: Spec
) -> torch.Tensor:
    """What `whitening.folded` multiplies a Gaussian projection with: D (D C D + δI)^(-1/2), float64 [k, k]."""
    covariance = covariances.mean(part)
    if part.exact and part.side == "right" and covariance.trace() > 0:
        covariance = covariance / covariance.trace()
    scale = None if part.exact else factored_scale(moments, weight, part.side)
    if scale is not None:
        covariance = scale[:, None] * covariance * scale
    root = DampedPower(covariance, template.whitening_damping).apply(-0.5, torch.eye(part.size, dtype=torch.float64))
    return root if scale is None else scale[:, None] * root


def narrower(wide: torch.Tensor, columns: int) -> torch.Tensor:
    """The projection of fewer columns that a wider one holds."""
    return (wide[:, :columns] * math.sqrt(wide.shape[1] / columns)).contiguous()


def cut(gradients: torch.Tensor, wide: Spec, spec: Spec) -> torch.Tensor:
    """Projected gradients of a narrower spec, [N, blocks, d_b], out of a wider one's."""
    if (wide.block_rows, wide.block_columns) == (spec.block_rows, spec.block_columns):
        return gradients
    shape = len(gradients), wide.num_blocks, wide.block_rows, wide.block_columns
    kept = gradients.view(shape)[:, :, : spec.block_rows, : spec.block_columns]
    scale = math.sqrt(wide.block_dimension / spec.block_dimension)
    return (kept * scale).reshape(len(gradients), spec.num_blocks, spec.block_dimension)
