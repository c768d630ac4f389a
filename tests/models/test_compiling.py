"""torch.compile by repeated blocks: which modules are compiled, and that results stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines_on_disk import options_for
from schedules import one_thread  # noqa: F401
from torch import nn

from ld3_dist.core.sample import draw_noise
from ld3_dist.models import Model, open_model
from ld3_dist.models.compiling import compile_network, repeated_blocks


def opened(family: str, folders: dict[str, Path], **options: Any) -> Model:
    return open_model(f"diffusers:{folders[family]}", options_for(family, folders, **options))


def to_be_compiled(model: Model) -> list[str]:
    """Names of the classes of the modules that a call compiles."""
    denoiser = model.denoiser
    assert isinstance(denoiser, nn.Module)
    return sorted(type(m).__name__ for m in denoiser.modules() if m._compiled_call_impl)


@pytest.mark.parametrize(
    ("family", "classes"),
    [
        ("sd", {"BasicTransformerBlock"}),
        ("flux", {"FluxTransformerBlock", "FluxSingleTransformerBlock"}),
        ("pixel", {"PixelNetwork"}),  # it names no blocks: all of it
    ],
)
def test_a_model_is_compiled_by_the_blocks_that_it_names(
    family: str, classes: set[str], folders: dict[str, Path]
) -> None:
    assert set(to_be_compiled(opened(family, folders, compile=True))) == classes
    assert to_be_compiled(opened(family, folders)) == []


def test_compiled_blocks_change_no_result(folders: dict[str, Path]) -> None:
    """Outputs and gradients with respect to input and time, through a compiled graph."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = opened("sd", folders)
        denoiser: Any = model.denoiser
        if compiled:
            parts = compile_network(denoiser, backend="eager")
            assert len(parts) == len(repeated_blocks(denoiser)) > 1
        x = draw_noise(0, range(2), tuple(denoiser.shape)).requires_grad_()
        t = torch.full((2,), 0.4, requires_grad=True)
        x_0 = denoiser(x, t, model.draw_condition(0, range(2)))
        found.append([x_0.detach(), *torch.autograd.grad(x_0.square().sum(), (x, t))])
    torch._dynamo.reset()
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
