"""Requests of `bench/gpu.py`, and what runs one by itself."""

from typing import Any

import numpy as np

from instantid.models.sdxl import LANDMARKS, RequestTensors, SdxlModel, State
from instantid.request import GenerationRequest

Job = tuple[GenerationRequest, RequestTensors]
"""A request and the tensors beside it, as `SdxlModel.start` takes them."""


def make_job(number: int, size: tuple[int, int], steps: int, guidance_scale: float = 5.0) -> Job:
    """Of `size` (height, width); every number has its own prompt, face, landmarks and seed."""
    rng = np.random.default_rng(number)
    request = GenerationRequest(
        prompt=f"a portrait of an astronaut in a garden, sunset, picture {number}",
        negative_prompt="blurry, low quality",
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=number,
        pictures=(LANDMARKS,),
    )
    landmarks = rng.integers(0, 256, (1, *size, 3)).astype(np.uint8)
    return request, RequestTensors(rng.normal(size=(1, 512)).astype(np.float32), landmarks)


def run_steps(model: SdxlModel, job: Job) -> State:
    """A request alone, up to decoding. Raises what made it fail."""
    state = model.start(*job)
    units: Any = None
    for _ in state.timesteps:
        units = model.work("step", [state])
    units.wait()
    if state.failure:
        raise state.failure
    return state


def paint(model: SdxlModel, job: Job) -> np.ndarray:
    """The picture of a request alone, HWC RGB uint8."""
    state = run_steps(model, job)
    model.work("decode", [state]).wait()
    return state.pictures[0].numpy()
