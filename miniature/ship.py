"""Write the trained diffusion networks into the package: `python -m miniature.ship WORK`.

The averaged weights of the checkpoints in WORK (`vae.pt`, `base.pt`, `identity.pt`) are written in float16.
The adapter's tensors keep their names in `ip-adapter.bin`, after the prefix `image_proj.` or `ip_adapter.`.
"""

from pathlib import Path

import torch
import typer

from instantid import contract
from miniature.faces import DATA
from miniature.identity import InstantID
from miniature.latents import encode_album
from miniature.trained import BASE
from miniature.training import load_averaged, write_float16

ADAPTER, IDENTITYNET = 0.7, 1.1
"""The scales of the trained parts at which face and pose were best. The served defaults reproduce them."""


def main(work: Path, people: int = 3200, output: Path = DATA) -> None:
    encoded = encode_album(work, people, "cpu")
    write_float16(
        encoded.vae.state_dict(), output / "vae.safetensors", scaling_factor=encoded.vae.config.scaling_factor
    )
    model = InstantID(work, 1.0, "cpu")
    load_averaged(work / "identity.pt", {"identitynet": model.identitynet, "adapter": model.adapter})
    apply_scales(model)
    networks = (model.unet, *model.encoders, model.identitynet)
    for name, network in zip((*BASE, "identitynet"), networks, strict=True):
        write_float16(network.state_dict(), output / f"{name}.safetensors")
    published = model.adapter.published()
    flat = {f"{part}.{name}": tensor for part, tensors in published.items() for name, tensor in tensors.items()}
    write_float16(flat, output / "adapter.safetensors")
    typer.echo(f"{sum(path.stat().st_size for path in output.glob('*.safetensors')) / 1e6:.1f} MB in {output.name}/")


@torch.no_grad()
def apply_scales(model: InstantID) -> None:
    """Scale the weights so that the served defaults act as ADAPTER and IDENTITYNET. Both parts are linear in them."""
    for layer in model.adapter.values:
        layer.weight *= ADAPTER / contract.IP_ADAPTER_SCALE.default
    for layer in (*model.identitynet.controlnet_down_blocks, model.identitynet.controlnet_mid_block):
        for value in layer.parameters():
            value *= IDENTITYNET / contract.CONTROLNET_CONDITIONING_SCALE.default


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
