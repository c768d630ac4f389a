"""What opening a model yields, what can be asked of it, and how its network is placed on a device.

A `Model` is a Denoiser and what a sweep must know about it: an id and a hash for the rows, and the
condition of sample i, a pure function of (seed, i) like its noise, whatever the batch or the
machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser
from ..core.errors import InputError, unknown
from ..core.sample import sample_generator

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

DrawCondition = Callable[[int, Sequence[int]], Condition]
"""(seed, indices [M]) -> the condition of these samples, batch first, on the CPU; None for an
unconditional model.
"""


@dataclass(frozen=True)
class ModelOptions:
    """How a model is to be used. What a model cannot do is refused by its loader, naming the
    option.

    device: torch device of the network.  dtype: the network's dtype, one of DTYPES; float32 if not
                                          given. States and network times stay in the sampler's
                                          dtype.
    conditional: condition on classes or prompts; if not given, as the model was trained.
    guidance: scale of classifier-free guidance, 1 = none; for guidance-embedded (distilled) models,
        the embedded value. If not given, 1 (for guidance-embedded models 3.5).
    prompts: text file, one prompt a line.  negative_prompt: what guidance moves away from.
    classes: text file of class numbers, separated by white space; all of the model's classes if not
        given.
    size: (height, width) of the image in pixels; the model's own if not given.
    shift: time shift of a flow model's default grid; the pipeline's own if not given.
    channels_last, compile: memory format and torch.compile of the network.
    variant: which of several sets of weight files a diffusers folder or hub id is loaded from, such
        as "fp16"; if not given, the plain set, or the only one there is.
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
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise InputError(
                f"model device {self.device!r}: {str(error).splitlines()[0]}"
            ) from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise InputError(
                f"model device {self.device!r}: {found} CUDA devices are visible here; use 'cpu'"
            )
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
        """The dtype of the network's weights, and of what a NetworkDenoiser is to convert its
        inputs to.
        """
        return DTYPES[self.dtype or "float32"]

    @property
    def guided(self) -> bool:
        """True where classifier-free guidance changes the result."""
        return self.guidance is not None and self.guidance != 1


@dataclass(frozen=True)
class Model:
    """A denoiser and its particulars.

    id: the name it was opened by.  hash: SHA-256 of its weights and configuration, whatever file
                                    format they came in.
    conditioning: "none", or what samples are conditioned on, e.g. "class" or "prompts:<file>:<start
        of its hash>".
    draw_condition: the condition of samples, a pure function of (seed, indices).
    guidance: scale in use; None where the model is not guided.
    image_shape: [C, H, W] of a decoded sample (pixels for metrics); equals denoiser.shape for pixel
        models.
    settings: facts of interest about the model (parametrisation, latent scaling, shift), for
    `doctor` and the rows."""

    denoiser: Denoiser
    id: str
    hash: str
    conditioning: str
    draw_condition: DrawCondition
    guidance: float | None
    image_shape: tuple[int, ...]
    settings: Mapping[str, Any]

    @property
    def prediction(self) -> str:
        """What the network predicts; "-velocity" is a velocity that points from noise to data."""
        return self.settings.get("prediction") or prediction_of(self.denoiser)

    @property
    def latent(self) -> bool:
        """True where `decode` changes the space."""
        return tuple(self.denoiser.shape) != tuple(self.image_shape)


def to_device(net: nn.Module, options: ModelOptions) -> nn.Module:
    """The network on its device, in its dtype and memory format, compiled as asked; frozen."""
    net = net.eval().requires_grad_(False).to(options.device, options.torch_dtype)
    if options.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        net.compile()
    return net


def weights_hash(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of tensors and a JSON configuration; independent
    of their order.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def no_condition(seed: int, indices: Sequence[int]) -> Condition:
    """The condition of an unconditional model."""
    return None


def draw_class(classes: Sequence[int]) -> DrawCondition:
    """Every sample draws one of `classes`, uniformly, from its own generator: int64 [M]."""
    table = torch.tensor(list(classes), dtype=torch.int64)

    def draw(seed: int, indices: Sequence[int]) -> Condition:
        picks = [
            torch.randint(len(table), (), generator=sample_generator(seed, i, "condition"))
            for i in indices
        ]
        return table[torch.stack(picks)] if picks else table[:0]

    return draw


def conditional_on(trained: bool, options: ModelOptions, model: str) -> bool:
    """Whether to condition; InputError where options ask for what the model was not trained for."""
    if not trained:
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
    """How a model is conditioned.

    name: for the rows.  draw: what samples draw.  guidance: scale in use, None where there is
                         nothing to guide by.
    null: the condition that stands for none, batch of 1, where guidance needs it given.
    """

    name: str
    draw: DrawCondition
    guidance: float | None = None
    null: Condition = None


def on_classes(count: int, options: ModelOptions, model: str) -> Conditioning:
    """Conditioning of a network trained on `count` classes, 0 for an unconditional one.

    Raises InputError for options that ask for what the model was not trained for, and for classes
    it does not have."""
    if not conditional_on(count > 0, options, model):
        return Conditioning("none", no_condition)
    guidance = 1.0 if options.guidance is None else options.guidance
    return Conditioning(
        conditioning_name("class", options),
        draw_class(read_classes(options, count, model)),
        guidance,
    )


def prediction_of(denoiser: Denoiser) -> str:
    """What the network inside predicts, one of `core.denoiser.PREDICTIONS`; data, where it is
    nobody's network.
    """
    inner = denoiser.inner if isinstance(denoiser, Guided) else denoiser
    return inner.prediction if isinstance(inner, NetworkDenoiser) else "data"


def conditioning_name(kind: str, options: ModelOptions) -> str:
    """ "class" or "prompts", and of a file its name and the start of its hash: other prompts are
    another experiment.
    """
    file = options.prompts or options.classes
    if file is None:
        return kind
    text = read_lines(file, "prompts" if options.prompts else "classes")
    return f"{kind}:{Path(file).name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_classes(options: ModelOptions, count: int, model: str) -> list[int]:
    """The classes to draw from: those of the file options.classes, or all `count` of the model's."""
    if options.prompts:
        raise InputError(
            f"model {model!r} is conditioned on classes: prompts={options.prompts!r} does not "
            f"apply to it"
        )
    if options.classes is None:
        return list(range(count))
    words = read_lines(options.classes, "classes").split()
    for word in words:
        if not (word.isdecimal() and int(word) < count):
            raise InputError(
                f"{options.classes}: class {word!r} is not a number from 0 to {count - 1}"
            )
    return [int(word) for word in words]


def read_lines(file: str, what: str) -> str:
    """Text of a UTF-8 file that must hold something."""
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{what} file {file!r}: cannot be read ({error}); give a UTF-8 text file"
        ) from error
    if not text.strip():
        raise InputError(f"{what} file {file!r} is empty; write at least one entry into it")
    return text
