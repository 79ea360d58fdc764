"""Queries → encodings under the preconditioner that they are to be scored with.

Their projected gradients are computed first, in parts that are files; R_eval comes from all of them, so preconditioning
waits for the last part.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from trackstar import storage, tensors
from trackstar.encoder import Encoder, precondition_and_normalise
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.preconditioner import GramSum, Preconditioner, change_of_preconditioner, mix, mixing_weight
from trackstar.queries import Change, QuerySet
from trackstar.results import Query
from trackstar.tokenization import UnusableRecordError

_GROUP = 64

T = TypeVar("T")


def query_groups(queries: Sequence[T]) -> list[Sequence[T]]:
    """Queries in the groups, 64 each, that are encoded together."""
    return [queries[start : start + _GROUP] for start in range(0, len(queries), _GROUP)]


def queries_key(spec_hash: str, queries: Sequence[Query]) -> str:
    """Name of a set of queries under a spec: 16 hexadecimal digits."""
    parts = [spec_hash, [(query.example_id, query.prompt, query.target) for query in queries]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def project_queries(encoder: Encoder, queries: Sequence[Query], uri: str) -> None:
    """Writes the queries' projected gradients E [N, number of blocks, d_b] and losses [N] to a file.

    Raises:
        TrackStarError: a query cannot be used, or its gradient is not finite or zero.
    """
    tokenization = encoder.tokenization
    examples = []
    for query in queries:
        try:
            examples.append(tokenization.query(query.example_id, query.prompt, query.target))
        except UnusableRecordError as error:
            raise TrackStarError(f"query {query.example_id!r}: {error}") from error
    projected = encoder.project(examples)
    for i, reason in projected.too_large.items():
        raise TrackStarError(f"query {queries[i].example_id!r}: {reason}")
    norms = projected.gradients.flatten(1).norm(dim=1)
    for query, norm, loss in zip(queries, norms.tolist(), projected.losses.tolist(), strict=True):
        if not 0.0 < norm < float("inf"):
            raise TrackStarError(f"query {query.example_id!r}: its gradient has norm {norm} (loss {loss:.6g})")
    tensors.save(uri, {"gradients": projected.gradients, "losses": projected.losses}, {"count": str(len(queries))})


@dataclasses.dataclass(frozen=True)
class PreparedQueries:
    """Encoded queries, and what the scan has to do to the stored encodings."""

    queries: QuerySet
    """φ of the queries under the preconditioner that scores are taken with."""
    losses: torch.Tensor
    """float32 [N]."""
    change: Change | None
    """From R_train to that preconditioner; None where it is R_train."""
    mixing: float
    """λ of R = λ R_eval + (1 − λ) R_train; 0 without R_eval."""

    def save(self, folder: str) -> tuple[str, str | None]:
        """Writes queries, folded, and the change, if any, where workers of a scan find them; returns both files."""
        uri = storage.join(folder, "queries.safetensors")
        if self.change is None:
            self.queries.save(uri)
            return uri, None
        change_uri = storage.join(folder, "change.safetensors")
        self.queries.fold(self.change).save(uri)
        self.change.save(change_uri)
        return uri, change_uri


def prepare_queries(
    index: Index,
    parts: Sequence[str],
    task_hessian: str,
    mixing: float | None,
    keep_task_hessian: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> PreparedQueries:
    """Preconditions and normalises projected queries.

    Args:
        index: The index that they will be scored against.
        parts: Files that `project_queries` wrote, in order.
        task_hessian: "auto": R_eval of these queries mixed into R_train; "none": R_train alone; "identity": R = I, as if
            there were no preconditioner (for comparisons); else the folder of an R_eval.
        mixing: λ, or None for the crossing rule.
        keep_task_hessian: Folder to keep R_eval in, for later runs, or None.
        tell: Told which λ is used.

    Raises:
        TrackStarError: an R_eval, λ or a place for R_eval is given and the index has no R_train, or R_eval does not fit it.
    """
    loaded = [tensors.load(part)[0] for part in parts]
    gradients = torch.cat([part["gradients"] for part in loaded])
    losses = torch.cat([part["losses"] for part in loaded])
    task = task_preconditioner(index, task_hessian, mixing, gradients, keep_task_hessian, tell)
    vectors, norms = precondition_and_normalise(gradients, task.inverse_root, index.spec.normalisation)
    return PreparedQueries(QuerySet(vectors, norms), losses, task.change, task.mixing)


@dataclasses.dataclass(frozen=True)
class TaskPreconditioner:
    """The preconditioner R that scores are taken with."""

    inverse_root: torch.Tensor | None
    """R^(-1/2), damped: float32 [number of blocks, d_b, d_b]; None: R = I."""
    change: Change | None
    """From R_train to R; None where it is R_train."""
    mixing: float
    """λ of R = λ R_eval + (1 − λ) R_train; 0 without R_eval."""


def task_preconditioner(
    index: Index,
    task_hessian: str,
    mixing: float | None,
    gradients: torch.Tensor | None = None,
    keep_task_hessian: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> TaskPreconditioner:
    """The preconditioner that `task_hessian` names.

    Args:
        index: As in `prepare_queries`, like those that follow.
        task_hessian: See there.
        mixing: See there.
        gradients: E of the queries, float32 [N, number of blocks, d_b]; "auto" needs them.
        keep_task_hessian: See there.
        tell: See there.

    Raises:
        TrackStarError: as in `prepare_queries`.
    """
    spec = index.spec
    if spec.preconditioner == "none":
        given = {
            f"--task_hessian {task_hessian}": task_hessian not in ("auto", "none", "identity"),
            f"--task_mixing {mixing}": mixing is not None,
            f"--keep_task_hessian {keep_task_hessian}": keep_task_hessian is not None,
        }
        if any(given.values()):
            flags = ", ".join(flag for flag, is_given in given.items() if is_given)
            raise TrackStarError(
                f"{flags}: this index has no R_train to mix with (fit --preconditioner train makes one)"
            )
        return TaskPreconditioner(None, None, 0.0)
    train = Preconditioner.load(storage.join(index.uri, "preconditioner"))
    if task_hessian == "none":
        return TaskPreconditioner(train.inverse_root, None, 0.0)
    if task_hessian == "identity":
        undo = torch.stack([train.power(block, 0.5).float() for block in range(train.num_blocks)])
        return TaskPreconditioner(None, Change(undo, spec.normalisation), 0.0)
    if task_hessian == "auto":
        if gradients is None:
            raise TrackStarError("--task_hessian auto is R_eval of a set of queries, and none are given")
        total = GramSum(spec.num_blocks, spec.block_dimension)
        total.add(gradients)
        evaluation = Preconditioner.of(total.mean(), spec.damping, total.count)
    else:
        evaluation = Preconditioner.load(task_hessian)
        shapes = [[len(sigma) for sigma in p.eigenvalues] for p in (train, evaluation)]
        if shapes[0] != shapes[1]:
            raise TrackStarError(
                f"--task_hessian {task_hessian}: its blocks are not the index's; make it with this index"
            )
    if keep_task_hessian:
        evaluation.save(keep_task_hessian)
    weight = mixing_weight(train, evaluation) if mixing is None else mixing
    tell(f"R = λ R_eval + (1 − λ) R_train with λ = {weight:.4g} (R_eval of {evaluation.count:,} queries)")
    mixed = mix(train, evaluation, weight)
    change = Change(change_of_preconditioner(train, mixed), spec.normalisation)
    return TaskPreconditioner(mixed.inverse_root, change, weight)
