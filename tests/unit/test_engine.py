"""The engine's order of work: batches, priorities, bounds of memory and of tenants, and the cost table."""

import threading

import pytest

from instantid.engine import CostTable, Group, Policy
from instantid.errors import InvalidArgument, Overloaded

from .counting import COSTS, LARGE, SMALL, Bench, make_task


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


def test_one_unit_runs_behind_the_one_that_is_launched():
    bench = Bench(asynchronous=True)
    bench.add("a", 3)
    seen = []
    while not bench.idle:
        bench.steps(1)
        seen.append((bench.model.states["a"].advanced, bench.model.now))
    assert seen == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0), (4, 3.5)]
    bench.engine.close()


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
