"""A real object store on loopback, for tests: gcp-storage-emulator in a process of its own.

Use it with `pytest_plugins = ["tests.gcs"]` and the fixture `gcs`, a fresh empty bucket as "gs://name". Child processes find
the store through STORAGE_EMULATOR_HOST. It is a process and not a thread because pyarrow holds the interpreter's lock during
some requests, which a server in the same interpreter would wait for until the end of time.
"""

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

_SERVER = """
import os, sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()  # ends with the parent, however that ends
os._exit(0)
"""


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """Runs an empty object store; yields its address, "http://127.0.0.1:port"."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin
    assert server.stdout
    try:
        port = server.stdout.readline().strip()
        assert port, "the object store did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stdin.close()
        server.wait(timeout=10)
        server.stdout.close()


def client(address: str) -> storage.Client:
    """Google's own client on the emulator."""
    return storage.Client(project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": address})


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """Address of an object store that lives as long as the test session."""
    with emulator() as address:
        yield address


@pytest.fixture
def gcs(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket, "gs://name"; Google's libraries and pyarrow find it, without credentials."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), "test"))  # Beam asks for 20 s
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client(gcs_server).create_bucket(bucket)
    return f"gs://{bucket}"
