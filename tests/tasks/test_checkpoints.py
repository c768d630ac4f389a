"""Trials that are killed go on from their checkpoint, to the same rows; a checkpoint that is of no
use costs nothing.

The reference is the same trial in one go.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import warm_python
from faulty_storage import SWEEP, with_fault
from forked_sweeps import SMALL
from object_store import endpoint  # noqa: F401
from safetensors.torch import load, save
from schedules import one_thread  # noqa: F401
from short_trials import EPOCHS, NUMBERS, VALUES, plan_of, taught
from tiny_sweep import PASSING, changed, write

from ld3_dist.experiment import Plan, TrialSpec, parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import content_digest
from ld3_dist.store.storage import LocalStorage, Storage
from ld3_dist.store.tables import read_table, write_table
from ld3_dist.tasks import checkpoints
from ld3_dist.tasks.checkpoints import name_of, remove_finished
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, missing_shards, seal
from ld3_dist.tasks.trial import run_trial


class Gone(BaseException):
    """The process is gone."""


def begin(plan: Plan, storage: Storage, gone_at: int, **values: Any) -> TrialSpec:
    """A trial whose process is gone in an epoch, before it is kept: the checkpoint is that of the
    epoch before.
    """
    spec = taught(plan, storage, **values)

    def on_progress(progress: Any) -> None:
        if progress.epoch == gone_at:
            raise Gone

    with pytest.raises(Gone):
        run_trial(plan, spec, storage, NUMBERS, "cpu", on_progress)
    return spec


def go_on(plan: Plan, spec: TrialSpec, storage: Storage) -> tuple[list[int], list[str]]:
    """The epochs that were seen, and what was noted."""
    epochs, notes = list[int](), list[str]()
    run_trial(
        plan,
        spec,
        storage,
        NUMBERS,
        "cpu",
        lambda progress: epochs.append(progress.epoch),
        notes.append,
    )
    return epochs, notes


def rows_of(storage: Storage, spec: TrialSpec) -> pd.DataFrame:
    frame = read_table(storage, "rows")
    mine = frame[frame["key"].isin(spec.keys)]
    assert len(mine) == len(spec.members)
    return mine.drop(columns=list(PASSING), errors="ignore").reset_index(drop=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Storage, pd.DataFrame]]:
    """The trial of each procedure in one go, without checkpoints."""
    made = {}
    for procedure in VALUES:
        plan, storage = (
            plan_of(procedure, seconds=1e9),
            open_storage(tmp_path_factory.mktemp(procedure)),
        )
        spec = taught(plan, storage)
        assert go_on(plan, spec, storage) == (list(range(EPOCHS + 1)), [])
        assert not storage.list("checkpoints")
        made[procedure] = storage, rows_of(storage, spec)
    return made


KILLED = """
import sys, torch
from short_trials import NUMBERS, VALUES, plan_of, taught
from faulty_storage import open_faulty
from ld3_dist.tasks.trial import run_trial
torch.set_num_threads(1)
plan, storage = plan_of(sys.argv[1]), open_faulty(sys.argv[2])
run_trial(plan, taught(plan, storage), storage, NUMBERS, "cpu")
"""


@pytest.mark.parametrize("procedure", VALUES)
@pytest.mark.siblings(1)
def test_a_killed_process_goes_on_to_the_same_rows(
    procedure: str, whole: Any, tmp_path: Path
) -> None:
    fault = with_fault("write.after@checkpoints/:3")
    path = os.pathsep.join([str(Path(__file__).parent), fault["PYTHONPATH"]])
    fault |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = warm_python.run(["-c", KILLED, procedure, str(tmp_path)], environment=fault)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    plan, storage = plan_of(procedure), open_storage(tmp_path)
    spec = taught(plan, storage)
    assert storage.list("checkpoints") == [name_of(spec.task)]
    assert not storage.list("rows")
    assert go_on(plan, spec, storage) == ([4, 5], ["goes on after epoch 3"])
    pd.testing.assert_frame_equal(rows_of(storage, spec), whole[procedure][1], check_exact=True)
    assert not storage.list("checkpoints")
    for name in storage.list("schedules"):
        body, expected = (
            json.loads(place.read_bytes(name)) for place in (storage, whole[procedure][0])
        )
        assert body == expected


@pytest.mark.parametrize(
    ("procedure", "settings", "values"),
    [
        ("default", {"coefficients": True, "coordinate": "time"}, {}),
        (
            "default",
            {"patience": 1},
            {"lr": 0.05, "lr_times": 0.2},
        ),  # one of the members has stopped
        ("default", {}, {"gamma": 0}),
        ("paper", {"knots_only": 3, "patience": 1}, {"lr": 0.3}),
        ("paper", {"coordinate": "time"}, {"gamma": 0}),
    ],
)
@pytest.mark.siblings(2)
def test_every_kind_of_state_goes_on(
    procedure: str, settings: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    plan, storage, reference = (
        plan_of(procedure, **settings),
        open_storage(tmp_path / "a"),
        open_storage(tmp_path / "b"),
    )
    spec = begin(plan, storage, 3, **values)
    left, _ = go_on(plan, spec, storage)
    everything, _ = go_on(plan, taught(plan, reference, **values), reference)
    assert left == everything[3:]
    pd.testing.assert_frame_equal(
        rows_of(storage, spec), rows_of(reference, spec), check_exact=True
    )


def test_seconds_and_the_beginning_are_those_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, storage = plan_of(), open_storage(tmp_path)
    monkeypatch.setattr("ld3_dist.tasks.checkpoints.now", lambda: "2020-01-01T00:00:00+00:00")
    monkeypatch.setattr(
        checkpoints.Checkpoints, "elapsed", lambda self, course: course.seconds + 100.0
    )
    spec = begin(plan, storage, 3)
    go_on(plan, spec, storage)
    frame = read_table(storage, "rows")
    assert frame["seconds"].sum() == pytest.approx(200.0)


def test_a_checkpoint_is_written_now_and_then(tmp_path: Path) -> None:
    """Not within the seconds asked for, nor after the start, nor when nothing is left to do."""
    storage, written = Counting(str(tmp_path)), list[str]()
    COUNTED.clear()
    for seconds, count in ((1e9, 0), (0.0, EPOCHS - 1)):
        plan = plan_of(seconds=seconds)
        spec = taught(plan, storage)
        go_on(plan, spec, storage)
        written = [name for name in COUNTED if name.startswith("checkpoints/")]
        assert len(written) == count
    assert set(written) == {name_of(spec.task)}


COUNTED: list[str] = []


class Counting(LocalStorage):
    """Notes the names that are written."""

    def write_bytes(self, name: str, data: bytes) -> None:
        COUNTED.append(name)
        super().write_bytes(name, data)


def again(data: bytes, **changes: Any) -> bytes:
    """The checkpoint with another header, and the digest that belongs to it unless one is given."""
    tensors, header = load(data), header_of(data) | changes
    if "digest" not in changes:
        header["digest"] = content_digest(header | {"digest": ""}, tensors)
    return save(tensors, {"ld3_dist": json.dumps(header)})


def header_of(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["ld3_dist"])


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def without(data: bytes, name: str) -> bytes:
    tensors = {key: value for key, value in load(data).items() if key != name}
    header = header_of(data)
    header["digest"] = content_digest(header | {"digest": ""}, tensors)
    return save(tensors, {"ld3_dist": json.dumps(header)})


SPOILED = {
    "empty": (lambda data: b"", "not used"),
    "truncated": (lambda data: data[:-100], "not used"),
    "header cut": (lambda data: data[:20], "not used"),
    "damaged": (flipped, "does not match its digest"),
    "no safetensors": (lambda data: b"PAR1" * 50, "not used"),
    "another's safetensors": (lambda data: save({"a": torch.zeros(2)}), "not used"),
    "another's header": (lambda data: save(load(data), {"ld3_dist": "[]"}), "not used"),
    "newer": (
        lambda data: again(data, format=checkpoints.FORMAT + 1),
        f"has format {checkpoints.FORMAT + 1}",
    ),
    "another trial": (
        lambda data: again(data, fingerprint="0" * 16),
        "another trial or another version",
    ),
    "fewer epochs": (
        lambda data: again(data, epoch=1),
        "it ends after epoch 1 but has curves of 4",
    ),
    "no curves": (lambda data: without(data, "valid"), "not used"),
    "no state": (lambda data: without(data, "state.moved"), "not used"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, TrialSpec, Path, bytes]:
    """A trial, its pairs, and the checkpoint of its third epoch."""
    plan, folder = plan_of(), tmp_path_factory.mktemp("kept")
    spec = begin(plan, open_storage(folder), 4)
    data = (folder / name_of(spec.task)).read_bytes()
    assert header_of(data)["epoch"] == 3
    return plan, spec, folder, data


@pytest.mark.parametrize("how", SPOILED)
def test_a_checkpoint_of_no_use_is_noted_and_the_trial_begins_anew(
    how: str, kept: Any, whole: Any
) -> None:
    plan, spec, folder, data = kept
    spoil, said = SPOILED[how]
    (folder / name_of(spec.task)).write_bytes(spoil(data))
    epochs, notes = go_on(plan, spec, open_storage(folder))
    assert epochs == list(range(EPOCHS + 1))
    (note,) = notes
    assert said in note
    assert "begins anew" in note
    pd.testing.assert_frame_equal(
        rows_of(open_storage(folder), spec), whole["default"][1], check_exact=True
    )
    assert not open_storage(folder).list("checkpoints")


@pytest.mark.parametrize("what", ["version", "torch_version", "git_commit"])
def test_a_checkpoint_of_another_version_is_not_used(
    what: str, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, spec, folder, data = kept
    (folder / name_of(spec.task)).write_bytes(data)
    mine = checkpoints.provenance()
    monkeypatch.setattr(checkpoints, "provenance", lambda: mine | {what: "0.0.7"})
    epochs, notes = go_on(plan, spec, open_storage(folder))
    assert epochs[0] == 0
    assert "another trial or another version" in notes[0]


def test_the_checkpoint_of_another_trial_is_not_used(kept: Any) -> None:
    plan, spec, folder, data = kept
    other = plan.trial(spec.cell, VALUES["default"] | {"lr": 0.2})
    (folder / name_of(other.task)).write_bytes(data)
    epochs, notes = go_on(plan, other, open_storage(folder))
    assert epochs[0] == 0
    assert "another trial" in notes[0]


class Full(LocalStorage):
    """No room for checkpoints, and none can be read or removed."""

    def write_bytes(self, name: str, data: bytes) -> None:
        self._refuse(name)
        super().write_bytes(name, data)

    def read_bytes(self, name: str) -> bytes:
        self._refuse(name)
        return super().read_bytes(name)

    def remove(self, name: str) -> None:
        self._refuse(name)
        super().remove(name)

    def _refuse(self, name: str) -> None:
        if name.startswith("checkpoints/"):
            raise OSError(28, "No space left on device", name)


def test_a_storage_without_room_costs_the_checkpoint_alone(tmp_path: Path, whole: Any) -> None:
    plan, storage = plan_of(), Full(str(tmp_path))
    spec = taught(plan, storage)
    epochs, notes = go_on(plan, spec, storage)
    assert epochs == list(range(EPOCHS + 1))
    assert "begins anew" in notes[0]
    assert [note.partition(":")[0] for note in notes[1:-1]] == [
        f"no checkpoint after epoch {n}" for n in range(1, 5)
    ]
    assert "is left behind" in notes[-1]
    assert all("No space left on device" in note for note in notes)
    pd.testing.assert_frame_equal(rows_of(storage, spec), whole["default"][1], check_exact=True)


def test_what_a_finished_trial_left_goes_at_resume(tmp_path: Path) -> None:
    """Not that of a trial without rows, nor that of one whose rows say it failed: both are tried
    again.
    """
    storage = open_storage(tmp_path)
    for key, status in (("a", "ok"), ("b", "failed"), ("c", None)):
        storage.write_bytes(name_of(key), b"x")
        if status:
            write_table(
                storage,
                "rows",
                key,
                [{"key": f"{key}-0", "kind": "learned", "cell": "c", "status": status}],
            )
    assert remove_finished(storage) == [name_of("a")]
    assert storage.list("checkpoints") == [name_of("b"), name_of("c")]
    assert remove_finished(storage) == []


@pytest.mark.siblings(1)
def test_on_an_object_store(endpoint: str, whole: Any) -> None:  # noqa: F811
    plan, storage = plan_of(), open_storage(f"s3://bucket/checkpoints?endpoint_override={endpoint}")
    spec = begin(plan, storage, 4)
    data = storage.read_bytes(name_of(spec.task))
    assert load(data)["valid"].shape == (4, 2)  # the start and three epochs, two members
    epochs, notes = go_on(plan, spec, storage)
    assert (epochs, notes) == ([4, 5], ["goes on after epoch 3"])
    pd.testing.assert_frame_equal(rows_of(storage, spec), whole["default"][1], check_exact=True)
    storage.write_bytes(name_of(spec.task), data)
    assert remove_finished(storage) == [name_of(spec.task)]
    assert not storage.list("checkpoints")


def notes_in(out: Path) -> list[str]:
    """What the workers noted, in order of time."""
    lines = [
        json.loads(line)
        for file in (out / "logs").glob("*-worker-*")
        for line in file.read_text().splitlines()
    ]
    return [
        line["message"]
        for line in sorted(lines, key=lambda line: line["time"])
        if line["event"] == "note"
    ]


@pytest.mark.slow  # in short: test_cluster
@pytest.mark.cluster
def test_a_sweep_whose_driver_and_workers_are_killed_in_the_middle_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver at the first checkpoint; then a worker after 150 of them. The trial is learned
    once.
    """
    monkeypatch.setenv("LD3_DIST_COMMIT", "none")  # a commit in between would be another version
    search = SMALL["search"] | {"grid": {"lr": [0.1]}}
    once = {"patience": 1000, "epochs": 250, "batch": 4}
    resources = {"checkpoint_seconds": 0, "retries": 5, "cpus_per_trial": 1}
    experiment = changed(
        **SMALL
        | {"search": search, "learn": once, "evaluate": {"samples": 0}, "resources": resources}
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ld3_dist.cli",
        "sweep",
        str(write(tmp_path, experiment)),
        "--output",
        str(out),
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("checkpoints/*.safetensors")):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    done = subprocess.run(
        [*SWEEP, *command[4:]],
        env=with_fault("write.after@checkpoints/:150"),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]

    notes = [note for note in notes_in(out) if not note.startswith("activations of a step")]
    assert all(note.startswith("goes on after epoch ") for note in notes), notes
    epochs = [int(note.rpartition(" ")[2]) for note in notes]
    assert epochs[0] >= 1
    assert [b - a for a, b in itertools.pairwise(epochs)] == [150] * (len(epochs) - 1)
    plan, reference = make_plan(parse_experiment(experiment)), open_storage(tmp_path / "reference")
    (model,) = plan.experiment.models
    for start, stop in missing_shards(plan, model, reference)[0]:
        make_shard(plan, model, reference, start, stop)
    seal(plan, model, reference)
    spec = plan.trial(plan.cells[0], {"lr": 0.1})
    monkeypatch.setattr(checkpoints.Checkpoints, "keep", lambda *_: None)
    go_on(plan, spec, reference)
    pd.testing.assert_frame_equal(
        rows_of(open_storage(out), spec), rows_of(reference, spec), check_exact=True
    )
    assert read_table(open_storage(out), "rows")["attempts"].max() == len(epochs)
    assert not list(out.glob("checkpoints/*"))
