"""Reads `.eqx` files without JAX: a run of records as `numpy.save` writes them, and nothing else.

The records of a score network come in the order below, in float32, and then the time t_1 by which
the network divides its own (float64, no dimensions):

    conv_in        weight [64, 2, 4, 4], bias [64, 1, 1]
    conv_out       weight [1, 64, 4, 4], bias [1, 1, 1]
    each block     patch_mlp and hidden_mlp (two weights and biases each), norm_1, norm_2
    norm           weight, bias

JAX keeps the kernel of a transposed convolution as that of the ordinary convolution which it
performs: flipped, and with the channels the other way round than PyTorch. Every shape and dtype is
compared before the numbers are read, and nothing is unpickled.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import torch
from mixer import Mixer
from torch import Tensor

from ld3_dist.core.errors import InputError

TIME = "t_1"


def read_network(data: bytes, where: str, side: int) -> Mixer:
    """The network for images of a side in pixels, frozen, from the bytes of an `.eqx` file.

    Args:
        where: what messages call the file.

    Raises InputError, naming the file, the record and what is wrong with it, for a file that is
    truncated, has a record too many or too few, or one of another shape, dtype or kind.
    """
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Mixer(side).state_dict().items()}
    names = ["conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias"]
    names += [name for name in wanted if name not in names]
    shapes = {name: _shape_in_file(name, tuple(wanted[name])) for name in names}
    records = read_records(data, where, shapes | {TIME: ()})
    t_1 = float(records.pop(TIME))
    if not 0 < t_1 < math.inf:
        raise InputError(f"{where}: {TIME} = {t_1} must be positive; download the file again")
    kernel = records["conv_out.weight"]  # [1, 64, 4, 4]
    records["conv_out.weight"] = kernel.flip(2, 3).transpose(0, 1)
    net = Mixer(side, t_1)
    net.load_state_dict({name: value.reshape(wanted[name]) for name, value in records.items()})
    return net.eval().requires_grad_(False)


def read_records(
    data: bytes, where: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The records of a file by name, which must be those of `shapes` in their order.

    Raises InputError as `read_network` does.
    """
    stream, found = io.BytesIO(data), {}
    for i, (name, shape) in enumerate(shapes.items()):
        what = f"{where}: record {i} ({name})"
        if stream.tell() == len(data):
            raise InputError(
                f"{what} is missing: the file ends after {i} records of {len(shapes)}; it is "
                "truncated or of another network: download it again"
            )
        found[name] = _record(stream, what, shape, np.float64 if name == TIME else np.float32)
    if stream.tell() != len(data):
        raise InputError(
            f"{where}: {len(data) - stream.tell()} bytes follow record {len(shapes) - 1}, the last "
            "one: a record too many, so it is a file of another network"
        )
    return found


def _record(stream: BinaryIO, what: str, shape: tuple[int, ...], kind: type[np.floating]) -> Tensor:
    """The next record, if it has this shape and dtype."""
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format {version}, expected (1, 0)")
        found, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"{what} is damaged or was not written by numpy.save ({reason}); download the file "
            "again"
        ) from error
    if dtype != kind or found != shape:
        raise InputError(
            f"{what} is {dtype} {list(found)}, expected {np.dtype(kind)} {list(shape)}: it is a "
            "file of another network"
        )
    count = math.prod(shape) * dtype.itemsize
    bytes_ = stream.read(count)
    if len(bytes_) < count:
        raise InputError(
            f"{what} is truncated: {len(bytes_)} bytes of {count}; download the file again"
        )
    array = np.frombuffer(bytes_, dtype).reshape(shape, order="F" if by_columns else "C")
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds numbers that are not finite; download the file again")
    return torch.from_numpy(array.copy())


def _shape_in_file(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith("conv_out.weight"):
        return shape[1], shape[0], *shape[2:]
    return (*shape, 1, 1) if name in ("conv_in.bias", "conv_out.bias") else shape
