"""The options of a model, and the placement of its network by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import InputError, unknown
from .compiling import check_compiler, compile_network
from .eight_bits import keep_in_eight_bits

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,
    "int8": torch.bfloat16,
}
"""The dtype of the computation by name; those of 8 bits are of the weights alone."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of a model. An option that a model does not have is refused when it is opened.

    device: torch device of the network.
    dtype: the network's dtype, one of DTYPES; float32 if not given. States and network times stay
        in the sampler's dtype. float8 and int8 are of the weights alone (`models.eight_bits`).
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


def needs_name(rest: str, family: str, what: str) -> None:
    """Raise InputError if nothing follows the colon of `family:`."""
    if not rest:
        raise InputError(f"model '{family}:': {what} must follow the colon")


def to_device(net: nn.Module, options: ModelOptions) -> nn.Module:
    """The network on its device, in its dtype and memory format, compiled as asked; frozen.

    Raises InputError if it is to be compiled and this machine cannot.
    """
    net = net.eval().requires_grad_(False).to(options.device, options.torch_dtype)
    if options.dtype == "float8" or options.dtype == "int8":
        net = keep_in_eight_bits(net, options.dtype)
    if options.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        check_compiler(options.device)
        compile_network(net)
    return net


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
