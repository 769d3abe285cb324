"""The engine on a denoiser that only counts: its clock advances by what the cost table says."""

import threading
from dataclasses import dataclass, field

import pytest

from instantid.engine import Answer, CostTable, Engine, Policy, Room, Task
from instantid.errors import Cancelled, DeviceFailure, EngineFailure, InvalidArgument, Overloaded

SIZE, OTHER = (1024, 1024), (512, 512)
COSTS = CostTable(
    {SIZE: ((1, 1.0), (2, 1.98), (4, 3.95)), OTHER: ((1, 0.3), (2, 0.32), (4, 0.4), (8, 0.7))}, {SIZE: 0.5, OTHER: 0.25}
)


@dataclass
class Counter:
    rows: int
    steps_left: int
    size: tuple[int, int]
    pictures_left: int = 1
    failure: Exception | None = None
    seen: list = field(default_factory=list)


class CountingDenoiser:
    """Steps count down; `broken` names jobs whose step raises."""

    def __init__(self):
        self.now = 0.0
        self.batches = []
        self.decoded = []
        self.broken = {}

    def start(self, job):
        if job.get("bad_start"):
            raise job["bad_start"]
        return Counter(job["rows"], job["steps"], job["size"], job.get("pictures", 1), seen=[job["name"]])

    def step(self, states):
        for state in states:
            if state.seen[0] in self.broken:
                raise self.broken[state.seen[0]]
        self.batches.append([state.seen[0] for state in states])
        self.now += COSTS.step(states[0].size, sum(state.rows for state in states))
        for state in states:
            state.steps_left -= 1

    def decode(self, state):
        self.decoded.append((state.seen[0], len(self.batches)))
        self.now += COSTS.decode(state.size)
        state.pictures_left -= 1
        return state.seen[0]


class Bench:
    """An engine driven by hand, and what each caller heard, when."""

    def __init__(self, max_rows=8, credit=10.0, quantum=1.0, ageing=0.0, tenant_rows=None):
        self.denoiser = CountingDenoiser()
        self.heard = {}
        policy = Policy(COSTS, credit=credit, quantum=quantum, ageing=ageing)
        self.engine = Engine(
            self.denoiser,
            policy,
            lambda job, names: "+".join(names),
            Room(max_rows, tenant_rows),
            clock=lambda: self.denoiser.now,
        )

    def add(self, name, steps, size=SIZE, rows=1, **fields):
        job = {"name": name, "steps": steps, "size": size, "rows": rows, **fields.pop("job", {})}
        said = self.heard.setdefault(name, [])
        answer = Answer(lambda outcome: said.append((outcome, self.denoiser.now)))
        task = Task(job, size, rows, steps, answer, job.get("pictures", 1), request_id=name, **fields)
        self.engine.offer([task])
        return task

    def finish(self):
        while not self.engine.idle:
            self.engine.step()
        self.engine.close()
        assert all(len(said) == 1 for said in self.heard.values()), self.heard
        return {name: said[0][0] for name, said in self.heard.items()}

    def ends(self):
        """Names in the order of their last step."""
        last = {name: i for i, batch in enumerate(self.denoiser.batches) for name in batch}
        return sorted(last, key=last.get)


def test_everyone_is_answered_once_with_their_own():
    bench = Bench()
    for i in range(12):
        bench.add(f"r{i}", steps=1 + i % 4, size=SIZE if i % 2 else OTHER, rows=1 + i % 2)
    assert bench.finish() == {f"r{i}": f"r{i}" for i in range(12)}


def test_batches_hold_one_size_and_form_only_where_they_pay():
    bench = Bench()
    for i in range(3):
        bench.add(f"large{i}", 2, SIZE)
        bench.add(f"small{i}", 2, OTHER)
    bench.finish()
    large = [b for b in bench.denoiser.batches if b[0].startswith("large")]
    small = [b for b in bench.denoiser.batches if b[0].startswith("small")]
    assert all(len(batch) == 1 for batch in large)
    assert [len(batch) for batch in small] == [3, 3]
    assert all(name.startswith("small") for batch in small for name in batch)


def test_batches_never_exceed_what_was_measured():
    flat = CostTable({OTHER: ((1, 1.0), (4, 1.0))})
    tasks = [Task({}, OTHER, 1, 5, Answer(print)) for _ in range(20)]
    policy = Policy(flat)
    policy.keep_accounts(tasks, 0.0)
    assert len(policy.pick(tasks, 0.0)) == 4


def test_nobody_s_step_takes_more_than_twice_as_long_for_those_who_join():
    bench = Bench(max_rows=100)
    for i in range(20):
        bench.add(f"r{i}", 1, OTHER)
    bench.finish()
    assert max(len(batch) for batch in bench.denoiser.batches) == 6
    assert COSTS.step(OTHER, 6) <= 2 * COSTS.step(OTHER, 1) < COSTS.step(OTHER, 7)


def test_who_has_had_more_than_its_share_joins_others_only_for_next_to_nothing():
    policy = Policy(COSTS, credit=0.001, quantum=0.0005)
    flood = [Task({}, OTHER, 1, 5, Answer(print), tenant="flood") for _ in range(6)]
    other = Task({}, OTHER, 1, 5, Answer(print), tenant="other")
    policy.keep_accounts([*flood, other], 0.0)
    policy.charge(flood)
    assert policy.pick([*flood, other], 0.0) == [other, flood[0]]
    assert COSTS.step(OTHER, 2) <= 1.1 * COSTS.step(OTHER, 1) < COSTS.step(OTHER, 3)


def test_the_shortest_remaining_work_goes_first_and_pre_empts():
    bench = Bench()
    bench.add("long", 30)
    bench.engine.step()
    bench.add("short", 4)
    bench.finish()
    assert bench.denoiser.batches[:5] == [["long"], *[["short"]] * 4]


def test_ageing_lets_the_long_one_through():
    bench = Bench(ageing=1.0)
    bench.add("long", 6)
    for i in range(6):
        bench.add(f"short{i}", 4)
        for _ in range(4):
            bench.engine.step()
    bench.finish()
    assert bench.ends().index("long") < 5
    starving = Bench(ageing=0.0)
    starving.add("long", 6)
    for i in range(6):
        starving.add(f"short{i}", 4)
        for _ in range(4):
            starving.engine.step()
    starving.finish()
    assert starving.ends()[-1] == "long"


def test_priority_comes_before_length():
    bench = Bench()
    bench.add("low", 1, priority_level=3)
    bench.add("high", 9, priority_level=1)
    bench.finish()
    assert bench.ends() == ["high", "low"]


def test_a_flooding_tenant_does_not_delay_another():
    bench = Bench(max_rows=20, credit=0.05, quantum=0.01)
    for i in range(10):
        bench.add(f"flood{i}", 2, tenant="flood")
    bench.add("other", 8, tenant="other")
    bench.finish()
    steps_until_done = max(i for i, batch in enumerate(bench.denoiser.batches) if "other" in batch) + 1
    assert steps_until_done <= 2 * 8 + 2


def turns(policy, tasks, seconds):
    """Whom the policy serves in each of so many seconds, from the end of the last turns on."""
    taken = []
    for second in seconds:
        policy.keep_accounts(tasks, float(second))
        (picked,) = policy.pick(tasks, float(second))
        policy.charge([picked])
        taken.append(picked.tenant)
    return taken


def two_tenants(steps=(5, 5)):
    """Credit of 6 seconds; what is asked for counts as it is, and a step is a second."""
    tasks = [Task({}, SIZE, 1, n, Answer(print), tenant=name) for n, name in zip(steps, ("old", "new"), strict=True)]
    policy = Policy(CostTable({SIZE: ((1, 1.0), (2, 2.0))}), credit=0.1, quantum=1 / 60)
    policy.picture = 0.0
    return policy, tasks


def test_who_was_away_comes_back_with_a_bounded_credit():
    """The credit is 6 seconds, the largest debt 3: the new tenant goes first until they are even."""
    policy, (old, new) = two_tenants()
    assert turns(policy, [old], range(50)) == ["old"] * 50
    served = turns(policy, [old, new], range(50, 90))
    assert served[:9] == ["new"] * 9
    assert abs(served[14:].count("old") - 13) <= 1


def test_tenants_with_credit_left_are_served_by_their_work_alone():
    policy, (old, new) = two_tenants(steps=(2, 5))
    assert turns(policy, [old, new], range(6)) == ["old"] * 6


def test_of_two_that_owe_the_same_the_one_that_asks_for_less_goes_first():
    """In no time nothing is earned: both use up their credit of 6 seconds; one asks for 1, one for 3."""
    policy, tasks = two_tenants(steps=(3, 1))
    served = turns(policy, tasks, [0.0] * 40)
    assert served[:5] == ["new"] * 5
    assert served.count("old") >= 4
    assert served[-5:] == ["new"] * 5
    assert policy._owed["new"] == 3.0 > policy._owed["old"]


def test_many_small_requests_are_a_flood_at_once():
    policy, (few, small) = two_tenants(steps=(30, 1))
    policy.picture = 1.0
    assert turns(policy, [few, small], [0.0]) == ["new"]
    policy, (few, small) = two_tenants(steps=(2, 1))
    policy.picture = 1.0
    many = [Task({}, SIZE, 1, 1, Answer(print), tenant="new") for _ in range(9)]
    assert turns(policy, [few, small, *many], [0.0]) == ["old"]


def test_a_task_that_arrives_after_the_accounts_were_kept_can_be_ranked():
    policy, (old, new) = two_tenants()
    policy.keep_accounts([old], 0.0)
    assert policy.first([old, new], 0.0) is new
    policy.charge([new])


def test_a_flooding_tenant_is_not_starved():
    policy, (old, _) = two_tenants(steps=(300, 8))
    others = [Task({}, SIZE, 1, 2, Answer(print), tenant=f"other {i}") for i in range(3)]
    assert turns(policy, [old, *others], range(400))[100:].count("old") >= 70


def test_an_absent_tenant_s_account_is_closed_in_the_end():
    policy = Policy(COSTS, credit=0.1)
    gone, here = (Task({}, SIZE, 1, 5, Answer(print), tenant=tenant) for tenant in ("gone", "here"))
    turns(policy, [gone, here], range(40))
    assert set(policy._owed) == {"gone", "here"}
    turns(policy, [here], range(40, 100))
    assert set(policy._owed) == {"here"}


def test_rows_in_memory_are_bounded():
    bench = Bench(max_rows=4)
    first = bench.add("first", 2, rows=4)
    second = bench.add("second", 2, rows=4)
    bench.engine.step()
    assert first.state is not None
    assert second.state is None
    assert bench.finish() == {"first": "first", "second": "second"}


def test_waiting_ends_once_the_task_has_been_started():
    bench = Bench(max_rows=1)
    bench.add("running", 3)
    bench.engine.step()
    task = bench.add("next", 1)
    thread = threading.Thread(target=bench.engine.wait_until_started, args=([task],), daemon=True)
    thread.start()
    bench.engine.step()
    assert thread.is_alive()
    for _ in range(3):
        bench.engine.step()
    thread.join(5)
    assert not thread.is_alive()
    bench.finish()


def test_a_request_larger_than_the_memory_bound_runs_alone():
    bench = Bench(max_rows=4)
    bench.add("huge", 1, rows=8)
    assert bench.finish() == {"huge": "huge"}


@pytest.mark.parametrize("how", ["deadline", "is_cancelled", "cancel"])
def test_the_work_stops_at_the_next_step(how):
    bench = Bench()
    gone = threading.Event()
    fields = {"deadline": {"deadline": 2.5}, "is_cancelled": {"is_cancelled": gone.is_set}, "cancel": {}}[how]
    bench.add("gone", 30, **fields)
    bench.add("stays", 40)
    for _ in range(3):
        bench.engine.step()
    gone.set()
    if how == "cancel":
        bench.engine.cancel("gone")
    heard = bench.finish()
    assert isinstance(heard["gone"], Cancelled)
    assert "27 of 30 steps left" in str(heard["gone"])
    assert heard["stays"] == "stays"
    assert sum("gone" in batch for batch in bench.denoiser.batches) == 3


def test_a_request_whose_deadline_passes_in_the_buffer_is_never_started():
    bench = Bench(max_rows=1)
    bench.add("running", 5)
    bench.add("late", 5, deadline=2.0)
    heard = bench.finish()
    assert isinstance(heard["late"], Cancelled)
    assert ["late"] not in bench.denoiser.batches


def test_cancelling_an_unknown_id_is_harmless_later():
    bench = Bench()
    bench.engine.cancel("later")
    bench.add("later", 2)
    assert bench.finish() == {"later": "later"}


def test_a_failing_start_fails_that_request_alone():
    bench = Bench()
    bench.add("bad", 2, job={"bad_start": InvalidArgument("prompt", "x", "y")})
    bench.add("broken", 2, job={"bad_start": RuntimeError("secret path")})
    bench.add("good", 2)
    heard = bench.finish()
    assert str(heard["bad"]) == "prompt: x; y"
    assert isinstance(heard["broken"], EngineFailure)
    assert "secret" not in str(heard["broken"])
    assert heard["good"] == "good"


def test_a_failing_step_fails_the_guilty_request_alone():
    bench = Bench()
    bench.denoiser.broken["guilty"] = RuntimeError("out of memory")
    for name in ("guilty", "a", "b"):
        bench.add(name, 3, OTHER)
    heard = bench.finish()
    assert isinstance(heard["guilty"], EngineFailure)
    assert (heard["a"], heard["b"]) == ("a", "b")


def test_a_state_that_reports_its_failure_ends_with_it():
    bench = Bench()
    task = bench.add("nan", 3, OTHER)
    bench.add("good", 3, OTHER)
    bench.engine.step()
    task.state.failure = EngineFailure("latents are not finite")
    heard = bench.finish()
    assert str(heard["nan"]) == "latents are not finite"
    assert heard["good"] == "good"


def test_closing_answers_what_is_left():
    bench = Bench(max_rows=1)
    bench.add("active", 5)
    bench.add("waiting", 5)
    bench.engine.step()
    bench.engine.close()
    heard = bench.finish()
    assert all(isinstance(outcome, EngineFailure) for outcome in heard.values())


def test_costs_between_and_beyond_the_measured_rows():
    assert COSTS.step(SIZE, 3) == pytest.approx((1.98 + 3.95) / 2)
    assert COSTS.step(SIZE, 8) == pytest.approx(3.95 + 4 * (3.95 - 1.98) / 2)
    assert COSTS.step((1024, 2048), 1) == pytest.approx(2.0)
    table = CostTable({SIZE: ((2, 1.0), (4, 1.8))})
    assert table.step(SIZE, 1) == pytest.approx(0.6)


def test_cost_table_survives_its_file(tmp_path):
    COSTS.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == COSTS


def test_an_observer_that_fails_stops_nobody():
    class Failing:
        def stepped(self, *facts):
            raise RuntimeError("metrics are gone")

        ended = stepped

    bench = Bench()
    bench.engine._observer = Failing()
    bench.add("one", 2)
    assert bench.finish() == {"one": "one"}


def test_observers_hear_of_steps_and_ends():
    heard = []

    class Listening:
        def stepped(self, batch, seconds, load):
            heard.append(("step", len(batch), round(seconds, 2), *load))

        def ended(self, task, outcome, seconds, load):
            heard.append((outcome, round(seconds, 2), *load))

    bench = Bench()
    bench.engine._observer = Listening()
    bench.add("a", 2)
    bench.finish()
    assert heard == [("step", 1, 1.0, 1, 1, 1.5), ("step", 1, 1.0, 1, 1, 0.5), ("a", 2.5, 0, 0, 0.0)]


def test_pictures_are_decoded_one_at_a_time_and_a_short_request_passes_between():
    bench = Bench()
    bench.add("four", 12, job={"pictures": 4})
    for _ in range(13):
        bench.engine.step()
    assert bench.denoiser.decoded == [("four", 12)]
    bench.add("urgent", 2, priority_level=1)
    heard = bench.finish()
    assert heard == {"four": "four+four+four+four", "urgent": "urgent"}
    assert [name for name, _ in bench.denoiser.decoded] == ["four", "urgent", "four", "four", "four"]


def test_decoding_is_on_the_tenants_accounts():
    policy = Policy(CostTable({SIZE: ((1, 1.0), (2, 2.0))}, {SIZE: 0.5}))
    task = Task({}, SIZE, 1, 3, Answer(print), 2)
    task.state = Counter(1, 0, SIZE, 2)
    assert policy.remaining(task) == pytest.approx(1.0)
    policy.keep_accounts([task], 0.0)
    before = policy._owed[task.tenant]
    policy.charge([task])
    assert policy._owed[task.tenant] - before == pytest.approx(0.5)


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
    assert str(heard["flood2"]).startswith("tenant: 'flood' has 4 rows in work and asks for 2 more; at most 4")


def test_one_request_larger_than_its_tenant_s_bound_is_taken_when_nothing_else_of_it_is_there():
    bench = Bench(max_rows=8, tenant_rows=2)
    bench.add("large", 1, rows=8, tenant="a")
    assert bench.finish() == {"large": "large"}


def test_a_lost_answer_reaches_its_caller():
    heard = []
    answer = Answer(heard.append)
    del answer
    assert isinstance(heard[0], EngineFailure)
    given = []
    Answer(given.append).give("result")
    assert given == ["result"]


def test_a_broken_device_fails_everyone_and_ends_the_engine():
    bench = Bench()
    for name in ("a", "b"):
        bench.add(name, 3)
    bench.denoiser.broken["a"] = DeviceFailure("the device failed")
    with pytest.raises(DeviceFailure):
        bench.engine.run()
    assert all(isinstance(said[0][0], DeviceFailure) for said in bench.heard.values())
    late = bench.add("late", 1)
    assert isinstance(bench.heard["late"][0][0], EngineFailure)
    assert late.answer.given


def test_memory_that_does_not_suffice_fails_the_request_and_names_itself():
    bench = Bench()
    bench.denoiser.broken["large"] = Overloaded("the device's memory does not hold this picture now")
    for name in ("large", "small"):
        bench.add(name, 2, OTHER)
    heard = bench.finish()
    assert isinstance(heard["large"], Overloaded)
    assert heard["small"] == "small"


def test_a_unit_of_work_is_late_only_beyond_what_it_should_take():
    bench = Bench()
    seen = []
    step = bench.denoiser.step

    def slow(states):
        bench.denoiser.now += 15.0
        seen.append(bench.engine.lateness)
        bench.denoiser.now += 10.0
        seen.append(bench.engine.lateness)
        step(states)

    bench.denoiser.step = slow
    bench.add("a", 1)
    bench.engine._tick_began = 0.0
    bench.engine.step()
    assert seen == [pytest.approx(-5.0), pytest.approx(5.0)]
    bench.finish()
