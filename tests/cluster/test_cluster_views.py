"""What a sweep shows: JSON lines, the file of studies, TensorBoard, the running best gain."""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from finished_sweeps import Contest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tiny_sweep import changed

from ld3_dist import load_results
from ld3_dist.cluster import logs
from ld3_dist.cluster.best_gain import BestGain, Place, place_of
from ld3_dist.cluster.search import trackers
from ld3_dist.cluster.search.searcher import CellSearcher
from ld3_dist.cluster.search.studies import NAME, StudyMirror
from ld3_dist.core.errors import InputError
from ld3_dist.core.text import file_name
from ld3_dist.experiment import Plan, TrialSpec, parse_experiment
from ld3_dist.experiment.contents import digest
from ld3_dist.store.opening import open_storage
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import write_table
from ld3_dist.tasks.trial import Outcome


def lines_of(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "logs").glob("*.jsonl"))
    return sorted(
        (json.loads(line) for f in files for line in f.read_text().splitlines()),
        key=lambda x: x["time"],
    )


def studies_in(file: Path) -> dict[str, list[optuna.trial.FrozenTrial]]:
    storage = JournalStorage(JournalFileBackend(str(file)))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage).trials for name in names}


@pytest.fixture(scope="module")
def finished(contest: Contest) -> Path:
    """A sweep whose driver was killed once, run again to its end, with TensorBoard."""
    assert contest.third.returncode == 0, contest.third.stderr[-2000:]
    return contest.out


def cells_of_tasks(frame: pd.DataFrame) -> dict[str, str]:
    """The cell of every trial whose members were learned together, by the name of that work."""
    learned = frame[frame["kind"] == "learned"].sort_values(["seed", "start"])
    return {
        digest([trial, rows["key"].tolist()]): rows["cell"].iloc[0]
        for trial, rows in learned.groupby("trial")
    }


def test_logs_tell_the_whole_story(finished: Path) -> None:
    lines = lines_of(finished)
    always = {"time", "event", "stage", "item", "role", "node", "address", "pid"}
    assert all(always <= set(line) for line in lines)
    about = [line for line in lines if line["stage"] == "sweep"]
    assert about[0]["event"] == "start"
    assert about[-1]["event"] == "end"
    assert about[-1]["seconds"] > 0
    assert set(about[0]["versions"]) == {"python", "ray", "torch", "ld3_dist"}
    for stage in ("teach", "search", "evaluate", "score"):
        mine = [
            line["event"] for line in lines if line["stage"] == stage and line["role"] == "driver"
        ]
        assert mine[0] == "start"
        assert mine[-1] == "end"
    work = [line for line in lines if line["role"] == "worker"]
    done = {(line["stage"], line["item"]) for line in work if line["event"] == "end"}
    trials = {item for stage, item in done if stage == "search"}
    rows = load_results(finished)
    assert trials == set(cells_of_tasks(rows))
    assert len([1 for stage, _ in done if stage == "teach"]) == 6
    assert {item for stage, item in done if stage == "baselines"} == {
        f"baselines-{cell}" for cell in set(rows["cell"])
    }
    assert all(line["seconds"] >= 0 for line in work if line["event"] == "end")


def test_studies_open_in_optuna_and_its_dashboard(finished: Path) -> None:
    """Finished trials once each, also after a kill and a second run, with the objectives of the
    rows.
    """
    studies = studies_in(finished / NAME)
    frame = load_results(finished).query("kind == 'learned'")
    assert set(studies) == set(frame["cell"])
    for cell, trials in studies.items():
        keys = [trial.user_attrs["trial"] for trial in trials]
        here = frame[frame["cell"] == cell]
        assert sorted(keys) == sorted(set(here["trial"]))
        for trial in trials:
            rows = here[here["trial"] == trial.user_attrs["trial"]]
            assert trial.state.name == "COMPLETE"
            assert trial.value == pytest.approx(
                rows["valid_loss"].map(math.log).mean()
            )  # one row a seed
            assert trial.params["lr"] == rows["lr"].iloc[0]
            assert trial.user_attrs["round"] == rows["round"].iloc[0]
    dashboard = pytest.importorskip("optuna_dashboard", reason="needs the dev extra")
    served = dashboard.wsgi(JournalStorage(JournalFileBackend(str(finished / NAME))))

    def get(path: str) -> dict[str, Any]:
        request = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "wsgi.input": io.BytesIO(),
            "SERVER_NAME": "x",
            "SERVER_PORT": "1",
            "wsgi.url_scheme": "http",
        }
        return json.loads(b"".join(served(request, lambda status, headers, error=None: None)))

    found = {
        study["study_name"]: study["study_id"] for study in get("/api/studies")["study_summaries"]
    }
    assert set(found) == set(studies)
    for cell, number in found.items():
        assert len(get(f"/api/studies/{number}")["trials"]) == len(studies[cell])


def tags_in(folder: Path) -> dict[str, float]:
    """The last value of every scalar of a trial."""
    from tensorboardX.proto.event_pb2 import Event

    tags = {}
    for file in folder.glob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:  # a record: its length, a checksum, the event, a checksum
            length = int.from_bytes(data[:8], "little")
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            tags |= {value.tag: value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return tags


def test_tensorboard_has_every_trial_that_the_driver_heard_of(finished: Path) -> None:
    """A trial that had its rows when the driver was killed, but had not yet been reported, is not
    run again.
    """
    cells = cells_of_tasks(load_results(finished))
    top = finished / "logs" / "tensorboard"
    tags = {key: tags_in(top / file_name(cell) / key) for key, cell in cells.items()}
    reported = {
        key
        for key, values in tags.items()
        if math.isfinite(values.get("ray/tune/objective", math.nan))
    }
    lines = lines_of(finished)
    resumed = max(
        line["time"] for line in lines if line["stage"] == "sweep" and line["event"] == "start"
    )
    ends = {
        line["item"]: line["time"]
        for line in lines
        if line["stage"] == "search" and line["event"] == "end"
    }
    assert reported
    assert all(ends[key] < resumed for key in set(cells) - reported)


def test_nothing_of_this_machine_is_left(finished: Path) -> None:
    assert not (finished / ".ray").exists()
    assert not [file for file in finished.rglob("*") if file.name.startswith(".tmp")]


class Store:
    """A storage of an object store's kind: no folder; counts what is written."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.local_path, self.url, self.writes, self.full = None, "mem://x", 0, False

    def write_bytes(self, name: str, data: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.files[name], self.writes = data, self.writes + 1

    def exists(self, name: str) -> bool:
        return name in self.files


def test_log_segments_are_whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FULL", 3)
    store: Any = Store()
    with logs.driver_log(store) as log:
        for i in range(7):
            logs.write("end", "teach", f"shard {i}", at_once=True, seconds=0.5)
        bodies = [store.files[name].decode().splitlines() for name in sorted(store.files)]
        assert [len(body) for body in bodies] == [3, 3, 1]
        assert [json.loads(line)["item"] for body in bodies for line in body] == [
            f"shard {i}" for i in range(7)
        ]
        log.flush()
    assert store.writes == 7  # nothing new, nothing written
    logs.write("end", "teach", "after the sweep", at_once=True)
    assert store.writes == 7


def test_a_log_that_cannot_be_written_stops_nobody_and_loses_nothing() -> None:
    store: Any = Store()
    with logs.driver_log(store):
        store.full = True
        with pytest.raises(ZeroDivisionError), logs.timed("search", "k", attempt=2):
            raise ZeroDivisionError("x")
        store.full = False
    (body,) = store.files.values()
    start, error = map(json.loads, body.decode().splitlines())
    assert (start["event"], error["event"], error["attempt"]) == ("start", "error", 2)
    assert error["reason"] == "ZeroDivisionError: x"


def test_what_the_package_logs_becomes_lines_of_the_work_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Warnings are kept for the terminal as well; secrets are masked in both."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    store: Any = Store()
    level = logs.LOGGER.level
    with logs.driver_log(store) as log:
        with logs.timed("search", "k"):
            logging.getLogger("ld3_dist.core").info("kept %d", 3)
            logging.getLogger("ld3_dist").warning("token 0123456789abcdef of %s", "s3://K:S@b/x")
        logging.getLogger("ld3_dist").warning("outside")
        first, second = log.take_warnings()
        assert log.take_warnings() == []
    assert first.startswith("search k on ")
    assert first.endswith(": token *** of s3://***@b/x")
    assert second == "outside"
    (body,) = store.files.values()
    lines = [json.loads(line) for line in body.decode().splitlines()]
    assert [(line["event"], line["item"], line.get("message")) for line in lines] == [
        ("start", "k", None),
        ("note", "k", "kept 3"),
        ("warning", "k", "token *** of s3://***@b/x"),
        ("end", "k", None),
        ("warning", None, "outside"),
    ]
    assert logs.LOGGER.level == level
    assert not [h for h in logs.LOGGER.handlers if isinstance(h, logs.SweepHandler)]


def test_the_mirror_is_rebuilt_and_never_shrinks_to_a_part(tmp_path: Path) -> None:
    """Finished, failed and found trials once each; a run that adds nothing changes nothing."""
    experiment = parse_experiment(changed())
    plan = Plan(experiment, {model.label: "h" for model in experiment.models})
    storage, outcomes = open_storage(tmp_path), dict[str, Outcome]()

    def run(limit: int) -> StudyMirror:
        mirror = StudyMirror(storage)
        ready = {model.label for model in experiment.models}

        def look(spec: TrialSpec, task: str | None) -> Outcome | TrialSpec:
            return outcomes.get(spec.key, spec)

        searcher = CellSearcher(plan, look, ready, 9, mirror)
        pickle.dumps(mirror)
        for number in range(limit):
            given = searcher.suggest(str(number))
            if not isinstance(given, dict):
                break
            key = searcher.live[str(number)].spec.key
            first = given["round"] == 0 and json.loads(given["settings"])["learn"]["gamma"] == 0
            if not first:
                outcomes[key] = Outcome(key, float(number), (1.0, math.inf), "ok")
            searcher.on_trial_complete(str(number), {"objective": float(number)}, error=first)
        mirror.write()
        return mirror

    run(3)
    assert sum(map(len, studies_in(tmp_path / NAME).values())) == 3
    run(99)
    studies = studies_in(tmp_path / NAME)
    assert [len(trials) for trials in studies.values()] == [4, 4]
    for trials in studies.values():
        assert len({trial.user_attrs["trial"] for trial in trials}) == 4
        found = {(t.user_attrs["round"], t.params["gamma"]): t.state.name for t in trials}
        assert found == {
            (0, 0): "FAIL", (0, 0.01): "COMPLETE", (1, 0): "COMPLETE", (1, 0.01): "COMPLETE"
        }  # fmt: skip
        assert {
            tuple(t.user_attrs["valid_losses"]) for t in trials if t.state.name == "COMPLETE"
        } == {(1.0, None)}
    before = (tmp_path / NAME).read_bytes()
    keys = [trial.user_attrs["trial"] for trials in studies.values() for trial in trials]
    outcomes |= {key: Outcome(key, 1.0, (1.0,), "ok") for key in keys}
    assert not run(99).new
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_tracker_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    experiment = parse_experiment(changed(resources={"callbacks": [name]}))
    with pytest.raises(
        InputError, match=rf"resources.callbacks: {name} needs .*ld3_dist\[{name}\]"
    ):
        trackers.check_trackers(experiment)


def row(
    storage: Storage, key: str, cell: str, kind: str, loss: float | None, status: str = "ok"
) -> None:
    record = {"key": key, "cell": cell, "kind": kind, "valid_loss": loss, "status": status}
    record |= {"distance": "l2", "teacher": "t", "teacher_solver": "unipc-3", "teacher_nfe": 20}
    write_table(storage, "rows", key, [record | {"teacher_start": "karras"}])


def place(cell: str, **changes: Any) -> Place:
    """The place of a trial of the plain teacher and distance."""
    teacher = {"solver": "unipc-3", "nfe": 20, "start": "karras"}
    return place_of(cell, {"distance": "l2", "teacher": teacher} | changes)


def test_best_gain_reads_the_tables_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    row(storage, "b1", "a", "baseline", 0.4)
    row(storage, "b2", "a", "baseline", 0.2)
    row(storage, "b3", "b", "baseline", 10.0)
    best = BestGain(storage)
    assert best.value is None
    best.add(place("a"), (0.1,))
    assert best.value is None  # not yet compared with anything
    row(storage, "l0", "a", "learned", 0.1)
    best = BestGain(storage)
    best.read()
    assert best.value == pytest.approx(2.0)
    monkeypatch.setattr(type(storage), "list", None)
    monkeypatch.setattr(type(storage), "read_bytes", None)
    for cell, losses, value in [
        ("a", (0.15, math.inf), 2.0),
        ("b", (math.inf, 2.0), 5.0),
        ("c", (1e-9,), 5.0),  # a cell without a baseline has no gain
        ("a", (), 5.0),
    ]:
        best.add(place(cell), losses)
        assert best.value == pytest.approx(value)
    other = {"solver": "unipc-3", "nfe": 50, "start": "karras"}
    best.add(place("a", teacher=other), (1e-9,))  # a distance to something else
    assert best.value == pytest.approx(5.0)
    monkeypatch.undo()
    for i, (cell, loss) in enumerate([("a", 0.15), ("b", 2.0), ("c", 1e-9)]):
        row(storage, f"l{i + 1}", cell, "learned", loss)
    assert best.value == pytest.approx(
        load_results(storage)["gain"].where(lambda g: g.notna()).max()
    )
