"""InstantID on SDXL: SDXL, IdentityNet and face tokens, one state per request."""

from instantid.models.sdxl.identity import LANDMARKS
from instantid.models.sdxl.model import SdxlModel
from instantid.models.sdxl.state import RequestTensors, State

__all__ = ["LANDMARKS", "RequestTensors", "SdxlModel", "State"]
