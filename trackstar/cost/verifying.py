"""An estimate for `verify`, as in `trackstar.cost.commands`: every file is read through once and hashed."""

import hashlib
from collections.abc import Sequence

from trackstar import storage
from trackstar.cost import model
from trackstar.cost.basis import Basis
from trackstar.cost.calibrate import SCAN_BYTES
from trackstar.cost.commands import Estimated
from trackstar.cost.model import Estimate
from trackstar.cost.sample import Clock
from trackstar.index import Index
from trackstar.verification import Check

_PIECE = 4 << 20
_SETTINGS = ("second_moments.safetensors", "projections.safetensors")


def estimate_verify(index: Index, checks: Sequence[Check], groups: int, basis: Basis) -> Estimated:
    """Reading an index through; what repairing would take is known when it is read.

    Args:
        index: The index.
        checks: The item files that are to be checked.
        groups: Elements of work that they are cut into.
        basis: What to reckon with.
    """
    num_bytes = float(sum(check.num_bytes for check in checks))
    settings = [info.size for info in storage.list(storage.join(index.uri, "preconditioner"))]
    settings += [storage.size(uri) for name in _SETTINGS if storage.exists(uri := storage.join(index.uri, name))]
    rates = basis.rates()
    if basis.calibrates:
        rates = rates.with_measured(
            check_bytes=check_rate([index.item_uri(check.key) for check in checks], basis.clock)
        )
    stages = (
        model.start_stage(rates, groups),
        model.check_stage(groups, len(checks), num_bytes, float(sum(settings)), rates),
    )
    facts = (("files", f"{len(checks):,}"), ("work items", f"{groups:,} groups of files"))
    amounts = (("items", float(groups)), ("files", float(len(checks))))
    notes = ("repairing what is damaged comes on top: it costs as encoding these files did",)
    return Estimate("verify", stages, facts, amounts, notes), rates


def check_rate(uris: Sequence[str], clock: Clock) -> float | None:
    """Bytes a second, read and hashed: of the first 128 MB of some files; None where there are none."""
    digest, read = hashlib.sha256(), 0
    started = clock()
    for uri in uris:
        if read >= SCAN_BYTES:
            break
        if not storage.exists(uri):  # verify will tell
            continue
        with storage.open_stream(uri) as source:
            while read < SCAN_BYTES and (piece := source.read(_PIECE)):
                digest.update(piece)
                read += len(piece)
    seconds = clock() - started
    return read / seconds if read and seconds > 0 else None
