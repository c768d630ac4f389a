"""Latent diffusion as its authors published it: names against diffusers' own conversion, attention
by hand, folders.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import original_checkpoints as original
import pytest
import torch
import yaml
from schedules import one_thread  # noqa: F401
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import draw_noise
from ld3_dist.models import ModelOptions, open_model
from ld3_dist.models.diffusers.latent_diffusion import (
    CLASS_EMBEDDING,
    convert_original,
)

pytest.importorskip("diffusers")
KINDS = {"classes": original.ON_CLASSES, "unconditional": original.UNCONDITIONAL}


# millions of parameters; the papers round them: LDM-4 on ImageNet 400, on LSUN-Bedrooms 274
PUBLISHED = [
    (
        {
            "num_heads": 1,
            "use_spatial_transformer": True,
            "context_dim": 512,
            "channel_mult": [1, 2, 3, 5],
            "model_channels": 192,
        },
        400.9,
    ),
    ({"num_head_channels": 32, "channel_mult": [1, 2, 3, 4], "model_channels": 224}, 274.1),
]


@pytest.mark.parametrize(("arguments", "millions"), PUBLISHED)
def test_published_parameter_counts(arguments: dict[str, Any], millions: float) -> None:
    told = original.settings(
        {**original.UNET, "image_size": 64, "attention_resolutions": [8, 4, 2], **arguments}
    )
    coder = {
        **original.CODER,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "resolution": 256,
    }
    told["first_stage_config"]["params"] |= {"ddconfig": coder, "n_embed": 8192}
    with torch.device("meta"):
        unet, vq = original.networks(told)
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(p.numel() for p in vq.parameters()) / 1e6 == pytest.approx(55.3, abs=0.05)  # vq-f4


def test_names_are_those_that_diffusers_converts(tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers.loaders.single_file_utils")
    checkpoint, _, unet, vq = original.write(tmp_path, original.ON_CLASSES)
    tensors = torch.load(checkpoint, weights_only=False)["state_dict"]
    for convert, net in (
        (library.convert_ldm_unet_checkpoint, unet),
        (library.convert_ldm_vae_checkpoint, vq),
    ):
        found, wanted = convert(dict(tensors), net.config), net.state_dict()
        skipped = set(wanted) - set(found)
        assert {name.split(".")[0] for name in skipped} <= {"quantize"}
        for name in set(wanted) - skipped:
            assert torch.equal(found[name].reshape(wanted[name].shape), wanted[name]), name


def test_heads_of_a_joint_projection() -> None:
    """Attention as the original computes it: every head reads its own third of its own rows."""
    told = original.settings(original.UNCONDITIONAL)
    attention = original.networks(told)[0].mid_block.attentions[0]
    x = torch.randn(2, 64, 3, 3)
    part = lambda leaf: [getattr(getattr(attention, f"to_{p}"), leaf) for p in "qkv"]
    weight, bias = (original.joint(*part(leaf), attention.heads) for leaf in ("weight", "bias"))
    y = attention.group_norm(x).flatten(2)
    qkv = torch.einsum("oc,bct->bot", weight, y) + bias[:, None]
    out = []
    for rows in qkv.chunk(attention.heads, dim=1):
        q, k, v = rows.chunk(3, dim=1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / q.shape[1] ** 0.5, dim=-1)
        out.append(torch.einsum("bts,bcs->bct", weights, v))
    expected = (
        attention.to_out[0](torch.cat(out, 1).transpose(1, 2)).transpose(1, 2).reshape(x.shape) + x
    )
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.siblings(2)
def test_a_checkpoint_becomes_a_folder_that_opens(
    tmp_path: Path, kind: str, averaged: bool
) -> None:
    checkpoint, config, unet, vq = original.write(tmp_path / "original", KINDS[kind], averaged)
    folder = tmp_path / "converted"
    done = CliRunner().invoke(
        app, ["convert", str(checkpoint), str(folder), "--config", str(config)]
    )
    assert done.exit_code == 0, done.output
    assert f"diffusers:{folder}" in done.output.replace("\n", "")
    model = open_model(f"diffusers:{folder}")
    assert (model.image_shape, model.latent, tuple(model.denoiser.shape)) == (
        (3, 16, 16),
        True,
        (3, 8, 8),
    )
    assert model.conditioning == ("class" if kind == "classes" else "none")
    x, t = draw_noise(0, range(2), (3, 8, 8)), torch.tensor([0.2, 0.7])
    label = model.draw_condition(0, range(2))
    table = torch.load(checkpoint, weights_only=False)["state_dict"].get(
        "cond_stage_model.embedding.weight"
    )
    with torch.no_grad():
        if kind == "classes":
            assert isinstance(label, torch.Tensor)
            eps = unet(x, 1000 * t - 1, encoder_hidden_states=table[label][:, None]).sample
        else:
            eps = unet(x, 1000 * t - 1).sample
        noise = model.denoiser.noise
        alpha, sigma = (
            f(t.double()).float()[:, None, None, None] for f in (noise.alpha, noise.sigma)
        )
        torch.testing.assert_close(
            model.denoiser(x, t, label), (x - sigma * eps) / alpha, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(model.denoiser.decode(x), vq.decode(x).sample)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(noise.alphas_cumprod, (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)  # type: ignore


def test_guidance_on_classes(tmp_path: Path) -> None:
    checkpoint, config, *_ = original.write(tmp_path, original.ON_CLASSES)
    spec = f"diffusers:{convert_original(checkpoint, config, tmp_path / 'folder')}"
    plain, guided = open_model(spec), open_model(spec, ModelOptions(guidance=2.0))
    x, t, label = torch.randn(3, 3, 8, 8), torch.full((3,), 0.5), torch.tensor([0, 5, 2])
    cond, null = (
        plain.denoiser(x, t, c) for c in (label, torch.full_like(label, original.CLASSES))
    )
    torch.testing.assert_close(
        guided.denoiser(x, t, label), null + 2 * (cond - null), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(cond, null)
    drawn = guided.draw_condition(0, range(60))
    assert isinstance(drawn, torch.Tensor)
    assert set(drawn.tolist()) == set(range(original.CLASSES))
    free = open_model(spec, ModelOptions(conditional=False))
    assert free.draw_condition(0, range(2)).tolist() == [original.CLASSES] * 2  # type: ignore[union-attr]
    before = plain.hash
    (tmp_path / "folder" / CLASS_EMBEDDING).unlink()
    with pytest.raises(
        InputError, match=r"neither a text_encoder nor class_embedding.*ld3-dist convert"
    ):
        open_model(spec)
    (tmp_path / "folder" / CLASS_EMBEDDING).write_bytes(b"half")
    with pytest.raises(InputError, match="is damaged"):
        open_model(spec)
    assert len(before) == 64


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoint, config, *_ = original.write(tmp_path, original.ON_CLASSES)
    tensors = torch.load(checkpoint, weights_only=False)["state_dict"]
    whole, told, folder = (
        checkpoint.read_bytes(),
        yaml.safe_load(config.read_text()),
        tmp_path / "folder",
    )

    def attempt(content: Any = None, **unet: Any) -> str:
        if content is not None:
            torch.save(content, checkpoint)
        params = told["model"]["params"]
        changed = {**params, "unet_config": {"params": {**params["unet_config"]["params"], **unet}}}
        config.write_text(yaml.safe_dump({"model": {"params": changed}}))
        with pytest.raises(InputError) as error:
            convert_original(checkpoint, config, folder)
        assert not folder.exists()
        return str(error.value)

    assert "resblock_updown" in attempt(resblock_updown=True)
    assert "has shape" in attempt(model_channels=64)
    name = "model.diffusion_model.input_blocks.1.0.in_layers.0.weight"
    assert f"{name!r} is missing" in attempt(
        {"state_dict": {k: v for k, v in tensors.items() if k != name}}
    )
    assert "conditioned on classes" in attempt(
        {"state_dict": {k: v for k, v in tensors.items() if not k.startswith("cond_stage")}}
    )
    assert "no tensors" in attempt({"state_dict": {}})
    canary = tmp_path / "canary"
    said = attempt({"state_dict": tensors, "evil": Evil(canary)})
    assert "system" in said
    assert "nothing in it was executed" in said
    assert not canary.exists()
    for cut in (0, 100, len(whole) // 2):
        checkpoint.write_bytes(whole[:cut])
        assert "model.ckpt: truncated, or not a checkpoint" in attempt()
    checkpoint.unlink()
    assert "not found" in attempt()
    config.write_text("model: 3")
    with pytest.raises(InputError, match=r"config\.yaml: not the YAML"):
        convert_original(checkpoint, config, folder)
    done = CliRunner().invoke(app, ["convert", str(checkpoint), str(folder)])
    assert "--config" in str(done.exception)
