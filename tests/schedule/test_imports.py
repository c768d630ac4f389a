"""Published schedules: tables against the authors' loops, lists against their rules, bad files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from published_files import dyweight_file, epd_file, model_of
from schedules import one_thread  # noqa: F401
from torch import Tensor

import ld3_dist as ld3
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import AYS, discretize
from ld3_dist.core.noise import (
    EDM,
    FlowMatching,
    NoiseSchedule,
    VPDiscrete,
    VPLinear,
)
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import mixture_2d
from ld3_dist.schedule.file import load_schedule, parse_schedule
from ld3_dist.schedule.imports import import_schedule
from ld3_dist.schedule.imports.lists import knots_of
from ld3_dist.schedule.sampling import make_samples

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
NOISES = [EDM(), VPLinear(), VPDiscrete(ALPHAS)]
named = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
Z = draw_noise(4, range(8), (2,)).double()


def level(noise: NoiseSchedule, t: float) -> float:
    at = torch.tensor(t, dtype=torch.float64)
    return float(noise.sigma(at) / noise.alpha(at))


def ends_of(noise: NoiseSchedule) -> tuple[float, float]:
    return level(noise, noise.t_min), level(noise, noise.t_max)


def exploding(noise: NoiseSchedule) -> Callable[[Tensor, float], Tensor]:
    """The network as the authors wrap it: D(x, sigma) with x = x_0 + sigma z."""
    mixture = mixture_2d(noise)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        t = noise.inverse(-torch.tensor(sigma, dtype=torch.float64).log())
        return mixture(noise.alpha(t) * x, t.expand(len(x)))

    return denoise


def karras(noise: NoiseSchedule, steps: int, rho: float = 7.0) -> list[float]:
    low, high = ends_of(noise)
    parts = [i / steps for i in range(steps + 1)]
    return [(high ** (1 / rho) * (1 - u) + low ** (1 / rho) * u) ** rho for u in parts]


def run_dyweight(
    noise: NoiseSchedule, weights: Tensor, scales: list[float], analytic: bool, grid: list[float]
) -> Tensor:
    """The authors' loop, in the variance-exploding frame."""
    denoise, x, here, slopes = exploding(noise), Z * grid[0], grid[0], []
    for i, there in enumerate(grid[1:]):
        if analytic and i == 0:
            slopes.append(x / math.sqrt(1 + here**2))
        else:
            slopes.append((x - denoise(x, abs(scales[i - analytic] * here))) / here)
        x = x + (there - here) * sum(float(weights[i, j]) * slopes[j] for j in range(i + 1))
        here = here + float(weights[i, : i + 1].sum()) * (there - here)
    return x


@pytest.mark.parametrize("analytic", [False, True])
@named
def test_dyweight_gives_its_authors_samples(
    tmp_path: Path, format_modules: None, noise: NoiseSchedule, analytic: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (torch.eye(4) + 0.2 * torch.rand(4, 4, generator=generator)).tril() / 1.3
    scales = [0.97, 1.02, 0.99] if analytic else [0.96, 1.02, 0.99, 1.01]
    file = dyweight_file(tmp_path / "a.pkl", weights, torch.tensor(scales), analytic)
    model = model_of(noise)
    found = import_schedule(file, "dyweight", model)
    schedule = parse_schedule(found.schedule.to_json())
    assert schedule.nfe == 4 - analytic
    made = make_samples(model, schedule.table_for(model), Z)
    theirs = run_dyweight(noise, weights, scales, analytic, karras(noise, 4))
    end = noise.alpha(torch.tensor(noise.t_min, dtype=torch.float64))
    torch.testing.assert_close(made, end * theirs, rtol=0, atol=2e-6)
    source = schedule.versions["imported_from"] or ""
    assert "DyWeight (arXiv 2603.11607): a.pkl, sha256 " in source
    assert source.endswith("learned for cifar10")
    assert (schedule.procedure, schedule.coefficients) == ("dyweight", True)


@pytest.mark.parametrize("grid", ["logsnr", "discrete", "time_uniform"])
def test_the_other_grids_of_dyweight(tmp_path: Path, format_modules: None, grid: str) -> None:
    noise, steps = VPLinear(), 5
    rho = 1.0 if grid == "discrete" else 2.0
    weights = torch.eye(steps)
    file = dyweight_file(tmp_path / "a.pkl", weights, None, schedule_type=grid, schedule_rho=rho)
    found = import_schedule(file, "dyweight", model_of(noise)).schedule
    low, high = ends_of(noise)
    u = numpy.linspace(0, 1, steps + 1)
    if grid == "logsnr":
        expected = numpy.exp(numpy.linspace(numpy.log(high), numpy.log(low), steps + 1))
    elif grid == "discrete":
        expected = [level(noise, t) for t in numpy.linspace(1.0, 1e-3, steps + 1)]
    else:  # the schedule is linear itself, so that its own times come out
        expected = [level(noise, t) for t in (1 + u * (1e-3 ** (1 / rho) - 1)) ** rho]
    assert [level(noise, t) for t in found.knots] == pytest.approx(list(expected), rel=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@named
def test_epd_gives_its_authors_samples(
    tmp_path: Path, format_modules: None, noise: NoiseSchedule, scaled: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    names = ("r_params", "weight_s", "scale_dir_params", "scale_time_params")
    raw = {name: torch.randn(3, 2, generator=generator) for name in names}
    widths = {"scale_dir": 0.1, "scale_time": 0.05} if scaled else {}
    file = epd_file(tmp_path / "b.pkl", raw, **widths)
    model = model_of(noise)
    found = import_schedule(file, "epd", model, "heun")
    grid, denoise = karras(noise, 3), exploding(noise)
    x = Z * grid[0]
    for i, (here, there) in enumerate(itertools.pairwise(grid)):
        slope = (x - denoise(x, here)) / here
        weight = torch.softmax(raw["weight_s"][i].double(), 0)
        step = torch.zeros_like(x)
        for j in range(2):
            r = float(torch.sigmoid(raw["r_params"][i, j].double()))
            middle = there**r * here ** (1 - r)
            inner = x + (middle - here) * slope
            factor = {
                name: 2 * float(torch.sigmoid(0.5 * raw[f"{name}_params"][i, j].double())) * width
                + 1
                - width
                for name, width in widths.items()
            }
            out = denoise(inner, factor.get("scale_time", 1.0) * middle)
            step += float(weight[j]) * factor.get("scale_dir", 1.0) * (inner - out) / middle
        x = x + (there - here) * step
    assert found.schedule.nfe == 9
    made = make_samples(model, found.schedule.table_for(model), Z)
    end = noise.alpha(torch.tensor(noise.t_min, dtype=torch.float64))
    torch.testing.assert_close(made, end * x, rtol=0, atol=1e-6)


def test_flow_checkpoints(tmp_path: Path, format_modules: None) -> None:
    """FLUX's DyWeight: a torch file without a grid; its grid ends at 0, and the shift is given."""
    noise = FlowMatching()
    model, mixture = model_of(noise), mixture_2d(noise)
    weights = torch.tensor([[0.9, 0.0, 0.0], [-0.1, 1.0, 0.0], [0.0, -0.1, 0.95]])
    scales = torch.tensor([1.02, 0.98, 0.99])
    content = {"window_size": 2, "dyweight_weights_raw": weights, "dyweight_t_scales": scales}
    file = tmp_path / "c.pt"
    torch.save(content | {"dyweight_meta": {"K": 3}}, file)
    with pytest.raises(InputError, match=r"c\.pt: the checkpoint does not say the shift.*--shift"):
        import_schedule(file, "dyweight", model)
    found = import_schedule(file, "dyweight", model, shift=3.0)
    assert found.notes == (
        "the network was asked at 1.02, outside the model's range; its end is asked instead",
    )
    grid = [3 * s / (1 + 2 * s) for s in (1, 2 / 3, 1 / 3, 0)]
    x, here, slopes = Z, 1.0, []
    for i, there in enumerate(grid[1:]):
        t = min(float(scales[i]) * here, 1.0)
        slopes.append((x - mixture(x, torch.full((8,), t).double())) / t)
        x = x + (there - here) * sum(float(weights[i, j]) * slopes[j] for j in range(i + 1))
        here += float(weights[i].sum()) * (there - here)
    made = make_samples(model, found.schedule.table_for(model), Z)
    torch.testing.assert_close(made, x, rtol=0, atol=1e-6)
    # EPD's files say their shift by their last level
    raw = {name: torch.zeros(4, 1) for name in ("r_params", "weight_s")}
    options = {"sigma_min": 0.0029940119760479044, "sigma_max": 1.0}
    file = epd_file(tmp_path / "d.pkl", raw, schedule_type="flowmatch", backend_config=options)
    knots = import_schedule(file, "epd", model).schedule.knots
    plain = numpy.linspace(1, options["sigma_min"], 5)
    assert knots == pytest.approx(3 * plain / (1 + 2 * plain), rel=1e-9)


def test_a_start_below_the_top_begins_with_less_noise(tmp_path: Path) -> None:
    """The table carries it: the same samples as a loop that starts from that level."""
    noise = VPLinear()
    model, file = model_of(noise), tmp_path / "a.txt"
    file.write_text("20, 4\n1 0.2; 0.05  # a comment\n")
    schedule = import_schedule(file, "sigmas", model, "ddim").schedule
    knots = noise.inverse(-torch.tensor([20, 4, 1, 0.2, 0.05], dtype=torch.float64).log())
    torch.testing.assert_close(torch.tensor(schedule.knots, dtype=torch.float64), knots)
    rule = make_solver("ddim")
    table = rule.tableau(noise, rule.coupled(noise, knots))
    theirs = sample(model.denoiser, table, noise.sigma(knots[0]) * Z)
    torch.testing.assert_close(make_samples(model, schedule.table_for(model), Z), theirs)


def test_lists_in_every_form_give_the_grid(tmp_path: Path) -> None:
    noise = VPDiscrete(ALPHAS)
    model, numbers = model_of(noise), list(AYS["ays-sd15"])
    texts = {
        "a.json": (str(numbers), "sigmas"),
        "b.json": ('{"sigmas": ' + str(numbers) + "}", "sigmas"),
        "c.txt": ("\n".join(map(str, numbers)), "ays"),
        "d.txt": (", ".join(map(str, [*numbers[:-1], 0])), "comfyui"),
    }
    for name, (text, form) in texts.items():
        (tmp_path / name).write_text(text)
        found = import_schedule(tmp_path / name, form, model, "dpmpp-2")
        expected = discretize(noise, 10, "ays-sd15")
        assert found.schedule.knots == pytest.approx(expected.tolist(), rel=1e-9)
        rule = make_solver("dpmpp-2")
        table = rule.tableau(noise, rule.coupled(noise, expected))
        torch.testing.assert_close(found.schedule.tableau.outputs, table.outputs)
        assert name in (found.schedule.versions["imported_from"] or "")
        assert bool(found.notes) == (form == "comfyui")
        # another number of steps: linear in log(sigma), as for the built-in grids
        for nfe in (6, 17):
            other = import_schedule(tmp_path / name, form, model, "dpmpp-2", nfe=nfe).schedule
            expected = discretize(noise, nfe, "ays-sd15").tolist()
            assert other.knots == pytest.approx(expected, rel=1e-2 if form == "comfyui" else 1e-6)
    two = import_schedule(tmp_path / "a.json", "sigmas", model, "heun").schedule
    assert (two.nfe, len(two.knots)) == (20, 11)
    odd = import_schedule(tmp_path / "a.json", "sigmas", model, "heun", nfe=7).schedule
    assert (odd.nfe, len(odd.knots)) == (7, 5)


def test_a_list_that_ends_on_the_smallest_level_and_0() -> None:
    knots = knots_of([80, 10, 1, 0.002, 0], EDM())
    assert knots.tolist() == pytest.approx([80, 10, 1, 0.002])


def test_the_command_writes_a_file_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from command_line import call

    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("80, 20, 5, 1, 0.2, 0")
    shared = ("--model", "analytic:mixture-2d", "--solver", "dpmpp-2", "--out", "my.json")
    code, out, err = call(monkeypatch, capsys, "import", "list.txt", "--as", "comfyui", *shared)
    assert (code, "5 evaluations, 5 steps, the table of dpmpp-2" in out) == (0, True)
    assert "Note: the last step goes to 0.002, the model's smallest level, instead of 0" in err
    model = ld3.load_model("analytic:mixture-2d")
    assert load_schedule("my.json").sample(model, 3).shape == (3, 2)
    code, _, err = call(monkeypatch, capsys, "import", "list.txt", "--as", "sigmas", *shared)
    assert (code, "exists already" in err) == (2, True)
    Path("list.txt").write_text("0.1, 3")
    force = (*shared, "--force")
    code, _, err = call(monkeypatch, capsys, "import", "list.txt", "--as", "sigmas", *force)
    assert (code, "list.txt: sigmas must decrease" in err) == (2, True)
    code, _, err = call(monkeypatch, capsys, "import", "list.txt", "--as", "sigma", *force)
    assert (code, "unknown --as 'sigma': did you mean 'sigmas'" in err) == (2, True)
    code, _, err = call(
        monkeypatch, capsys, "import", "list.txt", "--as", "sigmas", *force, "--nfe", 0
    )
    assert (code, "--nfe 0: must be from 1 to 1000" in err) == (2, True)
