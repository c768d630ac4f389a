"""The sampling loop. It runs any tableau, and it is the only place that calls the network.

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j        m_i = D(y_i, evals_i)        i = 0 … E

The network sees y_0 … y_{E-1}; y_E is the sample. NFE = E.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .denoiser import Condition, Denoiser, map_condition
from .errors import InputError
from .noise import describe, same_noise
from .solver import Tableau


def sample(
    denoiser: Denoiser,
    tableau: Tableau,
    x_T: Tensor,
    condition: Condition = None,
    recompute: bool = False,
) -> Tensor:
    """Integrate from noise to data.

    Args:
        tableau: of one schedule, or of K schedules (leading dimension K).
        x_T: starting noise, prior_scale * unit noise: [B, *shape], or [K, B, *shape] if members
            start differently.
        condition: tensors of B rows, or of K * B rows if members differ: B for the first member,
            then B for the next.
        recompute: keep only the input of every evaluation, and evaluate again in the backward pass.
            It takes the memory of one evaluation instead of E, and a third more time.

    Returns:
        x_0: [B, *shape], or [K, B, *shape] for K schedules. The members share every network call,
            which then has K * B samples.

    Raises:
        InputError: the tableau was made for another noise schedule than the denoiser's.
    """
    return states(denoiser, tableau, x_T, condition, recompute)[0][-1]


def states(
    denoiser: Denoiser,
    tableau: Tableau,
    x_T: Tensor,
    condition: Condition = None,
    recompute: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """The whole path: y_0 … y_E and m_0 … m_{E-1}, each of the shape that `sample` returns.

    It takes the arguments of `sample`.
    """
    if tableau.noise is not None and not same_noise(tableau.noise, denoiser.noise):
        raise InputError(
            f"the table was made for {describe(tableau.noise)}, but the model's noise schedule is "
            f"{describe(denoiser.noise)}; use a schedule that was made for this model"
        )
    shape = tuple(denoiser.shape)
    packed = tableau.evals.ndim == 2
    K = tableau.evals.shape[0] if packed else 1
    B = x_T.shape[-len(shape) - 1]
    table = torch.cat(
        [tableau.state.reshape(K, -1, 1), tableau.outputs.reshape(K, tableau.nfe + 1, -1)], -1
    )
    # dtype first, device second: not every device has float64
    here = lambda numbers: numbers.to(x_T.dtype).to(x_T.device)
    rows = here(table).unbind(1)  # state_i, outputs_i  [K, 1+E] each
    times = here(tableau.evals.reshape(K, -1)).repeat_interleave(B, 0).unbind(1)  # [K*B] each
    if condition is not None and K > 1:
        condition = map_condition(
            lambda c: c if len(c) == K * B else c.repeat(K, *[1] * (c.ndim - 1)), condition
        )

    # x_T, m_0, m_1, …  [K, B*d]
    history = [x_T.reshape(-1, B * torch.Size(shape).numel()).expand(K, -1)]
    path: list[Tensor] = []  # y_0, y_1, …  [K*B, *shape]
    for i, row in enumerate(rows):
        y = row[:, None, : i + 1] @ torch.stack(history, 1)
        path.append(y.view(K * B, *shape))
        if i < tableau.nfe:
            inputs = (path[i], times[i], condition)
            out = (
                checkpoint(denoiser, *inputs, use_reentrant=False)
                if recompute
                else denoiser(*inputs)
            )
            history.append(out.reshape(K, -1).to(y.dtype))
    lead = (K, B) if packed else (B,)
    return [y.view(*lead, *shape) for y in path], [m.view(*lead, *shape) for m in history[1:]]


def initial_state(denoiser: Denoiser, z: Tensor) -> Tensor:
    """x_T = prior_scale * z, from unit noise z [..., *shape]."""
    return denoiser.noise.prior_scale * z


def draw_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Unit noise of the given samples, [M, *shape] float32, each from a CPU generator of its own.

    A sample's noise depends neither on the batch it is drawn in nor on the process that draws it.
    """
    return torch.stack([torch.randn(shape, generator=sample_generator(seed, i)) for i in indices])


def sample_generator(seed: int, index: int, purpose: str = "noise") -> torch.Generator:
    """The random generator that belongs to sample `index` of `seed`."""
    digest = blake2b(f"{purpose}:{seed}:{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
