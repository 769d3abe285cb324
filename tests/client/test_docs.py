"""docs/client.md: its blocks run, its reference is the docstrings', its table names tests that exist."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import instantid_client

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
GENERATOR = runpy.run_path(str(ROOT / "client" / "reference.py"), run_name="reference")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.partition("## Reference")[0], re.DOTALL)


def test_the_reference_is_made_from_the_docstrings():
    assert GENERATOR["page_with_reference"](PAGE) == PAGE


def test_the_reference_has_every_public_name():
    names = [*instantid_client.__all__]
    names.remove("__version__")
    assert [name for name in names if name not in PAGE.partition("## Reference")[2]] == []


def test_every_row_of_the_comparison_names_tests_that_exist():
    tests = set()
    for path in [*ROOT.glob("tests/client/test_*.py"), *ROOT.glob("tests/server/test_client*.py")]:
        tests |= {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    table = PAGE.partition("## Beside other clients")[2].partition("##")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[-2])
        assert named, row
        assert set(named) <= tests, row


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_run(code, url, tmp_path):
    (tmp_path / "astronaut.png").write_bytes(b"photo")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("localhost:8001", url)], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_there_are_blocks_for_both_clients_and_the_fake():
    assert len(BLOCKS) == 4
    assert "AsyncInstantIDClient" in "".join(BLOCKS)
    assert "FakeClient" in "".join(BLOCKS)
