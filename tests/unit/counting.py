"""A model that only counts, whose clock advances by what the cost table says, and an engine on it."""

from dataclasses import dataclass

from instantid.engine import Admission, Answer, CostTable, Engine, Group, Phase, Plan, Policy, Task
from instantid.engine.task import Done

LARGE, SMALL = Group(1024 * 1024), Group(512 * 512)
COSTS = CostTable(
    {
        ("step", LARGE.area): ((1, 1.0), (2, 1.98), (4, 3.95)),
        ("step", SMALL.area): ((1, 0.3), (2, 0.32), (4, 0.4), (8, 0.7)),
        ("decode", LARGE.area): ((1, 0.5),),
        ("decode", SMALL.area): ((1, 0.25),),
    }
)


@dataclass
class Counter:
    name: str
    plan: Plan
    advanced: int = 0
    failure: Exception | None = None


class Running:
    """A unit that takes the device's time only once somebody waits for it."""

    done = False

    def __init__(self, model, seconds, states):
        self.model, self.seconds, self.states = model, seconds, states

    def wait(self):
        self.model.now += self.seconds
        for state in self.states:
            state.failure = state.failure or self.model.failing.get(state.name)
        return self.seconds


class CountingModel:
    """Counts units per state. `broken` names requests whose `work` raises, before any state of the batch advances."""

    fingerprint = "counting"

    def __init__(self, asynchronous=False):
        self.now = 0.0
        self.batches = []
        self.decoded = []
        self.states = {}
        self.broken = {}
        self.failing = {}
        self.asynchronous = asynchronous

    def plan(self, request):
        return request["plan"]

    def start(self, request, given):
        if request.get("bad_start"):
            raise request["bad_start"]
        self.states[request["name"]] = Counter(request["name"], self.plan(request))
        return self.states[request["name"]]

    def work(self, kind, states):
        for state in states:
            if state.name in self.broken:
                raise self.broken[state.name]
        names = [state.name for state in states]
        self.decoded.append((names[0], len(self.batches))) if kind == "decode" else self.batches.append(names)
        rows = {phase.kind: phase.rows for phase in states[0].plan.phases}[kind]
        seconds = COSTS.seconds(kind, states[0].plan.group, rows * len(states))
        for state in states:
            state.advanced += 1
        if self.asynchronous:
            return Running(self, seconds, states)
        self.now += seconds
        return Done(seconds)


def make_plan(steps, group=LARGE, rows=1, pictures=1, size=0):
    return Plan(group, (Phase("step", rows, steps), Phase("decode", 1, pictures)), size)


def make_task(steps=5, group=LARGE, rows=1, pictures=1, **fields):
    return Task({}, None, make_plan(steps, group, rows, pictures), Answer(print), **fields)


class Bench:
    """An engine driven by hand, and what each caller heard, when."""

    def __init__(self, max_rows=8, asynchronous=False, policy=None, **options):
        self.model = CountingModel(asynchronous)
        self.heard = {}
        self.events = []
        self.policy = policy or Policy(CostTable(COSTS.measured), tenant_rows=max_rows)
        self.engine = Engine(
            self.model,
            self.policy,
            Admission(max_rows, **options),
            lambda task: f"{task.request['name']} {task.state.advanced}",
            listeners=[self.events.append],
            inline_events=True,
            clock=lambda: self.model.now,
        )

    def add(self, name, steps, group=LARGE, rows=1, pictures=1, size=0, bad_start=None, **fields):
        request = {"name": name, "plan": make_plan(steps, group, rows, pictures, size), "bad_start": bad_start}
        said = self.heard.setdefault(name, [])
        answer = Answer(lambda outcome: said.append((outcome, self.model.now)))
        task = Task(request, None, self.model.plan(request), answer, request_id=name, **fields)
        self.engine.submit([task])
        return task

    @property
    def idle(self):
        return not self.engine.admission.tasks

    def steps(self, count):
        for _ in range(count):
            self.engine.step()

    def finish(self):
        for _ in range(1000):
            if self.idle:
                break
            self.engine.step()
        self.engine.close()
        assert all(len(said) == 1 for said in self.heard.values()), self.heard
        return {name: said[0][0] for name, said in self.heard.items()}

    def ends(self):
        """Names in the order of their last step."""
        last = {name: i for i, batch in enumerate(self.model.batches) for name in batch}
        return sorted(last, key=last.get)
