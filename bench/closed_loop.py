"""The serving engine under a simulated clock, with clients that send their next request when the last is answered.

    python bench/closed_loop.py

Among short requests that never pause, the longest ones wait: how long, relative to what the policy promises.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import typer
from simulate import show
from simulated import COSTS, MAX_ROWS, TENANT_ROWS, Class, Inline, LeastWork, MakePolicy, SimulatedModel, solo

from instantid.engine import Admission, Answer, Engine, Group, Policy, Task
from instantid.engine.policy import PATIENCE

LONG = Class("20 steps of heun, 2048x1024", 0, 40, group=Group(2048 * 1024))
SHORT = Class("8 steps, 512x512", 0, 8, group=Group(512 * 512))
MIDDLE = Class("30 steps, 1024x1024", 0, 30)
Clients = Sequence[tuple[Class, int]]
SCENES: Sequence[Clients] = (
    ((LONG, 1), (SHORT, 8)),
    ((LONG, 1), (MIDDLE, 8)),
    ((LONG, 1), (SHORT, 4), (MIDDLE, 4)),
)


class NeverOverdue(LeastWork):
    """Least work first, however long that lets the others wait."""

    def due(self, task: Task, others: object) -> float:
        return float("inf")


def closed_loop(make_policy: MakePolicy, clients: Clients, seconds: float) -> dict[str, list[float]]:
    """Seconds from request to answer by class; a request that is unanswered at the end counts until then."""
    model = SimulatedModel(COSTS)
    admission = Admission(MAX_ROWS, tenant_rows=TENANT_ROWS)
    engine = Engine(
        model,
        make_policy(COSTS, TENANT_ROWS),
        admission,
        lambda task: None,
        finishers=Inline(),
        clock=lambda: model.now,
    )
    waits: dict[str, list[float]] = {kind.name: [] for kind, _ in clients}
    idle = [kind for kind, count in clients for _ in range(count)]

    def send(kind: Class) -> None:
        begun = model.now

        def answered(outcome: object) -> None:
            waits[kind.name].append(model.now - begun)
            idle.append(kind)

        engine.submit([Task(kind, None, kind.plan, Answer(answered))])

    while model.now < seconds:
        while idle:
            send(idle.pop())
        engine.step()
    for task in admission.tasks:
        waits[task.request.name].append(model.now - task.arrived)
    return waits


def bound(clients: Clients, kind: Class) -> float:
    """What the policy promises to one request of this class, the only one that is overdue."""
    ahead = sum(count * solo(COSTS, other) for other, count in clients) - solo(COSTS, kind)
    return (PATIENCE + 2) * solo(COSTS, kind) + ahead


def main(seconds: Annotated[float, typer.Option(help="Simulated seconds of each scene.")] = 600.0) -> None:
    """Print mean and longest seconds per class, with and without the bound on waiting."""
    rows = []
    for clients in SCENES:
        beside = ", ".join(f"{count} x {kind.name}" for kind, count in clients[1:])
        for name, make in (("least work alone", NeverOverdue), ("this engine", Policy)):
            waits = closed_loop(make, clients, seconds)
            for kind, _ in clients:
                values = waits[kind.name]
                promised = bound(clients, kind) if kind is LONG else "-"
                rows.append((beside, name, kind.name, solo(COSTS, kind), np.mean(values), max(values), promised))
    show(("one long request beside", "policy", "class", "alone", "mean", "longest", "promised"), rows)


if __name__ == "__main__":
    typer.run(main)
