"""An epoch of learning never waits for the device: nothing in it needs a tensor's value on the
host.

What waits on a GPU shows on a CPU, too: reading a scalar, `nonzero`, all whose output shape depends
on values, and eigenvalues, which are taken on the CPU alone; so are the checks that are exempt."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ld3_dist.core.distance import Elementwise
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning import descent
from ld3_dist.core.learning.descent import Descent, newton_schulz
from ld3_dist.core.learning.family import CurveDescent
from ld3_dist.core.learning.learn import Pairs, Problem, make_config
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models import open_model
from ld3_dist.models.analytic.mixture import mixture_2d

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "_unique2",
    "item",
}
WAITING |= {"linalg_eigh", "_linalg_eigh", "linalg_cholesky", "linalg_inv"}
EXEMPT = {("grid.py", "_demand"), ("rules.py", "on_noise")}


class Waits(TorchDispatchMode):
    """The calls that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in WAITING or masks:
            stack = {
                (frame.filename.rpartition("/")[2], frame.name)
                for frame in traceback.extract_stack()
            }
            if not stack & EXEMPT:
                self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{}, {"coefficients": True}, {"checkpointing": "always"}, {"coordinate": "time"}]
)
@pytest.mark.parametrize("solver", ["unipc-3", "ipndm-3", "dpmpp-3", "heun"])
@pytest.mark.siblings(5)
def test_an_epoch_never_waits(
    solver: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "inverse_root", newton_schulz)  # the way of accelerators
    model = open_model("digits").denoiser
    noise = draw_noise(0, range(6), model.shape)
    pairs = Pairs(noise, noise, torch.arange(6))
    student = make_solver(solver)
    knots = torch.stack(
        [discretize(model.noise, student.steps(4), name) for name in ("karras", "log_snr")]
    )
    config = make_config(**{"gamma": 0.01, "batch": 2, "checkpointing": "never", **settings})
    session = Descent(
        Problem(model, student, knots, pairs[:4], pairs[4:], Elementwise(2), nfe=4, seeds=[0, 1]),
        config,
    )
    session.validate(0)
    with Waits() as waits:
        session.epoch(1)
    assert waits.found == []
    with waits:  # the instrument itself
        counts = noise[noise > 0].numel(), noise.sum().item(), noise.nonzero()
    assert waits.found == ["index", "_local_scalar_dense", "nonzero"], counts


def test_an_epoch_of_a_family_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "inverse_root", newton_schulz)
    mixture, student = mixture_2d(EDM()), make_solver("unipc-3")
    noise = draw_noise(0, range(6), mixture.shape).double()
    pairs = Pairs(noise, noise)
    family = {nfe: discretize(EDM(), nfe, "log_snr").repeat(2, 1) for nfe in (3, 4)}
    given = Problem(
        mixture, student, family[4], pairs[:4], pairs[4:], Elementwise(2), 4, [0, 1], None, family
    )
    config = make_config("curve", gamma=0.01, batch=2, checkpointing="never")
    session = CurveDescent(given, config)
    session.validate(0)
    with Waits() as waits:
        session.epoch(1)
    assert waits.found == []
