"""The serving engine: schedules requests at the boundaries of units of work. Knows neither Triton nor diffusers."""

from instantid.engine.admission import Admission
from instantid.engine.costs import CostTable
from instantid.engine.engine import Engine
from instantid.engine.events import Event, Load
from instantid.engine.policy import Policy
from instantid.engine.task import UNNAMED, Answer, Done, Group, Phase, Plan, Task

__all__ = [
    "UNNAMED",
    "Admission",
    "Answer",
    "CostTable",
    "Done",
    "Engine",
    "Event",
    "Group",
    "Load",
    "Phase",
    "Plan",
    "Policy",
    "Task",
]
