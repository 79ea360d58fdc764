"""The second pass without a second index: what the first one proposes is encoded once more, under a better spec.

The tokens of an example are found again from its text, or from the corpus where the text does not tell them all (`explaining`);
their number and their loss tell that they are those of the index. Batches are others than a build would make, so encodings are
those of an index under this spec to rounding, and no further.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from trackstar.batching import Example
from trackstar.encoder import Encoder
from trackstar.encoding_reader import Chunk
from trackstar.errors import TrackStarError
from trackstar.explaining import LOSS_TOLERANCE, document_again
from trackstar.held_rows import ScannedFile
from trackstar.passages import fetch_rows
from trackstar.rescoring import BetterRows, Missing, Proposed, SecondPass, Tops
from trackstar.stored_forms import FORMS, StoredRows
from trackstar.trace import RankedExample

_COLUMNS = ("example_id", "text", "shard", "position", "loss", "num_tokens")


def best_of_encoded(second: SecondPass, proposed: Sequence[Proposed], encoder: Encoder) -> tuple[Tops, list[Missing]]:
    """The k best of what is proposed, by encodings that are made here; and what cannot be encoded again, each with its reason.

    Rows are named by the files of the cheap index.

    Raises:
        TrackStarError: a file of the cheap index is damaged or gone.
    """
    ranked = [example for one in proposed for example in _read(one)]
    reasons: dict[int, str] = {}
    examples: dict[int, Example] = {}
    for number, one in enumerate(ranked):
        try:
            examples[number] = _tokens_again(encoder, one)
        except TrackStarError as error:
            reasons[number] = str(error)
    if not examples:
        return second.best(proposed, [[] for _ in proposed]), _missing(ranked, reasons)
    encodings, bad = encoder.encode(list(examples.values()))
    numbers = list(examples)
    reasons |= {numbers[place]: reason for place, reason in bad.items()}
    good = [number for place, number in enumerate(numbers) if place not in bad]
    tolerance = LOSS_TOLERANCE[encoder.spec.model_dtype]
    for number, loss in zip(good, encodings.loss.tolist(), strict=True):
        if abs(loss - ranked[number].loss) > tolerance * max(1.0, abs(ranked[number].loss)):
            reasons[number] = (
                f"its loss was {ranked[number].loss:.6g} and is {loss:.6g}: another text, or another model"
            )
    kept = [place for place, number in enumerate(good) if number not in reasons]
    stored = FORMS[encoder.spec.storage].pack(encodings.vectors[kept])
    found = _by_file(second, ranked, [good[place] for place in kept], stored, encodings.grad_norm[kept])
    return second.best(proposed, [found.get(one.uri, []) for one in proposed]), _missing(ranked, reasons)


def _missing(ranked: Sequence[RankedExample], reasons: Mapping[int, str]) -> list[Missing]:
    return [
        Missing(ranked[number].example_id, ranked[number].shard, ranked[number].position, reason)
        for number, reason in sorted(reasons.items())
    ]


def _read(proposed: Proposed) -> list[RankedExample]:
    """What the index says of the rows that are proposed."""
    wanted = proposed.wanted.tolist()
    table, metadata = fetch_rows(proposed.uri, wanted, _COLUMNS)
    columns = table.to_pydict()
    texts = columns.get("text", [""] * len(wanted))
    shards = columns.get("shard", [metadata.get("shard", "")] * len(wanted))
    return [
        RankedExample(
            0,
            columns["example_id"][at],
            0.0,
            texts[at],
            shards[at],
            columns["position"][at],
            columns["loss"][at],
            columns["num_tokens"][at],
            proposed.uri,
            row,
        )
        for at, row in enumerate(wanted)
    ]


def _tokens_again(encoder: Encoder, one: RankedExample) -> Example:
    example, _ = document_again(encoder.tokenization, one)
    if len(example.input_ids) != one.num_tokens:
        raise TrackStarError(
            f"it had {one.num_tokens} tokens when it was indexed, and what the index and the corpus hold of it gives "
            f"{len(example.input_ids)}"
        )
    return example


def _by_file(
    second: SecondPass, ranked: Sequence[RankedExample], numbers: Sequence[int], stored: StoredRows, norms: np.ndarray
) -> dict[str, list[BetterRows]]:
    """Rows that were encoded, by the file of the cheap index that proposes them; `numbers` ascend, and so rows in a file."""
    files: dict[str, list[int]] = {}
    for place, number in enumerate(numbers):
        files.setdefault(ranked[number].file, []).append(place)
    found = {}
    for uri, places in files.items():
        rows = np.array([ranked[numbers[place]].row for place in places], np.int64)
        # Columns as long as the file is up to its last row, since rows are looked up by their numbers.
        at = np.zeros(int(rows[-1]) + 1, np.int64)
        at[rows] = np.arange(len(rows))
        ids = pa.array([ranked[numbers[place]].example_id for place in places], pa.string()).take(pa.array(at))
        weights = second.weights(uri, functools.partial(_column, norms[places], at))
        chunks = [
            Chunk(int(row), stored.rows(place, place + 1), owned=True) for row, place in zip(rows, places, strict=True)
        ]
        found[uri] = [BetterRows(ScannedFile(uri, ids, weights, None, None), chunks, rows, rows)]
    return found


def _column(values: np.ndarray, at: np.ndarray) -> pa.Array:
    return pa.array(values[at])
