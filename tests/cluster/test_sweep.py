"""A whole sweep on a real local Ray: its tables, a second run, a run after an interruption, what is
refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from finished_sweeps import Finished, run
from tiny_sweep import changed, lasting, write
from unfolded import unfold

from ld3_dist import load_results, load_schedule
from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.experiment import load_experiment
from ld3_dist.models import load_model
from ld3_dist.report import write_report
from ld3_dist.store.lock import acquire
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import load_pairs
from ld3_dist.store.tables import read_table

RESULTS = ("rows", "evaluations", "schedules", "pairs", "samples")


def files_of(out: Path, *folders: str) -> dict[str, tuple[int, bytes]]:
    """(time of writing, content) of every file, by its name in the output folder."""
    found = sorted(
        file
        for folder in folders or RESULTS
        for file in (out / folder).rglob("*")
        if file.is_file()
    )
    return {
        str(file.relative_to(out)): (file.stat().st_mtime_ns, file.read_bytes()) for file in found
    }


def test_every_trial_and_baseline_has_its_rows(finished: Finished) -> None:
    frame = load_results(finished.out)
    assert frame.groupby(["cell", "kind"]).size().to_dict() == {
        ("analytic:mixture-2d/ddim/3", "learned"): 8,  # 2 values of gamma, 2 rounds, 2 seeds
        ("analytic:mixture-2d/ddim/3", "baseline"): 2,
        ("analytic:mixture-2d/ipndm-2/3", "learned"): 8,
        ("analytic:mixture-2d/ipndm-2/3", "baseline"): 2,
    }
    assert set(frame["status"]) == {"ok"}
    assert frame["key"].is_unique
    learned = frame[frame["kind"] == "learned"]
    assert learned.groupby(["cell", "gamma"])["trial"].nunique().eq(2).all()
    assert learned.groupby("trial")["round"].nunique().eq(1).all()
    assert learned.groupby(["cell", "gamma", "round"])["seed"].nunique().eq(2).all()
    assert set(learned["gamma"]) == {0, 0.01}
    assert learned["lr"].between(0.03, 0.3).all()
    assert learned["lr"].nunique() == 8  # one proposal a trial
    assert (learned["valid_loss"] <= learned["start_loss"]).all()
    assert (learned["epochs_run"] == 2).all()
    assert learned["valid_curve"].map(len).eq(3).all()
    assert learned["train_curve"].map(len).eq(2).all()
    assert frame["knots"].map(len).eq(4).all()
    needed = [
        "train_pairs",
        "valid_pairs",
        "model_hash",
        "version",
        "torch_version",
        "host",
        "device",
        "seconds",
        "settings",
    ]
    assert learned[needed].notna().all().all()
    assert (learned["train_pairs"] == 8).all()
    assert frame.groupby("cell")["best"].sum().eq(1).all()


def test_what_is_evaluated(finished: Finished) -> None:
    """Every baseline, all members of each cell's best trial, the teacher; from fresh samples."""
    frame = load_results(finished.out)
    measured = frame[frame["eval_loss"].notna()]
    assert measured.groupby("kind").size().to_dict() == {"baseline": 4, "learned": 4}
    assert (measured["samples"] == 40).all()
    best = frame[frame["best"]].set_index("cell")["trial"]
    chosen = measured[measured["kind"] == "learned"]
    assert (chosen["trial"] == chosen["cell"].map(best)).all()
    evaluations = read_table(open_storage(finished.out), "evaluations")
    teacher = evaluations[evaluations["kind"] == "teacher"]
    assert len(teacher) == 1
    assert teacher["eval_loss"].tolist() == [0.0]


def test_what_is_left_in_the_folder(finished: Finished) -> None:
    names = {file.name for file in finished.out.iterdir()}
    assert names >= {"experiment.json", "pairs", "rows", "evaluations", "schedules", "report"}
    assert not names & {"lock.json", ".ray", "failures"}
    assert not [file for file in finished.out.rglob("*") if ".tmp" in file.name]
    claim = json.loads((finished.out / "experiment.json").read_text())
    kept = json.loads((finished.out / "experiments" / f"{claim['current']}.json").read_text())
    assert kept["name"] == "tiny"
    assert set(load_results(finished.out)["experiment"]) == {kept["fingerprint"]}
    assert set(kept["asked"]["trials"]) == set(load_results(finished.out)["trial"].dropna())
    assert kept["asked"]["complete"]
    page = (finished.out / "report" / "index.html").read_text()
    assert "ipndm-2" in page
    assert "://" not in page.replace("http://www.w3.org", "")  # self-contained


def test_what_the_command_says(finished: Finished) -> None:
    said = ("teacher shards: 6/6", "trials: 8/8", "best held-out gain", "ipndm-2")
    for part in (*said, "report/index.html"):
        assert part in finished.stdout
    assert "Traceback" not in finished.stdout


def test_schedules_reproduce_their_rows(finished: Finished) -> None:
    """A schedule file alone, loaded and sampled by the one loop, gives the held-out loss of its
    row.
    """
    frame = load_results(finished.out)
    model = load_model("analytic:mixture-2d").denoiser
    (pairs,) = (finished.out / "pairs").iterdir()
    target = load_pairs(open_storage(pairs), 0, 8)["target"]
    noise = draw_noise(0, range(8), (2,))
    learned = frame[frame["kind"] == "learned"]
    for row in learned.to_dict("records"):
        schedule = load_schedule(finished.out / "schedules" / f"{row['key']}.json")
        assert schedule.row == row["key"]
        assert list(schedule.knots) == list(row["knots"])
        assert list(schedule.evals) == list(row["evals"])
        with torch.no_grad():
            made = sample(model, schedule.tableau, schedule.prior_scale * noise)
        assert (made - target).square().mean().item() == pytest.approx(row["valid_loss"], rel=1e-4)
        assert schedule.losses["valid_loss"] == row["valid_loss"]
    best = frame[frame["best"]].iloc[0]
    schedule = load_schedule(finished.out / "schedules" / f"{best['key']}.json")
    assert schedule.metrics["eval_loss"] == best["eval_loss"]
    assert set(schedule.baselines) == {"uniform", "karras"}


@pytest.mark.slow  # quicker: test_parts_and_the_whole_give_the_same_table
def test_fresh_sweeps_give_the_same_table_whatever_the_actors(
    finished: Finished, local_ray: None, tmp_path: Path
) -> None:
    """Two actors instead of one, another batch of driver and workers: equal rows, and byte-equal
    shards of pairs.
    """
    other = write(tmp_path, changed(name="other", resources={"actors": 2}))
    sweep, events = run(other, tmp_path / "out")
    assert sweep.failures == 0
    assert {event.stage for event in events} == {
        "teach",
        "baselines",
        "search",
        "evaluate",
        "score",
    }
    pd.testing.assert_frame_equal(
        lasting(tmp_path / "out"), lasting(finished.out), check_exact=True
    )
    shards, expected = (files_of(out, "pairs") for out in (tmp_path / "out", finished.out))
    assert {name: content for name, (_, content) in shards.items()} == {
        n: c for n, (_, c) in expected.items()
    }


def test_a_second_run_does_nothing_new(finished: Finished, local_ray: None) -> None:
    before = files_of(finished.out)
    sweep, events = run(finished.file, finished.out)
    assert files_of(finished.out) == before
    assert sweep.failures == 0
    assert [(e.stage, e.done, e.total) for e in events] == [("teach", 6, 6), ("search", 8, 8)]


@pytest.mark.slow  # quicker: a killed driver (test_cluster_failures), damaged files (test_check)
def test_an_interrupted_sweep_goes_on(finished: Finished, local_ray: None, tmp_path: Path) -> None:
    """Rows, evaluations, a schedule and a shard are gone, others half there: the same command gives
    the same table.
    """
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    keys = unfold(out, "rows")
    unfold(out, "evaluations")
    rows = sorted((out / "rows").glob("*.parquet"))
    learned = [file for file in rows if not file.name.startswith("baseline")]
    baselines = next(file for file in rows if file.name.startswith("baseline"))
    gone = (learned[0], learned[3], learned[5], baselines)
    for file in gone:
        file.unlink()
    learned[5].write_bytes(b"PAR1 and no more")
    evaluations = sorted((out / "evaluations").glob("*.parquet"))
    for file in evaluations[::2]:
        file.unlink()
    shards = sorted((out / "pairs").rglob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-20])
    shards[2].unlink()
    (out / "lock.json").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "start": "0", "heartbeat": 0.0})
    )
    sweep, events = run(finished.file, out)
    assert sweep.failures == 0
    assert any("made again" in event.message for event in events)
    pd.testing.assert_frame_equal(lasting(out), lasting(finished.out), check_exact=True)
    again, expected = (files_of(place, "pairs") for place in (out, finished.out))
    assert {name: content for name, (_, content) in again.items()} == {
        n: c for n, (_, c) in expected.items()
    }
    lost = [key for file in gone for key in keys[file.name]]
    began, before = (
        frame.set_index("key")["started"].drop(lost)
        for frame in (load_results(out), load_results(finished.out))
    )
    assert began.sort_index().equals(before.sort_index())  # all others were left alone


MODEL = '''
"""A mixture whose denoiser gives NaN in one window of times, and raises in another."""
import torch
from ld3_dist.core.noise import EDM
from ld3_dist.models.analytic.mixture import mixture_2d


class Broken:
    def __init__(self):
        self.inner = mixture_2d(EDM())
        self.noise, self.shape, self.decode = self.inner.noise, self.inner.shape, self.inner.decode

    def __call__(self, x, t, condition=None):
        if ((t > {low_raise}) & (t < {high_raise})).any():
            raise RuntimeError("out of memory, says the test")
        bad = ((t > {low_nan}) & (t < {high_nan}))[:, None]
        return torch.where(bad, torch.nan, self.inner(x, t))


def build(options):
    return Broken()
'''


def window(nfe: int, step: int) -> tuple[float, float]:
    """A narrow window around a knot of the log_snr grid, which the start of learning meets and the
    teacher does not.
    """
    from ld3_dist.core.grid import discretize
    from ld3_dist.core.noise import EDM

    knot = float(discretize(EDM(), nfe, "log_snr")[step])
    for other in (discretize(EDM(), 12, "karras"), discretize(EDM(), nfe, "karras")):
        assert ((other / knot).log().abs() > 0.01).all()
    return knot * 0.995, knot * 1.005


def test_diverging_and_crashing_trials_become_rows(local_ray: None, tmp_path: Path) -> None:
    """At 3 evaluations the start meets NaN, at 4 an exception: the sweep ends all the same, with
    rows.
    """
    (low_nan, high_nan), (low_raise, high_raise) = window(3, 1), window(4, 1)
    source = MODEL.format(
        low_nan=low_nan, high_nan=high_nan, low_raise=low_raise, high_raise=high_raise
    )
    (tmp_path / "broken_model.py").write_text(source)
    search = {
        "grid": {},
        "optuna": {"lr": [0.1, 0.2]},
        "rounds": 1,
        "members": {"seeds": 1, "starts": ["log_snr"]},
    }
    data = changed(
        search=search,
        models=[{"model": f"python:{tmp_path}/broken_model.py:build", "name": "broken"}],
    )
    file = write(tmp_path, data | {"solvers": ["ddim"], "nfe": [3, 4], "baselines": ["karras"]})
    sweep, events = run(file, tmp_path / "out")
    frame = load_results(tmp_path / "out")
    learned = frame[frame["kind"] == "learned"].set_index("nfe")
    diverged, failed = learned.loc[[3]], learned.loc[[4]]
    assert set(diverged["status"]) == {"diverged"}
    assert diverged["valid_loss"].isna().all()
    assert diverged["message"].str.contains("inf").all()
    assert diverged["knots"].map(len).eq(4).all()
    assert set(failed["status"]) == {"failed"}
    assert failed["message"].str.contains("says the test").all()
    assert frame[frame["kind"] == "baseline"]["status"].eq("ok").all()
    assert sweep.failures == len(failed)
    assert any("says the test" in event.message for event in events if event.stage == "search")
    reasons = read_table(open_storage(tmp_path / "out"), "failures")
    assert reasons["reason"].str.contains("says the test").all()
    assert reasons["traceback"].str.contains("RuntimeError").all()
    assert write_report(tmp_path / "out", figures=["distance"]).html


def refused(file: Path, out: Path) -> str:
    with pytest.raises(InputError) as caught:
        run(file, out)
    return str(caught.value)


def test_a_folder_of_a_newer_version_is_refused(
    finished: Finished, local_ray: None, tmp_path: Path
) -> None:
    kept = json.loads((finished.out / "experiment.json").read_text())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "experiment.json").write_text(json.dumps(kept | {"format": 99}))
    assert "newer ld3_dist (format 99)" in refused(finished.file, tmp_path / "out")


@pytest.mark.parametrize(
    ("resources", "parts"),
    [
        (
            {"gpus_per_trial": 99},
            ["resources.gpus_per_trial = 99", "no node has more than", "ask for less"],
        ),
        ({"gpus_per_actor": 99}, ["resources.gpus_per_actor = 99"]),
        ({"gpus_per_trial": 0.4}, ["resources.gpus_per_trial = 0.4", "1/2, 1/3"]),
        ({"gpus_per_trial": 1.5}, ["resources.gpus_per_trial = 1.5", "whole number"]),
        (
            {"cpus_per_trial": 4096},
            ["resources.cpus_per_trial = 4096", "no node has more than", "CPUs"],
        ),
    ],
)
def test_more_than_the_cluster_has_is_refused(
    local_ray: None, tmp_path: Path, resources: dict[str, Any], parts: list[str]
) -> None:
    message = refused(write(tmp_path, changed(resources=resources)), tmp_path / "out")
    for part in parts:
        assert part in message
    assert not files_of(tmp_path / "out", ".")


def test_an_unwritable_folder_is_refused(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    message = refused(write(tmp_path, changed()), tmp_path / "file" / "out")
    assert "cannot write to" in message
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    "model", ["digitz", "analytic:mixture-9d", "edm:missing.pkl", "python:no_such_module:build"]
)
def test_a_model_that_cannot_be_opened_is_refused(
    local_ray: None, tmp_path: Path, model: str
) -> None:
    message = refused(write(tmp_path, changed(models=[model])), tmp_path / "out")
    assert model.split(":")[-1].split(".")[0] in message or model in message
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(
    finished: Finished, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else: before models are opened, and before Ray is started."""
    from ld3_dist.cluster import sweep

    def never(*_: object) -> None:
        raise AssertionError("the folder is in use")

    monkeypatch.setattr(sweep, "connect", never)
    monkeypatch.setattr(sweep, "make_plan", never)
    with acquire(open_storage(tmp_path / "out")):
        before = files_of(tmp_path / "out", "rows", "pairs")
        assert "is in use by process" in refused(finished.file, tmp_path / "out")
        assert files_of(tmp_path / "out", "rows", "pairs") == before


@pytest.mark.slow
def test_a_driver_that_loses_its_lock_stops_writing(
    finished: Finished, local_ray: None, tmp_path: Path
) -> None:
    """It ends with a message, leaves the other's lock, and writes no more."""
    from ld3_dist.cluster.sweep import Sweep

    out = tmp_path / "out"
    other = {"host": "elsewhere", "pid": 7, "start": "x", "heartbeat": 4e9}
    sweep = Sweep(load_experiment(finished.file), open_storage(out))
    events = sweep.run()
    next(events)
    (out / "lock.json").write_text(json.dumps(other))
    assert sweep.lock is not None
    sweep.lock._looked -= 1e6  # as if the process had been stopped for long
    with pytest.raises(RuntimeError, match="process 7 on elsewhere has taken over"):
        list(events)
    assert json.loads((out / "lock.json").read_text()) == other
    assert not list((out / "rows").glob("*"))
    left = files_of(out, ".")
    (out / "lock.json").unlink()
    assert run(finished.file, out)[0].failures == 0
    assert set(left) - {"lock.json"} <= set(files_of(out, "."))
    pd.testing.assert_frame_equal(lasting(out), lasting(finished.out), check_exact=True)
