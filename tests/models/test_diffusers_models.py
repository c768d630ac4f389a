"""diffusers pipelines as denoisers: what stock pipelines sample, our loop samples; tiny random
pipelines, offline.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from pipelines_on_disk import (
    BUILDERS,
    DDIM_KNOTS,
    PROMPTS,
    close,
    diffusers,
    options_for,
    ours,
    stock,
)

from ld3_dist.core.noise import FlowMatching
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import ModelOptions, open_model


def test_pixel_pipeline(folders: dict[str, Path]) -> None:
    model = open_model(f"diffusers:{folders['pixel']}")
    noise = draw_noise(0, range(2), model.denoiser.shape)
    pipeline = stock(folders["pixel"])
    x = noise
    pipeline.scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    close(ours(model.denoiser, DDIM_KNOTS, noise, None), x)
    assert (model.image_shape, model.latent, model.conditioning) == ((3, 8, 8), False, "none")


def test_latent_pipeline(folders: dict[str, Path]) -> None:
    model = open_model(f"diffusers:{folders['latent']}")
    noise = draw_noise(0, range(2), model.denoiser.shape)
    pipeline = stock(folders["latent"])
    x = noise
    pipeline.scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
        image = pipeline.vqvae.decode(x / 0.7).sample
        got = ours(model.denoiser, DDIM_KNOTS, noise, None)
        close(got, x)
        # from the same latent: the codebook is not continuous
        close(model.denoiser.decode(x), image)
    assert (model.image_shape, model.latent) == ((3, 16, 16), True)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_class_pipeline(
    folders: dict[str, Path], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(f"diffusers:{folders['dit']}", ModelOptions(guidance=guidance))
    noise = draw_noise(0, range(3), model.denoiser.shape)
    classes = model.draw_condition(7, range(3))
    assert isinstance(classes, torch.Tensor)
    assert classes.max() < 1000
    from diffusers.pipelines.dit import pipeline_dit

    pipeline = stock(folders["dit"])
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *a, **k: noise)
    expected = pipeline(
        classes.tolist(), guidance_scale=guidance, num_inference_steps=4, output_type="pt"
    ).images
    with torch.no_grad():
        got = model.denoiser.decode(ours(model.denoiser, DDIM_KNOTS, noise, classes))
    close((got / 2 + 0.5).clamp(0, 1), expected)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_text_pipelines(folders: dict[str, Path], kind: str, guidance: float) -> None:
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders, guidance=guidance))
    noise = draw_noise(0, range(2), model.denoiser.shape)
    condition = model.draw_condition(3, range(2))
    lines = [PROMPTS[model.draw_condition.__self__.pick(3, i)] for i in range(2)]  # type: ignore[attr-defined]
    call = {"guidance_scale": guidance, "num_inference_steps": 4, "latents": noise}
    pipeline = stock(folders[kind])
    expected = pipeline(lines, output_type="latent", **call).images
    got = ours(model.denoiser, DDIM_KNOTS, noise, condition)
    close(got, expected)
    image = pipeline(lines, output_type="pt", **call).images
    with torch.no_grad():
        close((model.denoiser.decode(got) / 2 + 0.5).clamp(0, 1), image)
    assert re.fullmatch(r"prompts:prompts\.txt:[0-9a-f]{8}", model.conditioning)


FLOW_KNOTS = [0.99, 0.7, 0.4, 0.1, 1e-6]


@pytest.mark.parametrize("kind", ["sd3", "flux", "schnell"])
@pytest.mark.parametrize("guidance", [None, 4.0])
@pytest.mark.siblings(3)
def test_flow_pipelines(folders: dict[str, Path], kind: str, guidance: float | None) -> None:
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders, guidance=guidance))
    assert isinstance(model.denoiser.noise, FlowMatching)
    noise = draw_noise(0, range(2), model.denoiser.shape)
    condition = model.draw_condition(3, range(2))
    lines = [PROMPTS[model.draw_condition.__self__.pick(3, i)] for i in range(2)]  # type: ignore[attr-defined]
    pipeline = stock(folders[kind])
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    call: dict[str, Any] = {
        "sigmas": FLOW_KNOTS[:4],
        "num_inference_steps": 4,
        "height": 16,
        "width": 16,
    }
    b, c, h, w = noise.shape
    if kind == "sd3":
        call["guidance_scale"] = guidance or 1.0
    elif kind == "flux":
        call["guidance_scale"] = guidance or 3.5
    else:
        call.update(true_cfg_scale=guidance or 1.0, negative_prompt=["", ""] if guidance else None)
    latents = noise if kind == "sd3" else pipeline._pack_latents(noise, b, c, h, w)
    expected = pipeline(lines, latents=latents, output_type="latent", **call).images
    if kind != "sd3":
        expected = pipeline._unpack_latents(expected, 16, 16, pipeline.vae_scale_factor)
    close(ours(model.denoiser, FLOW_KNOTS, noise, condition), expected)
    config = pipeline.vae.config
    with torch.no_grad():
        image = pipeline.vae.decode(expected / config.scaling_factor + config.shift_factor).sample
        close(model.denoiser.decode(expected), image)
    if kind == "sd3":
        assert model.settings["shift"] == 3.0
    else:  # 16 tokens: log-shift on the line through (256, 0.5) and (4096, 1.15)
        tokens = h * w // 4
        assert model.settings["shift"] == pytest.approx(
            torch.tensor(0.5 + 0.65 * (tokens - 256) / 3840).exp().item(), rel=1e-6
        )
    assert model.settings["embedded_guidance"] == (kind == "flux")


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_rectified_flow_pipeline(folders: dict[str, Path], guidance: float) -> None:
    """InstaFlow's own sampler: Euler from t = 1 in equal steps, the network asked at 1000 t, x += v
    / n.
    """
    model = open_model(
        f"diffusers:{folders['rectified']}", options_for("rectified", folders, guidance=guidance)
    )
    assert isinstance(model.denoiser.noise, FlowMatching)
    assert model.prediction == "-velocity"
    noise, condition = (
        draw_noise(0, range(2), model.denoiser.shape),
        model.draw_condition(3, range(2)),
    )
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folders["rectified"]), safety_checker=None
    )
    lines = [PROMPTS[model.draw_condition.__self__.pick(3, i)] for i in range(2)]  # type: ignore[attr-defined]
    with torch.no_grad():
        prompt, null = pipeline.encode_prompt(lines, "cpu", 1, True)
        x, n = noise, 4
        for i in range(n):
            time = torch.full((2,), 1000.0 * (1 - i / n))
            v, v_null = (
                pipeline.unet(x, time, encoder_hidden_states=c).sample for c in (prompt, null)
            )
            x = x + (v_null + guidance * (v - v_null)) / n
    close(ours(model.denoiser, [1.0, 0.75, 0.5, 0.25, 1e-6], noise, condition), x)
    plain = open_model(f"diffusers:{folders['sd']}", options_for("sd", folders, guidance=guidance))
    assert plain.hash != model.hash  # the same weights, another meaning


@pytest.mark.parametrize("kind", list(BUILDERS))
@pytest.mark.siblings(4)
def test_times_reach_the_network_unrounded_and_differentiable(
    folders: dict[str, Path], kind: str
) -> None:
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders))
    denoiser = model.denoiser
    x, condition = draw_noise(0, range(2), denoiser.shape), model.draw_condition(0, range(2))
    t = torch.tensor([0.4173, 0.4173], requires_grad=True)
    net = denoiser.net  # type: ignore[attr-defined]

    def network(time: float) -> torch.Tensor:
        with torch.no_grad():
            return net(x, torch.full((2,), time), condition)

    assert not torch.equal(network(417.3), network(417.0))
    difference = (network(417.8) - network(416.8)).norm()
    inner = (network(417.3) - network(416.8)).norm() + (network(417.8) - network(417.3)).norm()
    assert inner < 1.2 * difference  # moves evenly with time, in no steps
    (gradient,) = torch.autograd.grad(denoiser(x, t, condition).square().mean(), t)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().min() > 0


def test_half_precision_keeps_fractional_times(folders: dict[str, Path]) -> None:
    for kind in ("pixel", "sd", "sdxl", "sd3", "flux"):
        options = options_for(kind, folders, dtype="bfloat16")
        model = open_model(f"diffusers:{folders[kind]}", options)
        exact = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders))
        x, condition = (
            draw_noise(0, range(2), model.denoiser.shape),
            model.draw_condition(0, range(2)),
        )
        embedded: list[torch.Tensor] = []
        inner = model.denoiser.net.inner  # type: ignore[attr-defined]
        embedding = (
            inner.time_proj if hasattr(inner, "time_proj") else inner.time_text_embed.time_proj
        )
        embedding.register_forward_pre_hook(
            lambda module, arguments, seen=embedded: seen.append(arguments[0])
        )
        t = torch.tensor([0.4173, 0.8231])
        with torch.no_grad():
            out = model.denoiser(x, t, condition)
            expected = exact.denoiser(x, t, condition)
        steps = 1000 * t - (0 if isinstance(model.denoiser.noise, FlowMatching) else 1)
        torch.testing.assert_close(embedded[0], steps, rtol=0, atol=1e-3)
        assert out.dtype == torch.float32
        assert (out - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_predictions(tmp_path: Path, prediction: str, zero_snr: bool) -> None:
    """The stock scheduler's own estimate of x_0 at integer steps."""
    scheduler = tiny.ddim(prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    folder = tiny.pixel(tmp_path / "model", scheduler)
    denoiser = open_model(f"diffusers:{folder}").denoiser
    pipeline = stock(folder)
    pipeline.scheduler.set_timesteps(1000)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    for k in (0, 1, 250, 998):
        with torch.no_grad():
            out = pipeline.unet(x, k).sample
            expected = pipeline.scheduler.step(out, k, x).pred_original_sample
            got = denoiser(x, torch.full((2,), (k + 1) / 1000, dtype=torch.float64))
        close(got, expected)
    assert denoiser.noise.starts_at_pure_noise == (zero_snr and prediction != "epsilon")
    assert denoiser.noise.t_max == (0.999 if zero_snr and prediction == "epsilon" else 1.0)
    if zero_snr:
        assert float(denoiser.noise.alpha(torch.tensor(1.0).double())) < 1e-6


def test_class_conditional_latents_and_float64_states(tmp_path: Path) -> None:
    model = open_model(f"diffusers:{tiny.latent(tmp_path / 'model', num_class_embeds=3)}")
    label = model.draw_condition(0, range(2))
    x, t = draw_noise(0, range(2), model.denoiser.shape), torch.full((2,), 0.5)
    out = model.denoiser(x, t, label)
    assert (model.conditioning, tuple(model.denoiser.decode(out).shape)) == (
        "class",
        (2, 3, 16, 16),
    )
    exact = model.denoiser(x.double(), t.double(), label)
    assert exact.dtype == torch.float64
    close(exact.float(), out)
