"""fit without a flag of the recipe, and all that follows, against the method in float64, by autograd and brute force."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pipelines import cli
from tests.end_to_end.test_score import QUERIES, K, score, stored
from tests.end_to_end.world import World
from tests.trackstar.test_whitening import orthogonal
from trackstar.index import Index
from trackstar.results import read_results

OUTPUTS = [f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn.o_proj", "mlp.down_proj")]
"""What writes into the residual stream of the world's Llama: 32 × 32 and 32 × 56 by turns."""
ROWS, COLUMNS = 32, 56
"""Of a block: those of the largest matrix, since 65,536 numbers for 6 blocks would be 104 × 104."""

Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Of each weight the activations into it, [T, n], and the loss gradients out of it, [T, m]."""


@pytest.fixture(scope="module")
def own(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One shard of 120 documents, fewer than the sample takes, and queries."""
    made = World(tmp_path_factory.mktemp("default"))
    (made.root / "model").symlink_to(world.model)
    made.corpus.mkdir()
    shutil.copy(world.corpus / "a.jsonl", made.corpus)
    (made.root / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    return made


@pytest.fixture(scope="module")
def index(own: World) -> Path:
    """Built with nothing said about what an encoding is; read only."""
    made = own.root / "index"
    assert cli.main(["fit", *own.flags(made)]) == 0
    assert own.build(made) == 0
    return made


def gradients(model: PreTrainedModel, tokens: list[int], first_target: int) -> Gradients:
    """By plain autograd, of the loss summed from `first_target` on."""
    kept: Gradients = {}

    def keeping(name: str):
        return lambda module, inputs, output: kept.update({name: (inputs[0], output)})

    handles = [model.get_submodule(name).register_forward_hook(keeping(name)) for name in OUTPUTS]
    ids = torch.tensor(tokens)
    log_p = model(ids[None]).logits[0].log_softmax(-1)  # [T, vocabulary]
    loss = -log_p[torch.arange(first_target - 1, len(ids) - 1), ids[first_target:]].sum()
    found = torch.autograd.grad(loss, [kept[name][1] for name in OUTPUTS])
    for handle in handles:
        handle.remove()
    return {name: (kept[name][0][0].detach(), s[0]) for name, s in zip(OUTPUTS, found, strict=True)}


def inverse_root(vectors: torch.Tensor) -> torch.Tensor:
    """(C + 0.01 · mean eigenvalue · I)^(-1/2) of C, the mean of v vᵀ over vectors [count, side]."""
    u, sigma, _ = torch.linalg.svd(vectors.T / len(vectors) ** 0.5, full_matrices=True)
    eigenvalues = torch.zeros(len(u), dtype=torch.float64)
    eigenvalues[: len(sigma)] = sigma**2
    return u @ torch.diag((eigenvalues + 0.01 * eigenvalues.mean()) ** -0.5) @ u.T


def encodings(of: list[Gradients], documents: list[Gradients]) -> np.ndarray:
    """φ, float64 [count, 6 · 32 · 56]: whitened by the documents, projected, each block to unit norm."""
    blocks = []
    for name in OUTPUTS:
        # A document's last position predicts nothing: its token does not count.
        activations = torch.cat([document[name][0][:-1] for document in documents])
        errors = torch.cat([document[name][1][:-1] for document in documents])
        left = inverse_root(errors) @ orthogonal(f"{name}.weight", "left", errors.shape[1], ROWS)
        right = inverse_root(activations) @ orthogonal(f"{name}.weight", "right", activations.shape[1], COLUMNS)
        found = torch.stack([(left.T @ (s.T @ a) @ right).flatten() for a, s in (one[name] for one in of)])
        blocks.append(found / found.norm(dim=1, keepdim=True) / len(OUTPUTS) ** 0.5)
    return torch.cat(blocks, dim=1).numpy()


def test_scores_equal_brute_force(own: World, index: Path, tmp_path: Path) -> None:
    """Attributed outputs, whitened, orthogonal, block norms, signs; nothing of R and V."""
    model = AutoModelForCausalLM.from_pretrained(own.model, dtype=torch.float64, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(own.model)
    ids, texts, vectors, _ = stored(index)
    documents = [gradients(model, tokenizer(text)["input_ids"], 1) for text in texts]
    expected = encodings(documents, documents)
    assert vectors.shape == expected.shape == (120, 10_752)
    # The stored bits are the signs of φ, where rounding cannot turn them.
    clear = np.abs(expected) > 0.01 * 10_752**-0.5
    assert clear.mean() > 0.97
    assert (np.sign(vectors) == np.sign(expected))[clear].all()
    np.testing.assert_allclose(np.abs(vectors), 10_752**-0.5)
    queries = []
    for query in QUERIES:
        target = str(query["targets_plaintext"]).strip()
        prompt = str(query["inputs_plaintext"])
        tokens = tokenizer(f"{prompt} {target}")["input_ids"]
        queries.append(gradients(model, tokens, len(tokenizer(prompt)["input_ids"])))
    scores = dict(zip(ids, vectors @ encodings(queries, documents).T, strict=True))
    assert score(own, index, tmp_path / "r.jsonl") == 0
    for number, result in enumerate(read_results(str(tmp_path / "r.jsonl"))):
        ordered = sorted(of_id[number] for of_id in scores.values())
        for ranking, best in ((result.proponents, ordered[::-1][:K]), (result.opponents, ordered[:K])):
            np.testing.assert_allclose(ranking.scores, [scores[i][number] for i in ranking.ids], rtol=0, atol=1e-5)
            np.testing.assert_allclose(ranking.scores, best, rtol=0, atol=1e-5)


def test_what_the_index_holds(own: World, index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No R and no V; `inspect` says what is attributed and how it is projected."""
    spec = Index.open(str(index)).spec
    assert (spec.attributed, spec.projection, spec.storage) == ("outputs", "whitened", "sign")
    assert (spec.moments, spec.preconditioner, spec.layout, spec.normalisation) == ("none", "none", "weights", "block")
    assert (index / "projections.safetensors").exists()
    assert not (index / "second_moments.safetensors").exists()
    assert not (index / "preconditioner").exists()
    capfd.readouterr()
    assert cli.main(["inspect", str(index)]) == 0
    shown = capfd.readouterr().out
    for name, value in (("attributed", "outputs"), ("projection", "whitened"), ("format_version", "3")):
        assert f"  {name:<22} {value}\n" in shown
    blocks = "d = 10,752: one block of 32×56 a weight (6, outputs), each to unit norm first"
    assert f"encoding  {blocks}; stored as sign, 1,344 bytes a row\n" in shown
    assert cli.main(["inspect", str(index), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["spec"]["attributed"], found["bytes_per_encoding"]) == ("outputs", 1344)


@pytest.mark.parametrize("task_hessian", ["auto", "none", "identity"])
def test_without_r_every_task_hessian_is_none(
    own: World, index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], task_hessian: str
) -> None:
    assert score(own, index, tmp_path / "plain.jsonl") == 0
    assert "R_train" not in capfd.readouterr().err
    assert score(own, index, tmp_path / "r.jsonl", "--task_hessian", task_hessian) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


@pytest.mark.parametrize("flag", ["--task_mixing", "--keep_task_hessian", "--task_hessian"])
def test_what_needs_r_is_refused_without_it(
    own: World, index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str
) -> None:
    assert score(own, index, tmp_path / "r.jsonl", flag, "0.5") == cli.EXIT_USAGE
    assert f"{flag} 0.5: this index has no R_train to mix with (fit --preconditioner train" in capfd.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()


def test_the_papers_recipe_has_v_and_r(own: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Second moments are estimated, R_train is fitted, and R_eval of the queries is mixed in."""
    paper = tmp_path / "paper"
    assert cli.main(["fit", *own.flags(paper), "--recipe", "paper", "--block_rows", "6", "--block_columns", "6"]) == 0
    assert own.build(paper) == 0
    spec = Index.open(str(paper)).spec
    assert (spec.attributed, spec.projection, spec.storage) == ("all", "gaussian", "bfloat16")
    assert (spec.moments, spec.moments_source, spec.layout) == ("exact", "estimated", "blocks")
    assert spec.preconditioner not in ("none", "pending")
    assert (paper / "second_moments.safetensors").exists()
    assert len(list((paper / "preconditioner").iterdir())) == spec.num_blocks == 6
    assert not (paper / "projections.safetensors").exists()
    capfd.readouterr()
    assert score(own, paper, tmp_path / "r.jsonl") == 0
    assert "R = λ R_eval + (1 − λ) R_train" in capfd.readouterr().err
    assert score(own, paper, tmp_path / "none.jsonl", "--task_hessian", "none") == 0
    assert (tmp_path / "r.jsonl").read_bytes() != (tmp_path / "none.jsonl").read_bytes()
