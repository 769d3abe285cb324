"""What runs next: priority, then tenants within their share, then the least work.

Each tenant has a credit bucket of device time, charged the measured cost of its units and refilled with an equal part
of the time that passes, and beside it counts what the tenant has outstanding. A tenant is within its share while the
part of its credit that it has used and the part of its room (the rows that admission lets it hold) that it fills make
no more than one. Tenants within their share are served alike, by work; then comes the one that exceeds it least. So a
flood, which fills its room, waits behind the others from its first seconds, a tenant that keeps up a shorter queue once
its credit is used, and a chance burst costs nothing. None starves: the others use up their credit while it waits.

Within that, the smallest product of remaining and whole work goes first (RS, which minimises mean slowdown: Wierman,
Harchol-Balter and Osogami 2005), pre-emptive between units: a long request that is nearly done does not hold up a short
one, as it would by remaining work alone. What has waited too long is overdue, which bounds the wait (`PATIENCE`).
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from instantid.engine.costs import CostTable
from instantid.engine.task import Task

CREDIT = 4.0
"""Full rooms of work that an account can save. With three, five equal tenants at 0.9 of the device's capacity exceed
their share by chance (docs/performance.md); with more, a queue that does not fill its room is noticed later."""

FEWEST = 2
"""An account earns one part in so many at most: a tenant that keeps the device busy alone uses up its credit."""

PICTURE_ROWS = 2
"""Excess is compared in steps of one picture with guidance: tenants that exceed their share take turns by pictures."""

PATIENCE = 10
"""A request is overdue once it has waited so many times its own work, and the work that was there when it came. From
then on overdue requests get half of their level's time, the one that is due first before the others: with nobody else
overdue, a request ends within `PATIENCE + 2` times its work and the work ahead of it, whatever arrives later. Half and
not all, so that short requests still pass."""

STRETCH, GUEST_STRETCH = 2.0, 1.1
"""How many times longer than by itself the first request's unit may take for those that join it; the second for
requests of tenants that would have to wait for the first one's."""


@dataclass(slots=True)
class Account:
    """The used part of a tenant's credit and the filled part of its room; credit in seconds; excess in pictures."""

    used: float = 0.0
    filled: float = 0.0
    credit: float = math.inf
    excess: int = 0


class Policy:
    """Orders tasks and forms batches; holds the tenants' accounts and nothing of a request.

    `tenant_rows` are the rows that admission lets one tenant hold.
    """

    def __init__(self, costs: CostTable, tenant_rows: int, credit: float = CREDIT) -> None:
        self.costs = costs
        self._rows = tenant_rows
        self._credit = credit
        self._accounts: defaultdict[str, Account] = defaultdict(Account)
        self._at = 0.0
        self._owed: defaultdict[int, float] = defaultdict(float)

    def keep_accounts(self, tasks: Collection[Task], now: float) -> None:
        """Refill every account for the time since the last call; close those that are full and of absent tenants.

        To be called with all tasks, started or waiting, before `first` and `pick`.
        """
        share = (now - self._at) / max(len(self._accounts), FEWEST)
        self._at = now
        for account in self._accounts.values():
            account.used, account.filled = max(account.used - share / account.credit, 0.0), 0.0
        for task in tasks:
            self._accounts[task.tenant].filled += task.plan.rows / self._rows
        for tenant, account in list(self._accounts.items()):
            excess = (account.used + min(account.filled, 1.0) - 1) * self._credit * self._rows / PICTURE_ROWS
            account.excess = max(math.ceil(excess), 0)
            if not account.used and not account.filled:
                del self._accounts[tenant]

    def first(self, tasks: Collection[Task], now: float) -> Task:
        """The task to run first."""
        return min(tasks, key=lambda task: self._rank(task, now))

    def pick(self, tasks: Collection[Task], now: float) -> list[Task]:
        """The next batch: the first task, and others that need the same where joining pays and delays it little."""
        first = self.first(tasks, now)
        (kind, rows, _), group, batch = first.left[0], first.plan.group, [first]
        alone = self.costs.seconds(kind, group, rows)

        def joins(more: int, stretch: float = STRETCH) -> bool:
            pays = self.costs.joining_pays(kind, group, rows, more)
            return pays and self.costs.seconds(kind, group, rows + more) <= stretch * alone

        same = [t for t in tasks if t is not first and t.left[0].kind == kind and t.plan.group == group]
        if any(map(joins, {task.left[0].rows for task in same})):
            for task in sorted(same, key=lambda task: self._rank(task, now)):
                if joins(task.left[0].rows, GUEST_STRETCH if self._excess(task) > self._excess(first) else STRETCH):
                    batch.append(task)
                    rows += task.left[0].rows
        return batch

    def charge(self, batch: Sequence[Task]) -> None:
        """Book the batch's next unit on its tenants' accounts, each by its share of the rows."""
        rows, unit = sum(task.left[0].rows for task in batch), self.seconds(batch)
        level = batch[0].priority_level
        self._owed[level] = min(self._owed[level] + (-unit if batch[0].due <= self._at else unit), 0.0)
        for task in batch:
            account, seconds = self._accounts[task.tenant], unit * task.left[0].rows / rows
            account.credit = self._credit * task.work * self._rows / task.plan.rows or math.inf
            account.used = min(account.used + seconds / account.credit, 1.0)

    def seconds(self, batch: Sequence[Task]) -> float:
        """What the batch's next unit of work should take."""
        rows = sum(task.left[0].rows for task in batch)
        return self.costs.seconds(batch[0].left[0].kind, batch[0].plan.group, rows)

    def remaining(self, task: Task) -> float:
        """Seconds of work that are left of a task by itself."""
        group = task.plan.group
        return sum(count * self.costs.seconds(kind, group, rows) for kind, rows, count in task.left)

    def due(self, task: Task, others: Collection[Task]) -> float:
        """When a task that arrives among these others becomes overdue."""
        return task.arrived + PATIENCE * task.work + sum(other.remaining for other in others)

    def _rank(self, task: Task, now: float) -> tuple[int, int, bool, float, float]:
        overdue = task.due <= now and self._owed[task.priority_level] >= 0
        order = task.due if overdue else (task.remaining * task.work) ** 0.5
        return task.priority_level, self._excess(task), not overdue, order, task.arrived

    def _excess(self, task: Task) -> int:
        return self._accounts[task.tenant].excess
