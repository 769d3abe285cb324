"""The InstantID model: SDXL, IdentityNet and face tokens, one state per request."""

from instantid.diffusion.denoiser import SdxlDenoiser
from instantid.diffusion.memory import free_bytes, kept_bytes
from instantid.diffusion.schedules import count_steps
from instantid.diffusion.state import Job, State

__all__ = ["Job", "SdxlDenoiser", "State", "count_steps", "free_bytes", "kept_bytes"]
