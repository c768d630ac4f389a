"""Tiny random diffusers pipelines of every kind, built offline in seconds; folders of the same
format as real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

STEPS_OFFSET = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def seeded(build: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    module = build(**config)
    with torch.no_grad():  # zero-initialised outputs would hide every mistake
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module.eval()


def ddim(**config: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **{"set_alpha_to_one": False, "clip_sample": False, **STEPS_OFFSET, **config}
    )


def unet2d(**config: Any) -> Any:
    from diffusers import UNet2DModel

    plain = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(UNet2DModel, **{**plain, **config})


def vae(channels: int = 4, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return seeded(
        AutoencoderKL,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


def clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


def clip_text(projection: bool = False, width: int = 16) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=190,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=188,
        eos_token_id=189,
    )
    return seeded(CLIPTextModelWithProjection if projection else CLIPTextModel, config=config)


def t5(folder: Path) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", *(chr(c) for c in range(33, 127))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    config = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return fast, seeded(T5EncoderModel, config=config)


def pixel(folder: Path, scheduler: Any = None, **config: Any) -> Path:
    from diffusers import DDIMPipeline

    DDIMPipeline(unet=unet2d(**config), scheduler=scheduler or ddim()).save_pretrained(folder)
    return folder


def latent(folder: Path, **config: Any) -> Path:
    """Unconditional latent diffusion, as of LSUN; with num_class_embeds, class-conditional."""
    from diffusers import LDMPipeline, VQModel

    vq = seeded(
        VQModel,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.7,
    )
    LDMPipeline(vqvae=vq, unet=unet2d(**config), scheduler=ddim()).save_pretrained(folder)
    return folder


def class_latent(folder: Path) -> Path:
    """Class-conditional latent diffusion, DiT."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    transformer = seeded(
        DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    DiTPipeline(transformer=transformer, vae=vae(), scheduler=ddim()).save_pretrained(folder)
    return folder


def text(folder: Path, xl: bool = False, **scheduler: Any) -> Path:
    """Stable Diffusion 1.x / 2.x, or XL."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    extra: dict[str, Any] = {}
    if xl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "transformer_layers_per_block": (1, 1),
        }
    unet = seeded(
        UNet2DConditionModel,
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32 if xl else 16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **extra,
    )
    parts = {
        "vae": vae(),
        "unet": unet,
        "scheduler": ddim(**scheduler),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(folder / ".vocabulary"),
    }
    if xl:
        second = {"text_encoder_2": clip_text(projection=True), "tokenizer_2": parts["tokenizer"]}
        StableDiffusionXLPipeline(**parts, **second).save_pretrained(folder)
        return folder
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **none).save_pretrained(folder)
    return folder


def rectified(folder: Path) -> Path:
    """InstaFlow: Stable Diffusion's parts under the name of a pipeline class that diffusers does
    not have.
    """
    index = text(folder) / "model_index.json"
    index.write_text(
        json.dumps({**json.loads(index.read_text()), "_class_name": "RectifiedFlowPipeline"})
    )
    return folder


def flow_sd3(folder: Path) -> Path:
    """Stable Diffusion 3 without its third encoder."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = seeded(
        SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    tokenizer = clip_tokenizer(folder / ".vocabulary")
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text(projection=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def flow_flux(folder: Path, embedded: bool = True) -> Path:
    """FLUX-type, with or without guidance embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = seeded(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=embedded,
    )
    tokenizer, encoder = t5(folder / ".vocabulary")
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / ".vocabulary"),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)
    return folder
