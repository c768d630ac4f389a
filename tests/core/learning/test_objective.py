"""Losses and gradients in bounded memory: the same numbers recomputed or split, and peaks counted
tensor by tensor.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ld3_dist.core.denoiser import Condition
from ld3_dist.core.distance import Elementwise
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning import objective as module
from ld3_dist.core.learning.config import CHECKPOINTING
from ld3_dist.core.learning.learn import Pairs, Problem, learn, make_config
from ld3_dist.core.learning.objective import Objective
from ld3_dist.core.noise import EDM
from ld3_dist.core.solver import make_solver

L2, EDGE = Elementwise(2), 16


class Network(nn.Module):
    """Convolutions on 16 x 16 latents and a decoder to 32 x 32; refuses more than `most` rows as a
    full card would.

    Its activations are about a thousand times its input, less than those of any network worth
    recomputing."""

    noise = EDM()
    shape = (1, EDGE, EDGE)

    def __init__(
        self, most: int = 10**9, error: Callable[[str], RuntimeError] = torch.OutOfMemoryError
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            deep = [m for _ in range(24) for m in (nn.Conv2d(24, 24, 3, padding=1), nn.SiLU())]
            self.body = nn.Sequential(
                nn.Conv2d(1, 24, 3, padding=1), *deep, nn.Conv2d(24, 1, 3, padding=1)
            ).double()
            up = [
                nn.Conv2d(1, 24, 3, padding=1),
                nn.SiLU(),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(24, 3, 3, padding=1),
            ]
            self.decoder = nn.Sequential(*up).double()
        self.requires_grad_(False)
        self.most, self.error, self.calls = most, error, 0

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        self.calls += 1
        if len(x) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 20 GiB")
        scale = (t * t + 1).rsqrt().view(-1, 1, 1, 1)
        return self.body(x * scale) * (1 - scale) + x * scale**2

    def decode(self, x0: Tensor) -> Tensor:
        return self.decoder(x0)


def pairs(count: int) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return Pairs(draw(count, *Network.shape), draw(count, 3, 2 * EDGE, 2 * EDGE))


def gradients(
    network: Network, nfe: int, checkpointing: str = "never", members: int = 3, batch: int = 4
) -> list[Tensor]:
    """Losses, and gradients by table and noise."""
    solver, given = make_solver("ipndm-3"), pairs(batch)
    knots = torch.stack(
        [discretize(network.noise, nfe, "karras"), discretize(network.noise, nfe, "log_snr")]
    )
    knots = knots[torch.arange(members) % 2]
    leaf = solver.tableau(network.noise, solver.coupled(network.noise, knots)).leaf(given.noise)
    rows = torch.arange(batch).expand(members, -1)
    x = given.noise[rows].requires_grad_()
    objective = Objective(network, L2, checkpointing)
    loss = objective.gradients(leaf, x, given, L2.features(given.target), rows)
    found = [loss, leaf.evals.grad, leaf.state.grad, leaf.outputs.grad, x.grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in found)
    return found  # type: ignore[return-value]


def test_recomputing_changes_no_gradient() -> None:
    for kept, recomputed in zip(
        gradients(Network(), 5), gradients(Network(), 5, "always"), strict=True
    ):
        torch.testing.assert_close(recomputed, kept, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("most", [1, 2, 5, 11])
def test_what_does_not_fit_is_split_and_adds_up(
    most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """12 rows at once do not fit: halved until they do, the same numbers."""
    with caplog.at_level(logging.WARNING, "ld3_dist"):
        split = gradients(Network(most), 4)
    for whole, part in zip(gradients(Network(), 4), split, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-14)
    assert "out of memory with 12 samples at once: going on with 6" in caplog.text


@pytest.mark.slow  # quicker: test_what_does_not_fit_is_split_and_adds_up
def test_a_full_memory_changes_nothing_about_what_is_learned() -> None:
    given, ends = pairs(12), []
    config = make_config(epochs=3, batch=4, gamma=0.01)
    for most in (10**9, 3):
        knots = torch.stack([discretize(EDM(), 4, name) for name in ("karras", "log_snr")])
        *_, end = learn(
            Problem(
                Network(most), make_solver("dpmpp-2"), knots, given[:8], given[8:], L2, seeds=[0, 1]
            ),
            config,
        )
        ends.append(end)
    torch.testing.assert_close(ends[1].best.evals, ends[0].best.evals, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ends[1].best_valid, ends[0].best_valid, rtol=1e-9, atol=0)


def test_one_sample_too_many_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"one sample does not fit into memory .*smaller model dtype"
    ):
        gradients(Network(0), 3)


def test_auto_recomputes_before_it_gives_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that promised to be enough and is not, for keeping activations: measured, and met with
    one sample left.
    """
    monkeypatch.setattr(module, "free_memory", lambda device: 2**50)
    whole = gradients(Network(), 4)
    for measuring in (False, True):
        network, kept = Network(), module.sample

        def small(
            denoiser, tableau, x, condition=None, recompute=False, measuring=measuring, kept=kept
        ):
            if torch.is_grad_enabled() and not recompute and (measuring or tableau.nfe > 1):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return kept(denoiser, tableau, x, condition, recompute)

        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "ld3_dist"):
            patched.setattr(module, "sample", small)
            made = gradients(network, 4, "auto")
        for mine, reference in zip(made, whole, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-14)
    assert "its activations are recomputed" in caplog.text


@pytest.mark.parametrize(
    "message", ["MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory: 8 GB"]
)
def test_every_allocator_is_understood(message: str) -> None:
    network = Network(3, lambda said: RuntimeError(message))
    for whole, part in zip(gradients(Network(), 3), gradients(network, 3), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-14)


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        gradients(
            Network(3, lambda said: RuntimeError("mat1 and mat2 shapes cannot be multiplied")), 3
        )


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self.held:
                    self.held[place] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, place)
        self.most = max(self.most, self.now)
        return out

    def _freed(self, place: int) -> None:
        self.now -= self.held.pop(place, 0)


def peak(nfe: int, checkpointing: str) -> int:
    network = Network()
    with Peak() as found:
        gradients(network, nfe, checkpointing)
    return found.most


@pytest.mark.parametrize("word", CHECKPOINTING)
def test_every_word_of_the_settings_means_what_it_says(word: str) -> None:
    expected = {"always": True, "never": False, "auto": None}
    assert Objective(Network(), L2, word).recompute is expected[word]
    with pytest.raises(InputError, match="unknown checkpointing 'on'"):
        Objective(Network(), L2, "on")


@pytest.mark.slow  # quicker: test_auto_recomputes_only_what_does_not_fit
@pytest.mark.slow  # test_auto_recomputes_only_what_does_not_fit
def test_memory_hardly_grows_with_the_evaluations() -> None:
    kept, recomputed = [[peak(nfe, how) for nfe in (4, 20)] for how in ("never", "always")]
    assert recomputed[1] <= 1.3 * recomputed[0]
    assert kept[1] > 3.5 * kept[0]  # what is saved: else the bound above would say nothing


def test_auto_recomputes_only_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Between one evaluation's activations and all of them it recomputes; below one evaluation's it
    splits as well.
    """
    one, whole = peak(1, "never"), peak(10, "never")
    for free, said, calls in (
        (4 * whole, "kept", 10),
        (2 * one, "recomputed", 20),
        (one // 4, "samples at once", 40),
    ):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        network = Network()
        caplog.clear()
        with caplog.at_level(logging.INFO, "ld3_dist"):
            made = gradients(network, 10, "auto")
        assert said in caplog.text
        assert (
            network.calls - 2 >= calls if said == "samples at once" else network.calls - 2 == calls
        )
        for mine, reference in zip(made, gradients(Network(), 10), strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-14)


def test_parts_cover_every_row_once() -> None:
    for most in range(1, 14):
        objective, rows = Objective(Network(), L2), torch.zeros(3, 4, dtype=torch.long)
        objective.most = most
        for k, b in objective.blocks(rows):
            rows[k, b] += 1
            assert rows[k, b].numel() <= most
        assert bool((rows == 1).all())


def test_a_member_that_is_not_finite_spares_the_others() -> None:
    network, solver, given = Network(), make_solver("ddim"), pairs(3)
    knots = torch.stack([discretize(EDM(), 3, "karras"), discretize(EDM(), 3, "log_snr")])
    found = []
    for table in (solver.tableau(EDM(), solver.coupled(EDM(), knots)),) * 2:
        leaf, rows = table.leaf(given.noise), torch.arange(3).expand(2, -1)
        x = given.noise[rows].clone()
        x[0, 1] = torch.nan if found else x[0, 1]
        loss = Objective(network, L2).gradients(leaf, x, given, L2.features(given.target), rows)
        found.append((loss[1], leaf.evals.grad[1], leaf.outputs.grad[1]))  # type: ignore[index]
    for mine, reference in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=0)
