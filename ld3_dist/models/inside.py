"""The inside of a denoiser: its network, its weights, and the graph that a call leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..core.denoiser import Denoiser, NetworkDenoiser


def network_denoiser(denoiser: Denoiser) -> NetworkDenoiser | None:
    """The only NetworkDenoiser inside a denoiser; None if there is none, or several."""
    if not isinstance(denoiser, nn.Module):
        return None
    found = [part for part in denoiser.modules() if isinstance(part, NetworkDenoiser)]
    return found[0] if len(found) == 1 else None


def tensors_of(denoiser: object) -> Iterator[Tensor]:
    """Parameters and buffers of a denoiser, or of a distance; none if it is no nn.Module."""
    if isinstance(denoiser, nn.Module):
        yield from denoiser.parameters()
        yield from denoiser.buffers()


def bytes_of(denoiser: object) -> int:
    """Bytes of its parameters and buffers."""
    return sum(tensor.nbytes for tensor in tensors_of(denoiser))


def device_of(denoiser: Denoiser) -> torch.device:
    """The device of the weights; the CPU if there are none."""
    return next((tensor.device for tensor in tensors_of(denoiser)), torch.device("cpu"))


def dtype_of(denoiser: Denoiser) -> torch.dtype:
    """The narrowest floating dtype of the weights; float32 if there are none."""
    found = {tensor.dtype for tensor in tensors_of(denoiser) if tensor.is_floating_point()}
    return min(found | {torch.float32}, key=lambda dtype: dtype.itemsize)


def parameters_of(denoiser: Denoiser) -> int:
    """The number of parameters of the network, without its decoder."""
    inner = network_denoiser(denoiser)
    counted = denoiser if inner is None else inner.net
    return sum(p.numel() for p in counted.parameters()) if isinstance(counted, nn.Module) else 0


def direction(slope: Tensor) -> Tensor:
    """The unit vector slope / |slope|."""
    return slope / slope.norm().clamp_min(1e-30)


def gradient_of(out: Tensor, leaf: Tensor, weights: Tensor) -> Tensor | None:
    """Gradient of <weights, out> with respect to an input; None if nothing leads to it."""
    if not out.requires_grad or not leaf.requires_grad:
        return None
    total = (out * weights.to(out)).sum()
    return torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0]


def has_gradient(out: Tensor, given: Tensor) -> bool:
    """True if a random weighting of the output has a gradient that is not zero."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(out.shape, generator=generator)
    found = gradient_of(out, given, weights)
    return found is not None and bool((found != 0).any())


def reached(out: Tensor, wanted: Sequence[Tensor]) -> list[bool]:
    """For each tensor, True if the graph of an output leads back to it."""
    todo, seen = [out.grad_fn], set()
    leaves: set[int] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        todo += [parent for parent, _ in node.next_functions]
    return [tensor.grad_fn in seen or id(tensor) in leaves for tensor in wanted]


@contextlib.contextmanager
def uncompiled(denoiser: Denoiser) -> Iterator[None]:
    """Run networks uncompiled inside this context; compiling for one call takes minutes."""
    parts = list(denoiser.modules()) if isinstance(denoiser, nn.Module) else []
    kept = [(part, part._compiled_call_impl) for part in parts if part._compiled_call_impl]
    for part, _ in kept:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, compiled in kept:
            part._compiled_call_impl = compiled
