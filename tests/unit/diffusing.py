"""Requests on toy weights, and the loop that takes their steps to the end."""

import numpy as np

from instantid import contract
from instantid.models.sdxl import RequestTensors
from instantid.request import GenerationRequest

WORDS = ("a portrait", "a knight in a garden", "watercolor, soft light", "", "queen of snow, stars, night")


def make_request(**changes):
    fields = {"prompt": "a portrait", "width": 64, "height": 64, "num_inference_steps": 4, "seed": 7}
    return GenerationRequest(**{**fields, "pictures": ("landmarks",), **changes})


def make_job(face=0, **changes):
    """A request and the tensors beside it."""
    rng = np.random.default_rng(face)
    request = make_request(**changes)
    picture = rng.integers(0, 256, (request.height, request.width, 3)).astype(np.uint8)
    return request, RequestTensors((rng.normal(size=(1, 512)) * 1.3).astype(np.float32), picture[None])


def random_job(seed, size=None):
    rng = np.random.default_rng(1000 + seed)
    scheduler = contract.SCHEDULERS[seed % len(contract.SCHEDULERS)]
    start = float(rng.choice([0.0, 0.0, 0.2]))
    width, height = size or rng.choice([64, 128], 2)
    return make_job(
        seed,
        prompt=str(rng.choice(WORDS)) or "x",
        negative_prompt=str(rng.choice(WORDS)),
        width=int(width),
        height=int(height),
        num_inference_steps=int(rng.integers(1, 31)),
        guidance_scale=float(rng.choice([1.0, 2.5, 5.0, 9.0])),
        ip_adapter_scale=float(rng.uniform(0, 1.5)),
        controlnet_conditioning_scale=float(rng.uniform(0, 1.5)),
        control_guidance_start=start,
        control_guidance_end=float(rng.choice([0.6, 1.0])),
        scheduler=scheduler,
        seed=int(rng.integers(0, 2**40)),
    )


def steps_left(state):
    return len(state.timesteps) - state.index


def run(model, *jobs):
    """Final latents of jobs that share steps for as long as each has one left."""
    states = [model.start(*job) for job in jobs]
    while active := [state for state in states if steps_left(state)]:
        model.work("step", active).wait()
    assert all(state.failure is None for state in states)
    return [state.latents for state in states]


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())
