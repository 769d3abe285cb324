"""The alert rules by Prometheus' own test of them, with two hosts in every case."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}") or shutil.which("promtool")
CASES = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not on this machine (build_tools/promtool.sh)"
)


def promtool(*arguments):
    return subprocess.run([PROMTOOL, *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=120)


@needs_promtool
def test_rules_raise_what_they_should():
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


FAULTS = [
    pytest.param(rule, change, id=f"{rule['alert']}: {change}")
    for rule in RULES
    for change in ("the host is left out", "it is never raised", "it is always raised")
    if change != "the host is left out" or "by (" in rule["expr"]
]
"""Only a rule that aggregates can lose its host."""


@needs_promtool
@pytest.mark.parametrize(("rule", "change"), FAULTS)
def test_the_test_notices_a_rule_that_is_wrong(rule, change, tmp_path):
    expr = rule["expr"]
    if change == "the host is left out":
        expr = expr.replace("(instance)", "(job)").replace("instance, ", "").replace(", instance", "")
    elif change == "it is never raised":
        expr = f"({expr}) * 0 == 1"
    else:
        expr = f"({expr}) or vector(0)"
    rules = [{**other, "expr": expr} if other is rule else other for other in RULES]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "instantid", "rules": rules}]}))
    shutil.copy(MONITORING / "alerts_test.yml", tmp_path)
    done = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert done.returncode != 0, done.stdout
    assert rule["alert"] in done.stdout + done.stderr


def test_each_rule_has_a_time_at_which_it_is_quiet_and_one_at_which_it_is_raised():
    for rule in RULES:
        expected = [
            bool(test["exp_alerts"])
            for case in CASES
            for test in case["alert_rule_test"]
            if test["alertname"] == rule["alert"]
        ]
        assert set(expected) == {True, False}, rule["alert"]


def test_each_case_has_two_hosts():
    for case in CASES:
        assert {'instance="a"', 'instance="b"'} <= {
            f"instance={word}"
            for series in case["input_series"]
            for word in ('"a"', '"b"')
            if f"instance={word}" in series["series"]
        }, case["name"]
