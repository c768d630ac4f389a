"""torch.compile of a network: its repeated blocks where it names them, else the whole of it.

A transformer is some dozens of equal blocks. Compiling one block and using it for all takes a
fraction of the time of compiling the network, at the same speed. Networks of diffusers name the
classes of such blocks in `_repeated_blocks`, and so may any other network.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_network(net: nn.Module, **options: Any) -> list[nn.Module]:
    """Compile a network in place, when it is called first; returns the modules that will be.

    Args:
        options: of torch.compile.
    """
    found = repeated_blocks(net) or [net]
    for part in found:
        part.compile(**options)
    return found


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network and of those inside it; none if none are named."""
    names: set[str] = set()
    for part in net.modules():
        names |= set(getattr(part, "_repeated_blocks", None) or ())
    return [part for part in net.modules() if type(part).__name__ in names]
