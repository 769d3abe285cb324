"""MLPerf LoadGen against the real server."""

import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.parametrize(
    "scenario", [["offline", "--expected-qps", "2"], ["server", "--target-qps", "2", "--percentile", "0.5"]]
)
def test_loadgen_judges_a_short_run_and_says_that_it_is_unverified(server, tmp_path, scenario):
    options = ["--url", server.grpc_url, "--seconds", "1", "--queries", "8", "--steps", "1", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "bench" / "loadgen.py"), *scenario, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Unverified")
    assert "Result is : VALID" in (tmp_path / "mlperf_log_summary.txt").read_text()
