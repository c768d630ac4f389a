"""Schedules as lists for other tools: the numbers those tools mean, and every loss named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ld3_dist.cli import app as cli
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import AYS, Grid, discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPDiscrete, VPLinear
from ld3_dist.core.solver import make_solver
from ld3_dist.integrations.export import FORMATS, export
from ld3_dist.schedule.export import export_comfyui, export_sigmas, export_timesteps, lost
from ld3_dist.schedule.file import Schedule, noise_to_dict

STABLE_DIFFUSION = (
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
).cumprod(0)
SD = VPDiscrete(STABLE_DIFFUSION)


def schedule(
    noise: NoiseSchedule,
    solver_name: str = "dpmpp-2",
    nfe: int = 5,
    start: str = "karras",
    **more: Any,
) -> Schedule:
    solver = make_solver(solver_name)
    knots = discretize(noise, solver.steps(nfe), start)
    evals = torch.tensor(
        more.pop("evals", solver.nominal(noise, knots, nfe).tolist()), dtype=torch.float64
    )
    table = solver.tableau(noise, Grid(knots, evals))
    values: dict[str, Any] = {"model": "tiny", "prior_scale": noise.prior_scale, **more}
    return Schedule(
        knots=knots.tolist(),
        evals=evals.tolist(),
        state=table.state.tolist(),
        outputs=table.outputs.tolist(),
        noise=noise_to_dict(noise),
        solver=solver_name,
        nfe=nfe,
        **values,
    )


def test_sigmas_are_noise_over_signal() -> None:
    given = export_sigmas(schedule(SD, nfe=10, start="ays-sd15"))
    table = ((1 - STABLE_DIFFUSION) / STABLE_DIFFUSION).sqrt()
    assert given == pytest.approx(
        [float(table[-1]), *AYS["ays-sd15"][1:-1], float(table[0])], rel=1e-6
    )
    assert export_sigmas(schedule(EDM())) == pytest.approx(discretize(EDM(), 5, "karras").tolist())
    flow = schedule(FlowMatching(), start="uniform")
    assert export_sigmas(flow) == list(flow.knots)
    with pytest.raises(
        InputError, match=r"knots\[0\] = 1 is pure noise \(vp-discrete\).*--format timesteps"
    ):
        export_sigmas(schedule(VPDiscrete(torch.linspace(0.99, 0.0, 20)), "ddim", start="uniform"))


def test_timesteps_are_the_network_times() -> None:
    moved = [1.0, 0.6123, 0.41, 0.2, 0.05]
    assert export_timesteps(schedule(SD, evals=moved)) == pytest.approx(
        [1000 * t - 1 for t in moved]
    )
    assert export_timesteps(schedule(FlowMatching(), evals=moved)) == pytest.approx(
        [1000 * t for t in moved]
    )
    assert export_timesteps(schedule(FlowMatching(), evals=moved), steps=100)[1] == pytest.approx(
        61.23
    )
    for noise in (EDM(), VPLinear()):
        with pytest.raises(
            InputError, match=f"noise {noise.name!r} has no network steps.*--format sigmas"
        ):
            export_timesteps(schedule(noise))


def test_comfyui_line() -> None:
    parts = export_comfyui(schedule(SD)).split(", ")
    assert parts[-1] == "0"
    assert [float(part) for part in parts[:-1]] == pytest.approx(
        export_sigmas(schedule(SD))[:-1], rel=1e-5
    )


def test_both_lists_run_an_euler_flow_schedule_in_a_stock_scheduler() -> None:
    diffusers = pytest.importorskip("diffusers")
    evals = [1.0, 0.8123, 0.55, 0.3, 0.11]
    given = schedule(FlowMatching(t_min=0.0), "euler", start="uniform", evals=evals)
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    stock.set_timesteps(sigmas=export_sigmas(given)[:-1], timesteps=export_timesteps(given))
    assert stock.sigmas.tolist() == pytest.approx(given.knots)
    assert stock.timesteps.tolist() == pytest.approx([1000 * t for t in evals])

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(3 * x) * (0.5 + t)

    x = x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in stock.timesteps:
        x = stock.step(velocity(x, float(t) / 1000), t, x).prev_sample
    y, history = x_T, []
    for i, t in enumerate(evals):
        history.append(y - t * velocity(y, t))
        y = given.state[i + 1] * x_T + sum(
            c * m for c, m in zip(given.outputs[i + 1], history, strict=False)
        )
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_every_loss_is_named() -> None:
    plain = lost(schedule(SD), "sigmas")
    assert len(plain) == 1
    assert "learned for dpmpp-2, 5 network evaluations" in plain[0]
    assert "nearest is dpmpp_2m" in plain[0]
    nominal = discretize(SD, 5, "karras")[:-1].tolist()
    moved = [*nominal[:2], nominal[2] + 0.012, *nominal[3:]]
    full = schedule(SD, evals=moved, coefficients=True, guidance=7.5)
    text = "\n".join(lost(full, "sigmas"))
    assert (
        "network times are dropped: the tool asks the network at the step times, up to 12 steps "
        "(evaluation 2" in text
    )
    assert "learned coefficients are dropped" in text
    assert "guidance is not in the list: it was learned with 7.5" in text
    assert "step times are dropped" in "\n".join(lost(full, "timesteps"))
    assert "round them to integers" in "\n".join(lost(full, "timesteps"))
    assert "goes to 0 instead of sigma = 0.029" in "\n".join(lost(full, "comfyui"))
    assert "no close relative" in "\n".join(lost(schedule(SD, "deis-2-lam"), "sigmas"))
    assert "last step spends one" in "\n".join(lost(schedule(SD, "heun"), "sigmas"))
    assert "shift to 1" in "\n".join(lost(schedule(FlowMatching()), "sigmas"))


def test_diffusers_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from ld3_dist.integrations.diffusers import LD3Scheduler

    given = schedule(SD, model=f"diffusers:{folders['sd']}", coefficients=True)
    written = export(given, "diffusers", tmp_path / "out")
    assert (written.text, written.lost) == (str(tmp_path / "out"), ())
    loaded = LD3Scheduler.from_pretrained(str(tmp_path / "out"))
    assert (loaded.schedule, loaded.config["prediction_type"]) == (given, "epsilon")
    assert export(given, "diffusers", tmp_path / "named", str(folders["pixel"]))
    with pytest.raises(
        InputError, match="that of the pipeline's FlowMatchEulerDiscreteScheduler is flow"
    ):
        export(given, "diffusers", tmp_path / "wrong", str(folders["flux"]))
    with pytest.raises(
        InputError, match="'tiny' is no diffusers pipeline; name the one it is for with --pipeline"
    ):
        export(schedule(SD), "diffusers", tmp_path / "third")
    with pytest.raises(InputError, match=r"scheduler_config\.json cannot be read"):
        export(given, "diffusers", tmp_path / "third", str(tmp_path))
    with pytest.raises(InputError, match="exists already; name another folder, or add --force"):
        export(given, "diffusers", tmp_path / "out")
    assert export(given, "diffusers", tmp_path / "out", force=True).text == written.text
    # a pipeline that was saved with an LD3Scheduler
    export(given, "diffusers", tmp_path / "own" / "scheduler")
    again = export(given, "diffusers", tmp_path / "again", str(tmp_path / "own"))
    second = LD3Scheduler.from_pretrained(again.text)
    assert (second.schedule, second.config["prediction_type"]) == (given, "epsilon")
    with pytest.raises(InputError, match="name it with --out"):
        export(given, "diffusers")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        export(given, "diffusers", tmp_path / "file")


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ld3-dist", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given, file = schedule(SD, coefficients=True), tmp_path / "s.json"
    given.save(file)
    code, out, err = run(monkeypatch, capsys, file)  # stdout is the list and nothing else
    assert (code, json.loads(out)) == (0, export_sigmas(given))
    assert "Warning: learned coefficients are dropped" in err
    code, out, _ = run(
        monkeypatch, capsys, file, "--format", "timesteps", "--out", tmp_path / "t.json"
    )
    assert code == 0
    assert "t.json" in out
    assert json.loads((tmp_path / "t.json").read_text()) == export_timesteps(given)
    code, out, _ = run(monkeypatch, capsys, file, "--format", "comfyui")
    assert (code, out.strip()) == (0, export_comfyui(given))
    for wrong, message in (
        (
            (file, "--format", "comfy"),
            "unknown --format 'comfy': did you mean 'comfyui'? One of sigmas, timesteps",
        ),
        ((tmp_path / "absent.json",), "absent.json: no such schedule file"),
        (
            (file, "--out", tmp_path / "no" / "x"),
            "its folder does not exist; create it, or name another",
        ),
        ((file, "--out", file), "is the file that the command reads; name another file"),
        ((file, "--out", file, "--force"), "is the file that the command reads"),
        ((file, "--out", tmp_path / "t.json"), "t.json: exists already; name another file"),
        ((file, "--out", tmp_path), "is a folder; name a file"),
        ((file, "--out", ""), "--out"),
        ((file, "--pipeline", "x"), "--pipeline x: does not apply to --format sigmas"),
    ):
        code, out, err = run(monkeypatch, capsys, *wrong)
        assert (code, out) == (2, "")
        assert message.lower() in err.lower()
        assert "Traceback" not in err
    assert file.read_text() == given.to_json()
    assert json.loads((tmp_path / "t.json").read_text()) == export_timesteps(given)
    assert run(monkeypatch, capsys, file, "--out", tmp_path / "t.json", "--force")[0] == 0
    assert json.loads((tmp_path / "t.json").read_text()) == export_sigmas(given)
    assert FORMATS == ("sigmas", "timesteps", "comfyui", "diffusers", "comfyui-node")
