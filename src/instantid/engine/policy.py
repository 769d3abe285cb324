"""What runs next: priority, then a fair share for each tenant, then the least work.

Fair share: deficit round robin (Shreedhar and Varghese 1995) in its virtual-time form. Each tenant is charged
the measured cost of the steps it was given. Those within one quantum of the least served may run, so that a short
request of one tenant need not alternate with a long one of another; who has been away comes back with a bounded
credit, so that a tenant below its share does not wait for one that floods. Within that, the smallest product of
remaining and whole work goes first (RS, which minimises mean slowdown: Wierman, Harchol-Balter and Osogami 2005),
pre-emptive at step boundaries: a long request that is nearly done does not hold up a short one, as it would by
remaining work alone. A request that waits gains on the others, so that none starves.
"""

from collections.abc import Collection, Sequence

from instantid.engine.costs import CostTable
from instantid.engine.task import Task

PICTURE_STEPS, PICTURE_ROWS = 30, 2
"""A picture as the unit of quantum and credit: 30 steps with guidance at the first measured size."""
STRETCH, GUEST_STRETCH = 2.0, 1.1
"""How many times longer than by itself the first task's step may take for those who join it; the second for those whose
tenant has had more than its share."""


class Policy:
    """Orders tasks and forms batches; holds the tenants' accounts and nothing of a request.

    `quantum` and `credit` are in pictures' worth of device time; `ageing` is how many seconds of remaining work
    one second since arrival makes up for.
    """

    def __init__(self, costs: CostTable, quantum: float = 0.25, credit: float = 1.5, ageing: float = 0.01) -> None:
        picture = PICTURE_STEPS * costs.step(next(iter(costs.seconds)), PICTURE_ROWS)
        self.costs = costs
        self.quantum = quantum * picture
        self.credit = credit * picture
        self.ageing = ageing
        self._served: dict[str, float] = {}
        self._least = 0.0

    def keep_accounts(self, tenants: Collection[str]) -> None:
        """Open accounts for those who have work and close those that have earned all the credit there is.

        To be called with the tenants of all tasks before `order` and `pick`.
        """
        present = [self._served[tenant] for tenant in tenants if tenant in self._served]
        floor = min(present, default=max(self._served.values(), default=0.0)) - self.credit
        self._served = {tenant: served for tenant, served in self._served.items() if served > floor}
        self._served |= {tenant: max(self._served.get(tenant, floor), floor) for tenant in tenants}
        self._least = min((self._served[tenant] for tenant in tenants), default=0.0)

    def first(self, tasks: Collection[Task], now: float) -> Task:
        """The task to run first; its tenant has an account (`keep_accounts`)."""
        return min(tasks, key=lambda task: self._rank(task, now))

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        """The next batch: the first task, and others of its size for as long as joining pays and holds it up little.

        A task whose steps are done comes alone: what it needs next is the decoding of one picture.
        """
        first = self.first(tasks, now)
        batch, rows = [first], first.rows
        if not first.steps_left:
            return batch
        peers = [task for task in tasks if task is not first and task.size == first.size and task.steps_left]
        if not any(self.costs.joining_pays(first.size, rows, n) for n in {task.rows for task in peers}):
            return batch
        alone = self.costs.step(first.size, rows)
        for task in sorted(peers, key=lambda task: self._rank(task, now)):
            longest = alone * (GUEST_STRETCH if self._over(task) > 0 else STRETCH)
            fits = self.costs.step(first.size, rows + task.rows) <= longest
            if fits and self.costs.joining_pays(first.size, rows, task.rows):
                batch.append(task)
                rows += task.rows
        return batch

    def charge(self, batch: Sequence[Task]) -> None:
        """Book what the batch does next on its tenants' accounts, each by its share of the rows."""
        rows = sum(task.rows for task in batch)
        per_row = self.seconds(batch) / rows
        for task in batch:
            self._served[task.tenant] += per_row * task.rows

    def seconds(self, batch: Sequence[Task]) -> float:
        """What the batch does next should take this long: a step, or the decoding of one picture."""
        first = batch[0]
        if not first.steps_left:
            return self.costs.decode(first.size)
        return self.costs.step(first.size, sum(task.rows for task in batch))

    def remaining(self, task: Task) -> float:
        """Seconds of work that are left of a task by itself."""
        return self._work(task, task.steps_left, task.pictures_left)

    def _work(self, task: Task, steps: int, pictures: int) -> float:
        return steps * self.costs.step(task.size, task.rows) + pictures * self.costs.decode(task.size)

    def _rank(self, task: Task, now: float) -> tuple[int, float, float, float]:
        work = (self.remaining(task) * self._work(task, task.steps, task.pictures)) ** 0.5
        return task.priority_level, self._over(task), work - self.ageing * (now - task.arrived), task.arrived

    def _over(self, task: Task) -> float:
        """Device seconds that the task's tenant has had beyond its share."""
        return max(self._served[task.tenant] - self._least - self.quantum, 0.0)
