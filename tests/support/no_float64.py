"""A device without float64, emulated: tensors on it know where they are and refuse to become wide.

Inside `Emulated()`, a tensor made on DEVICE or moved there is an `OnDevice`, and so is what any
operation makes of one. `.cpu()` and `.to("cpu")` leave the device. As on the real one, a copy that
changes the dtype is converted before it leaves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("mps")


class OnDevice(Tensor):
    """A tensor of the emulated device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__self__", None) is Tensor.device:
            return DEVICE
        found = super().__torch_function__(func, types, args, kwargs or {})
        for part in found if isinstance(found, tuple | list) else [found]:
            if isinstance(part, OnDevice) and part.dtype == torch.float64:
                raise RuntimeError(f"{func.__name__}: this device has no float64")
        return found.as_subclass(Tensor) if func is Tensor.cpu else found


class Emulated(TorchFunctionMode):
    """The machine has the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is Tensor.to:
            return self._moved(args[0], *args[1:], **given)
        wanted = given.get("device")
        if wanted is not None and torch.device(wanted) == DEVICE:
            return on_device(func(*args, **{**given, "device": "cpu"}))
        found = func(*args, **given)
        left = wanted is not None and isinstance(found, OnDevice)
        return found.as_subclass(Tensor) if left else found

    def _moved(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target, rest = x.device, []
        for arg in (*args, kwargs.pop("device", None)):
            if isinstance(arg, Tensor):
                target, rest = arg.device, [*rest, arg.dtype]
            elif isinstance(arg, str | torch.device):
                target = torch.device(arg)
            elif arg is not None:
                rest.append(arg)
        made = Tensor.to(x, *rest, **kwargs) if rest or kwargs else x  # converted where it is
        if target == DEVICE:
            return on_device(made)
        return made.as_subclass(Tensor) if isinstance(made, OnDevice) else made


def on_device(tensor: Tensor) -> Tensor:
    """A tensor, moved there. Raises RuntimeError for float64."""
    if tensor.dtype == torch.float64:
        raise RuntimeError("this device has no float64")
    return tensor.as_subclass(OnDevice)


class Network(nn.Module):
    """A small network whose inputs must be on the device."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator) / size)

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        assert isinstance(x, OnDevice)
        assert isinstance(time, OnDevice)
        return torch.tanh(x @ self.weight) / (1 + time[:, None].square())
