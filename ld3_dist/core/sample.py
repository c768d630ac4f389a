"""THE loop. It runs any tableau, and it is the only place that calls the network.

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j        m_i = D(y_i, evals_i)        i = 0 … E

y_0 … y_{E-1} are what the network sees, y_E is the sample. NFE = E.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .denoiser import Condition, Denoiser, map_condition
from .solver import Tableau


def sample(
    denoiser: Denoiser, tableau: Tableau, x_T: Tensor, condition: Condition = None, recompute: bool = False
) -> Tensor:
    """Integrate from noise to data.

    Args:
        tableau: of one schedule, or of K schedules (leading dimension K).
        x_T: starting noise, prior_scale * unit noise: [B, *shape], or [K, B, *shape] where members start differently.
        condition: tensors of B rows, or of K * B rows (member-major) where members differ.
        recompute: keep only the input of every evaluation, and evaluate again when differentiating: the memory of one
            evaluation instead of E, for a third more time.

    Returns:
        x_0: [B, *shape], or [K, B, *shape] for K schedules: all members go through the network in one call of K*B.
    """
    return states(denoiser, tableau, x_T, condition, recompute)[0][-1]


def states(
    denoiser: Denoiser, tableau: Tableau, x_T: Tensor, condition: Condition = None, recompute: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The whole path: y_0 … y_E and m_0 … m_{E-1}, each of the shape that `sample` returns, from the same arguments."""
    shape = tuple(denoiser.shape)
    packed = tableau.evals.ndim == 2
    K = tableau.evals.shape[0] if packed else 1
    B = x_T.shape[-len(shape) - 1]
    y_0 = x_T.reshape(-1, B, torch.Size(shape).numel())  # [1 or K, B, d]
    here = lambda table: table.to(x_T.dtype).to(x_T.device)  # in this order: not every device has float64
    evals, state = here(tableau.evals.reshape(K, -1)), here(tableau.state.reshape(K, -1))
    outputs = here(tableau.outputs.reshape(K, state.shape[1], -1))
    if condition is not None and K > 1:
        condition = map_condition(lambda c: c if len(c) == K * B else c.repeat(K, *[1] * (c.ndim - 1)), condition)

    path: list[Tensor] = []  # y_i  [K, B, d]
    history: list[Tensor] = []  # m_j  [K, B, d]
    for i in range(tableau.nfe + 1):
        y = state[:, i, None, None] * y_0  # [K, B, d]
        if i:
            m = torch.stack(history, 1).flatten(2)  # [K, i, B*d]
            y = torch.baddbmm(y.flatten(1).unsqueeze(1), outputs[:, i : i + 1, :i], m).view(K, B, -1)
        path.append(y)
        if i < tableau.nfe:
            t = evals[:, i : i + 1].expand(K, B).reshape(-1)
            inputs = (y.reshape(K * B, *shape), t, condition)
            out = checkpoint(denoiser, *inputs, use_reentrant=False) if recompute else denoiser(*inputs)
            history.append(out.reshape(K, B, -1).to(y.dtype))
    lead = (K, B) if packed else (B,)
    return [y.view(*lead, *shape) for y in path], [m.view(*lead, *shape) for m in history]


def draw_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Unit noise of the given samples, [M, *shape] float32, each from a CPU generator of its own.

    What a sample is depends neither on the batch it is drawn in nor on the process that draws it.
    """
    return torch.stack([torch.randn(shape, generator=sample_generator(seed, i)) for i in indices])


def sample_generator(seed: int, index: int, purpose: str = "noise") -> torch.Generator:
    """The random generator that belongs to sample `index` of `seed`."""
    digest = blake2b(f"{purpose}:{seed}:{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
