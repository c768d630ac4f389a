"""The same promises on an object store: a real S3 API server on a free port, killed writers,
unreachable addresses.
"""

from __future__ import annotations

import json
import os
import pickle
import signal

import pytest
import torch
import warm_python
from faulty_storage import OBJECT_POINTS, with_fault
from object_store import endpoint  # noqa: F401

import ld3_dist
from ld3_dist.core.errors import InputError
from ld3_dist.schedule.file import Schedule, load_schedule
from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import Manifest, load_pairs, survey, write_shard
from ld3_dist.store.process import Process
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_table, write_table

META = {"teacher": "abc", "seed": 7}

WORK = """
import sys, torch
from faulty_storage import open_faulty
from ld3_dist.store.pairs import Manifest, write_shard
storage = open_faulty(sys.argv[1])
noise = torch.arange(20, dtype=torch.float32).reshape(5, 4)
tensors = {"noise": noise, "target": noise}
record = write_shard(storage, 0, 5, tensors, {"teacher": "abc", "seed": 7})
Manifest({"teacher": "abc", "seed": 7}, (record,)).save(storage)
"""


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> Storage:  # noqa: F811
    return open_storage(f"s3://bucket/{request.node.name}/out?endpoint_override={endpoint}")


def test_files_and_folders(bucket: Storage) -> None:
    bucket.check_writable()
    assert bucket.list(recursive=True) == []
    child = pickle.loads(pickle.dumps(bucket.child("rows")))
    child.write_bytes("a/b.bin", b"x" * 100)
    child.write_bytes("a/b.bin", b"y")
    child.write_bytes("_hidden", b"")
    assert child.read_bytes("a/b.bin") == b"y"
    assert bucket.list() == []
    assert bucket.list(recursive=True) == ["rows/a/b.bin"]
    assert bucket.list("rows/a") == ["rows/a/b.bin"]
    assert bucket.exists("rows/a/b.bin")
    assert bucket.exists("rows")
    assert not bucket.exists("rows/c")
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/.*/rows/c"):
        child.read_bytes("c")
    child.remove("a/b.bin")
    child.remove("a/b.bin")
    assert not bucket.exists("rows/a/b.bin")
    assert bucket.sweep_temporary() == []
    assert bucket.local_path is None


def test_everything_kept_reads_back(bucket: Storage) -> None:
    pairs = bucket.child("pairs/t")
    noise = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    record = write_shard(pairs, 0, 5, {"noise": noise, "target": noise + 1}, META)
    Manifest(META, (record,)).save(pairs)
    assert torch.equal(load_pairs(pairs, 1, 4)["target"], noise[1:4] + 1)
    base = {"cell": "c", "status": "ok"}
    write_table(bucket, "rows", "t", [{"key": "k", "kind": "learned", "valid_loss": 0.1, **base}])
    write_table(bucket, "rows", "b", [{"key": "b", "kind": "baseline", "valid_loss": 0.3, **base}])
    assert list(read_table(bucket, "rows")["key"]) == ["b", "k"]
    frame = ld3_dist.load_results(bucket)
    assert frame["gain"].tolist() == pytest.approx([1.0, 3.0])
    schedule = Schedule(
        (2.0, 1.0), (2.0,), (1.0, 0.5), ((0.0,), (0.5,)), {"name": "edm"}, 2.0, "ddim", 1, "m"
    )
    query = pickle.loads(pickle.dumps(bucket)).location.partition("?")[2]
    url = f"{bucket.url}/schedules/k.json?{query}"
    schedule.save(url)
    assert load_schedule(url) == schedule


def test_a_killed_writer_leaves_nothing_half(endpoint: str) -> None:  # noqa: F811
    root = f"s3://bucket/kills/%s?endpoint_override={endpoint}"
    points = [f"{point}{part}" for part in ("@shard", "@manifest") for point in OBJECT_POINTS]

    def work(place: str, point: str) -> int:
        return warm_python.run(["-c", WORK, place], environment=with_fault(point)).returncode

    places = [root % point.replace("@", "-") for point in points]
    codes = [work(*job) for job in zip(places, points, strict=True)]
    assert codes == [-signal.SIGKILL] * len(points)
    for place, point in zip(places, points, strict=True):
        storage = open_storage(place)
        found = survey(storage, [(0, 5)], META)
        assert not found.bad
        assert bool(found.good) == (point not in ("write.before@shard", "write.half@shard"))
        manifest = Manifest.load(storage)
        assert (manifest is not None) == (point == "write.after@manifest")
    assert work(places[1], "") == 0  # the same command again mends it
    assert len(load_pairs(open_storage(places[1]), 0, 5)["noise"]) == 5


def test_one_driver(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE", 0.01)
    with locks.acquire(bucket), pytest.raises(locks.LockHeld, match=f"process {os.getpid()}"):
        locks.acquire(bucket)
    assert not bucket.exists(locks.LOCK)
    write = locks._write

    def rival(storage: Storage, owner: Process, name: str) -> None:
        write(storage, owner, name)
        write(storage, Process("elsewhere", 9, "x"), name)

    monkeypatch.setattr(locks, "_write", rival)
    with pytest.raises(locks.LockHeld, match="process 9 on elsewhere"):
        locks.acquire(bucket)


def test_a_heartbeat_in_the_future_gives_way(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SETTLE", 0.01)
    locks._write(bucket, Process("elsewhere", 9, "x"))
    body = json.loads(bucket.read_bytes(locks.LOCK)) | {"heartbeat": 4e9}
    bucket.write_bytes(locks.LOCK, json.dumps(body).encode())
    with pytest.raises(locks.LockHeld, match="process 9 on elsewhere"):
        locks.acquire(bucket)
    age = bucket.age(locks.LOCK)
    assert age is not None
    assert age >= 0
    monkeypatch.setattr(type(bucket), "age", lambda self, name: locks.STALE_AFTER + 1)
    locks.acquire(bucket).release()


def test_what_cannot_be_reached_or_written_is_bad_input(endpoint: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"cannot write to s3://no-such-bucket/x"):
        open_storage(f"s3://no-such-bucket/x?endpoint_override={endpoint}").check_writable()
    with pytest.raises(InputError, match=r"cannot write to s3://bucket/x"):
        open_storage("s3://bucket/x?endpoint_override=http://127.0.0.1:9").check_writable()
    with pytest.raises(InputError, match="cannot open nosuch://"):
        open_storage("nosuch://bucket/x").check_writable()


def test_any_fsspec_scheme_works() -> None:
    storage = open_storage("memory://bucket/out")
    storage.check_writable()
    storage.write_bytes("rows/a.bin", b"x")
    assert storage.list("rows") == ["rows/a.bin"]
    assert storage.list(recursive=True) == ["rows/a.bin"]
    assert storage.read_bytes("rows/a.bin") == b"x"
    storage.remove("rows/a.bin")
    assert storage.list("rows") == []
