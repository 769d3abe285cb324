"""The serving engine: schedules requests at step boundaries. Knows neither Triton nor diffusers."""

from instantid.engine.costs import CostTable
from instantid.engine.engine import Engine
from instantid.engine.policy import Policy
from instantid.engine.task import Answer, Denoiser, State, Task

__all__ = ["Answer", "CostTable", "Denoiser", "Engine", "Policy", "State", "Task"]
