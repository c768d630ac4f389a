"""Published schedules that cannot be used: lists, texts and checkpoints, and what is said."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_pickles import Persistent
from published_files import dyweight_file, epd_file, model_of

from ld3_dist.core.errors import InputError
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine
from ld3_dist.schedule.imports import import_schedule
from ld3_dist.schedule.imports.lists import knots_of


@pytest.mark.parametrize(
    ("levels", "noise", "said"),
    [
        ([0.1, 1, 80], EDM(), r"sigmas\[1\] = 1 comes after 0\.1; the list goes from data.*revers"),
        ([80, 3, 3, 0], EDM(), r"must decrease, but sigmas\[2\] = 3 comes after 3"),
        ([999, 500, 24], EDM(), r"above the model's range.*80 to 0\.002; .*times in 0\.\.1000"),
        ([999, 500, 24], FlowMatching(), r"these seem to be times in 0\.\.1000"),
        ([14.6, 3.2, 0.1], FlowMatching(), "these seem to be sigma / alpha of a diffusion model"),
        ([1, 0.6, 0.2], EDM(), r"too little noise to start from.*timesteps in 0\.\.1"),
        ([-5, 0, 5], EDM(), r"sigmas\[0\] = -5 is negative; .*log-SNR"),
        ([4.3, 0.2, -3], EDM(), r"sigmas\[2\] = -3 is negative; .*log\(sigma\)"),
        ([700.5, 3, 1], EDM(), r"sigmas\[0\] = 700\.5 is above the model's range"),
        ([80, 3, 1e-4], EDM(), r"sigmas\[2\] = 0\.0001 is below the model's range"),
        ([80, 0, 0], EDM(), r"must decrease, but sigmas\[2\] = 0 comes after 0"),
        ([80, 3], VPCosine(), "starts at pure noise.*no list of sigmas describes it"),
    ],
)
def test_wrong_levels_are_refused_and_named(
    levels: list[float], noise: NoiseSchedule, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        knots_of(levels, noise)


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("80", "sigmas", "holds 1 numbers; at least two"),
        ("80, 3, x", "sigmas", "line 1: 'x' is no number"),
        ("80\nnan\n1", "sigmas", "line 2: 'nan' is not finite"),
        ("80, 3", "ays", "holds 2 numbers; a list of Align Your Steps has 11"),
        ('{"steps": [1]}', "sigmas", "has no key 'sigmas' \\(its keys: 'steps'\\)"),
        ('{"sigmas": 3}', "sigmas", "sigmas must be a list"),
        ("[80, true]", "sigmas", r"sigmas\[1\] = True is no number"),
        ("[80, ", "sigmas", "not valid JSON"),
    ],
)
def test_wrong_texts_are_refused(tmp_path: Path, text: str, form: str, said: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"list\.txt: .*{said}"):
        import_schedule(file, form, model_of(EDM()))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"afs": torch.ones(2)}, r"afs = a tensor of shape \[2\]: must be true or false"),
        ({"afs": "no"}, "afs = 'no': must be true or false"),
        ({"fcn": torch.zeros(0)}, r"fcn = a tensor of shape \[0\]: must be true or false"),
        ({"schedule_type": torch.ones(2)}, "schedule_type = a tensor .*: must be a word"),
        ({"guidance_type": torch.ones(2)}, "guidance_type = a tensor .*: must be a word"),
        ({"dataset_name": ["x"] * 99}, "dataset_name = .*…: must be a word"),
        ({"schedule_rho": math.nan}, "schedule_rho = nan: must be a number"),
        ({"scale_time": math.nan}, "scale_time = nan: must be a number"),
        (
            {"schedule_type": "flowmatch", "backend_config": [1]},
            "backend_config = .1.: must be a t",
        ),
        ({"num_steps": torch.ones(1)}, "num_steps = a tensor .*: must be a whole number"),
    ],
)
def test_settings_of_a_checkpoint_are_of_their_kinds(
    tmp_path: Path, format_modules: None, setting: dict[str, Any], said: str
) -> None:
    raw = {name: torch.zeros(3, 2) for name in ("r_params", "weight_s", "scale_time_params")}
    file = epd_file(tmp_path / "x.pkl", raw, **setting)
    with pytest.raises(InputError, match=rf"x\.pkl: {said}"):
        import_schedule(file, "epd", model_of(EDM()))


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.canary),)


def test_wrong_checkpoints_are_refused_and_nothing_runs(
    tmp_path: Path, format_modules: None
) -> None:
    model, file, eye = model_of(EDM()), tmp_path / "x.pkl", torch.eye(3)

    def refused(form: str, said: str) -> None:
        with pytest.raises(InputError, match=rf"x\.pkl: .*{said}"):
            import_schedule(file, form, model)

    refused("dyweight", "file not found")
    canary = tmp_path / "canary"
    file.write_bytes(pickle.dumps({"predictor": Evil(canary)}))
    refused("dyweight", "refers to .*mkdir.*no DyWeight checkpoint needs.*nothing in it was exec")
    assert not canary.exists()
    epd_file(file, {"r_params": eye, "weight_s": eye})
    refused("dyweight", "holds no DyWeight_predictor under 'predictor' .*read it with --as epd")
    dyweight_file(file, eye, torch.ones(3))
    refused("epd", "holds no EPD_predictor under 'model' .*read it with --as dyweight")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused("dyweight", "(truncated|damaged)")
    file.write_bytes(b"<html>")
    refused("epd", "not an EPD pickle")
    dyweight_file(file, eye, torch.ones(2))
    refused("dyweight", r"t_scale has shape \[2\], its settings need \[3\]")
    dyweight_file(file, eye * float("nan"), torch.ones(3))
    refused("dyweight", "hybrid_weights holds numbers that are not finite")
    dyweight_file(file, eye, torch.ones(3), schedule_type="karra")
    refused("dyweight", "unknown .*schedule_type 'karra'")
    dyweight_file(file, eye, torch.ones(3), schedule_type="flowmatch")
    refused("dyweight", "is for a flow model, but the model's noise schedule is edm")
    dyweight_file(file, eye, torch.ones(3), schedule_type="discrete")
    refused("dyweight", "counts network steps, and the noise schedule edm has none")
    dyweight_file(file, eye, torch.ones(3), schedule_rho="7")
    refused("dyweight", "schedule_rho = '7': must be a number")
    epd_file(file, {"r_params": eye, "weight_s": eye}, num_points=2)
    refused("epd", r"r_params has shape \[3, 3\], its settings need \[3, 2\]")
    epd_file(file, {"r_params": eye}, num_points=3)
    refused("epd", "has no tensor 'weight_s'")
    epd_file(file, {"r_params": eye, "weight_s": eye}, num_steps=10**9)
    refused("epd", "num_steps = 1000000000: must be")
    file.write_bytes(pickle.dumps({"model": Persistent("Other", {})}))
    refused("epd", "holds no EPD_predictor .*a Other.*give a checkpoint of EPD")
    torch.save({"state_dict": {}}, file)
    refused("dyweight", "no DyWeight checkpoint .*'state_dict'")
    refused("epd", "no EPD pickle, but an archive")
    with pytest.raises(InputError, match="unknown --as 'dyweigh': did you mean 'dyweight'"):
        import_schedule(file, "dyweigh", model)
    dyweight_file(file, eye, torch.ones(3))
    with pytest.raises(InputError, match="--nfe 5: a checkpoint has as many evaluations"):
        import_schedule(file, "dyweight", model, nfe=5)
