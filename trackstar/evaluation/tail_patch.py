"""Tail-patch: how one training step on a proponent changes the probability of what the model said.

For a query (prompt, target) and a proponent: one step of the saved optimizer on the proponent alone, then
p(target | prompt) after it less the same before it (arXiv 2410.17413, section 5.2). The model's own tensors are never
written: for the time of a measurement its parameters point to others, so every measurement starts from the same bits.
"""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trackstar import optimizer_state, storage, threads
from trackstar.batching import Batch, Example, collate, plan_batches
from trackstar.corpus import Record
from trackstar.devices import choose_device
from trackstar.errors import TrackStarError
from trackstar.evaluation.training_step import StepRules, read_rules
from trackstar.head import PlainHead
from trackstar.models import LoadedModel, load_model
from trackstar.tokenization import Tokenization

_LOGIT_BYTES = 256 << 20
"""Logits of a document that exist at one time; those of a longer one are computed again in the backward pass."""
_KEPT_BATCHES = 4096
"""Batches whose probabilities before the step are remembered."""


@dataclasses.dataclass(frozen=True)
class TailPatchSettings:
    """What a step is, apart from its learning rate."""

    step: str = dataclasses.field(
        default="auto",
        metadata={
            "help": "auto: the saved optimizer's own step, momentum and weight decay with it; adamw, adafactor: the same, "
            "named; sgd: rate · g; normalised: rate · g / (√V + ε)",
            "choices": ("auto", "adamw", "adafactor", "sgd", "normalised"),
        },
    )
    loss: str = dataclasses.field(
        default="mean",
        metadata={
            "help": "a proponent's loss, over its tokens: mean, as training takes it over a batch, here a batch of this one "
            "document; or sum, under which long documents make longer steps",
            "choices": ("mean", "sum"),
        },
    )
    """The mean is what the training code would compute for a batch that is this document, and the scale that the optimizer's
    state and learning rate are made for: with the sum, a document of 500 tokens is a gradient 500 times beyond them, and a
    method could gain by nothing but retrieving long documents. The sum is what a document adds to a batch of fixed size."""
    max_length: int | None = dataclasses.field(
        default=None, metadata={"help": "longest example in tokens, the rest is cut off (the model's context)"}
    )
    append_eos: bool = dataclasses.field(
        default=False, metadata={"help": "documents end in the end-of-text token, as they did in training"}
    )
    batch_tokens: int = dataclasses.field(
        default=4096, metadata={"help": "tokens, padding included, of the queries that are measured together"}
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """p(target | prompt) of some queries before and after a step."""

    before: list[float]
    """One a query."""
    after: list[list[float]]
    """One list a learning rate, of one a query."""


class TailPatch:
    """Takes steps on single documents and measures queries, from one checkpoint.

    Every call starts from the checkpoint and leaves it as it was; calls from several threads wait for each other. Probabilities
    before the step are remembered: a model that was trained on needs another `TailPatch`.

    Args:
        loaded: The model in float32: at a step of 1e-5, bfloat16 parameters would mostly stay where they are. A bfloat16
            checkpoint is loaded with `load_model(path, "float32")`, which keeps its values.
        state: Where the optimizer's state lies (see `training_step.read_rules`); None is enough for plain gradient steps.
        settings: What a step is.

    Raises:
        TrackStarError: a model in another type, no such state, one of another model, or impossible settings.
    """

    def __init__(self, loaded: LoadedModel, state: str | None = None, settings: TailPatchSettings | None = None):
        self.settings = settings or TailPatchSettings()
        self.loaded = loaded
        wrong = next((p for p in loaded.model.parameters() if p.dtype != torch.float32), None)
        if wrong is not None:
            raise TrackStarError(
                f"the model is in {str(wrong.dtype).removeprefix('torch.')}, which loses small steps: load it in float32, "
                'load_model(path, "float32")'
            )
        self._max_length = _max_length(loaded, self.settings.max_length)
        self.rules: StepRules = read_rules(self.settings.step, state, loaded.model, loaded.device)
        named = dict(loaded.model.named_parameters())
        self._moving = [(named[name], rule) for name, rule in self.rules.by_name.items()]
        self._has_plain_head = PlainHead.of(loaded.model) is not None
        self._before: dict[tuple[tuple[tuple[int, ...], int], ...], Tensor] = {}
        self._lock = threading.RLock()

    @property
    def tokenization(self) -> Tokenization:
        """Text to examples."""
        loaded = self.loaded
        return Tokenization(
            loaded.tokenizer, loaded.vocabulary_size, self._max_length, "truncate", self.settings.append_eos
        )

    def document(self, document: Record | str) -> tuple[Example, bool]:
        """A document as an example, and whether tokens were cut off.

        Raises:
            UnusableRecordError: nothing to predict in it.
        """
        record = Record("", "", 0, document, None) if isinstance(document, str) else document
        examples, cut = self.tokenization.documents(record)
        return examples[0], cut

    def query(self, prompt: str, target: str) -> Example:
        """A query as an example.

        Raises:
            UnusableRecordError: an empty or too long target, or nothing to predict it from.
        """
        return self.tokenization.query("", prompt, target)

    def measure(self, document: Example | None, queries: Sequence[Example], *rates: float) -> Measured:
        """One step on a document at each of some learning rates, each from the checkpoint; then the queries.

        Args:
            document: The document; None takes a step with a zero gradient: what momentum and weight decay do by
                themselves, the same for every document.
            queries: Measured in the same padded batches before and after, so that padding has no part in the change.
            rates: Learning rates.

        Returns:
            Probabilities; not finite where the step led to such numbers.
        """
        with self._lock:
            batches = [
                (indices, [queries[i] for i in indices])
                for indices in plan_batches([len(query.input_ids) for query in queries], self.settings.batch_tokens)
            ]
            before = _in_order(batches, self._before_step)
            direction = self._direction(document)
            after = []
            for number, rate in enumerate(rates):
                with self._moved(direction, rate, last=number == len(rates) - 1):
                    after.append(_in_order(batches, self._probabilities))
            return Measured(before, after)

    def slope(self, document: Example | None, query: Example) -> tuple[float, float]:
        """p(target | prompt) before a step, and its slope ∂p/∂rate along one on the document at rate 0: ∇p · (−u), exact."""
        with self._lock:
            direction = self._direction(document)
            log_p, gradients = self._gradients(lambda: self._log_probabilities(collate([query])).sum())
            dot = sum(
                float((gradient * u).sum(dtype=torch.float64))
                for gradient, u in zip(gradients, direction, strict=True)
                if gradient is not None and u is not None
            )
            p = float(log_p.exp())
            return p, -p * dot

    def _before_step(self, queries: Sequence[Example]) -> Tensor:
        """`_probabilities` in the checkpoint, remembered: single queries and shared proponents come again and again."""
        key = tuple((query.input_ids, query.first_target) for query in queries)
        if key not in self._before:
            if len(self._before) >= _KEPT_BATCHES:
                self._before.clear()
            self._before[key] = self._probabilities(queries)
        return self._before[key]

    def _direction(self, document: Example | None) -> list[Tensor | None]:
        """u of every moving parameter; None where a parameter has no part in the loss, and stays."""
        gradients: list[Tensor | None]
        if document is None:
            if not self.rules.has_drift:
                return [None] * len(self._moving)
            gradients = [torch.zeros_like(parameter) for parameter, _ in self._moving]
        else:
            _, gradients = self._gradients(lambda: self._loss(document))
        with torch.no_grad():
            for i, (parameter, rule) in enumerate(self._moving):
                gradient = gradients[i]
                if gradient is not None:
                    gradients[i] = rule.direction(gradient, parameter)
        return gradients

    def _gradients(self, value: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """A scalar and its gradients to the moving parameters; the model's parameters are frozen again afterwards."""
        parameters = [parameter for parameter, _ in self._moving]
        flags = [parameter.requires_grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                result = value()
                gradients = torch.autograd.grad(result, parameters, allow_unused=True)
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)
        return result.detach(), _apart(gradients)

    @contextlib.contextmanager
    def _moved(self, direction: list[Tensor | None], rate: float, last: bool) -> Iterator[None]:
        """The model at θ − rate · u. With `last`, u's memory is taken for it."""
        originals = [parameter.data for parameter, _ in self._moving]
        try:
            for (parameter, _), u in zip(self._moving, direction, strict=True):
                if u is not None:
                    out = u if last else torch.empty_like(u)
                    parameter.data = torch.sub(parameter.data, u, alpha=rate, out=out)
            yield
        finally:
            for (parameter, _), original in zip(self._moving, originals, strict=True):
                parameter.data = original

    def _loss(self, document: Example) -> Tensor:
        """−Σ log p of the document's tokens, or its mean."""
        batch = collate([document]).to(self.loaded.device)
        if not self._has_plain_head:
            return nn.functional.cross_entropy(self._logits(batch), batch.targets, reduction=self.settings.loss)
        hidden = self._hidden(batch)  # [S, h]
        chunk = max(1, _LOGIT_BYTES // (4 * self.loaded.vocabulary_size))
        if len(hidden) <= chunk:
            total = self._head_loss(hidden, batch.targets)
        else:
            parts = zip(hidden.split(chunk), batch.targets.split(chunk), strict=True)
            total = torch.stack([checkpoint(self._head_loss, h, t, use_reentrant=False) for h, t in parts]).sum()
        return total / len(hidden) if self.settings.loss == "mean" else total

    def _head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """−Σ log p of targets [S] at hidden states [S, h]."""
        logits = self.loaded.model.get_output_embeddings()(hidden)  # [S, v]
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    def _probabilities(self, queries: Sequence[Example]) -> Tensor:
        """p(target | prompt): float64 [B] on the CPU."""
        with torch.no_grad():
            return self._log_probabilities(collate(queries)).exp().cpu()

    def _log_probabilities(self, batch: Batch) -> Tensor:
        """Σ log p over each example's supervised tokens, summed in float64: [B]."""
        batch = batch.to(self.loaded.device)
        logits = self._logits(batch).double()  # [S, v]
        tokens = torch.log_softmax(logits, dim=1).gather(1, batch.targets[:, None])[:, 0]  # [S]
        return torch.zeros(batch.size, dtype=torch.float64, device=tokens.device).index_add(0, batch.rows, tokens)

    def _logits(self, batch: Batch) -> Tensor:
        """Logits at the positions that predict the supervised tokens: float32 [S, v]."""
        if self._has_plain_head:
            return self.loaded.model.get_output_embeddings()(self._hidden(batch))
        logits = self.loaded.model(input_ids=batch.input_ids, use_cache=False).logits  # [B, T, v]
        return logits[batch.rows, batch.columns]

    def _hidden(self, batch: Batch) -> Tensor:
        """What the LM head sees at those positions: [S, h]."""
        model = self.loaded.model
        return model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[batch.rows, batch.columns]


@dataclasses.dataclass(frozen=True)
class TailPatchSource:
    """Where a worker finds all that a `TailPatch` is made of; small enough to travel as an argument.

    Args:
        model: Checkpoint folder.
        optimizer_state: Optimizer state, or None: the one in the model's folder, if it has one.
        settings: What a step is.
        device: "auto", "cpu" or "cuda[:i]".
        threads: Threads that torch uses in this process. Bits may depend on it, so it does not follow the machine.
    """

    model: str
    optimizer_state: str | None
    settings: TailPatchSettings
    device: str = "auto"
    threads: int = 1

    @property
    def state_uri(self) -> str | None:
        """The optimizer's state file or folder; None where there is none or none is needed."""
        if self.settings.step == "sgd":
            return None
        inside = [storage.join(self.model, name) for name in optimizer_state.FILE_NAMES]
        return self.optimizer_state or next((uri for uri in inside if storage.exists(uri)), None)

    def load(self) -> TailPatch:
        """Loads model and optimizer state.

        Raises:
            TrackStarError: one of them is missing, or they do not belong together.
        """
        threads.use(self.threads)
        # What share of the model encodings see is of no matter here: a step moves all of it.
        loaded = load_model(self.model, "float32", choose_device(self.device), allow_low_coverage=True)
        return TailPatch(loaded, self.state_uri, self.settings)

    def identity(self) -> str:
        """All that numbers depend on, the versions of the files included, as one string."""
        files = storage.list(self.model)
        state = self.state_uri
        if state is not None:
            files = [*files, storage.info(optimizer_state.find(state))]
        return json.dumps([dataclasses.asdict(self), [[f.uri, f.size, f.fingerprint] for f in files]])


def _max_length(loaded: LoadedModel, asked: int | None) -> int:
    context = loaded.context_length
    if asked is None and context is None:
        raise TrackStarError("the model's configuration names no context length: give --max_length")
    if asked is not None and context is not None and asked > context:
        raise TrackStarError(f"--max_length {asked} is above the model's context of {context} tokens")
    if asked is not None and asked < 2:
        raise TrackStarError(f"--max_length {asked}: two tokens at least, one to predict from the other")
    return asked or context or 0


def _apart(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, each in memory of its own, so that it can be overwritten; autograd may give one for two summands."""
    seen: set[int] = set()
    result: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            if gradient.data_ptr() in seen or not gradient.is_contiguous():
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            seen.add(gradient.data_ptr())
        result.append(gradient)
    return result


def _in_order(
    batches: Sequence[tuple[list[int], list[Example]]], measure: Callable[[Sequence[Example]], Tensor]
) -> list[float]:
    """Values of the examples in their own order, measured batch by batch."""
    values = [0.0] * sum(len(indices) for indices, _ in batches)
    for indices, examples in batches:
        for i, value in zip(indices, measure(examples).tolist(), strict=True):
            values[i] = value
    return values
