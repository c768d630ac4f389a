"""A model: a denoiser and all that belongs to it, its options, and its conditions.

The condition of sample i is a pure function of (seed, i), like its noise, whatever the batch or the
machine. A network is placed on its device by `to_device`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser
from ..core.errors import InputError, unknown
from ..core.features import Extractor, Reference
from ..core.noise import NoiseSchedule
from ..core.sample import sample_generator
from ..core.text import read_lines
from .compiling import compile_network
from .fingerprint import fingerprint
from .fingerprint import weights_hash as weights_hash
from .float8 import keep_in_float8
from .probe import Probe, check_denoiser, decoded_shape, probe

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,
}
"""What a network computes in, by the name of its dtype; float8 is of the weights alone."""

PROMPTS_FILE = "a text file of prompts, one a line"
CLASSES_FILE = "a text file of class numbers"

LONGEST_LIST = 64_000_000
"""The most bytes of a file of prompts or classes."""

DrawCondition = Callable[[int, Sequence[int]], Condition]
"""(seed, indices [M]) -> the condition of these samples, batch first, on the CPU; None for an
unconditional model."""

DrawPrompts = Callable[[int, Sequence[int]], list[str]]
"""(seed, indices [M]) -> the prompts of these samples."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of a model. An option that a model does not have is refused when it is opened.

    device: torch device of the network.
    dtype: the network's dtype, one of DTYPES; float32 if not given. States and network times stay
        in the sampler's dtype. float8 is of the weights alone (`models.float8`).
    conditional: True to condition on classes or prompts; if not given, as the model was trained.
    guidance: scale of classifier-free guidance, 1 = none; for guidance-embedded (distilled) models,
        the embedded value. If not given, 1 (for guidance-embedded models 3.5).
    prompts: text file, one prompt per line.
    negative_prompt: the prompt that guidance moves away from.
    classes: text file of class numbers, separated by white space; all of the model's classes if not
        given.
    size: (height, width) of the image in pixels; the model's own if not given.
    shift: time shift of a flow model's default grid; the pipeline's own if not given.
    channels_last, compile: memory format and torch.compile of the network, block by block where it
        names repeated blocks, as the transformers of diffusers do.
    variant: the set of weight files in a diffusers folder or hub id, such as "fp16"; if not given,
        the plain set, or the only one there is.
    """

    device: str = "cpu"
    dtype: str | None = None
    conditional: bool | None = None
    guidance: float | None = None
    prompts: str | None = None
    negative_prompt: str = ""
    classes: str | None = None
    size: tuple[int, int] | None = None
    shift: float | None = None
    channels_last: bool = False
    compile: bool = False
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown("model dtype", self.dtype, tuple(DTYPES))
        check_device(self.device)
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise InputError(
                f"model guidance {self.guidance}: must be a finite number >= 0 (1 = no guidance)"
            )
        if self.prompts and self.classes:
            raise InputError(
                f"model prompts {self.prompts!r} and classes {self.classes!r}: give one of the two"
            )
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))  # YAML knows lists only
            if len(self.size) != 2 or min(self.size) < 1:
                raise InputError(f"model size {self.size}: give [height, width], each at least 1")
        if self.shift is not None and not 0 < self.shift < float("inf"):
            raise InputError(f"model shift {self.shift}: must be a positive number")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the network computes in, and of its inputs."""
        return DTYPES[self.dtype or "float32"]

    @property
    def guided(self) -> bool:
        """True if classifier-free guidance changes the result."""
        return self.guidance is not None and self.guidance != 1


def check_device(name: str) -> None:
    """Raise InputError for a device that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"model device {name!r}: {str(error).splitlines()[0]}") from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise InputError(f"model device {name!r}: {found} CUDA devices are visible here; use 'cpu'")
    if device.type == "meta":
        raise InputError(f"model device {name!r}: holds no numbers; use 'cpu' or 'cuda'")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"model device {name!r}: is not there ({reason}); use 'cpu'"
            ) from error


def no_condition(seed: int, indices: Sequence[int]) -> Condition:
    """The condition of an unconditional model."""
    return None


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


def needs_name(rest: str, family: str, what: str) -> None:
    """Raise InputError if nothing follows the colon of `family:`."""
    if not rest:
        raise InputError(f"model '{family}:': {what} must follow the colon")


def to_device(net: nn.Module, options: ModelOptions) -> nn.Module:
    """The network on its device, in its dtype and memory format, compiled as asked; frozen."""
    net = net.eval().requires_grad_(False).to(options.device, options.torch_dtype)
    if options.dtype == "float8":
        net = keep_in_float8(net)
    if options.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        compile_network(net)
    return net


def draw_class(classes: Sequence[int]) -> DrawCondition:
    """A function that draws one of `classes` for every sample: int64 [M].

    The draw is uniform, and every sample has its own generator.
    """
    table = torch.tensor(list(classes), dtype=torch.int64)

    def draw(seed: int, indices: Sequence[int]) -> Condition:
        picks = [
            torch.randint(len(table), (), generator=sample_generator(seed, i, "condition"))
            for i in indices
        ]
        return table[torch.stack(picks)] if picks else table[:0]

    return draw


def without(names: Sequence[str], options: ModelOptions, model: str, why: str) -> None:
    """Raise InputError if an option of these names is given to a model that has no use for it.

    Args:
        why: words on the models that have the option, for the message.
    """
    for name in names:
        if (given := getattr(options, name)) not in (None, ""):
            raise InputError(
                f"model {model!r}: {name}={given!r} does not apply to it, {why}; remove it"
            )


OF_PIPELINES = ("size", "shift", "variant")
"""Options that only diffusers pipelines have."""


def no_pipeline(options: ModelOptions, model: str) -> None:
    """Raise InputError for options that only diffusers pipelines have."""
    without(OF_PIPELINES, options, model, "only to a diffusers pipeline")


def conditional_on(trained: bool, options: ModelOptions, model: str) -> bool:
    """True if a model is to be conditioned; InputError for options it was not trained for."""
    if not trained:
        without(["negative_prompt"], options, model, "only to a model of prompts")
        for name in ("conditional", "guided", "prompts", "classes"):
            if getattr(options, name):
                key = "guidance" if name == "guided" else name
                raise InputError(
                    f"model {model!r} is unconditional: {key}={getattr(options, key)!r} does not "
                    f"apply to it; remove it"
                )
        return False
    wanted = options.conditional is not False
    if not wanted and (options.guided or options.prompts or options.classes):
        raise InputError(
            f"model {model!r}: conditional=false contradicts guidance, prompts or classes; "
            f"remove one"
        )
    return wanted


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a model.

    name: for the rows.
    draw: the condition of each sample.
    guidance: scale in use; None if there is nothing to guide by.
    null: the condition that stands for none, batch of 1, if guidance needs it.
    prompts: the prompt of each sample, if these are texts.
    """

    name: str
    draw: DrawCondition
    guidance: float | None = None
    null: Condition = None
    prompts: DrawPrompts | None = None


def on_classes(count: int, options: ModelOptions, model: str) -> Conditioning:
    """Conditioning of a network trained on `count` classes, 0 for an unconditional one.

    Raises InputError for options that ask for what the model was not trained for, and for classes
    it does not have."""
    without(["negative_prompt"], options, model, "only to a model of prompts")
    if not conditional_on(count > 0, options, model):
        return Conditioning("none", no_condition)
    guidance = 1.0 if options.guidance is None else options.guidance
    return Conditioning(
        conditioning_name("class", options),
        draw_class(read_classes(options, count, model)),
        guidance,
    )


def prediction_of(denoiser: Denoiser) -> str:
    """The prediction of the network inside, one of `core.denoiser.PREDICTIONS`.

    It is "data" for a denoiser that is no NetworkDenoiser.
    """
    inner = denoiser.inner if isinstance(denoiser, Guided) else denoiser
    return inner.prediction if isinstance(inner, NetworkDenoiser) else "data"


def conditioning_name(kind: str, options: ModelOptions) -> str:
    """The name of a conditioning: "class" or "prompts", with name and hash of its file if any.

    The hash is part of the name because other prompts are another experiment.
    """
    file = options.prompts or options.classes
    if file is None:
        return kind
    lines = read_lines(file, PROMPTS_FILE if options.prompts else CLASSES_FILE, LONGEST_LIST)
    if not options.prompts:
        lines = " ".join(lines).split()
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{kind}:{Path(file).name}:{digest[:8]}"


def read_classes(options: ModelOptions, count: int, model: str) -> list[int]:
    """The classes to draw from: the list in options.classes, or all `count` of the model."""
    if options.prompts:
        raise InputError(
            f"model {model!r} is conditioned on classes: prompts={options.prompts!r} does not "
            f"apply to it"
        )
    if options.classes is None:
        return list(range(count))
    words = " ".join(read_lines(options.classes, CLASSES_FILE, LONGEST_LIST)).split()
    for word in words:
        if not (word.isdecimal() and int(word) < count):
            raise InputError(
                f"{options.classes}: class {word!r} is not a number from 0 to {count - 1}"
            )
    return [int(word) for word in words]
