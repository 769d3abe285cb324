"""The miniature's trained diffusion networks, from the float16 files that ship: as modules, and as published files."""

import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from build_tools.convert import convert_adapter
from miniature.faces import DATA, loaded
from miniature.networks import SCHEDULER, make_identitynet, make_text_encoders, make_unet, make_vae
from miniature.tokenizer import write_tokenizer
from miniature.training import load_averaged

BASE = ("unet", "text_encoder", "text_encoder_2")


def load_vae(checkpoint: Path | None = None) -> AutoencoderKL:
    """Frozen; of the training whose checkpoint this is, or where there is none the one that ships."""
    vae = make_vae().requires_grad_(False).eval()
    if checkpoint and checkpoint.exists():
        load_averaged(checkpoint, {"vae": vae})
        return vae
    with safe_open(DATA / "vae.safetensors", "pt") as file:
        vae.register_to_config(scaling_factor=float(file.metadata()["scaling_factor"]))
    return loaded(vae, DATA / "vae.safetensors")


def load_base(checkpoint: Path | None = None) -> tuple[UNet2DConditionModel, tuple[torch.nn.Module, torch.nn.Module]]:
    """UNet and text encoders, of the training whose checkpoint this is, or where there is none those that ship."""
    networks = dict(zip(BASE, (make_unet(), *make_text_encoders()), strict=True))
    if checkpoint and checkpoint.exists():
        load_averaged(checkpoint, networks)
    else:
        networks = {name: loaded(network, DATA / f"{name}.safetensors") for name, network in networks.items()}
    unet, *encoders = networks.values()
    return unet, tuple(encoders)


def write_sdxl(folder: Path) -> None:
    """A diffusers SDXL folder: UNet, VAE, both text encoders and tokenizers, scheduler."""
    unet, encoders = load_base()
    for name, network in zip((*BASE, "vae"), (unet, *encoders, load_vae()), strict=True):
        network.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def write_identitynet(folder: Path) -> None:
    """A diffusers ControlNetModel folder."""
    loaded(make_identitynet(), DATA / "identitynet.safetensors").save_pretrained(folder)


def write_adapter(folder: Path) -> None:
    """`ip-adapter.safetensors`, converted from the published file's form by the tool that converts that one."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(DATA / "adapter.safetensors").items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    with tempfile.TemporaryDirectory() as name:
        published = Path(name) / "ip-adapter.bin"
        torch.save(parts, published)
        convert_adapter(published, folder / "ip-adapter.safetensors")
