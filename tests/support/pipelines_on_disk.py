"""What the tests of diffusers pipelines share: one folder of each kind, the stock pipeline, our
loop, a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import original_checkpoints as original
import pytest
import tiny_pipelines as tiny
import torch

from ld3_dist.core.denoiser import Condition, Denoiser
from ld3_dist.core.noise import FlowMatching
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models import ModelOptions

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def converted(folder: Path, unet: dict[str, Any]) -> Path:
    """Latent diffusion from a checkpoint in its original form."""
    from ld3_dist.models.diffusers.latent_diffusion import convert_original

    checkpoint, config, *_ = original.write(folder.parent / f"{folder.name}-original", unet)
    return convert_original(checkpoint, config, folder)


PROMPTS = ["a red cat", "two birds", "the sea at night"]
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "pixel": tiny.pixel,
    "latent": tiny.latent,
    "dit": tiny.class_latent,
    "cin": lambda folder: converted(folder, original.ON_CLASSES),
    "bedroom": lambda folder: converted(folder, original.UNCONDITIONAL),
    "sd": tiny.text,
    "sdxl": lambda folder: tiny.text(folder, xl=True),
    "rectified": tiny.rectified,
    "sd3": tiny.flow_sd3,
    "flux": tiny.flow_flux,
    "schnell": lambda folder: tiny.flow_flux(folder, embedded=False),
}
TEXT = ("sd", "sdxl", "rectified", "sd3", "flux", "schnell")


def build_all(root: Path) -> dict[str, Path]:
    """A folder of each kind, and a file of prompts."""
    diffusers.utils.logging.disable_progress_bar()
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return {
        "prompts": root / "prompts.txt",
        **{name: build(root / name) for name, build in BUILDERS.items()},
    }


def options_for(kind: str, folders: dict[str, Path], **more: Any) -> ModelOptions:
    text = {"prompts": str(folders["prompts"])} if kind in TEXT else {}
    size = {"size": (16, 16)} if kind in ("flux", "schnell") else {}
    return ModelOptions(**{**text, **size, **more})


def stock(folder: Path) -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "sd3" else {}
    kind = (
        diffusers.StableDiffusionPipeline
        if folder.name == "rectified"
        else diffusers.DiffusionPipeline
    )
    pipeline = kind.from_pretrained(str(folder), **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class _To:
    """A denoiser with the same noise schedule to another end."""

    inner: Denoiser
    noise: FlowMatching

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.inner(x, t, condition)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(x)


def ours(
    denoiser: Denoiser, knots: list[float], noise: torch.Tensor, condition: Condition
) -> torch.Tensor:
    solver, schedule = make_solver("ddim"), denoiser.noise
    if isinstance(schedule, FlowMatching):  # stock pipelines integrate to 0
        schedule = FlowMatching(t_min=1e-6)
        denoiser = _To(denoiser, schedule)
    grid = solver.coupled(schedule, torch.tensor(knots, dtype=torch.float64))
    with torch.no_grad():
        return sample(denoiser, solver.tableau(schedule, grid), noise, condition)


DDIM_KNOTS = [
    752 / 1000,
    502 / 1000,
    252 / 1000,
    2 / 1000,
    1 / 1000,
]  # steps 751, 501, 251, 1, then the table's start


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.square().mean().sqrt()
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-4)
