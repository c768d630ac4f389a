"""Folders that are no text- or class-conditional pipeline, variants of weights, damaged and
malicious folders: each is named, and nothing of a folder is executed.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from pipelines_on_disk import close, options_for
from safetensors.torch import load_file

from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import ModelOptions, open_model

diffusers = pytest.importorskip("diffusers")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        open_model(f"diffusers:{folder}", ModelOptions(**options))
    assert str(folder) in str(error.value)
    return str(error.value)


def text_with(folder: Path, **config: Any) -> Path:
    """Stable Diffusion with another U-Net."""
    made = tiny.text(folder)
    shutil.rmtree(made / "unet")
    unet = tiny.seeded(
        diffusers.UNet2DConditionModel, sample_size=8, block_out_channels=(8, 16),
        norm_num_groups=4, layers_per_block=1, attention_head_dim=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **config,
    )  # fmt: skip
    unet.save_pretrained(made / "unet")
    return made


def as_pipeline(folder: Path, name: str, **parts: Any) -> Path:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name, **parts}))
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WanTransformer3DModel", "its samples are video or volumes"),
        ("LTXVideoTransformer3DModel", "its samples are video or volumes"),
        ("UNetSpatioTemporalConditionModel", "its samples are video or volumes"),
        ("AceStepTransformer1DModel", "its samples are no images"),
        ("QwenImageTransformer2DModel", "is not written here"),
        ("ZImageTransformer2DModel", "is not written here"),
        ("Flux2Transformer2DModel", "is not written here"),
    ],
)
def test_other_networks_are_refused_before_weights_are_read(
    tmp_path: Path, name: str, reason: str
) -> None:
    place = as_pipeline(tiny.text(tmp_path), "StableDiffusionPipeline", unet=["diffusers", name])
    for file in (place / "unet").glob("*.safetensors"):
        file.write_bytes(b"never read")
    said = refusal(place)
    assert f"its unet is a {name}" in said
    assert reason in said
    assert "python:FILE.py:NAME" in said


def test_quantised_weights_are_refused_with_the_remedy(tmp_path: Path) -> None:
    place = tiny.text(tmp_path)
    file = place / "unet" / "config.json"
    told = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    said = refusal(place)
    assert "quantised (quantization_config, bitsandbytes)" in said
    assert "dtype: float8" in said


@pytest.mark.parametrize(
    ("pipeline", "config", "said"),
    [
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, "takes 9 channels and gives 4"),
        (
            "StableDiffusionInstructPix2PixPipeline",
            {"in_channels": 8},
            "takes 8 channels and gives 4",
        ),
        ("StableDiffusionPipeline", {"in_channels": 5}, "takes 5 channels and gives 4"),
        ("StableDiffusionPipeline", {"out_channels": 3}, "takes 4 channels and gives 3"),
        ("StableDiffusionPipeline", {"num_class_embeds": 10}, "num_class_embeds: 10"),
        (
            "StableDiffusionPipeline",
            {"class_embed_type": "timestep"},
            "class_embed_type: 'timestep'",
        ),
        (
            "StableDiffusionPipeline",
            {"time_cond_proj_dim": 8},
            "time_cond_proj_dim: 8",
        ),
    ],
)
def test_networks_that_need_more_are_refused(
    tmp_path: Path, pipeline: str, config: dict[str, Any], said: str
) -> None:
    folder = as_pipeline(text_with(tmp_path / "model", **config), pipeline)
    assert said in refusal(folder, conditional=False)


def test_upscaler(tmp_path: Path) -> None:
    folder = text_with(tmp_path / "model", in_channels=7, num_class_embeds=20)
    shutil.copytree(folder / "scheduler", folder / "low_res_scheduler")
    part = {"low_res_scheduler": ["diffusers", "DDIMScheduler"]}
    as_pipeline(folder, "StableDiffusionUpscalePipeline", **part)
    said = refusal(folder, conditional=False)
    assert "takes 7 channels and gives 4" in said
    assert "upscaling" in said


def test_super_resolution(tmp_path: Path) -> None:
    folder = tiny.latent(tmp_path / "model", in_channels=6, out_channels=3)
    as_pipeline(folder, "LDMSuperResolutionPipeline")
    assert "takes 6 channels and gives 3" in refusal(folder)


def test_a_learned_variance_is_cut_off_everywhere(tmp_path: Path) -> None:
    """Twice the channels: the prediction is the first half, in pixel and in text networks."""
    folder = text_with(tmp_path / "text", out_channels=8)
    model = open_model(f"diffusers:{folder}", ModelOptions(conditional=False))
    x, t = draw_noise(0, range(2), model.denoiser.shape), torch.full((2,), 0.5)
    condition: Any = model.draw_condition(0, range(2))
    net: Any = model.denoiser.net  # type: ignore[attr-defined]
    with torch.no_grad():
        out = net.inner(x, 1000 * t - 1, encoder_hidden_states=condition["prompt"]).sample
        assert out.shape[1] == 8
        torch.testing.assert_close(net(x, 1000 * t - 1, condition), out[:, :4])
        assert model.denoiser(x, t, condition).shape == x.shape


def test_parts_of_two_models(tmp_path: Path) -> None:
    folder = text_with(tmp_path / "model", in_channels=8, out_channels=8)
    assert "latents of 4" in refusal(folder, conditional=False)


def test_a_refiner_is_no_base_model(tmp_path: Path) -> None:
    folder = tiny.text(tmp_path / "model", xl=True)
    file = folder / "unet" / "config.json"
    told = {**json.loads(file.read_text()), "projection_class_embeddings_input_dim": 5 * 8 + 16}
    shutil.rmtree(folder / "unet")
    told = {key: value for key, value in told.items() if not key.startswith("_")}
    tiny.seeded(diffusers.UNet2DConditionModel, **told).save_pretrained(folder / "unet")
    assert "refiner" in refusal(folder, conditional=False)


def rename(folder: Path, variant: str, part: str, half: bool = True) -> None:
    """Leave a part with the weights of a variant only."""
    for file in (folder / part).glob("*.safetensors"):
        if half:
            from safetensors.torch import save_file

            save_file({k: v.half() for k, v in load_file(file).items()}, file, {"format": "pt"})
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def test_folders_with_a_variant_only(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    for part in ("unet", "vae", "text_encoder"):
        rename(folder, "fp16", part)
    options = options_for("sd", folders)
    exact = open_model(f"diffusers:{folders['sd']}", options)
    x, t = draw_noise(0, range(2), exact.denoiser.shape), torch.full((2,), 0.5)
    for variant in (None, "fp16"):
        told = options_for("sd", folders, variant=variant)
        model = open_model(f"diffusers:{folder}", told)
        condition: Any = model.draw_condition(0, range(2))
        assert condition["prompt"].dtype == torch.float32
        with torch.no_grad():
            got = model.denoiser(x, t, condition)
            expected = exact.denoiser(x, t, exact.draw_condition(0, range(2)))
            assert model.denoiser.decode(got).dtype == torch.float32
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.02 * expected.norm()
        assert model.hash != exact.hash  # other weights


def test_a_variant_of_some_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    rename(folder, "fp16", "unet", half=False)
    options = options_for("sd", folders)
    exact, model = (open_model(f"diffusers:{f}", options) for f in (folders["sd"], folder))
    assert model.hash == exact.hash  # the same numbers under another name
    x, t = draw_noise(0, range(1), exact.denoiser.shape), torch.full((1,), 0.5)
    with torch.no_grad():
        condition = model.draw_condition(0, [0])
        close(model.denoiser(x, t, condition), exact.denoiser(x, t, condition))
    assert "unet" in refusal(folder, variant="bf16", conditional=False)
    assert "'bf16'" in refusal(folder, variant="bf16", conditional=False)
    rename(folder, "bf16", "vae", half=False)
    assert "'bf16', 'fp16'" in refusal(folder, conditional=False)
    assert "no part has weights of variant 'fp8'" in refusal(folders["sd"], variant="fp8")


def test_parts_without_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        folder = shutil.copytree(folders["sd"], tmp_path / part)
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        said = refusal(folder, conditional=False)
        assert f"{folder / part}: holds no weights" in said


def set_config(folder: Path, part: str, **values: Any) -> None:
    file = folder / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


ENDLESS: list[tuple[str, dict[str, Any], str]] = [
    ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
    ("unet/config.json", {"layers_per_block": [1, 10**9]}, "layers_per_block"),
    ("unet/config.json", {"transformer_layers_per_block": 10**7}, "transformer_layers_per_block"),
    ("unet/config.json", {"block_out_channels": [8] * 2000}, "block_out_channels lists 2000"),
    ("unet/config.json", {"cross_attention_dim": 10**12}, "cross_attention_dim"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**8}, "num_hidden_layers"),
    ("vae/config.json", {"layers_per_block": 10**6}, "layers_per_block"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**11}, "num_train_timesteps"),
    ("unet/config.json", {"in_channels": "four"}, ""),
    ("unet/config.json", {"in_channels": -4}, ""),
    ("unet/config.json", {"sample_size": [8, 8, 8]}, "sample_size"),
    ("unet/config.json", {"sample_size": "large"}, "sample_size"),
    ("unet/config.json", {"sample_size": None}, "sample_size"),
    ("unet/config.json", {"sample_size": True}, "sample_size"),
    ("unet/config.json", {"down_block_types": 3}, ""),
    ("unet/config.json", {"down_block_types": ["NoBlock", "DownBlock2D"]}, ""),
    ("vae/config.json", {"scaling_factor": "x"}, ""),
    ("vae/config.json", {"scaling_factor": 0}, ""),
    ("vae/config.json", {"latents_mean": [1.0], "latents_std": "x"}, ""),
]


@pytest.mark.parametrize(("part", "values", "said"), ENDLESS)
def test_nonsense_in_a_part_is_a_message(
    folders: dict[str, Path], tmp_path: Path, part: str, values: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    set_config(folder, part, **values)
    assert said in refusal(folder, conditional=False)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{", "[" * 5000, '{"a": 1, "a": 2}', '{"unet": 3}', "\x00"]
)
@pytest.mark.parametrize("part", ["model_index.json", "scheduler/scheduler_config.json"])
def test_files_that_are_no_json_object(
    folders: dict[str, Path], tmp_path: Path, text: str, part: str
) -> None:
    folder = shutil.copytree(folders["pixel"], tmp_path / "pixel")
    (folder / part).write_text(text)
    if part.startswith("scheduler") and text == '{"unet": 3}':
        assert "option unet=3" in refusal(folder)
    else:
        assert refusal(folder)


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def test_nothing_of_a_folder_is_executed(folders: dict[str, Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n"
    for index in (
        {"_class_name": ["pipeline", "Mine"]},
        {"_class_name": "Mine"},
        {"unet": ["my_unet", "Mine"]},
        {"unet": ["this", "Mine"]},
        {"unet": ["diffusers.utils", "x"]},
        {"unet": ["os", "system"]},
        {"unet": ["diffusers"]},
        {"unet": [["diffusers"], "UNet2DModel"]},
        {"scheduler": ["my_scheduler", "Mine"]},
    ):
        folder = shutil.copytree(folders["pixel"], tmp_path / "pixel")
        for place in ("pipeline.py", "unet/my_unet.py", "my_unet.py", "scheduler/my_scheduler.py"):
            (folder / place).write_text(code + "class Mine: pass\n")
        set_config(folder, "model_index.json", **index)
        assert refusal(folder)
        assert not canary.exists()
        shutil.rmtree(folder)
    folder = shutil.copytree(folders["pixel"], tmp_path / "pixel")
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    with (folder / "unet" / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump({"conv_in.weight": Evil(canary)}, file)
    assert refusal(folder)
    torch.save({"conv_in.weight": Evil(canary)}, folder / "unet" / "diffusion_pytorch_model.bin")
    assert refusal(folder)
    assert not canary.exists()
