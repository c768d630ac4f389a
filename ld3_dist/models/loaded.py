"""A model: a denoiser and all that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Denoiser, Guided, NetworkDenoiser
from ..core.errors import InputError
from ..core.features import Extractor, Reference
from ..core.noise import NoiseSchedule
from .conditions import DrawCondition, DrawPrompts, no_condition
from .fingerprint import fingerprint
from .probe import Probe, check_denoiser, decoded_shape, probe


@dataclass(frozen=True, eq=False)
class Model:
    """A denoiser and all that belongs to it; `Model(denoiser)` is enough for your own network.

    id: the name it was opened by; the class name of the denoiser if not given.
    hash: SHA-256 of everything that determines its samples. If not given, it covers weights, noise
        schedule and all else that can be read of the denoiser (see `fingerprint`).
    conditioning: "none", or the kind of condition, such as "class" or
        "prompts:<file>:<start of its hash>".
    draw_condition: the condition of samples, a pure function of (seed, indices).
    draw_prompts: their prompts likewise; None for a model of no prompts.
    guidance: scale in use; None if the model is not guided.
    image_shape: [C, H, W] of a decoded sample; found by decoding zeros once if not given.
    settings: facts of interest (parametrisation, latent scaling, shift), for `doctor` and the rows.
    extractor: feature extractor of its images, on the network's device; None if it has none.
    data: images [M, C, H, W] in [-1, 1] that it was trained on, on the network's device, or None.
    reference: statistics of such images in features of `extractor`, if there are too many images.
    version: a name that changes whenever the samples would. It is asked for if the hash cannot
        cover all that determines them.
    probe: findings of one call of the network; None if it has not been called yet.

    Raises InputError for an object that is no denoiser, and if a version is needed.

    >>> import torch
    >>> import ld3_dist as ld3
    >>> from ld3_dist.core.noise import EDM
    >>> class Gaussian(torch.nn.Module):  # the best guess of data N(0, I), as alpha = 1
    ...     noise, shape = EDM(), (2,)
    ...     def forward(self, x, t, condition=None):
    ...         return x / (1 + t.view(-1, 1) ** 2)
    ...     def decode(self, x0):
    ...         return x0
    >>> model = ld3.Model(Gaussian(), id="gaussian")
    >>> model.image_shape, model.latent
    ((2,), False)
    """

    denoiser: Denoiser
    id: str = ""
    hash: str = ""
    conditioning: str = "none"
    draw_condition: DrawCondition = no_condition
    draw_prompts: DrawPrompts | None = None
    guidance: float | None = None
    image_shape: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    extractor: Extractor | None = None
    data: Tensor | None = None
    reference: Reference | None = None
    version: str = ""
    probe: Probe | None = None

    def __post_init__(self) -> None:
        name = self.id or type(self.denoiser).__name__
        check_denoiser(self.denoiser, name)
        object.__setattr__(self, "id", name)
        if not self.hash:
            object.__setattr__(self, "hash", fingerprint(self.denoiser, name, self.version))
        shape = tuple(self.image_shape) or decoded_shape(self.denoiser, name)
        object.__setattr__(self, "image_shape", shape)
        if self.data is not None and tuple(self.data.shape[1:]) != shape:
            raise InputError(
                f"model {name!r}: its data are {tuple(self.data.shape)}, its samples {shape} each; "
                "give data as [M, C, H, W] of the samples' size"
            )

    @property
    def noise(self) -> NoiseSchedule:
        """The noise schedule of the network."""
        return self.denoiser.noise

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample before it is decoded."""
        return tuple(self.denoiser.shape)

    @property
    def prediction(self) -> str:
        """The network's prediction; "-velocity" is a velocity that points from noise to data."""
        return self.settings.get("prediction") or prediction_of(self.denoiser)

    @property
    def latent(self) -> bool:
        """True if `decode` changes the space."""
        return self.shape != tuple(self.image_shape)

    @property
    def time_gradient(self) -> bool:
        """False if the probe found no gradient with respect to the network's time.

        Network times then cannot be learned.
        """
        return self.probe is None or self.probe.time_gradient

    def probed(self, device: torch.device | str | None = None) -> Model:
        """The model with its probe: a call of its network shows that schedules can be learned.

        Args:
            device: of the network, if it has no parameters that tell.

        Raises InputError for a network for which none can be learned; see `models.probe`.
        """
        return self if self.probe is not None else replace(self, probe=probe(self, device))


def prediction_of(denoiser: Denoiser) -> str:
    """The prediction of the network inside, one of `core.denoiser.PREDICTIONS`.

    It is "data" for a denoiser that is no NetworkDenoiser.
    """
    inner = denoiser.inner if isinstance(denoiser, Guided) else denoiser
    return inner.prediction if isinstance(inner, NetworkDenoiser) else "data"


def check_model(model: object) -> None:
    """Refuse what is no Model, with the way to one. Raises InputError."""
    if isinstance(model, Model):
        return
    if isinstance(model, str):
        raise InputError(f"model = {model!r}: open it first: load_model({model!r})")
    raise InputError(
        f"model is of type {type(model).__name__}: load_model(name) opens a Model, and "
        "Model(denoiser) wraps your own network"
    )
