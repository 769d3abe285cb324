"""Whom the policy serves: tenants by their accounts, then requests by their work."""

import pytest

from instantid.engine import Answer, CostTable, Group, Phase, Plan, Policy, Task
from instantid.engine.policy import CREDIT, PATIENCE

LARGE, SMALL = Group(1024 * 1024), Group(512 * 512)
COSTS = CostTable(
    {
        ("step", LARGE.area): ((1, 1.0), (2, 2.0)),
        ("step", SMALL.area): ((1, 0.3), (2, 0.32), (4, 0.4), (8, 0.7)),
        ("decode", LARGE.area): ((1, 0.5),),
    }
)
ROOM = 4


def make_tasks(policy, tenant, count, steps, group=LARGE, arrived=0.0):
    plan = Plan(group, (Phase("step", 1, steps),))
    tasks = [Task({}, None, plan, Answer(lambda outcome: None), tenant=tenant, arrived=arrived) for _ in range(count)]
    for task in tasks:
        task.work = task.remaining = policy.remaining(task)
    return tasks


def serve(policy, tasks, seconds):
    """The tenants that the policy serves in each of so many seconds; no task ever ends."""
    served = []
    for second in seconds:
        policy.keep_accounts(tasks, float(second))
        (picked,) = policy.pick(tasks, float(second))
        policy.charge([picked])
        served.append(picked.tenant)
    return served


def test_a_tenant_that_fills_its_room_gets_its_equal_part_and_no_more():
    policy = Policy(COSTS, ROOM)
    flood, others = make_tasks(policy, "flood", ROOM, 2), [make_tasks(policy, f"other {i}", 1, 20)[0] for i in range(3)]
    served = serve(policy, [*flood, *others], range(80))
    assert abs(served.count("flood") - 20) <= 2


def test_tenants_within_their_share_are_served_by_their_work_alone():
    policy = Policy(COSTS, ROOM)
    tasks = make_tasks(policy, "short", ROOM - 1, 2) + make_tasks(policy, "long", 1, 20)
    assert serve(policy, tasks, range(4)) == ["short"] * 4


def test_a_tenant_that_keeps_up_half_a_room_goes_after_others_once_it_has_used_half_of_its_credit():
    """Alone it uses a second of credit a second and earns half of it back: sixteen seconds are half of the credit."""
    policy = Policy(COSTS, ROOM)
    old, new = make_tasks(policy, "old", ROOM // 2, 2), make_tasks(policy, "new", 1, 20)
    half = CREDIT * ROOM * 2 / 2
    serve(policy, old, range(int(2 * half) - 4))
    assert serve(policy, old + new, range(int(2 * half) - 4, int(2 * half) - 2)) == ["old"] * 2
    assert serve(policy, old + new, range(int(2 * half) - 2, int(2 * half) + 8)).count("new") >= 4


def test_two_floods_of_different_requests_get_equal_time():
    policy = Policy(COSTS, ROOM)
    tasks = make_tasks(policy, "short", ROOM, 2) + make_tasks(policy, "long", ROOM, 20)
    assert abs(serve(policy, tasks, range(400)).count("short") - 200) <= 20


def test_a_flood_is_not_starved_by_others_that_never_pause():
    policy = Policy(COSTS, ROOM)
    flood, others = make_tasks(policy, "flood", 2 * ROOM, 2), [make_tasks(policy, f"{i}", 1, 20)[0] for i in range(3)]
    assert serve(policy, [*flood, *others], range(400))[200:].count("flood") >= 30


def test_credit_is_counted_in_requests_of_the_tenant_s_own_size():
    used = []
    for group in (LARGE, SMALL):
        policy = Policy(COSTS, ROOM)
        (task,) = make_tasks(policy, "a", 1, 4, group)
        serve(policy, [task], [0.0] * 4)
        used.append(policy._accounts["a"].used)
    assert used == [pytest.approx(1 / (CREDIT * ROOM))] * 2


def test_every_kind_of_work_is_charged():
    policy = Policy(COSTS, ROOM)
    plan = Plan(LARGE, (Phase("decode", 1, 2),))
    task = Task({}, None, plan, Answer(lambda outcome: None), tenant="a", work=1.0)
    assert policy.remaining(task) == 1.0
    policy.keep_accounts([task], 0.0)
    policy.charge([task])
    assert policy._accounts["a"].used == pytest.approx(0.5 / (CREDIT * ROOM))


def test_an_absent_tenant_s_account_is_closed_once_it_is_full():
    policy = Policy(COSTS, ROOM)
    gone, here = make_tasks(policy, "gone", 1, 5), make_tasks(policy, "here", 1, 5)
    serve(policy, gone + here, range(10))
    assert set(policy._accounts) == {"gone", "here"}
    serve(policy, here, range(10, 40))
    assert set(policy._accounts) == {"here"}


def test_a_task_that_arrives_after_the_accounts_were_kept_can_be_ranked_and_charged():
    policy = Policy(COSTS, ROOM)
    old, new = make_tasks(policy, "old", 1, 5), make_tasks(policy, "new", 1, 2)
    policy.keep_accounts(old, 0.0)
    assert policy.first(old + new, 0.0) is new[0]
    policy.charge(new)
    assert policy._accounts["new"].used > 0


def test_requests_beyond_their_tenant_s_share_join_others_only_for_next_to_nothing():
    policy = Policy(COSTS, ROOM)
    flood, (other,) = make_tasks(policy, "flood", 6, 5, SMALL), make_tasks(policy, "other", 1, 5, SMALL)
    policy.charge(flood)
    policy.keep_accounts([*flood, other], 0.0)
    assert policy.pick([*flood, other], 0.0) == [other, flood[0]]
    assert COSTS.seconds("step", SMALL, 2) <= 1.1 * COSTS.seconds("step", SMALL, 1) < COSTS.seconds("step", SMALL, 3)


def test_an_overdue_request_gets_every_second_unit():
    policy = Policy(COSTS, ROOM)
    (long,) = make_tasks(policy, "", 1, 6)
    shorts = make_tasks(policy, "", 3, 2)
    long.due = policy.due(long, shorts)
    assert long.due == PATIENCE * long.work + 3 * shorts[0].work
    policy.keep_accounts([long, *shorts], long.due - 1)
    assert policy.pick([long, *shorts], long.due - 1) == [shorts[0]]
    turns = []
    for second in range(8):
        policy.keep_accounts([long, *shorts], long.due + second)
        (picked,) = policy.pick([long, *shorts], long.due + second)
        policy.charge([picked])
        turns.append(picked is long)
    assert turns == [True, False] * 4


def test_of_several_overdue_requests_the_one_that_is_due_first_goes_first():
    policy = Policy(COSTS, ROOM)
    (long,), (short,) = make_tasks(policy, "", 1, 6), make_tasks(policy, "", 1, 2, arrived=200.0)
    long.due, short.due = (policy.due(task, []) for task in (long, short))
    policy.keep_accounts([long, short], 1000.0)
    assert policy.first([long, short], 1000.0) is long
