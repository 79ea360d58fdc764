"""Which of the demo's queries its model answers correctly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trackstar.demo.report import read_jsonl
from trackstar.json_lines import jsonl, write_if_changed


def answer_queries(queries: Path, checkpoint: Path) -> Path:
    """Asks the model every query and writes the queries again, each with `answered`: whether it answers correctly.

    Args:
        queries: JSONL of `write_corpus`.
        checkpoint: What `train` returned.

    Returns:
        `answered.jsonl` in the checkpoint; one that holds these queries already is kept as it is.
    """
    path = checkpoint / "answered.jsonl"
    asked = read_jsonl(queries)
    if path.is_file() and [_without_answer(query) for query in read_jsonl(path)] == asked:
        return path
    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    correct = answers(model, tokenizer, asked)
    write_if_changed(
        str(path), jsonl({**query, "answered": answer} for query, answer in zip(asked, correct, strict=True))
    )
    return path


def _without_answer(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if name != "answered"}


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Sequence[dict[str, str]], batch_size: int = 256
) -> list[bool]:
    """Which queries the model answers correctly: every token of the target is the likeliest one after those before it.

    That is what greedy decoding gives, as far as the target goes.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer; prompt and target are tokenized apart.
        queries: Each with `inputs_plaintext` and `targets_plaintext`.
        batch_size: Queries at a time; does not change the answers.
    """
    model.eval()
    padding_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    correct: list[bool] = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        prompts = [tokenizer(q["inputs_plaintext"], add_special_tokens=False)["input_ids"] for q in part]
        targets = [tokenizer(q["targets_plaintext"], add_special_tokens=False)["input_ids"] for q in part]
        both = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        length = max(len(ids) for ids in both)
        input_ids = torch.full((len(part), length), padding_id)  # [B, T]
        attended = torch.zeros((len(part), length), dtype=torch.long)
        for row, ids in enumerate(both):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attended[row, : len(ids)] = 1
        likeliest = model(input_ids=input_ids, attention_mask=attended, use_cache=False).logits.argmax(-1)  # [B, T]
        for row, (before, target) in enumerate(zip(prompts, targets, strict=True)):
            said = likeliest[row, len(before) - 1 : len(before) + len(target) - 1].tolist()
            correct.append(said == target)
    return correct
