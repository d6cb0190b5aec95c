"""An S3 server of this machine, with one bucket, and machines that work in it."""

import os

import pytest

from normjax.training import bucket

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
server_module = pytest.importorskip("moto.server", reason="moto, an S3 server, is not installed")

ADDRESS = "s3://bucket/sweeps/run"


@pytest.fixture(scope="module")
def server():
    server = server_module.ThreadedMotoServer("localhost", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def s3(server, monkeypatch):
    """Boto3's client; the bucket is empty."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    empty(client)
    return client


@pytest.fixture(autouse=True)
def on_machine(tmp_path, monkeypatch):
    """`on_machine(name)`: from now on with that machine's local folders. Nothing waits for long."""
    monkeypatch.setattr(bucket, "STALE_S", 0.5)
    monkeypatch.setattr(bucket, "SETTLE_S", 0.1)

    def on_machine(name):
        monkeypatch.setenv("NORMJAX_CACHE_DIR", str(tmp_path / name))

    on_machine("first")
    return on_machine


def names(s3):
    """The objects of the run."""
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return {entry["Key"].removeprefix("sweeps/run/") for entry in found}


def empty(s3):
    for name in names(s3):
        s3.delete_object(Bucket="bucket", Key=f"sweeps/run/{name}")


def content(s3, name):
    return s3.get_object(Bucket="bucket", Key=f"sweeps/run/{name}")["Body"].read()


def put(s3, name, text):
    s3.put_object(Bucket="bucket", Key=f"sweeps/run/{name}", Body=text.encode())


def fill(folder, files):
    """Makes a folder hold these files alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


class DownError(Exception):
    """Stands for what a file system raises without a network."""


class Failing:
    """A file system without a network after so many changes."""

    def __init__(self, fs, changes):
        self.fs, self.changes = fs, changes

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def change(self, call, *args, **how):
        if not self.changes:
            raise DownError("the network\nis down")
        self.changes -= 1
        call(*args, **how)

    def put(self, sources, targets):
        for pair in zip(sources, targets, strict=True):
            self.change(self.fs.put_file, *pair)

    def pipe_file(self, *args, **how):
        self.change(self.fs.pipe_file, *args, **how)

    def rm_file(self, *args):
        self.change(self.fs.rm_file, *args)
