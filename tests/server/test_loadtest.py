"""The load test against the real server: its exit code is what the objectives say, and its report what was seen."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from loadtest.record import read_record

SCENARIO = """
description = "Two tenants for a few seconds."
seconds = 4
users = 3
[[tenants]]
name = "quiet"
think = [0.1, 0.3]
[[tenants]]
name = "busy"
weight = 2
priority = 3
think = [0.0, 0.1]
[[classes]]
name = "tiny"
options = { num_inference_steps = 2, width = 64, height = 64 }
[[objectives]]
p99 = 300
"""
TOO_STRICT = '[[objectives]]\ntenant = "quiet"\np95 = 0.001\n'


@pytest.fixture
def command(server, tmp_path):
    path = tmp_path / "brief.toml"
    path.write_text(SCENARIO)
    (tmp_path / "strict.toml").write_text(TOO_STRICT)
    where = ["--host", server.grpc_url, "--metrics", server.metrics_url, "--output", str(tmp_path / "out")]
    return [sys.executable, "-m", "loadtest", "run", str(path), *where]


def run(command, *more):
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=400)


def only_run(tmp_path):
    (folder,) = (tmp_path / "out").iterdir()
    return folder


def test_a_closed_loop_keeps_its_objectives_and_reports_callers_and_server(command, tmp_path):
    done = run(command)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    found = read_record(folder)
    assert {request.outcome for request in found.requests} == {"ok"}
    assert {request.tenant for request in found.requests} == {"quiet", "busy"}
    assert sum(sample.answered for sample in found.samples) == len(found.requests)
    assert max(sample.rows_per_step for sample in found.samples if sample.steps) >= 2
    assert "10 of 10 limits kept; report:" in done.stderr
    assert (folder / "report.html").stat().st_size > 50_000


def test_an_open_loop_counts_from_when_requests_were_due_and_fails_by_an_objective_that_cannot_be_kept(
    command, tmp_path
):
    done = run(command, "--load", "6", "--check-equal", "--slo", str(tmp_path / "strict.toml"))
    assert done.returncode == 1, done.stderr
    assert "not kept: quiet / tiny: p95" in done.stderr
    found = read_record(only_run(tmp_path))
    assert {request.outcome for request in found.requests} <= {"ok", "refused"}, "pictures are equal to those alone"
    assert found.about["rate"] == pytest.approx(6 / found.alone["tiny"])
    due = sorted(request.planned for request in found.requests)
    assert due[-1] < 4 < max(request.ended for request in found.requests), "requests are due whatever became of others"


def test_a_server_that_cannot_answer_is_said_so(command, tmp_path):
    photo = tmp_path / "photo.txt"
    photo.write_text("not a photo")
    done = run(command, "--photo", str(photo))
    assert done.returncode == 2
    assert "InvalidArgument: photo" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_web_page_shows_the_run_and_ctrl_c_ends_it(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen([*command, "--web", "--web-port", port], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "report:" in line:
                break
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=30).read().decode()
        assert '"name":"tiny"' in page.replace(" ", "")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert time.monotonic() - began < 30
    finally:
        process.kill()
