"""Every command of README's table "Measured" runs: always in a short form, and unchanged in the long tests."""

import re
import shlex
import subprocess
import sys

import pytest

from .conftest import ROOT

COLLECT = ["--collect-only"]
"""For rows that are tests: `make test` and `make test-long` run them, and here they only have to be found."""
SHORT = {
    "python bench/face_analysis.py --parity": ["--pictures", "4", "--output", "{folder}"],
    "python bench/face_analysis.py": ["--rounds", "1", "--faces", "6", "--threads", "1", "--output", "{folder}"],
    "pytest tests/unit/test_diffusion.py": COLLECT,
    "python bench/simulate.py": ["--requests", "60"],
    "python bench/simulate.py tenants": ["--requests", "60", "--seeds", "1"],
    "python bench/simulate.py isolation": ["--requests", "20"],
    "python bench/closed_loop.py": ["--seconds", "5"],
    "python bench/isolation.py simulated --requests 400": ["--requests", "100"],
    'pytest -m "" tests/server/test_faults.py tests/server/test_exhaustion.py': COLLECT,
    "pytest -m long tests/server/test_fuzz.py": COLLECT,
    "python bench/scheduling.py": ["--mixes", "tenants", "--seconds", "3", "--warm-up", "0"],
    "python -m miniature.meaning --people 20": ["--people", "2", "--steps", "2"],
    "pytest -m long tests/server/test_soak.py": COLLECT,
}
"""The arguments that make each command short."""


def measured():
    section = (ROOT / "README.md").read_text().partition("## Measured\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [re.search("`([^`]+)`", row.split(" | ")[-1])[1] for row in rows]


def run(command, arguments=()):
    program, *rest = shlex.split(command)
    start = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}[program]
    done = subprocess.run([*start, *rest, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def test_the_table_is_read_and_each_short_form_has_a_row():
    assert measured()
    assert set(measured()) == set(SHORT)


@pytest.mark.parametrize("command", measured())
def test_short_form(weights, tmp_path, command):
    run(command, [argument.format(folder=tmp_path) for argument in SHORT[command]])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", [command for command in measured() if SHORT.get(command) is not COLLECT])
def test_long_form(weights, command):
    run(command)
