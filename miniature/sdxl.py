"""SDXL, IdentityNet and adapter at toy size: the published classes and file layouts, random weights, one seed.

Zero-initialised layers (IdentityNet's output convolutions) get small random weights, so that every part has an
effect that tests can see.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from build_tools.convert import convert_adapter
from miniature.tokenizer import LENGTH, make_tokenizer, write_tokenizer

TEXT_WIDTHS = (32, 64)
CROSS_DIM = sum(TEXT_WIDTHS)
POOLED_DIM = 64
TIME_DIM = 32
EMBEDDING_SIZE = 512
QUERIES, RESAMPLER_DIM, RESAMPLER_INNER, RESAMPLER_DEPTH = 16, 64, 128, 2
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""The scheduler of SDXL base 1.0."""
CONDITIONS: dict[str, Any] = {
    "cross_attention_dim": CROSS_DIM,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_DIM,
    "projection_class_embeddings_input_dim": POOLED_DIM + 6 * TIME_DIM,
}
BLOCKS: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "norm_num_groups": 16,
    "use_linear_projection": True,
    **CONDITIONS,
}


def write_sdxl(folder: Path, seed: int = 0) -> None:
    """A diffusers SDXL folder: UNet, VAE, both text encoders and tokenizers, scheduler."""
    torch.manual_seed(seed)
    make_unet().save_pretrained(folder / "unet")
    make_vae().save_pretrained(folder / "vae")
    for name, kind, width in zip(
        ("text_encoder", "text_encoder_2"), (CLIPTextModel, CLIPTextModelWithProjection), TEXT_WIDTHS, strict=True
    ):
        kind(_text_config(width)).save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def write_identitynet(folder: Path, seed: int = 1) -> None:
    """A diffusers ControlNetModel folder."""
    torch.manual_seed(seed)
    network = ControlNetModel(conditioning_embedding_out_channels=(8, 16, 32, 64), **BLOCKS)
    for name, parameter in network.named_parameters():
        if name.startswith("controlnet_") and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)


def write_adapter(folder: Path, seed: int = 2) -> None:
    """`ip-adapter.safetensors`, converted from the published file's form by the tool that converts that one."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        published = Path(name) / "ip-adapter.bin"
        torch.save({"image_proj": _resampler(), "ip_adapter": _adapter_layers()}, published)
        convert_adapter(published, folder / "ip-adapter.safetensors")


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=0.13025,
    )


def _text_config(width: int) -> CLIPTextConfig:
    tokenizer = make_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=POOLED_DIM,
        hidden_act="quick_gelu" if width == TEXT_WIDTHS[0] else "gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _resampler() -> dict[str, torch.Tensor]:
    dim, inner = RESAMPLER_DIM, RESAMPLER_INNER
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, QUERIES, dim)}
    shapes |= _with_bias("proj_in", dim, EMBEDDING_SIZE) | _with_bias("proj_out", CROSS_DIM, dim)
    shapes |= _with_bias("norm_out", CROSS_DIM)
    for i in range(RESAMPLER_DEPTH):
        attention, feed_forward = f"layers.{i}.0", f"layers.{i}.1"
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{feed_forward}.0"):
            shapes |= _with_bias(norm, dim)
        shapes |= {f"{attention}.to_q.weight": (inner, dim), f"{attention}.to_kv.weight": (2 * inner, dim)}
        shapes |= {f"{attention}.to_out.weight": (dim, inner)}
        shapes |= {f"{feed_forward}.1.weight": (4 * dim, dim), f"{feed_forward}.3.weight": (dim, 4 * dim)}
    return {name: _random(shape) for name, shape in shapes.items()}


def _adapter_layers() -> dict[str, torch.Tensor]:
    unet = make_unet()
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    return {
        f"{2 * i + 1}.to_{kind}_ip.weight": _random(unet.get_submodule(f"{layer}.to_{kind}").weight.shape)
        for i, layer in enumerate(layers)
        for kind in "kv"
    }


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _random(shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Unit vectors stay of unit size through matrices; norms are near 1."""
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape)
    return torch.randn(shape) * shape[-1] ** -0.5
