"""torch.compile by repeated blocks: which modules are compiled, and that results stay the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines_on_disk import options_for
from schedules import one_thread  # noqa: F401
from torch import nn

import ld3_dist as ld3
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import Model, open_model
from ld3_dist.models.compiling import compile_network, repeated_blocks

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and HEADERS.is_file()), reason="needs a C++ compiler and Python.h"
)


def opened(family: str, folders: dict[str, Path], **options: Any) -> Model:
    return open_model(f"diffusers:{folders[family]}", options_for(family, folders, **options))


def to_be_compiled(model: Model) -> list[str]:
    """Names of the classes of the modules that a call compiles."""
    denoiser = model.denoiser
    assert isinstance(denoiser, nn.Module)
    return sorted(type(m).__name__ for m in denoiser.modules() if m._compiled_call_impl)


@needs_compiler
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


NETWORK = """
import torch
from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.noise import EDM
from ld3_dist.models import to_device

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(5, 4)

    def forward(self, x, time, condition):
        return self.inner(torch.cat([x, time[:, None]], 1)).tanh()

def build(options):
    return NetworkDenoiser(to_device(Net(), options), EDM(), (4,), "data", lambda t: t.log())
"""


@needs_compiler
def test_a_compiled_network_learns_the_same_schedule(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(NETWORK)
    spec = f"python:{tmp_path}/tiny.py:build"
    plain, compiled = ld3.load_model(spec), ld3.load_model(spec, compile=True)
    pairs = ld3.teach(plain, 20, teacher="unipc-3/10/karras")
    found = [
        ld3.learn(model, "ddim", 3, pairs[:10], pairs[10:], epochs=2) for model in (plain, compiled)
    ]
    torch._dynamo.reset()
    start, learned = found[0].losses["start_loss"], found[0].losses["valid_loss"]
    assert start
    assert learned
    assert learned < start
    assert found[1].losses == pytest.approx(found[0].losses, rel=1e-3)
    assert found[1].knots == pytest.approx(found[0].knots, rel=1e-3)


def test_a_machine_without_compilers_is_named_before_any_work(tmp_path: Path) -> None:
    """By load_model, doctor and learn. The driver of a sweep only looks at the model."""
    (tmp_path / "tiny.py").write_text(NETWORK)
    (tmp_path / "e.yaml").write_text(
        "name: e\nmodels:\n"
        f"- {{model: 'python:{tmp_path}/tiny.py:build', name: tiny, compile: true}}\n"
        "solvers: [ddim]\nnfe: [2]\npairs: {train: 4, valid: 4}\n"
    )
    code = f"""
import ld3_dist as ld3
from ld3_dist.doctor.checks import examine
from ld3_dist.experiment.reading import load_experiment
from ld3_dist.tasks.planning import make_plan
try:
    ld3.load_model("python:{tmp_path}/tiny.py:build", compile=True)
except ld3.InputError as error:
    print("load_model:", error)
experiment = load_experiment("{tmp_path}/e.yaml")
print("plan:", make_plan(experiment).cells[0].id)
for check in examine(experiment):
    if check.name == "tiny, compile":
        print("doctor:", check.status, check.detail)
"""
    nowhere = {"CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    learn = ["learn", "--model", f"python:{tmp_path}/tiny.py:build", "--nfe", "2", "--compile"]
    ran, learned = (
        subprocess.run(
            [sys.executable, *given], env=os.environ | nowhere, capture_output=True, text=True
        )
        for given in (["-c", code], ["-m", "ld3_dist.cli", *learn, "--out", tmp_path / "my.json"])
    )
    assert ran.returncode == 0, ran.stderr
    assert learned.returncode == 2, learned.stderr
    assert not (tmp_path / "my.json").exists()
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    for words in (said["load_model"], said["doctor"], " ".join(learned.stderr.split())):
        assert "compile true: torch.compile fails on cpu" in words
        assert "needs a C++ compiler on this machine, or leave compile out" in words
    assert said["doctor"].startswith("missing")
    assert said["plan"] == "tiny/ddim/2"
