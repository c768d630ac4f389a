"""LD3Scheduler in stock pipelines: the samples of our own loop on the same noise, and everything it
must refuse.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
import warm_python
from pipelines_on_disk import PROMPTS, close, diffusers, options_for, stock

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.noise import EDM, NoiseSchedule
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.integrations.diffusers import LD3Scheduler
from ld3_dist.models import Model, open_model
from ld3_dist.models.diffusers.network_outputs import data_coefficients
from ld3_dist.schedule.file import Schedule, load_schedule, noise_to_dict

NFE = 5


def learned(
    noise: NoiseSchedule,
    solver_name: str = "ipndm-3",
    nfe: int = NFE,
    later: int = 0,
    **more: Any,
) -> Schedule:
    """A schedule with network times and coefficients of its own, as learning would leave them.

    Args:
        later: knots of the grid that are left out; it begins from noise of the level of data with
            variance 0.3 at the next one.
    """
    solver, draw = make_solver(solver_name), torch.Generator().manual_seed(0)
    knots = discretize(noise, solver.steps(nfe) + later, "karras")[later:]
    if later:
        sigma, alpha = noise.sigma(knots[0]), noise.alpha(knots[0])
        more["prior_scale"] = (sigma**2 + 0.3 * alpha**2).sqrt().item()
    evals = solver.nominal(noise, knots, nfe)
    move = 1 + 0.05 * (torch.rand(nfe, generator=draw, dtype=torch.float64) - 0.5)
    evals = (evals * move).clamp(float(knots[-1]), float(knots[0]))
    table = solver.tableau(noise, Grid(knots, evals))
    nudge = 1 + 0.02 * torch.randn(table.outputs.shape, generator=draw, dtype=torch.float64)
    values: dict[str, Any] = {
        "model": "tiny",
        "coefficients": True,
        "prior_scale": noise.prior_scale,
        **more,
    }
    return Schedule(
        knots=knots.tolist(),
        evals=evals.tolist(),
        state=table.state.tolist(),
        nfe=nfe,
        solver=solver_name,
        outputs=(table.outputs * nudge).tolist(),
        noise=noise_to_dict(noise),
        **values,
    )


def expected(
    model: Model, schedule: Schedule, noise: torch.Tensor, condition: Any = None
) -> torch.Tensor:
    with torch.no_grad():
        return sample(model.denoiser, schedule.tableau, schedule.prior_scale * noise, condition)


def equipped(folder: Path, schedule: Schedule, **more: Any) -> Any:
    pipeline = stock(folder)
    pipeline.scheduler = LD3Scheduler.from_schedule(schedule, pipeline, **more)
    return pipeline


def last_sample(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Fills with what the scheduler returns: images are clipped, samples are not."""
    seen: list[torch.Tensor] = []
    step = pipeline.scheduler.step

    def watched(*arguments: Any, **named: Any) -> Any:
        out = step(*arguments, **named)
        seen.append(out[0])
        return out

    # pipelines look for eta in it
    watched.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    monkeypatch.setattr(pipeline.scheduler, "step", watched)
    return seen


@pytest.mark.parametrize("solver", ["ipndm-3", "unipc-3", "heun", "dpm-2"])
def test_pixel(
    folders: dict[str, Path], solver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = open_model(f"diffusers:{folders['pixel']}")
    learned(model.denoiser.noise, solver).save(tmp_path / "s.json")
    schedule = load_schedule(tmp_path / "s.json")
    pipeline = stock(folders["pixel"])
    pipeline.scheduler = LD3Scheduler.from_schedule(tmp_path / "s.json", pipeline)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    seen = last_sample(pipeline, monkeypatch)
    call = {"batch_size": 2, "num_inference_steps": NFE, "output_type": "np"}
    images = pipeline(generator=torch.Generator().manual_seed(5), **call).images
    want = expected(model, schedule, noise)
    close(seen[-1], want)
    close(torch.from_numpy(images).permute(0, 3, 1, 2), (want / 2 + 0.5).clamp(0, 1))
    again = pipeline(
        generator=torch.Generator().manual_seed(5), **call
    ).images  # a second call starts afresh
    assert (again == images).all()
    other = diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)
    other.set_progress_bar_config(disable=True)
    assert (other(generator=torch.Generator().manual_seed(5), **call).images == images).all()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_learned_start_scales_the_pipelines_noise(folders: dict[str, Path], kind: str) -> None:
    model, schedule, noise, condition, lines = text_setting(kind, folders, 5.0, "deis-3", later=2)
    assert schedule.knots[0] < model.noise.t_max
    assert abs(schedule.prior_scale - 1) > 0.005
    call = {"num_inference_steps": NFE, "latents": noise, "guidance_scale": 5.0}
    sizes = {"height": 16, "width": 16} if kind == "sdxl" else {}
    made = equipped(folders[kind], schedule)(lines, output_type="latent", **call, **sizes).images
    close(made, expected(model, schedule, noise, condition))


def test_a_pipeline_that_does_not_scale_its_noise_is_refused(folders: dict[str, Path]) -> None:
    """Flow pipelines begin from unit noise, at any level that a schedule begins from."""
    _, schedule, noise, _, lines = text_setting("sd3", folders, 4.0, "unipc-3", later=3)
    pipeline = equipped(folders["sd3"], schedule)
    call = {"num_inference_steps": NFE, "height": 16, "width": 16, "guidance_scale": 4.0}
    with pytest.raises(InputError, match=r"does not read init_noise_sigma .*--start log_snr"):
        pipeline(lines, latents=noise, output_type="latent", **call)


def test_latent(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(f"diffusers:{folders['latent']}")
    schedule = learned(model.denoiser.noise, "dpmpp-2")
    pipeline = equipped(folders["latent"], schedule)
    seen = last_sample(pipeline, monkeypatch)
    pipeline(2, torch.Generator().manual_seed(5), num_inference_steps=NFE, output_type="np")
    close(
        seen[-1],
        expected(
            model, schedule, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        ),
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_classes(
    folders: dict[str, Path], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(
        f"diffusers:{folders['dit']}", options_for("dit", folders, guidance=guidance)
    )
    schedule = learned(model.denoiser.noise, "unipc-2", guidance=guidance)
    pipeline = equipped(folders["dit"], schedule)
    seen = last_sample(pipeline, monkeypatch)
    call = {"num_inference_steps": NFE, "generator": torch.Generator().manual_seed(5)}
    pipeline([7, 99], guidance_scale=guidance, **call)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    close(seen[-1][:2], expected(model, schedule, noise, torch.tensor([7, 99])))
    with pytest.raises(
        InputError, match=rf"guidance_scale = 4, but it was learned with {guidance:g}; call with"
    ):
        pipeline([7, 99], guidance_scale=4.0, **call)


def text_setting(
    kind: str, folders: dict[str, Path], guidance: float | None, solver: str, **more: Any
) -> tuple:
    """Model, schedule, noise, condition and the prompts of the same samples."""
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders, guidance=guidance))
    told = {"guidance": model.guidance, "prediction": model.prediction}
    schedule = learned(model.denoiser.noise, solver, **told, **more)
    noise, condition = (
        draw_noise(0, range(2), model.denoiser.shape),
        model.draw_condition(3, range(2)),
    )
    lines = [PROMPTS[model.draw_condition.__self__.pick(3, i)] for i in range(2)]  # type: ignore[attr-defined]
    return model, schedule, noise, condition, lines


@pytest.mark.parametrize(
    ("kind", "guidance"), [("sd", 1.0), ("sd", 5.0), ("sdxl", 5.0), ("rectified", 1.5)]
)
def test_prompts(folders: dict[str, Path], kind: str, guidance: float) -> None:
    model, schedule, noise, condition, lines = text_setting(kind, folders, guidance, "deis-3")
    pipeline = equipped(folders[kind], schedule)
    assert pipeline.scheduler.prediction == ("-velocity" if kind == "rectified" else "noise")
    call = {"num_inference_steps": NFE, "latents": noise, "guidance_scale": guidance}
    want = expected(model, schedule, noise, condition)
    close(pipeline(lines, output_type="latent", **call).images, want)
    with torch.no_grad():
        image = (model.denoiser.decode(want) / 2 + 0.5).clamp(0, 1)
    close(pipeline(lines, output_type="pt", **call).images, image)


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [("sd3", 1.0), ("sd3", 4.0), ("flux", 3.5), ("schnell", 1.0), ("schnell", 4.0)],
)
def test_flow(folders: dict[str, Path], kind: str, guidance: float) -> None:
    model, schedule, noise, condition, lines = text_setting(kind, folders, guidance, "unipc-3")
    pipeline = equipped(folders[kind], schedule)
    call: dict[str, Any] = {
        "num_inference_steps": NFE,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    latents, want = noise, expected(model, schedule, noise, condition)
    if kind != "sd3":
        b, c, h, w = noise.shape
        latents, want = (pipeline._pack_latents(x, b, c, h, w) for x in (noise, want))
    call["latents"] = latents
    if kind == "schnell":
        call |= {"true_cfg_scale": guidance, "negative_prompt": ["", ""]}
    else:
        call["guidance_scale"] = guidance
    close(pipeline(lines, **call).images, want)
    name = "true_cfg_scale" if kind == "schnell" else "guidance_scale"
    with pytest.raises(InputError, match=f"{name} = 9, but it was learned with {guidance:g}"):
        pipeline(lines, **{**call, name: 9.0})
    if kind == "flux":
        with pytest.raises(InputError, match="true_cfg_scale = 2"):
            pipeline(lines, **call, true_cfg_scale=2.0, negative_prompt=["", ""])
    with pytest.raises(InputError, match="custom sigmas"):
        pipeline(lines, **{**call, "sigmas": [1.0, 0.8, 0.6, 0.4, 0.1]})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_predictions(
    tmp_path: Path, prediction: str, zero_snr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = tiny.ddim(prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    folder = tiny.pixel(tmp_path / "model", scheduler, out_channels=6)  # a learned variance besides
    model = open_model(f"diffusers:{folder}")
    schedule = learned(model.denoiser.noise, "dpmpp-2")
    pipeline = equipped(folder, schedule)
    out, seen = torch.Generator().manual_seed(5), last_sample(pipeline, monkeypatch)
    diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)(
        2, out, num_inference_steps=NFE, output_type="np"
    )
    close(
        seen[-1],
        expected(
            model, schedule, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        ),
    )
    if zero_snr and prediction == "v_prediction":
        ends_in_noise = torch.tensor([1.0], dtype=torch.float64)
        with pytest.raises(InputError, match="pure noise"):
            data_coefficients("noise", model.denoiser.noise, ends_in_noise)


def test_half_precision_keeps_its_state_in_float32(folders: dict[str, Path]) -> None:
    _, schedule, noise, _, lines = text_setting("sd", folders, 5.0, "dpmpp-3")
    call = {"num_inference_steps": NFE, "guidance_scale": 5.0, "output_type": "latent"}
    exact = equipped(folders["sd"], schedule)(lines, latents=noise, **call).images
    pipeline = equipped(folders["sd"], schedule).to(dtype=torch.bfloat16)
    asked: list[torch.Tensor] = []
    pipeline.unet.time_proj.register_forward_pre_hook(
        lambda module, arguments: asked.append(arguments[0])
    )
    got = pipeline(lines, latents=noise.bfloat16(), **call).images
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).norm() < 0.05 * exact.norm()
    steps = torch.tensor([1000 * t - 1 for t in schedule.evals])
    torch.testing.assert_close(
        torch.stack([time[0] for time in asked]), steps, rtol=0, atol=1e-3
    )  # fractions and all


def test_round_trip(folders: dict[str, Path], tmp_path: Path) -> None:
    model, schedule, noise, condition, lines = text_setting("sd", folders, 5.0, "ipndm-3")
    pipeline = equipped(folders["sd"], schedule)
    pipeline.scheduler.save_pretrained(tmp_path / "alone")
    alone = LD3Scheduler.from_pretrained(str(tmp_path / "alone"))
    assert alone.schedule == schedule
    public = lambda config: {key: value for key, value in config.items() if not key.startswith("_")}
    assert public(alone.config) == public(pipeline.scheduler.config)
    assert torch.equal(alone.timesteps, pipeline.scheduler.timesteps)
    pipeline.save_pretrained(tmp_path / "whole")
    parts = json.loads((tmp_path / "whole" / "model_index.json").read_text())
    assert parts["scheduler"] == ["ld3_dist.integrations.diffusers", "LD3Scheduler"]
    again = stock(tmp_path / "whole")
    assert isinstance(again.scheduler, LD3Scheduler)
    call = {"num_inference_steps": NFE, "latents": noise, "output_type": "latent"}
    close(
        again(lines, guidance_scale=5.0, **call).images, expected(model, schedule, noise, condition)
    )
    with pytest.raises(InputError, match=r"guidance_scale = 7.5, but it was learned with 5"):
        again(lines, **call)
    # a pipeline saved with it is a model again, of the same noise schedule, and may take another
    # schedule
    reopened = open_model(
        f"diffusers:{tmp_path / 'whole'}", options_for("sd", folders)
    ).denoiser.noise
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(reopened.lam(t), model.denoiser.noise.lam(t), rtol=0, atol=1e-3)
    assert LD3Scheduler.from_schedule(learned(reopened), again).schedule.solver == "ipndm-3"


@pytest.mark.parametrize("kind", ["sd3", "flux", "rectified"])
def test_a_saved_flow_pipeline_is_the_same_model_again(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model, schedule, *_ = text_setting(kind, folders, 1.5, "euler")
    pipeline = equipped(folders[kind], schedule)
    pipeline.save_pretrained(tmp_path / "whole")
    again = open_model(f"diffusers:{tmp_path / 'whole'}", options_for(kind, folders, guidance=1.5))
    assert (
        again.settings["shift"] == model.settings["shift"]
    )  # 3, or what the number of tokens makes of it
    assert again.prediction == model.prediction
    x, t = draw_noise(0, range(2), model.denoiser.shape), torch.full((2,), 0.4)
    condition = model.draw_condition(0, range(2))
    with torch.no_grad():
        close(again.denoiser(x, t, condition), model.denoiser(x, t, condition))


def test_refuses_another_pipeline(folders: dict[str, Path], tmp_path: Path) -> None:
    vp = open_model(f"diffusers:{folders['pixel']}").denoiser.noise
    schedule = learned(vp)
    schedule.save(tmp_path / "s.json")
    flow = stock(folders["sd3"])
    for given in (flow, flow.scheduler):
        with pytest.raises(
            InputError,
            match=r"s\.json: schedule of tiny .*its noise is vp-discrete.* is flow; use it",
        ):
            LD3Scheduler.from_schedule(tmp_path / "s.json", given)
    other = tiny.ddim(beta_schedule="linear")
    with pytest.raises(
        InputError, match=r"alphas_cumprod\[\d+\] is .* in the file, .* in the pipeline's DDIM"
    ):
        LD3Scheduler.from_schedule(schedule, other)
    with pytest.raises(InputError, match="1000 entries in the file, 500 in the pipeline"):
        LD3Scheduler.from_schedule(schedule, tiny.ddim(num_train_timesteps=500))
    with pytest.warns(UserWarning, match=r"alphas_cumprod\[\d+\]"):
        forced = LD3Scheduler.from_schedule(schedule, other, force=True)
    assert forced.config["force"]
    scheduler = LD3Scheduler.from_schedule(schedule, tiny.ddim())
    with pytest.raises(
        InputError, match="takes epsilon, the pipeline's network gives v_prediction"
    ):
        scheduler.check(tiny.ddim(prediction_type="v_prediction"))
    with pytest.raises(InputError, match="its noise is edm"):
        LD3Scheduler.from_schedule(learned(EDM()), tiny.ddim())
    with (
        pytest.raises(InputError, match="has no network steps"),
        pytest.warns(UserWarning, match="edm"),
    ):
        LD3Scheduler.from_schedule(learned(EDM()), tiny.ddim(), force=True)
    with pytest.raises(InputError, match="neither a diffusers pipeline"):
        LD3Scheduler.from_schedule(schedule, torch.nn.Identity())
    with pytest.raises(InputError, match=r"absent\.json: no such schedule file"):
        LD3Scheduler.from_schedule(tmp_path / "absent.json", tiny.ddim())
    with pytest.raises(InputError, match="neither a diffusers pipeline"):
        LD3Scheduler(json.loads(schedule.to_json()), "noise")
    for pipeline in (stock(folders["pixel"]), tiny.ddim()):  # what fits is silent
        scheduler.check(pipeline, guidance_scale=1.0, num_inference_steps=NFE)


def test_refuses_a_network_that_predicts_something_else(folders: dict[str, Path]) -> None:
    model = open_model(f"diffusers:{folders['pixel']}")
    schedule = learned(model.denoiser.noise, prediction="v")
    with pytest.raises(InputError, match="its network predicts v, the pipeline's noise"):
        equipped(folders["pixel"], schedule)
    with pytest.warns(UserWarning, match="predicts v"):
        equipped(folders["pixel"], schedule, force=True)


def test_refuses_another_call(folders: dict[str, Path]) -> None:
    schedule = learned(open_model(f"diffusers:{folders['pixel']}").denoiser.noise, guidance=None)
    pipeline = equipped(folders["pixel"], schedule)
    scheduler: Any = pipeline.scheduler
    with pytest.raises(
        InputError,
        match=r"num_inference_steps = 50, but it takes 5; call with num_inference_steps=5",
    ):
        pipeline(num_inference_steps=50)
    for wrong, message in (
        ({"guidance_scale": 3.0}, "guidance_scale = 3"),
        ({"num_inference_steps": 4}, "takes 5"),
    ):
        with pytest.raises(InputError, match=message):
            scheduler.check(pipeline, **wrong)
    with pytest.raises(InputError, match="eta"):
        pipeline(num_inference_steps=NFE, eta=0.5)
    with pytest.raises(InputError, match="image to image"):
        scheduler.set_begin_index(2)
    with pytest.raises(InputError, match="image to image"):
        scheduler.add_noise(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    x = torch.randn(1, 3, 8, 8)
    scheduler.set_timesteps(NFE)
    with pytest.raises(InputError, match="but the next one of the schedule is"):
        scheduler.step(x, scheduler.timesteps[1], x)
    moved = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(InputError, match="changed after step 1"):
        scheduler.step(x, scheduler.timesteps[1], moved + 0.1)
    for t in scheduler.timesteps[1:]:
        (moved,) = scheduler.step(x, t, moved, return_dict=False)
    with pytest.raises(InputError, match="step 6 of a schedule of 5"):
        scheduler.step(x, scheduler.timesteps[-1], moved)
    with pytest.warns(UserWarning, match="num_inference_steps = 50"):
        equipped(folders["pixel"], schedule, force=True)(num_inference_steps=50)


def test_guidance_refused_in_a_pipeline_without_any(folders: dict[str, Path]) -> None:
    _, schedule, noise, _, lines = text_setting("sd", folders, 5.0, "ipndm-3")
    call = {"num_inference_steps": NFE, "latents": noise, "output_type": "latent"}
    with pytest.raises(InputError, match="guidance_scale = 1, but it was learned with 5"):
        equipped(folders["sd"], schedule)(lines, guidance_scale=1.0, **call)
    with pytest.warns(UserWarning, match="guidance_scale = 7, but"):
        equipped(folders["sd"], schedule, force=True)(lines, guidance_scale=7.0, **call)


def test_without_diffusers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['diffusers'] = None\nimport ld3_dist\n"
    code += "import ld3_dist.integrations.diffusers"
    done = warm_python.run(["-c", code])
    assert (
        "ImportError: LD3Scheduler needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        in done.stderr
    )
