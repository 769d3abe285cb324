"""The serving engine: schedules requests at step boundaries. Knows neither Triton nor diffusers."""

from instantid.engine.admission import Room
from instantid.engine.costs import CostTable
from instantid.engine.engine import Engine
from instantid.engine.observer import Load, Observer
from instantid.engine.policy import Policy
from instantid.engine.task import UNNAMED, Answer, Denoiser, State, Task

__all__ = [
    "UNNAMED",
    "Answer",
    "CostTable",
    "Denoiser",
    "Engine",
    "Load",
    "Observer",
    "Policy",
    "Room",
    "State",
    "Task",
]
