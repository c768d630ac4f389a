"""The file of a curve: read at any NFE, in Python, on the command line and by LD3Scheduler."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import call, elsewhere  # noqa: F401

import ld3_dist as ld3
from ld3_dist.core.learning.learn import make_config
from ld3_dist.core.solver import make_solver
from ld3_dist.schedule.baselines import hand_made
from ld3_dist.schedule.curves import check_curve, read_curve
from ld3_dist.schedule.file import Schedule, parse_schedule
from ld3_dist.schedule.starts import start_knots

MODEL = "analytic:mixture-2d?noise=flow"


@pytest.fixture(scope="module")
def model() -> ld3.Model:
    return ld3.load_model(MODEL)


@pytest.fixture(scope="module")
def pairs(model: ld3.Model) -> Any:
    return ld3.teach(model, n=12, teacher="unipc-3/10/karras")


@pytest.fixture(scope="module")
def curve(model: ld3.Model, pairs: Any) -> Schedule:
    return ld3.learn(
        model, "dpmpp-2", range(3, 6), pairs, procedure="curve", epochs=2, batch=3, points=4
    )


@pytest.fixture(scope="module")
def later(model: ld3.Model, pairs: Any) -> tuple[ld3.Model, Schedule]:
    """A curve whose start time was learned."""
    learned = ld3.learn(
        model, "dpmpp-2", range(3, 6), pairs, procedure="curve", starts=["later:log_snr"],
        epochs=2, batch=3, points=4,
    )  # fmt: skip
    return model, learned


def test_the_file_gives_back_the_curve(curve: Schedule, tmp_path: Path) -> None:
    curve.save(tmp_path / "any.json")
    read = ld3.load_schedule(tmp_path / "any.json")
    assert read == curve
    assert curve.curve is not None
    assert curve.curve["nfes"] == [3, 4, 5]
    assert (curve.nfe, curve.procedure) == (5, "curve")
    own = read.at(5)
    assert (own.knots, own.evals) == (curve.knots, curve.evals)
    torch.testing.assert_close(own.tableau.outputs, curve.tableau.outputs, rtol=1e-12, atol=0)
    assert own.curve is None
    assert own.at(5) is own


@pytest.mark.parametrize("nfe", [1, 3, 5, 7])
def test_a_learned_start_is_in_the_file(
    later: tuple[ld3.Model, Schedule], tmp_path: Path, nfe: int
) -> None:
    """Every NFE begins below t_max, with less noise than there; its file samples alike."""
    model, curve = later
    curve.save(tmp_path / "any.json")
    own = ld3.load_schedule(tmp_path / "any.json").at(nfe)
    assert parse_schedule(own.to_json()) == own
    assert own.knots[0] < model.noise.t_max
    assert own.state[0] == 1
    assert own.prior_scale < curve.noise_schedule.prior_scale
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        made = ld3_sample(model, own.table_for(model), noise)
        learned = read_curve(curve, make_solver("dpmpp-2")).tableau(nfe)[1].take(torch.tensor(0))
        torch.testing.assert_close(made, ld3_sample(model, learned, noise), rtol=1e-9, atol=1e-9)


def test_half_a_learned_start_is_refused(later: tuple[ld3.Model, Schedule]) -> None:
    body = json.loads(later[1].to_json())
    del body["curve"]["delay"]
    with pytest.raises(ld3.InputError, match=r"curve\.delay is missing: curve\.begin"):
        parse_schedule(json.dumps(body))


@pytest.mark.parametrize("nfe", [1, 3, 4, 7, 30])
def test_any_nfe_is_a_schedule_of_its_own(curve: Schedule, model: ld3.Model, nfe: int) -> None:
    """It validates itself, is written and read, samples, and has the losses that are known."""
    own = curve.at(nfe)
    assert (own.nfe, len(own.knots), len(own.evals)) == (nfe, nfe + 1, nfe)
    assert parse_schedule(own.to_json()) == own
    assert own.sample(model, 3).isfinite().all()
    known = nfe in (3, 4, 5)
    assert (own.losses.get("valid_loss") is not None) == known
    assert bool(own.baselines) == known
    assert own.versions["curve_learned_on"] == "3, 4, 5"


def test_the_losses_are_those_of_the_grids(curve: Schedule, model: ld3.Model, pairs: Any) -> None:
    """The first half of the pairs is held out."""
    from ld3_dist.core.distance import make_distance
    from ld3_dist.schedule.evaluating import measure

    assert curve.curve is not None
    for nfe in (3, 4, 5):
        found = measure(model, curve.at(nfe).table_for(model), pairs[:6], make_distance("l2"))
        told = curve.curve["losses"][str(nfe)]
        assert found.losses.mean().item() == pytest.approx(told, rel=1e-4)


def test_it_is_better_than_its_start(curve: Schedule) -> None:
    """In the geometric mean over the NFEs, by which it is chosen; the start is a candidate."""
    assert curve.curve is not None
    gains = [
        loss / curve.curve["baselines"][nfe]["log_snr"]
        for nfe, loss in curve.curve["losses"].items()
    ]
    assert math.prod(gains) < 1


def test_a_curve_as_start_and_as_baseline(
    curve: Schedule, model: ld3.Model, tmp_path: Path
) -> None:
    """Of any NFE, and of a solver with two evaluations a step."""
    curve.save(tmp_path / "any.json")
    place, student = str(tmp_path / "any.json"), make_solver("dpmpp-2")
    grid, table = hand_made(f"file:{place}", model, student, 6)
    assert grid.knots.tolist() == list(curve.at(6).knots)
    assert table.evals.tolist() == list(curve.at(6).evals)
    assert start_knots(place, model, student, 6).tolist() == list(curve.at(6).knots)
    assert start_knots(place, model, make_solver("heun"), 7).tolist() == list(curve.at(4).knots)
    frame = ld3.evaluate(model, [curve], 20, nfe=7, extractor="none")
    assert frame["nfe"].tolist()[1] == 7


def test_without_an_nfe_it_says_how_to_name_one(curve: Schedule, model: ld3.Model) -> None:
    with pytest.raises(ld3.InputError, match=r"any number of evaluations.*schedule\.at\(7\)"):
        curve.sample(model, 2)
    with pytest.raises(ld3.InputError, match=r"schedule\.at\(7\)"):
        ld3.evaluate(model, [curve], 20, extractor="none")


@pytest.mark.parametrize(
    ("solver", "nfe", "told"),
    [("heun", 1, "at least 2 for heun"), ("dpmpp-2", 0, "at least 1 for dpmpp-2"),
     ("dpmpp-2", 1001, "at most 1000")],
)  # fmt: skip
def test_an_nfe_that_the_solver_cannot_spend(
    curve: Schedule, solver: str, nfe: int, told: str
) -> None:
    order = make_solver(solver).order
    two = curve if solver == "dpmpp-2" else replace(curve, solver=solver, order=order)
    with pytest.raises(ld3.InputError, match=rf"nfe = {nfe}: .*{told}"):
        two.at(nfe)


def test_another_schedule_has_one_nfe(curve: Schedule) -> None:
    with pytest.raises(ld3.InputError, match=r"for 4 evaluations alone.*procedure: curve"):
        curve.at(4).at(6)


def test_the_solver_of_a_users_file_is_not_imported(curve: Schedule) -> None:
    own = replace(curve, solver="python:mine.py:rule", order=2)
    with pytest.raises(ld3.InputError, match="which no schedule file may"):
        own.at(4)
    assert own.at(4, make_solver("dpmpp-2")).knots == curve.at(4).knots


WRONG = [
    ("tilt", [0.0], "curve.tilt holds 1 numbers, need 4"),
    ("offsets", [0.0] * 4, "curve.offsets holds 4 numbers, need 5"),
    ("ends", [1.0, 0.0], "curve.ends"),
    ("window", 1.0, "curve.window"),
    ("coordinate", "sigma", "curve.coordinate"),
    ("nfes", [], "curve.nfes"),
    ("logits", ["x"], "curve.logits"),
    ("surprise", 1, "surprise"),
]


@pytest.mark.parametrize(("key", "value", "told"), WRONG, ids=[w[0] for w in WRONG])
def test_a_damaged_curve_is_refused_by_its_key(
    curve: Schedule, key: str, value: Any, told: str
) -> None:
    body = json.loads(curve.to_json())
    body["curve"][key] = value
    with pytest.raises(ld3.InputError, match=told.replace(".", r"\.")):
        parse_schedule(json.dumps(body))


def test_too_many_points_are_refused(curve: Schedule) -> None:
    assert curve.curve is not None
    many = {"logits": [0.0] * 65, "tilt": [0.0] * 65, "offsets": [0.0] * 66, "drift": [0.0] * 66}
    with pytest.raises(ld3.InputError, match="at most 64"):
        check_curve({**curve.curve, **many})


def test_files_of_one_grid_are_as_before(curve: Schedule) -> None:
    """The key is there for curves alone, so that other files stay as they are."""
    assert '"curve":' in curve.to_json()
    assert '"curve":' not in curve.at(4).to_json()


def test_several_nfes_need_the_curve(model: ld3.Model, pairs: Any) -> None:
    with pytest.raises(ld3.InputError, match=r"one NFE at a time.*procedure: curve"):
        ld3.learn(model, "ddim", [3, 4], pairs)
    with pytest.raises(ld3.InputError, match="each once"):
        ld3.learn(model, "ddim", [3, 3], pairs, procedure="curve")
    with pytest.raises(ld3.InputError, match=r"nfe = 1: .*at least 2 for heun"):
        ld3.learn(model, "heun", [1, 4], pairs, procedure="curve")
    with pytest.raises(ld3.InputError, match="coefficients"):
        make_config("curve", coefficients=True)


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """learn, export at an NFE that was not learned on, and what is refused."""
    learn = ("learn", "--model", MODEL, "--solver", "dpmpp-2", "--pairs", 4, "--device", "cpu")
    curve = ("--procedure", "curve", "--epochs", 1, "--set", "points=3")
    code, out, _ = call(monkeypatch, capsys, *learn, *curve, "--nfe", "3-4,6", "--out", "any.json")
    assert code == 0
    for nfe in (3, 4, 6):
        assert f"dpmpp-2, {nfe} evaluations" in out
    code, out, _ = call(monkeypatch, capsys, "export", "any.json", "--nfe", 5)
    assert code == 0
    assert len(json.loads(out)) == 6
    code, _, err = call(monkeypatch, capsys, "export", "any.json")
    assert code == 2
    assert "any.json" in err
    assert "--nfe 7" in err
    code, _, err = call(monkeypatch, capsys, "export", "any.json", "--nfe", 0)
    assert code == 2
    assert "at least 1 for dpmpp-2" in err
    for nfe, told in (
        ("3-", "write one number"), ("a", "write one number"), ("5-3", "must increase"),
        ("3,,4", "write one number"), ("3,3", "each once"), ("0-4", "nfe = 0"),
        ("4-2000", "at most 1000"), ("-3", "write one number"),
    ):  # fmt: skip
        code, _, err = call(
            monkeypatch, capsys, *learn, *curve, f"--nfe={nfe}", "--out", "other.json"
        )
        assert code == 2, nfe
        assert told in " ".join(err.split()), err
    code, _, err = call(monkeypatch, capsys, *learn, "--nfe", "3-4", "--out", "other.json")
    assert code == 2
    assert "procedure: curve" in " ".join(err.split())
    assert not Path("other.json").exists()


@pytest.mark.parametrize("nfe", [3, 7])
def test_the_scheduler_takes_any_number_of_steps(
    curve: Schedule, model: ld3.Model, nfe: int
) -> None:
    """The samples of our own loop at that NFE; the velocity of a flow is (x - x_0) / t."""
    pytest.importorskip("diffusers")
    from ld3_dist.integrations.diffusers import LD3Scheduler

    told = replace(curve, prediction="velocity")
    scheduler = LD3Scheduler(json.loads(told.to_json()))
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    for count in (nfe, 4, nfe):  # one after the other, in any order
        scheduler.set_timesteps(count)
        assert len(scheduler.timesteps) == count
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            at = x.new_full((5,), curve.at(count).evals[scheduler.step_index or 0])
            with torch.no_grad():
                velocity = (x - model.denoiser(x, at)) / at[:, None]
            (x,) = scheduler.step(velocity, t, x, return_dict=False)
        table = curve.at(count).table_for(model)
        with torch.no_grad():
            expected = ld3_sample(model, table, noise)
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ld3.InputError, match="nfe = 0"):
        scheduler.set_timesteps(0)
    again = LD3Scheduler.from_config(scheduler.config)
    again.set_timesteps(6)
    assert len(again.timesteps) == 6


def test_the_scheduler_begins_where_the_curve_does(later: tuple[ld3.Model, Schedule]) -> None:
    """Noise at the level of the start of each number of steps."""
    pytest.importorskip("diffusers")
    from ld3_dist.integrations.diffusers import LD3Scheduler

    curve = replace(later[1], prediction="velocity")
    scheduler = LD3Scheduler(json.loads(curve.to_json()))
    for count in (3, 7):
        scheduler.set_timesteps(count)
        own = curve.at(count)
        assert scheduler.init_noise_sigma == pytest.approx(own.prior_scale, rel=1e-9)
        assert scheduler.init_noise_sigma < curve.noise_schedule.prior_scale


def ld3_sample(model: ld3.Model, table: Any, noise: torch.Tensor) -> torch.Tensor:
    from ld3_dist.core.sample import initial_state, sample

    return sample(model.denoiser, table, initial_state(model.denoiser, noise))
