"""Schedules of a pipeline at other sizes and guidance than they were learned for."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines_on_disk import options_for
from schedules import coupled_schedule, one_thread  # noqa: F401

import ld3_dist as ld3
from ld3_dist.models import open_model
from ld3_dist.schedule import site_scores

GIVEN = {"samples": 2, "teacher": "ddim/4/uniform", "baselines": ["uniform"]}


def test_a_pipeline_at_two_sizes_and_two_scales(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"diffusers:{folders['sd']}"
    model = open_model(spec, options_for("sd", folders))
    schedule = coupled_schedule(model.noise, 2, "quadratic", "ddim")
    seen = []

    def measured(model: ld3.Model, *given: object, **named: object) -> object:
        seen.append((model.image_shape[1:], model.guidance))
        return measure(model, *given, **named)

    measure = site_scores.measure
    monkeypatch.setattr(site_scores, "measure", measured)
    frame = ld3.transfer(
        schedule, [f"sd={spec}"], sizes=[(16, 16), (32, 16)], guidance=[1.0, 3.0],
        prompts=str(folders["prompts"]), **GIVEN,
    )  # fmt: skip
    learned = frame[frame["kind"] == "learned"]
    assert learned["site"].tolist() == [
        "sd, 16x16", "sd, 32x16", "sd, guidance 3, 16x16", "sd, guidance 3, 32x16",
    ]  # fmt: skip
    sizes = [((16, 16), 1.0), ((32, 16), 1.0), ((16, 16), 3.0), ((32, 16), 3.0)]
    assert list(dict.fromkeys(seen)) == sizes
    assert (frame["status"] == "ok").all()
    with pytest.raises(ld3.InputError, match=r"size=\(15, 16\) must be multiples"):
        ld3.transfer(schedule, [spec], sizes=[(15, 16)], prompts=str(folders["prompts"]), **GIVEN)
