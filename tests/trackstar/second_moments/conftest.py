"""Training runs that are made once."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny_models import tiny_model
from tests.trackstar.second_moments.training import TrainRun, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], TrainRun]:
    """(architecture, optimizer) → a finished training run, each done once."""

    @functools.cache
    def run(architecture: str, optim: str) -> TrainRun:
        return train(tiny_model(architecture).train(), tmp_path_factory.mktemp(architecture), optim=optim)

    return run


@pytest.fixture
def state(trained: Callable[[str, str], TrainRun]) -> dict[str, Any]:
    """A writable state dict of GPT-2 under AdamW."""
    return torch.load(trained("gpt2", "adamw_torch_fused")[1] / "optimizer.pt", weights_only=True)
