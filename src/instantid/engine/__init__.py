"""The serving engine: schedules requests at the boundaries of units of work. Knows neither Triton nor diffusers."""

from instantid.engine.admission import Admission
from instantid.engine.costs import CostTable
from instantid.engine.engine import Engine
from instantid.engine.policy import Policy
from instantid.engine.task import UNNAMED, Answer, Group, Phase, Plan, Task

__all__ = ["UNNAMED", "Admission", "Answer", "CostTable", "Engine", "Group", "Phase", "Plan", "Policy", "Task"]
