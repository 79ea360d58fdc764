"""Scores of a sample's documents under many encodings at once.

Candidates whose projected gradients differ in their size alone share one run of the documents through the model: all are cut out
of the widest. Each is then preconditioned, normalised, stored and scored as an index and a scan would.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from trackstar.batching import Example
from trackstar.encoder import Encoder, precondition_and_normalise
from trackstar.errors import TrackStarError
from trackstar.preconditioner import GramSum, Preconditioner, change_of_preconditioner, mix, mixing_weight
from trackstar.queries import Change
from trackstar.spec import Spec
from trackstar.stored_forms import FORMS
from trackstar.tuning.candidates import Candidate, Family
from trackstar.tuning.materials import Gram, Materials, cut

_WINDOW_BYTES = 64 << 20
"""Projected gradients of documents that are held at a time."""
_ROUNDS = 2

OnProgress = Callable[[int], None]
"""Called with the number of documents that have run through the model."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Candidates that share a run of the documents through the model.

    Args:
        candidates: They differ in size, norms, R and stored form alone.
    """

    candidates: tuple[Candidate, ...]

    @property
    def family(self) -> Family:
        """The first one's; what its gradients depend on is that of all."""
        return self.candidates[0].family

    @property
    def widest(self) -> Spec:
        """Blocks that hold those of all candidates."""
        return _widest(self.candidates)

    @property
    def widest_preconditioned(self) -> Spec | None:
        """Blocks that hold those of all candidates with R."""
        chosen = [candidate for candidate in self.candidates if candidate.family.preconditioner != "none"]
        return _widest(chosen) if chosen else None


def group(candidates: Sequence[Candidate], num_queries: int, memory_bytes: int) -> list[Group]:
    """Candidates in groups whose queries' vectors take about `memory_bytes` together, the widest first."""
    groups: list[Group] = []
    by_features: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        by_features.setdefault((candidate.family.features, candidate.spec.projection_seed), []).append(candidate)
    for together in by_features.values():
        chosen: list[Candidate] = []
        needed = 0
        for candidate in sorted(together, key=lambda candidate: -candidate.spec.dimension):
            more = 4 * num_queries * candidate.spec.dimension
            if chosen and needed + more > memory_bytes:
                groups.append(Group(tuple(chosen)))
                chosen, needed = [], 0
            # The widest gradients are held beside the vectors that are made of them.
            needed += more if chosen else 2 * more
            chosen.append(candidate)
        groups.append(Group(tuple(chosen)))
    return groups


def scores(
    materials: Materials,
    together: Group,
    queries: Sequence[Example],
    documents: Sequence[Example],
    task: Sequence[Example] = (),
    on_progress: OnProgress = lambda done: None,
) -> dict[Candidate, np.ndarray]:
    """Scores of all documents for all queries under each candidate of a group, float32 [Q, N].

    Args:
        materials: What encodings are made of.
        together: The candidates.
        queries: The queries.
        documents: The documents, each with a gradient that is finite and not zero.
        task: The queries that R_eval is made of, for candidates with mixed R.
        on_progress: Told how far it is.

    Raises:
        TrackStarError: a gradient that is zero or not finite, or too large for the device's memory.
    """
    wide, exponents = together.widest, together.family.exponents
    encoder = materials.encoder(wide, exponents=exponents)
    gram: Gram | None = None
    if together.widest_preconditioned is not None:
        gram = materials.gram(together.widest_preconditioned, exponents)
    task_sums = _task_sums(encoder, task, [c for c in together.candidates if c.family.preconditioner == "mixed"], wide)
    asked = _projected(encoder, queries)
    scorers = []
    trained: dict[tuple[int, int], Preconditioner] = {}  # of the latest shape: to decompose R takes long
    for candidate in together.candidates:
        train: Preconditioner | None = None
        if candidate.family.preconditioner != "none":
            assert gram is not None
            shape = candidate.spec.block_rows, candidate.spec.block_columns
            trained = trained if shape in trained else {shape: gram.preconditioner(candidate.spec)}
            train = trained[shape]
        scorers.append(_Scorer.of(candidate, wide, asked, train, task_sums.get(candidate)))
    del asked, gram, trained, task_sums
    found = {candidate: np.empty((len(queries), len(documents)), np.float32) for candidate in together.candidates}
    done = 0
    for places in windows_by_length(documents, _window(wide)):
        projected = _projected(encoder, [documents[place] for place in places])
        for candidate, scorer in zip(together.candidates, scorers, strict=True):
            found[candidate][:, places] = scorer.scores(projected).numpy()
        done += len(places)
        on_progress(done)
    return found


def windows_by_length(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Places of examples, longest first, `size` at a time: batches of a window have about equal lengths."""
    order = sorted(range(len(examples)), key=lambda place: (-len(examples[place].input_ids), place))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def examples_per_second(materials: Materials, candidate: Candidate, examples: Sequence[Example]) -> float:
    """Examples that are encoded and stored in a second, the better of two rounds: what `build-index` does in one process,
    without reading and writing."""
    spec = candidate.spec
    root = None
    if candidate.family.preconditioner != "none":
        # Its numbers do not matter for the time.
        root = torch.eye(spec.block_dimension).expand(spec.num_blocks, -1, -1)
    encoder = materials.encoder(spec, root, candidate.family.exponents)
    best = 0.0
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for start in range(0, len(examples), encoder.window):
            encodings, _ = encoder.encode(examples[start : start + encoder.window])
            FORMS[spec.storage].pack(encodings.vectors)
        best = max(best, len(examples) / (time.perf_counter() - started))
    return best


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """A candidate with its encoded queries."""

    candidate: Candidate
    wide: Spec
    queries: torch.Tensor
    """float32 [Q, d], on the CPU."""
    root: torch.Tensor | None
    change: Change | None

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        wide: Spec,
        queries: torch.Tensor,
        train: Preconditioner | None,
        task: GramSum | None,
    ) -> "_Scorer":
        """Encodes the queries, projected gradients [Q, blocks, widest d_b], as `trackstar score` does.

        Args:
            candidate: The candidate.
            wide: The spec of the projected gradients.
            queries: Them.
            train: R_train of the candidate's shape, if it has R.
            task: Sums of R_eval, if it is scored under mixed R.
        """
        spec = candidate.spec
        change: Change | None = None
        chosen = train
        if candidate.family.preconditioner == "mixed":
            assert train is not None and task is not None
            evaluation = Preconditioner.of(task.mean(), spec.damping, task.count)
            chosen = mix(train, evaluation, mixing_weight(train, evaluation))
            change = Change(change_of_preconditioner(train, chosen), spec.normalisation)
        of_queries = None if chosen is None else chosen.inverse_root.to(queries.device)
        vectors = torch.empty(len(queries), spec.dimension)
        size = _window(wide)
        for start in range(0, len(queries), size):  # copies of all of them at once may be too large
            some = cut(queries[start : start + size], wide, spec)
            vectors[start : start + size] = precondition_and_normalise(some, of_queries, spec.normalisation)[0].cpu()
        root = None if train is None else train.inverse_root.to(queries.device)
        return cls(candidate, wide, vectors, root, change)

    def scores(self, projected: torch.Tensor) -> torch.Tensor:
        """Of documents with these projected gradients [n, blocks, widest d_b]: float32 [Q, n]."""
        spec = self.candidate.spec
        vectors, _ = precondition_and_normalise(cut(projected, self.wide, spec), self.root, spec.normalisation)
        stored = FORMS[spec.storage].pack(vectors).values(torch.float32)  # [n, d]
        if self.change is not None:
            stored = self.change.apply(stored)
        return self.queries @ stored.T


def _projected(encoder: Encoder, examples: Sequence[Example]) -> torch.Tensor:
    """E of examples that all have one, [N, blocks, d_b]."""
    projected = encoder.project(examples)
    norms = projected.gradients.flatten(1).norm(dim=1).cpu()
    bad = (~(torch.isfinite(norms) & (norms > 0))).nonzero().flatten().tolist()
    if bad:
        why = projected.too_large.get(bad[0], f"its projected gradient has norm {norms[bad[0]]:.6g}")
        raise TrackStarError(f"example {examples[bad[0]].example_id!r} cannot be encoded: {why}")
    return projected.gradients


def _task_sums(
    encoder: Encoder, task: Sequence[Example], candidates: Sequence[Candidate], wide: Spec
) -> dict[Candidate, GramSum]:
    """R_eval's sums for candidates that are scored under mixed R."""
    if not candidates:
        return {}
    sums = {c: GramSum(c.spec.num_blocks, c.spec.block_dimension) for c in candidates}
    for start in range(0, len(task), _window(wide)):
        projected = _projected(encoder, task[start : start + _window(wide)])
        for candidate, total in sums.items():
            total.add(cut(projected, wide, candidate.spec))
    return sums


def _window(wide: Spec) -> int:
    """Examples whose projected gradients are held at a time."""
    return max(8, _WINDOW_BYTES // (4 * wide.dimension))


def _widest(candidates: Sequence[Candidate]) -> Spec:
    """A spec whose blocks hold those of all candidates, without R."""
    return dataclasses.replace(
        candidates[0].spec,
        block_rows=max(candidate.spec.block_rows for candidate in candidates),
        block_columns=max(candidate.spec.block_columns for candidate in candidates),
        preconditioner="none",
        storage="float32",
    )
