"""Solvers: a solver is a pure function from a time grid to a table of coefficients.

Every solver here is linear in the starting noise x_T and in the network's outputs
m_j = D(y_j, evals_j). A grid therefore determines numbers `state` and `outputs` with

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j        i = 0 … E

where y_0 = x_T and y_E is the sample (non-stationary solvers, Shaul et al. 2024, arXiv 2403.01329).

A rule gives each state by the states and outputs before it, with lower triangular matrices:

    y_{i+1} = sum_j carry_ij y_j + inject_ij m_j

One triangular solve turns these into the table. All of it is ordinary torch code in float64 on
scalars. Autograd therefore gives exact gradients with respect to knots and network times, and K
grids are built at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import rules
from .errors import InputError
from .grid import Grid
from .noise import NoiseSchedule
from .registry import Registry

MOST_NFE = 1000
"""Network evaluations of a schedule or a teacher; a table has half their square of coefficients."""


@dataclass(frozen=True)
class Tableau:
    """The coefficients of a solver on a grid.

    evals: network times [*K, E].
    state: weights of x_T [*K, E+1].
    outputs: weights of the network's outputs [*K, E+1, E], strictly lower triangular.
    noise: the noise schedule of the times; `sample` refuses a denoiser of another one. None if it
        is not known.
    """

    evals: Tensor
    state: Tensor
    outputs: Tensor
    noise: NoiseSchedule | None = None

    def __post_init__(self) -> None:
        *lead, E = self.evals.shape
        if self.state.shape != (*lead, E + 1) or self.outputs.shape != (*lead, E + 1, E):
            raise InputError(
                f"tableau: evals {tuple(self.evals.shape)}, state {tuple(self.state.shape)} and "
                f"outputs {tuple(self.outputs.shape)} do not fit; need [*K, E], [*K, E+1] and "
                "[*K, E+1, E]"
            )

    @property
    def nfe(self) -> int:
        """The number E of network evaluations."""
        return self.evals.shape[-1]

    def take(self, members: Tensor | list[int] | slice) -> Tableau:
        """The table of some of the K members."""
        index = (
            members
            if isinstance(members, slice)
            else torch.as_tensor(members, device=self.evals.device)
        )
        return Tableau(self.evals[index], self.state[index], self.outputs[index], self.noise)

    def leaf(self, like: Tensor) -> Tableau:
        """A copy to differentiate with respect to, on the device and in the dtype of `like`."""
        evals, state, outputs = (
            part.detach().to(like.device, like.dtype, copy=True).requires_grad_()
            for part in (self.evals, self.state, self.outputs)
        )
        return Tableau(evals, state, outputs, self.noise)

    def backward(self, leaf: Tableau, members: Tensor, finite: Tensor | None = None) -> None:
        """Pass the gradients of `leaf` on to the parameters from which this table was built.

        Args:
            leaf: a `leaf` of the table of `members`, after its backward pass.
            members: numbers of these members [K'] in this table.
            finite: booleans [K']; members with False pass on zero. Entries of the gradient that are
                not finite pass on zero in any case.
        """
        parts = [
            (getattr(self, name), getattr(leaf, name).grad)
            for name in ("evals", "state", "outputs")
        ]
        parts = [(whole, grad) for whole, grad in parts if whole.requires_grad and grad is not None]

        def spread(whole: Tensor, grad: Tensor) -> Tensor:
            if finite is not None:
                grad = torch.where(finite.view(-1, *[1] * (grad.ndim - 1)), grad, 0.0)
            grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
            grad = grad.to(whole.device).to(whole)  # in this order: not every device has float64
            return torch.zeros_like(whole).index_copy(0, members.to(whole.device), grad)

        torch.autograd.backward([whole for whole, _ in parts], [spread(*part) for part in parts])


@dataclass(frozen=True)
class Solver:
    """A rule with its order; `make_solver` makes one from its name."""

    name: str
    order: int
    rule: Callable[[rules.Points], rules.Step]
    stages: int = 1
    interior: float = 1.0
    """The place of a two-stage step's second stage, as a fraction of the step in lam.

    1 is the next knot.
    """

    def steps(self, nfe: int) -> int:
        """The number of steps that take exactly nfe evaluations.

        With an odd nfe, a two-stage solver ends on a step of one stage. Raises InputError for
        nfe < 1.
        """
        if nfe < 1:
            raise InputError(f"nfe = {nfe}: solver {self.name} needs at least 1 network evaluation")
        return -(-nfe // self.stages)

    def brackets(self, nfe: int) -> tuple[list[int], list[int]]:
        """The numbers of the knots before and after each evaluation's nominal time.

        A network time may move as far as these knots.
        """
        N = self.steps(nfe)
        low, high = [], []
        for j in range(nfe):
            i, stage = divmod(j, self.stages)
            interior = stage == 1 and self.interior < 1
            at = i + stage
            low.append(i if interior else max(at - 1, 0))
            high.append(i + 1 if interior else min(at + 1, N))
        return low, high

    def nominal(self, noise: NoiseSchedule, knots: Tensor, nfe: int | None = None) -> Tensor:
        """The nominal times of the evaluations [*K, E], as the rule places them.

        Raises InputError if nfe evaluations do not take as many steps as the knots have.
        """
        N = knots.shape[-1] - 1
        nfe = self.stages * N if nfe is None else nfe
        if self.steps(nfe) != N:
            raise InputError(
                f"{nfe} evaluations of {self.name} take {self.steps(nfe)} steps, the grid has {N}"
            )
        if self.stages == 1:
            return knots[..., :-1]
        second = knots[..., 1:]
        if self.interior < 1:
            second = rules.interior_times(noise, knots, self.interior)
        return torch.stack([knots[..., :-1], second], -1).flatten(-2)[..., :nfe]

    def coupled(self, noise: NoiseSchedule, knots: Tensor, nfe: int | None = None) -> Grid:
        """The grid with every network time at its nominal place; knots [*K, N+1]."""
        return Grid(knots, self.nominal(noise, knots, nfe))

    def recurrence(self, noise: NoiseSchedule, grid: Grid) -> rules.Step:
        """The matrices carry and inject [*K, E, E] of the rule, differentiable in knots and evals.

        Raises InputError if the grid leaves the schedule's range or its evals do not fit the
        solver.
        """
        E, N, lead = grid.nfe, grid.steps, grid.knots.shape[:-1]
        if self.steps(E) != N:
            raise InputError(
                f"{self.name} on {N} steps makes {self.stages * N} evaluations, the grid has {E}"
            )
        grid.within(noise)
        points = rules.Points(noise, grid.knots.reshape(-1, N + 1), grid.evals.reshape(-1, E))
        carry, inject = (
            part.expand(len(points.t), E, E).reshape(*lead, E, E) for part in self.rule(points)
        )
        return carry, inject

    def tableau(self, noise: NoiseSchedule, grid: Grid) -> Tableau:
        """The coefficients of this solver on this grid.

        The recurrence is unrolled by forward substitution. Raises as `recurrence` does.
        """
        carry, inject = self.recurrence(noise, grid)
        system = torch.eye(grid.nfe + 1).to(carry) - pad(carry, (0, 1, 1, 0))
        start = torch.eye(grid.nfe + 1, 1).to(carry).expand(*inject.shape[:-2], -1, -1)
        rows = torch.cat([start, pad(inject, (0, 0, 1, 0))], -1)
        rows = torch.linalg.solve_triangular(system, rows, upper=False, unitriangular=True)
        return Tableau(grid.evals, rows[..., 0], rows[..., 1:], noise)


solvers: Registry[Callable[..., Solver]] = Registry("solver")
"""Functions of keyword options that return a Solver."""

MULTISTEP = r"(dpmpp|unipc|ipndm|deis)-(\d)(?:-(bh1|lam))?"


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by name, with options in the name or beside it.

    Args:
        name: euler ddim heun dpm-2 dpmpp-{1,2,3} unipc-{1,2,3}[-bh1|-bh2] ipndm-{1..4}
            deis-{1,2,3}[-lam], the name of a registered solver, or python:FILE.py:NAME. Options may
            follow a question mark: "dpmpp-3?lower_order_final=false", "dpm-2?interior=0.4".
        options: lower_order_final (multistep solvers) ends a grid on lower orders. None does what
            each method prescribes (dpmpp: below 15 steps; unipc: always; the others never).
            interior (dpm-2) places the second evaluation, as a fraction of the step in lam.

    Raises:
        InputError: unknown name (the error suggests the nearest known one), an option that the
            solver does not have, interior outside (0, 1).
    """
    plain, _, query = name.partition("?")
    given = _parse(name, query) | options
    try:
        made = solvers.get(plain.removesuffix("-bh2"))(**given)
    except TypeError as error:
        raise InputError(
            f"solver {name!r}: {', '.join(given) or 'no options'} do not suit it ({error})"
        ) from error
    except InputError:
        raise
    except Exception as error:  # it may be somebody else's code: anything may come
        raise InputError(
            f"solver {name!r}: cannot be made ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(made, Solver):
        raise InputError(f"solver {name!r}: made a {type(made).__name__}, need a Solver")
    return replace(made, name=name)


def _parse(name: str, query: str) -> dict[str, Any]:
    """The options behind the question mark of a solver's name: true, false, numbers and words."""
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, mark, text = part.partition("=")
        if not mark or not key.isidentifier() or key in found:
            raise InputError(f"solver {name!r}: write options once each, as key=value&key=value")
        try:
            found[key] = words[text.lower()] if text.lower() in words else float(text)
        except ValueError:
            found[key] = text
    return found


def _multistep(family: str, order: int, variant: str | None) -> Callable[..., Solver]:
    prescribed = {"dpmpp": None, "unipc": True}.get(family, False)

    def make(lower_order_final: bool | None = None) -> Solver:
        if lower_order_final not in (None, True, False):
            raise InputError(
                f"lower_order_final = {lower_order_final!r} of {family}-{order}: "
                "must be true, false or none"
            )
        final = prescribed if lower_order_final is None else lower_order_final
        rule = {
            "dpmpp": lambda p: rules.dpmpp(p, order, final),
            "unipc": lambda p: rules.unipc(p, order, bool(final), variant == "bh1"),
            "ipndm": lambda p: rules.ipndm(p, order, final),
            "deis": lambda p: rules.deis(p, order, final, variant == "lam"),
        }[family]
        return Solver(family, order, rule)

    return make


def _dpm_2(interior: float = 0.5) -> Solver:
    if not isinstance(interior, float) or not 0 < interior < 1:
        raise InputError(f"interior = {interior} of dpm-2: must lie strictly between 0 and 1")
    return Solver("dpm-2", 2, lambda p: rules.dpm_2(p, interior), 2, interior)


def _heun() -> Solver:
    return Solver("heun", 2, lambda p: rules.in_time(p, 2), 2)


def _euler() -> Solver:
    return Solver("euler", 1, lambda p: rules.in_time(p, 1))


def _ddim() -> Solver:
    return Solver("ddim", 1, lambda p: rules.ipndm(p, 1, False))


SINGLESTEP = {"euler": _euler, "ddim": _ddim, "heun": _heun, "dpm-2": _dpm_2}

SOLVERS = (
    "euler", "ddim", "heun", "dpm-2", "dpmpp-1", "dpmpp-2", "dpmpp-3",
    "unipc-1", "unipc-2", "unipc-3", "unipc-1-bh1", "unipc-2-bh1", "unipc-3-bh1",
    "ipndm-1", "ipndm-2", "ipndm-3", "ipndm-4", "deis-1", "deis-2", "deis-3",
    "deis-2-lam", "deis-3-lam",
)  # fmt: skip

for _name in SOLVERS:
    if _found := re.fullmatch(MULTISTEP, _name):
        solvers.register(_name, _multistep(_found[1], int(_found[2]), _found[3]))
    else:
        solvers.register(_name, SINGLESTEP[_name])
