"""Standing queries: sets of queries that are kept with the index, with the rankings that they have in its snapshots.

    standing/<name>/standing.json         what was fixed when the set was added; with it the set exists
    standing/<name>/queries.jsonl         the queries, all their fields
    standing/<name>/queries.safetensors   their encodings, folded for the scan
    standing/<name>/change.safetensors    the change of preconditioner, if there is one
    standing/<name>/state-<version>-<take-downs>-<checksum>.parquet  the rankings in a snapshot; the last two are kept
    standing/<name>/changes-<version>-<take-downs>.jsonl             what became new among the proponents with it

Encodings, R_eval and λ are fixed when the set is added, so an example's score never changes afterwards: what is new in a
ranking is new in the corpus. `standing_state` and `standing_update` say how a state follows the index.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.index import DataFile, Index
from trackstar.removal import Removals
from trackstar.results import Query, read_queries
from trackstar.standing_state import State, damaged
from trackstar.write_lock import WriteLock

if TYPE_CHECKING:
    from trackstar.query_encoding import PreparedQueries

_FOLDER = "standing"
_SETTINGS = "standing.json"
_FORMAT = 1
_STATE_SUFFIX = ".parquet"
_CHECKSUM_DIGITS = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `standing.json` holds.

    Args:
        query_set: The results' field query_set.
        top_k: Proponents, and opponents, of a query.
        spare: Further rows that a state keeps of each query, so that a query which loses some need not be scored anew.
        opponents: Whether the lowest scores are looked for, too.
        unit_norm: As in `ScanSettings`.
        task_hessian: Which R_eval was asked for.
        task_mixing: Which λ was asked for; None: by the crossing rule.
        spec_hash: Spec of the index that the queries were encoded for.
        num_queries: Q.
        mixing: λ, as it is.
        changes: Whether there is a change of preconditioner.
        digest: Hash of the queries and their encodings: states of other queries are told by it.
    """

    query_set: str
    top_k: int
    spare: int
    opponents: bool
    unit_norm: bool
    task_hessian: str
    task_mixing: float | None
    spec_hash: str = ""
    num_queries: int = 0
    mixing: float = 0.0
    changes: bool = False
    digest: str = ""

    @property
    def capacity(self) -> int:
        """Rows of each query, at each end, in a state."""
        return self.top_k + self.spare


class StandingSet:
    """One set of an index. Use `StandingSet.create`, `StandingSet.open` and `StandingSet.all`."""

    def __init__(self, index: Index, name: str, settings: Settings):
        self.name = name
        self.settings = settings
        self.uri = _folder(index, name)

    @classmethod
    def create(
        cls, index: Index, name: str, settings: Settings, queries: Sequence[Query], prepared: "PreparedQueries"
    ) -> "StandingSet":
        """Writes a new set; it has no state yet.

        Args:
            index: Its index.
            name: Letters, digits, ".", "_" and "-", 64 at most.
            settings: As wished for; what follows from the other arguments is filled in.
            queries: The queries.
            prepared: Their encodings.

        Raises:
            TrackStarError: there is a set of this name, or the name is not allowed.
        """
        check_new_name(index, name)
        folder = _folder(index, name)
        storage.delete(folder)  # what a run that broke off left
        lines = [json.dumps(_line(query), ensure_ascii=False) + "\n" for query in queries]
        content = "".join(lines).encode("utf-8", "backslashreplace")
        storage.write_bytes(storage.join(folder, "queries.jsonl"), content)
        files = [uri for uri in prepared.save(folder) if uri is not None]
        digest = hashlib.sha256(content)
        for uri in files:
            digest.update(storage.read_bytes(uri))
        settings = dataclasses.replace(
            settings,
            spec_hash=index.spec.hash,
            num_queries=len(queries),
            mixing=prepared.mixing,
            changes=prepared.change is not None,
            digest=digest.hexdigest()[:16],
        )
        text = json.dumps({"format": _FORMAT, "name": name, **dataclasses.asdict(settings)}, indent=2) + "\n"
        storage.write_bytes(storage.join(folder, _SETTINGS), text.encode())
        return cls(index, name, settings)

    @classmethod
    def open(cls, index: Index, name: str) -> "StandingSet":
        """Opens the set `name`.

        Raises:
            TrackStarError: there is none, or it was made for an index with another spec.
        """
        where = storage.join(_folder(index, name), _SETTINGS)
        if not _NAME.fullmatch(name) or not storage.exists(where):
            names = ", ".join(names_of(index)) or "none; add one with `trackstar standing add`"
            raise TrackStarError(f"{index.uri}: no standing queries of the name {name!r}; there are: {names}")
        try:
            fields = json.loads(storage.read_bytes(where))
            if fields.pop("format") != _FORMAT:
                raise ValueError("another version of this program wrote it")
            settings = Settings(**{field: value for field, value in fields.items() if field != "name"})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrackStarError(
                f"{where}: damaged ({error}); remove the set with `trackstar standing remove` and add it again"
            ) from error
        if settings.spec_hash != index.spec.hash:
            raise TrackStarError(
                f"{where}: these queries were encoded for an index with the spec {settings.spec_hash}, and this one has "
                f"{index.spec.hash}; remove the set and add it again (the queries are in queries.jsonl, beside this file)"
            )
        return cls(index, name, settings)

    @classmethod
    def all(cls, index: Index) -> list["StandingSet"]:
        """All sets of the index, by name."""
        return [cls.open(index, name) for name in names_of(index)]

    # What was fixed.

    @property
    def queries_uri(self) -> str:
        """The encodings, as `QuerySet.load` reads them."""
        return storage.join(self.uri, "queries.safetensors")

    @property
    def change_uri(self) -> str | None:
        """The change of preconditioner, as `Change.load` reads it."""
        return storage.join(self.uri, "change.safetensors") if self.settings.changes else None

    def queries(self) -> list[Query]:
        """The queries, in order."""
        return read_queries(storage.join(self.uri, "queries.jsonl"))

    @property
    def work_uri(self) -> str:
        """Folder for what an update needs for a while."""
        return storage.join(self.uri, "work")

    def scan_name(self, files: Sequence[DataFile], numbers: Sequence[int] | None, removals: Removals) -> str:
        """Name of a scan of some files for some queries (None: all): the same name, the same result."""
        parts = [self.settings.digest, [file.key for file in files], None if numbers is None else list(numbers)]
        return hashlib.sha256(json.dumps([*parts, removals.hash]).encode()).hexdigest()[:16]

    # States.

    def state(self) -> State:
        """The last state; before the first, an empty one.

        Raises:
            TrackStarError: it is damaged.
        """
        settings, uris = self.settings, self._state_uris()
        if not uris:
            return State.empty(settings.num_queries, settings.capacity, settings.opponents)
        uri = uris[max(uris)]
        data = storage.read_bytes(uri)
        if _checksum(data) != uri.removesuffix(_STATE_SUFFIX)[-_CHECKSUM_DIGITS:]:
            raise damaged(uri, "its content is not what its name says")
        return State.from_bytes(data, settings.digest, uri)

    def changes_uri(self, state: State) -> str:
        """Where it is told what came with the state."""
        return storage.join(self.uri, _name("changes", state) + ".jsonl")

    def save(self, state: State, before: State) -> None:
        """Writes the state; of the others only the one that it comes from is kept.

        States of later versions go, too: the index was set back.
        """
        data = state.to_bytes(self.settings.digest)
        new = storage.join(self.uri, f"{_name('state', state)}-{_checksum(data)}{_STATE_SUFFIX}")
        old = self._state_uris()
        storage.write_bytes(new, data)
        for order, uri in old.items():
            if uri != new and (order != before.order or order >= state.order):
                storage.delete(uri)

    def _state_uris(self) -> dict[tuple[int, int], str]:
        found = {}
        for info in storage.list(self.uri):
            match = re.fullmatch(r"state-(\d+)-(\d+)-[0-9a-f]+\.parquet", info.uri[len(self.uri) + 1 :])
            if match:
                found[int(match[1]), int(match[2])] = info.uri
        return found


def lock(index: Index, command: str) -> WriteLock:
    """The right to change the index's sets, one process at a time; it is not the right to write to the index."""
    return WriteLock(storage.join(index.uri, _FOLDER), command)


def names_of(index: Index) -> list[str]:
    """Names of the index's sets, sorted."""
    above = storage.join(index.uri, _FOLDER)
    below = [info.uri[len(above) + 1 :].split("/") for info in storage.list(above)]
    return sorted(parts[0] for parts in below if parts[1:] == [_SETTINGS])


def check_new_name(index: Index, name: str) -> None:
    """Raises where a new set cannot have this name."""
    if not _NAME.fullmatch(name):
        raise TrackStarError(
            f"{name!r} cannot be a name of standing queries; use letters, digits, '.', '_' and '-', 64 at most"
        )
    if name in names_of(index):
        raise TrackStarError(
            f"{index.uri}: standing queries of the name {name!r} are there already; take another name, or remove them with "
            f"`trackstar standing remove --name {name}`"
        )


def remove(index: Index, name: str) -> None:
    """Deletes a set with all its states and reports.

    Raises:
        TrackStarError: there is none of this name.
    """
    if name not in names_of(index):
        StandingSet.open(index, name)  # says which there are
    storage.delete(storage.join(_folder(index, name), _SETTINGS))  # without it, the set is gone
    storage.delete(_folder(index, name))


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_CHECKSUM_DIGITS]


def _name(kind: str, state: State) -> str:
    version, take_downs = state.order
    return f"{kind}-{version:010d}-{take_downs:06d}"


def _folder(index: Index, name: str) -> str:
    return storage.join(index.uri, _FOLDER, name)


def _line(query: Query) -> Mapping[str, Any]:
    return {
        "example_id": query.example_id,
        "inputs_plaintext": query.prompt,
        "targets_plaintext": query.target,
        **query.fields,
    }
