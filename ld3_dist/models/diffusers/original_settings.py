"""The settings in the YAML of a latent-diffusion checkpoint, every key of it.

Each key is read, or known to have no effect on samples, or refused by its name. An unknown key is
refused too, because it may matter. Defaults are the defaults of the classes that the YAML
configures (Rombach et al. 2022: LatentDiffusion, UNetModel, VQModelInterface).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...core.errors import InputError, unknown
from ...core.yaml_text import load_yaml

LARGEST = 1_000_000
"""Largest size that a setting may have."""

TRAINING: tuple[str, ...] = (
    "base_learning_rate", "ckpt_path", "cond_stage_key", "cond_stage_trainable", "first_stage_key",
    "ignore_keys", "image_key", "l_simple_weight", "learn_logvar", "load_only_unet", "log_every_t",
    "logvar_init", "loss_type", "lossconfig", "monitor", "original_elbo_weight", "reset_ema",
    "reset_num_ema_updates", "scheduler_config", "ucg_training", "use_ema", "v_posterior",
    "clip_denoised", "batch_resize_range", "colorize_nlabels", "lr_g_factor", "remap",
    "sane_index_shape", "dropout", "use_checkpoint", "use_fp16", "legacy",
)  # fmt: skip
"""Keys that matter only to training, to samplers, or to the way the network is computed."""


@dataclass(frozen=True)
class UNetSettings:
    """Settings of the U-Net, named as in its YAML; context_dim is None without a condition."""

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[int, ...]
    num_heads: int
    num_head_channels: int
    transformer_depth: int
    context_dim: int | None


@dataclass(frozen=True)
class CoderSettings:
    """Settings of the VQ autoencoder, named as in its YAML."""

    embed_dim: int
    n_embed: int
    z_channels: int
    resolution: int
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int


@dataclass(frozen=True)
class OriginalSettings:
    """A checkpoint's networks and process.

    parameterization: "eps", "x0" or "v".
    classes: number of class embeddings, if the YAML gives it.
    """

    unet: UNetSettings
    coder: CoderSettings
    parameterization: str
    beta_schedule: str
    timesteps: int
    linear_start: float
    linear_end: float
    cosine_s: float
    given_betas: tuple[float, ...] | None
    scale_factor: float
    scale_by_std: bool
    classes: int | None


def read_settings(config: Path) -> OriginalSettings:
    """The settings of a YAML file.

    Raises InputError naming the file, the key, the value and the remedy.
    """
    content = load_yaml(config, "the YAML file of the checkpoint")
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise InputError(
            f"{config}: not the YAML of a latent-diffusion model (no mapping 'model'); give the "
            f"YAML that was published with the checkpoint"
        )
    return parse_settings(content["model"], config)


def parse_settings(model: Mapping[str, Any], config: Path) -> OriginalSettings:
    """The settings of the mapping `model` of a YAML file; raises InputError like read_settings."""
    _target(model, config, "model", ("LatentDiffusion",))
    top = Section(model.get("params"), config, "model.params")
    unet = _unet(top.section("unet_config"))
    coder = _coder(top.section("first_stage_config"))
    classes = _conditioning(top, unet)
    top.demand("use_positional_encodings", False)
    top.demand("num_timesteps_cond", 1)
    top.demand("cond_stage_forward", None)
    given = top.get("given_betas")
    settings = OriginalSettings(
        unet=unet,
        coder=coder,
        parameterization=top.one_of("parameterization", ("eps", "x0", "v"), "eps"),
        beta_schedule=top.one_of("beta_schedule", tuple(SCHEDULES), "linear"),
        timesteps=top.size("timesteps", 1000),
        linear_start=top.number("linear_start", 1e-4),
        linear_end=top.number("linear_end", 2e-2),
        cosine_s=top.number("cosine_s", 8e-3),
        given_betas=None if given is None else top.numbers("given_betas"),
        scale_factor=top.number("scale_factor", 1.0),
        scale_by_std=top.switch("scale_by_std", False),
        classes=classes,
    )
    channels, size = top.size("channels", unet.in_channels), top.get("image_size")
    if channels != unet.in_channels:
        top.refuse("channels", channels, f"the network has in_channels {unet.in_channels}")
    if size is not None and size != unet.image_size:
        top.refuse("image_size", size, f"the network has image_size {unet.image_size}")
    if coder.embed_dim != unet.in_channels:
        top.refuse(
            "first_stage_config.params.embed_dim",
            coder.embed_dim,
            f"the network has in_channels {unet.in_channels}",
        )
    top.done()
    return settings


SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "cosine",
    "sqrt_linear": "sqrt_linear",
    "sqrt": "sqrt",
}
"""Names of beta schedules; two of them are other libraries' names for the same betas."""


def _conditioning(top: Section, unet: UNetSettings) -> int | None:
    """The number of classes, if given; InputError unless conditioned on classes or nothing."""
    stage, given = top.get("cond_stage_config"), top.get("conditioning_key")
    concat = top.switch("concat_mode", True)
    if stage == "__is_unconditional__":
        key = None
    elif given is None and stage is not None:
        key = "concat" if concat else "crossattn"
    else:
        key = given
    if key not in (None, "crossattn"):
        top.refuse(
            "conditioning_key",
            key,
            "only networks conditioned on classes by cross-attention (crossattn), or on nothing, "
            "are converted",
        )
    if key == "crossattn" and unet.context_dim is None:
        top.refuse("conditioning_key", key, "the network has no use_spatial_transformer")
    if stage == "__is_unconditional__" and unet.context_dim is not None:
        top.refuse("cond_stage_config", stage, "the network has use_spatial_transformer")
    if unet.in_channels != unet.out_channels:
        top.refuse(
            "unet_config.params.in_channels",
            unet.in_channels,
            f"it must be out_channels, {unet.out_channels}: networks that get a condition beside "
            f"the sample (concat) or predict a variance are not converted",
        )
    if not isinstance(stage, Mapping):
        if stage not in (None, "__is_unconditional__"):
            top.refuse("cond_stage_config", stage, "only classes are a known condition")
        return None
    _target(stage, top.file, f"{top.name}.cond_stage_config", ("ClassEmbedder",))
    section = Section(stage.get("params"), top.file, f"{top.name}.cond_stage_config.params")
    section.ignore("key", "ucg_rate")
    width, count = section.size("embed_dim", unet.context_dim or 1), section.get("n_classes")
    if unet.context_dim is not None and width != unet.context_dim:
        section.refuse("embed_dim", width, f"the network has context_dim {unet.context_dim}")
    classes = None if count is None else section.size("n_classes")
    section.done()
    return classes


def _unet(section: Section) -> UNetSettings:
    section.demand("conv_resample", True)
    section.demand("dims", 2)
    for key in ("resblock_updown", "use_scale_shift_norm", "use_new_attention_order"):
        section.demand(key, False)
    for key in ("num_classes", "n_embed", "adm_in_channels", "disable_self_attentions"):
        section.demand(key, None)
    for key in ("num_attention_blocks", "disable_middle_self_attn", "use_linear_in_transformer"):
        section.demand(key, None)
    heads = section.whole("num_heads", -1)
    width = section.whole("num_head_channels", -1)
    upsampling = section.whole("num_heads_upsample", -1)
    if upsampling not in (-1, heads):
        section.refuse("num_heads_upsample", upsampling, f"only num_heads, {heads}, is known")
    transformer = section.switch("use_spatial_transformer", False)
    context = section.get("context_dim")
    if transformer != (context is not None):
        section.refuse("context_dim", context, "it goes with use_spatial_transformer: true")
    if heads < 1 and width < 1:
        section.refuse("num_heads", heads, "give num_heads or num_head_channels")
    if not transformer and width < 1 and heads != 1:
        section.refuse("num_heads", heads, "only num_head_channels, or 1 head, is known")
    made = UNetSettings(
        image_size=section.size("image_size"),
        in_channels=section.size("in_channels"),
        out_channels=section.size("out_channels"),
        model_channels=section.size("model_channels"),
        num_res_blocks=section.size("num_res_blocks"),
        attention_resolutions=section.sizes("attention_resolutions"),
        channel_mult=section.sizes("channel_mult", (1, 2, 4, 8)),
        num_heads=heads,
        num_head_channels=width,
        transformer_depth=section.size("transformer_depth", 1),
        context_dim=section.size("context_dim") if transformer else None,
    )
    if not made.channel_mult:
        section.refuse("channel_mult", [], "it must list at least one level")
    section.done()
    return made


def _coder(section: Section) -> CoderSettings:
    if section.get("n_embed") is None:
        raise InputError(
            f"{section.file}: {section.name} has no n_embed: its first stage is not a VQ "
            f"autoencoder; only those are converted"
        )
    inner = section.inner("ddconfig")
    inner.demand("double_z", False)
    inner.demand("attn_resolutions", [])
    inner.demand("resamp_with_conv", True)
    inner.demand("use_linear_attn", False)
    inner.demand("attn_type", "vanilla")
    inner.demand("give_pre_end", False)
    inner.demand("tanh_out", False)
    made = CoderSettings(
        embed_dim=section.size("embed_dim"),
        n_embed=section.size("n_embed"),
        z_channels=inner.size("z_channels"),
        resolution=inner.size("resolution"),
        in_channels=inner.size("in_channels"),
        out_ch=inner.size("out_ch"),
        ch=inner.size("ch"),
        ch_mult=inner.sizes("ch_mult", (1, 2, 4, 8)),
        num_res_blocks=inner.size("num_res_blocks"),
    )
    if not made.ch_mult:
        inner.refuse("ch_mult", [], "it must list at least one level")
    inner.done()
    section.done()
    return made


_TARGETS = {"unet_config": ("UNetModel",), "first_stage_config": ("VQModelInterface",)}


def _target(holder: Mapping[str, Any], file: Path, name: str, known: Sequence[str]) -> None:
    """Refuse an unknown class, by the last part of its name."""
    target = holder.get("target")
    if target is not None and str(target).rpartition(".")[2] not in known:
        raise InputError(
            f"{file}: {name}.target is {target!r}; only {' or '.join(known)} can be converted"
        )


class Section:
    """One mapping of a YAML file, whose keys are taken one by one.

    Args:
        values: the mapping.
        name: its full key, for messages.

    Raises InputError for a value that is no mapping.
    """

    def __init__(self, values: Any, file: Path, name: str) -> None:
        if not isinstance(values, Mapping):
            raise InputError(
                f"{file}: not the YAML of a latent-diffusion model ({name} is no mapping); give "
                f"the YAML that was published with the checkpoint"
            )
        self.values, self.file, self.name = values, file, name
        self._taken: set[str] = set(TRAINING)

    def section(self, key: str) -> Section:
        """The parameters of a class that this section configures, its name checked."""
        holder = self.inner(key)
        _target(holder.values, self.file, holder.name, _TARGETS[key])
        holder.ignore("target", "params")
        holder.done()
        return Section(holder.values.get("params"), self.file, f"{holder.name}.params")

    def inner(self, key: str) -> Section:
        """A mapping inside this one."""
        return Section(self.get(key), self.file, f"{self.name}.{key}")

    def ignore(self, *keys: str) -> None:
        """Take keys that have no effect here."""
        self._taken.update(keys)

    def get(self, key: str) -> Any:
        """The value of a key, unchanged; None if it is missing."""
        self._taken.add(key)
        return self.values.get(key)

    def _or(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value

    def demand(self, key: str, only: Any) -> None:
        """Refuse a key if it has another value than the one that can be converted."""
        value = self.get(key)
        if value in (None, only) or (only in (None, False) and value is False):
            return
        self.refuse(key, value, "that has no counterpart in diffusers")

    def number(self, key: str, default: float) -> float:
        """A finite positive number."""
        value: Any = self._or(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(key, value, "it must be a number")
        if not 0 < value < math.inf:
            self.refuse(key, value, "it must be a finite number above 0")
        return float(value)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at most LARGEST."""
        value: Any = self._or(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
            self.refuse(key, value, f"it must be a whole number of at most {LARGEST:,}")
        return int(value)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to LARGEST."""
        value = self.whole(key, default)
        if value < 1:
            self.refuse(key, value, "it must be at least 1")
        return value

    def sizes(self, key: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of at most 16 sizes."""
        value: Any = self._or(key, default)
        good = isinstance(value, (list, tuple)) and len(value) <= 16
        if not good or not all(type(v) is int and 0 < v <= LARGEST for v in value):
            self.refuse(key, value, "it must be a list of at most 16 whole numbers above 0")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self.get(key)
        good = isinstance(value, (list, tuple)) and len(value) <= LARGEST
        if not good or not all(type(v) in (int, float) and math.isfinite(v) for v in value):
            self.refuse(key, value, "it must be a list of finite numbers")
        return tuple(float(v) for v in value)

    def switch(self, key: str, default: bool) -> bool:
        """True or false."""
        value: Any = self._or(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "it must be true or false")
        return value

    def one_of(self, key: str, known: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value: Any = self._or(key, default)
        if not isinstance(value, str) or value not in known:
            raise unknown(f"{self.name}.{key} of {self.file}:", value, known)
        return value

    def refuse(self, key: str, value: Any, reason: str) -> NoReturn:
        """Raise InputError naming the file, the key and the value."""
        shown = repr(value)
        shown = shown if len(shown) < 80 else f"{shown[:80]} …"
        raise InputError(
            f"{self.file}: {self.name}.{key} is {shown}: {reason}; such a checkpoint cannot be "
            f"converted"
        )

    def done(self) -> None:
        """Refuse the keys that nobody has taken."""
        for key, value in self.values.items():
            if key not in self._taken and value not in (None, False):
                self.refuse(str(key), value, "this key is not known, and may matter")
