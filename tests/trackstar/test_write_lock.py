"""One writer at a time: the primitives under contention, who is told what, and what becomes of the locks of the dead."""

import concurrent.futures
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.strict_store import StrictStore, strict_store
from trackstar import storage, write_lock
from trackstar.delta_log import DeltaLog
from trackstar.errors import BusyError, TrackStarError
from trackstar.write_lock import Holder, IndexBusyError, WriteLock

pytest_plugins = ["tests.gcs"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictStore]:
    """A store that enforces preconditions, as "gs://bucket"."""
    with strict_store() as (store, address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield store


@pytest.fixture(params=["local", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "index")
    request.getfixturevalue("strict")
    return "gs://bucket/index"


# The primitives.


def test_of_many_that_create_a_file_one_succeeds(folder: str) -> None:
    uri = storage.join(folder, "file")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: storage.create_exclusive(uri, b"%d" % i * 1000), range(24)))
    assert results.count(True) == 1
    assert storage.info(uri).size == 1000 * len(str(results.index(True)))
    assert not storage.create_exclusive(uri, b"later")


def test_of_many_that_replace_a_version_one_succeeds(folder: str) -> None:
    uri = storage.join(folder, "file")
    storage.create_exclusive(uri, b"old")
    known = storage.info(uri)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: storage.replace_version(known, b"new %d" % i), range(24)))
    [version] = [result for result in results if result is not None]
    assert version == storage.info(uri) != known
    assert storage.replace_version(known, b"late") is None
    assert storage.replace_version(version, b"newest") == storage.info(uri)


def test_a_version_is_deleted_once_and_no_other(folder: str) -> None:
    uri = storage.join(folder, "file")
    storage.create_exclusive(uri, b"old")
    known = storage.info(uri)
    newer = storage.replace_version(known, b"newer")
    assert newer is not None
    assert not storage.delete_version(known)
    assert storage.exists(uri)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: storage.delete_version(newer), range(4))).count(True) == 1
    assert not storage.exists(uri)
    assert storage.replace_version(newer, b"gone") is None


def test_the_store_is_asked_for_the_precondition(strict: StrictStore) -> None:
    """Looking first is not what makes it exclusive: the condition stands in the request itself."""
    storage.create_exclusive("gs://bucket/a", b"x")
    known = storage.info("gs://bucket/a")
    newer = storage.replace_version(known, b"y")
    assert newer is not None
    storage.delete_version(newer)
    assert [query["ifGenerationMatch"] for query in strict.writes] == ["0", known.fingerprint, newer.fingerprint]


def test_a_lost_answer_is_not_taken_for_another_writer(strict: StrictStore) -> None:
    """The client repeats a request whose answer it did not get; the store then has the object already."""
    strict.lost_answers = 1
    assert storage.create_exclusive("gs://bucket/a", b"mine")
    assert len(strict.writes) == 2
    strict.lost_answers = 1
    newer = storage.replace_version(storage.info("gs://bucket/a"), b"mine too")
    assert newer == storage.info("gs://bucket/a")


def test_a_commit_to_a_store_is_exclusive(strict: StrictStore) -> None:
    """Both saw that the version was free; the second upload must not replace the first."""
    log = DeltaLog("gs://bucket/table")
    log._upload("00000000000000000007.json", b"first")
    with pytest.raises(TrackStarError, match="another run committed at the same time"):
        log._upload("00000000000000000007.json", b"second")
    assert strict.objects["bucket", "table/_delta_log/00000000000000000007.json"][0] == b"first"
    log._upload("_last_checkpoint", b"1")
    log._upload("_last_checkpoint", b"2")


# The lock.


def lock_file(folder: str) -> str:
    return storage.join(folder, write_lock.FILE)


def leave(folder: str, **fields: object) -> Holder:
    """A lock that another run left."""
    holder = dataclasses.replace(Holder.this_process("build-index"), **fields)  # type: ignore[arg-type]
    assert storage.create_exclusive(lock_file(folder), holder.to_bytes())
    return holder


def test_the_second_is_told_who_writes(tmp_path: Path) -> None:
    folder = str(tmp_path / "index")
    with WriteLock(folder, "build-index"), pytest.raises(BusyError) as caught, WriteLock(folder, "reindex"):
        pass
    message = str(caught.value)
    for part in (
        "trackstar build-index",
        socket.gethostname(),
        f"process {os.getpid()}",
        "since 2",
        "last sign of life",
    ):
        assert part in message
    assert not storage.exists(lock_file(folder))
    with WriteLock(folder, "reindex"):
        assert json.loads(storage.read_bytes(lock_file(folder)))["command"] == "reindex"
    assert not storage.exists(lock_file(folder))


def test_of_many_processes_one_writes_at_a_time(tmp_path: Path) -> None:
    """Each enters ten times, waiting for the others, and changes a file that only one at a time may change."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    program = """
import sys, time
from pathlib import Path
from trackstar.write_lock import IndexBusyError, WriteLock
folder, counter, done = sys.argv[1], Path(sys.argv[2]), 0
while done < 10:
    try:
        with WriteLock(folder, "test"):
            number = int(counter.read_text())
            time.sleep(0.002)
            counter.write_text(str(number + 1))
            done += 1
    except IndexBusyError:
        time.sleep(0.003)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "index"), str(counter)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    try:
        assert [process.wait(120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    assert counter.read_text() == "30"


def test_it_is_released_when_the_block_fails(folder: str) -> None:
    with pytest.raises(KeyboardInterrupt), WriteLock(folder, "reindex"):
        raise KeyboardInterrupt
    assert not storage.exists(lock_file(folder))


def test_a_killed_process_is_seen_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(tmp_path / "index")
    program = (
        "import sys, time; from trackstar.write_lock import WriteLock; lock = WriteLock(sys.argv[1], 'reindex').__enter__(); "
        "print('held', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(IndexBusyError, match=f"process {process.pid}"), WriteLock(folder, "reindex"):
            pass
    finally:
        process.kill()
    # Dead, and its parent has not asked for its status yet: a zombie still has its number.
    deadline = time.monotonic() + 30
    while (
        "Z" not in Path(f"/proc/{process.pid}/stat").read_text().split(")")[1].split()[0]
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    with WriteLock(folder, "reindex"):
        assert "its process has ended" in caplog.text
    process.wait()
    leave(folder, pid=process.pid)
    with WriteLock(folder, "reindex") as lock:
        lock.check()
    assert not storage.exists(lock_file(folder))


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"machine": "another container"}])
def test_the_silent_are_taken_over_after_a_while(folder: str, place: dict[str, str], caplog) -> None:
    now = time.time()
    leave(folder, pid=2**22 + 1, beat=now - write_lock.STALE_SECONDS + 60, **place)
    with pytest.raises(IndexBusyError, match=r"5\d\d s ago"), WriteLock(folder, "reindex"):
        pass
    storage.delete(lock_file(folder))
    leave(folder, beat=now - write_lock.STALE_SECONDS - 60, **place)
    with WriteLock(folder, "reindex") as lock:
        lock.check()
        assert "taking over from trackstar build-index" in caplog.text
        assert "no sign of life for 11 minutes" in caplog.text
    assert not storage.exists(lock_file(folder))


def test_a_live_process_of_this_machine_is_never_taken_over(tmp_path: Path) -> None:
    """It may have slept with the machine."""
    leave(str(tmp_path), beat=time.time() - 10 * write_lock.STALE_SECONDS)
    with pytest.raises(IndexBusyError), WriteLock(str(tmp_path), "reindex"):
        pass


def test_a_process_number_that_is_used_again(tmp_path: Path) -> None:
    leave(str(tmp_path), started=1.0, beat=time.time() - 3600)
    with WriteLock(str(tmp_path), "reindex"):
        pass


def test_it_gives_signs_of_life(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_lock, "BEAT_SECONDS", 0.02)
    with WriteLock(folder, "reindex") as lock:
        first = Holder.from_bytes(storage.read_bytes(lock_file(folder)))
        deadline = time.monotonic() + 30
        while (last := Holder.from_bytes(storage.read_bytes(lock_file(folder)))) == first:
            assert time.monotonic() < deadline
        assert first
        assert last
        assert last.beat > first.beat
        assert (last.token, last.since) == (first.token, first.since)
        lock.check()


def test_who_was_taken_over_notices_before_the_commit(folder: str) -> None:
    with WriteLock(folder, "reindex") as lock:
        lock.check()
        storage.delete(lock_file(folder))
        other = leave(folder, host="elsewhere")
        with pytest.raises(TrackStarError, match="another run took over"):
            lock.check()
    left = Holder.from_bytes(storage.read_bytes(lock_file(folder)))
    assert left == other  # the other's lock is not released by this one


def test_a_damaged_lock(tmp_path: Path) -> None:
    path = tmp_path / write_lock.FILE
    path.write_bytes(b"{")
    with pytest.raises(IndexBusyError, match="left no name"), WriteLock(str(tmp_path), "reindex"):
        pass
    old = time.time() - 2 * write_lock.STALE_SECONDS
    os.utime(path, (old, old))
    with WriteLock(str(tmp_path), "reindex"):
        pass


def test_on_the_emulator(gcs: str) -> None:
    """It ignores preconditions, but who comes second still finds the lock."""
    with WriteLock(f"{gcs}/index", "build-index") as lock:
        lock.check()
        with pytest.raises(IndexBusyError, match="trackstar build-index"), WriteLock(f"{gcs}/index", "reindex"):
            pass
    assert storage.list(gcs) == []


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    """A command that is told to end releases its lock, and whatever else its blocks hold."""
    program = """
import sys
from pipelines import cli
sys.exit(cli.main(["hold", sys.argv[1]], {"hold": cli.Command("tests.pipelines.lock_holder", "holds a lock")}))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert (tmp_path / write_lock.FILE).exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / write_lock.FILE).exists()
