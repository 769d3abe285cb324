"""What runs next: priority, then a fair share for each tenant, then the shortest remaining work.

Fair share: deficit round robin (Shreedhar and Varghese 1995) in its virtual-time form. Each tenant is charged
the measured cost of the steps it was given; those within one quantum of the least served may run, so a short
request of one tenant need not alternate with a long one of another. Shortest remaining work is pre-emptive at
step boundaries; a request that waits gains on the others, so that none starves.
"""

from collections.abc import Collection, Sequence

from instantid.engine.costs import CostTable
from instantid.engine.task import Task


class Policy:
    """Orders tasks and forms batches; holds the tenants' accounts and nothing of a request.

    `quantum` is in seconds of device time; `ageing` is how many seconds of remaining work one second since
    arrival makes up for.
    """

    def __init__(self, costs: CostTable, quantum: float = 1.0, ageing: float = 0.01) -> None:
        self.costs = costs
        self.quantum = quantum
        self.ageing = ageing
        self._served: dict[str, float] = {}

    def keep_accounts(self, tenants: Collection[str]) -> None:
        """Keep the accounts of those who have work; a newcomer starts with the least served, not with credit."""
        kept = {tenant: self._served[tenant] for tenant in tenants if tenant in self._served}
        least = min(kept.values(), default=0.0)
        self._served = {tenant: kept.get(tenant, least) for tenant in tenants}

    def order(self, tasks: Collection[Task], now: float) -> list[Task]:
        """All tasks, the one to run first first; their tenants have accounts (`keep_accounts`)."""
        least = min(self._served.values(), default=0.0)
        return sorted(tasks, key=lambda task: self._rank(task, now, least))

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        """The next batch: the first task, and others of its size for as long as joining pays."""
        least = min(self._served.values(), default=0.0)
        first = min(tasks, key=lambda task: self._rank(task, now, least))
        batch, rows = [first], first.rows
        peers = [task for task in tasks if task is not first and task.size == first.size]
        if not any(self.costs.joining_pays(first.size, rows, n) for n in {task.rows for task in peers}):
            return batch
        for task in self.order(peers, now):
            if self.costs.joining_pays(first.size, rows, task.rows):
                batch.append(task)
                rows += task.rows
        return batch

    def charge(self, batch: Sequence[Task]) -> None:
        """Book one step of the batch on its tenants' accounts, each by its share of the rows."""
        rows = sum(task.rows for task in batch)
        per_row = self.costs.step(batch[0].size, rows) / rows
        for task in batch:
            self._served[task.tenant] += per_row * task.rows

    def _rank(self, task: Task, now: float, least: float) -> tuple[int, float, float, float]:
        over = max(self._served[task.tenant] - least - self.quantum, 0.0)
        remaining = task.steps_left * self.costs.step(task.size, task.rows)
        return task.priority_level, over, remaining - self.ageing * (now - task.arrived), task.arrived
