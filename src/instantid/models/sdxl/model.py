"""One denoising path: start a request, step a batch of requests, decode a finished one."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instantid.errors import EngineFailure
from instantid.models.sdxl.attention import FaceAttention
from instantid.models.sdxl.load import Networks, load_networks
from instantid.models.sdxl.memory import device_errors
from instantid.models.sdxl.schedules import Schedule, control_window
from instantid.models.sdxl.state import Job, Rows, State
from instantid.models.sdxl.text import TextEmbedding, time_ids
from instantid.profile import FEW_STEPS
from instantid.request import GenerationRequest

log = logging.getLogger(__name__)


class SdxlDenoiser:
    """InstantID on SDXL. Modules are never changed by a request; all that a request owns is in its State.

    `start`, `step` and `decode` are called from one thread. They raise Overloaded where the device's memory does not
    suffice and DeviceFailure where the device cannot be used any more.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.device = networks.device
        self.compiled: dict[torch.Size, Callable[..., Tensor]] = {}
        """By the shape of the latents of a step, what takes the place of `predict` where IdentityNet acts."""
        self._zero_face = self._face_tokens(np.zeros(networks.embedding_size, np.float32))

    @classmethod
    def load(
        cls,
        weights: Path,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Path | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        few_steps: str = "none",
    ) -> "SdxlDenoiser":
        """Load one set of weights; UNet, IdentityNet, adapter and text encoders in `dtype`.

        `checkpoint`, a diffusers folder or a single safetensors file, takes the place of the set's own SDXL. `loras`,
        files and their weights, are fused into it, and so is the own LoRA of a few-step mode. Raises
        FileNotFoundError or ValueError, naming file and tensor, for a set that is not whole.
        """
        if few_steps != "none":
            loras = [(weights / "lora" / f"{few_steps}.safetensors", 1.0), *loras]
        networks = load_networks(weights, device, dtype, checkpoint, loras)
        if spacing := FEW_STEPS[few_steps].get("timestep_spacing"):
            changed = {**networks.scheduler_config, "timestep_spacing": spacing}
            networks = replace(networks, scheduler_config=changed)
        return cls(networks)

    @torch.inference_mode()
    def start(self, job: Job) -> State:
        """Everything that is the same in all steps: text, face tokens, keys and values, landmarks, first noise."""
        with device_errors(self.device):
            return self._start(job)

    def _start(self, job: Job) -> State:
        request = job.request
        schedule = Schedule(request.scheduler, self.networks.scheduler_config, request.num_inference_steps, self.device)
        generators = tuple(torch.Generator("cpu").manual_seed(seed) for seed in request.seeds)
        return State(
            request=request,
            schedule=schedule,
            window=control_window(
                len(schedule.timesteps), request.control_guidance_start, request.control_guidance_end
            ),
            generators=generators,
            latents=schedule.initial(self._first_noise(request, generators)),
            inputs=self._inputs(job),
        )

    @torch.inference_mode()
    def step(self, states: Sequence[State]) -> None:
        """Advance every state by one step in one pass of the networks; all states have one size.

        A state whose latents are no longer finite gets a `failure`; the others are not touched by it.
        """
        with device_errors(self.device):
            self._step(states)

    def _step(self, states: Sequence[State]) -> None:
        copies = [2 if state.request.guidance else 1 for state in states]
        latents = [state.schedule.scale(state.latents, state.index) for state in states]
        noise = self._noise(
            torch.cat([x.repeat(n, 1, 1, 1) for x, n in zip(latents, copies, strict=True)]),
            torch.cat([state.schedule.timesteps[state.index].expand(state.rows) for state in states]),
            Rows.cat([state.inputs for state in states]),
            self._identity_scales(states),
        )
        for state, predicted in zip(states, noise.split([state.rows for state in states]), strict=True):
            self._advance(state, predicted.float())

    def _noise(self, latents: Tensor, timesteps: Tensor, rows: Rows, identity_scale: Tensor | None) -> Tensor:
        compiled = None if identity_scale is None else self.compiled.get(latents.shape)
        if compiled:
            try:
                return compiled(latents, timesteps, rows, identity_scale)
            except RuntimeError:
                log.exception("the compiled step for latents %s failed; going on without it", tuple(latents.shape))
                del self.compiled[latents.shape]
        return self.predict(latents, timesteps, rows, identity_scale)

    @torch.inference_mode()
    def decode(self, state: State) -> NDArray[np.uint8]:
        """The next picture of a state whose steps are done, HWC RGB uint8."""
        with device_errors(self.device):
            picture = self.to_picture(state.latents[state.decoded])
        state.decoded += 1
        return picture

    @torch.inference_mode()
    def to_picture(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [4, h, w] to a picture HWC RGB uint8, decoded by itself."""
        vae = self.networks.vae
        scaled = latents[None].to(vae.dtype) / vae.config.scaling_factor
        return to_uint8(vae.decode(scaled, return_dict=False)[0][0])

    def predict(self, latents: Tensor, timesteps: Tensor, rows: Rows, identity_scale: Tensor | None) -> Tensor:
        """Predicted noise [rows, 4, h, w] in the model's dtype, from scaled latents and tensors only.

        `identity_scale` [rows, 1, 1, 1], or None where IdentityNet acts on no row.
        """
        networks = self.networks
        latents = latents.to(networks.dtype)
        added = {"text_embeds": rows.pooled, "time_ids": rows.time_ids}
        residuals: dict[str, object] = {}
        if identity_scale is not None:
            down, middle = networks.identitynet(
                latents,
                timesteps,
                encoder_hidden_states=rows.face_tokens,
                controlnet_cond=rows.landmarks,
                conditioning_scale=identity_scale,
                added_cond_kwargs=added,
                cross_attention_kwargs={"context": rows.identitynet},
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        noise: Tensor = networks.unet(
            latents,
            timesteps,
            encoder_hidden_states=rows.text,
            added_cond_kwargs=added,
            cross_attention_kwargs={"context": rows.unet, "face": rows.face},
            return_dict=False,
            **residuals,
        )[0]
        return noise

    def _advance(self, state: State, noise: Tensor) -> None:
        if state.request.guidance:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + state.request.guidance_scale * (conditional - unconditional)
        state.latents = state.schedule.step(noise, state.index, state.latents, state.generators)
        state.index += 1
        if not torch.isfinite(state.latents).all():
            state.failure = EngineFailure("the picture could not be made: its latents are not finite")

    def _identity_scales(self, states: Sequence[State]) -> Tensor | None:
        scales = [state.identity_scale for state in states for _ in range(state.rows)]
        if not any(scales):
            return None
        return torch.tensor(scales, dtype=self.networks.dtype, device=self.device)[:, None, None, None]

    def _inputs(self, job: Job) -> Rows:
        request = job.request
        texts = [request.negative_prompt, request.prompt] if request.guidance else [request.prompt]
        encoded = [self.networks.text.encode(text) for text in texts]
        face = self._face_tokens(job.embedding)
        face_tokens = torch.cat([self._zero_face, face]) if request.guidance else face
        return self._rows(request, encoded, face_tokens, self._landmarks(job.landmark_picture))

    def _rows(
        self, request: GenerationRequest, encoded: Sequence[TextEmbedding], face_tokens: Tensor, landmarks: Tensor
    ) -> Rows:
        networks, images = self.networks, request.num_images_per_prompt
        rows = len(encoded) * images
        text = torch.cat([embedding.tokens for embedding in encoded])
        scale = torch.full((rows, 1, 1, 1), request.ip_adapter_scale, dtype=networks.dtype, device=self.device)
        return Rows(
            text=text.repeat_interleave(images, dim=0),
            pooled=torch.cat([embedding.pooled for embedding in encoded]).repeat_interleave(images, dim=0),
            time_ids=time_ids(request.height, request.width, self.device).expand(rows, -1),
            face_tokens=face_tokens.repeat_interleave(images, dim=0),
            landmarks=landmarks.expand(rows, -1, -1, -1),
            unet=networks.unet_text.project(text).repeat(images),
            identitynet=networks.identitynet_face.project(face_tokens).repeat(images),
            face=FaceAttention(scale, networks.unet_face.project(face_tokens).repeat(images)),
        )

    @torch.inference_mode()
    def _face_tokens(self, embedding: NDArray[np.float32]) -> Tensor:
        tokens: Tensor = self.networks.resampler(torch.from_numpy(embedding)[None].to(self.device))
        return tokens

    def _landmarks(self, picture: NDArray[np.uint8]) -> Tensor:
        """IdentityNet's embedding of the landmark picture, RGB in [0, 1]."""
        pixels = torch.from_numpy(picture).to(self.device).permute(2, 0, 1)[None].float() / 255
        embedded: Tensor = self.networks.landmark_embedding(pixels.to(self.networks.dtype))
        return embedded

    def _first_noise(self, request: GenerationRequest, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (1, self.networks.unet.config.in_channels, request.height // 8, request.width // 8)
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)


def to_uint8(picture: Tensor) -> NDArray[np.uint8]:
    """CHW in [-1, 1] to HWC uint8, as diffusers' `VaeImageProcessor` rounds."""
    unit = (picture.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return (unit.cpu().numpy() * 255).round().astype(np.uint8)
