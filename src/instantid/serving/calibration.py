"""The requests with which a denoiser measures its own step costs when it is loaded."""

import numpy as np

from instantid import contract
from instantid.diffusion import Job, SdxlDenoiser
from instantid.engine import CostTable
from instantid.engine.calibrate import measure_costs
from instantid.engine.task import Size
from instantid.profile import Profile
from instantid.request import GenerationRequest

ROWS = (1, 2, 4, 8, 16)


def measure(denoiser: SdxlDenoiser, profile: Profile, max_rows: int) -> CostTable:
    """Step costs at the weights' native size, and with it a real pass through every network before readiness."""
    side = round(profile.native_area**0.5)
    side = max(side // contract.SIDE_MULTIPLE, 1) * contract.SIDE_MULTIPLE
    return measure_costs(denoiser, _job, [(side, side)], [rows for rows in ROWS if rows <= max_rows])


def _job(size: Size) -> Job:
    height, width = size
    request = GenerationRequest(
        prompt="a portrait",
        negative_prompt="",
        width=width,
        height=height,
        num_inference_steps=30,
        guidance_scale=1.0,
        ip_adapter_scale=contract.IP_ADAPTER_SCALE.default or 0.0,
        controlnet_conditioning_scale=contract.CONTROLNET_CONDITIONING_SCALE.default or 0.0,
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        scheduler=contract.DEFAULT_SCHEDULER,
        num_images_per_prompt=1,
        seed=0,
        output_format=contract.DEFAULT_OUTPUT_FORMAT,
        output_quality=int(contract.OUTPUT_QUALITY.default or 95),
    )
    embedding = np.ones(contract.EMBEDDING_SIZE, np.float32)
    return Job(request, embedding, np.zeros((height, width, 3), np.uint8))
