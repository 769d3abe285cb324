"""`random-full`: SDXL, IdentityNet and adapter at their published sizes with random weights, made on the device.

For speed and memory of the real thing where nothing can be downloaded: 11 GB in float16, in the published layout.
`python bench/random_full.py weights/random-full`; with `--faces` the miniature's trained face networks come along,
and the folder can be served. Pictures are noise.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import EulerDiscreteScheduler
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from instantid.profile import SDXL, Profile
from miniature.networks import Sizes, attention_shapes, make_identitynet, make_unet, make_vae, resampler_shapes
from miniature.sdxl import SCHEDULER
from miniature.tokenizer import LENGTH, write_tokenizer

SIZES = Sizes(
    latent_channels=4,
    widths=(320, 640, 1280),
    heads=(5, 10, 20),
    depths=(0, 2, 10),
    groups=32,
    text_widths=(768, 1280),
    text_heads=12,
    resampler_dim=1280,
    expansion=4,
    vae={"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "scaling_factor": 0.13025},
    side=1024,
    layers=2,
    pooled_dim=1280,
    time_dim=256,
    landmark_widths=(16, 32, 96, 256),
    resampler_inner=1280,
    resampler_layers=4,
)
"""As published; the text encoders, whose two configurations differ in more, are CLIP_L and CLIP_G."""
CLIP: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 2}
"""As published: an `eos_token_id` of 2 makes transformers pool at the highest token id."""
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
ZERO_AT_FIRST = ("controlnet_down_blocks.", "controlnet_mid_block.", "controlnet_cond_embedding.conv_out.")
CONTROL_GAIN = 0.1
"""Of the layers that training starts at zero: IdentityNet's outputs stay small beside the UNet's own."""

Progress = Callable[[str], None]


def make_random_full(output: Path, device: torch.device, progress: Progress = lambda part: None) -> None:
    """Everything that `SdxlDenoiser.load` reads, in float16; the same weights for the same kind of device."""
    for folder, network in networks(device):
        progress(folder)
        with torch.no_grad():
            fill(network, torch.Generator(device).manual_seed(0))
        network.save_pretrained(output / folder)
        del network
    progress("adapter")
    (output / "adapter").mkdir(exist_ok=True)
    save_file(adapter(device), output / "adapter" / "ip-adapter.safetensors")
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(output / "sdxl" / name)
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(output / "sdxl" / "scheduler")
    Profile(name="random-full", licences=("random weights: no licence needed",), **SDXL).save(output)


def networks(device: torch.device) -> Iterator[tuple[str, Any]]:
    """Folder and network, one at a time, in float16, not yet filled."""
    makers: dict[str, Callable[[], Any]] = {
        "sdxl/unet": lambda: make_unet(SIZES),
        "identitynet": lambda: make_identitynet(SIZES),
        "sdxl/vae": lambda: make_vae(SIZES),
        "sdxl/text_encoder": lambda: CLIPTextModel(
            CLIPTextConfig(**CLIP, **CLIP_L, projection_dim=768, hidden_act="quick_gelu")
        ),
        "sdxl/text_encoder_2": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**CLIP, **CLIP_G, projection_dim=1280, hidden_act="gelu")
        ),
    }
    for folder, make in makers.items():
        with torch.device("meta"):
            network = make().half()
        yield folder, network.to_empty(device=device)


def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what flows through them; norms near the identity, small biases."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.02, generator=generator)
        else:
            gain = CONTROL_GAIN if name.startswith(ZERO_AT_FIRST) else 1.0
            parameter.normal_(0.0, gain * _inputs(parameter, name) ** -0.5, generator=generator)


def adapter(device: torch.device) -> dict[str, Tensor]:
    """The tensors of `ip-adapter.safetensors`."""
    with torch.device("meta"):
        unet = make_unet(SIZES)
    shapes = {f"ip_adapter.{name}": shape for name, shape in attention_shapes(unet).items()}
    shapes |= {f"image_proj.{name}": shape for name, shape in resampler_shapes(SIZES).items()}
    generator = torch.Generator(device).manual_seed(0)
    return {name: _random(shape, device, generator) for name, shape in shapes.items()}


def write_faces(output: Path) -> None:
    """The miniature's trained detector and recogniser, and their fused graph."""
    from build_tools.face_graph import build_face_graph
    from miniature.faces import write_detector, write_recogniser

    faces = output / "face"
    faces.mkdir(exist_ok=True)
    write_detector(faces / "detector.onnx")
    write_recogniser(faces / "recogniser.onnx")
    build_face_graph(faces / "detector.onnx", faces / "recogniser.onnx", output / "face_analysis.onnx")


def main(
    output: Annotated[Path, typer.Argument(help="Folder of the set.")] = Path("weights/random-full"),
    faces: Annotated[bool, typer.Option(help="With face networks, so that it can be served.")] = False,
) -> None:
    """Make the set; 11 GB on disk."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_random_full(output, device, lambda part: Console(stderr=True).print(part))
    if faces:
        write_faces(output)


def _inputs(parameter: Tensor, name: str) -> int:
    """Numbers that go into one output; an embedding table is looked up, CLIP keeps it small."""
    return 2500 if "embedding.weight" in name else parameter[0].numel()


def _random(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> Tensor:
    unit = torch.randn(shape, device=device, generator=generator)
    return (1 + 0.02 * unit if len(shape) == 1 else unit * shape[-1] ** -0.5).half()


if __name__ == "__main__":
    typer.run(main)
