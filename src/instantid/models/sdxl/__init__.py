"""The InstantID model: SDXL, IdentityNet and face tokens, one state per request."""

from instantid.models.sdxl.memory import free_bytes, kept_bytes
from instantid.models.sdxl.model import SdxlDenoiser
from instantid.models.sdxl.schedules import count_steps
from instantid.models.sdxl.state import Job, State

__all__ = ["Job", "SdxlDenoiser", "State", "count_steps", "free_bytes", "kept_bytes"]
