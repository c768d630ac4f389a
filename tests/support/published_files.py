"""Checkpoint files of DyWeight and EPD in their published form, written by hand, and a model."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from edm_pickles import Persistent
from torch import Tensor, nn

import ld3_dist as ld3
from ld3_dist.core.noise import NoiseSchedule
from ld3_dist.models.analytic.mixture import mixture_2d


def dyweight_file(
    file: Path, weights: Tensor, scales: Tensor | None, analytic: bool = False, **loss: Any
) -> Path:
    """A predictor with its loss; weights [N, N], scales of the steps that ask the network."""
    steps = len(weights)
    parameters = {
        "hybrid_weights": nn.Parameter(weights),
        "t_scale": None if scales is None else nn.Parameter(scales),
    }
    state = {
        "_parameters": parameters,
        "_buffers": {"mask": torch.ones(steps, steps).tril()},
        "num_steps": steps + 1,
        "afs": analytic,
        "guidance_type": None,
        "guidance_rate": 0.0,
    }
    settings = {"schedule_type": "polynomial", "schedule_rho": 7.0, "dataset_name": "cifar10"}
    content = {
        "predictor": Persistent("DyWeight_predictor", state),
        "loss_fn": Persistent("DyWeight_loss", settings | loss),
    }
    file.write_bytes(pickle.dumps(content))
    return file


def epd_file(file: Path, parameters: dict[str, Tensor], **settings: Any) -> Path:
    """A predictor; parameters [N, P] under the names of its authors."""
    steps, points = parameters["r_params"].shape
    state = {
        "_parameters": {name: nn.Parameter(value) for name, value in parameters.items()},
        "_modules": {"sigmoid": nn.Sigmoid()},
        "num_steps": steps + 1,
        "num_points": points,
        "schedule_type": "polynomial",
        "schedule_rho": 7.0,
        "afs": False,
        "scale_dir": 0.0,
        "scale_time": 0.0,
        "fcn": False,
        "guidance_type": "cfg",
        "guidance_rate": 7.5,
        "dataset_name": "ms_coco",
    }
    state |= settings
    file.write_bytes(pickle.dumps({"model": Persistent("EPD_predictor", state)}))
    return file


def model_of(noise: NoiseSchedule) -> Any:
    """A model of a mixture, with a noise schedule of one's choice."""
    return replace(ld3.load_model("analytic:mixture-2d"), denoiser=mixture_2d(noise))
