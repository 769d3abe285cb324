"""Options of a call. Written by `python -m build_tools configs` from src/instantid/contract.py; edit that file."""

from typing import TypedDict

from instantid_client.photos import Photo


class Options(TypedDict, total=False):
    """What a caller may set beside photo and prompt; what is left out has the server's default."""

    negative_prompt: str
    prompt_syntax: str
    style: str
    force_zeros_for_empty_prompt: int
    pose_photo: Photo
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    ip_adapter_scale: float
    controlnet_conditioning_scale: float
    control_guidance_start: float
    control_guidance_end: float
    num_images_per_prompt: int
    seed: int
    output_quality: int
    scheduler: str
    output_format: str
