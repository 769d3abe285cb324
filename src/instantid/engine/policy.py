"""What runs next: priority, then a fair share for each tenant, then the least work.

Fair share: deficit round robin (Shreedhar and Varghese 1995) as its fluid limit. Each tenant has an account, which is
charged the measured cost of the steps it was given and earns an equal part of the time that passes, up to a credit.
Those whose credit covers twice what they ask for are served alike, so that fairness costs nothing while nobody asks for
much more than its share; then comes who lacks least. What is asked for counts double, and each request as a picture of
30 steps at least, because a flood shows in it before it shows in the account: who floods waits for all who ask for
less. Debts are bounded, and what is asked for counts up to the way from one bound to the other: who gets nothing lacks
less in the end than the others, none starves.

Within that, the smallest product of remaining and whole work goes first (RS, which minimises mean slowdown: Wierman,
Harchol-Balter and Osogami 2005), pre-emptive at step boundaries: a long request that is nearly done does not hold up a
short one, as it would by remaining work alone. A request that waits gains on the others.
"""

import math
from collections.abc import Collection, Sequence

from instantid.engine.costs import CostTable
from instantid.engine.task import Group, Phase, Task

PICTURE_KIND, PICTURE_STEPS, PICTURE_ROWS = "step", 30, 2
"""A picture as the unit of credit and quantum: 30 steps with guidance at the first measured size."""

STRETCH, GUEST_STRETCH = 2.0, 1.1
"""How many times longer than by itself the first task's step may take for those who join it; the second for those whose
tenant would have to wait for the first one's."""

FEWEST = 2
"""Who works alone is charged as one of two, so that a flood has used up its credit when somebody else comes."""


class Policy:
    """Orders tasks and forms batches; holds the tenants' accounts and nothing of a request.

    `credit` and `quantum` are in pictures' worth of device time: what an account may save (it may owe half of it), and
    up to which difference those whose credit does not suffice are served alike. `ageing` is how many seconds of
    remaining work one second since arrival makes up for.
    """

    def __init__(self, costs: CostTable, credit: float = 20.0, quantum: float = 1.0, ageing: float = 0.01) -> None:
        area = max(area for kind, area in costs.measured if kind == PICTURE_KIND)
        self.picture = PICTURE_STEPS * costs.seconds(PICTURE_KIND, Group(area), PICTURE_ROWS)
        self.costs = costs
        self.credit = credit * self.picture
        self.debt = self.credit / 2
        self.quantum = quantum * self.picture
        self.ageing = ageing
        self._owed: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._at = 0.0

    def keep_accounts(self, tasks: Collection[Task], now: float) -> None:
        """Give every account its part of the time since the last call; a full one needs no keeping.

        To be called with all tasks, started or waiting, before `first` and `pick`. Tasks that arrive in between count
        as of a tenant with full credit if theirs has no account.
        """
        share = (now - self._at) / max(len(self._owed), FEWEST)
        self._at = now
        self._owed = {tenant: owed - share for tenant, owed in self._owed.items() if owed - share > -self.credit}
        self._owed |= dict.fromkeys({task.tenant for task in tasks} - self._owed.keys(), -self.credit)
        self._asked = dict.fromkeys(self._owed, 0.0)
        for task in tasks:
            self._asked[task.tenant] += max(self.remaining(task), self.picture)

    def first(self, tasks: Collection[Task], now: float) -> Task:
        """The task to run first."""
        return min(tasks, key=lambda task: self._rank(task, now))

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        """The next batch: the first task, and others that need the same where joining pays and delays it little."""
        first = self.first(tasks, now)
        kind, rows, _ = first.left[0]
        group, batch = first.plan.group, [first]
        peers = [t for t in tasks if t is not first and t.left[0].kind == kind and t.plan.group == group]
        if not any(self.costs.joining_pays(kind, group, rows, n) for n in {task.left[0].rows for task in peers}):
            return batch
        alone = self.costs.seconds(kind, group, rows)
        for task in sorted(peers, key=lambda task: self._rank(task, now)):
            longest = alone * (GUEST_STRETCH if self._turn(task) > self._turn(first) else STRETCH)
            more = task.left[0].rows
            fits = self.costs.seconds(kind, group, rows + more) <= longest
            if fits and self.costs.joining_pays(kind, group, rows, more):
                batch.append(task)
                rows += more
        return batch

    def charge(self, batch: Sequence[Task]) -> None:
        """Book what the batch does next on its tenants' accounts, each by its share of the rows."""
        if not batch:
            return
        per_row = self.seconds(batch) / sum(task.left[0].rows for task in batch)
        for task in batch:
            owed = self._owes(task.tenant) + per_row * task.left[0].rows
            self._owed[task.tenant] = min(owed, self.debt)

    def seconds(self, batch: Sequence[Task]) -> float:
        """What the batch's next unit of work should take."""
        rows = sum(task.left[0].rows for task in batch)
        return self.costs.seconds(batch[0].left[0].kind, batch[0].plan.group, rows)

    def remaining(self, task: Task) -> float:
        """Seconds of work that are left of a task by itself."""
        return self._work(task, task.left)

    def _work(self, task: Task, phases: Sequence[Phase]) -> float:
        group = task.plan.group
        return sum(count * self.costs.seconds(kind, group, rows) for kind, rows, count in phases)

    def _rank(self, task: Task, now: float) -> tuple[int, int, float, float]:
        work = (self.remaining(task) * self._work(task, task.plan.phases)) ** 0.5
        return task.priority_level, self._turn(task), work - self.ageing * (now - task.arrived), task.arrived

    def _turn(self, task: Task) -> int:
        """The quanta that the task's tenant lacks for twice what it asks for, 0 within its credit."""
        asked = min(2 * self._asked.get(task.tenant, 0.0), self.credit + self.debt)
        return max(math.ceil((self._owes(task.tenant) + asked) / self.quantum), 0)

    def _owes(self, tenant: str) -> float:
        return self._owed.get(tenant, -self.credit)
