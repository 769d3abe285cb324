"""The load test's data: scenarios, levels over time, arrivals."""

import re
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from loadtest.arrivals import arrivals
from loadtest.scenario import interpolate, load_scenario, read_toml, shipped
from loadtest.slo import Objectives

from .loadtest_runs import SCENARIO

JUMP = ((0.0, 1.0), (0.5, 1.0), (0.5, 4.0), (1.0, 2.0))


def test_every_shipped_scenario_is_read_and_has_objectives():
    assert {"steady", "step", "spike", "soak", "noisy_neighbour", "day"} == set(shipped())
    for name in shipped():
        scenario = load_scenario(name)
        assert (scenario.name, bool(scenario.objectives)) == (name, True)
        for tenant in scenario.tenants:
            assert any(fnmatch(tenant.name, objective.tenant) for objective in scenario.objectives), tenant


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("users = 2\nrate = 1", "exactly one of users, rate and load"),
        ("users = -1", "users"),
        ("users = 2\nuser = 3", "user: Extra inputs"),
        ("users = 2\nshape = [[0, 1], [0.6, 1], [0.5, 1], [1, 1]]", "rising order"),
        ("users = 2\nshape = [[0, 1], [0.5, 1]]", "from 0 to 1"),
        ("users = 2\nshape = [[0, 0], [1, 0]]", "above 0"),
        ("users = ", "Invalid value"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name_and_fault(tmp_path, text, fault):
    path = tmp_path / "mine.toml"
    path.write_text(f'description = "x"\n{text}\n[[tenants]]\nname = "a"\n[[classes]]\nname = "c"\n')
    with pytest.raises(ValueError, match=fault) as caught:
        load_scenario(str(path))
    assert str(path) in str(caught.value)


def test_a_tenant_that_names_a_class_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no class 'huge'"):
        SCENARIO.changed(tenants=[{"name": "a", "classes": ["huge"]}])


def test_the_files_of_the_documentation_are_valid(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text()
    scenario, objectives = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.toml").write_text(scenario)
    (tmp_path / "slo.toml").write_text(objectives)
    assert [tenant.name for tenant in load_scenario(str(tmp_path / "mine.toml")).tenants] == ["studio", "app"]
    assert len(read_toml(tmp_path / "slo.toml", Objectives)["objectives"]) == 2


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match="steady"):
        load_scenario("stedy")


def test_one_of_users_rate_and_load_replaces_the_other():
    closed = SCENARIO.changed(users=3)
    assert (closed.users, closed.rate, closed.is_closed) == (3, None, True)
    assert SCENARIO.changed(seconds=5).rate == SCENARIO.rate


def test_levels_are_lines_between_points_and_jumps_where_two_points_share_a_place():
    assert [interpolate(JUMP, place) for place in (0.0, 0.49, 0.5, 0.75, 1.0)] == [1.0, 1.0, 4.0, 3.0, 2.0]


def test_a_tenants_level_is_that_of_the_scenario_times_its_own_and_zero_outside_the_run():
    scenario = SCENARIO.changed(shape=JUMP, tenants=[{"name": "a", "shape": [[0, 2], [1, 2]]}])
    (tenant,) = scenario.tenants
    assert [scenario.level(tenant, at) for at in (-1, 0, 50, 100)] == [0, 2, 8, 0]
    assert scenario.peak(tenant) == 8


def test_callers_follow_weight_and_level_and_nobody_is_left_out():
    scenario = SCENARIO.changed(users=4, tenants=[{"name": "a", "weight": 9}, {"name": "b"}])
    assert [[scenario.callers(t, level) for t in scenario.tenants] for level in (0, 1, 3)] == [[0, 0], [4, 1], [11, 1]]


def test_capacity_follows_from_the_time_of_each_class_alone():
    scenario = SCENARIO.changed(tenants=[{"name": "a", "weight": 3, "classes": ["short"]}, {"name": "b"}])
    assert scenario.capacity_rate({"long": 2.0, "short": 0.5}) == pytest.approx(1 / (0.75 * 0.5 + 0.25 * 1.25))


def test_arrivals_are_a_poisson_process_at_the_stated_rate():
    scenario = SCENARIO.changed(seconds=20000)
    times = np.array([arrival.at for arrival in arrivals(scenario, scenario.tenants[0], 2.0)])
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)


def test_arrivals_follow_the_level_and_the_mix():
    scenario = SCENARIO.changed(
        seconds=10000, shape=JUMP, classes=[{"name": "long", "share": 3}, {"name": "short"}], tenants=[{"name": "a"}]
    )
    found = list(arrivals(scenario, scenario.tenants[0], 1.0))
    early = [arrival for arrival in found if arrival.at < 5000]
    assert len(early) == pytest.approx(5000, rel=0.05)
    assert len(found) - len(early) == pytest.approx(15000, rel=0.05)
    assert sum(arrival.kind == "long" for arrival in found) / len(found) == pytest.approx(0.75, abs=0.02)


def test_a_flood_leaves_the_arrivals_of_the_others_as_they_are():
    flooded = SCENARIO.changed(tenants=[{"name": "a"}, {"name": "b", "shape": [[0, 9], [1, 9]]}])
    quiet, beside = (list(arrivals(scenario, scenario.tenants[0], 2.0)) for scenario in (SCENARIO, flooded))
    assert quiet == beside
    assert len(list(arrivals(flooded, flooded.tenants[1], 2.0))) > 5 * len(quiet)
    assert list(arrivals(SCENARIO.changed(seed=1), SCENARIO.tenants[0], 2.0)) != quiet
