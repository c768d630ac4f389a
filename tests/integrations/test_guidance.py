"""Guidance that differs from the schedule's, however the difference comes about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines_on_disk import PROMPTS, close, diffusers, options_for, stock
from schedules import coupled_schedule

from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.integrations.diffusers import LD3Scheduler
from ld3_dist.models import open_model
from ld3_dist.models.diffusers import guidance as room
from ld3_dist.schedule.file import Schedule

NFE = 4


def schedule_of(folders: dict[str, Path], kind: str, guidance: float) -> tuple[Any, Schedule]:
    model = open_model(f"diffusers:{folders[kind]}", options_for(kind, folders, guidance=guidance))
    made = coupled_schedule(model.denoiser.noise, NFE, solver="dpmpp-2")
    return model, replace(made, guidance=guidance, prediction=model.prediction)


def equipped(pipeline: Any, schedule: Schedule, **more: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LD3Scheduler.from_schedule(schedule, pipeline, **more)
    return pipeline


CALL = {"num_inference_steps": NFE, "output_type": "latent"}


@pytest.mark.parametrize("change", [0.0, 1.0, 7.0])
def test_a_callback_that_changes_guidance(folders: dict[str, Path], change: float) -> None:
    model, schedule = schedule_of(folders, "sd", 5.0)
    pipeline = equipped(stock(folders["sd"]), schedule)
    noise = draw_noise(0, range(1), model.denoiser.shape)

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = change
            if change <= 1:  # as the library's own example does it
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    call = {**CALL, "latents": noise, "guidance_scale": 5.0}
    call["callback_on_step_end_tensor_inputs"] = ["latents", "prompt_embeds"]
    with pytest.raises(InputError, match=r"guidance_scale = .*, but it was learned with 5"):
        pipeline(PROMPTS[:1], callback_on_step_end=callback, **call)
    pipeline(PROMPTS[:1], **call)  # the next call begins afresh
    with pytest.warns(UserWarning, match="guidance_scale"):
        equipped(stock(folders["sd"]), schedule, force=True)(
            PROMPTS[:1], callback_on_step_end=callback, **call
        )


def test_a_callback_that_leaves_guidance_alone(folders: dict[str, Path]) -> None:
    model, schedule = schedule_of(folders, "sd", 5.0)
    noise, condition = draw_noise(0, range(1), model.denoiser.shape), model.draw_condition(3, [0])
    line = PROMPTS[model.draw_condition.__self__.pick(3, 0)]
    pipeline = equipped(stock(folders["sd"]), schedule)
    call = {**CALL, "latents": noise, "guidance_scale": 5.0}
    got = pipeline([line], callback_on_step_end=lambda p, i, t, k: k, **call).images
    with torch.no_grad():
        close(got, sample(model.denoiser, schedule.tableau, noise, condition))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_guidance_rescale(folders: dict[str, Path], kind: str) -> None:
    model, schedule = schedule_of(folders, kind, 5.0)
    noise = draw_noise(0, range(1), model.denoiser.shape)
    call = {**CALL, "latents": noise, "guidance_scale": 5.0}
    pipeline = equipped(stock(folders[kind]), schedule)
    with pytest.raises(InputError, match=r"guidance_rescale = 0\.7 .*call with guidance_rescale=0"):
        pipeline(PROMPTS[:1], guidance_rescale=0.7, **call)
    with pytest.warns(UserWarning, match="guidance_rescale"):
        equipped(stock(folders[kind]), schedule, force=True)(
            PROMPTS[:1], guidance_rescale=0.7, **call
        )
    _, plain = schedule_of(folders, kind, 1.0)  # without guidance there is nothing to rescale
    equipped(stock(folders[kind]), plain)(
        PROMPTS[:1], guidance_rescale=0.7, **{**call, "guidance_scale": 1.0}
    )


def test_perturbed_attention_guidance(folders: dict[str, Path]) -> None:
    model, schedule = schedule_of(folders, "sd", 5.0)
    noise, condition = draw_noise(0, range(1), model.denoiser.shape), model.draw_condition(3, [0])
    line = PROMPTS[model.draw_condition.__self__.pick(3, 0)]
    parts = dict(stock(folders["sd"]).components)
    pipeline = equipped(
        diffusers.StableDiffusionPAGPipeline(
            **parts, requires_safety_checker=False, pag_applied_layers="mid"
        ),
        schedule,
    )
    call = {**CALL, "latents": noise, "guidance_scale": 5.0}
    with pytest.raises(InputError, match=r"pag_scale = 3\.0 of StableDiffusionPAGPipeline.*=0"):
        pipeline([line], **call)
    got = pipeline([line], pag_scale=0.0, **call).images
    with torch.no_grad():
        close(got, sample(model.denoiser, schedule.tableau, noise, condition))


def test_skipped_layers(folders: dict[str, Path]) -> None:
    model, schedule = schedule_of(folders, "sd3", 4.0)
    noise = draw_noise(0, range(1), model.denoiser.shape)
    pipeline = equipped(stock(folders["sd3"]), schedule)
    call = {**CALL, "latents": noise, "guidance_scale": 4.0, "height": 16, "width": 16}
    pipeline(PROMPTS[:1], **call)
    with pytest.raises(InputError, match=r"skip_guidance_layers = \[0\]"):
        pipeline(PROMPTS[:1], skip_guidance_layers=[0], **call)


class Pretender:
    """A pipeline with the arguments of many."""

    def __call__(
        self,
        guidance_scale: Any = 5.0,
        guidance_rescale: float = 0.0,
        cfg_trunc_ratio: float = 1.0,
        cfg_normalization: bool = False,
        guidance_scale_2: float | None = None,
        use_dynamic_cfg: bool = False,
        sag_scale: float = 0.0,
        control_guidance_end: float = 1.0,
        callback_on_step_end: Any = None,
    ) -> dict[str, float]:
        return room.guidance_of_call(self.scheduler)

    scheduler = object()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, None),
        ({"control_guidance_end": 0.5}, None),
        ({"callback_on_step_end": 3}, None),
        ({"guidance_rescale": 0.1}, "guidance_rescale=0"),
        ({"cfg_trunc_ratio": 0.5}, "cfg_trunc_ratio=1"),
        ({"cfg_normalization": True}, "cfg_normalization=False"),
        ({"guidance_scale_2": 1.0}, "guidance_scale_2=0"),
        ({"use_dynamic_cfg": True}, "use_dynamic_cfg=False"),
        ({"sag_scale": 0.75}, "sag_scale=0"),
        ({"guidance_scale": [1.0, 5.0]}, "guidance_scale is no single number"),
        ({"guidance_scale": torch.ones(3)}, "guidance_scale is no single number"),
    ],
)
def test_arguments(
    arguments: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "DiffusionPipeline", Pretender)
    if said is None:
        assert Pretender()(**arguments) == {"guidance_scale": 5.0}
        return
    with pytest.raises(InputError) as error:
        Pretender()(**arguments)
    assert said in str(error.value)


def test_every_guiding_argument_of_the_library_has_a_verdict() -> None:
    """An argument with a default that changes guidance is refused; one that is off is not."""
    import inspect

    seen = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name)
        if not (name.endswith("Pipeline") and callable(kind) and isinstance(kind, type)):
            continue
        for key in inspect.signature(kind.__call__).parameters:
            if room.GUIDING.search(key):
                seen.add(key)
    assert {"guidance_rescale", "pag_scale", "true_cfg_scale", "sag_scale"} <= seen
    changing = {key for key in seen - room.HARMLESS if not key.startswith("callback")}
    for key in changing:
        with pytest.raises(InputError, match=key):
            room._refuse_changes("P", {key: 0.123}, guided=True)
        room._refuse_changes("P", {key: room.OFF.get(key, 0)}, guided=True)
