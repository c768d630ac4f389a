"""The ComfyUI node against a stand-in of ComfyUI's sampler interface, and against `sample`.

The stand-in follows the interface's documentation: a guider is called with a latent, noise levels
and options and returns the denoised latent; it knows cfg, the conditions and the model, whose
`model_sampling` scales the network's input, turns its output into data and a noise level into the
network's time. Networks here are small functions; ours and theirs share them and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from schedules import STABLE_DIFFUSION, coupled_schedule, one_thread  # noqa: F401
from torch import Tensor, nn

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM as EDMNoise
from ld3_dist.core.noise import FlowMatching, NoiseSchedule, VPDiscrete, VPLinear
from ld3_dist.core.sample import initial_state, sample
from ld3_dist.integrations.comfyui import export_node
from ld3_dist.integrations.comfyui_node import LD3Sampler, ScheduleError, load_schedule
from ld3_dist.integrations.export import export
from ld3_dist.schedule.file import Schedule

SHAPE = (2, 3, 3)


class Net(nn.Module):
    """A network that depends on all of its input, and on the time in a nonlinear way."""

    def forward(self, x: Tensor, time: Tensor, condition: object = None) -> Tensor:
        t = time.reshape(-1, 1, 1, 1).to(x)
        return torch.tanh(x) * (0.6 + 0.3 * torch.sin(t / 23)) + 0.1 * x.roll(1, -1)


# --- the stand-in ---------------------------------------------------------------------------------


class EPS:
    """Noise prediction on x / sqrt(1 + sigma^2)."""

    sigma_data = 1.0

    def network_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma**2 + self.sigma_data**2).sqrt()

    def denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        return x - sigma * out


class V_PREDICTION(EPS):
    def denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        total = sigma**2 + self.sigma_data**2
        return x * self.sigma_data**2 / total - out * sigma * self.sigma_data / total.sqrt()


class EDM(V_PREDICTION):
    sigma_data = 0.5

    def denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        total = sigma**2 + self.sigma_data**2
        return x * self.sigma_data**2 / total + out * sigma * self.sigma_data / total.sqrt()


class CONST:
    def network_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def denoised(self, sigma: Tensor, out: Tensor, x: Tensor) -> Tensor:
        return x - sigma * out


class Discrete(nn.Module):
    """A table of noise levels; a level is rounded to a whole step."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.register_buffer("sigmas", ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float())

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log()[:, None] - self.sigmas.log()).abs().argmin(1)


class Continuous(nn.Module):
    sigma_max = torch.tensor(80.0)

    def timestep(self, sigma: Tensor) -> Tensor:
        return 0.25 * sigma.log()


class Flow(nn.Module):
    sigma_max = torch.tensor(1.0)

    def timestep(self, sigma: Tensor) -> Tensor:
        return 1000 * sigma


class Guider:
    """What a sampler gets as its model."""

    def __init__(self, sampling: Any, cfg: float = 1.0, positive: dict | None = None) -> None:
        self.inner_model = type("Model", (), {"model_sampling": sampling})()
        self.cfg, self.conds = cfg, {"positive": [positive or {}]}
        self.options: list[dict] = []

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: dict, seed: int | None = None
    ) -> Tensor:
        sampling = self.inner_model.model_sampling
        self.options.append(model_options)
        level = sigma.reshape(-1, 1, 1, 1)
        time = sampling.timestep(sigma).float()
        return sampling.denoised(level, Net()(sampling.network_input(level, x), time), x)


def sampling_of(prediction: type, kind: type, *arguments: Any) -> Any:
    """ComfyUI makes the class of a model's sampling from these two."""
    return type("ModelSampling", (kind, prediction), {})(*arguments)


def run(sampler: LD3Sampler, guider: Guider, z: Tensor, **more: Any) -> Tensor:
    options = {"model_options": {"o": 1}, "seed": 3}
    given = {"callback": None, "latent_image": torch.zeros_like(z), **more}
    return sampler.sample(guider, given.pop("sigmas", sampler.sigmas), options, noise=z, **given)


CASES: dict[str, tuple[NoiseSchedule, str, type, type, tuple]] = {
    "edm": (EDMNoise(), "edm", EDM, Continuous, ()),
    "eps": (VPDiscrete(STABLE_DIFFUSION), "noise", EPS, Discrete, (STABLE_DIFFUSION,)),
    "v": (VPDiscrete(STABLE_DIFFUSION), "v", V_PREDICTION, Discrete, (STABLE_DIFFUSION,)),
    "flow": (FlowMatching(), "velocity", CONST, Flow, ()),
}


def uncoupled(noise: NoiseSchedule, prediction: str, **more: Any) -> Schedule:
    """A schedule with network times and coefficients of its own."""
    made = coupled_schedule(noise, 4, solver="dpmpp-2")
    draw = torch.Generator().manual_seed(5)
    factors = 0.985 + 0.01 * torch.rand(4, generator=draw).double()
    outputs = torch.tensor(made.outputs) * (1 + 0.1 * torch.rand(5, 4, generator=draw))
    values = json.loads(made.to_json()) | {
        "evals": [t * float(f) for t, f in zip(made.evals, factors, strict=True)],
        "outputs": outputs.double().tolist(),
        "prediction": prediction,
        "model": "diffusers:/home/me/secret/tiny",
        **more,
    }
    return Schedule(**values)


def node_of(schedule: Schedule, folder: Path) -> LD3Sampler:
    export_node(schedule, folder, "mine")
    return LD3Sampler("mine", json.loads((folder / "mine.json").read_text()))


@pytest.mark.parametrize("case", CASES)
def test_the_whole_table_runs(case: str, tmp_path: Path) -> None:
    noise, prediction, kind, steps, arguments = CASES[case]
    schedule = uncoupled(noise, prediction)
    sampler = node_of(schedule, tmp_path)
    z = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    guider = Guider(sampling_of(kind, steps, *arguments))
    seen: list[tuple[int, int]] = []
    found = run(sampler, guider, z, callback=lambda i, x_0, x, n: seen.append((i, n)))
    times = {"noise": noise.network_time, "v": noise.network_time} if case in ("eps", "v") else {}
    in_steps = times.get(prediction, (lambda t: 1000 * t) if case == "flow" else None)
    ours = NetworkDenoiser(Net(), noise, SHAPE, prediction, in_steps, sigma_data=0.5)
    wanted = sample(ours, schedule.tableau, initial_state(ours, z))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert guider.options == [{"o": 1}] * 4
    assert "timestep" not in guider.inner_model.model_sampling.__dict__
    if case in ("eps", "v"):  # rounded steps would give another sample
        sampler.schedule["comfyui"]["steps"] = None
        assert (run(sampler, guider, z) - wanted).abs().max() > 2e-3


def test_what_it_was_not_made_for_is_refused(tmp_path: Path) -> None:
    noise = VPDiscrete(STABLE_DIFFUSION)
    sampler = node_of(uncoupled(noise, "noise", guidance=7.5), tmp_path)
    z = torch.randn(2, *SHAPE)
    good = sampling_of(EPS, Discrete, STABLE_DIFFUSION)
    run(sampler, Guider(good, 7.5), z)
    run(sampler, Guider(good, 1.0, {"guidance": 7.5}), z)  # distilled guidance
    other = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    models = {
        "other noise levels": sampling_of(EPS, Discrete, other),
        "this one predicts v": sampling_of(V_PREDICTION, Discrete, STABLE_DIFFUSION),
        "this one predicts velocity": sampling_of(CONST, Flow),
        r"sampling \(ModelSampling\) is another": nn.Module.__new__(type("ModelSampling", (), {})),
    }
    for told, model in models.items():
        with pytest.raises(ScheduleError, match=told):
            run(sampler, Guider(model, 7.5), z)
    for told, more in {
        "takes 4 steps, and 20 were asked": {"sigmas": torch.linspace(14, 0, 21)},
        "not those of mine": {"sigmas": torch.linspace(14, 0, 5)},
        "cannot inpaint": {"denoise_mask": torch.ones_like(z)},
        "use an empty latent": {"latent_image": torch.ones_like(z)},
    }.items():
        with pytest.raises(ScheduleError, match=told):
            run(sampler, Guider(good, 7.5), z, **more)
    with pytest.raises(ScheduleError, match=r"made for cfg 7.5, and cfg is 1; set it to 7.5"):
        run(sampler, Guider(good, 1.0), z)
    with pytest.raises(ScheduleError, match="add_noise is off"):
        run(sampler, Guider(good, 7.5), torch.zeros_like(z))


def test_a_start_above_the_models_noise_is_refused(tmp_path: Path) -> None:
    sampler = node_of(uncoupled(EDMNoise(), "edm"), tmp_path)
    sampling = sampling_of(EDM, Continuous)
    type(sampling).sigma_max = torch.tensor(14.6)
    with pytest.raises(ScheduleError, match=r"noise ends at 14\.6"):
        run(sampler, Guider(sampling), torch.randn(1, *SHAPE))


def test_pure_noise_has_a_finite_level(tmp_path: Path) -> None:
    zero_snr = torch.linspace(0.99, 0.0, 20, dtype=torch.float64)
    schedule = coupled_schedule(VPDiscrete(zero_snr), 3, solver="ddim")
    sampler = node_of(schedule, tmp_path)
    assert torch.isfinite(sampler.sigmas).all()
    assert sampler.sigmas[0] > 4000


def test_the_folder_needs_torch_alone(tmp_path: Path) -> None:
    schedule = uncoupled(EDMNoise(), "edm")
    schedule.save(tmp_path / "my.json")
    node = tmp_path / "custom_nodes" / "ld3"
    assert export(tmp_path / "my.json", "comfyui-node", node).text == str(node)
    assert sorted(path.name for path in node.iterdir()) == ["README.md", "__init__.py", "my.json"]
    for path in node.iterdir():
        assert "secret" not in path.read_text()
    code = f"""
import importlib.util, sys
sys.modules["ld3_dist"] = None
spec = importlib.util.spec_from_file_location("node", {str(node / "__init__.py")!r})
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)
kind = node.NODE_CLASS_MAPPINGS["LD3Schedule"]
assert kind.INPUT_TYPES()["required"]["schedule"] == (["my"],)
sampler, sigmas = getattr(kind(), kind.FUNCTION)("my")
assert kind.RETURN_TYPES == ("SAMPLER", "SIGMAS") and len(sigmas) == 5 and sigmas[-1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "my.json", "comfyui-node", node)
    export(schedule, "comfyui-node", node, force=True)
    assert (node / "dpmpp-2-4.json").exists()
    assert (node / "my.json").exists()


def test_other_files_are_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ld3_dist.integrations.comfyui_node.FOLDER", tmp_path)
    uncoupled(EDMNoise(), "edm").save(tmp_path / "raw.json")
    with pytest.raises(ScheduleError, match=r"ld3-dist export raw\.json --format comfyui-node"):
        load_schedule("raw")
    with pytest.raises(ScheduleError, match="cannot be read"):
        load_schedule("absent")
    with pytest.raises(InputError, match="ComfyUI has no model of vp-linear noise"):
        export(coupled_schedule(VPLinear(), 3), "comfyui-node", tmp_path / "node")
    with pytest.raises(InputError, match="writes a folder; name it with --out"):
        export(coupled_schedule(EDMNoise(), 3), "comfyui-node")
