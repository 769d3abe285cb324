"""The miniature's diffusion networks: SDXL's classes at a size that a CPU trains and serves."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from miniature import sdxl
from miniature.tokenizer import LENGTH, make_tokenizer

SIZE, LATENT_CHANNELS = 128, 8
SCHEDULER = {**sdxl.SCHEDULER, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
"""SDXL's noise, but predicted as velocity (arXiv 2202.00512): of nearly pure noise a small network cannot tell the
noise exactly enough to say what is under it."""
TEXT_WIDTHS = (64, 64)
CROSS_DIM, POOLED_DIM, TIME_DIM = sum(TEXT_WIDTHS), 64, 32
QUERIES, RESAMPLER_DIM, RESAMPLER_INNER, RESAMPLER_DEPTH = 16, 128, 128, 2
BLOCKS: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (4, 8),
    "transformer_layers_per_block": (1, 1),
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "cross_attention_dim": CROSS_DIM,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_DIM,
    "projection_class_embeddings_input_dim": POOLED_DIM + 6 * TIME_DIM,
}


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        out_channels=LATENT_CHANNELS,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )


def make_identitynet() -> ControlNetModel:
    return ControlNetModel(conditioning_embedding_out_channels=(8, 16, 32, 64), **BLOCKS)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def make_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    first, second = (_text_config(i) for i in range(2))
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def resampler_tensors(scale: float) -> dict[str, torch.Tensor]:
    """Untrained weights of InstantID's resampler; `scale` is the usual size of one number of a raw embedding."""
    dim, inner = RESAMPLER_DIM, RESAMPLER_INNER
    tensors = {
        "latents": torch.randn(1, QUERIES, dim) * dim**-0.5,
        "proj_in.weight": torch.randn(dim, 512) * 512**-0.5 / scale,
        "proj_in.bias": torch.zeros(dim),
        "proj_out.weight": torch.randn(CROSS_DIM, dim) * dim**-0.5,
        "proj_out.bias": torch.zeros(CROSS_DIM),
        **_norm("norm_out", CROSS_DIM),
    }
    for i in range(RESAMPLER_DEPTH):
        attention, feed_forward = f"layers.{i}.0", f"layers.{i}.1"
        tensors |= _norm(f"{attention}.norm1", dim) | _norm(f"{attention}.norm2", dim) | _norm(f"{feed_forward}.0", dim)
        for name, shape in {
            f"{attention}.to_q": (inner, dim),
            f"{attention}.to_kv": (2 * inner, dim),
            f"{attention}.to_out": (dim, inner),
            f"{feed_forward}.1": (2 * dim, dim),
            f"{feed_forward}.3": (dim, 2 * dim),
        }.items():
            tensors[f"{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
    return tensors


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _text_config(index: int) -> CLIPTextConfig:
    tokenizer = make_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTHS[index],
        intermediate_size=2 * TEXT_WIDTHS[index],
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=POOLED_DIM,
        hidden_act=("quick_gelu", "gelu")[index],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
