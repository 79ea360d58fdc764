"""LM head and cross-entropy in closed form, a chunk of tokens at a time."""

import torch
from torch import nn
from transformers import PreTrainedModel

_LOGIT_BYTES = 64 << 20
"""Logits that exist at one time, and as much again for their softmax."""
_ALIGNMENT = 16
"""Row length of the logits in multiples of 64 bytes: with GPT-2's 50,257 columns as they are, their product took 1.4 times as
long."""


class PlainHead:
    """LM head and cross-entropy in closed form: logits = h Wᵀ + b with nothing after them.

    ∂ℓ/∂h = (softmax(logits) − onehot) W, a chunk of tokens at a time, only at supervised positions: the vocabulary-sized
    logits never exist at once and the gradient never reaches the (tied) embedding.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight = weight
        self.bias = bias

    @classmethod
    def of(cls, model: PreTrainedModel) -> "PlainHead | None":
        """The head of a model, or None where the model does more to its logits (soft-capping, scaling, …): tried out."""
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or model.base_model is model:
            return None
        device = head.weight.device
        probe = torch.arange(4, device=device)[None] % head.weight.shape[0]
        with torch.no_grad():
            expected = model(input_ids=probe, use_cache=False).logits
            hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
            if hidden.shape[-1] != head.weight.shape[1] or not torch.equal(head(hidden), expected):
                return None
        return cls(head.weight, head.bias)

    @torch.no_grad()
    def loss_and_gradient(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token loss float32 [S] and its gradient to `hidden` [S, h], for targets int64 [S]."""
        vocabulary = self.weight.shape[0]
        width = -(-vocabulary // _ALIGNMENT) * _ALIGNMENT
        chunk = max(1, min(len(targets), _LOGIT_BYTES // (4 * width)))
        losses = torch.empty(len(targets), device=hidden.device)
        gradient = torch.empty_like(hidden)
        # Both buffers serve every chunk: fresh ones cost more in page faults than the softmax does. −∞ fills the rows up.
        logits = torch.full((chunk, width), -torch.inf, device=hidden.device)
        softmax = torch.empty_like(logits)
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            x, p = logits[: len(targets) - start], softmax[: len(targets) - start]  # [s, width]
            self._logits(hidden[span], x[:, :vocabulary])
            torch.softmax(x, dim=1, out=p)
            # log Σ exp x = max x − log max p, exact however small the target's own p is.
            log_sum = x.amax(dim=1) - p.amax(dim=1).log_()
            here = torch.arange(len(x), device=x.device), targets[span]
            losses[span] = log_sum - x[here]
            p[here] -= 1.0
            gradient[span] = p[:, :vocabulary].to(self.weight.dtype) @ self.weight
        return losses, gradient

    def _logits(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """h Wᵀ + b into float32 [s, v]."""
        if self.weight.dtype != torch.float32:
            out.copy_(nn.functional.linear(hidden, self.weight, self.bias))
        elif self.bias is None:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.T, out=out)
