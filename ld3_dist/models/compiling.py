"""torch.compile of a network: its repeated blocks where it names them, else the whole of it.

A transformer is some dozens of equal blocks. Compiling one block and using it for all takes a
fraction of the time of compiling the network, at the same speed. Networks of diffusers name the
classes of such blocks in `_repeated_blocks`, and so may any other network.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError


def compile_network(net: nn.Module, **options: Any) -> list[nn.Module]:
    """Compile a network in place, when it is called first; returns the modules that will be.

    Args:
        options: of torch.compile.
    """
    found = repeated_blocks(net) or [net]
    for part in found:
        part.compile(**options)
    return found


@cache
def check_compiler(device: str) -> None:
    """Compile one small function on a device, so that a lack of compilers shows at the door.

    torch.compile writes C++ for a CPU, which a C++ compiler on the path has to translate, and
    Triton's language for a GPU. The function is PyTorch's own, which no tool that measures
    coverage has rewritten. Raises InputError if it fails on this machine.
    """
    try:
        torch.compile(nn.Softplus())(torch.ones(16, device=device))
    except Exception as error:  # what a backend raises has no common class
        said = "; ".join(line for line in str(error).splitlines()[:2] if line.strip())
        need = "a C++ compiler" if torch.device(device).type == "cpu" else "Triton and a C compiler"
        raise InputError(
            f"model compile true: torch.compile fails on {device} ({type(error).__name__}: "
            f"{said[:300]}); it needs {need} on this machine, or leave compile out"
        ) from error


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network and of those inside it; none if none are named."""
    names: set[str] = set()
    for part in net.modules():
        names |= set(getattr(part, "_repeated_blocks", None) or ())
    return [part for part in net.modules() if type(part).__name__ in names]
