"""Failures in the engine: a request, a batch, a policy, a device; each ends only those it must."""

import pytest

from instantid.engine import Admission, CostTable, Group, Policy, Task
from instantid.errors import DeviceFailure, EngineFailure, InvalidArgument, Overloaded

from .counting import COSTS, SMALL, Bench


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
