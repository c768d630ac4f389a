"""The rules of the solvers: each gives the two matrices by which a state follows from those before.

    y_{i+1} = sum_{j<=i} carry_ij y_j + inject_ij m_j
                                                carry and inject [K, E, E], lower triangular

Rules on data write `inject` directly. Rules on noise or velocity put weights on

    eps_j = (y_j - alpha(tau_j) m_j) / sigma(tau_j)

where tau_j is the network's own time (for y_0 = x_T the true one); `on_noise` turns such weights
into the two matrices. A rule handles all steps and members at once. The first steps have too little
history for their order; ghost knots with weight zero fill it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import InputError
from .noise import NoiseSchedule
from .quadrature import gauss_legendre

Step = tuple[Tensor, Tensor]
"""carry, inject."""


class Points:
    """The numbers a rule works with, for K grids at once.

    Knots t with alpha, sigma and lam there [K, N+1]; steps h in lam [K, N]; network times tau
    [K, E].
    """

    def __init__(self, noise: NoiseSchedule, t: Tensor, tau: Tensor) -> None:
        self.noise, self.t, self.tau = noise, t, tau
        self.N, self.E = t.shape[1] - 1, tau.shape[1]
        self.alpha, self.sigma, self.lam = noise.alpha(t), noise.sigma(t), noise.lam(t)
        self.h = self.lam.diff(dim=1)


def orders(p: int, N: int, lower_order_final: bool | None) -> list[int]:
    """The order of each step: 1, 2, …, p, and p-1, …, 1 at the end with `lower_order_final`.

    None lowers it for grids of fewer than 15 steps.
    """
    lower = N < 15 if lower_order_final is None else lower_order_final
    return [min(p, i + 1, N - i if lower else p) for i in range(N)]


@cache
def places(steps: tuple[int, ...], of: tuple[tuple[int, int], ...], ahead: int) -> Tensor:
    """The column in row i for each (order, lag) in `of`, one-hot [N, J, N]; see `banded`."""
    columns = range(len(steps))
    found = [
        [[float(p == o and i + ahead - k == j) for j in columns] for o, k in of]
        for i, p in enumerate(steps)
    ]
    return torch.tensor(found, dtype=torch.float64)


def banded(steps: list[int], weights: Callable[[int], list[Tensor]], ahead: int = 0) -> Tensor:
    """A matrix of weights [K, N, N]: the weight of step i for lag k stands in column i + ahead - k.

    Each row takes the weights of its own order from `steps`. weights(p) returns the weights of
    order p at all steps, one tensor [K, N] per lag.
    """
    found = {(p, k): w for p in sorted(set(steps)) for k, w in enumerate(weights(p))}
    w = torch.stack(list(found.values()))
    return torch.einsum("jki,ijn->kin", w, places(tuple(steps), tuple(found), ahead).to(w))


def history(u: Tensor, order: int) -> list[Tensor]:
    """u [K, N+1] at the start of each step and before: u_i, u_{i-1}, …, `order` tensors [K, N].

    Before the first knot there are ghost knots, as far apart as the first two knots are.
    """
    ghosts = u[:, :1] + (u[:, :1] - u[:, 1:2]) * torch.arange(order - 1, 0, -1).to(u)
    past = torch.cat([ghosts, u[:, :-1]], 1)
    return list(past.unfold(1, order, 1).flip(-1).unbind(-1))


def phi(h: Tensor, n: int) -> list[Tensor]:
    """phi_1 … phi_n of -h, the moments of the exponential on a step (Lu et al. 2022).

        phi_k(-h) = int_0^1 e^{-h (1 - s)} s^{k-1} / (k-1)! ds

    They are integrated numerically. The recurrence phi_{k+1} = (1/k! - phi_k) / h would lose all
    digits on small steps.
    """
    to_end, powers = (v.to(h) for v in exponential_moments(n))
    return list((torch.exp(-h[..., None] * to_end) @ powers).unbind(-1))


@cache
def exponential_moments(n: int) -> tuple[Tensor, Tensor]:
    """For the quadrature of `phi`: 1 - s at the nodes [q], and weights of phi_1 … phi_n [q, n]."""
    s, w = gauss_legendre()
    return 1 - s, torch.stack(
        [w * s ** (k - 1) / math.factorial(k - 1) for k in range(1, n + 1)], -1
    )


# --- data: linear multistep in lam ----------------------------------------------------------------


def dpmpp(points: Points, p: int, lower_order_final: bool | None) -> Step:
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    Order 3 follows the authors' code, as everybody runs it. Its D_2 is half of what Taylor's
    formula asks for, and so it converges with order 2.
    """
    h, lam = points.h, history(points.lam, p)
    r = [(lam[k] - lam[k + 1]) / h for k in range(p - 1)]
    f_1, f_2, f_3 = (h * f for f in phi(h, 3))

    def weights(order: int) -> list[Tensor]:
        """Weights of m_i, m_{i-1}, …, over alpha: h (phi_1 m_i + phi_2 D_1 + phi_3 D_2).

        D_1 and D_2 are divided differences of the outputs.
        """
        if order == 1:
            return [f_1]
        if order == 2:
            return [f_1 + f_1 / (2 * r[0]), -f_1 / (2 * r[0])]
        wide = r[0] + r[1]
        near = (f_2 * (1 + r[0] / wide) + f_3 / wide) / r[0]  # of m_i - m_{i-1}
        far = -(f_2 * r[0] + f_3) / wide / r[1]  # of m_{i-1} - m_{i-2}
        return [f_1 + near, far - near, -far]

    carry = torch.diag_embed(points.sigma[:, 1:] / points.sigma[:, :-1])
    return carry, points.alpha[:, 1:, None] * banded(
        orders(p, points.N, lower_order_final), weights
    )


def unipc(points: Points, p: int, lower_order_final: bool | None, bh1: bool) -> Step:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor, and a corrector at no extra cost.

    The network sees the predicted state y_i. The corrector of step i - 1 reuses that evaluation,
    and its correction of y_i is added within step i. The last step is not corrected, so N steps
    cost N evaluations. Order 1 of the corrector and order 2 of the predictor have the fixed weight
    1/2, as published.
    """
    h, lam, f = points.h, history(points.lam, p), phi(points.h, p + 1)
    r = [(node - lam[0]) / h for node in lam[1:]]
    # b carries the published factor B(h), which therefore drops out of all weights but the halves
    b = [math.factorial(k) * h * f[k] for k in range(p + 1)]
    ahead, half = torch.ones_like(h), (h if bh1 else b[0]) / 2

    def predictor(order: int) -> list[Tensor]:
        """Weights of m_i, m_{i-1}, …, over alpha."""
        rho = [half] if order == 2 else moments(r[: order - 1], b[1:])
        back = [w / node for w, node in zip(rho, r, strict=False)]
        return [b[0] - sum(back), *back]

    def corrector(order: int) -> list[Tensor]:
        """Weights of m_{i+1}, m_i, …, over alpha."""
        *rho, last = [half] if order == 1 else moments([*r[: order - 1], ahead], b[1:])
        back = [w / node for w, node in zip(rho, r, strict=False)]
        return [last, b[0] - last - sum(back), *back]

    steps = orders(p, points.N, lower_order_final)
    ratio, alpha = points.sigma[:, 1:] / points.sigma[:, :-1], points.alpha[:, 1:]
    now = banded(steps, predictor)
    added = (ratio[:, 1:] * alpha[:, :-1])[..., None] * (banded(steps, corrector, 1) - now)[:, :-1]
    return torch.diag_embed(ratio), alpha[..., None] * now + pad(added, (0, 0, 1, 0))


def moments(nodes: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Solve sum_k rho_k nodes_k^(m-1) = b_m for rho in closed form, for up to three nodes."""
    if len(nodes) < 2:
        return b[: len(nodes)]
    x = torch.stack(nodes)
    y, z = x.roll(1, 0), x.roll(2, 0)  # of two nodes, z is x again
    if len(nodes) == 2:
        return list(((b[0] * y - b[1]) / (y - x)).unbind())
    return list(((b[2] - (y + z) * b[1] + y * z * b[0]) / ((x - y) * (x - z))).unbind())


# --- noise: linear multistep on eps ---------------------------------------------------------------

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def on_noise(points: Points, carry: Tensor, weights: Tensor, inject: Tensor | float = 0.0) -> Step:
    """The step carry y_j + weights eps_j + inject m_j, with eps_j written out in y_j and m_j.

    eps_j = (y_j - alpha(tau_j) m_j) / sigma(tau_j). Raises InputError where sigma(tau_j) is zero.
    """
    # The noise level of x_T is known exactly, so the first eps is taken at t_0 even if the network
    # time was moved. At the moved time, eps would be wrong in proportion to x_T; that error, and
    # its gradient, would be larger than everything that the network contributes.
    tau = torch.cat([points.t[:, :1], points.tau[:, 1:]], 1)
    sigma = points.noise.sigma(tau)
    if sigma.device.type == "cpu" and bool((sigma <= 0).any()):
        k, j = (sigma <= 0).nonzero()[0].tolist()
        raise InputError(
            f"evals[{k}, {j}] = {float(tau[k, j])}: no noise there to interpolate; end above t = 0"
        )
    weights = weights / sigma[:, None]
    return carry + weights, inject - weights * points.noise.alpha(tau)[:, None]


def transfer(points: Points, alpha: Tensor, sigma: Tensor) -> Step:
    """DDIM's step from every knot to (alpha, sigma) [K, N]: the factors of y and of eps.

    It is exact for constant eps (Song et al. 2020, arXiv 2010.02502). If alpha(t_0) = 0, x_T holds
    no data, and eps alone cannot give it: the first factor of y is then 0, and the caller takes
    the data from m_0.
    """
    ratio = alpha / points.alpha[:, :-1]
    if points.noise.starts_at_pure_noise:
        ratio = pad(alpha[:, 1:] / points.alpha[:, 1:-1], (1, 0))
    return ratio, sigma - ratio * points.sigma[:, :-1]


def noise_multistep(points: Points, weights: Tensor) -> Step:
    """DDIM's steps with sum_j weights_ij eps_j as their noise; weights [*K, N, N]."""
    ratio, gain = transfer(points, points.alpha[:, 1:], points.sigma[:, 1:])
    inject: Tensor | float = 0.0
    if points.noise.starts_at_pure_noise:
        inject = pad(points.alpha[:, 1:2, None], (0, points.N - 1, 0, points.N - 1))
    return on_noise(points, torch.diag_embed(ratio), gain[..., None] * weights, inject)


def ipndm(points: Points, p: int, lower_order_final: bool | None) -> Step:
    """iPNDM (Zhang & Chen 2023, arXiv 2204.13902): DDIM with Adams-Bashforth sums of the noise.

    p = 1 is DDIM itself.
    """
    steps = orders(p, points.N, lower_order_final)
    constant = lambda order: [
        points.t.new_full((1, points.N), w) for w in ADAMS_BASHFORTH[order - 1]
    ]
    return noise_multistep(points, banded(steps, constant))


def deis(points: Points, p: int, lower_order_final: bool | None, in_lam: bool) -> Step:
    """DEIS, time-AB (Zhang & Chen 2023, arXiv 2204.13902).

    Lagrange polynomials of eps in t are integrated against d(sigma / alpha). With `in_lam` they are
    polynomials in lam instead. The quadrature runs over lam in both cases, because the integrand is
    smooth in lam up to the ends of every schedule.
    """
    x, w = (v.to(points.t) for v in gauss_legendre(16))
    lam = points.lam[:, :-1, None] + points.h[..., None] * x  # [K, N, q]
    u, at = (points.lam, lam) if in_lam else (points.t, points.noise.inverse(lam))
    measure = w * torch.exp(-points.h[..., None] * x)  # of d(sigma / alpha), up to a factor
    measure = measure / measure.sum(-1, keepdim=True)
    nodes = history(u, p)
    # the Lagrange polynomials are products of these gaps, scaled
    gaps = [at - node[..., None] for node in nodes]

    def weights(order: int) -> list[Tensor]:
        c = []
        for k in range(order):
            others = [j for j in range(order) if j != k]
            scale = math.prod(
                (nodes[k] - nodes[j] for j in others), start=torch.ones_like(points.h)
            )
            c.append(math.prod((gaps[j] for j in others), start=measure).sum(-1) / scale)
        return c

    return noise_multistep(points, banded(orders(p, points.N, lower_order_final), weights))


# --- singlestep -----------------------------------------------------------------------------------


def in_time(points: Points, stages: int) -> Step:
    """Euler (1 stage) or Heun (2 stages: Karras et al. 2022, algorithm 1) in t.

        dx/dt = alpha' x_0 + sigma' eps

    For flow matching, Euler is x + (t_{i+1} - t_i) velocity. With an odd number of evaluations,
    Heun's last step is an Euler step.
    """
    dt = points.t.diff(dim=1)[..., None]
    first, second = stage_columns(points, stages)
    carry, weights = first, dt * first
    if stages == 2:
        carry = interleave(points, first, first)
        weights = interleave(points, dt * first, 0.5 * dt * (first + second))
    at = (torch.arange(points.E) + stages - 1) // stages  # the knot of every evaluation
    t = points.t[:, at]
    d_alpha, d_sigma = points.noise.d_alpha(t), points.noise.d_sigma(t)
    return on_noise(points, carry, weights * d_sigma[:, None], weights * d_alpha[:, None])


def stage_columns(points: Points, stages: int) -> tuple[Tensor, Tensor]:
    """One-hot rows [N, E] for the first evaluation of each step, and for its second one."""
    eye = torch.eye(stages * points.N, dtype=points.t.dtype, device=points.t.device)[:, : points.E]
    return eye[::stages], eye[stages - 1 :: stages]


def interleave(points: Points, inside: Tensor, whole: Tensor) -> Tensor:
    """Rows of the two stages of each step in turn: twice [*K, N, E] -> [*K, E, E]."""
    return torch.stack([inside, whole], -2).flatten(-3, -2)[..., : points.E, :]


def interior_times(noise: NoiseSchedule, knots: Tensor, r: float) -> Tensor:
    """The time inside every step at which lam = lam_i + r h; [*K, N+1] -> [*K, N]."""
    lam = noise.lam(knots)
    return noise.inverse(lam[..., :-1] + r * lam.diff(dim=-1))


def dpm_2(points: Points, r: float) -> Step:
    """DPM-Solver-2 singlestep (Lu et al. 2022, arXiv 2206.00927, algorithm 4).

    With an odd number of evaluations, the last step is a DDIM step.
    """
    if points.noise.starts_at_pure_noise:
        raise InputError(
            f"dpm-2 cannot run on {points.noise.name} from t_max = {points.noise.t_max}, where "
            "alpha = 0: its first step is singular there; set t_max a little lower, or use "
            "dpmpp-2 or heun"
        )
    s = interior_times(points.noise, points.t, r)
    if points.E % 2:
        s = torch.cat([s[:, :-1], points.t[:, -1:]], 1)
    first, second = stage_columns(points, 2)
    ratio_s, gain_s = transfer(points, points.noise.alpha(s), points.noise.sigma(s))
    ratio, gain = transfer(points, points.alpha[:, 1:], points.sigma[:, 1:])
    carry = interleave(points, ratio_s[..., None] * first, ratio[..., None] * first)
    slope = first + (second - first) / (2 * r)
    return on_noise(
        points, carry, interleave(points, gain_s[..., None] * first, gain[..., None] * slope)
    )
