"""A pipeline's scheduler is replaced by LD3Scheduler and then by another class: everything is as if
LD3Scheduler had never been there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_pipelines as tiny
import torch
from pipelines_on_disk import close, diffusers, options_for, stock
from schedules import coupled_schedule
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import FlowMatching
from ld3_dist.core.sample import draw_noise
from ld3_dist.integrations.diffusers import LD3Scheduler
from ld3_dist.models import open_model
from ld3_dist.models.diffusers.parametrisation import read_parametrisation
from ld3_dist.schedule.file import Schedule, noise_to_dict

NFE = 4
BETAS = numpy.linspace(0.0007, 0.014, 1000).tolist()
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BASES: dict[str, Any] = {
    "epsilon": lambda: diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
    "v": lambda: diffusers.DDIMScheduler(**SD, prediction_type="v_prediction", clip_sample=False),
    "trained": lambda: diffusers.DDPMScheduler(trained_betas=BETAS, clip_sample=False),
    "zero_snr": lambda: diffusers.EulerDiscreteScheduler(
        **SD, rescale_betas_zero_snr=True, prediction_type="v_prediction",
        timestep_spacing="trailing", use_karras_sigmas=True,
    ),
    "flow": lambda: diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    ),
    "flow_match": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1),
}  # fmt: skip
TABLES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
)
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def learned_for(base: Any) -> Schedule:
    noise = read_parametrisation(base, "test", tokens=0, shift=None).noise
    return coupled_schedule(noise, NFE, solver="euler")


def facts(config: Any) -> dict[str, Any]:
    """A configuration as a comparison needs it; numbers of arrays as lists."""
    plain = lambda value: value.tolist() if isinstance(value, numpy.ndarray) else value
    return {
        key: sorted(value) if key == "_use_default_values" else plain(value)
        for key, value in config.items()
    }


def same(first: Any, second: Any) -> None:
    """Two schedulers of one class, in configuration and in every number they step with."""
    assert type(first) is type(second)
    assert facts(first.config) == facts(second.config)
    for each in (first, second):
        named = {"mu": 0.7} if each.config.get("use_dynamic_shifting") else {}
        each.set_timesteps(6, **named)
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, vars(second)[name], rtol=0, atol=0, equal_nan=True)


PAIRS = [
    (base, other)
    for base in BASES
    for other in (FLOWS if base == "flow_match" else TABLES)
    if not (base in ("flow", "zero_snr") and other == "DPMSolverSinglestepScheduler")
]


@pytest.mark.parametrize(("base", "other"), few(PAIRS, PAIRS[::3]))
@pytest.mark.siblings(6)
def test_from_config_gives_what_the_base_gives(base: str, other: str, tmp_path: Path) -> None:
    was, kind = BASES[base](), getattr(diffusers, other)
    ours = LD3Scheduler.from_schedule(learned_for(was), was)
    same(kind.from_config(ours.config), kind.from_config(was.config))
    # through the disk, where the library itself forgets which values were defaults
    was.save_pretrained(tmp_path / "was")
    ours.save_pretrained(tmp_path / "ours")
    assert facts(ours.config) == facts(LD3Scheduler(ours.config["schedule"], BASES[base]()).config)
    again = LD3Scheduler.from_pretrained(str(tmp_path / "ours"))
    assert again.schedule == ours.schedule
    assert torch.equal(again.timesteps, ours.timesteps)
    stock_again = type(was).from_pretrained(str(tmp_path / "was"))
    same_but_for_the_name(kind.from_config(again.config), kind.from_config(stock_again.config))


def same_but_for_the_name(first: Any, second: Any) -> None:
    """A saved configuration also holds the name of the class that saved it."""
    for each in (first, second):
        told = {k: v for k, v in each.config.items() if k not in ("_class_name",)}
        each._internal_dict = diffusers.configuration_utils.FrozenDict(told)
    same(first, second)


@pytest.mark.parametrize("base", list(BASES))
def test_there_and_back(base: str) -> None:
    was = BASES[base]()
    schedule = learned_for(was)
    first = LD3Scheduler.from_schedule(schedule, was)
    for scheduler in (first, type(was).from_config(first.config)):  # from ours, and from the base
        second = LD3Scheduler.from_schedule(schedule, scheduler)
        assert facts(second.config)["schedule"] == facts(first.config)["schedule"]
        same(type(was).from_config(second.config), type(was).from_config(was.config))
        assert torch.equal(second.timesteps, first.timesteps)
    assert set(first.compatibles) == set(was.compatibles)


def test_ddim_pipelines_keep_the_betas(folders: dict[str, Path], tmp_path: Path) -> None:
    """DDIMPipeline replaces what it is loaded with by DDIM: with the right betas, and the right
    images.
    """
    was = diffusers.DDPMScheduler(trained_betas=BETAS, clip_sample=False)
    folder = tiny.pixel(tmp_path / "model", diffusers.DDIMScheduler.from_config(was.config))
    stocked = stock(folder)
    with_ours = stock(folder)
    with_ours.scheduler = LD3Scheduler.from_schedule(learned_for(was), with_ours)
    with_ours.save_pretrained(tmp_path / "saved")
    again = stock(tmp_path / "saved")
    assert type(again.scheduler) is diffusers.DDIMScheduler
    torch.testing.assert_close(again.scheduler.betas, torch.tensor(BETAS), rtol=0, atol=1e-8)
    call = {"num_inference_steps": 3, "output_type": "np", "batch_size": 1}
    images = [
        pipeline(generator=torch.Generator().manual_seed(0), **call).images
        for pipeline in (stocked, again)
    ]
    assert (images[0] == images[1]).all()
    model = open_model(f"diffusers:{tmp_path / 'saved'}")
    assert model.denoiser.noise.alphas_cumprod[0] == pytest.approx(1 - BETAS[0], abs=1e-7)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["sd", "sd3", "rectified"])
def test_a_pipeline_saved_with_it_is_the_same_model(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders))
    pipeline = stock(folders[kind])
    schedule = replace(
        coupled_schedule(model.denoiser.noise, NFE, solver="euler"), prediction=model.prediction
    )
    pipeline.scheduler = LD3Scheduler.from_schedule(schedule, pipeline)
    pipeline.save_pretrained(tmp_path / kind)
    again = open_model(f"diffusers:{tmp_path / kind}", options_for(kind, folders))
    assert again.prediction == model.prediction
    assert again.hash == model.hash
    x, t = draw_noise(0, range(2), model.denoiser.shape), torch.full((2,), 0.4)
    condition = model.draw_condition(0, range(2))
    with torch.no_grad():
        close(again.denoiser(x, t, condition), model.denoiser(x, t, condition))
    reopened = stock(tmp_path / kind)
    assert isinstance(reopened.scheduler, LD3Scheduler)
    reopened.scheduler = type(pipeline.scheduler._base).from_config(reopened.scheduler.config)
    assert "schedule" not in reopened.scheduler.config


def test_files_of_earlier_versions_load() -> None:
    """They carry no base: it is made from the schedule and the few options that were kept."""
    for was, options in (
        (BASES["v"](), {"prediction_type": "v_prediction", "num_train_timesteps": 1000}),
        (BASES["flow_match"](), {"prediction_type": "flow_prediction", "shift": 3.0}),
    ):
        schedule = learned_for(was)
        body = json.loads(schedule.to_json())
        told = {"_class_name": "LD3Scheduler", "schedule": body, "force": False, **options}
        ours, now = LD3Scheduler.from_config(told), LD3Scheduler.from_schedule(schedule, was)
        assert torch.equal(ours.timesteps, now.timesteps)
        torch.testing.assert_close(torch.tensor(ours._to_data), torch.tensor(now._to_data))
        assert ours.config.get("shift", 3.0) == 3.0


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"schedule": None}, "no learned schedule"),
    ({"schedule": [1]}, "no learned schedule"),
    ({"schedule": {"format": 2}}, "key 'knots' is missing"),
    ({"base_class": "NoScheduler"}, "stands in for 'NoScheduler'"),
    ({"base_class": 3}, "stands in for 3"),
    ({"base_class": "UNet2DModel"}, "stands in for 'UNet2DModel'"),
    ({"beta_schedule": "odd"}, "cannot be made from its options: odd"),
    ({"beta_start": "x"}, "cannot be made from its options"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_damaged_configurations_are_named(change: dict[str, Any], said: str) -> None:
    was = BASES["v"]()
    ours = LD3Scheduler.from_schedule(learned_for(was), was)
    told = {k: v for k, v in json.loads(ours.to_json_string()).items() if k != "trained_betas"}
    with pytest.raises(InputError) as error:
        LD3Scheduler.from_config({**told, **change})
    assert said in str(error.value)
    with pytest.raises(InputError, match="from_schedule"):
        LD3Scheduler.from_config(was.config)


def test_inverted_flow_in_a_loop() -> None:
    """A velocity field known in closed form, asked in Mochi's convention: the same samples."""
    noise = FlowMatching()
    schedule = coupled_schedule(noise, NFE, solver="euler")
    plain = LD3Scheduler.from_schedule(schedule, diffusers.FlowMatchEulerDiscreteScheduler())
    inverted = LD3Scheduler.from_schedule(
        replace(schedule, prediction="-velocity"),
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def velocity(y: torch.Tensor, t: float) -> torch.Tensor:  # of data N(0, 1/4)
        return y * (t - 0.25 * (1 - t)) / (0.25 * (1 - t) ** 2 + t**2)

    out = []
    for scheduler, time, sign in (
        (plain, lambda k: k / 1000, 1),
        (inverted, lambda k: 1 - k / 1000, -1),
    ):
        y = x
        scheduler.set_timesteps(NFE)
        for k in scheduler.timesteps:
            y = scheduler.step(sign * velocity(y, time(float(k))), k, y).prev_sample
        out.append(y)
    assert (plain.timesteps + inverted.timesteps).allclose(torch.tensor(1000.0))
    torch.testing.assert_close(out[0], out[1], rtol=1e-4, atol=1e-5)
    assert noise_to_dict(inverted.schedule.noise_schedule) == noise_to_dict(noise)
