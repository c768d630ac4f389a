"""`edm:FILE`: an EDM checkpoint as a Denoiser.

FILE is a .pkl, a .safetensors written by `convert`, or an http(s) URL. The checkpoint's outermost
class determines the prediction of its network F. In the variance-exploding frame x = x_0 + sigma z:

    EDMPrecond   D = c_skip x + c_out F(c_in x, ln(sigma) / 4)                 sigma in [0.002, 80]
    VPPrecond    D = x - sigma F(x / sqrt(sigma^2 + 1), (M - 1) t)
                 with sigma(t) of VPLinear(beta_min, beta_min + beta_d)
    VEPrecond    D = x + sigma F(x, ln(sigma / 2))                             sigma in [0.02, 100]

(Karras et al. 2022, table 1). The second predicts the noise of a variance-preserving process in t,
and is sampled as such. In the third, -F predicts the noise. Labels are int64 [B]; NO_LABEL stands
for no class, which the network gets as a vector of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser, map_condition
from ...core.errors import InputError, unknown
from ...core.noise import EDM, NoiseSchedule, VPLinear
from ..conditions import on_classes
from ..fingerprint import weights_hash
from ..loaded import Model
from ..options import ModelOptions, needs_name, no_pipeline, to_device
from ..weights import read_tensors, save_tensors
from .download import fetch
from .unet import DhariwalUNet, SongUNet, UNetConfig
from .unpickle import Checkpoint, read_pickle

KIND = "edm"
PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
NO_LABEL = -1
NETWORKS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
# the constructors' defaults
DEFAULTS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {
        "model_type": "DhariwalUNet",
        "sigma_min": 0.0,
        "sigma_max": math.inf,
        "sigma_data": 0.5,
    },
    "VPPrecond": {
        "model_type": "SongUNet",
        "beta_d": 19.9,
        "beta_min": 0.1,
        "M": 1000,
        "epsilon_t": 1e-5,
    },
    "VEPrecond": {"model_type": "SongUNet", "sigma_min": 0.02, "sigma_max": 100.0},
}
UNET_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {},
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}
IGNORED = (
    "dropout",
    "label_dropout",
    "use_fp16",
)  # without effect when sampling (the dtype is an option here)


class EDMNetwork(nn.Module):
    """The U-Net with the signature that a NetworkDenoiser calls.

    Labels become one-hot vectors, and the sign fits the prediction.
    """

    def __init__(self, model: SongUNet | DhariwalUNet, sign: float = 1.0) -> None:
        super().__init__()
        self.model, self.sign, self.label_dim = model, sign, model.config.label_dim

    def forward(self, x: Tensor, time: Tensor, condition: Condition = None) -> Tensor:
        """x [B, C, h, w], time [B], condition int64 [B] or None -> [B, C, h, w]."""
        vector = None
        if self.label_dim:
            label = (
                torch.full((len(x),), NO_LABEL, device=x.device) if condition is None else condition
            )
            if not isinstance(label, Tensor):
                raise TypeError(
                    f"an EDM network's condition is an int64 tensor of classes, got "
                    f"{type(label).__name__}"
                )
            # NO_LABEL becomes class 0 of label_dim + 1, and that column is cut off
            vector = functional.one_hot(label + 1, self.label_dim + 1)[:, 1:].to(x.dtype)
        out = self.model(x, time, vector)
        return out if self.sign == 1 else self.sign * out


def read_checkpoint(file: Path) -> Checkpoint:
    """A checkpoint from a .pkl or a converted .safetensors file; InputError if it is neither."""
    if not file.is_file():
        published = file.name.startswith("edm-") and file.suffix == ".pkl"
        url = f", edm:{PUBLISHED}{file.name}" if published else ""
        raise InputError(
            f"edm checkpoint {file}: file not found; download it, or give its URL{url}"
        )
    if file.suffix == ".safetensors":
        try:
            tensors, config = read_tensors(file, KIND, "convert the .pkl again")
            return Checkpoint(config["class_name"], dict(config["arguments"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{file}: its header does not say which network it holds (class_name and "
                f"arguments); convert the .pkl again"
            ) from error
    return read_pickle(file)


def convert(source: Path, target: Path) -> None:
    """Write a checkpoint as safetensors, with class and arguments in the header.

    The network is built and filled first, so that the written file can be loaded.
    """
    checkpoint = read_checkpoint(source)
    with torch.device("meta"):
        net = build_network(checkpoint, source)
    _load(net, checkpoint.tensors, source)
    _process(checkpoint.class_name, _settings(checkpoint, source), source)
    config = {"class_name": checkpoint.class_name, "arguments": _plain(checkpoint.arguments)}
    save_tensors(target, checkpoint.tensors, KIND, config)


def build_network(checkpoint: Checkpoint, file: Path) -> EDMNetwork:
    """The network that a checkpoint describes, with weights of its own.

    Raises InputError for arguments that make no network, or a network with more blocks than the
    file has tensors.
    """
    known = _settings(checkpoint, file)
    name = known["model_type"]
    if not isinstance(name, str) or name not in NETWORKS:
        raise unknown(f"network (model_type) of {file}", name, tuple(NETWORKS))
    names = {field.name for field in fields(UNetConfig)}
    given = {key: value for key, value in checkpoint.arguments.items() if key in names}
    extra = (
        set(checkpoint.arguments)
        - names
        - set(DEFAULTS[checkpoint.class_name])
        - {*IGNORED, "img_channels"}
    )
    if extra:
        raise InputError(
            f"{file}: argument {min(extra, key=str)!r} of {checkpoint.class_name} is not known; an "
            f"older file format?"
        )
    channels = known["img_channels"]
    try:
        config = UNetConfig(
            **{**UNET_DEFAULTS[name], **given, "in_channels": channels, "out_channels": channels}
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if checkpoint.tensors and config.blocks > len(checkpoint.tensors):
        raise InputError(
            f"{file}: num_blocks={config.num_blocks} and channel_mult={config.channel_mult} make "
            f"at least {config.blocks} blocks, the file has {len(checkpoint.tensors)} tensors"
        )
    try:
        network = NETWORKS[name](config)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{file}: its arguments make no network ({str(error).splitlines()[0]})"
        ) from error
    return EDMNetwork(network, sign=-1.0 if checkpoint.class_name == "VEPrecond" else 1.0)


def open_edm(rest: str, options: ModelOptions) -> Model:
    """The model behind `edm:{rest}`."""
    needs_name(rest, "edm", "a file or URL")
    no_pipeline(options, f"edm:{rest}")
    file = fetch(rest) if rest.startswith(("http://", "https://")) else Path(rest).expanduser()
    spec = f"edm:{rest}"
    checkpoint = read_checkpoint(file)
    with torch.device("meta"):
        net = build_network(checkpoint, file)
    _load(net, checkpoint.tensors, file)
    known = _settings(checkpoint, file)
    noise, prediction, time = _process(checkpoint.class_name, known, file)
    shape = (known["img_channels"], known["img_resolution"], known["img_resolution"])
    denoiser: Denoiser = NetworkDenoiser(
        to_device(net, options),
        noise,
        shape,
        prediction,
        time,
        known.get("sigma_data", 0.5),
        dtype=options.torch_dtype,
    )
    label_dim = int(known.get("label_dim", 0))
    conditioning = on_classes(label_dim, options, spec)
    conditional = conditioning.guidance is not None
    if label_dim and not known.get("label_dropout") and (options.guided or not conditional):
        raise InputError(
            f"model {spec!r} was trained with label_dropout=0 and never saw a sample without its "
            f"class: "
            f"guidance={options.guidance}, conditional={options.conditional} do not apply to it; "
            f"remove them"
        )
    if conditional and options.guided:
        denoiser = Guided(denoiser, float(options.guidance or 0), _no_label)
    return Model(
        denoiser=denoiser,
        id=spec,
        hash=weights_hash(
            checkpoint.tensors, {"class": checkpoint.class_name, **_plain(checkpoint.arguments)}
        ),
        conditioning=conditioning.name,
        draw_condition=conditioning.draw,
        guidance=conditioning.guidance,
        image_shape=shape,
        settings={
            "network": known["model_type"],
            "preconditioning": checkpoint.class_name,
            "parameters": sum(p.numel() for p in net.parameters()),
        },
    )


def _load(net: EDMNetwork, tensors: dict[str, Tensor], file: Path) -> None:
    wanted = net.state_dict()
    for name in wanted:
        if name not in tensors:
            raise InputError(
                f"{file}: tensor {name!r} is missing; the file is damaged or of another "
                f"architecture"
            )
    for name, tensor in tensors.items():
        if name in wanted and wanted[name].shape != tensor.shape:
            need, found = tuple(wanted[name].shape), tuple(tensor.shape)
            raise InputError(
                f"{file}: tensor {name!r} has shape {found}, the architecture it names needs {need}"
            )
        if name not in wanted:
            raise InputError(
                f"{file}: tensor {name!r} has no place in the architecture the file names"
            )
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)


def _settings(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """The arguments of a checkpoint, with defaults for those it does not have.

    Raises InputError for a class that is not EDM's, and for arguments that are missing.
    """
    name = checkpoint.class_name
    if not isinstance(name, str) or name not in DEFAULTS:
        raise unknown(f"preconditioning of {file}", name, tuple(DEFAULTS))
    known = {**DEFAULTS[name], **checkpoint.arguments}
    for key in ("img_resolution", "img_channels"):
        if type(known.get(key)) is not int or known[key] < 1:
            raise InputError(f"{file}: argument {key}={known.get(key)!r} of {name} is not a size")
    for key in {*DEFAULTS[name]} - {"model_type"}:
        if not _is_number(known[key]) or known[key] < 0:
            raise InputError(
                f"{file}: argument {key}={known[key]!r} of {name} is no number from 0 on"
            )
    for key in IGNORED:
        if known.get(key) is not None and not _is_number(known[key]):
            raise InputError(f"{file}: argument {key}={known[key]!r} of {name} is no number")
    return known


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def _process(
    name: str, known: dict[str, Any], file: Path
) -> tuple[NoiseSchedule, str, Callable[[Tensor], Tensor] | None]:
    """(noise schedule, kind of prediction, network time).

    The range of times ends as in the published samplers.

    Raises InputError for noise levels that make no schedule.
    """
    try:
        if name == "EDMPrecond":
            return EDM(max(0.002, known["sigma_min"]), min(80.0, known["sigma_max"])), "edm", None
        if name == "VPPrecond":
            last, beta = known["M"] - 1, known["beta_min"]
            noise = VPLinear(beta, beta + known["beta_d"], t_min=1e-3)
            return noise, "noise", lambda t: last * t
        return EDM(known["sigma_min"], known["sigma_max"]), "noise", lambda t: (0.5 * t).log()
    except ValueError as error:
        told = {key: known[key] for key in DEFAULTS[name]}
        raise InputError(f"{file}: its noise levels make no process: {error} ({told})") from error


def _no_label(condition: Condition) -> Condition:
    return map_condition(lambda c: torch.full_like(c, NO_LABEL), condition)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON keeps them, so that a converted file has the hash of its source."""
    return {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in arguments.items()
    }
