"""The engine on a model that only counts: its clock advances by what the cost table says."""

import threading
import time
from dataclasses import dataclass

import pytest

from instantid.engine import Admission, Answer, CostTable, Engine, Group, Phase, Plan, Policy, Task
from instantid.engine.events import Delivery
from instantid.engine.task import Done
from instantid.errors import Cancelled, DeviceFailure, EngineFailure, InvalidArgument, Overloaded

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
        self.policy = policy or Policy(COSTS, tenant_rows=max_rows)
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


@pytest.mark.parametrize("asynchronous", [False, True])
def test_everyone_is_answered_once_with_their_own(asynchronous):
    bench = Bench(asynchronous=asynchronous)
    for i in range(12):
        bench.add(f"r{i}", steps=1 + i % 4, group=LARGE if i % 2 else SMALL, rows=1 + i % 2)
    assert bench.finish() == {f"r{i}": f"r{i} {2 + i % 4}" for i in range(12)}


def test_batches_hold_one_group_and_form_only_where_they_pay():
    bench = Bench()
    for i in range(3):
        bench.add(f"large{i}", 2, LARGE)
        bench.add(f"small{i}", 2, SMALL)
        bench.add(f"other{i}", 2, Group(SMALL.area, key="other weights"))
    bench.finish()
    assert sorted(map(len, bench.model.batches)) == [1] * 6 + [3] * 4
    assert all(len({name[:5] for name in batch}) == 1 for batch in bench.model.batches)


def test_a_kind_measured_at_one_row_is_never_batched():
    bench = Bench()
    for i in range(3):
        bench.add(f"r{i}", 1, SMALL)
    bench.finish()
    assert [len(batch) for batch in bench.model.batches] == [3]
    assert len(bench.model.decoded) == 3


def test_batches_never_exceed_what_was_measured():
    flat = CostTable({("step", SMALL.area): ((1, 1.0), (4, 1.0))})
    tasks = [make_task(group=SMALL) for _ in range(20)]
    policy = Policy(flat, 32)
    policy.keep_accounts(tasks, 0.0)
    assert len(policy.pick(tasks, 0.0)) == 4


def test_no_step_takes_more_than_twice_as_long_because_of_those_that_join():
    bench = Bench(max_rows=100)
    for i in range(20):
        bench.add(f"r{i}", 1, SMALL)
    bench.finish()
    assert max(len(batch) for batch in bench.model.batches) == 6
    assert COSTS.seconds("step", SMALL, 6) <= 2 * COSTS.seconds("step", SMALL, 1) < COSTS.seconds("step", SMALL, 7)


def test_the_shortest_remaining_work_goes_first_and_pre_empts():
    bench = Bench()
    bench.add("long", 30)
    bench.steps(1)
    bench.add("short", 4)
    bench.finish()
    assert bench.model.batches[:5] == [["long"], *[["short"]] * 4]


def test_priority_comes_before_length():
    bench = Bench()
    bench.add("low", 1, priority_level=3)
    bench.add("high", 9, priority_level=1)
    bench.finish()
    assert bench.ends() == ["high", "low"]


def test_rows_in_memory_are_bounded():
    bench = Bench(max_rows=4)
    first = bench.add("first", 2, rows=4)
    second = bench.add("second", 2, rows=4)
    bench.steps(1)
    assert first.state is not None
    assert second.state is None
    assert bench.finish() == {"first": "first 3", "second": "second 3"}


def test_bytes_in_memory_are_bounded():
    bench = Bench(max_rows=99, max_bytes=100)
    tasks = [bench.add(f"r{i}", 2, size=40) for i in range(3)]
    bench.steps(1)
    assert [task.state is not None for task in tasks] == [True, True, False]
    bench.add("huge", 2, size=101)
    assert bench.finish()["huge"] == "huge 3"


def test_waiting_ends_once_there_is_room_for_all_tasks():
    bench = Bench(max_rows=1)
    bench.add("first", 3)
    bench.engine.wait_for_room()
    bench.add("next", 3)
    thread = threading.Thread(target=bench.engine.wait_for_room, daemon=True)
    thread.start()
    bench.steps(2)
    assert thread.is_alive()
    bench.steps(3)
    thread.join(5)
    assert not thread.is_alive()
    bench.finish()


def test_a_request_larger_than_the_memory_bound_runs_alone():
    bench = Bench(max_rows=4)
    bench.add("huge", 1, rows=8)
    assert bench.finish() == {"huge": "huge 2"}


@pytest.mark.parametrize("how", ["deadline", "is_cancelled", "cancel"])
def test_the_work_stops_at_the_next_tick(how):
    bench = Bench()
    gone = threading.Event()
    fields = {"deadline": {"deadline": 2.5}, "is_cancelled": {"is_cancelled": gone.is_set}, "cancel": {}}[how]
    bench.add("gone", 30, **fields)
    bench.add("stays", 40)
    bench.steps(3)
    gone.set()
    if how == "cancel":
        bench.engine.cancel("gone")
    bench.engine.poll_cancelled()
    heard = bench.finish()
    assert isinstance(heard["gone"], Cancelled)
    assert "28 of 31 units of work left" in str(heard["gone"])
    assert heard["stays"] == "stays 41"
    assert sum("gone" in batch for batch in bench.model.batches) == 3


def test_callers_are_not_asked_about_cancellation_on_the_engine_s_thread():
    bench = Bench()
    asked = []
    bench.add("a", 3, is_cancelled=lambda: asked.append(1))
    assert bench.finish() == {"a": "a 4"}
    assert not asked


def test_a_caller_that_cannot_be_asked_costs_no_other_the_poll():
    bench = Bench()

    def broken():
        raise RuntimeError("the connection is gone")

    bench.add("a", 3, is_cancelled=broken)
    bench.add("b", 3, is_cancelled=lambda: True)
    bench.engine.poll_cancelled()
    heard = bench.finish()
    assert isinstance(heard["a"], Cancelled)
    assert isinstance(heard["b"], Cancelled)
    assert bench.engine.admission.tasks == []


def test_a_request_is_never_asked_once_its_answer_is_under_way():
    """Triton 2.51 reads freed memory where `is_cancelled` runs beside the last response or after it."""
    heard, asked, may_return = [], threading.Event(), threading.Event()
    answer = Answer(heard.append)

    def question():
        asked.set()
        return may_return.wait(5)

    asking = threading.Thread(target=answer.ask, args=(question,))
    giving = threading.Thread(target=answer.give, args=("result",))
    asking.start()
    assert asked.wait(5)
    giving.start()
    giving.join(0.2)
    assert not heard
    may_return.set()
    giving.join(5)
    asking.join(5)
    assert heard == ["result"]
    assert not answer.ask(lambda: pytest.fail("asked after the answer"))


def test_a_request_whose_deadline_passes_while_it_waits_is_never_started():
    bench = Bench(max_rows=1)
    bench.add("running", 5)
    bench.add("late", 5, deadline=2.0)
    heard = bench.finish()
    assert isinstance(heard["late"], Cancelled)
    assert ["late"] not in bench.model.batches


def test_cancelling_an_unknown_id_is_harmless_later():
    bench = Bench()
    bench.engine.cancel("later")
    bench.add("later", 2)
    assert bench.finish() == {"later": "later 3"}


def test_a_failing_start_fails_that_request_alone():
    bench = Bench()
    bench.add("bad", 2, bad_start=InvalidArgument("prompt", "x", "y"))
    bench.add("broken", 2, bad_start=RuntimeError("secret path"))
    bench.add("good", 2)
    heard = bench.finish()
    assert str(heard["bad"]) == "prompt: x; y"
    assert isinstance(heard["broken"], EngineFailure)
    assert "secret" not in str(heard["broken"])
    assert heard["good"] == "good 3"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_that_fails_is_run_again_one_by_one_and_nothing_advances_twice(asynchronous):
    bench = Bench(asynchronous=asynchronous)
    for name in ("a", "guilty", "b"):
        bench.add(name, 3, SMALL)
    bench.steps(1)
    bench.model.broken["guilty"] = RuntimeError("out of memory")
    heard = bench.finish()
    assert isinstance(heard["guilty"], EngineFailure)
    assert (heard["a"], heard["b"]) == ("a 4", "b 4")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_state_that_reports_its_failure_ends_with_it(asynchronous):
    bench = Bench(asynchronous=asynchronous)
    task = bench.add("nan", 3, SMALL)
    bench.add("good", 3, SMALL)
    bench.steps(1)
    task.state.failure = EngineFailure("latents are not finite")
    heard = bench.finish()
    assert str(heard["nan"]) == "latents are not finite"
    assert heard["good"] == "good 4"


def test_a_failure_that_is_seen_one_unit_later_ends_that_request_alone():
    """Its next unit was launched before; even where that is its last one, no result of it is sent."""
    bench = Bench(asynchronous=True)
    bench.model.failing["nan"] = EngineFailure("latents are not finite")
    bench.add("nan", 1, SMALL)
    bench.add("good", 1, SMALL)
    heard = bench.finish()
    assert str(heard["nan"]) == "latents are not finite"
    assert heard["good"] == "good 2"


def test_one_unit_runs_behind_the_one_that_is_launched():
    bench = Bench(asynchronous=True)
    bench.add("a", 3)
    seen = []
    while not bench.idle:
        bench.steps(1)
        seen.append((bench.model.states["a"].advanced, bench.model.now))
    assert seen == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0), (4, 3.5)]
    bench.engine.close()


def test_a_request_that_is_dropped_with_its_last_unit_in_flight_leaves_the_engine_in_order():
    bench = Bench(asynchronous=True)
    bench.add("a", 1, deadline=0.5)
    bench.add("b", 3)
    bench.steps(2)
    heard = bench.finish()
    assert isinstance(heard["a"], Cancelled)
    assert heard["b"] == "b 4"
    assert bench.engine.lateness < 0


def test_closing_answers_what_is_left():
    bench = Bench(max_rows=1)
    bench.add("active", 5)
    bench.add("waiting", 5)
    bench.steps(1)
    bench.engine.close()
    heard = bench.finish()
    assert all(isinstance(outcome, Overloaded) for outcome in heard.values())


def test_costs_between_and_beyond_the_measured_rows():
    assert COSTS.seconds("step", LARGE, 3) == pytest.approx((1.98 + 3.95) / 2)
    assert COSTS.seconds("step", LARGE, 8) == pytest.approx(3.95 + 4 * (3.95 - 1.98) / 2)
    assert COSTS.seconds("step", Group(1024 * 2048, "any key"), 1) == pytest.approx(2.0)
    assert COSTS.seconds("refine", LARGE, 1) == 0.0
    assert COSTS.max_rows("refine", LARGE) == 1
    table = CostTable({("step", LARGE.area): ((2, 1.0), (4, 1.8))})
    assert table.seconds("step", LARGE, 1) == pytest.approx(0.6)


def test_cost_table_survives_its_file(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == COSTS


def test_listeners_hear_of_everything_in_order():
    bench = Bench()
    bench.add("a", 2)
    bench.finish()
    told = [(e.name, e.kind, e.rows, round(e.seconds, 2), e.outcome, *e.load) for e in bench.events]
    assert told == [
        ("queued", "", 0, 0.0, None, 0, 0, 2.5),
        ("started", "", 0, 0.0, None, 1, 1, 2.5),
        ("worked", "step", 1, 1.0, None, 1, 1, 1.5),
        ("worked", "step", 1, 1.0, None, 1, 1, 0.5),
        ("worked", "decode", 1, 0.5, None, 1, 1, 0.0),
        ("ended", "", 0, 2.5, "a 3", 0, 0, 0.0),
    ]
    assert all(event.tasks[0].request_id == "a" for event in bench.events)


@pytest.mark.parametrize("inline", [False, True])
def test_a_listener_that_fails_stops_nobody(inline):
    heard = []

    def broken(event):
        raise RuntimeError("metrics are gone")

    delivery = Delivery([broken, heard.append], inline)
    delivery.tell("one")
    delivery.tell("two")
    delivery.close()
    assert heard == ["one", "two"]


def test_listeners_run_on_one_thread_of_their_own_and_are_drained_at_the_end():
    threads = []

    def slow(event):
        time.sleep(0.01)
        threads.append(threading.current_thread())

    delivery = Delivery([slow])
    tellers = [threading.Thread(target=delivery.tell, args=(i + 1,)) for i in range(5)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    delivery.close()
    assert len(threads) == 5
    assert len(set(threads)) == 1
    assert threads[0].daemon
    assert threads[0] is not threading.current_thread()


def test_pictures_are_decoded_one_at_a_time_and_a_short_request_passes_between():
    bench = Bench()
    bench.add("four", 12, pictures=4)
    bench.steps(13)
    assert bench.model.decoded == [("four", 12)]
    bench.add("urgent", 2, priority_level=1)
    assert bench.finish() == {"four": "four 16", "urgent": "urgent 3"}
    assert [name for name, _ in bench.model.decoded] == ["four", "urgent", "four", "four", "four"]


def test_a_tenant_that_names_itself_is_bounded_and_others_still_get_in():
    bench = Bench(max_rows=4, tenant_rows=4)
    for i in range(4):
        bench.add(f"flood{i}", 2, rows=2, tenant="flood")
    bench.add("other", 2, rows=2, tenant="other")
    for i in range(4):
        bench.add(f"unnamed{i}", 2, rows=2)
    heard = bench.finish()
    refused = sorted(name for name, outcome in heard.items() if isinstance(outcome, Overloaded))
    assert refused == ["flood2", "flood3"]
    assert str(heard["flood2"]).startswith("tenant: 'flood' has 4 rows in progress and asks for 2 more; the limit")


def test_one_request_larger_than_its_tenant_s_bound_is_refused_from_the_first_on():
    bench = Bench(max_rows=8, tenant_rows=2)
    bench.add("large", 1, rows=8, tenant="a")
    bench.add("unnamed", 1, rows=8)
    heard = bench.finish()
    assert heard["unnamed"] == "unnamed 2"
    assert isinstance(heard["large"], InvalidArgument)
    assert str(heard["large"]).startswith("tenant: 'a' has 0 rows in progress and asks for 8 more; limit")


def test_a_lost_answer_reaches_its_caller():
    heard = []
    answer = Answer(heard.append)
    del answer
    assert isinstance(heard[0], EngineFailure)
    given = []
    Answer(given.append).give("result")
    assert given == ["result"]


def test_an_answer_that_cannot_be_sent_costs_nobody_else_theirs():
    bench = Bench()
    task = bench.add("a", 2)

    def broken(outcome):
        raise RuntimeError("no connection")

    task.answer._send = broken
    bench.add("b", 2)
    bench.steps(20)
    bench.engine.close()
    assert bench.heard["b"][0][0] == "b 3"
    assert bench.idle


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_broken_device_fails_everyone_and_ends_the_engine(asynchronous):
    bench = Bench(asynchronous=asynchronous)
    for name in ("a", "b"):
        bench.add(name, 3)
    bench.model.broken["a"] = DeviceFailure("the device failed")
    with pytest.raises(DeviceFailure):
        bench.engine.run()
    assert all(isinstance(said[0][0], DeviceFailure) for said in bench.heard.values())
    late = bench.add("late", 1)
    assert isinstance(bench.heard["late"][0][0], Overloaded)
    assert late.answer.given


def test_a_batch_too_large_for_the_memory_is_never_formed_again():
    bench = Bench()
    tried = []

    def work(kind, states, work=bench.model.work):
        tried.append(len(states))
        if len(states) > 2:
            raise Overloaded("not enough GPU memory for this picture right now")
        return work(kind, states)

    bench.model.work = work
    bench.policy.costs = CostTable(COSTS.measured)
    for i in range(6):
        bench.add(f"r{i}", 9, SMALL)
    heard = bench.finish()
    assert set(heard.values()) == {f"r{i} 10" for i in range(6)}
    assert [size for size in tried if size > 2] == [6, 5, 4, 3]
    assert [size for size in tried if size == 2][:7] == [2] * 7
    assert bench.policy.costs.max_rows("step", SMALL) == 2
    assert bench.policy.costs.max_rows("step", Group(SMALL.area + 1)) == 8


def test_one_request_that_the_memory_does_not_hold_is_told_so():
    bench = Bench()
    bench.model.broken["large"] = Overloaded("not enough GPU memory for this picture right now")
    for name in ("large", "small"):
        bench.add(name, 2, SMALL)
    heard = bench.finish()
    assert isinstance(heard["large"], Overloaded)
    assert heard["small"] == "small 3"


@pytest.mark.parametrize("method", ["first", "pick", "charge", "remaining", "keep_accounts"])
def test_an_exception_in_the_policy_costs_the_task_concerned(method):
    class Broken(Policy):
        pass

    def broken(self, given, *now):
        tasks = [given] if isinstance(given, Task) else given
        if any(task.request_id == "bad" for task in tasks):
            raise RuntimeError("no such account")
        return getattr(Policy, method)(self, given, *now)

    setattr(Broken, method, broken)
    bench = Bench(policy=Broken(COSTS, 8))
    bench.add("first", 2)
    bench.add("bad", 1)
    heard = bench.finish()
    assert heard["first"] == "first 3"
    assert isinstance(heard["bad"], EngineFailure) or method == "remaining"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", ["remaining", "seconds", "pick"])
def test_an_exception_in_the_bookkeeping_of_a_started_task_costs_that_task(method, asynchronous):
    """`pick` gives a task twice in one batch, once too often for its last unit; the others raise."""

    class Broken(Policy):
        pass

    def broken(self, given, *now):
        found = getattr(Policy, method)(self, given, *now)
        tasks = [given] if isinstance(given, Task) else given
        if not any(task.request_id == "bad" and task.left != task.plan.phases for task in tasks):
            return found
        if method == "pick":
            return [task for task in given if task.request_id == "bad"] * 3
        raise RuntimeError("no such account")

    setattr(Broken, method, broken)
    bench = Bench(policy=Broken(COSTS, 8), asynchronous=asynchronous)
    bench.add("first", 2)
    bench.add("bad", 1)
    heard = bench.finish()
    assert heard["first"] == "first 3"
    assert isinstance(heard["bad"], EngineFailure)


def test_an_exception_in_admission_costs_the_task_concerned():
    class Broken(Admission):
        def admit(self, task):
            if task.request_id == "bad":
                raise RuntimeError("no such tenant")
            super().admit(task)

        def fits(self, task):
            if task.request_id == "worse":
                raise RuntimeError("no such size")
            return super().fits(task)

    bench = Bench()
    bench.engine.admission = Broken(8)
    for name in ("good", "bad", "worse"):
        bench.add(name, 2)
    heard = bench.finish()
    assert heard["good"] == "good 3"
    assert isinstance(heard["bad"], EngineFailure)
    assert isinstance(heard["worse"], EngineFailure)


def test_a_unit_of_work_is_late_only_beyond_what_it_should_take():
    bench = Bench()
    seen = []
    work = bench.model.work

    def slow(kind, states):
        for seconds in (15.0, 10.0) if kind == "step" else ():
            bench.model.now += seconds
            seen.append(bench.engine.lateness)
        return work(kind, states)

    bench.model.work = slow
    bench.add("a", 1)
    assert bench.engine.lateness < 0
    bench.steps(1)
    assert seen == [pytest.approx(-5.0), pytest.approx(5.0)]
    bench.finish()
    assert bench.engine.lateness < 0


def test_lateness_counts_from_the_launch_while_the_engine_waits_for_the_device():
    bench = Bench(asynchronous=True)
    bench.add("a", 2)
    bench.steps(1)
    bench.model.now += 25.0
    assert bench.engine.lateness == pytest.approx(5.0)
    bench.steps(1)
    assert bench.engine.lateness == pytest.approx(-20.0)
    bench.finish()


def test_requests_of_many_threads_are_each_answered_once():
    bench = Bench(max_rows=6, tenant_rows=200, asynchronous=True)
    bench.model.failing["r7"] = EngineFailure("latents are not finite")
    bench.model.broken["r8"] = RuntimeError("an error of this one's batches")
    runner = threading.Thread(target=bench.engine.run, daemon=True)
    runner.start()

    def submit(numbers):
        for i in numbers:
            is_cancelled = (lambda: True) if i % 11 == 0 else (lambda: False)
            bench.add(f"r{i}", 2 + i % 5, SMALL if i % 3 else LARGE, tenant=f"t{i % 4}", is_cancelled=is_cancelled)
            bench.engine.poll_cancelled()

    senders = [threading.Thread(target=submit, args=(range(k, 200, 4),), daemon=True) for k in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    while not bench.idle:
        time.sleep(0.01)
    bench.engine.close()
    runner.join(10)
    assert not runner.is_alive()
    assert len(bench.heard) == 200
    assert all(len(said) == 1 for said in bench.heard.values())
    good = {name: said[0][0] for name, said in bench.heard.items() if isinstance(said[0][0], str)}
    assert all(answer == f"{name} {3 + int(name[1:]) % 5}" for name, answer in good.items())
    assert len(good) > 150
    assert isinstance(bench.heard["r7"][0][0], EngineFailure)
    assert isinstance(bench.heard["r8"][0][0], EngineFailure)
