"""diffusers networks behind one signature, net(x [B, *shape], time [B], condition) -> [B, *shape].

Times stay floating point up to the embedding, so a network can be called at step 417.3. A variance
that is predicted as well is cut off, for all networks in `DiffusersNetwork`. The conditions, batch
first, are:

    class     int64 labels [B]
    text      {"prompt": [B, tokens, width]}, with "pooled" [B, width] for SDXL, SD3 and FLUX-type
              networks
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.denoiser import Condition
from .network_outputs import without_variance


def texts(condition: Condition, *names: str) -> list[Tensor]:
    """The named tensors of a text condition; ValueError if they are missing."""
    if not isinstance(condition, Mapping) or any(name not in condition for name in names):
        raise ValueError(
            f"a text-conditional network needs the condition's {names}: take it from draw_condition"
        )
    return [condition[name] for name in names]


def labels(condition: Condition) -> Tensor:
    """The labels of a class condition; ValueError if there are none."""
    if not isinstance(condition, Tensor):
        raise ValueError(
            "a class-conditional network needs labels [B]: take them from draw_condition"
        )
    return condition


class DiffusersNetwork(nn.Module):
    """A network of diffusers. A subclass calls it in `predict`."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition = None) -> Tensor:
        """The prediction, in the shape of x [B, *shape]."""
        return without_variance(self.predict(x, time, condition), x)

    @abstractmethod
    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output for x [B, *shape] at time [B] in its own steps."""


class PixelNetwork(DiffusersNetwork):
    """UNet2DModel, unconditional or with class embeddings, of pixels or latents."""

    def __init__(self, inner: nn.Module, classes: bool) -> None:
        super().__init__()
        self.inner, self.classes = inner, classes

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is labels [B] or None."""
        label = labels(condition) if self.classes else None
        return self.inner(x, time, class_labels=label).sample


class ClassTransformer(DiffusersNetwork):
    """DiT, a transformer on latents and classes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is labels [B]."""
        return self.inner(x, timestep=time, class_labels=labels(condition)).sample


class TextUNet(DiffusersNetwork):
    """UNet2DConditionModel of Stable Diffusion 1.x, 2.x and XL.

    size_ids: the six sizes that SDXL gets (original height and width, crop, target); None for the
    others.
    """

    size_ids: Tensor | None

    def __init__(self, inner: nn.Module, size_ids: Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        # as integers: a half-precision network must not round the sizes
        self.register_buffer(
            "size_ids", None if size_ids is None else size_ids.long(), persistent=False
        )

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is "prompt", and "pooled" for SDXL."""
        if self.size_ids is None:
            (prompt,) = texts(condition, "prompt")
            return self.inner(x, time, encoder_hidden_states=prompt).sample
        prompt, pooled = texts(condition, "prompt", "pooled")
        added = {"text_embeds": pooled, "time_ids": self.size_ids.expand(len(x), -1).to(time.dtype)}
        return self.inner(x, time, encoder_hidden_states=prompt, added_cond_kwargs=added).sample


class ClassUNet(DiffusersNetwork):
    """UNet2DConditionModel that attends to one token, the embedding of a class.

    table: embeddings [classes + 1, width]; the last one stands for no class.
    """

    table: Tensor

    def __init__(self, inner: nn.Module, table: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("table", table)

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is labels [B]."""
        token = functional.embedding(labels(condition), self.table)[:, None]  # [B, 1, width]
        return self.inner(x, time, encoder_hidden_states=token).sample


class Reversed(nn.Module):
    """A network of flow matching whose velocity points from noise to data."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, condition: Condition = None) -> Tensor:
        """The velocity from data to noise."""
        return -self.net(x, time, condition)


class FlowTransformer(DiffusersNetwork):
    """SD3Transformer2DModel, a transformer on latents and text."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is "prompt" and "pooled"."""
        prompt, pooled = texts(condition, "prompt", "pooled")
        return self.inner(
            x, encoder_hidden_states=prompt, pooled_projections=pooled, timestep=time
        ).sample


class PackedTransformer(DiffusersNetwork):
    """FluxTransformer2DModel.

    Latents [B, C, h, w] enter as h w / 4 tokens of 4 C numbers.

    Args:
        guidance: the embedded guidance scale; None for a network that has no such input.
    """

    def __init__(self, inner: nn.Module, guidance: float | None) -> None:
        super().__init__()
        self.inner, self.guidance = inner, guidance
        self._time: Tensor | None = None
        # the network casts its time to its own dtype before embedding it: in bfloat16 that leaves 8
        # bits of it
        inner.time_text_embed.register_forward_pre_hook(self._exact_time)  # type: ignore[union-attr]

    def _exact_time(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._time, *arguments[1:])

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output; the condition is "prompt" and "pooled".

        time: in steps, as for every other network.
        """
        prompt, pooled = texts(condition, "prompt", "pooled")
        b, c, h, w = x.shape
        tokens = (
            x.reshape(b, c, h // 2, 2, w // 2, 2)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(b, h * w // 4, 4 * c)
        )
        rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)
        self._time = time
        out = self.inner(
            hidden_states=tokens,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=time / 1000,  # multiplied by 1000 inside
            guidance=None if self.guidance is None else torch.full_like(time, self.guidance),
            img_ids=places,
            txt_ids=torch.zeros(prompt.shape[1], 3).to(x),
        ).sample
        return out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class LatentDecoder(nn.Module):
    """Latents z [B, C, h, w] -> images [B, 3, H, W], about [-1, 1]: the autoencoder of scale z +
    shift, in float32.

    scale and shift invert how latents were normalised for training: [1] or [C].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        config: Any = vae.config
        self.vae = vae.eval().requires_grad_(False).float()
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        factor = float(getattr(config, "scaling_factor", None) or 1.0)
        scale = torch.tensor([1.0] if mean is None or std is None else std) / factor
        shift = torch.tensor(
            [float(getattr(config, "shift_factor", None) or 0.0)]
            if mean is None or std is None
            else mean
        )
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents, differentiable, in the dtype of z."""
        latent = z.float() * self.scale + self.shift
        return self.vae.decode(latent).sample.to(z.dtype)  # type: ignore[operator]
