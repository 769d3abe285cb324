"""Requests to measure with, and a request run alone."""

import numpy as np

from instantid.models.sdxl import Job, SdxlDenoiser, State
from instantid.request import GenerationRequest


def run_steps(denoiser: SdxlDenoiser, job: Job) -> State:
    """A request alone, up to decoding. Raises what made it fail."""
    state = denoiser.start(job)
    while state.steps_left:
        denoiser.step([state])
        if state.failure:
            raise RuntimeError(str(state.failure))
    return state


def make_job(number: int, size: tuple[int, int], steps: int, guidance_scale: float) -> Job:
    """Of `size` (height, width); every number has its own prompt, face, landmarks and seed."""
    rng = np.random.default_rng(number)
    request = GenerationRequest(
        prompt=f"a portrait of an astronaut in a garden, sunset, picture {number}",
        negative_prompt="blurry, low quality",
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        ip_adapter_scale=0.8,
        controlnet_conditioning_scale=0.8,
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        scheduler="euler",
        num_images_per_prompt=1,
        seed=number,
        output_format="png",
        output_quality=95,
    )
    landmarks = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return Job(request, rng.normal(size=512).astype(np.float32), landmarks)
