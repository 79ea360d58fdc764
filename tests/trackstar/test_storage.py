"""The same behaviour on a local disk and in an object store; nothing half-written; errors that say what to do."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from trackstar import storage
from trackstar.errors import TrackStarError

pytest_plugins = ["tests.gcs"]

BINARY = bytes(range(256)) * 40 + b"\r\n\n\x00\r\n"


@pytest.fixture(params=["local", "gs"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('gcs')}/work" if request.param == "gs" else str(tmp_path / "work")


def relative(base: str, found: list[storage.FileInfo]) -> list[str]:
    return [info.uri.removeprefix(f"{base}/") for info in found]


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Without root's right to write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("data", [b"", b"x", BINARY], ids=["empty", "one", "binary"])
def test_what_is_written_is_read(base: str, data: bytes) -> None:
    uri = storage.join(base, "a", "b.bin")
    storage.write_bytes(uri, b"older and longer than what replaces it" * 1000)
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.size(uri) == len(data)
    assert relative(base, storage.list(base)) == ["a/b.bin"]


def test_random_access(base: str) -> None:
    uri = storage.join(base, "b.bin")
    storage.write_bytes(uri, BINARY)
    with storage.open_input(uri) as source:
        source.seek(1000)
        assert source.read(300) == BINARY[1000:1300]
        source.seek(3)
        assert source.read(5) == BINARY[3:8]
        assert source.size() == len(BINARY)
    with storage.open_input(uri) as source:
        assert source.read() == BINARY


def test_a_stream_is_read_as_stored_whatever_its_name(base: str) -> None:
    uri = storage.join(base, "not really.gz")
    storage.write_bytes(uri, BINARY)
    with storage.open_stream(uri) as source:
        assert source.read() == BINARY


def test_exists(base: str) -> None:
    storage.write_bytes(storage.join(base, "a/file"), b"")
    there = {name: storage.exists(storage.join(base, name)) for name in ("a/file", "a", "a/fil", "a/file2", "b")}
    assert there == {"a/file": True, "a": True, "a/fil": False, "a/file2": False, "b": False}


def test_list_is_deep_sorted_and_without_hidden_files(base: str) -> None:
    for name in ("b", "a/2", "a/1", "a/b/c", ".hidden", "a/.hidden", ".folder/x", "a/.folder/x"):
        storage.write_bytes(storage.join(base, name), name.encode())
    assert relative(base, storage.list(base)) == ["a/1", "a/2", "a/b/c", "b"]
    assert [info.size for info in storage.list(base + "/")] == [3, 3, 5, 1]
    assert storage.list(storage.join(base, "missing")) == []
    assert relative(base, storage.list(storage.join(base, "a/b"))) == ["a/b/c"]


TREE = ("1.jsonl", "2.jsonl", "10.jsonl", "x.txt", "a/1.jsonl", "a/b/1.jsonl", "a/b/x.txt", ".h.jsonl", "a/.h/1.jsonl")
TREE += ("[1].jsonl", "a^1.jsonl", "a!1.jsonl", "a+(b).txt", "ab/1.jsonl", "a\\b.txt")
PATTERNS = ("*.jsonl", "?.jsonl", "*/*.jsonl", "**/*.jsonl", "a/**/*", "a/**", "**", "[0-1]*.jsonl", "[!1].jsonl")
PATTERNS += ("[[]1].jsonl", "a[!^]*", "a[+!]*", "*/1.jsonl", "a*/1.jsonl", "**/b/*", "1.jsonl", "a", "none", "[1.jsonl")
PATTERNS += (
    ".*",
    "a/.h/*",
    "[.]h.jsonl",
    "?h.jsonl",
    "a[]^]1.jsonl",
    "*.JSONL",
    "a\\b*",
    "*(b).txt",
    "**/**/*.txt",
    "*/[1].jsonl",
    "[1].jsonl/x",
)


def test_the_tree_has_matches_for_most_patterns(tmp_path: Path) -> None:
    for name in TREE:
        storage.write_bytes(storage.join(str(tmp_path), name), b"")
    assert sum(bool(storage.glob(storage.join(str(tmp_path), pattern))) for pattern in PATTERNS) >= 20


@pytest.fixture(scope="module")
def trees(gcs_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    local = str(tmp_path_factory.mktemp("tree"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
        from tests import gcs

        gcs.client(gcs_server).create_bucket("trees")
        for name in TREE:
            storage.write_bytes(f"{local}/{name}", name.encode())
            storage.write_bytes(f"gs://trees/t/{name}", name.encode())
        yield local, "gs://trees/t"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_globs_mean_the_same_in_both_places(trees: tuple[str, str], pattern: str) -> None:
    local, remote = trees
    expected = relative(local, storage.glob(f"{local}/{pattern}"))
    assert relative(remote, storage.glob(f"{remote}/{pattern}")) == expected
    assert expected == sorted(expected)


def test_a_path_that_exists_is_no_pattern(base: str) -> None:
    for name in ("data[1].jsonl", "data1.jsonl"):
        storage.write_bytes(storage.join(base, name), b"")
    assert relative(base, storage.glob(storage.join(base, "data[1].jsonl"))) == ["data[1].jsonl"]


def test_glob_leaves_folders_out(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.jsonl").touch()
    assert relative(str(tmp_path), storage.glob(f"{tmp_path}/*.jsonl")) == ["file.jsonl"]


def test_delete(base: str) -> None:
    for name in ("fit", "fit2", "fits/a", "folder/a", "folder/b/c", "folder2/a"):
        storage.write_bytes(storage.join(base, name), b"")
    storage.delete(storage.join(base, "fit"))
    storage.delete(storage.join(base, "folder"))
    storage.delete(storage.join(base, "never was"))
    assert relative(base, storage.list(base)) == ["fit2", "fits/a", "folder2/a"]


def test_no_bucket_is_deleted(gcs: str) -> None:
    storage.write_bytes(f"{gcs}/a", b"")
    for uri in (gcs, f"{gcs}/", f"{gcs}//"):
        with pytest.raises(TrackStarError, match="a whole bucket is not deleted"):
            storage.delete(uri)
    assert storage.exists(f"{gcs}/a")


@pytest.mark.parametrize("source", ["local", "gs"])
@pytest.mark.parametrize("target", ["local", "gs"])
def test_copy(source: str, target: str, gcs: str, tmp_path: Path) -> None:
    places = {"local": str(tmp_path), "gs": gcs}
    first, second = f"{places[source]}/from.bin", f"{places[target]}/folder/to.bin"
    storage.write_bytes(first, BINARY)
    storage.write_bytes(second, b"old")
    storage.copy(first, second)
    assert storage.read_bytes(second) == storage.read_bytes(first) == BINARY


def test_staged_appears_whole_at_the_end(base: str) -> None:
    uri = storage.join(base, "out.bin")
    with storage.staged(uri) as path:
        path.write_bytes(BINARY)
        assert not storage.exists(uri)
        assert storage.list(base) == []
    assert storage.read_bytes(uri) == BINARY


def test_staged_leaves_nothing_after_an_error(base: str) -> None:
    uri = storage.join(base, "out.bin")
    storage.write_bytes(uri, b"before")
    with pytest.raises(KeyError), storage.staged(uri) as path:
        path.write_bytes(BINARY)
        raise KeyError
    assert storage.read_bytes(uri) == b"before"
    assert not path.exists()
    assert relative(base, storage.list(base)) == ["out.bin"]


def test_a_full_disk(base: str, tmp_path: Path) -> None:
    with (
        pytest.raises(TrackStarError, match=r"out\.bin.*No space left on device.*free space"),
        storage.staged(storage.join(base, "out.bin")) as path,
    ):
        path.symlink_to("/dev/full")  # the kernel's own ENOSPC
        path.write_bytes(BINARY)
    assert not storage.exists(storage.join(base, "out.bin"))
    assert everything_below(tmp_path) == []


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    storage.write_bytes(str(tmp_path / "kept"), b"kept")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(TrackStarError, match=r"kept: cannot be written \(File too large\); .*ulimit -f"):
            storage.write_bytes(str(tmp_path / "kept"), b"x" * (1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything_below(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_a_folder_without_permission(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    with ordinary_user():
        for act in (
            lambda: storage.write_bytes(f"{folder}/a", b"x"),
            lambda: storage.makedirs(f"{folder}/b"),
        ):
            with pytest.raises(TrackStarError, match=r"closed/[ab]: .*Permission denied.*; check its permissions"):
                act()
    assert list(folder.iterdir()) == []


def test_parts_of_a_path_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrackStarError, match=r"file/a/b: cannot be written .*a part of the path is a file"):
        storage.write_bytes(f"{tmp_path}/file/a/b", b"x")
    with pytest.raises(
        TrackStarError, match=r"file/a: cannot be read \(Not a directory\); a part of the path is a file"
    ):
        storage.info(f"{tmp_path}/file/a")
    with pytest.raises(TrackStarError, match="it is a folder"):
        storage.write_bytes(f"{tmp_path}/folder", b"x")
    with pytest.raises(TrackStarError, match="it is a folder"):
        storage.info(f"{tmp_path}/folder")
    with pytest.raises(TrackStarError, match="folder: cannot be read"):
        storage.read_bytes(f"{tmp_path}/folder")
    assert everything_below(tmp_path) == ["file"]


def test_missing_files_and_buckets(base: str) -> None:
    missing = storage.join(base, "missing")
    for act in (storage.read_bytes, storage.open_input, storage.size, storage.info):
        with pytest.raises(TrackStarError, match=r"missing: .*check the path"):
            act(missing)


def test_a_missing_bucket(gcs: str) -> None:
    for act in (lambda uri: storage.write_bytes(uri, b"x"), storage.list, storage.delete):
        with pytest.raises(TrackStarError, match=r"gs://no-such-bucket/x.*whether the bucket exists"):
            act("gs://no-such-bucket/x")


def test_the_emulator_may_be_named_without_a_scheme(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://"))
    storage.write_bytes(f"{gcs}/a", b"x")
    assert storage.read_bytes(f"{gcs}/a") == b"x"


def test_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(
        TrackStarError, match=r"gs://bucket/a: .*no Google credentials.*gcloud auth application-default"
    ):
        storage.write_bytes("gs://bucket/a", b"")


@pytest.mark.parametrize("uri", ["s3://bucket/a", "http://host/a", "hdfs://x/y"])
def test_other_schemes_are_refused(uri: str) -> None:
    for act in (storage.read_bytes, storage.glob, storage.list, storage.local_path, storage.normalise):
        with pytest.raises(TrackStarError, match="not supported; give a local path or gs://"):
            act(uri)


@pytest.mark.parametrize("uri", ["gs://", "gs:///a", "gs://*/a", "gs://Bucket/a", ""])
def test_uris_without_a_bucket_or_a_path(uri: str) -> None:
    with pytest.raises(TrackStarError, match=r"no bucket name|an empty path"):
        storage.glob(uri)


def test_normal_forms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.normalise("a/../b") == f"{tmp_path}/b"
    assert storage.normalise("~/b") == "/home/someone/b"
    assert storage.normalise("file:///x/b") == "/x/b"
    assert storage.normalise("gs://bucket/a//b/../c") == "gs://bucket/a//b/../c"  # names are not paths there
    assert storage.local_path("b") == tmp_path / "b"
    assert storage.local_path("gs://bucket/b") is None
    assert storage.join("gs://bucket/", "/a/", "b") == "gs://bucket/a/b"
    assert storage.join("/", "a") == "/a"
    assert storage.join("x/", "a") == "x/a"
    with pytest.raises(TrackStarError, match="empty path"):
        storage.join("", "a")


def test_the_fingerprint_follows_the_version(base: str) -> None:
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"one")
    first = storage.info(uri)
    assert storage.info(uri) == first
    assert storage.glob(uri) == [first]
    assert storage.list(base) == [first]
    storage.write_bytes(uri, b"two")
    assert storage.info(uri).fingerprint != first.fingerprint
    assert storage.info(uri).size == 3


def test_the_content_fingerprint_follows_the_content(base: str) -> None:
    uri = storage.join(base, "a")
    storage.write_bytes(uri, b"one")
    first = storage.info(uri, "content")
    assert ":" in first.fingerprint
    assert ":" not in storage.info(uri).fingerprint
    storage.write_bytes(uri, b"two")
    assert storage.info(uri, "content").fingerprint != first.fingerprint
    storage.write_bytes(uri, b"one")
    assert storage.info(uri, "content") == first
    assert storage.glob(uri, "content") == [first]


def test_a_local_fingerprint_is_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"four")
    os.utime(path, ns=(5, 7))
    assert storage.info(str(path)) == storage.FileInfo(str(path), 4, "4-7")


def test_temporary_files_keep_to_the_users_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        storage.write_bytes(f"{tmp_path}/a", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_long_names(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/{'n' * 250}", b"x")
    with pytest.raises(TrackStarError, match="the name is too long"):
        storage.write_bytes(f"{tmp_path}/{'n' * 256}", b"x")
    assert everything_below(tmp_path) == ["n" * 250]
