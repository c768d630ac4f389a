"""The store: atomic files under kills, shards, tables, schedule files, the lock."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faulty_storage import WRITE_POINTS, with_fault
from slowly import few

import ld3_dist
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, FlowMatching, VPCosine, VPDiscrete, VPLinear
from ld3_dist.schedule.file import Schedule, load_schedule, noise_from_dict, noise_to_dict
from ld3_dist.store import lock as locks
from ld3_dist.store.columns import SCHEMAS, describe
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import (
    MANIFEST,
    BadShard,
    Manifest,
    load_pairs,
    missing_ranges,
    pack_condition,
    read_shard,
    shard_name,
    survey,
    unpack_condition,
    write_shard,
)
from ld3_dist.store.process import Process, this_process
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_table, write_table

META = {"teacher": "abc", "seed": 7}
RANGES = [(0, 5), (5, 10)]

# each child is killed at one fault point; forked after the imports, so that one interpreter start
# serves them all
CHILDREN = """
import os, sys, torch
from faulty_storage import open_faulty
from ld3_dist.store.pairs import Manifest, write_shard
from ld3_dist.store.tables import write_table

def work(storage):
    records = []
    for start, stop in [(0, 5), (5, 10)]:
        noise = torch.arange(start * 4, stop * 4, dtype=torch.float32).reshape(-1, 1, 2, 2)
        tensors = {"noise": noise, "target": noise + 0.5, "condition": torch.arange(start, stop)}
        records.append(write_shard(storage, start, stop, tensors, {"teacher": "abc", "seed": 7}))
    Manifest({"teacher": "abc", "seed": 7}, tuple(records)).save(storage)
    row = {"key": "new", "kind": "learned", "cell": "c", "status": "ok"}
    write_table(storage, "rows", "t", [row])

for line in sys.stdin:
    folder, point = line.split()
    pid = os.fork()
    if pid == 0:
        if point != "none":
            os.environ["LD3_DIST_FAULT"] = point
        work(open_faulty(folder))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def run_children(jobs: list[tuple[Path, str]]) -> list[int]:
    """Exit codes of the work done once per (folder, fault point); minus the signal for a killed
    one.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN],
        input="".join(f"{folder} {point}\n" for folder, point in jobs),
        capture_output=True,
        text=True,
        check=True,
        env=with_fault(""),
    )
    return [int(code) for code in done.stdout.split()]


def tensors(start: int, stop: int) -> dict[str, torch.Tensor]:
    noise = torch.arange(start * 4, stop * 4, dtype=torch.float32).reshape(-1, 1, 2, 2)
    return {"noise": noise, "target": noise + 0.5, "condition": torch.arange(start, stop)}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


KILLS = {
    part: [f"{point}{part}" for point in WRITE_POINTS]
    for part in ("", "@00005-00010", "@manifest", "@rows")
} | {"between": ["manifest.before", "manifest.after", "write.synced:3"]}


@pytest.mark.parametrize("part", few(KILLS, ("@manifest",)))
def test_a_kill_at_any_point_leaves_whole_files_and_the_same_command_mends_the_rest(
    part: str, tmp_path: Path
) -> None:
    points = KILLS[part]
    folders = [tmp_path / f"case{i}" for i in range(len(points))]
    reference = tmp_path / "reference"
    assert run_children([(reference, "none")]) == [0]
    wanted = everything(reference)
    for folder in folders:  # an older table that the kill must not damage
        write_table(
            open_storage(folder),
            "rows",
            "t",
            [{"key": "old", "kind": "learned", "cell": "c", "status": "ok"}],
        )
    assert run_children(list(zip(folders, points, strict=True))) == [-signal.SIGKILL] * len(points)
    for folder, point in zip(folders, points, strict=True):
        storage = open_storage(folder)
        assert list(read_table(storage, "rows")["key"]) in (["old"], ["new"]), point
        found = survey(storage, RANGES, META)
        assert not found.bad, point
        manifest = Manifest.load(storage)
        if manifest:  # the last of the pairs' files: then everything it lists is there
            assert found.good == manifest.shards, point
            assert torch.equal(load_pairs(storage, 3, 8)["noise"], tensors(3, 8)["noise"])
        left = [p for p in folder.rglob(".*") if p.is_file()]
        assert len(left) <= 1, point
        swept = storage.sweep_temporary()
        assert len(swept) == len(left)
        assert not [p for p in folder.rglob(".*") if p.is_file()], point
    assert run_children([(folder, "none") for folder in folders]) == [0] * len(folders)
    for folder, point in zip(folders, points, strict=True):
        assert everything(folder) == wanted, point


def test_temporary_files_of_living_and_of_distant_writers_stay(tmp_path: Path) -> None:
    storage, me = open_storage(tmp_path), this_process()
    mine = tmp_path / f".tmp~{me.host}~{me.pid}~{me.start}~0~x"
    reused = tmp_path / f".tmp~{me.host}~{me.pid}~{me.start}0~0~x"
    away, old = tmp_path / ".tmp~elsewhere~1~s~0~x", tmp_path / ".tmp~elsewhere~1~s~0~y"
    for path in (mine, reused, away, old, tmp_path / ".other"):
        path.write_bytes(b"")
    os.utime(old, (1, 1))
    assert storage.sweep_temporary() == sorted([reused.name, old.name])
    assert mine.exists()
    assert away.exists()
    assert storage.list() == []


def test_a_storage_is_a_small_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("out")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(storage.child("rows")))
    copy.write_bytes("a/b.bin", b"x")
    assert (tmp_path / "out/rows/a/b.bin").read_bytes() == b"x"
    assert storage.list() == []
    assert storage.list(recursive=True) == ["rows/a/b.bin"]
    assert storage.list("rows/a") == ["rows/a/b.bin"]
    assert storage.exists("rows/a/b.bin")
    assert not storage.exists("rows/b")
    storage.remove("rows/a/b.bin")
    storage.remove("rows/a/b.bin")
    assert storage.list(recursive=True) == []
    assert open_storage(f"file://{tmp_path}/out") == storage
    for name in ("/etc/x", "a/../../x"):
        with pytest.raises(ValueError, match="relative"):
            storage.write_bytes(name, b"")
    with pytest.raises(FileNotFoundError, match=r"rows/a/b\.bin"):
        storage.read_bytes("rows/a/b.bin")


def test_an_unwritable_place_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/out"):
        open_storage(tmp_path / "file" / "out").check_writable()
    open_storage(tmp_path / "new" / "out").check_writable()
    assert everything(tmp_path / "new") == {}
    for bad in ("", "s3://", "s3://bucket/x?regoin=eu"):
        with pytest.raises(InputError):
            open_storage(bad)


def test_a_full_disk_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("x", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        storage.write_bytes("x", b"new")
    assert everything(tmp_path) == {"x": b"old"}


def test_shards_do_not_depend_on_who_writes_them(tmp_path: Path) -> None:
    a, b = open_storage(tmp_path / "a"), open_storage(tmp_path / "b")
    for start, stop in RANGES:
        write_shard(a, start, stop, tensors(start, stop), META)
    for start, stop in reversed(RANGES):
        write_shard(b, start, stop, dict(reversed(tensors(start, stop).items())), META)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_pairs_read_back_only_what_is_needed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    records = [
        write_shard(storage, *bounds, tensors(*bounds), META)
        for bounds in [(0, 5), (5, 10), (20, 25)]
    ]
    for manifest in (False, True):
        if manifest:
            Manifest(META, tuple(reversed(records))).save(storage)
            loaded = Manifest.load(storage)
            assert loaded is not None
            assert loaded.shards == tuple(records)
        for start, stop in [(0, 10), (3, 7), (9, 10), (20, 22)]:
            for key, value in tensors(start, stop).items():
                assert torch.equal(load_pairs(storage, start, stop)[key], value)
        with pytest.raises(InputError, match=r"samples \[10, 12\)"):
            load_pairs(storage, 8, 12)
    (tmp_path / shard_name(20, 25)).unlink()
    assert len(load_pairs(storage, 0, 10)["noise"]) == 10
    with pytest.raises(BadShard, match="missing"):
        load_pairs(storage, 20, 21)
    condition = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert unpack_condition(pack_condition(condition)) == condition
    assert unpack_condition(pack_condition(None)) is None


def test_bad_shards_are_found_and_only_they_are_missing(tmp_path: Path) -> None:
    storage, name = open_storage(tmp_path), shard_name(5, 10)
    records = [write_shard(storage, *bounds, tensors(*bounds), META) for bounds in RANGES]
    whole = (tmp_path / name).read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    other = tensors(0, 5)
    write_shard(open_storage(tmp_path / "other"), 0, 5, other, META)
    damage = {
        "truncated": whole[:-7],
        "not a shard": b"hello",
        "digest": bytes(flipped),
        r"samples \[0, 5\)": (tmp_path / "other" / shard_name(0, 5)).read_bytes(),
        "empty|truncated": b"",
    }
    for reason, data in damage.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadShard, match=reason) as caught:
            read_shard(storage, name)
        assert name in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert missing_ranges(storage, [*RANGES, (10, 15)]) == [(5, 10), (10, 15)]
    (tmp_path / name).write_bytes(whole)
    assert missing_ranges(storage, RANGES, META) == []
    assert missing_ranges(storage, RANGES, {**META, "teacher": "other"}) == RANGES
    with pytest.raises(BadShard, match="manifest"):
        read_shard(storage, replace(records[1], sha256="0" * 64))


def test_a_shard_that_is_not_finite_or_misshapen_is_not_written(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    sick = tensors(5, 10)
    sick["target"][2, 0, 1, 1] = float("nan")
    with pytest.raises(BadShard, match="target of sample 7 is not finite"):
        write_shard(storage, 5, 10, sick, META)
    with pytest.raises(BadShard, match=r"shape \(5, 1, 2, 2\)"):
        write_shard(storage, 5, 11, tensors(5, 10), META)
    with pytest.raises(BadShard, match="'target'"):
        write_shard(storage, 5, 10, {"noise": torch.zeros(5, 1)}, META)
    with pytest.raises(BadShard, match="float32"):
        write_shard(
            storage, 5, 10, {"noise": torch.zeros(5, 1).double(), "target": torch.zeros(5, 1)}, META
        )
    assert storage.list() == []


def test_manifests_refuse_overlaps_and_rubbish(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert Manifest.load(storage) is None
    records = tuple(
        write_shard(storage, *bounds, tensors(*bounds), META) for bounds in [(0, 5), (4, 8)]
    )
    with pytest.raises(ValueError, match="overlap"):
        Manifest(META, records)
    for text, reason in [
        ("{", "not a manifest"),
        ('{"format": 99}', "newer"),
        ('{"format": 1}', "not a manifest"),
    ]:
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=reason):
            Manifest.load(storage)


def row(**values: object) -> dict[str, object]:
    return {"key": "k", "kind": "learned", "cell": "c", "status": "ok", **values}


def test_tables_keep_their_schema_and_never_nan(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    write_table(
        storage,
        "rows",
        "a",
        [row(valid_loss=float("nan"), gamma=np.float32("nan"), nfe=np.int64(4))],
    )
    write_table(
        storage,
        "rows",
        "b",
        [row(key="l", knots=[1.0, float("inf")], lr=float("-inf"), coefficients=True)],
    )
    for name in ("a", "b"):
        table = pq.read_table(tmp_path / "rows" / f"{name}.parquet")
        assert table.schema.equals(SCHEMAS["rows"], check_metadata=True)
        for column in table.columns:
            flat = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
            if pa.types.is_floating(flat.type):
                assert all(value is None or np.isfinite(value) for value in flat.to_pylist())
    frame = read_table(storage, "rows")
    assert list(frame["status"]) == ["diverged", "ok"]
    assert frame["message"][0] == "valid_loss was nan"
    assert frame["nfe"][0] == 4
    assert frame["nfe"].isna()[1]
    assert frame["coefficients"][1]
    assert read_table(storage, "failures").empty


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (row(trail=1), "no column 'trail'"),
        ({"key": "k"}, "'kind' must not be null"),
        (row(nfe=4.5), "'nfe' is int32"),
        (row(nfe=2**40), "'nfe' is int32"),
        (row(solver=3), "'solver' is string"),
        (row(lr="fast"), "'lr' is double"),
    ],
)
def test_records_that_do_not_fit_are_refused(
    tmp_path: Path, record: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        write_table(open_storage(tmp_path), "rows", "x", [record])
    assert everything(tmp_path) == {}


def test_reading_survives_strays_broken_and_older_files_but_not_newer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(tmp_path)
    write_table(storage, "rows", "a", [row()])
    folder = tmp_path / "rows"
    whole = (folder / "a.parquet").read_bytes()
    (folder / "broken.parquet").write_bytes(whole[:-20])
    (folder / ".tmp~h~1~s~0~b.parquet").write_bytes(b"half")
    (folder / "_note.parquet").write_bytes(b"")
    (folder / "a.parquet.bak").write_bytes(b"")
    older = pa.table({key: [f"old-{key}"] for key in ("key", "kind", "cell", "status")})
    pq.write_table(older, folder / "older.parquet")
    for _ in range(2):  # named the first time only
        frame = read_table(storage, "rows")
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{folder}/broken.parquet: left out, cannot be read" in message
    assert frame.attrs["unreadable"] == ["rows/broken.parquet"]
    assert list(frame["key"]) == ["k", "old-key"]
    newer = SCHEMAS["rows"].with_metadata({"ld3_dist.table": "rows", "ld3_dist.format": "99"})
    pq.write_table(newer.empty_table(), folder / "newer.parquet")
    (folder / "broken.parquet").unlink()
    with pytest.raises(InputError, match=r"newer\.parquet.*update"):
        read_table(storage, "rows")


def test_results_join_and_derive(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with pytest.raises(InputError, match="no results"):
        ld3_dist.load_results(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        ld3_dist.load_results(tmp_path / "nowhere")
    for cell, scale in (("c", 1.0), ("d", 10.0)):
        bases = [
            row(key=f"{cell}-k", kind="baseline", cell=cell, valid_loss=0.8 * scale),
            row(key=f"{cell}-l", kind="baseline", cell=cell, valid_loss=0.4 * scale),
            row(key=f"{cell}-x", kind="baseline", cell=cell, valid_loss=0.001, status="failed"),
        ]
        losses = [0.2, 0.1, 0.05]
        states = ["ok", "ok", "diverged"]
        learned = [
            row(
                key=f"{cell}{m}",
                cell=cell,
                trial="0",
                seed=m,
                valid_loss=losses[m] * scale,
                status=states[m],
            )
            for m in range(3)
        ]
        write_table(storage, "rows", f"base-{cell}", bases)
        write_table(storage, "rows", f"trial-{cell}", learned)
        write_table(storage, "rows", f"again-{cell}", learned)  # the same trial ran twice
    for key, kind, loss in [
        ("c-l", "baseline", 1.0),
        ("c1", "learned", 0.25),
        ("teacher:t", "teacher", None),
    ]:
        write_table(
            storage,
            "evaluations",
            key,
            [{"key": key, "kind": kind, "cell": "c", "eval_loss": loss}],
        )
    frame = ld3_dist.load_results(tmp_path).set_index("key")
    assert len(frame) == 12
    assert list(frame.index[frame["best"]]) == ["c1", "d1"]
    assert frame["best_baseline"]["d0"] == pytest.approx(4.0)
    assert frame["gain"]["c1"] == pytest.approx(4.0)
    assert frame["gain"]["d-k"] == pytest.approx(0.5)
    assert frame["eval_gain"]["c1"] == pytest.approx(4.0)
    assert np.isnan(frame["eval_gain"]["d1"])


def test_every_column_is_documented() -> None:
    text = describe()
    for schema in SCHEMAS.values():
        for name in schema.names:
            assert f"| `{name}` |" in text
    with pytest.raises(InputError, match="did you mean 'rows'"):
        describe("row")


def schedule(**changes: object) -> Schedule:
    values: dict = {
        "knots": [80.0, 0.1 + 0.2, 0.002],
        "evals": [80.0, 1 / 3],
        "state": [1.0, 0.5, 1e-300],
        "outputs": [[0.0, 0.0], [0.7, 0.0], [0.1, np.nextafter(1.0, 2.0).item()]],
        "noise": noise_to_dict(EDM()),
        "prior_scale": 80.0,
        "solver": "unipc-2",
        "nfe": 2,
        "model": "digits",
        "losses": {"valid_loss": 0.1, "start_loss": None},
        "baselines": {"karras": {"valid_loss": 0.3}},
        "seeds": {"seed": 3},
    }
    return Schedule(**{**values, **changes})


def test_schedules_round_trip_exactly(tmp_path: Path) -> None:
    path = tmp_path / "s" / "a.json"
    schedule().save(path)
    again = load_schedule(path)
    assert again == schedule()
    assert again.tableau.outputs[2, 1].item() == np.nextafter(1.0, 2.0)
    assert isinstance(again.noise_schedule, EDM)
    assert ld3_dist.load_schedule(f"file://{path}") == again
    y = [torch.ones(1)]
    body = json.loads(path.read_text())  # the file alone suffices
    for i in range(body["nfe"]):
        m = [0.5 * state for state in y]
        y.append(
            body["state"][i + 1] * y[0]
            + sum(c * m_j for c, m_j in zip(body["outputs"][i + 1], m, strict=False))
        )
    assert len(y) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knots": [1.0, 1.0]}, r"knots\[1\] = 1.0"),
        ({"knots": [1.0]}, "at least 2"),
        ({"evals": [1.0]}, "nfe is 2"),
        ({"evals": [1.0, float("nan")]}, r"evals\[1\] must be a finite number"),
        ({"state": [1.0, 2.0]}, "state holds 2"),
        ({"state": [0.5, 2.0, 1.0]}, r"state\[0\]"),
        ({"outputs": [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]}, r"outputs\[1\]\[1\] = 1.0"),
        ({"outputs": [[0.0, 0.0], [0.0], [0.0, 0.0]]}, r"outputs\[1\] holds 1"),
        ({"noise": {"nome": "edm"}}, "noise has no key"),
        ({"nfe": "2"}, "nfe must be a whole number"),
        ({"order": 9}, "order = 9, but the order of"),
        ({"prediction": "score"}, "unknown prediction 'score'"),
    ],
)
def test_schedules_validate_themselves(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(**changes)


def test_files_of_the_first_format_still_load(tmp_path: Path) -> None:
    """They had neither order nor prediction; the order follows from the solver."""
    written = schedule(prediction="noise")
    body = json.loads(written.to_json())
    assert (body["format"], body["order"], body["prediction"]) == (2, written.order, "noise")
    old = {key: value for key, value in body.items() if key not in ("order", "prediction")} | {
        "format": 1
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    loaded = load_schedule(tmp_path / "old.json")
    assert (loaded.format, loaded.order, loaded.prediction) == (2, written.order, None)
    assert loaded.outputs == written.outputs
    for file in sorted((Path(__file__).parents[2] / "results").glob("*/schedules/*.json"))[:3]:
        assert load_schedule(file).order is not None


def test_bad_schedule_files_name_file_and_key(tmp_path: Path) -> None:
    text, path = schedule().to_json(), tmp_path / "bad.json"
    body = json.loads(text)
    cases = {
        "cut short": text[: len(text) // 2],
        "no key 'format'": "[]",
        "update ld3_dist": json.dumps({**body, "format": 99}),
        "did you mean 'knots'": json.dumps({**body, "knot": 1}),
        "key 'evals' is missing": json.dumps({k: v for k, v in body.items() if k != "evals"}),
        "NaN": text.replace("80.0", "NaN"),
        r"evals\[0\]": json.dumps({**body, "evals": ["a", 1.0]}),
    }
    for reason, content in cases.items():
        path.write_text(content)
        with pytest.raises(InputError, match=rf"bad\.json: .*{reason}"):
            load_schedule(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bad\.json"):
        load_schedule(path)
    with pytest.raises(InputError, match="no such schedule"):
        load_schedule(tmp_path / "none.json")


def test_noise_schedules_survive_the_file() -> None:
    table = torch.linspace(0.9999, 0.01, 50, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    for noise in (
        EDM(t_max=70.0),
        VPLinear(0.2, 15.0),
        VPCosine(0.01),
        FlowMatching(t_min=0.01),
        VPDiscrete(table),
    ):
        again = noise_from_dict(json.loads(json.dumps(noise_to_dict(noise))))
        assert torch.equal(again.lam(t), noise.lam(t))
        assert (again.t_min, again.t_max) == (noise.t_min, noise.t_max)
    with pytest.raises(InputError, match="did you mean 'edm'"):
        noise_from_dict({"name": "edn"})
    with pytest.raises(InputError, match="beta"):
        noise_from_dict({"name": "vp-linear", "beta_2": 1})


def write_lock(storage: Storage, holder: Process, age: float = 0.0) -> None:
    body = {
        "host": holder.host,
        "pid": holder.pid,
        "start": holder.start,
        "heartbeat": time.time() - age,
    }
    storage.write_bytes(locks.LOCK, json.dumps(body).encode())


def test_a_folder_has_one_driver(tmp_path: Path) -> None:
    storage, me = open_storage(tmp_path), this_process()
    with locks.acquire(storage) as held:
        held.check()
        with pytest.raises(locks.LockHeld, match=f"process {me.pid} on {me.host}") as caught:
            locks.acquire(storage)
        assert caught.value.holder == me
    assert everything(tmp_path) == {}


def test_stale_locks_are_recognised(tmp_path: Path) -> None:
    storage, me = open_storage(tmp_path), this_process()
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = [
        (Process(me.host, gone.pid, me.start), 0.0),
        (Process(me.host, me.pid, me.start + "0"), 0.0),  # an earlier process of that number
        (Process("elsewhere", 1, "x"), 1000.0),
        (Process(me.host, me.pid, "another boot-1"), 1000.0),
    ]
    for holder, age in stale:
        write_lock(storage, holder, age)
        locks.acquire(storage).release()
    write_lock(storage, Process("elsewhere", 12, "x"), 100.0)
    with pytest.raises(locks.LockHeld, match=r"process 12 on elsewhere .*try again in 200 s"):
        locks.acquire(storage)
    (tmp_path / locks.LOCK).write_text("rubbish")
    locks.acquire(storage).release()


def test_a_zombie_holds_no_lock(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    from ld3_dist.store.process import _start_of

    holder = Process(this_process().host, child.pid, _start_of(child.pid) or "")
    assert holder.alive
    child.kill()
    deadline = time.time() + 200
    while holder.alive and time.time() < deadline:
        time.sleep(0.02)
    assert not holder.alive  # not yet waited for
    child.communicate()


def test_the_heartbeat_beats_and_notices_a_usurper(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    held = locks.acquire(storage, heartbeat=0.05)
    first = locks.read_lock(storage)
    deadline = time.time() + 200
    while locks.read_lock(storage) == first and time.time() < deadline:
        time.sleep(0.02)
    assert locks.read_lock(storage) != first
    while held.usurper is None and time.time() < deadline:
        write_lock(
            storage, Process("elsewhere", 5, "x")
        )  # repeated: a beat in flight may just overwrite it
        time.sleep(0.1)
    with pytest.raises(locks.LockLost, match=r"process 5 on elsewhere has taken over .*is kept"):
        held.check()
    held.release()
    assert storage.exists(locks.LOCK)  # it is the other's now


def test_a_driver_that_was_stopped_for_long_looks_at_its_lock_before_it_goes_on(
    tmp_path: Path,
) -> None:
    """Its own thread may not have had a turn yet: here it never gets one."""
    storage = open_storage(tmp_path)
    held = locks.acquire(storage, heartbeat=1e6)
    write_lock(storage, Process("elsewhere", 5, "x"))
    held.check()  # it looked a moment ago
    held._looked -= 3e6
    with pytest.raises(locks.LockLost, match="process 5 on elsewhere"):
        held.check()
    held.release()
    assert storage.exists(locks.LOCK)


def test_a_heartbeat_in_the_future_gives_way_by_the_clock_of_the_storage(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    write_lock(storage, Process("elsewhere", 12, "x"), age=-50_000.0)
    with pytest.raises(
        locks.LockHeld, match=r"process 12 on elsewhere .*try again in (\d+) s"
    ) as e:
        locks.acquire(storage)
    assert int(str(e.value).rpartition("try again in ")[2].split()[0]) <= locks.STALE_AFTER
    with pytest.raises(locks.LockHeld):
        locks.refuse_if_held(storage)
    old = time.time() - locks.STALE_AFTER - 10
    os.utime(tmp_path / locks.LOCK, (old, old))
    locks.refuse_if_held(storage)
    locks.acquire(storage).release()
    assert everything(tmp_path) == {}


def test_an_age_is_told_by_one_clock(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("a", b"")
    os.utime(tmp_path / "a", (time.time() - 1000, time.time() - 1000))
    assert storage.age("a") == pytest.approx(1000, abs=100)
    assert storage.list() == ["a"]
    assert everything(tmp_path) == {"a": b""}
    with pytest.raises(FileNotFoundError):
        storage.age("b")
