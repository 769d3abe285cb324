from instantid.engine.costs import CostTable
from instantid.engine.task import Group, Phase, Plan
