"""The miniature's trained diffusion networks, from the float16 files that ship, as modules and in published layouts."""

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from miniature import networks, sdxl
from miniature.faces import DATA, loaded
from miniature.networks import Sizes
from miniature.training import load_averaged

SIZES = Sizes(
    latent_channels=8,
    widths=(64, 128),
    heads=(4, 8),
    depths=(0, 1),
    groups=8,
    text_widths=(64, 64),
    text_heads=4,
    resampler_dim=128,
    expansion=2,
    vae={"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 1, "mid_block_add_attention": False},
)
VELOCITY_SCHEDULER = {**sdxl.SCHEDULER, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
"""SDXL's noise, but predicted as velocity (arXiv 2202.00512): a small network cannot predict the noise exactly enough
to recover the picture from nearly pure noise."""
BASE = networks.SDXL_FOLDERS[:-1]


def load_vae(checkpoint: Path | None = None) -> AutoencoderKL:
    """The frozen VAE of a training's checkpoint, or the one that ships if the checkpoint does not exist."""
    vae = networks.make_vae(SIZES).requires_grad_(False).eval()
    if checkpoint and checkpoint.exists():
        load_averaged(checkpoint, {"vae": vae})
        return vae
    with safe_open(DATA / "vae.safetensors", "pt") as file:
        vae.register_to_config(scaling_factor=float(file.metadata()["scaling_factor"]))
    return loaded(vae, DATA / "vae.safetensors")


def load_base(checkpoint: Path | None = None) -> tuple[UNet2DConditionModel, tuple[nn.Module, nn.Module]]:
    """UNet and text encoders of a training's checkpoint, or those that ship if the checkpoint does not exist."""
    parts = dict(zip(BASE, (networks.make_unet(SIZES), *networks.make_text_encoders(SIZES)), strict=True))
    if checkpoint and checkpoint.exists():
        load_averaged(checkpoint, parts)
    else:
        parts = {name: loaded(network, DATA / f"{name}.safetensors") for name, network in parts.items()}
    unet, *encoders = parts.values()
    return unet, tuple(encoders)


def write_trained_sdxl(folder: Path) -> None:
    """Write a diffusers SDXL folder: UNet, VAE, both text encoders and tokenizers, scheduler."""
    unet, encoders = load_base()
    networks.save_sdxl(folder, (unet, *encoders, load_vae()), VELOCITY_SCHEDULER)


def write_trained_identitynet(folder: Path) -> None:
    """Write a diffusers ControlNetModel folder."""
    loaded(networks.make_identitynet(SIZES), DATA / "identitynet.safetensors").save_pretrained(folder)


def write_trained_adapter(folder: Path) -> None:
    """Write `ip-adapter.safetensors`."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(DATA / "adapter.safetensors").items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    networks.save_adapter(folder, **parts)
