"""Diffusion networks of SDXL's and InstantID's classes at any size, and the files they are written to."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from build_tools.convert import convert_adapter
from instantid.contract import EMBEDDING_SIZE
from miniature import SIZE
from miniature.tokenizer import LENGTH, make_tokenizer, write_tokenizer

QUERIES = 16
"""Number of face tokens of a person."""
SDXL_FOLDERS = ("unet", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True)
class Sizes:
    """The sizes of all networks of a set. Tuples hold a value for each level, from fine to coarse.

    `depths` are the transformer layers of the levels, 0 for a level without attention. `expansion` is the width of
    the resampler's hidden layers in its own width, `vae` what else its configuration says.
    """

    latent_channels: int
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    groups: int
    text_widths: tuple[int, int]
    text_heads: int
    resampler_dim: int
    expansion: int
    vae: Mapping[str, Any]
    side: int = SIZE
    layers: int = 1
    pooled_dim: int = 64
    time_dim: int = 32
    landmark_widths: tuple[int, ...] = (8, 16, 32, 64)
    resampler_inner: int = 128
    resampler_layers: int = 2

    @property
    def cross_dim(self) -> int:
        return sum(self.text_widths)


def _blocks(sizes: Sizes) -> dict[str, Any]:
    return {
        "in_channels": sizes.latent_channels,
        "block_out_channels": sizes.widths,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in sizes.depths),
        "layers_per_block": sizes.layers,
        "attention_head_dim": sizes.heads,
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in sizes.depths),
        "norm_num_groups": sizes.groups,
        "use_linear_projection": True,
        "cross_attention_dim": sizes.cross_dim,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": sizes.time_dim,
        "projection_class_embeddings_input_dim": sizes.pooled_dim + 6 * sizes.time_dim,
    }


def make_unet(sizes: Sizes) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sizes.side // 8,
        out_channels=sizes.latent_channels,
        up_block_types=tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(sizes.depths)),
        **_blocks(sizes),
    )


def make_identitynet(sizes: Sizes) -> ControlNetModel:
    return ControlNetModel(conditioning_embedding_out_channels=sizes.landmark_widths, **_blocks(sizes))


def make_vae(sizes: Sizes) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=sizes.layers,
        latent_channels=sizes.latent_channels,
        sample_size=sizes.side,
        **sizes.vae,
    )


def make_text_encoders(sizes: Sizes) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    tokenizer = make_tokenizer()
    first, second = (
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=LENGTH,
            projection_dim=sizes.pooled_dim,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for width, activation in zip(sizes.text_widths, ("quick_gelu", "gelu"), strict=True)
    )
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def resampler_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of InstantID's resampler by name, as `ip-adapter.bin` has them."""
    dim, inner, hidden = sizes.resampler_dim, sizes.resampler_inner, sizes.expansion * sizes.resampler_dim
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, QUERIES, dim)}
    shapes |= _with_bias("proj_in", dim, EMBEDDING_SIZE) | _with_bias("proj_out", sizes.cross_dim, dim)
    shapes |= _with_bias("norm_out", sizes.cross_dim)
    for i in range(sizes.resampler_layers):
        attention, feed_forward = f"layers.{i}.0", f"layers.{i}.1"
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{feed_forward}.0"):
            shapes |= _with_bias(norm, dim)
        shapes |= {f"{attention}.to_q.weight": (inner, dim), f"{attention}.to_kv.weight": (2 * inner, dim)}
        shapes |= {f"{attention}.to_out.weight": (dim, inner)}
        shapes |= {f"{feed_forward}.1.weight": (hidden, dim), f"{feed_forward}.3.weight": (dim, hidden)}
    return shapes


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def attention_shapes(unet: UNet2DConditionModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter's keys and values by name, as `ip-adapter.bin` has them, for each cross attention."""
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    return {
        f"{2 * i + 1}.to_{kind}_ip.weight": tuple(unet.get_submodule(f"{layer}.to_{kind}").weight.shape)
        for i, layer in enumerate(layers)
        for kind in "kv"
    }


def save_sdxl(folder: Path, networks: Sequence[nn.Module], scheduler: Mapping[str, Any]) -> None:
    """Write a diffusers SDXL folder from UNet, text encoders and VAE, with tokenizers and scheduler."""
    for name, network in zip(SDXL_FOLDERS, networks, strict=True):
        network.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    EulerDiscreteScheduler(**scheduler).save_pretrained(folder / "scheduler")


def save_adapter(folder: Path, image_proj: Mapping[str, Tensor], ip_adapter: Mapping[str, Tensor]) -> None:
    """Write `ip-adapter.safetensors`, converted from the published file's form by the tool that converts that one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        published = Path(name) / "ip-adapter.bin"
        torch.save({"image_proj": dict(image_proj), "ip_adapter": dict(ip_adapter)}, published)
        convert_adapter(published, folder / "ip-adapter.safetensors")
