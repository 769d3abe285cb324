"""SDXL, IdentityNet and adapter with random weights, as small as tests need them, in the published file layouts.

There are three levels with different depths, two of them with attention, as in SDXL. Layers that training starts at
zero (IdentityNet's output convolutions) get small random weights, so that tests see the effect of every part.
"""

from pathlib import Path
from typing import Any

import torch

from miniature import networks
from miniature.networks import Sizes

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
TEST_SIZES = Sizes(
    latent_channels=4,
    widths=(32, 64, 64),
    heads=(2, 4, 4),
    depths=(0, 1, 2),
    groups=16,
    text_widths=(32, 64),
    text_heads=2,
    resampler_dim=64,
    expansion=4,
    vae={"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8, "scaling_factor": 0.13025},
)


def write_sdxl(folder: Path, sizes: Sizes = TEST_SIZES, seed: int = 0) -> None:
    """Write a diffusers SDXL folder: UNet, VAE, both text encoders and tokenizers, scheduler."""
    torch.manual_seed(seed)
    unet, vae = networks.make_unet(sizes), networks.make_vae(sizes)
    networks.save_sdxl(folder, (unet, *networks.make_text_encoders(sizes), vae), SCHEDULER)


def write_identitynet(folder: Path, sizes: Sizes = TEST_SIZES) -> None:
    """Write a diffusers ControlNetModel folder."""
    torch.manual_seed(1)
    network = networks.make_identitynet(sizes)
    for name, parameter in network.named_parameters():
        if name.startswith("controlnet_") and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)


def write_adapter(folder: Path, sizes: Sizes = TEST_SIZES) -> None:
    """Write `ip-adapter.safetensors`."""
    torch.manual_seed(2)
    resampler = {name: _random(shape) for name, shape in networks.resampler_shapes(sizes).items()}
    shapes = networks.attention_shapes(networks.make_unet(sizes))
    attention = {name: _random(shape) for name, shape in shapes.items()}
    networks.save_adapter(folder, resampler, attention)


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    """Random matrices that keep the length of vectors on average, and norms near 1."""
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape)
    return torch.randn(shape) * shape[-1] ** -0.5
