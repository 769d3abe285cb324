import contextlib
import subprocess
import sys


def run(server, photo, *arguments):
    command = [sys.executable, "-m", "loadtest", "--photo", str(photo), "--host", server.grpc_url, *arguments]
    for timeout in (60, 60):
        # Known fault: grpcio's gevent support now and then never wakes up on a busy machine.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_short_run_has_no_failures_and_reports_percentiles(server, astronaut, tmp_path):
    photo = tmp_path / "astronaut.png"
    photo.write_bytes(astronaut)
    done = run(server, photo, "--users", "2", "--run-time", "8s", "--stop-timeout", "30", "--only-summary")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    aggregated = next(line for line in text.splitlines() if "Aggregated" in line and "%" in line)
    assert int(aggregated.split()[1]) >= 2, text
    assert "99%" in text


def test_failures_are_counted_by_their_class(server, tmp_path):
    photo = tmp_path / "photo.txt"
    photo.write_text("not a photo")
    done = run(server, photo, "--users", "1", "--run-time", "4s", "--stop-timeout", "30")
    assert done.returncode == 1
    assert "InvalidArgument" in done.stdout + done.stderr
