"""Documents or queries → encodings: gradients, second moments, projection, preconditioner and unit norm in a row."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from trackstar import second_moments, storage, threads, whitening
from trackstar.attributed import attributing
from trackstar.batching import Example, collate, plan_batches
from trackstar.device_memory import BatchLimit, explained
from trackstar.devices import choose_device
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.gradients import GradientEngine, ProjectingSink, Sink
from trackstar.models import LoadedModel, block_layout, load_model
from trackstar.preconditioner import load_inverse_root
from trackstar.second_moments import SecondMoments
from trackstar.spec import Spec
from trackstar.tokenization import Tokenization
from trackstar.whitening import Projections

_WINDOW_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Projected:
    """Projected, corrected gradients of some examples, before the preconditioner."""

    gradients: torch.Tensor
    """E: float32 [N, number of blocks, d₀d₁] on the model's device."""
    losses: torch.Tensor
    """float32 [N] on the CPU."""
    too_large: dict[int, str] = dataclasses.field(default_factory=dict)
    """Examples that the device's memory cannot take even alone, and why; gradient and loss are NaN."""


def window_size(dimension: int) -> int:
    """Examples that are sorted by length and encoded together, by d alone."""
    return max(64, min(4096, _WINDOW_BYTES // (4 * dimension)))


class Encoder:
    """Encodes examples under one spec.

    Args:
        loaded: The model; checked against the spec.
        spec: What determines the encodings.
        moments: Second moments of every attributed weight, or None.
        inverse_root: (R + δI)^(-1/2), float32 [number of blocks, d_b, d_b], or None.
        projections: Whitened projections, if the spec says so; Gaussian ones are made here.

    Raises:
        TrackStarError: the model is not the spec's, with the fields that differ; or the projections are not.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        spec: Spec,
        moments: SecondMoments | None,
        inverse_root: torch.Tensor | None,
        projections: Projections | None = None,
    ):
        check_model(loaded, spec)
        if (spec.projection == "whitened") != (projections is not None):
            raise TrackStarError(
                f"the spec's projections are {spec.projection}, and whitened ones were "
                f"{'given' if projections is not None else 'not given'}"
            )
        loaded = attributing(loaded, spec.attributed)
        self.loaded = loaded
        """The model with the spec's weights."""
        self.spec = spec
        self.layout = block_layout(loaded.weights, spec.layout, spec.layer_groups)
        self.inverse_root = None if inverse_root is None else inverse_root.to(loaded.device)
        self.limit = BatchLimit(loaded.device)
        """What this process has learned of its device's memory."""
        self.lock = threading.Lock()
        """Held while the model runs: hooks and sink belong to one batch at a time, whatever the threads."""
        self.sink = ProjectingSink(
            loaded.weights,
            self.layout,
            spec.block_rows,
            spec.block_columns,
            spec.projection_seed,
            moments,
            loaded.device,
            getattr(torch, spec.model_dtype),
            projections.by_weight if projections is not None else None,
        )

    @property
    def inverse_roots(self) -> Mapping[str, torch.Tensor]:
        """1/(√V + ε) of each weight with exact second moments, float32 [m, n] on the model's device."""
        return self.sink.inverse_roots

    @property
    def tokenization(self) -> Tokenization:
        """Text to examples, as the spec has it."""
        spec = self.spec
        return Tokenization(
            self.loaded.tokenizer, spec.vocabulary_size, spec.max_length, spec.long_documents, spec.append_eos
        )

    @property
    def window(self) -> int:
        """Examples that are sorted by length and encoded together: a function of the spec alone, and it bounds memory."""
        return window_size(self.spec.dimension)

    def project(self, examples: Sequence[Example]) -> Projected:
        """E of each example, in the order given; batches that the device's memory cannot take run in halves.

        Raises:
            TrackStarError: not even one example fits into the device's memory.
        """
        spec = self.spec
        gradients = torch.empty(len(examples), spec.num_blocks, spec.block_dimension, device=self.loaded.device)
        losses = torch.empty(len(examples))

        def take(indices: list[int], of_batch: torch.Tensor) -> None:
            losses[indices] = of_batch.cpu()
            gradients[indices] = self.sink.encodings.reshape(len(indices), spec.num_blocks, -1)

        too_large = self.run(examples, self.sink, take)
        for i in too_large:
            gradients[i], losses[i] = torch.nan, torch.nan
        return Projected(gradients, losses, too_large)

    def run(
        self, examples: Sequence[Example], sink: Sink, take: Callable[[list[int], torch.Tensor], None]
    ) -> dict[int, str]:
        """Runs examples through the model, batch after batch, into a sink.

        Args:
            examples: The examples.
            sink: Sees activations and output gradients.
            take: Called after each batch with the numbers of its examples and their losses, float32 [B] on the model's device.

        Returns:
            Why, for each example that the device's memory cannot take even alone.

        Raises:
            TrackStarError: not even one example fits into the device's memory.
        """
        lengths = [len(example.input_ids) for example in examples]
        with self.lock, GradientEngine(self.loaded, sink) as engine:

            def run(indices: list[int]) -> None:
                take(indices, engine.run(collate([examples[i] for i in indices])))

            return self.limit.each(plan_batches(lengths, self.spec.batch_tokens), lengths, run)

    def finish(self, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """φ and the norm that was divided by, from E [N, number of blocks, d_b]: float32 [N, d] and [N]."""
        return precondition_and_normalise(gradients, self.inverse_root, self.spec.normalisation)

    def encode(self, examples: Sequence[Example]) -> tuple[Encodings, dict[int, str]]:
        """Encodings of those examples that have one, in the order given.

        Returns:
            The encodings, and for each example without one its index and the reason.
        """
        projected = self.project(examples)
        vectors, norms = self.finish(projected.gradients)
        norms = norms.cpu()
        good = torch.isfinite(norms) & torch.isfinite(projected.losses) & (norms > 0)
        bad = {
            i: f"non-finite gradient (loss {projected.losses[i]:.6g}, norm {norms[i]:.6g})"
            if not torch.isfinite(norms[i]) or not torch.isfinite(projected.losses[i])
            else "its gradient is zero"
            for i in (~good).nonzero().flatten().tolist()
        } | projected.too_large
        kept = good.nonzero().flatten().tolist()
        vectors = vectors if len(kept) == len(examples) else vectors[kept]
        chosen = [examples[i] for i in kept]
        texts = [example.text or "" for example in chosen] if self.spec.stores_text else None
        return (
            Encodings(
                example_ids=[example.example_id for example in chosen],
                positions=np.array([example.position for example in chosen], dtype=np.int64),
                texts=texts,
                num_tokens=np.array([len(example.input_ids) for example in chosen], dtype=np.int32),
                loss=projected.losses[kept].numpy(),
                grad_norm=norms[kept].numpy(),
                vectors=vectors.cpu(),
            ),
            bad,
        )


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Where a worker finds all that an encoder is made of; small enough to travel as an argument.

    Args:
        spec_json: The spec, as `Spec.to_json` gives it.
        model: Checkpoint folder.
        moments_uri: Second moments that `fit` saved, or None.
        preconditioner_uri: Folder of the preconditioner that `fit` saved, or None.
        device: "auto", "cpu" or "cuda[:i]".
        threads: Threads that torch uses in this process. Bits may depend on it, so it does not follow the machine.
        allow_low_coverage: As for `load_model`.
        projections_uri: Whitened projections that `fit` saved, or None.
    """

    spec_json: str
    model: str
    moments_uri: str | None
    preconditioner_uri: str | None
    device: str = "auto"
    threads: int = 1
    allow_low_coverage: bool = False
    projections_uri: str | None = None

    @classmethod
    def of_index(
        cls,
        uri: str,
        spec: Spec,
        model: str,
        device: str = "auto",
        threads: int = 1,
        allow_low_coverage: bool = False,
        preconditioned: bool = True,
    ) -> "EncoderSource":
        """The encoder of an index, from the files that its `fit` wrote.

        Args:
            uri: The index.
            spec: Its spec.
            model: As in the class, like all that is not named here.
            preconditioned: Whether its preconditioner comes along; without it, whoever asks sets one.
        """
        fitted = {
            "second_moments.safetensors": spec.moments != "none",
            "preconditioner": preconditioned and spec.preconditioner != "none",
            "projections.safetensors": spec.projection == "whitened",
        }
        moments, preconditioner, projections = (
            storage.join(uri, name) if is_there else None for name, is_there in fitted.items()
        )
        return cls(spec.to_json(), model, moments, preconditioner, device, threads, allow_low_coverage, projections)

    def load(self) -> Encoder:
        """Loads model, moments, projections and preconditioner.

        Raises:
            TrackStarError: one of them is missing or does not belong to the spec.
        """
        threads.use(self.threads)
        return self.of_model(self.load_model())

    def load_model(self) -> LoadedModel:
        """The model, in the spec's type on the device.

        Raises:
            TrackStarError: there is none, or it does not fit into the device's memory.
        """
        device = choose_device(self.device)
        with explained("the model", device):
            return load_model(self.model, Spec.from_json(self.spec_json).model_dtype, device, self.allow_low_coverage)

    def of_model(self, loaded: LoadedModel) -> Encoder:
        """The encoder of a model that is in memory already.

        Raises:
            TrackStarError: the model, second moments or preconditioner do not belong to the spec.
        """
        spec = Spec.from_json(self.spec_json)
        loaded = attributing(loaded, spec.attributed)
        moments = None
        if self.moments_uri is not None:
            moments = second_moments.read(self.moments_uri).select(loaded.weights)
            if moments.fingerprint != spec.moments_fingerprint:
                raise TrackStarError(f"{self.moments_uri}: these second moments are not the index's; run fit again")
        projections = whitening.read_for(self.projections_uri, spec) if self.projections_uri is not None else None
        inverse_root = load_inverse_root(self.preconditioner_uri) if self.preconditioner_uri is not None else None
        return Encoder(loaded, spec, moments, inverse_root, projections)


def precondition_and_normalise(
    gradients: torch.Tensor, inverse_root: torch.Tensor | None, normalisation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """φ = R^(-1/2) E / ‖R^(-1/2) E‖ (arXiv 2410.17413, section 3).

    Args:
        gradients: E, float32 [N, number of blocks, d_b].
        inverse_root: float32 [number of blocks, d_b, d_b], symmetric, or None.
        normalisation: "vector", or "block": every block to unit norm first.

    Returns:
        φ, float32 [N, d], and ‖R^(-1/2) E‖ over all blocks, float32 [N].
    """
    if inverse_root is not None:
        preconditioned = torch.empty_like(gradients)
        for block in range(gradients.shape[1]):
            preconditioned[:, block] = gradients[:, block] @ inverse_root[block]
        gradients = preconditioned
    norms = gradients.flatten(1).norm(dim=1)
    if normalisation == "block":
        block_norms = gradients.norm(dim=2, keepdim=True)
        gradients = torch.where(block_norms > 0, gradients / block_norms, torch.zeros_like(gradients))
        vectors = gradients.flatten(1)
        return vectors / vectors.norm(dim=1, keepdim=True), norms
    return gradients.flatten(1) / norms[:, None], norms


def check_model(loaded: LoadedModel, spec: Spec) -> None:
    """Raises TrackStarError where the model or tokenizer is not the one that the spec was made for."""
    found = {
        "model_architecture": type(loaded.model).__name__,
        "vocabulary_size": loaded.vocabulary_size,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "model_dtype": loaded.dtype_name,
        "model_fingerprint": loaded.fingerprint,
    }
    lines = [
        f"  {field}: the index has {getattr(spec, field)!r}, --model gives {value!r}"
        for field, value in found.items()
        if getattr(spec, field) != value
    ]
    if lines:
        raise TrackStarError(
            "the model is not the one that this index was made with:\n"
            + "\n".join(lines)
            + "\nGive that one as --model. For another model fit another index (`trackstar fit --index DIR …`), which "
            "`trackstar reindex --new_index DIR` builds and switches to"
        )
