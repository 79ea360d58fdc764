"""Small indexes of made-up encodings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trackstar.encodings import Encodings
from trackstar.index import Index
from trackstar.item_footer import ItemFile
from trackstar.spec import Spec


def make_spec(**fields: object) -> Spec:
    """A spec of dimension 2·4·4 = 32 unless told otherwise."""
    defaults: dict[str, object] = {
        "model_architecture": "Model",
        "model_fingerprint": "model",
        "model_dtype": "float32",
        "tokenizer_fingerprint": "tokenizer",
        "vocabulary_size": 100,
        "max_length": 16,
        "long_documents": "truncate",
        "append_eos": True,
        "batch_tokens": 64,
        "attributed": "all",
        "layout": "blocks",
        "layer_groups": 1,
        "block_rows": 4,
        "block_columns": 4,
        "num_blocks": 2,
        "projection": "gaussian",
        "projection_seed": 0,
        "projection_fingerprint": "",
        "whitening_damping": 0.0,
        "moments": "none",
        "moments_source": "none",
        "moments_fingerprint": "",
        "moments_epsilon": 1e-8,
        "preconditioner": "none",
        "damping": 0.1,
        "normalisation": "vector",
        "storage": "bfloat16",
        "stores_text": True,
    }
    return Spec(**{**defaults, **fields})  # type: ignore[arg-type]


def make_encodings(
    vectors: torch.Tensor, ids: Sequence[str] | None = None, grad_norm: np.ndarray | None = None, start: int = 0
) -> Encodings:
    """Encodings around `vectors` [N, d]; the example at row i is called "e<start + i>" and reads "text <start + i>"."""
    rows = np.arange(start, start + len(vectors))
    return Encodings(
        example_ids=list(ids) if ids is not None else [f"e{row}" for row in rows],
        positions=rows.astype(np.int64),
        texts=[f"text {row}" for row in rows],
        num_tokens=np.full(len(rows), 7, np.int32),
        loss=np.full(len(rows), 2.5, np.float32),
        grad_norm=np.ones(len(rows), np.float32) if grad_norm is None else grad_norm.astype(np.float32),
        vectors=vectors,
    )


def unit_vectors(count: int, dimension: int, seed: int = 0) -> torch.Tensor:
    """[count, dimension] float32, rows of unit norm in random directions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dimension, generator=generator), dim=1)


def write_file(index: Index, number: int, batches: Sequence[Encodings], shard: str = "shard") -> ItemFile:
    """One item's file with the key "000…number"."""

    def stream() -> Iterator[Encodings]:
        yield from batches

    return index.write_item(f"{number:032x}", shard, stream(), lambda: {"records": str(sum(map(len, batches)))})


def make_index(folder: Path, files: Sequence[Sequence[Encodings]], **fields: object) -> tuple[Index, list[ItemFile]]:
    """An index under `folder` with one committed file per entry of `files`."""
    index = Index.create(str(folder), make_spec(**fields))
    items = [write_file(index, number, batches) for number, batches in enumerate(files)]
    index.commit(items)
    return index, items
