"""An embedded network as a Denoiser, from its packaged weights.

Samples are images [B, *shape] in [-1, 1]. The condition is a label [B] int64, or None. A network is
either EDM's (noise levels from 80 down to 0.002) or predicts the velocity of flow matching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser, map_condition
from ...core.errors import InputError
from ...core.noise import EDM, FlowMatching, NoiseSchedule
from ...core.sample import sample_generator
from ..weights import check_weights, entry, read_tensors
from .packaged import Net, Packaged, load_frozen
from .unet import Sizes


class Unlabelled(nn.Module):
    """The unconditional model inside the conditional one: its network never sees a label."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output without a label; `label` is ignored."""
        return self.net(x, time, None)


@dataclass(frozen=True)
class EmbeddedNetwork(Packaged, Generic[Net]):
    """A packaged network with its classes.

    shape: of one sample.
    classes: number of labels; the label `classes` stands for none.
    sizes, network: the types of its sizes and of the network, which is made from the sizes.
    """

    part: ClassVar[str] = "network"
    stage: ClassVar[str] = ""

    shape: tuple[int, ...]
    classes: int
    sizes: type[Sizes]
    network: type[Net]

    @property
    def model(self) -> str:
        """The name by which the model is opened."""
        return self.name

    @property
    def noise(self) -> NoiseSchedule:
        """The noise schedule of the network."""
        return EDM()

    @property
    def prediction(self) -> str:
        """Which of `core.denoiser.PREDICTIONS` the network makes."""
        return "edm"

    def load_network(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        file: Path | None = None,
    ) -> tuple[Net, float]:
        """The raw network F, frozen, and the sigma_data of its preconditioning.

        Raises InputError, naming the file and the remedy, for weights that are missing, truncated
        or of another kind.
        """
        file = self.file if file is None else Path(file)
        tensors, config = read_tensors(file, self.kind, self.remedy)
        try:
            sizes = self.sizes.from_json(entry(config, "network", dict, file, self.remedy))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{file}: no sizes of a {self.name} network ({error}); {self.remedy}"
            ) from error
        sigma_data = entry(config, "sigma_data", float, file, self.remedy)
        if not 0 < sigma_data < math.inf:
            raise InputError(f"{file}: sigma_data = {sigma_data} must be positive; {self.remedy}")
        with torch.device("meta"):  # sizes that do not fit the tensors cost no memory
            check_weights(self.network(sizes), tensors, file, self.remedy)
        net = load_frozen(self.network(sizes), tensors, file, self.remedy).to(device, dtype)
        return net.to(memory_format=torch.channels_last), sigma_data  # type: ignore[call-overload]

    def denoiser(
        self, net: nn.Module, sigma_data: float, guidance: float = 1.0, conditional: bool = True
    ) -> Denoiser:
        """A network of this kind as a Denoiser, with the arguments of `load_denoiser`.

        States are cast to the network's dtype and back.
        """
        given = f"{self.model} guidance {guidance}"
        if not (math.isfinite(guidance) and guidance >= 0):
            raise InputError(f"{given}: must be a finite number >= 0 (1 = no guidance)")
        if not conditional and guidance != 1:
            raise InputError(f"{given}: needs conditional=True; remove guidance or set it to 1")
        dtype = next(net.parameters()).dtype
        inner = net if conditional else Unlabelled(net)
        denoiser = NetworkDenoiser(
            inner, self.noise, self.shape, self.prediction, sigma_data=sigma_data, dtype=dtype
        )
        return denoiser if guidance == 1 else Guided(denoiser, guidance, self.null_labels)

    def load_denoiser(
        self,
        guidance: float = 1.0,
        conditional: bool = True,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        file: Path | None = None,
    ) -> Denoiser:
        """The packaged network as a Denoiser.

        Args:
            guidance: scale of classifier-free guidance; 1 is none, and other values run the
                network on 2B samples per call.
            conditional: False for the unconditional model, which ignores labels.
            file: another weights file than the packaged one.

        Raises InputError for a bad guidance and for a weights file that is missing, truncated or of
        another kind.
        """
        net, sigma_data = self.load_network(device, dtype, file)
        return self.denoiser(net, sigma_data, guidance, conditional)

    def null_labels(self, condition: Condition) -> Condition:
        """Labels [B] -> as many null labels."""
        return map_condition(lambda label: torch.full_like(label, self.classes), condition)

    def draw_condition(self, seed: int, index: int) -> Tensor:
        """The label of sample `index` of `seed`: an int64 scalar, uniform over the classes.

        Every sample has its own generator.
        """
        return torch.randint(self.classes, (), generator=sample_generator(seed, index, "condition"))


@dataclass(frozen=True)
class EmbeddedFlow(EmbeddedNetwork[Net]):
    """A packaged network that predicts the velocity z - x_0 at x_t = (1 - t) x_0 + t z."""

    part: ClassVar[str] = "flow"
    stage: ClassVar[str] = " flow"

    @property
    def model(self) -> str:
        return f"{self.name}-flow"

    @property
    def noise(self) -> NoiseSchedule:
        return FlowMatching()

    @property
    def prediction(self) -> str:
        return "velocity"
