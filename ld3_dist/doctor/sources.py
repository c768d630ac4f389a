"""Sources of the files that experiments name, as text for messages; nothing here downloads."""

from __future__ import annotations

from pathlib import Path

from ..core.lpips import TRUNK_FILES
from ..metrics.inception import FILE as INCEPTION_FILE
from ..metrics.inception import SOURCE as INCEPTION_SOURCE
from ..models.edm.opening import PUBLISHED

_REFERENCES = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"
_BATCHES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
_LDM = "https://ommer-lab.com/files/latent-diffusion/"
_LDM_CONFIGS = "https://github.com/CompVis/latent-diffusion, "
_EDM = (
    *(f"edm-cifar10-32x32-{kind}" for kind in ("uncond-vp", "uncond-ve", "cond-vp", "cond-ve")),
    *(f"edm-{data}-64x64-uncond-{kind}" for data in ("ffhq", "afhqv2") for kind in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)

FILES: dict[str, str] = {
    **{f"{name}.pkl": f"{PUBLISHED}{name}.pkl" for name in _EDM},
    **{file: f"https://download.pytorch.org/models/{file}" for file in TRUNK_FILES.values()},
    INCEPTION_FILE: INCEPTION_SOURCE,
    **{
        f"{name}.npz": f"{_REFERENCES}{name}.npz"
        for name in ("cifar10-32x32", "ffhq-64x64", "afhqv2-64x64")
    },
    "imagenet-64x64.npz": f"{_REFERENCES}imagenet-64x64.npz",
    "VIRTUAL_lsun_bedroom256.npz": f"{_BATCHES}lsun/bedroom/VIRTUAL_lsun_bedroom256.npz",
    "VIRTUAL_imagenet256_labeled.npz": f"{_BATCHES}imagenet/256/VIRTUAL_imagenet256_labeled.npz",
    # folders of diffusers pipelines, by the name the experiments give them
    "stable-diffusion-v1-4": "hub id CompVis/stable-diffusion-v1-4",
    "stable-diffusion-v1-5": "hub id stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-3-medium-diffusers": "hub id stabilityai/stable-diffusion-3-medium-diffusers",
    "FLUX.1-dev": "hub id black-forest-labs/FLUX.1-dev",
    "2_rectified_flow_from_sd_1_5": "hub id XCLiu/2_rectified_flow_from_sd_1_5",
    "ldm-cin256-v2": f"{_LDM}nitro/cin/model.ckpt and "
    f"{_LDM_CONFIGS}configs/latent-diffusion/cin256-v2.yaml, then: "
    "ld3-dist convert model.ckpt weights/ldm-cin256-v2 --config cin256-v2.yaml",
    "ldm-lsun-bedroom-256": f"{_LDM}lsun_bedrooms.zip and "
    f"{_LDM_CONFIGS}models/ldm/lsun_beds256/config.yaml, then: "
    "ld3-dist convert model.ckpt weights/ldm-lsun-bedroom-256 --config config.yaml",
}
"""The published source of each file or folder, by its name."""


def where_from(path: str) -> str:
    """The remedy for a missing file; empty if its name is not a published one."""
    place = FILES.get(Path(path).name)
    return "" if place is None else f"get it from {place}"
