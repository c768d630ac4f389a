"""Schedules where they were not learned: ratios by hand, tables elsewhere, what is refused, what is
kept.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from schedules import coupled_schedule, one_thread  # noqa: F401

import ld3_dist as ld3
from ld3_dist import InputError
from ld3_dist.core.grid import Grid
from ld3_dist.core.noise import EDM, VPLinear
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.metrics.paired import compare
from ld3_dist.report.transfers import answer, matrix, matrix_lines, ratio_of
from ld3_dist.schedule import site_scores
from ld3_dist.schedule.elsewhere import table_in
from ld3_dist.schedule.file import Schedule
from ld3_dist.schedule.transferring import prepare, score

TWO = "analytic:mixture-2d"
WIDE = "wide=analytic:mixture-2d?std=0.3"
TEACHER = "ipndm-2/12/karras"


def at(name: str) -> ld3.Model:
    return ld3.load_model(name.partition("=")[2] if name == WIDE else name)


def of_two(nfe: int = 3, grid: str = "poly-5", solver: str = "ipndm-2") -> Schedule:
    return replace(coupled_schedule(EDM(), nfe, grid, solver), model=TWO)


def learned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["kind"] == "learned"].reset_index(drop=True)


def test_the_ratio_is_that_of_the_samples() -> None:
    """Losses, the best grid, ratio and interval, made again from noise, teacher and tables."""
    schedule = of_two()
    grids = ["karras", "uniform"]
    frame = ld3.transfer(
        schedule, [WIDE], samples=30, repeats=2, seed=3, teacher=TEACHER, baselines=grids
    )
    model = at(WIDE)
    noise = model.noise
    indices = [*range(10**9, 10**9 + 30), *range(10**9 + 10**7, 10**9 + 10**7 + 30)]
    x_T = 80.0 * draw_noise(3, indices, (2,))
    rule = make_solver("ipndm-2")
    teacher = ld3.teach(model, seed=3, teacher=TEACHER, indices=indices).target
    losses = {}
    for name in grids:
        knots = coupled_schedule(noise, 3, name, "ipndm-2").knots
        table = rule.tableau(noise, rule.coupled(noise, torch.tensor(knots, dtype=torch.float64)))
        losses[name] = ((sample(model.denoiser, table, x_T) - teacher) ** 2).mean(1)
    mine = ((sample(model.denoiser, schedule.tableau, x_T) - teacher) ** 2).mean(1)
    best = min(losses, key=lambda name: float(losses[name].mean()))
    expected = compare(mine.float().numpy(), losses[best].float().numpy())
    row = learned(frame).iloc[0]
    assert (row["against"], row["samples"], row["repeats"]) == (best, 60, 2)
    assert row["eval_loss"] == pytest.approx(float(mine.mean()), rel=1e-5)
    assert 1 / row["eval_gain"] == pytest.approx(expected.ratio.value, rel=1e-4)
    assert 1 / row["eval_gain_high"] == pytest.approx(expected.ratio.low, rel=1e-3)
    assert 1 / row["eval_gain_low"] == pytest.approx(expected.ratio.high, rel=1e-3)
    assert row["eval_p_improvement"] == expected.p_improvement
    middle = float(losses[best].median() / mine.median())
    assert row["eval_gain_median"] == pytest.approx(middle, rel=0.1)
    says = {True: "works", False: "does not"}
    decided = not expected.ratio.low <= 1 <= expected.ratio.high
    assert row["verdict"] == (says[expected.ratio.value < 1] if decided else "undecided")


def test_a_grid_against_itself_is_undecided_and_a_bad_one_does_not_work() -> None:
    same = of_two(4, "karras")
    bad = of_two(4, "quadratic")
    frame = learned(
        ld3.transfer([same, bad], samples=50, teacher=TEACHER, baselines=["karras", "log_snr"])
    )
    one = frame[frame["against"] == "karras"]
    assert len(one) == 2
    assert one.iloc[0]["verdict"] == "undecided"
    assert one.iloc[0]["eval_gain"] == pytest.approx(1.0)
    assert one.iloc[1]["verdict"] == "does not"


def test_another_solver_runs_the_same_times() -> None:
    model, schedule = at(TWO), of_two(4)
    knots, evals = (torch.tensor(v, dtype=torch.float64) for v in (schedule.knots, schedule.evals))
    shifted = replace(schedule, evals=tuple((0.9 * evals).tolist()))
    expected = make_solver("dpmpp-2").tableau(EDM(), Grid(knots, 0.9 * evals))
    found = table_in(shifted, model, "dpmpp-2")
    for name in ("evals", "state", "outputs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    own = table_in(replace(shifted, coefficients=True), model)
    torch.testing.assert_close(own.outputs, schedule.tableau.outputs)


def test_a_learned_start_keeps_its_level_in_another_solver() -> None:
    model, whole = at(TWO), of_two(4)
    t = torch.tensor(whole.knots, dtype=torch.float64)
    t[0] = 40.0
    table = make_solver("ipndm-2").tableau(EDM(), Grid(t, t[:-1]))
    late = replace(
        whole,
        knots=tuple(t.tolist()),
        evals=tuple(table.evals.tolist()),
        state=tuple(table.state.tolist()),
        outputs=tuple(map(tuple, table.outputs.tolist())),
        prior_scale=40.0,
    )
    same, other = table_in(late, model), table_in(late, model, "ipndm-2?lower_order_final=false")
    torch.testing.assert_close(same.state, other.state)
    torch.testing.assert_close(same.outputs, other.outputs)
    assert float(other.state[0]) == pytest.approx(0.5)


def vp(high: float = 80.0, low: float = 0.002) -> tuple[str, VPLinear]:
    """A VP model between the noise levels of an EDM one, by name."""
    lam = -torch.tensor([high, low], dtype=torch.float64).log()
    t_max, t_min = VPLinear().inverse(lam).tolist()
    return f"{TWO}?noise=vp-linear&t_max={t_max!r}&t_min={t_min!r}", VPLinear(
        t_max=t_max, t_min=t_min
    )


def test_a_mapped_schedule_gives_the_same_samples() -> None:
    """VE and VP paths at the same levels differ by the scale alone, where times are coupled."""
    schedule = of_two(5, "karras", "ddim")
    z = draw_noise(0, range(8), (2,)).double()
    there, noise = vp()
    model = ld3.load_model(there)
    with pytest.raises(InputError, match="--map lambda"):
        table_in(schedule, model)
    mapped = table_in(schedule, model, mapped=True)
    ve = sample(at(TWO).denoiser, schedule.tableau, 80.0 * z)
    # the same noise: y_0 / alpha is 80 z in both
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    first, last = noise.alpha(ends).tolist()
    found = sample(model.denoiser, mapped, first * 80.0 * z)
    torch.testing.assert_close(found / last, ve, rtol=1e-6, atol=1e-8)


def test_mapped_network_times_keep_their_level() -> None:
    schedule = of_two(5, "karras", "ddim")
    evals = list(schedule.evals)
    evals[2] = 0.7 * evals[2] + 0.3 * evals[3]
    there, noise = vp()
    mapped = table_in(replace(schedule, evals=tuple(evals)), ld3.load_model(there), mapped=True)
    expected = EDM().lam(torch.tensor(evals, dtype=torch.float64))
    torch.testing.assert_close(noise.lam(mapped.evals), expected)


def test_a_mapped_start_is_scaled_by_alpha() -> None:
    there, noise = vp()
    model = ld3.load_model(there)
    whole = of_two(3, "karras", "ddim")
    knots = (20.0, *whole.knots[1:])
    t = torch.tensor(knots, dtype=torch.float64)
    table = make_solver("ddim").tableau(EDM(), Grid(t, t[:-1]))
    late = replace(
        whole, knots=knots, evals=knots[:-1], prior_scale=20.0,
        state=tuple(table.state.tolist()), outputs=tuple(map(tuple, table.outputs.tolist())),
    )  # fmt: skip
    found = table_in(late, model, mapped=True)
    t_0 = noise.inverse(-torch.tensor(20.0, dtype=torch.float64).log())
    assert float(found.state[0]) == pytest.approx(20.0 * float(noise.alpha(t_0)), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({}, r"knots\[1\] = .* outside the"),
        ({"coefficients": True}, "learned coefficients belong to its own noise schedule"),
    ],
)
def test_what_cannot_be_mapped_is_named(change: dict, match: str) -> None:
    model = ld3.load_model(vp(high=5.0)[0])
    with pytest.raises(InputError, match=match):
        table_in(replace(of_two(6, "karras"), **change), model, mapped=True)


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be sampled before everything is checked")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"models": ["analytic:mixture-3d"]}, "did you mean 'mixture-2d'"),
        ({"models": ["base", "digitz"]}, "unknown model 'digitz'"),
        ({"models": [TWO, TWO]}, "given twice"),
        ({"guidance": [3.0, -1.0]}, "guidance -1.0"),
        ({"sizes": [(64, 64)]}, r"size=\(64, 64\) does not apply"),
        ({"dtypes": ["float16"]}, "dtype='float16' does not apply"),
        ({"dtypes": ["float4"]}, "unknown model dtype 'float4'"),
        ({"solvers": ["heun"]}, "heun needs 2 steps for 3 evaluations, the schedule has 3"),
        ({"solvers": ["ddmi"]}, "unknown solver"),
        ({"solvers": ["ddim", "ddim"]}, "ddim is given twice"),
        ({"models": ["vp=analytic:mixture-2d?noise=vp-linear"]}, "vp: schedule .*--map lambda"),
        ({"mapping": "time"}, "unknown mapping 'time'"),
        ({"baselines": []}, "name at least one"),
        ({"baselines": ["karas"]}, "did you mean 'karras'"),
        ({"samples": 1}, "samples = 1"),
        ({"repeats": 0}, "repeats = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"teacher": "unipc-3"}, "write it as solver/NFE/grid"),
        ({"distance": "l3"}, "unknown distance"),
        ({"prompts": "none.txt"}, "none.txt"),
        ({"sizes": [64]}, "size 64: give"),
        ({"guidance": ["3"]}, "guidance '3': must be a number"),
        ({"samples": 2.5}, "samples = 2.5: must be a whole number"),
        ({"guidance": [3.0], "models": ["analytic:gaussian"]}, "guidance=3.0"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    given: dict, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_scores, "teach", no_work)
    monkeypatch.setattr(site_scores, "measure", no_work)
    with pytest.raises(InputError, match=match):
        ld3.transfer(of_two(), **given)


def test_options_of_an_open_model_are_refused() -> None:
    with pytest.raises(InputError, match="is open already"):
        prepare([of_two()], [at(TWO)], guidance=[2.0])
    with pytest.raises(InputError, match="an open model stays in its process"):
        list(score(prepare([of_two()], [at(TWO)]), jobs=2))


def test_guidance_is_that_of_the_schedules_if_not_given() -> None:
    mixture = "analytic:mixture?means=-1,0;1,0.5&stds=0.2,0.3"
    guided = replace(of_two(), model=mixture, guidance=2.0)
    plain = replace(of_two(4), model=mixture, guidance=1.0)
    found = prepare([guided, plain])
    assert [str(site) for site in found.sites] == [f"{mixture}, guidance 2", mixture]
    assert [work.guidance for work in found.work] == [2.0, None]
    assert [len(work.entries) for work in found.work] == [2 * 4 + 2] * 2
    assert prepare([guided], guidance=[3.0, 5.0]).sites[1].guidance == 5.0


def test_what_is_done_is_kept_and_a_folder_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"samples": 12, "teacher": TEACHER, "baselines": ["karras"], "out": tmp_path}
    once = ld3.transfer(of_two(), ["base", WIDE], **given)
    monkeypatch.setattr(site_scores, "teach", no_work)
    again = ld3.transfer(of_two(), ["base", WIDE], **given)
    pd.testing.assert_frame_equal(once, again)
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(
        site_scores, "measure", lambda *a, **k: calls.append(1) or ld3_measure(*a, **k)
    )
    more = ld3.transfer([of_two(), of_two(3, "cosine")], ["base", WIDE], **given)
    assert len(calls) == 2  # the other schedule, at both sites
    rows = learned(more)
    first = rows[rows["schedule"] == rows["schedule"].iloc[0]]
    assert first["eval_loss"].tolist() == learned(once)["eval_loss"].tolist()


ld3_measure = site_scores.measure


def test_a_site_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from ld3_dist.schedule.teaching import Diverged

    def teach(model: ld3.Model, **given: object) -> object:
        if "std" in model.id:
            raise Diverged("1 of 12 samples of the teacher are not finite")
        return ld3.teach(model, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(site_scores, "teach", teach)
    frame = ld3.transfer(of_two(), ["base", WIDE], samples=12, teacher=TEACHER)
    rows = learned(frame)
    assert rows["status"].tolist() == ["ok", "failed"]
    assert "not finite" in rows["message"].iloc[1]
    assert pd.isna(rows["verdict"].iloc[1])


def test_losses_that_are_not_finite_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: object, **named: object) -> object:
        found = ld3_measure(*given, **named)  # type: ignore[arg-type]
        found.losses[0] = math.inf
        return found

    monkeypatch.setattr(site_scores, "measure", measured)
    frame = ld3.transfer(of_two(), samples=12, teacher=TEACHER, baselines=["karras"])
    assert frame["status"].tolist() == ["diverged", "diverged"]
    assert learned(frame)["verdict"].tolist() == ["does not"]


def test_grids_that_follow_trajectories_are_the_same_for_every_set() -> None:
    mixture = "analytic:mixture?means=-1,0;1,0.5&stds=0.2,0.3"
    guided = replace(of_two(), model=mixture, guidance=2.0)
    given = {"samples": 6, "teacher": TEACHER, "baselines": "gits"}
    one, two = (ld3.transfer(guided, repeats=r, **given) for r in (1, 2))
    assert one["status"].tolist() == ["ok", "ok"]
    assert one["key"].tolist() == two["key"].tolist()
    assert prepare([guided], **given).network_evals == 6 * (12 + 3 + 3) + 60 * 64


def test_two_samples_decide_nothing() -> None:
    """A resample of one sample twice has no spread: the interval is all there is above 0."""
    frame = learned(ld3.transfer(of_two(), samples=2, teacher=TEACHER, baselines="karras"))
    assert frame["verdict"].tolist() == ["undecided"]
    row = {str(name): value for name, value in frame.iloc[0].items()}
    ratio, low, high = ratio_of(row) or (math.nan,) * 3
    assert (low, high) == (0.0, math.inf)
    assert ratio == pytest.approx(1 / row["eval_gain"])
    assert "(0-∞) of the best hand-made grid here (karras): undecided" in answer(row)


@pytest.mark.slow  # two processes, each of which imports PyTorch
def test_processes_give_the_same_rows() -> None:
    given = {"samples": 8, "teacher": TEACHER, "baselines": ["karras"]}
    one, two = (ld3.transfer(of_two(), ["base", WIDE], jobs=jobs, **given) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_the_matrix_fits_a_terminal_and_has_every_cell() -> None:
    models = ["base", *(f"m{i}=analytic:mixture-2d?std=0.1{i}" for i in range(3))]
    frame = ld3.transfer(
        [of_two(), of_two(3, "cosine")], models, solvers=["ipndm-2", "ddim"],
        samples=8, teacher=TEACHER, baselines=["karras"],
    )  # fmt: skip
    found = matrix(frame)
    assert len(found.sites) == 8
    assert len(found.cells) == 16
    lines = list(matrix_lines(found, 72))
    assert max(map(len, lines)) <= 72
    assert [line[0] for line in lines if line[1:3] == "  " and line[0].isalpha()] == list(
        "ABCDEFGH"
    )
    marks = sum(mark in "+-?" for line in lines for word in line.split() for mark in word[-1:])
    assert marks >= 16
    values = learned(frame)["eval_gain"].to_numpy(float)
    assert np.isfinite(values).all()


# --- curves ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve() -> Schedule:
    pairs = ld3.teach(at(TWO), 12)
    made = ld3.learn(at(TWO), "ddim", [3, 5], pairs, starts=["karras"], procedure="curve", epochs=1)
    assert made.curve is not None
    return made


def test_a_curve_is_scored_at_every_nfe(curve: Schedule) -> None:
    """Each row is that of the schedule that the curve gives there, trained on or not."""
    common = {"samples": 20, "teacher": TEACHER, "baselines": ["karras"]}
    rows = learned(ld3.transfer(curve, [WIDE], nfe=[3, 4], **common))
    assert rows["nfe"].tolist() == [3, 4]
    for _, row in rows.iterrows():
        alone = learned(ld3.transfer(curve.at(int(row["nfe"])), [WIDE], **common)).iloc[0]
        assert row["schedule"].endswith(f" at {row['nfe']}")
        assert row["eval_loss"] == alone["eval_loss"]
        assert row["eval_gain"] == alone["eval_gain"]


def test_a_curve_without_an_nfe_and_an_nfe_without_a_curve(curve: Schedule) -> None:
    with pytest.raises(InputError, match=r"holds a curve .* say which \(--nfe 4-10\)"):
        prepare([curve])
    with pytest.raises(InputError, match="nfe: is given, and no schedule is a curve"):
        prepare([of_two()], nfe=4)
    with pytest.raises(InputError, match="nfe: 3 is given twice"):
        prepare([curve], nfe=[3, 3])
    with pytest.raises(InputError, match=r"at least 1 for ddim"):
        prepare([curve], nfe=[0])


def test_names_of_curves_differ_from_those_of_files(curve: Schedule, tmp_path: Path) -> None:
    """No schedule takes the place of another whose file happens to have its name."""
    curve.save(tmp_path / "any.json")
    of_two().save(tmp_path / "any at 4.json")
    files = [tmp_path / "any.json", tmp_path / "any at 4.json"]
    (work,) = prepare(files, nfe=[4], baselines=["karras"]).work
    assert [name for name, _ in work.named] == ["any at 4", "any at 4-2"]
