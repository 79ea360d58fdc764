"""Small models are trained by the recipe that they name, and a checkpoint knows what it was made of."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, get_cosine_schedule_with_warmup, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from trackstar.errors import TrackStarError
from trackstar.small_models import (
    TrainSettings,
    checkpoint_identity,
    model_config,
    tokenize,
    train_checkpoint,
    train_tokenizer,
)

SETTINGS = TrainSettings(
    vocabulary_size=320,
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
    steps=40,
    batch_size=8,
    learning_rate=5e-3,
    warmup_steps=10,
    weight_decay=0.1,
    seed=3,
)
TEXTS = [f"{'long ' * (number % 7)}sentence {number} about nothing, {number * number} times." for number in range(44)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small") / "model"
    losses: list[float] = []
    checkpoint = train_checkpoint(TEXTS, folder, SETTINGS, on_progress=lambda step, steps, loss: losses.append(loss))
    return checkpoint, losses


def _trained_by_hand(model: LlamaForCausalLM, documents: list[list[int]], settings: TrainSettings) -> list[float]:
    """The recipe as a loop; no attention mask, for right padding needs none. Returns the loss of each step."""
    set_seed(settings.seed)
    loader = torch.utils.data.DataLoader(
        documents,
        batch_size=settings.batch_size,
        sampler=LengthGroupedSampler(settings.batch_size, lengths=[len(tokens) for tokens in documents]),
        collate_fn=lambda batch: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(tokens) for tokens in batch], batch_first=True, padding_value=-100
        ),
    )
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    losses: list[float] = []
    while len(losses) < settings.steps:
        for labels in loader:
            loss = model(input_ids=labels.clamp(min=0), labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) == settings.steps:
                break
    return losses


def test_training_is_the_recipe(trained):
    """AdamW, decay of matrices alone, cosine schedule, batches by length (the sixth of each epoch has 4 of 44 texts)."""
    checkpoint, losses = trained
    tokenizer = train_tokenizer(TEXTS, SETTINGS.vocabulary_size)
    set_seed(SETTINGS.seed)
    model = LlamaForCausalLM(model_config(SETTINGS, tokenizer))
    expected = _trained_by_hand(model, tokenize(TEXTS, tokenizer), SETTINGS)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-4, msg=name)


def test_checkpoint_is_kept_until_something_differs(trained):
    checkpoint, _ = trained
    before = {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()}
    description = json.loads((checkpoint / "training.json").read_text())
    assert description["identity"] == checkpoint_identity(TEXTS, SETTINGS)
    assert description["settings"]["learning_rate"] == SETTINGS.learning_rate
    train_checkpoint(TEXTS, checkpoint, SETTINGS, on_progress=lambda *_: pytest.fail("trained again"))
    assert {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()} == before


def test_ready_tokenizer_is_used_and_counts(tmp_path):
    tokenizer = train_tokenizer(TEXTS[:10], 270)
    few = dataclasses.replace(SETTINGS, steps=2, layers=1)
    checkpoint = train_checkpoint(TEXTS, tmp_path / "model", few, tokenizer, on_progress=lambda *_: None)
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.vocab_size == len(tokenizer) < 300
    assert (checkpoint / "optimizer.pt").exists()
    assert len({checkpoint_identity(TEXTS, few), checkpoint_identity(TEXTS, few, tokenizer)}) == 2


def test_identity_is_what_it_always_was():
    """Pinned: another value would train every demo and every benchmark model again."""
    assert checkpoint_identity(["one text", "another"], TrainSettings()) == "18888d4b5b1729cf"
    others = (TrainSettings(), TrainSettings(context_length=256), TrainSettings(precision="bfloat16"))
    assert len({checkpoint_identity(["one text", "another"], settings) for settings in others}) == 3


def test_products_in_bfloat16_train_the_same_model_a_little_off(trained, tmp_path):
    losses: list[float] = []
    settings = dataclasses.replace(SETTINGS, precision="bfloat16")
    model = train_checkpoint(TEXTS, tmp_path / "m", settings, on_progress=lambda step, steps, loss: losses.append(loss))
    assert losses != trained[1]
    assert losses == pytest.approx(trained[1], rel=0.05)
    with pytest.raises(TrackStarError, match="precision 'bf16': must be float32 or bfloat16"):
        train_checkpoint(TEXTS, tmp_path / "n", dataclasses.replace(SETTINGS, precision="bf16"))
    weights = AutoModelForCausalLM.from_pretrained(model).state_dict().values()
    assert {weight.dtype for weight in weights} == {torch.float32}
