"""The LM head in closed form, where its numbers are extreme."""

import torch
from torch import nn

from trackstar.head import PlainHead


def test_loss_and_gradient_stay_exact_where_the_targets_probability_underflows() -> None:
    """Logits hundreds apart: softmax alone would give log 0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 8, generator=generator)
    hidden = 60 * torch.randn(50, 8, generator=generator)
    targets = (hidden @ weight.T).argmin(dim=1)
    losses, gradient = PlainHead(weight, None).loss_and_gradient(hidden, targets)

    exact = hidden.double().requires_grad_()
    expected = nn.functional.cross_entropy(exact @ weight.double().T, targets, reduction="none")
    expected.sum().backward()
    assert expected.max() > 200  # e^-200 is no float32
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=0.0)
    assert exact.grad is not None
    assert (gradient.double() - exact.grad).norm() <= 1e-5 * exact.grad.norm()
