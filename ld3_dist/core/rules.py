"""The rules of the solvers, written on rows (see `solver`). Each maps Points to the rows of y_0 … y_E."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .errors import InputError
from .noise import NoiseSchedule


class Points:
    """alpha, sigma and lam at the knots [K, N+1] and at the network times [K, E], and rows made of them."""

    def __init__(self, noise: NoiseSchedule, t: Tensor, tau: Tensor) -> None:
        self.noise, self.t, self.tau = noise, t, tau
        self.K, self.N, self.E = t.shape[0], t.shape[1] - 1, tau.shape[1]
        self.alpha, self.sigma, self.lam = noise.alpha(t), noise.sigma(t), noise.lam(t)

    @cached_property
    def h(self) -> Tensor:
        """Steps in lam [K, N]."""
        return self.lam[:, 1:] - self.lam[:, :-1]

    @cached_property
    def _noise_rows(self) -> tuple[Tensor, Tensor]:
        sigma = self.noise.sigma(self.tau)
        if sigma.device.type == "cpu" and bool((sigma <= 0).any()):
            k, j = (sigma <= 0).nonzero()[0].tolist()
            raise InputError(f"evals[{k}, {j}] = {float(self.tau[k, j])}: no noise there to interpolate; end above t = 0")
        s = 1 / sigma
        return s[..., None], torch.diag_embed(self.noise.alpha(self.tau) * s)  # [K, E, 1], [K, E, E]

    @property
    def x_T(self) -> Tensor:
        """The row of the starting noise."""
        row = self.t.new_zeros(self.K, 1 + self.E)
        row[:, 0] = 1
        return row

    def m(self, j: int) -> Tensor:
        """The row of the j-th network output."""
        row = self.t.new_zeros(self.K, 1 + self.E)
        row[:, 1 + j] = 1
        return row

    def eps(self, y: Tensor, j: int) -> Tensor:
        """The row of the noise seen at evaluation j from y: (y - alpha(tau_j) m_j) / sigma(tau_j)."""
        scale, outputs = self._noise_rows
        return torch.cat([y[:, :1] * scale[:, j], torch.addcmul(-outputs[:, j], y[:, 1:], scale[:, j])], 1)

    def transfer(self, y: Tensor, eps: Tensor, i: int, alpha: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """DDIM's exact step for constant noise: (alpha'/alpha) (y - sigma eps) + sigma' eps, from knot i to i + 1.

        Where alpha(t_0) = 0 the data hidden in x_T cannot be recovered from the noise; m_0 is what the network says it is.
        """
        alpha = self.alpha[:, i + 1] if alpha is None else alpha
        sigma = self.sigma[:, i + 1] if sigma is None else sigma
        if i == 0 and self.noise.starts_at_pure_noise:
            return alpha[:, None] * self.m(0) + sigma[:, None] * eps
        ratio = alpha / self.alpha[:, i]
        return ratio[:, None] * y + (sigma - ratio * self.sigma[:, i])[:, None] * eps


def orders(p: int, N: int, lower_order_final: bool | None) -> list[int]:
    """Order of each step: warm-up 1, 2, … p, and p-1, …, 1 at the end where the method lowers it (None: below 15 steps)."""
    lower = N < 15 if lower_order_final is None else lower_order_final
    return [min(p, i + 1, N - i if lower else p) for i in range(N)]


# --- data: linear multistep in lam ---------------------------------------------------------------------------------------


def dpmpp(points: Points, p: int, lower_order_final: bool | None) -> list[Tensor]:
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2 and appendix B)."""
    weights = points.t.new_zeros(points.K, points.N, 1 + points.E)
    steps = orders(p, points.N, lower_order_final)
    for order in sorted(set(steps)):
        i = torch.tensor([k for k, o in enumerate(steps) if o == order])
        w = dpmpp_weights(points.h[:, i], [points.h[:, i - k] for k in range(1, order)])
        for k, w_k in enumerate(w):
            weights[:, i, 1 + i - k] = w_k * points.alpha[:, i + 1]
    return _accumulate(points, weights, None)


def dpmpp_weights(h: Tensor, before: list[Tensor]) -> list[Tensor]:
    """Weights, over alpha', of m_i, m_{i-1}, … given the step h and the steps before it, nearest first."""
    phi_1 = -torch.expm1(-h)
    if not before:
        return [phi_1]
    r_0 = before[0] / h
    if len(before) == 1:
        c = phi_1 / (2 * r_0)
        return [phi_1 + c, -c]
    r_1 = before[1] / h
    phi_2 = 1 - phi_1 / h
    phi_3 = phi_2 / h - 0.5
    # phi_1 m_i + phi_2 D_1 - phi_3 D_2, in the divided differences d_0 of (m_i, m_{i-1}) and d_1 of (m_{i-1}, m_{i-2})
    a, b = r_0 / (r_0 + r_1), 1 / (r_0 + r_1)
    d_0 = (phi_2 * (1 + a) - phi_3 * b) / r_0
    d_1 = (phi_3 * b - phi_2 * a) / r_1
    return [phi_1 + d_0, d_1 - d_0, -d_1]


def unipc(points: Points, p: int, lower_order_final: bool | None, bh1: bool) -> list[Tensor]:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor, and a corrector that reuses the next evaluation.

    The network is evaluated at the predicted state; the corrected one is carried on. The last step is not corrected, so
    N steps cost N evaluations.
    """
    predict = points.t.new_zeros(points.K, points.N, 2 + points.E)  # the last column takes the unused m_N
    correct = torch.zeros_like(predict)
    steps = orders(p, points.N, lower_order_final)
    for order in sorted(set(steps)):
        i = torch.tensor([k for k, o in enumerate(steps) if o == order])
        h, alpha = points.h[:, i], points.alpha[:, i + 1]
        r = [(points.lam[:, i - k] - points.lam[:, i]) / h for k in range(1, order)]
        predictor, corrector = unipc_weights(h, r, bh1)
        for k, w_k in enumerate(predictor):
            predict[:, i, 1 + i - k] = w_k * alpha
        for k, w_k in enumerate(corrector):
            correct[:, i, 2 + i - k] = w_k * alpha
    return _accumulate(points, predict[..., :-1], correct[..., :-1])


def unipc_weights(h: Tensor, r: list[Tensor], bh1: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Weights over alpha' of (m_i, m_{i-1}, …) for the predictor and of (m_{i+1}, m_i, m_{i-1}, …) for the corrector.

    r: positions (lam_{i-k} - lam_i) / h of the earlier nodes. Order 1 of the corrector and order 2 of the predictor
    use 1/2, as published.
    """
    order = len(r) + 1
    phi_1 = -torch.expm1(-h)
    B = h if bh1 else phi_1  # both signs of the published -h and e^-h - 1 turned
    b, phi_k, factorial = [], 1 - phi_1 / h, 1.0
    for k in range(1, order + 1):  # moments of e^-s on the step, k! phi_{k+1} / B
        b.append(phi_k * factorial / B)
        factorial *= k + 1
        phi_k = 1 / factorial - phi_k / h
    half = torch.full_like(h, 0.5)
    rho_p = [] if order == 1 else [half] if order == 2 else _moments(r, b[: order - 1])
    rho_c = [half] if order == 1 else _moments([*r, torch.ones_like(h)], b)
    back = [B * rho / r_k for rho, r_k in zip(rho_p, r, strict=True)]
    predictor = [phi_1 - sum(back, torch.zeros_like(h)), *back]
    back = [B * rho / r_k for rho, r_k in zip(rho_c, r, strict=False)]
    ahead = B * rho_c[-1]
    return predictor, [ahead, phi_1 - ahead - sum(back, torch.zeros_like(h)), *back]


def _moments(r: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """rho with sum_k rho_k r_k^(m-1) = b_m."""
    nodes = torch.stack(r, -1)
    R = torch.stack([nodes**m for m in range(len(r))], -2)
    return list(torch.linalg.solve(R, torch.stack(b, -1)).unbind(-1))


def _accumulate(points: Points, predict: Tensor, correct: Tensor | None) -> list[Tensor]:
    """y_{i+1} = (sigma'/sigma) y_i + weights_i, where the carried y is the corrected one."""
    ratio = points.sigma[:, 1:] / points.sigma[:, :-1]
    y = points.x_T
    rows = [y]
    for i in range(points.N):
        base = ratio[:, i : i + 1] * y
        rows.append(base + predict[:, i])
        y = rows[-1] if correct is None else base + correct[:, i]
    return rows


# --- noise: linear multistep on eps --------------------------------------------------------------------------------------

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(points: Points, p: int, lower_order_final: bool | None) -> list[Tensor]:
    """iPNDM (Zhang & Chen 2023, arXiv 2204.13902): DDIM with Adams-Bashforth combinations of the noise; p = 1 is DDIM."""
    weights = [torch.tensor(ADAMS_BASHFORTH[o - 1]).to(points.t) for o in orders(p, points.N, lower_order_final)]
    return _noise_multistep(points, weights)


def deis(points: Points, p: int, lower_order_final: bool | None, in_lam: bool) -> list[Tensor]:
    """DEIS, time-AB (Zhang & Chen 2023): Lagrange polynomials of eps in t, integrated exactly against d(sigma/alpha).

    in_lam takes the polynomials in lam instead (the 'log-rho' variant).
    """
    steps = orders(p, points.N, lower_order_final)
    weights: list[Tensor] = [points.t.new_ones(1)] * points.N
    x, w = _gauss_legendre(points.t)
    for order in sorted(set(steps) - {1}):
        i = torch.tensor([k for k, o in enumerate(steps) if o == order])
        lam = points.lam[:, i, None] + points.h[:, i, None] * x  # [K, n, q]
        u = points.lam if in_lam else points.t
        at = lam if in_lam else points.noise.inverse(lam)
        nodes = [u[:, i - k, None] for k in range(order)]
        measure = w * torch.exp(points.lam[:, i, None] - lam)
        basis = torch.stack([_lagrange(at, nodes, k) for k in range(order)], -1)  # [K, n, q, order]
        c = (measure[..., None] * basis).sum(-2) / measure.sum(-1, keepdim=True)
        for n, step in enumerate(i.tolist()):
            weights[step] = c[:, n]
    return _noise_multistep(points, weights)


def _gauss_legendre(like: Tensor, n: int = 16) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    from numpy.polynomial.legendre import leggauss

    x, w = leggauss(n)
    return torch.as_tensor(x / 2 + 0.5).to(like), torch.as_tensor(w / 2).to(like)


def _lagrange(at: Tensor, nodes: list[Tensor], k: int) -> Tensor:
    factors = [(at - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k]
    return math.prod(factors[1:], start=factors[0])


def _noise_multistep(points: Points, weights: list[Tensor]) -> list[Tensor]:
    """Steps y' = transfer(y, sum_k w_k eps_{i-k}); weights [n_k] or [K, n_k] of each step."""
    y, rows, history = points.x_T, [points.x_T], []
    for i in range(points.N):
        history.insert(0, points.eps(y, i))
        w = weights[i].expand(points.K, -1)
        eps = torch.einsum("kj,kjr->kr", w, torch.stack(history[: w.shape[1]], 1))
        y = points.transfer(y, eps, i)
        rows.append(y)
    return rows


# --- singlestep ----------------------------------------------------------------------------------------------------------


def euler(points: Points) -> list[Tensor]:
    """Euler in t on dx/dt = alpha' x_0 + sigma' eps; for flow matching this is x + (t_{i+1} - t_i) velocity."""
    return _in_time(points, two_stage=False)


def heun(points: Points) -> list[Tensor]:
    """Heun in t (Karras et al. 2022, algorithm 1); an odd number of evaluations ends on an Euler step."""
    return _in_time(points, two_stage=True)


def _in_time(points: Points, two_stage: bool) -> list[Tensor]:
    d_alpha, d_sigma = points.noise.d_alpha(points.t), points.noise.d_sigma(points.t)
    dt = points.t[:, 1:] - points.t[:, :-1]

    def slope(y: Tensor, j: int, i: int) -> Tensor:
        return d_alpha[:, i, None] * points.m(j) + d_sigma[:, i, None] * points.eps(y, j)

    y, rows, j = points.x_T, [points.x_T], 0
    for i in range(points.N):
        d = slope(y, j, i)
        ahead = y + dt[:, i, None] * d
        j += 1
        if two_stage and j < points.E:
            rows.append(ahead)
            ahead = y + dt[:, i, None] * 0.5 * (d + slope(ahead, j, i + 1))
            j += 1
        y = ahead
        rows.append(y)
    return rows


def interior_times(noise: NoiseSchedule, knots: Tensor, r: float) -> Tensor:
    """The time inside every step at lam_i + r h; [*K, N+1] -> [*K, N]."""
    lam = noise.lam(knots)
    return noise.inverse(lam[..., :-1] + r * (lam[..., 1:] - lam[..., :-1]))


def dpm_2(points: Points, r: float) -> list[Tensor]:
    """DPM-Solver-2 singlestep (Lu et al. 2022, arXiv 2206.00927, algorithm 4); an odd number of evaluations ends on DDIM."""
    if points.noise.starts_at_pure_noise:
        raise InputError(
            f"dpm-2 cannot run on {points.noise.name} from t_max = {points.noise.t_max}, where alpha = 0: its first step is "
            "singular there; set t_max a little lower, or use dpmpp-2 or heun"
        )
    s = interior_times(points.noise, points.t, r)
    alpha_s, sigma_s = points.noise.alpha(s), points.noise.sigma(s)
    y, rows, j = points.x_T, [points.x_T], 0
    for i in range(points.N):
        eps = points.eps(y, j)
        j += 1
        if j < points.E:
            inside = points.transfer(y, eps, i, alpha_s[:, i], sigma_s[:, i])
            rows.append(inside)
            eps = eps + (points.eps(inside, j) - eps) / (2 * r)
            j += 1
        y = points.transfer(y, eps, i)
        rows.append(y)
    return rows
