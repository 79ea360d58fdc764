"""What a comparison has found so far, in small files: started again, or with other sizes, it measures only what is new."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trackstar import storage, tensors
from trackstar.batching import Example
from trackstar.evaluation.intervals import Estimate
from trackstar.spec import Spec
from trackstar.tuning.candidates import Candidate
from trackstar.tuning.plan import Settings
from trackstar.tuning.sample import Sample


class Kept:
    """Files of one comparison: the exact scores, and what was found of each candidate.

    Their names are computed from all that the figures depend on, so that another sample, model or metric finds none of them. They
    do not depend on the budget, the sizes and the memory.

    Args:
        folder: Local or gs://.
        template: Of the candidates' specs: the model, its second moments, and how text becomes examples.
        sample: The documents.
        queries: The queries.
        settings: Of the comparison.
    """

    def __init__(self, folder: str, template: Spec, sample: Sample, queries: Sequence[Example], settings: Settings):
        parts = [
            dataclasses.asdict(template),
            *([(e.input_ids, e.first_target) for e in some] for some in (sample.scored, sample.fitted, queries)),
            settings.exact,
            settings.exact_normalisation,
        ]
        self._folder = storage.join(folder, _digest(parts))
        self._top_k = settings.top_k

    def exact(self, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The exact scores, float64 [Q, N]; made where they are not there."""
        uri = storage.join(self._folder, "exact.safetensors")
        if storage.exists(uri):
            return tensors.load(uri)[0]["scores"].numpy()
        scores = make()
        tensors.save(uri, {"scores": torch.from_numpy(scores)}, {})
        return scores

    def agreement(self, candidate: Candidate) -> dict[str, Estimate] | None:
        """A candidate's agreement with them, if it is known."""
        found = self._read("agreement", candidate)
        return None if found is None else {name: Estimate(**fields) for name, fields in found.items()}

    def keep_agreement(self, candidate: Candidate, agreement: Mapping[str, Estimate]) -> None:
        """Writes it."""
        self._write("agreement", candidate, {name: dataclasses.asdict(e) for name, e in agreement.items()})

    def speed(self, candidate: Candidate) -> float | None:
        """A candidate's examples a second, if they are known."""
        found = self._read("speed", candidate)
        return None if found is None else float(found)

    def keep_speed(self, candidate: Candidate, examples_per_second: float) -> None:
        """Writes them."""
        self._write("speed", candidate, examples_per_second)

    def _uri(self, kind: str, candidate: Candidate) -> str:
        what = [dataclasses.asdict(candidate.family), dataclasses.asdict(candidate.spec)]
        return storage.join(self._folder, f"{kind}-{_digest([*what, self._top_k])}.json")

    def _read(self, kind: str, candidate: Candidate) -> Any:
        uri = self._uri(kind, candidate)
        return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None

    def _write(self, kind: str, candidate: Candidate, found: object) -> None:
        storage.write_bytes(self._uri(kind, candidate), json.dumps(found).encode())


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
