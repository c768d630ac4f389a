"""The digits model as a Denoiser, from the packaged weights.

Samples are images [B, 1, 8, 8] in [-1, 1]. The condition is a label [B] int64 in 0 … 9, or None.
The noise schedule is EDM's, with sigma from 80 down to 0.002.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser, map_condition
from ...core.errors import InputError
from ...core.noise import EDM
from ...core.sample import sample_generator
from ..weights import check_weights, entry, load_weights, read_tensors, sha256_of
from .data import SHAPE
from .network import CLASSES, NULL_LABEL, DigitsNetwork, NetworkConfig

NETWORK_FILE = Path(__file__).with_name("network.safetensors")
NETWORK_KIND = "ld3_dist digits network 1"
REMEDY = "reinstall ld3_dist, or train it anew with `python -m ld3_dist.models.digits`"


class Unlabelled(nn.Module):
    """The unconditional model inside the conditional one: its network never sees a label."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """As DigitsNetwork; label is ignored."""
        return self.net(x, time, None)


def load_digits_network(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, file: Path | None = None
) -> tuple[DigitsNetwork, float]:
    """The raw network F, frozen, and the sigma_data of its preconditioning.

    Raises InputError, naming the file and the remedy, for weights that are missing, truncated or of
    another kind.
    """
    file = NETWORK_FILE if file is None else Path(file)
    tensors, config = read_tensors(file, NETWORK_KIND, REMEDY)
    try:
        sizes = NetworkConfig.from_json(entry(config, "network", dict, file, REMEDY))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: no sizes of a digits network ({error}); {REMEDY}") from error
    sigma_data = entry(config, "sigma_data", float, file, REMEDY)
    if not 0 < sigma_data < math.inf:
        raise InputError(f"{file}: sigma_data = {sigma_data} must be positive; {REMEDY}")
    with torch.device("meta"):  # sizes that do not fit the tensors cost no memory
        check_weights(DigitsNetwork(sizes), tensors, file, REMEDY)
    net = DigitsNetwork(sizes)
    load_weights(net, tensors, file, REMEDY)
    net = net.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False), sigma_data


def digits_denoiser(
    net: nn.Module, sigma_data: float, guidance: float = 1.0, conditional: bool = True
) -> Denoiser:
    """A digits network as a Denoiser, with the arguments of `load_digits_denoiser`.

    States are cast to the network's dtype and back.
    """
    if not (math.isfinite(guidance) and guidance >= 0):
        raise InputError(
            f"digits guidance {guidance}: must be a finite number >= 0 (1 = no guidance)"
        )
    if not conditional and guidance != 1:
        raise InputError(
            f"digits guidance {guidance}: needs conditional=True; remove guidance or set it to 1"
        )
    dtype = next(net.parameters()).dtype
    inner = net if conditional else Unlabelled(net)
    denoiser = NetworkDenoiser(
        inner, EDM(), SHAPE, prediction="edm", sigma_data=sigma_data, dtype=dtype
    )
    return denoiser if guidance == 1 else Guided(denoiser, guidance, null_labels)


def load_digits_denoiser(
    guidance: float = 1.0,
    conditional: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    file: Path | None = None,
) -> Denoiser:
    """The embedded model.

    Args:
        guidance: scale of classifier-free guidance; 1 is none, and other values run the network on
            2B samples per call.
        conditional: False for the unconditional model, which ignores labels.
        file: another weights file than the packaged one.

    Raises InputError for a bad guidance and for a weights file that is missing, truncated or of
    another kind.
    """
    net, sigma_data = load_digits_network(device, dtype, file)
    return digits_denoiser(net, sigma_data, guidance, conditional)


def null_labels(condition: Condition) -> Condition:
    """Labels [B] -> as many null labels."""
    return map_condition(lambda label: torch.full_like(label, NULL_LABEL), condition)


def draw_condition(seed: int, index: int) -> Tensor:
    """The label of sample `index` of `seed`: an int64 scalar, uniform over the ten digits.

    Every sample has its own generator.
    """
    return torch.randint(CLASSES, (), generator=sample_generator(seed, index, "condition"))


@cache
def digits_hash() -> str:
    """SHA-256 of the packaged network's weights file."""
    return sha256_of(NETWORK_FILE)
