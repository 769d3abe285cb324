"""InstantID in the form of its reference: diffusers' own pipeline, one picture at a time. Oracle and yardstick.

`StableDiffusionXLControlNetPipeline` runs unchanged, with diffusers' own IP-Adapter code. Only one thing is added,
as the reference does: the ControlNet is given the face tokens where the pipeline passes text.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from instantid.models.sdxl import RequestTensors
from instantid.request import GenerationRequest

Job = tuple[GenerationRequest, RequestTensors]

PARTS: dict[str, Any] = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
}


class PlainLoop:
    """The pipeline on one device; float16 decodes in float32, as diffusers does for a VAE that overflows."""

    def __init__(self, weights: Path, device: torch.device, dtype: torch.dtype) -> None:
        sdxl = weights / "sdxl"
        parts = {name: kind.from_pretrained(sdxl / name, torch_dtype=dtype) for name, kind in PARTS.items()}
        tokenizers = {name: CLIPTokenizer.from_pretrained(sdxl / name) for name in ("tokenizer", "tokenizer_2")}
        self.pipeline = StableDiffusionXLControlNetPipeline(
            **parts,
            **tokenizers,
            controlnet=ControlNetModel.from_pretrained(weights / "identitynet", torch_dtype=dtype),
            scheduler=EulerDiscreteScheduler.from_pretrained(sdxl / "scheduler"),
            add_watermarker=False,
        ).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._face_tokens: Tensor
        self._project_face = self._load_adapter(weights / "adapter" / "ip-adapter.safetensors")
        self.pipeline.controlnet.register_forward_pre_hook(self._give_face_tokens, with_kwargs=True)

    def latents(self, job: Job) -> Tensor:
        """Final latents [1, 4, height / 8, width / 8] of a one-picture request for the Euler scheduler."""
        latents: Tensor = self._run(job, "latent")
        return latents.float().cpu()

    def picture(self, job: Job) -> np.ndarray:
        """The picture, HWC RGB uint8."""
        return np.asarray(self._run(job, "pil")[0])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [1, 4, h, w] through the VAE in float32, as the pipeline ends; HWC RGB uint8."""
        pipeline = self.pipeline
        pipeline.vae.to(torch.float32)
        decoded = pipeline.vae.decode(latents.to(pipeline.device, torch.float32) / pipeline.vae.config.scaling_factor)
        return np.asarray(pipeline.image_processor.postprocess(decoded.sample, output_type="pil")[0])

    def _run(self, job: Job, output_type: str) -> Any:
        (request, given), pipeline = job, self.pipeline
        self._face_tokens = self._tokens(job)
        pipeline.set_ip_adapter_scale(request.ip_adapter_scale)
        shape = (1, pipeline.unet.config.in_channels, request.height // 8, request.width // 8)
        return pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(given.pictures[0]),
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            controlnet_conditioning_scale=request.controlnet_conditioning_scale,
            control_guidance_start=request.control_guidance_start,
            control_guidance_end=request.control_guidance_end,
            latents=torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(pipeline.unet.dtype),
            ip_adapter_image_embeds=[self._face_tokens],
            output_type=output_type,
        ).images

    @torch.inference_mode()
    def _tokens(self, job: Job) -> Tensor:
        """[2, 16, d] with guidance, of zeros and of the face; [1, 16, d] without."""
        face = torch.from_numpy(job[1].embeddings)
        rows = torch.cat([torch.zeros_like(face), face]) if job[0].guidance else face
        tokens: Tensor = self._project_face(rows[:, None].to(self.pipeline.device, self.pipeline.unet.dtype))
        return tokens

    def _load_adapter(self, path: Path) -> nn.Module:
        """Loads the adapter into the UNet; its resampler is taken out to run once a picture, as in the reference."""
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in load_file(path).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        depth = len({name.split(".")[1] for name in parts["image_proj"] if name.startswith("layers.")})
        unet = self.pipeline.unet
        unet._load_ip_adapter_weights([{**parts, "image_proj": _padded(parts["image_proj"], depth)}])
        (project,) = unet.encoder_hid_proj.image_projection_layers
        project.layers = project.layers[:depth]
        unet.encoder_hid_proj = nn.Identity()
        return project

    def _give_face_tokens(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": self._face_tokens}


def _padded(resampler: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """diffusers reads resamplers of exactly four layers; the toy has fewer and gets copies, dropped afterwards."""
    first = {name: tensor for name, tensor in resampler.items() if name.startswith("layers.0.")}
    copies = {name.replace("layers.0.", f"layers.{i}."): t for i in range(depth, 4) for name, t in first.items()}
    return resampler | copies
