"""The placement of a model changes memory and time, not results: a tiny network of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from edm_pickles import SIZE, VARIANTS, write
from pipelines_on_disk import BUILDERS, options_for
from schedules import one_thread  # noqa: F401
from slowly import few

from ld3_dist.core.denoiser import map_condition
from ld3_dist.core.distance import Elementwise
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Pairs
from ld3_dist.core.learning.objective import Objective
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models import Model, ModelOptions, open_model

L2 = Elementwise(2)
FAMILIES = ("digits", *VARIANTS, *BUILDERS)
QUICK = ("digits", "ddpmpp", "latent", "sdxl", "flux")


@pytest.fixture
def place(pipelines: dict[str, Path], tmp_path: Path, format_modules: None) -> Any:
    """Opens a family's tiny model with options."""

    def opened(family: str, **options: Any) -> Model:
        if family == "digits":
            return open_model("digits", ModelOptions(**options))
        if family in VARIANTS:
            file = tmp_path / f"{family}.pkl"
            if not file.exists():
                write(file, {**VARIANTS[family], **SIZE, "label_dim": 4})
            return open_model(f"edm:{file}", ModelOptions(**options))
        return open_model(
            f"diffusers:{pipelines[family]}", options_for(family, pipelines, **options)
        )

    return opened


def image_and_gradient(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    x = draw_noise(0, range(2), tuple(model.denoiser.shape)).requires_grad_()
    t = torch.full((2,), 0.4)
    x_0 = model.denoiser(x, t, model.draw_condition(0, range(2)))
    (gradient,) = torch.autograd.grad(x_0.square().sum(), x)
    return x_0.detach(), gradient


@pytest.mark.parametrize("family", few(FAMILIES, QUICK))
@pytest.mark.siblings(3)
def test_memory_format_and_dtype_change_no_result(place: Any, family: str) -> None:
    expected = image_and_gradient(place(family))
    for options in ({"channels_last": True}, {"dtype": "float64"}):
        model = place(family, **options)
        assert next(model.denoiser.parameters()).dtype == getattr(
            torch, str(options.get("dtype", "float32"))
        )
        for got, wanted in zip(image_and_gradient(model), expected, strict=True):
            scale = wanted.abs().max()
            torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=2e-4)
    assert not any(p.requires_grad for p in place(family).denoiser.parameters())


@pytest.mark.parametrize("family", few(FAMILIES, QUICK))
def test_recomputed_activations_change_no_result(place: Any, family: str) -> None:
    """A learning step through network and decoder, with activations kept and made again."""
    model = place(family)
    noise, solver = model.denoiser.noise, make_solver("ipndm-2")
    tableau = solver.tableau(noise, solver.coupled(noise, discretize(noise, 2, "uniform")[None]))
    unit = draw_noise(0, range(2), tuple(model.denoiser.shape))
    pairs = Pairs(unit, torch.zeros(2, *model.image_shape), model.draw_condition(0, range(2)))
    found = []
    for checkpointing in ("never", "always"):
        x = unit[None].clone().requires_grad_()
        leaf = tableau.leaf(x)
        objective = Objective(model.denoiser, L2, checkpointing)
        loss = objective.gradients(leaf, x, pairs, L2.features(pairs.target), torch.arange(2)[None])
        found.append([loss, x.grad, leaf.outputs.grad])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", few(FAMILIES, QUICK))
def test_everything_is_on_the_device_that_is_asked_for(place: Any, family: str) -> None:
    """The device that only knows shapes: whatever stayed behind on the CPU would be an error."""
    conditions = place(family).draw_condition(0, range(2))
    model = place(family)
    denoiser = model.denoiser.to("meta")  # type: ignore[attr-defined]
    x = torch.empty(2, *denoiser.shape, device="meta")
    t = torch.full((2,), 0.4, device="meta")
    out = denoiser.decode(denoiser(x, t, map_condition(lambda c: c.to("meta"), conditions)))
    assert (out.device.type, tuple(out.shape[1:])) == ("meta", tuple(model.image_shape))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["digits", "ddpmpp", "adm", "sd"])
def test_compilation_changes_no_result(
    place: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled")
    )  # what an interrupted run left is no use
    compiled, expected = (
        image_and_gradient(place(family, compile=compile)) for compile in (True, False)
    )
    for got, wanted in zip(compiled, expected, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=2e-3)


NAMED = {  # billions of parameters of the networks of experiments/, as their publishers state them
    "stable-diffusion-v1": (
        "UNet2DConditionModel",
        0.860,
        {
            "sample_size": 64,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "block_out_channels": (320, 640, 1280, 1280),
        },
    ),
    "stable-diffusion-3-medium": (
        "SD3Transformer2DModel",
        2.0,
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
    ),
    "FLUX.1-dev": (
        "FluxTransformer2DModel",
        12,
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_published_parameter_counts(name: str) -> None:
    import diffusers

    kind, billions, config = NAMED[name]
    with torch.device("meta"):
        net = getattr(diffusers, kind)(**config)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)
