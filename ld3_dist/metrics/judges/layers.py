"""Linear layers one after the other, as some judges have them on top."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def linear_layers(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The layers of tensors named [PREFIX.]NUMBER.weight and [PREFIX.]NUMBER.bias; frozen, float32.

    The numbers of what has no weights, such as dropout, are missing.
    """
    named = {int(name.split(".")[-2]): name.removesuffix("weight") for name in tensors
             if name.endswith("weight")}  # fmt: skip
    layers = []
    for _, name in sorted(named.items()):
        weight, bias = tensors[f"{name}weight"], tensors[f"{name}bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)
