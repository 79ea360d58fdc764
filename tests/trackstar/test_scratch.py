"""Temporary folders: gone at the end, after a kill by the next process, and never while they are in use."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from trackstar import scratch, storage
from trackstar.errors import TrackStarError

pytest_plugins = ["tests.gcs"]

HOLD = """
import sys
from trackstar import scratch
with scratch.folder() as folder:
    (folder / "large").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def hold() -> tuple[subprocess.Popen, Path]:
    """A process that has a folder in use, and the folder, made to look old."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout
    folder = Path(process.stdout.readline().strip())
    then = time.time() - 3600
    os.utime(folder, (then, then))
    return process, folder


def test_a_folder_goes_with_its_block(place: Path) -> None:
    with scratch.folder() as folder:
        (folder / "a").write_bytes(b"x")
        assert folder.parent == place
    assert not folder.exists()
    with pytest.raises(KeyError), scratch.folder() as folder:
        raise KeyError
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(place: Path) -> None:
    killed, left = hold()
    living, used = hold()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=20)
        (place / "another-program").mkdir()
        with scratch.folder():
            assert not left.exists()
            assert (used / "large").exists()
        assert (place / "another-program").exists()
    finally:
        living.communicate(timeout=20)
    assert not used.exists()


def test_a_full_temporary_disk(gcs: str, place: Path) -> None:
    with (
        pytest.raises(
            TrackStarError,
            match=r"trackstar-scratch-\w+: cannot be written, to be uploaded to gs://.*/out \(No space left on device; "
            r"[\d,]+ bytes are free there\); free space, or set TMPDIR",
        ),
        storage.staged(f"{gcs}/out") as path,
    ):
        path.symlink_to("/dev/full")
        path.write_bytes(b"x" * 10_000)
    assert list(place.iterdir()) == []
    assert storage.list(gcs) == []


def test_a_temporary_folder_that_cannot_be_used(gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(
            TrackStarError, match=r"a temporary folder: cannot be written, to be uploaded to gs://.*set TMPDIR"
        ),
        storage.staged(f"{gcs}/out") as path,
    ):
        path.write_bytes(b"x")
