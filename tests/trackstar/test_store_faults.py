"""Storage before a store that fails: every operation gets its bytes through, or ends in a clear error; nothing is half done."""

import gzip
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faulty_store import ANSWERS, BROKEN, FaultyStore, Plan, faulty_store
from trackstar import object_store, storage
from trackstar.errors import TrackStarError
from trackstar.patience import Patience

pytest_plugins = ["tests.gcs"]

SMALL = bytes(range(256)) * 40
LARGE = bytes(range(251)) * 36_000  # nine megabytes: goes up in pieces


@pytest.fixture
def faulty(gcs_server: str, gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store of `gcs`, behind a proxy that fails as its plan says."""
    with faulty_store(gcs_server) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.address)
        monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "6")
        yield store


QUICK = tuple(kind for kind in (*ANSWERS, *BROKEN) if kind != "slow")


@pytest.mark.parametrize("seed", range(4))
def test_every_operation_under_faults(gcs: str, faulty: FaultyStore, seed: int, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(object_store, "_UPLOAD_CHUNK", 1 << 20)
    faulty.plan = Plan(QUICK, rate=0.6, seed=seed)
    base = f"{gcs}/{seed}"
    for number in range(5):
        storage.write_bytes(f"{base}/small-{number}", SMALL[number:])
        assert storage.read_bytes(f"{base}/small-{number}") == SMALL[number:]
    with storage.staged(f"{base}/large") as path:
        path.write_bytes(LARGE)
    assert storage.read_bytes(f"{base}/large") == LARGE
    with storage.open_input(f"{base}/large") as source:
        for start in range(0, len(LARGE), 2_500_000):
            source.seek(start)
            assert source.read(1_000_000) == LARGE[start : start + 1_000_000]
    with storage.open_stream(f"{base}/large") as source:
        assert b"".join(iter(lambda: source.read(700_001), b"")) == LARGE
    storage.copy(f"{base}/large", f"{base}/copy")
    storage.copy(f"{base}/copy", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert storage.create_exclusive(f"{base}/once", b"first")
    assert not storage.create_exclusive(f"{base}/once", b"second")
    assert storage.replace_version(storage.info(f"{base}/once"), b"third") is not None
    assert storage.read_bytes(f"{base}/once") == b"third"
    storage.delete(f"{base}/small-0")
    assert not storage.exists(f"{base}/small-0")
    names = [info.uri.rsplit("/", 1)[-1] for info in storage.list(base)]
    assert names == ["copy", "large", "once", "small-1", "small-2", "small-3", "small-4"]
    assert [info.size for info in storage.glob(f"{base}/small-*")] == [len(SMALL) - number for number in range(1, 5)]
    assert len(faulty.faults()) > 20
    assert len({str(fault) for fault in faulty.faults()}) > 6


def test_a_store_that_goes_silent(gcs: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{gcs}/a", SMALL)
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "4.5")
    assert Patience.from_environment().silence == 1.5
    faulty.plan = Plan(("slow",), in_a_row=1, silence=2.5, only="/o")
    assert storage.read_bytes(f"{gcs}/a") == SMALL
    with storage.open_input(f"{gcs}/a") as source:
        source.seek(100)
        assert source.read(1000) == SMALL[100:1100]
    storage.write_bytes(f"{gcs}/b", SMALL)
    assert faulty.faults() == ["slow"] * 4
    faulty.plan = Plan()
    assert storage.read_bytes(f"{gcs}/b") == SMALL


OPERATIONS: dict[str, Callable[[str], object]] = {
    "list": storage.list,
    "glob": lambda base: storage.glob(f"{base}/*.jsonl"),
    "info": lambda base: storage.info(f"{base}/there"),
    "read": lambda base: storage.read_bytes(f"{base}/there"),
    "open": lambda base: storage.open_input(f"{base}/there"),
    "write": lambda base: storage.write_bytes(f"{base}/new", SMALL),
    "create": lambda base: storage.create_exclusive(f"{base}/new", SMALL),
    "copy": lambda base: storage.copy(f"{base}/there", f"{base}/new"),
    "delete": lambda base: storage.delete(f"{base}/there"),
}


@pytest.mark.parametrize("kind", [503, "reset"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_does_not_come_back(
    gcs: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch, operation: str, kind: int | str
) -> None:
    storage.write_bytes(f"{gcs}/there", SMALL)
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "0.4")
    faulty.plan = Plan((kind,), in_a_row=None)
    started = time.monotonic()
    with pytest.raises(
        TrackStarError,
        match=r"gs://.*: cannot .* \(\d+ attempts in 0.4 s failed, the last with: .*TRACKSTAR_STORE_PATIENCE",
    ) as raised:
        OPERATIONS[operation](gcs)
    assert time.monotonic() - started < 5
    assert len(faulty.faults()) >= 2
    assert "503" in str(raised.value) if kind == 503 else "onnection" in str(raised.value)
    faulty.plan = Plan()
    assert [info.uri for info in storage.list(gcs)] == [f"{gcs}/there"]
    assert storage.read_bytes(f"{gcs}/there") == SMALL


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412])
def test_errors_that_do_not_pass_fail_at_once(gcs: str, faulty: FaultyStore, status: int) -> None:
    faulty.plan = Plan((status,), in_a_row=None, only="/o")
    for act in (lambda: storage.write_bytes(f"{gcs}/a", SMALL), lambda: storage.read_bytes(f"{gcs}/a")):
        faulty.seen.clear()
        with pytest.raises(TrackStarError, match=r"gs://bucket-.*/a: cannot be "):
            act()
        assert len(faulty.faults()) == 1


def test_an_upload_that_breaks_off_leaves_nothing(gcs: str, faulty: FaultyStore, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(object_store, "_UPLOAD_CHUNK", 1 << 20)
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "0.4")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for kind in ("torn", "reset", 500):
        faulty.seen.clear()
        # The session begins, and four pieces arrive; then no more.
        faulty.plan = Plan((kind,), in_a_row=None, only=r"^PUT .*bytes 4\d{6}-")
        with (
            pytest.raises(TrackStarError, match=r"large: cannot be written \(\d+ attempts"),
            storage.staged(f"{gcs}/large") as path,
        ):
            path.write_bytes(LARGE)
        faulty.plan = Plan()
        assert storage.list(gcs) == []
        assert list(tmp_path.iterdir()) == []


def test_an_upload_that_the_store_has_forgotten_begins_again(gcs: str, faulty: FaultyStore, monkeypatch) -> None:
    monkeypatch.setattr(object_store, "_UPLOAD_CHUNK", 1 << 20)
    faulty.plan = Plan((410,), in_a_row=1, only=r"^PUT .*bytes 4\d{6}-")
    storage.write_bytes(f"{gcs}/large", LARGE)
    assert faulty.faults() == [410]
    assert storage.read_bytes(f"{gcs}/large") == LARGE


def test_a_version_that_goes_while_it_is_read(gcs: str, faulty: FaultyStore) -> None:
    storage.write_bytes(f"{gcs}/a", SMALL)
    with storage.open_input(f"{gcs}/a") as source:
        assert source.read(10) == SMALL[:10]
        storage.write_bytes(f"{gcs}/a", SMALL[::-1])
        with pytest.raises(TrackStarError, match=r"a: cannot be read \(it changed or was deleted while it was read\)"):
            source.read(10)
    assert storage.read_bytes(f"{gcs}/a") == SMALL[::-1]


def test_readers_of_other_libraries_see_the_same(gcs: str, faulty: FaultyStore, tmp_path) -> None:
    table = pa.table({"a": list(range(50_000)), "b": [str(n) for n in range(50_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)
    storage.copy(str(tmp_path / "t.parquet"), f"{gcs}/t.parquet")
    storage.write_bytes(f"{gcs}/t.gz", gzip.compress(LARGE))
    faulty.plan = Plan(QUICK, rate=0.5, seed=7)
    with storage.open_input(f"{gcs}/t.parquet") as source:
        assert pq.read_table(source).equals(table)
    with storage.open_stream(f"{gcs}/t.gz") as source:
        assert gzip.GzipFile(fileobj=source).read() == LARGE
    assert faulty.faults()
    faulty.plan = Plan((403,), in_a_row=None)
    with pytest.raises(TrackStarError, match="no permission"):
        storage.open_input(f"{gcs}/t.parquet")


def test_an_error_in_the_middle_keeps_its_words(gcs: str, faulty: FaultyStore, tmp_path) -> None:
    table = pa.table({"a": list(range(50_000))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)
    storage.copy(str(tmp_path / "t.parquet"), f"{gcs}/t.parquet")
    with storage.open_input(f"{gcs}/t.parquet") as source:
        file = pq.ParquetFile(source)
        faulty.plan = Plan((403,), in_a_row=None)
        with pytest.raises(TrackStarError, match=r"t\.parquet: cannot be read \(no permission"):
            file.read()


@pytest.mark.parametrize("text", ["soon", "-3", "0", "nan", "inf"])
def test_patience_must_be_a_number(gcs: str, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", text)
    with pytest.raises(TrackStarError, match=r"TRACKSTAR_STORE_PATIENCE is .* a number of seconds above zero"):
        storage.read_bytes(f"{gcs}/a")
