"""Score models of galaxies as models of ld3_dist: `python:experiments/galaxies/galaxies.py:hsc32`.

    hsc32, hsc64     galaxies of the Hyper Suprime-Cam survey, 32x32 and 64x64 pixels
    quasar72         gravitationally lensed quasars, 72x72 pixels

The networks give the score s(x, t) = grad log p_t(x) = -eps / sigma, so that the noise is

    eps = -sigma(t) s(x, t).

A sample x is the logarithm of the light, log(1 + flux) / 0.1, as the networks were trained: the sky
is 0 +- 0.05, the core of a galaxy 3 to 8. An image is its stretch by an inverse hyperbolic sine,
which is linear in the sky and logarithmic in the core, moved to [-1, 1]:

    u(x) = asinh(x / SOFTENING),   image = 2 (u(x) - u(BLACK)) / (u(WHITE) - u(BLACK)) - 1

Astronomers look at images in this way (Lupton et al. 2004, astro-ph/0312483). What is brighter than
WHITE or darker than BLACK leaves [-1, 1]; nothing is cut off, so that x can be had back.
"""

from __future__ import annotations

import math

from eqx_files import read_network
from galaxy_noise import OrnsteinUhlenbeck
from galaxy_wheel import NAME, member
from torch import Tensor, nn

from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.models import Model, ModelOptions, conditional_on, no_pipeline, to_device

SOFTENING, BLACK, WHITE = 0.25, -0.25, 8.0
FILES = {"hsc32": ("hsc_ScoreNet32", 32), "hsc64": ("hsc_ScoreNet64", 64)}
FILES["quasar72"] = ("quasar_lens72", 72)


class NoiseFromScore(nn.Module):
    """A score network as one that predicts noise."""

    def __init__(self, score: nn.Module, noise: OrnsteinUhlenbeck) -> None:
        super().__init__()
        self.score, self.noise = score, noise

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:
        return -self.noise.sigma(t).view(-1, 1, 1, 1).to(x) * self.score(x, t)


def hsc32(options: ModelOptions) -> Model:
    """Galaxies of the Hyper Suprime-Cam survey, 32x32."""
    return _open("hsc32", options)


def hsc64(options: ModelOptions) -> Model:
    """Galaxies of the Hyper Suprime-Cam survey, 64x64."""
    return _open("hsc64", options)


def quasar72(options: ModelOptions) -> Model:
    """Quasars behind gravitational lenses, 72x72."""
    return _open("quasar72", options)


def _open(name: str, options: ModelOptions) -> Model:
    conditional_on(False, options, name)
    no_pipeline(options, name)
    file, side = FILES[name]
    path = f"galaxygrad/eqx_{file}.eqx"
    net = read_network(member(path), f"{NAME}/{path}", side)
    noise = OrnsteinUhlenbeck()
    denoiser = NetworkDenoiser(
        to_device(NoiseFromScore(net, noise), options),
        noise,
        (1, side, side),
        "noise",
        decoder=to_image,
        dtype=options.torch_dtype,
    )
    return Model(denoiser, settings={"parameters": sum(p.numel() for p in net.parameters())})


def to_image(x: Tensor) -> Tensor:
    """Samples as the network has them -> images for eyes, most of them in [-1, 1]."""
    low, high = (math.asinh(end / SOFTENING) for end in (BLACK, WHITE))
    return 2 * ((x / SOFTENING).asinh() - low) / (high - low) - 1


def from_image(image: Tensor) -> Tensor:
    """The inverse of `to_image`."""
    low, high = (math.asinh(end / SOFTENING) for end in (BLACK, WHITE))
    return SOFTENING * ((image + 1) / 2 * (high - low) + low).sinh()
